"""Random configurations, tables, archives and folders of images: each is refused in a sentence, or runs to a result.

    python benchmarks/fuzz.py configurations 1000 [first seed]
    python benchmarks/fuzz.py tables 200; likewise archives, images, dirty_tables, dirty_archives, dirty_images

Each number is a seed of its own, so that one that fails can be run again alone. Exit code 1 where one did.
"""

from __future__ import annotations

import collections
import copy
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import fuzz_data
import numpy as np
import torch

from holdfast.config import kinds
from holdfast.core.errors import HoldfastError
from holdfast.runs import run as running
from holdfast.runs.result import Results

NUMBERS = (0, 1, -1, 2, 3, 0.0, 0.5, 1.5, -0.5, 1e-30, 1e30, -1e30, 10**20, 1e308, float("nan"), float("inf"), True)
OTHERS = (None, "", "x", "1", "\x00", "😀", [], {}, [1], {"a": 1}, [[]], "../..", "a" * 300, "null", [None])
MODELS = (*[{"name": "mlp", "hidden": [8]}] * 6, {"name": "mlp", "hidden": [8], "head": "task"}, "cnn", {})
DATASETS = (
    *[{"name": "synthetic", "samples": 6, "test_samples": 2, "classes": 4}] * 4,
    {"name": "digits"},
    {"name": "synthetic", "samples": 3, "test_samples": 0, "classes": 4, "features": 2},
    {"name": "polynomial", "samples": 12, "test_samples": 4},
)
TIME = 20.0
"""Seconds of training, at most."""


# Configurations --------------------------------------------------------------------------------------------


def random_job(seed: int) -> dict[str, Any]:
    """A job with random parts, and up to three values in it that somebody got wrong."""
    choose = random.Random(seed)
    mild = choose.random() < 0.6
    dataset = dict(choose.choice(DATASETS))
    stream: dict[str, Any] = {"name": "split", "dataset": dataset, "experiences": 2}
    if choose.random() < 0.3:
        stream = {"name": choose.choice(sorted(kinds.names("streams"))), "dataset": dataset}
        stream |= filled(choose, mild, "streams", stream["name"])
    method = choose.choice(sorted(kinds.names("methods")))
    job: dict[str, Any] = {
        "stream": stream,
        "method": {"name": method, **filled(choose, mild, "methods", method)},
        "model": copy.deepcopy(choose.choice(MODELS)),
        "trainer": {"epochs": choose.choice((1, 2)), "batch_size": choose.choice((1, 2, 8))},
        "references": [],
    }
    if choose.random() < 0.5:
        job["stream"]["paradigm"] = choose.choice(("class", "task"))
    for key, kind in (("optimizer", "optimizers"), ("scheduler", "schedulers")):
        if choose.random() < 0.2:
            name = choose.choice(sorted(kinds.names(kind)))
            job[key] = {"name": name, **filled(choose, mild, kind, name)}
    if choose.random() < 0.1:
        job["criterion"] = choose.choice(sorted(kinds.CRITERIA))
    if choose.random() < 0.1:
        names = [choose.choice(sorted(kinds.names("operations"))) for _ in range(choose.choice((1, 2, 3)))]
        job["method"] = {"operations": [{"name": name, **filled(choose, mild, "operations", name)} for name in names]}
    for key in ("seed", "seeds", "device", "compile", "threads", "tags", "checkpoint"):
        if not mild and choose.random() < 0.05:
            job[key] = choose.choice(NUMBERS + OTHERS)
    if not mild and choose.random() < 0.3:
        setting = choose.choice(
            ("clip_norm", "accumulate", "patience", "precision", "log_every", "iterations", "drop_last")
        )
        job["trainer"][setting] = choose.choice((1, 2, 0.5, True, *NUMBERS, *OTHERS))
    for _ in range(0 if mild else choose.choice((0, 1, 2))):
        _spoil(choose, job)
    return job


