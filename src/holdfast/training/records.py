"""The events of a run: windows of training steps and evaluations, joined over all processes that train together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.training.divergence import Watch
from holdfast.training.evaluation import evaluate
from holdfast.training.limits import limited
from holdfast.training.window import Window

if TYPE_CHECKING:
    from holdfast.training.trainer import Trainer


class Records:
    """Keeps every event, and passes it on to the trainer's `record`.

    Args:
        trainer: bound to its model and stream.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.events: list[dict[str, Any]] = []
        self.window = Window(trainer.learner)
        self.watch = Watch(trainer.model, trainer.on_divergence)

    def write(self, **event: Any) -> None:
        """Keep one event."""
        self.events.append(event)
        if self.trainer.record is not None:
            self.trainer.record(event)
        noticed = self.watch.notice(event, self.window.first)
        if noticed is not None:
            self.write(**noticed)
            self.watch.stop(noticed)

    def write_window(self) -> None:
        """Keep means over the steps since the last window, and their learning rate."""
        trainer, position = self.trainer, self.trainer.position
        self.write(
            event="train",
            experience=position["experience"],
            epoch=position["epoch"],
            step=trainer.engine.index,
            samples=position["step"] * trainer.loop.settings.batch_size,
            lr=trainer.optimization.lr,
            **_mean(trainer.ranks.gather(self.window.read())),
        )

    def evaluate_all(self, after: int) -> None:
        """Evaluate every experience on the data that the trainer is to evaluate on.

        Args:
            after: the experience that was learned last; -1 before any.
        """
        trainer = self.trainer
        splits = {"both": ("test", "validation"), "none": ()}.get(trainer.evaluate, (trainer.evaluate,))
        for split in splits:
            for experience in trainer.stream:
                data = getattr(experience, split)
                if data is None or len(data) == 0:
                    continue
                data = limited(data, trainer.limits[split], trainer.eval_batch_size, trainer.seed, split)
                found = evaluate(
                    trainer.engine,
                    data,
                    experience.classes,
                    experience.task,
                    trainer.eval_batch_size,
                    trainer.ranks,
                )
                self.write(event="evaluate", after=after, experience=experience.index, split=split, **found)

    def write_experience(self, index: int, seconds: float, evaluation_seconds: float) -> None:
        """Keep what learning an experience took; a memory counts with all its parts."""
        trainer = self.trainer
        memory = trainer.learner.memory
        held = trainer.ranks.gather((0, 0) if memory is None else (len(memory), memory.nbytes))
        self.write(
            event="experience",
            experience=index,
            steps=trainer.position["step"],
            seconds=seconds,
            evaluation_seconds=evaluation_seconds,
            parameters=sum(p.numel() for p in trainer.model.parameters()),
            memory_items=sum(items for items, _ in held),
            memory_bytes=sum(size for _, size in held),
        )


def _mean(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The window of all ranks together; a term that a rank had not counts as zero there."""
    if len(parts) == 1:
        return parts[0]
    names = list(dict.fromkeys(name for part in parts for name in part["terms"]))
    terms = {name: sum(part["terms"].get(name, 0.0) for part in parts) / len(parts) for name in names}
    right = [part["accuracy"] for part in parts if part["accuracy"] is not None]
    return {"loss": terms.get("loss"), "accuracy": sum(right) / len(right) if right else None, "terms": terms}
