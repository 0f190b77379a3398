"""Evaluation: counts on an experience's data, from which every metric is computed later; and early stopping by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.core.criteria import likelihood
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, Experience, tree_map
from holdfast.core.learner import derive_seed
from holdfast.training.ranks import ALONE, Ranks
from holdfast.training.session import Session


def evaluate(
    engine: Engine,
    data: Data,
    classes: tuple[int, ...],
    task: int | None,
    batch_size: int = 512,
    ranks: Ranks = ALONE,
    predict: Callable[..., Tensor] | None = None,
) -> dict[str, Any]:
    """Loss and counts of correct predictions on `data`, in eval mode and without gradients.

    Args:
        engine: learner and method (its `predict` operations act).
        data: what to evaluate on.
        classes: the classes of the experience, for the task-aware count.
        task: the task label, for a model with a head per task.
        batch_size: samples per forward.
        ranks: the processes that evaluate a part each; all of them get the counts of all data.
        predict: from inputs and task to outputs, in the place of `engine.predict`.

    Returns:
        The counts of an `evaluate` event: `samples`, `loss` (mean over the samples whose class has an output),
        `correct` (arg-max over all
        outputs), `correct_task` (arg-max among `classes`), per class `class_samples` and `class_correct`, and
        `confusion`, how often each class was taken for each (`{"3": {"3": 40, "5": 2}}`, without zeros);
        the counts are None where targets are not class indices. For targets that are numbers as many as the outputs,
        `labels_right` under binary cross-entropy of logits (the share of outputs on the target's side of zero), and
        under other criteria `absolute_error` (mean over rows and outputs) and `explained_variance` (1 - mean squared
        error / variance of the targets, mean over outputs; None where a target is constant).
    """
    learner, predict = engine.learner, engine.predict if predict is None else predict
    device = learner.device
    total = torch.zeros((), device=device, dtype=torch.float64)
    counted = 0
    guesses: list[tuple[Tensor, Tensor, Tensor]] = []
    numbers: list[tuple[Tensor, Tensor]] = []
    single_label = not data.targets.is_floating_point() and data.targets.dim() == 1
    highest = int(data.targets.max()) if single_label and len(data) else -1
    labels = torch.tensor(sorted(classes), device=device)
    ordered = not getattr(learner.criterion, "unordered", False)  # points of a cloud do not correspond by their places
    order = torch.arange(len(data))[ranks.rank :: ranks.count]
    with engine.evaluating(), torch.inference_mode():
        for batch in data.batches(order, batch_size):
            inputs = tree_map(lambda leaf: leaf.to(device), batch.inputs)
            targets = batch.targets.to(device)
            outputs = predict(inputs, batch.task if batch.task is not None else task)
            if single_label and outputs.dim() == 2:
                width = outputs.shape[1]
                guesses.append((targets, *_guess(outputs, labels[labels < width])))
                if highest >= width:  # classes that have no output yet have no loss
                    inside = targets < width
                    outputs, targets = outputs[inside], targets[inside]
            elif ordered and targets.is_floating_point() and outputs.shape == targets.shape:
                numbers.append((outputs, targets))
            rows = targets.shape[0]
            if rows:
                total += learner.criterion(outputs, targets).double() * rows
                counted += rows
    if ranks.count > 1:
        total, counted, guesses, numbers = _joined(ranks, total, counted, guesses, numbers)
    result: dict[str, Any] = {"samples": len(data), "loss": None, "correct": None, "correct_task": None}
    result["loss"] = float(total) / counted if counted else None
    if guesses:
        targets, guess, aware = (torch.cat(column) for column in zip(*guesses))
        hit = guess == targets
        result["correct"], result["correct_task"] = int(hit.sum()), int((aware == targets).sum())
        seen, right = torch.bincount(targets).tolist(), torch.bincount(targets[hit]).tolist()
        right += [0] * (len(seen) - len(right))
        result["class_samples"] = {str(label): n for label, n in enumerate(seen) if n}
        result["class_correct"] = {str(label): right[label] for label, n in enumerate(seen) if n}
        result["confusion"] = _confusion(targets, guess)
    if numbers:
        outputs, targets = (torch.cat(column).flatten(1).double() for column in zip(*numbers))
        result |= _of_numbers(outputs, targets, likelihood(learner.criterion) == "bernoulli")
    return result


def _confusion(targets: Tensor, guess: Tensor) -> dict[str, dict[str, int]]:
    """How often each class was taken for each: `{"3": {"3": 40, "5": 2}}`, without zeros; -1 stands for no answer."""
    width = int(guess.max()) + 2 if len(guess) else 1
    pairs, counts = torch.unique(targets * width + guess + 1, return_counts=True)
    rows: dict[str, dict[str, int]] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist()):
        rows.setdefault(str(pair // width), {})[str(pair % width - 1)] = count
    return rows


def _joined(ranks: Ranks, total: Tensor, counted: int, *rows: Sequence[tuple[Tensor, ...]]) -> tuple[Any, ...]:
    """What every rank found on its part, on every rank, in order of rank."""
    columns = [[tuple(column.cpu() for column in part) for part in parts] for parts in rows]
    gathered = ranks.gather((float(total), counted, columns))
    joined = [[part for *_, parts in gathered for part in parts[kind]] for kind in range(len(rows))]
    return (torch.tensor(sum(one for one, *_ in gathered)), sum(count for _, count, _ in gathered), *joined)


def _of_numbers(outputs: Tensor, targets: Tensor, labels: bool) -> dict[str, float | None]:
    """How near outputs `[rows, numbers]` are to targets that are numbers, or several labels a row."""
    if labels:
        return {"labels_right": float(((outputs > 0) == (targets > 0.5)).double().mean())}
    spread = (targets - targets.mean(0)).square().mean(0)
    explained = 1 - (outputs - targets).square().mean(0) / spread
    return {
        "absolute_error": float((outputs - targets).abs().mean()),
        "explained_variance": float(explained.mean()) if bool((spread > 0).all()) else None,
    }


def _guess(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The class of the largest of all outputs, and of the largest among `labels`; -1 without labels."""
    nothing = torch.full((outputs.shape[0],), -1, device=outputs.device)
    best = outputs.argmax(1) if outputs.shape[1] else nothing
    return best, labels[outputs[:, labels].argmax(1)] if len(labels) else nothing


# In a session ----------------------------------------------------------------------------------------------


def evaluate_all(session: Session, after: int) -> None:
    """Evaluate every experience, or those seen so far, on the data that the session is to evaluate on.

    Args:
        session: of a stream.
        after: the experience that was learned last; -1 before any. Where only the end is to be evaluated, nothing is
            done before the last one, or before the one that ran out of time.
    """
    settings, stream = session.settings, session.stream or ()
    if settings.evaluate_when == "end" and after < len(stream) - 1 and not session.late:
        return
    seen = settings.evaluate_on == "seen"
    splits = {"both": ("test", "validation"), "none": ()}.get(settings.evaluate, (settings.evaluate,))
    for split in splits:
        for experience in stream:
            if seen and experience.index > after:
                continue
            data = getattr(experience, split)
            if data is None or len(data) == 0:
                continue
            counts = _evaluated(session, experience, data, split)
            counts |= {"inferred": True} if session.method.infers_task else {}
            session.records.write(event="evaluate", after=after, experience=experience.index, split=split, **counts)


def _evaluated(session: Session, experience: Experience, data: Data, split: str) -> dict[str, Any]:
    settings = session.settings
    size = settings.eval_batch_size
    data = limited(data, settings.limit_of(split), size, settings.seed, split)
    predict = None if session.captured is None else session.captured.predict
    return evaluate(session.engine, data, experience.classes, experience.task, size, session.ranks, predict)


def epoch_ends(session: Session, experience: Experience) -> bool:
    """Measure the epoch where something depends on it: move the scheduler, keep the best weights, or stop.

    Args:
        session: at the end of an epoch.
        experience: with its validation data.

    Returns:
        Whether no further epoch is to come.

    Raises:
        ConfigError: if there is no data to measure on.
    """
    settings, scheduler = session.current, session.optimization.scheduler
    moves = scheduler is not None and settings.scheduler_every == "epoch"
    plateau = moves and isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    watched = bool(settings.patience or settings.restore_best)
    accuracy, loss = _measured(session, experience) if watched or plateau else (None, 0.0)
    if moves:
        scheduler.step(*([loss] if plateau else []))
    return watched and _patience_ends(session, accuracy, loss)


def _measured(session: Session, experience: Experience) -> tuple[float | None, float]:
    """Accuracy and loss of the epoch: on the experience's validation data, or on the test data of all so far."""
    settings = session.current
    split = settings.monitor_on
    every = [experience]
    if split == "test" and session.stream is not None:
        every = [one for one in session.stream if one.index <= experience.index]
    parts = [(one, getattr(one, split)) for one in every]
    parts = [(one, data) for one, data in parts if data is not None and len(data)]
    if not parts:
        raise ConfigError(
            f"patience, restore_best and ReduceLROnPlateau look at {split} data, and this stream has none. "
            "Make the stream with validation=0.1, or leave them out."
        )
    session.ranks.average_buffers(session.model)
    counts = [_evaluated(session, one, data, split) for one, data in parts]
    samples = sum(one["samples"] for one in counts)
    loss = sum(one["samples"] * float(one["loss"] or 0.0) for one in counts) / samples
    rights = [one["correct"] if experience.task is None else one["correct_task"] for one in counts]
    return None if rights[0] is None else sum(rights) / samples, loss


def _patience_ends(session: Session, accuracy: float | None, loss: float) -> bool:
    """Keep the weights of the best epoch; whether too many came since."""
    position, settings = session.position, session.current
    value = -loss if accuracy is None or settings.monitor == "loss" else accuracy
    best = position.best
    if best is None or value > best["value"] + settings.min_delta:
        weights = {key: tensor.clone() for key, tensor in session.model.state_dict().items()}
        position.best = {
            "value": value,
            "epoch": position.epoch,
            "model": weights if settings.restore_best else {},
        }
        return False
    return settings.patience is not None and position.epoch - best["epoch"] >= settings.patience


def limited(data: Data, limit: int | float | None, batch_size: int, seed: int, part: str) -> Data:
    """The part of `data` that a limit leaves: the same random rows every time.

    Args:
        data: whole.
        limit: a number of batches, a fraction of them, or None for all.
        batch_size: samples per batch.
        seed: of the run.
        part: `train`, `validation` or `test`, each with a choice of its own.
    """
    if limit is None:
        return data
    batches = -(-len(data) // batch_size)
    rows = (max(1, int(limit * batches)) if isinstance(limit, float) else limit) * batch_size
    if rows >= len(data):
        return data
    generator = torch.Generator().manual_seed(derive_seed(seed, f"limit/{part}"))
    return data.subset(torch.randperm(len(data), generator=generator)[:rows].sort().values)
