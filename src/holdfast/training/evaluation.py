"""Evaluation: counts on one experience's data, from which every metric is computed later."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.core.engine import Engine
from holdfast.core.experience import Data, tree_map


def evaluate(engine: Engine, data: Data, classes: tuple[int, ...], task: int | None, batch_size: int = 512) -> dict[str, Any]:
    """Loss and counts of correct predictions on `data`, in eval mode and without gradients.

    Args:
        engine: learner and method (its `predict` operations act).
        data: what to evaluate on.
        classes: the classes of the experience, for the task-aware count.
        task: the task label, for a model with a head per task.
        batch_size: samples per forward.

    Returns:
        The counts of an `evaluate` event: `samples`, `loss` (mean over the samples whose class has an output), `correct` (arg-max over all
        outputs), `correct_task` (arg-max among `classes`), and per class `class_samples` and `class_correct`;
        the counts are None where targets are not class indices.
    """
    learner = engine.learner
    device = learner.device
    total = torch.zeros((), device=device, dtype=torch.float64)
    weighed = torch.zeros((), device=device, dtype=torch.float64)
    counts: dict[str, Tensor] = {}
    known_to_model = None
    labels = torch.tensor(sorted(classes), device=device)
    with engine.evaluating(), torch.inference_mode():
        for batch in data.batches(torch.arange(len(data)), batch_size):
            inputs = tree_map(lambda leaf: leaf.to(device), batch.inputs)
            targets = batch.targets.to(device)
            rows = targets.shape[0]
            outputs = engine.predict(inputs, batch.task if batch.task is not None else task)
            single_label = not targets.is_floating_point() and outputs.dim() == 2
            if single_label:
                width = outputs.shape[1]
                if known_to_model is None:
                    known_to_model = labels[labels < width]
                _count(counts, outputs, targets, known_to_model)
                inside = targets < width
                outputs, targets = outputs[inside], targets[inside]
                rows = targets.shape[0]
            if rows:
                total += learner.criterion(outputs, targets).double() * rows
                weighed += rows
    samples = len(data)
    result: dict[str, Any] = {"samples": samples, "loss": None, "correct": None, "correct_task": None}
    result["loss"] = float(total / weighed) if float(weighed) else None
    if counts:
        result["correct"], result["correct_task"] = int(counts["correct"]), int(counts["correct_task"])
        seen, right = counts["class_samples"].tolist(), counts["class_correct"].tolist()
        result["class_samples"] = {str(label): n for label, n in enumerate(seen) if n}
        result["class_correct"] = {str(label): right[label] for label, n in enumerate(seen) if n}
    return result


def _count(counts: dict[str, Tensor], outputs: Tensor, targets: Tensor, labels: Tensor) -> None:
    if outputs.shape[1] == 0:
        hit = torch.zeros_like(targets, dtype=torch.bool)
        aware = hit
    else:
        hit = outputs.argmax(1) == targets
        aware = labels[outputs[:, labels].argmax(1)] == targets if len(labels) else torch.zeros_like(hit)
    length = int(targets.max()) + 1
    found = {
        "correct": hit.sum(),
        "correct_task": aware.sum(),
        "class_samples": torch.bincount(targets, minlength=length),
        "class_correct": torch.bincount(targets[hit], minlength=length),
    }
    for name, value in found.items():
        if name not in counts:
            counts[name] = value
        elif value.dim() and value.shape != counts[name].shape:
            short, long = sorted((counts[name], value), key=len)
            long = long.clone()
            long[: len(short)] += short
            counts[name] = long
        else:
            counts[name] = counts[name] + value
