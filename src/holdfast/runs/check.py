"""`holdfast check`: what a run has kept and lost since, as its log tells it, and how it does on new data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError
from holdfast.metrics.log import LOG_NAME, Event, Log
from holdfast.runs.assemble import fetched, is_address, restore
from holdfast.runs.folder import current, load_tensors
from holdfast.runs.judge import answered, shift_of
from holdfast.runs.labelled import Data, has, read_labelled
from holdfast.runs.result import is_run, seed_folders
from holdfast.runs.verdict import MAX_DROP, SAME_ROWS, Kept, Verdict, check_limits, whole


def check(
    where: Path | str,
    data: Data = (),
    max_drop: float = MAX_DROP,
    max_class_drop: float | None = None,
    task: int | None = None,
) -> Verdict:
    """What a run has kept and lost of each experience and class since it was learned, as its log tells it.

    The counts are those of its evaluations; nothing is trained, and without `data` nothing is evaluated either. The
    gate looks at each experience by itself: it fails where one lost more than `max_drop`, and says where that may be
    chance. Of a run that learned from a source, what was held out of each quarter of the stream is an experience.

    Args:
        where: a run folder, of its current version (see `update`); with several seeds each of them; or a checkpoint
            file in one.
        data: new data with labels, as `holdfast predict` takes them: how right the model is on them beside its test
            data, and whether the inputs have shifted. Without labels only the shift is looked at.
        max_drop: accuracy, 0..1, that an experience may lose; of targets that are numbers, what their mean absolute
            error may grow by.
        max_class_drop: the same for each class; None for anything.
        task: of `data`, for a model with a head for each task.

    Raises:
        ConfigError: for a drop outside 0..1.
        DataError: where the log does not say how right the model was.
    """
    check_limits(max_drop, max_class_drop)
    if is_address(str(where)):
        where = fetched(str(where))
    path = Path(where)
    seeds = seed_folders(path) if path.is_dir() and not (path / LOG_NAME).is_file() else []
    if seeds:
        verdicts = {one.name: check(one, data, max_drop, max_class_drop, task) for one in seeds}
        return Verdict(str(where), max_drop, max_class_drop=max_class_drop, seeds=verdicts)
    folder, version = current(path) if is_run(path) else (path, 0)
    verdict = Verdict(str(where), max_drop, max_class_drop=max_class_drop, version=version)
    log = log_of(folder)
    if log.start.get("source"):
        of_source(log, verdict)
    else:
        of_stream(log, verdict)
    if has(data):
        on_new_data(folder, log, data, task, verdict)
    elif not verdict.experiences:
        verdict.notes.append("one experience was learned, so there is nothing before it to lose")
    return verdict


def log_of(where: Path) -> Log:
    """The log of a run folder, or of a checkpoint file as far as it goes.

    Raises:
        DataError: if there is none.
    """
    if (where / LOG_NAME).is_file():
        return Log.read(where)
    checkpoint = where / "checkpoints" / "last.pt" if where.is_dir() else where
    if not checkpoint.is_file():
        raise DataError(f"there is no run and no checkpoint at {where}. Give the folder that `holdfast run` printed.")
    loaded = load_tensors(checkpoint)
    folders = checkpoint.resolve().parents[1:3]
    beside = next((folder / LOG_NAME for folder in folders if (folder / LOG_NAME).is_file()), None)
    if beside is None or not isinstance(loaded, dict) or "lines" not in loaded:
        raise DataError(
            f"{where} has no log beside it that says how right the model was when it learned. Give the run folder, or"
            " a checkpoint in it."
        )
    lines = beside.read_text(encoding="utf-8").splitlines()[: loaded["lines"]]
    return Log([json.loads(line) for line in lines], str(beside))


# What the log says -----------------------------------------------------------------------------------------


def of_stream(log: Log, verdict: Verdict) -> None:
    """Fill in a verdict on a run over experiences: each but the newest, when it was learned and as it is now."""
    split = "test" if log.of("evaluate", "test") else "validation"
    events = [event for event in log.of("evaluate", split) if event["after"] >= 0]
    if not events:
        raise DataError(
            "the log holds no evaluation after an experience, so nothing says what was kept. Train with"
            " trainer.evaluate=test, or give data with labels: --data FILE."
        )
    aware = log.stream.get("paradigm") == "task"
    last = max(event["after"] for event in events)
    learned = {e["experience"]: e for e in reversed(events) if e["after"] >= e["experience"]}
    newest: dict[int, Event] = {e["experience"]: e for e in events if e["after"] >= e["experience"]}
    late = [name for name, event in learned.items() if event["after"] > name]
    names = log.experience_names
    classes: dict[str, dict[str, list[Kept]]] = {}
    rows_of: list[str] = []
    for index in sorted(learned):
        first, end = learned[index], newest[index]
        if end["after"] < last:
            verdict.notes.append(f"{names[index]} was not asked after the last experience, and does not count")
            continue
        if index == last:
            verdict.notes.append(f"{names[index]} was learned last: {_told(end, aware)}")
            continue
        verdict.experiences.append(_kept(names[index], first, end, aware))
        rows_of.append(_rows_of(end))
        _count_classes(classes.setdefault(rows_of[-1], {}), first, end)
    if late:
        verdict.notes.append(
            f"{', '.join(names[index] for index in sorted(late))}: first asked some experiences after it was learned"
        )
    named = log.class_names
    labels = {label for by_label in classes.values() for label in by_label}
    for label in sorted(labels, key=int):
        word = named[int(label)] if int(label) < len(named) else label
        parts = [(key, one) for key, by_label in classes.items() for one in by_label.get(label, [])]
        of_class = whole([one for _, one in parts], word, [key for key, _ in parts])
        verdict.classes += [of_class] if of_class is not None else []
    if len(set(rows_of)) < len(rows_of):
        verdict.notes.append(SAME_ROWS)
    verdict.whole = whole(verdict.experiences, "all of them", rows_of)


def _kept(name: str, first: Event, end: Event, aware: bool) -> Kept:
    key = "correct_task" if aware else "correct"
    if first.get(key) is not None and end.get(key) is not None:
        return Kept.counted(name, (first[key], first["samples"]), (end[key], end["samples"]))
    for key in ("absolute_error", "loss"):
        if first.get(key) is not None and end.get(key) is not None:
            return Kept.of_errors(name, end["samples"], first[key], end[key])
    raise DataError(f"the evaluations of {name} hold no accuracy, no error and no loss, so nothing can be compared.")


def _rows_of(end: Event) -> str:
    """What tells the rows of an evaluation from others': one model that answers all alike was asked the same ones.

    As the experiences of `data_incremental` are, which are all tested on all test data. Equal counts alone may be
    chance; equal to the last digit of the loss they are not.
    """
    return json.dumps([end.get(key) for key in ("samples", "class_samples", "class_correct", "correct", "loss")])


def _count_classes(classes: dict[str, list[Kept]], first: Event, end: Event) -> None:
    """Add what was kept of each class of an experience."""
    for label, rows in (end.get("class_samples") or {}).items():
        was, asked = (first.get("class_correct") or {}).get(label), (first.get("class_samples") or {}).get(label)
        if was is not None and asked:
            classes.setdefault(label, []).append(Kept.counted(label, (was, asked), (end["class_correct"][label], rows)))


def _told(event: Event, aware: bool) -> str:
    right = event.get("correct_task" if aware else "correct")
    if right is None:
        return f"loss {event['loss']:.4g}" if event.get("loss") is not None else "nothing was measured"
    return f"{100 * right / event['samples']:.1f} % right, on {event['samples']} rows"


def of_source(log: Log, verdict: Verdict) -> None:
    """Fill in a verdict on a run on a source: rows held out of each quarter of it, when that was new and at the end."""
    looks: list[Any] = log.of("held_out")
    if not looks:
        raise DataError(
            "this run learned from a source and held no rows out, so nothing says what it kept. Train with"
            " arrival.hold_out=0.05, or give data with labels: --data FILE."
        )
    end, names = looks[-1], ("the oldest quarter", "the second quarter", "the third quarter", "the newest quarter")
    verdict.since = "when it was new"
    for age, name in enumerate(names[:-1]):
        until = end["samples"] * (age + 1) / len(names)
        look = min(looks, key=lambda one: abs(one["samples"] - until))
        first, now = look["ages"][-1] if age else {**look, "correct": look["correct"]}, end["ages"][age]
        if look is end or not first["rows"] or not now["rows"]:
            continue
        if now["correct"] is not None and first["correct"] is not None:
            counts = (first["correct"], first["rows"]), (now["correct"], now["rows"])
            verdict.experiences.append(Kept.counted(name, *counts))
        elif now["loss"] is not None and first["loss"] is not None:
            verdict.experiences.append(Kept.of_errors(name, now["rows"], first["loss"], now["loss"]))
    verdict.whole = whole(verdict.experiences, "all of them")
    newest = end["ages"][-1]
    if newest["rows"] and newest["correct"] is not None:
        share = 100 * newest["correct"] / newest["rows"]
        verdict.notes.append(f"{names[-1]}: {share:.1f} % right, on {newest['rows']} rows held out")


# New data --------------------------------------------------------------------------------------------------


def on_new_data(folder: Path, log: Log, data: Data, task: int | None, verdict: Verdict) -> None:
    """Fill in how right the model is on new data, beside its test data, and whether the inputs have shifted."""
    restored = restore(folder)
    new = read_labelled(restored, data)
    verdict.notes += new.notes
    verdict.shift = shift_of(restored, new.inputs)
    if new.labels is None:
        verdict.notes.append("the new data have no labels, so how right the model is on them is not known")
        return
    targets = new.targets(restored.stream)
    before, by_class = _last_counts(log)
    answers = answered(restored, new.inputs, task)
    if not restored.stream.classes:
        error = float((answers.flatten(1) - targets).abs().mean())
        if isinstance(before, float):
            verdict.new = Kept.of_errors("the new data", len(targets), before, error)
        return
    hits = answers.argmax(1) == targets
    if not isinstance(before, tuple):
        raise DataError(f"{folder}: its log does not say how right the model is, so new data cannot be compared.")
    verdict.new = Kept.counted("the new data", before, (int(hits.sum()), len(hits)))
    names = restored.stream.class_names
    for label, name in enumerate(names):
        here = targets == label
        if bool(here.any()) and label in by_class:
            counts = (int(hits[here].sum()), int(here.sum()))
            verdict.new_classes.append(Kept.counted(f"{name} in the new data", by_class[label], counts))
    unknown = [label for label, target in zip(new.words, targets.tolist()) if target < 0]
    if unknown:
        listed = ", ".join(f"{label} ({unknown.count(label)})" for label in dict.fromkeys(unknown))
        verdict.notes.append(f"labels that the model never learned count as wrong: {listed}")


def _last_counts(log: Log) -> tuple[tuple[int, int] | float | None, dict[int, tuple[int, int]]]:
    """Right answers and rows at the end (for numbers the mean absolute error), and those of each class."""
    if log.start.get("source"):
        end: Any = (log.of("held_out") or [{}])[-1]
        if end.get("correct") is not None:
            return (end["correct"], end["rows"]), {}
        return None, {}
    events = log.of("evaluate", "test") or log.of("evaluate", "validation")
    last = max((event["after"] for event in events), default=-1)
    events = [event for event in events if event["after"] == last]
    aware = log.stream.get("paradigm") == "task"
    rows = sum(event["samples"] for event in events)
    if not rows:
        return None, {}
    classes: dict[int, tuple[int, int]] = {}
    for event in events:
        for label, samples in (event.get("class_samples") or {}).items():
            right, asked = classes.get(int(label), (0, 0))
            classes[int(label)] = right + event["class_correct"][label], asked + samples
    rights = [event.get("correct_task" if aware else "correct") for event in events]
    counted = [int(right) for right in rights if right is not None]
    if len(counted) == len(events):
        return (sum(counted), rows), classes
    errors = [event.get("absolute_error") for event in events]
    if any(error is None for error in errors):
        return None, {}
    return sum(error * event["samples"] for error, event in zip(errors, events)) / rows, {}
