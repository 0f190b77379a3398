"""Random configurations, tables, archives and folders of images: each is refused in a sentence, or runs to a result.

    python benchmarks/fuzz.py configurations 1000 [first seed]
    python benchmarks/fuzz.py tables 200; python benchmarks/fuzz.py archives 200; python benchmarks/fuzz.py images 200

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

import numpy as np
import torch

from holdfast import datasets, streams
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
        stream |= _filled(choose, mild, "streams", stream["name"])
    method = choose.choice(sorted(kinds.names("methods")))
    job: dict[str, Any] = {
        "stream": stream,
        "method": {"name": method, **_filled(choose, mild, "methods", method)},
        "model": copy.deepcopy(choose.choice(MODELS)),
        "trainer": {"epochs": choose.choice((1, 2)), "batch_size": choose.choice((1, 2, 8))},
        "references": [],
    }
    if choose.random() < 0.5:
        job["stream"]["paradigm"] = choose.choice(("class", "task"))
    for key, kind in (("optimizer", "optimizers"), ("scheduler", "schedulers")):
        if choose.random() < 0.2:
            name = choose.choice(sorted(kinds.names(kind)))
            job[key] = {"name": name, **_filled(choose, mild, kind, name)}
    if choose.random() < 0.1:
        job["criterion"] = choose.choice(sorted(kinds.CRITERIA))
    if choose.random() < 0.1:
        names = [choose.choice(sorted(kinds.names("operations"))) for _ in range(choose.choice((1, 2, 3)))]
        job["method"] = {"operations": [{"name": name, **_filled(choose, mild, "operations", name)} for name in names]}
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


def _filled(choose: random.Random, mild: bool, kind: str, name: str) -> dict[str, Any]:
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
            return f"failed: {error}" if failed else _sentence(str(error))
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


def _sentence(text: str) -> str:
    return "refused" if len(text) > 15 and text.rstrip()[-1] in ".?!)" else f"WRONG no sentence: {text!r}"


# Data ------------------------------------------------------------------------------------------------------


def random_table(seed: int, folder: Path) -> tuple[Callable[[], Any], Path]:
    """A text file that somebody's program may have written, and what reads it."""
    choose = random.Random(seed)
    rows, columns = choose.choice((0, 1, 2, 5, 30, 40, 60, 60)), choose.choice((1, 2, 3, 4, 5, 6))
    mark = choose.choice(",;\t|;")
    decimal = "." if mark == "," else choose.choice((".", ","))
    kinds_of = [choose.choice(("number", "number", "whole", "word", "date")) for _ in range(columns - 1)] + ["whole"]
    if choose.random() < 0.15:
        kinds_of[choose.randrange(columns)] = choose.choice(("mixed", "empty"))
    odd = choose.random() < 0.1
    lines = [mark.join(choose.choice((f"c {n}", "", "é", "c1")) if odd else f"c{n}" for n in range(columns))]
    for _ in range(rows):
        values = [_cell(choose, kind, decimal) for kind in kinds_of]
        if choose.random() < 0.002:
            values = values[:-1]
        lines.append(mark.join(values))
    text = choose.choice(("\n", "\r\n")).join(lines) + choose.choice(("", "\n", "\n\n"))
    content = text.encode(choose.choice(("utf-8", "utf-8-sig", "utf-16", "latin-1")), errors="replace")
    if choose.random() < 0.05:
        content = bytes(choose.randrange(256) for _ in range(200))
    path = folder / choose.choice(("t.csv", "t.txt", "ü ä.csv"))
    path.write_bytes(content)
    arguments: dict[str, Any] = {}
    if choose.random() < 0.5:
        arguments["target"] = choose.choice((0, 1, -1, 9, "c0", "c1", "nothing", ""))
    options = {
        "by": ("c0", "c1", "x"),
        "missing": ("mean", "drop", "refuse"),
        "kind": ("regression", "classification"),
        "ordered": (True, False),
        "test_fraction": (0.0, 0.5, 0.99),
        "standardise": (True, False, "first"),
        "period": ("month", "week"),
        "header": (True, False),
        "drop": (["c0"], ["c0", "c1"]),
        "delimiter": (mark, ",", ";", "ab", ""),
    }
    for name, values in options.items():
        if choose.random() < 0.1:
            arguments[name] = choose.choice(values)
    return (lambda: datasets.csv(str(path), **arguments)), path


def _cell(choose: random.Random, kind: str, decimal: str) -> str:
    number = f"{choose.uniform(-1e3, 1e3):.3f}".replace(".", decimal)
    return {
        "number": number if choose.random() < 0.999 else choose.choice(("", "NA", "inf", "1e400", "-")),
        "word": choose.choice(("red", "green", "blue", '"a;b"')) if choose.random() < 0.997 else "",
        "date": choose.choice(("2024-01-03", "2024-02-28", "2023-12-31")) if choose.random() < 0.998 else "2024-13-01",
        "whole": str(choose.randrange(3)),
        "mixed": choose.choice((number, "x", "1")),
        "empty": "",
    }[kind]


