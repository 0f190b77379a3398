"""What to write in a loop of one's own where it does not offer what a method needs."""

from __future__ import annotations

ADVICE = {
    "boundaries": "Pass boundary=Every(steps=1000) or boundary=OnNewClass(), or call begin() and end() yourself.",
    "data": (
        "Call begin(data) and end(data) around each experience, or choose a method that needs none: er, der_plus_plus,"
        " agem."
    ),
    "replacement": "Leave boundary out and loop over the data that `begin` returns, or use the Trainer.",
    "stream": "Leave boundary out and call begin(experience) with the experiences of a stream, or use the Trainer.",
    "task": "Leave boundary out and call begin(data, task=...), or choose a method that needs no task labels.",
    "update": "Pass optimizer=..., so that the method sees when the parameters moved.",
    "progress": "Leave boundary out and call begin(data, epochs=..., batch_size=...), or use the Trainer.",
    "criterion": "Leave boundary out (the loss is made before one is found); write loss = cl.loss(outputs, targets).",
}
