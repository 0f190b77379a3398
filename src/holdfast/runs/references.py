"""Reference runs: trained apart, trained not at all, or taken from a finished run of the same configuration."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.core.experience import Stream
from holdfast.core.method import Method
from holdfast.metrics.log import read_log
from holdfast.runs.folder import INFO, read_info, versions, write_info
from holdfast.runs.recording import Journal
from holdfast.training import Trainer

DEPTH = 6
"""How deep below the folder of runs a finished reference is looked for."""

MOST_FOLDERS = 20_000
"""After so many folders the search is given up: the run lies among things that are not runs."""

MakeTrainer = Callable[..., Trainer]
MakeModel = Callable[[], nn.Module]

APART = "independent"
"""The reference that is no method: a new model for each experience."""


def train_apart(new: MakeModel, stream: Stream, journal: Journal, trainer: MakeTrainer) -> Trainer | None:
    """Train a new model on each experience alone; an experience that was finished before is not trained again.

    Args:
        new: makes the model of each experience.
        stream: of the run.
        journal: of the run; its events are as if one model had learned everything.
        trainer: makes one with these services.

    Returns:
        The last trainer, None where nothing was left to do.
    """
    done, keep = _finished(journal)
    if journal.lines > keep:
        journal.resume(keep)
    last = None
    for index, experience in enumerate(stream):
        if index in done:
            continue

        def record(event: dict[str, Any], index: int = index) -> None:
            if event["event"] == "evaluate" and event["after"] < 0:
                return
            moved: dict[str, Any] = {key: index for key in ("experience", "after") if key in event}
            journal.write({**event, **moved})

        alone = dataclasses.replace(stream, experiences=[dataclasses.replace(experience, index=0)])
        last = trainer(record=record)
        last.fit(new(), alone)
    return last


def evaluate_untrained(new: MakeModel, stream: Stream, journal: Journal, trainer: MakeTrainer) -> None:
    """Evaluate a model that went through the stream and was never trained."""
    from holdfast.training.evaluation import evaluate

    made = trainer()
    engine = made.bind(new(), stream)
    for experience in stream:
        entered, _ = engine.begin(experience)
        engine.end(entered)
    for experience in stream:
        if experience.test is not None and len(experience.test):
            counts = evaluate(engine, experience.test, experience.classes, experience.task, made.eval_batch_size)
            after = len(stream) - 1
            event = {"event": "evaluate", "after": after, "experience": experience.index, "split": "test"}
            journal.write({**event, **counts})


def named_methods(references: Sequence[str | Method]) -> dict[str, Method]:
    """The methods that a run in Python is compared with, by the name of their folder; `independent` fine-tunes.

    Raises:
        ConfigError: for a name that is not a method, or two of one name.
    """
    from holdfast import methods

    by_name: dict[str, Method] = {}
    for one in [references] if isinstance(references, str | Method) else references:
        if isinstance(one, str):
            if one == APART:
                one = Method(name=APART)
            elif one not in methods.__all__:
                raise ConfigError(unknown("reference", one, [APART, *methods.__all__]))
            else:
                one = getattr(methods, one)()
        elif isinstance(one, Method) and one.name == APART:
            raise ConfigError(f"references: a method is named {APART!r}, which is a reference of its own. Rename it.")
        if not isinstance(one, Method) or one.name in by_name:
            raise ConfigError(
                f"references: {one!r:.60} is no method, or there twice. Give names or methods, each once."
            )
        by_name[one.name] = one
    return by_name


def _finished(journal: Journal) -> tuple[set[int], int]:
    """The experiences that a log says were finished, and how many lines say so."""
    done: set[int] = set()
    keep = 0
    if journal.lines:
        live = read_log(journal.path)
        done = {event["experience"] for event in live if event["event"] == "experience"}
        for number, line in enumerate(journal.path.read_bytes().splitlines()):
            if json.loads(line)["event"] in ("start", "experience"):
                keep = number + 1
    return done, keep


def reuse(folder: Path, key: str, root: Path) -> bool:
    """Copy a finished run of the same key and versions from somewhere under `root` to `folder`, if there is one.

    Args:
        folder: the folder to make; it does not exist.
        key: of the configuration (`job_key`).
        root: where runs lie.
    """
    for seen, (parent, folders, files) in enumerate(os.walk(root)):
        if seen > MOST_FOLDERS:
            return False
        if len(Path(parent).relative_to(root).parts) >= DEPTH:
            folders.clear()
        folders[:] = sorted(
            name for name in folders if name not in ("checkpoints", "plots") and not name.startswith(".")
        )
        source = Path(parent)
        if INFO not in files or source == folder:
            continue
        try:
            info = read_info(source)
        except DataError:  # somebody's damaged folder is no reason not to run
            continue
        if info.get("key") != key or info.get("state") != "finished" or not (source / "log.jsonl").is_file():
            continue
        if _same(info.get("versions")):
            half = folder.with_name(folder.name + ".part")
            shutil.rmtree(half, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, half, ignore=shutil.ignore_patterns("references", "seed-*", ".lock"))
            write_info(half, reused=str(source))
            os.replace(half, folder)
            return True
    return False


def _same(recorded: Any) -> bool:
    now = versions()
    return isinstance(recorded, dict) and all(recorded.get(name) == now[name] for name in ("holdfast", "torch"))
