"""What a trained model answers: outputs for inputs, and counts of right answers on a stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Stream, tree_map
from holdfast.training.evaluation import evaluate


def outputs(engine: Engine, inputs: Any, task: int | None = None) -> Tensor:
    """The outputs for raw inputs as the method wants them, `[rows, ...]` on the CPU, in eval mode.

    Args:
        engine: of the trained model and its method.
        inputs: a tensor, a tuple or a mapping of tensors, `[rows, ...]`, as the stream's data are.
        task: the task label, for a model with a head for each task.
    """
    inputs = tree_map(lambda leaf: torch.as_tensor(leaf).to(engine.learner.device), inputs)
    with engine.evaluating(), torch.inference_mode():
        return engine.predict(inputs, task).float().cpu()


def evaluated(engine: Engine, stream: Stream, split: str, batch_size: int) -> dict[str, Any]:
    """Evaluate a model on every experience of a stream.

    Args:
        engine: of the trained model and its method.
        stream: what to evaluate on.
        split: `test` or `validation`.
        batch_size: samples per forward.

    Returns:
        `{"experiences": [what an evaluate event holds], "average_accuracy": ..}`.

    Raises:
        ConfigError: for another split.
        DataError: if the stream has no such data.
    """
    if split not in ("test", "validation"):
        raise ConfigError(f"there is no split {split!r} to evaluate on. Write test or validation.")
    measured = []
    for experience in stream:
        data = getattr(experience, split)
        if data is not None and len(data):
            counts = evaluate(engine, data, experience.classes, experience.task, batch_size)
            measured.append({"experience": experience.index, "name": experience.name, "split": split, **counts})
    if not measured:
        raise DataError(f"the stream has no {split} data. Evaluate on test, or make the stream with validation=0.1.")
    accuracies = [one["correct"] / one["samples"] for one in measured if one["correct"] is not None]
    return {"experiences": measured, "average_accuracy": sum(accuracies) / len(accuracies) if accuracies else None}