def filled(choose: random.Random, mild: bool, kind: str, name: str) -> dict[str, Any]:
    """Some parameters of a name with values that may be right."""
    given = {}
    for parameter in kinds.configurable(kind, kinds.names(kind)[name]):
        if parameter.required or choose.random() < 0.1:
            default = parameter.default
            numeric = isinstance(default, int | float) and not isinstance(default, bool)
            if numeric and (mild or choose.random() < 0.7):
                given[parameter.name] = choose.choice((default, 2 * default, default // 2 if default > 1 else default))
            elif not mild or parameter.required:
                given[parameter.name] = choose.choice(NUMBERS if numeric else (1, 2, *NUMBERS, *OTHERS))
    return given


def _spoil(choose: random.Random, value: Any) -> None:
    """Put something else in the place of one entry, however deep."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = choose.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and choose.random() < 0.8:
            value = value[key]
            continue
        if isinstance(value, dict) and choose.random() < 0.3:
            value[str(key) + "x"] = value.pop(key)
        else:
            value[key] = choose.choice(NUMBERS + OTHERS)
        return


def try_job(job: dict[str, Any]) -> str:
    """Run a job in a folder of its own: `ran`, `refused`, `diverged`, or what is wrong."""
    if isinstance(job.get("trainer"), dict):
        job["trainer"].setdefault("max_seconds", TIME)
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = running.run(job, Path(folder) / "run", quiet=True)
        except HoldfastError as error:
            failed = (Path(folder) / "run" / running.TRACEBACK).is_file()
            return f"failed: {error}" if failed else fuzz_data.sentence(str(error))
        except ImportError as error:
            return "refused" if "pip install 'holdfast[" in str(error) else f"TRACEBACK {error}"
        return judged(made)


def judged(folder: Path) -> str:
    """Whether a run's result is one: its numbers are finite, or it says that it diverged."""
    for run in Results.load(folder):
        if run.state == "diverged":
            return "diverged"
        if not run.finished:
            return f"WRONG the run ended, and its state is {run.state}"
        for name in ("average_accuracy", "average_loss"):
            value = run.metrics.get(name)
            if value is not None and not np.isfinite(value):
                return f"WRONG {name} is {value}"
        losses = [event["loss"] for event in run.log.of("evaluate") if event["samples"]]
        trained = [event["loss"] for event in run.log.of("train")]
        answered = run.metrics.get("average_accuracy") is not None
        if trained and all(loss is None for loss in trained) and answered and all(loss is None for loss in losses):
            return "WRONG every loss is missing or not finite, and there is a result"
    return "ran"


# All of them -----------------------------------------------------------------------------------------------

SORTS: dict[str, Callable[[int], str]] = {
    "configurations": lambda seed: try_job(random_job(seed)),
    "tables": lambda seed: fuzz_data.try_data(fuzz_data.random_table, seed),
    "archives": lambda seed: fuzz_data.try_data(fuzz_data.random_archive, seed),
    "images": lambda seed: fuzz_data.try_data(fuzz_data.random_images, seed),
    "dirty_tables": lambda seed: fuzz_data.try_data(fuzz_data.dirty_table, seed),
    "dirty_archives": lambda seed: fuzz_data.try_data(fuzz_data.dirty_archive, seed),
    "dirty_images": lambda seed: fuzz_data.try_data(fuzz_data.dirty_images, seed),
}


def outcome(sort: str, seed: int) -> str:
    """What becomes of one: `ran`, `refused`, `diverged`, `failed: ...`, or `WRONG ...` and `TRACEBACK ...`."""
    try:
        with warnings.catch_warnings(), mock.patch.object(running, "write_report"):
            warnings.simplefilter("ignore")
            return SORTS[sort](seed)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"TRACEBACK {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def main() -> None:
    """Try as many as the command line says."""
    sort, count = sys.argv[1], int(sys.argv[2])
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    started = time.perf_counter()
    for seed in range(first, first + count):
        told = outcome(sort, seed)
        counts[told.split(" ")[0].rstrip(":")] += 1
        if told.split(" ")[0] in ("WRONG", "TRACEBACK", "failed:"):
            print(f"{sort} {seed}: {told[:300]}", flush=True)
    print(f"{sort} {first} to {first + count - 1}: {dict(counts)}, {time.perf_counter() - started:.0f} s")
    if counts["WRONG"] or counts["TRACEBACK"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