def random_archive(seed: int, folder: Path) -> tuple[Callable[[], Any], Path]:
    """An .npz file of arrays of any kind, and what reads it."""
    choose, draw = random.Random(seed), np.random.default_rng(seed)
    rows = choose.choice((0, 1, 2, 8, 40, 40, 40, 40))
    shape = choose.choice(((), (3,), (3,), (4, 4), (4, 4, 3), (1, 4, 4), (2, 3, 4, 5), (0,)))
    kind = choose.choice(("f4", "f4", "f8", "f2", "u1", "u1", "u2", "i8", "b1", "i1", "c8", "U3"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = (draw.random((rows, *shape)) * choose.choice((1, 255))).astype(kind)
    if x.dtype.kind == "f" and x.size and choose.random() < 0.2:
        x.flat[0] = choose.choice((np.nan, np.inf, -np.inf))
    y = choose.choice(
        (
            draw.integers(0, 3, rows),
            draw.random(rows),
            draw.integers(0, 2, (rows, 1)),
            np.array(["a", "b"])[draw.integers(0, 2, rows)],
            draw.random((rows, 2)).astype("f4"),
            np.full(rows, np.nan),
            draw.integers(0, 3, rows + choose.choice((0, 1))),
            draw.integers(0, 3, rows).astype("u8"),
        )
    )
    path = folder / "a.npz"
    names = choose.choice((("x", "y"), ("x", "y"), ("x_train", "y_train"), ("images", "labels"), ("p", "q")))
    arrays = {names[0]: x, names[1]: y}
    if choose.random() < 0.3:
        arrays["split"] = draw.integers(0, 2, rows)
    if choose.random() < 0.3:
        arrays["group"] = choose.choice((draw.integers(0, 2, rows), np.array(["u", "v"])[draw.integers(0, 2, rows)]))
    np.savez(path, **arrays)
    if choose.random() < 0.05:
        path.write_bytes(path.read_bytes()[:-30])
    arguments: dict[str, Any] = {}
    options = {
        "kind": ("regression", "classification"),
        "by": ("group",),
        "layout": ("hwc", "tokens", "auto"),
        "missing": ("mean", "drop"),
        "normalise": (True,),
        "crop": (1, 3),
        "flip": (True,),
        "scale": (1.0, 255.0),
        "test_fraction": (0.0, 0.5),
    }
    for name, values in options.items():
        if choose.random() < 0.2:
            arguments[name] = choose.choice(values)
    return (lambda: datasets.npz(str(path), **arguments)), path


def random_images(seed: int, folder: Path) -> tuple[Callable[[], Any], Path]:
    """A folder of image files, some of them none, and what reads it."""
    from PIL import Image

    choose, draw = random.Random(seed), np.random.default_rng(seed)
    root = folder / "images"
    root.mkdir()
    sizes = [(8, 8)] if choose.random() < 0.7 else [(8, 8), (5, 9), (1, 1)]
    for label in choose.sample(("cat", "dog", "a b", "über", ".hidden", "train", "test"), choose.choice((0, 1, 2, 3))):
        inside = root / label / choose.choice(("", "", "deep", "train"))
        inside.mkdir(parents=True, exist_ok=True)
        for number in range(choose.choice((0, 1, 2, 6))):
            mode, ending = choose.choice((("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("RGB", "jpg"), ("1", "bmp")))
            size = choose.choice(sizes)
            pixels = draw.integers(0, 256, (size[1], size[0], 4)).astype("u1")
            Image.fromarray(pixels).convert(mode).save(inside / f"{number}.{ending}")
        if choose.random() < 0.1:
            (inside / "broken.png").write_bytes(choose.choice((b"", b"no image", b"\x89PNG\r\n\x1a\n")))
    arguments: dict[str, Any] = {}
    options = {"size": (4, 8, 0, -1), "normalise": (True,), "crop": (1,), "flip": (True,), "test_fraction": (0.0, 0.5)}
    for name, values in options.items():
        if choose.random() < 0.3:
            arguments[name] = choose.choice(values)
    return (lambda: datasets.image_folder(str(root), **arguments)), root


def try_data(make: Callable[[int, Path], tuple[Callable[[], Any], Path]], seed: int) -> str:
    """Read random data, and train on what was read: `ran`, `refused`, or what is wrong."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read, _ = make(seed, Path(name))
        try:
            data = read()
        except HoldfastError as error:
            return _sentence(str(error))
        for part in filter(None, (data.train, data.test)):
            batch = part.gather(torch.arange(len(part)))
            inputs = batch.inputs if data.prepare is None else data.prepare(batch.inputs)
            targets = batch.targets
            if not torch.isfinite(inputs.float()).all() or not torch.isfinite(targets.float()).all():
                return "WRONG inputs or targets that are not finite"
        if data.train.gather(torch.tensor([0])).inputs.is_floating_point() or data.prepare is not None:
            return _trained(data)
        return "ran"  # tokens, which a perceptron does not take


def _trained(data: Any) -> str:
    from holdfast import Trainer, methods, models

    try:
        if data.groups is not None:
            stream = streams.grouped(data)
        elif data.classes:
            stream = streams.split(data, experiences=1)
        else:
            stream = streams.data_incremental(data, experiences=1)
        model = models.mlp(input_shape=stream.input_shape, classes=stream.outputs, hidden=[4], seed=0)
        loss = None if data.classes else torch.nn.functional.mse_loss
        optimizer = {"name": "SGD", "lr": 1e-4}
        events = Trainer(methods.er(capacity=8), criterion=loss, optimizer=optimizer).fit(model, stream)
    except HoldfastError as error:
        return "diverged" if type(error).__name__ == "Diverged" else _sentence(str(error))
    wrong = [event for event in events if event["event"] == "evaluate" and not np.isfinite(event["loss"] or 0.0)]
    return f"WRONG a loss of {wrong[0]['loss']}" if wrong else "ran"


# All of them -----------------------------------------------------------------------------------------------

SORTS: dict[str, Callable[[int], str]] = {
    "configurations": lambda seed: try_job(random_job(seed)),
    "tables": lambda seed: try_data(random_table, seed),
    "archives": lambda seed: try_data(random_archive, seed),
    "images": lambda seed: try_data(random_images, seed),
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
