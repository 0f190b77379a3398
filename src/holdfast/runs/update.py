"""`holdfast update`: a finished run learns new data as a version of its own, in use only where it lost too little."""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.config import plugins
from holdfast.config.check import validated
from holdfast.config.job import Job, make_model, with_features
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, DataError, HoldfastError, Interrupted
from holdfast.core.experience import Data as Samples
from holdfast.core.experience import Experience, Stream
from holdfast.core.source import Arrays
from holdfast.metrics.log import LOG_NAME, Log, read_json, write_json
from holdfast.runs.assemble import Restored, make_trainer, restore
from holdfast.runs.card import stream_of
from holdfast.runs.folder import (
    CONFIG,
    INFO,
    LAST,
    VERSIONS,
    current,
    drop_leftovers,
    load_tensors,
    locked,
    read_config,
    read_info,
    save_tensors,
    versions,
    write_info,
)
from holdfast.runs.judge import judged
from holdfast.runs.labelled import Data, Labelled, digest_of, parts_of, read_labelled
from holdfast.runs.on_source import make_stream_trainer
from holdfast.runs.recording import Recording, derive, start_event, stop_on_signals
from holdfast.runs.report import write_report
from holdfast.runs.verdict import MAX_DROP, Verdict, check_limits
from holdfast.runs.versions import (
    UPDATE,
    again,
    config_of,
    decide,
    log_with,
    made_before,
    numbers,
    run_folder,
    state_before,
)
from holdfast.streams.data import TensorData
from holdfast.streams.datasets.build import held_out

HELD_OUT = "held_out.pt"
"""In the folder of a version: the new rows, and those of them that were held out."""

VALIDATION = 0.1
"""Of the new training rows, for runs that look at validation data while they train."""


def update(
    where: Path | str,
    data: Data,
    *,
    max_drop: float = MAX_DROP,
    max_class_drop: float | None = None,
    test_fraction: float = 0.25,
    task: int | None = None,
    quiet: bool = True,
) -> Verdict:
    """Let a finished run learn new data, and use the result if it passes.

    The version in use is brought back from its checkpoint exactly, with memory, optimiser and random states, and learns
    the new rows as its next experience: what would have happened had they been part of the stream. Columns,
    preprocessing and classes by name are those of the run; new classes get outputs where the head grows. Then the old
    and the new model are asked about the same rows: test data of every earlier experience (where the run's data are
    gone, what the memory holds) and the share of the new rows that was held out. Where nothing lost more than it may,
    the new version is used by `predict`, `eval`, `export` and `check` from then on; else the old one stays.

    Everything is in `versions/<number>` in the run folder, and nothing there before is changed. An update that was
    interrupted goes on with the same command; until its verdict the old model is in use.

    Args:
        where: folder of a finished run; of one seed.
        data: new data with labels: files, a data frame, or arrays `(inputs, labels)`.
        max_drop: accuracy, 0..1, that an earlier experience may lose; see `check`.
        max_class_drop: the same for each class; None for anything.
        test_fraction: of the new rows that are held out: every k-th, or drawn from each class where that misses one.
        task: of the data, for a model with a head for each task; None for a new task, where all classes are new.
        quiet: draw and print nothing.

    Raises:
        ConfigError: for a run that did not finish, one of several seeds, or classes that the model has no outputs for.
        DataError: for data without labels, or that do not fit the model.
        Interrupted: if it was stopped; the same call goes on.
    """
    path = run_folder(where)
    check_limits(max_drop, max_class_drop)
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}. Give a share between 0 and 1, for instance 0.25.")
    with locked(path):
        drop_leftovers(path)
        base, number = current(path)
        names = [os.path.abspath(one) if isinstance(one, str | os.PathLike) else "" for one in parts_of(data)]
        wanted = {"digest": digest_of(data), "test_fraction": test_fraction, "task": task}
        version_folder = made_before(path, number, wanted)
        if version_folder is not None and read_json(version_folder / UPDATE).get("verdict"):
            return again(path, version_folder, number, max_drop, max_class_drop)
        old = restore(base)
        if version_folder is None:
            version_folder = _begin(path, old, number, read_labelled(old, data), {**wanted, "data": names})
        about = read_json(version_folder / UPDATE)
        try:
            update = _Update(version_folder, old, about, quiet)
            engine = update.learn()
        except Interrupted as error:
            told = " ".join(name or "DATA" for name in about["data"])
            raise Interrupted(
                f"the update was stopped, its state saved, and the old model is in use. Go on with: holdfast update"
                f" {path} {told}{plugins.flags()}"
            ) from error
        verdict = judged(old, engine, update.stream, about, update.rows, update.earlier)
        verdict.where, verdict.version = str(where), int(version_folder.name)
        verdict.max_drop, verdict.max_class_drop = max_drop, max_class_drop
        return decide(path, version_folder, verdict)


# A new version ---------------------------------------------------------------------------------------------


def _begin(path: Path, old: Restored, number: int, new: Labelled, about: dict[str, Any]) -> Path:
    """The folder of a new version as it is before it learns; it gets its name when all is in it."""
    if new.labels is None:
        raise DataError(
            "the new data have no labels, and nothing can be learned of them. Give the target's column too."
        )
    card, targets, classes = _card_with(old, new, about["task"])
    if card["classes"] > old.card["classes"] and not _grows(old, card, classes["classes"]):
        raise ConfigError(
            f"{new.notes[-1]}, and the model has outputs for {', '.join(map(repr, old.card['class_names'][:10]))} only."
            " Train a run with model.head=growing, or leave these rows out."
        )
    kept, tested = _parted(targets, about["test_fraction"])
    if not len(kept) or not len(tested):
        raise DataError(f"there are {len(targets)} new rows with a label, too few to learn and to test. Give more.")
    card["experiences"] = [*card["experiences"], {**classes, "samples": len(kept)}]
    after = 1 + max(numbers(path), default=0)
    beside = path / VERSIONS / f".{after}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "checkpoints").mkdir(parents=True)
    config = config_of(old.config)
    write_json(beside / CONFIG, config)
    write_json(beside / INFO, {**read_info(path), "state": "interrupted", "versions": versions(), "tags": []})
    about = {**about, "base": number, "notes": new.notes, "name": classes["name"], "of": classes}
    write_json(beside / UPDATE, about)
    rows = {"inputs": new.inputs[kept], "targets": targets[kept]}
    tests = {"inputs": new.inputs[tested], "targets": targets[tested]}
    save_tensors(beside / HELD_OUT, {"train": rows, "test": tests})
    loaded = load_tensors(old.path)
    lines = log_with(old.path.resolve().parent.parent, classes, len(kept), len(tested), card)
    (beside / LOG_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    state = state_before(loaded["state"], len(card["experiences"]) - 1, old.job.learns_from_source)
    content = {**loaded, "lines": len(lines), "config": config, "data": card, "state": state}
    save_tensors(beside / "checkpoints" / LAST, content)
    beside.rename(path / VERSIONS / str(after))
    return path / VERSIONS / str(after)


def _card_with(old: Restored, new: Labelled, task: int | None) -> tuple[dict[str, Any], Tensor, dict[str, Any]]:
    """The card of what is learned from here on, the targets, and the new experience without its size."""
    card = dict(old.card)
    if "prepare" not in card:
        raise DataError(
            "the preprocessing of this run is a function that no file holds, so new data cannot be prepared like the"
            " old. Go on in Python: Trainer.fit(..., resume=True)."
        )
    names = list(card["class_names"])
    targets = new.targets(old.stream)
    unknown = sorted({label for label, target in zip(new.words, targets.tolist()) if target < 0}, key=_by_number)
    if unknown:
        new.notes.append(f"new classes: {', '.join(unknown)}")
        card["class_names"] = names = [*names, *unknown]
        card["classes"] = card["outputs"] = len(names)
        number_of = {label: number for number, label in enumerate(names)}
        class_numbers = targets.tolist()
        targets = torch.tensor(
            [number_of[label] if class_numbers[row] < 0 else class_numbers[row] for row, label in enumerate(new.words)]
        )
    classes = sorted(set(targets.tolist())) if card["classes"] else []
    if card["paradigm"] == "task" and task is None:
        tasks = {one["task"] for one in card["experiences"] if set(classes) & set(one["classes"])}
        task = 1 + max(one["task"] for one in card["experiences"]) if not tasks else next(iter(tasks))
        if len(tasks) > 1 or (tasks and unknown):
            raise ConfigError("the new data mix classes of several tasks. Give each task by itself, or say --task.")
    taken = [one["name"] for one in card["experiences"]]
    name = "+".join(dict.fromkeys(new.names)) or "new"
    free = next(one for one in (name, *(f"{name}-{k}" for k in range(2, 1000))) if one not in taken)
    return card, targets, {"name": free, "classes": classes, "task": task}


def _grows(old: Restored, card: Mapping[str, Any], classes: Sequence[int]) -> bool:
    """Whether the run's model gets outputs for more classes: tried on one that is made for it, as training would."""
    if old.job.learns_from_source:
        return False
    stream = stream_of(card)
    try:
        engine = make_trainer(old.job).bind(old.job.make_model(stream), stream)
        engine.load(load_tensors(old.path)["state"]["engine"])
        engine.learner.grow(classes)
    except (RuntimeError, HoldfastError):
        return False
    return True


def _parted(targets: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Training and test rows: every k-th for tests, or rows drawn from each class where that would miss one."""
    kept, tested = held_out(targets, fraction, 0, "spread")
    if not targets.is_floating_point():
        missed = set(targets.tolist()) - set(targets[tested].tolist()) or set(targets.tolist()) - set(
            targets[kept].tolist()
        )
        if missed:
            return held_out(targets, fraction, 0, "no")
    return kept, tested


def _by_number(label: str) -> tuple[int, float, str]:
    return (0, float(label), label) if label.lstrip("-").isdigit() else (1, 0.0, label)


@dataclass
class _Update:
    """A version that learns.

    Attributes:
        folder: of the version.
        old: the model it is made of.
        about: what `update.json` says.
        quiet: draw and print nothing.
    """

    folder: Path
    old: Restored
    about: Mapping[str, Any]
    quiet: bool
    stream: Stream | None = None

    @functools.cached_property
    def rows(self) -> dict[str, TensorData]:
        """The new rows: `train` and `test`."""
        task = self.about["of"]["task"]
        parts = load_tensors(self.folder / HELD_OUT)
        return {name: TensorData(part["inputs"], part["targets"], task=task) for name, part in parts.items()}

    @functools.cached_property
    def earlier(self) -> dict[int, Samples]:
        """Rows that earlier versions held out, by number."""
        rows, number = {}, int(self.about["base"])
        while number:
            folder = self.folder.parent / str(number)
            about, kept = read_json(folder / UPDATE), load_tensors(folder / HELD_OUT)["test"]
            rows[number] = TensorData(kept["inputs"], kept["targets"], task=about["of"]["task"])
            number = int(about["base"])
        return dict(sorted(rows.items()))

    def learn(self) -> Engine:
        """Train from the newest checkpoint, if that is not done; the trained model with its method."""
        job = validated(read_config(self.folder))
        loaded = load_tensors(self.folder / "checkpoints" / LAST)
        card = loaded["data"]
        source = job.learns_from_source
        if not source:
            self.stream = self._stream(job, card)
        if Log.read(self.folder).finished:
            return restore(self.folder / "checkpoints" / LAST).engine
        write_info(self.folder, state="running", started=time.time())
        begun = time.perf_counter()
        try:
            with Recording(self.folder, job.config, job.config["loggers"], job.config["checkpoint"], card) as recording:
                engine = (self._on_source if source else self._on_stream)(job, recording)
                recording.end(time.perf_counter() - begun)
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            write_info(self.folder, state="interrupted" if stopped else "failed")
            raise
        write_info(self.folder, state=derive(self.folder), finished=time.time())
        write_report(self.folder)
        return engine

    def _stream(self, job: Job, card: Mapping[str, Any]) -> Stream:
        """The stream with the new data at its end, and with the run's own data where available."""
        stream = stream_of(card)
        newest = stream[-1]
        newest.train, newest.test = self.rows["train"], self.rows["test"]
        trainer = job.config["trainer"]
        if trainer["patience"] or trainer["restore_best"] or trainer["evaluate"] in ("validation", "both"):
            kept, tested = held_out(newest.train.targets, VALIDATION, 0, "spread")
            newest.train, newest.validation = newest.train.subset(kept), newest.train.subset(tested)
        for index, data in zip(range(len(stream) - 1 - len(self.earlier), len(stream) - 1), self.earlier.values()):
            stream[index].test = data
        try:
            experiences: list[Experience] = list(self.old.with_data())
        except HoldfastError as error:
            if {"stream", "replacement"} & set(self.old.engine.method.needs):
                raise DataError(f"the method {job.method_name} learns from all data again. {error}") from error
            return stream
        for mine, theirs in zip(stream, experiences):
            mine.train, mine.test, mine.validation = theirs.train, theirs.test, theirs.validation
        return stream

    def _on_stream(self, job: Job, recording: Recording) -> Engine:
        stream = self.stream
        assert stream is not None
        model = job.make_model(stream)
        if getattr(model, "features_needed", False):
            stream = with_features(stream, model, job.config["device"], job.config["trainer"]["per_experience"])
        state = recording.open(functools.partial(start_event, job.config["seed"], job.method_name, stream, model))
        trainer = make_trainer(job, **self._services(recording))
        with stop_on_signals(trainer):
            trainer.fit(model, stream, resume=state)
        recording.keep(model)
        return trainer.engine

    def _services(self, recording: Recording) -> dict[str, Any]:
        return {"record": recording.record, "progress": not self.quiet, "checkpoints": recording.checkpoints}

    def _on_source(self, job: Job, recording: Recording) -> Engine:
        outline = self.old.stream
        model = make_model(job.block.model, outline, job.config["seed"])
        state = recording.open(functools.partial(start_event, job.config["seed"], job.method_name, outline, model))
        rows = load_tensors(self.folder / HELD_OUT)["train"]
        source = Arrays(rows["inputs"], rows["targets"], batch_size=job.config["trainer"]["batch_size"])
        trainer = make_stream_trainer(job, model, prepare=outline.prepare, **self._services(recording))
        with stop_on_signals(trainer):
            trainer.train(source, resume=state)
        recording.checkpoints.save(trainer.state_dict())
        recording.keep(model)
        return trainer.engine
