"""Random command lines, files, sources, spaces of searches and damaged run folders: a sentence or a result, always.

    python benchmarks/fuzz_commands.py pairs 200 [first seed]
    python benchmarks/fuzz_commands.py overrides 200; ... sources 100; ... spaces 100; ... damaged 100

Beside `fuzz.py`, which spoils single values: here several things are wrong at once, of kinds that only a file or a
command line can have. Each number is a seed of its own. Exit code 1 where one fails.
"""

from __future__ import annotations

import copy
import datetime
import functools
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import fuzz
import numpy as np
import yaml
from typer.testing import CliRunner

from holdfast import cli
from holdfast.config import kinds
from holdfast.config.check import validated
from holdfast.runs import run as running

DEEP: Any = functools.reduce(lambda inner, _: [inner], range(60), 1)
WILD: tuple[Any, ...] = (
    *(10**400, -(10**400), 2**63, -(2**63) - 1, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2),
    *("1e3", "0x10", "1_000"),
    *("", " ", "er ", "ER", "ｅｒ", "é", "e\u0301", "\u202eer", "\ud800", "a\nb", "\t", "$HOME", "${seed}"),
    *("~", "%s", "{}"),
    *("../..", "/dev/null", "/", "con", "x" * 5000, "null", "None", "true", "[]", "a,b", "<b>", "'", '"', "\\"),
    *(None, True, False, [], {}, [[]], [None], [{}], {"": 1}, {"name": None}, {"name": ["er"]}, {"name": {}}),
    {"name": ""},
    *({1: 2}, {None: 1}, {True: 1}, {"name": "er", "x": {"y": [1, {"z": None}]}}, DEEP, [1, "a", None, {}]),
    *(datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1), b"bytes", {1, 2}, (1, 2), float("nan"), float("-inf")),
)  # fmt: skip
KEYS = (
    *("size", "lr", "epochs", "paradigm", "dataset", "datasets", "path", "name", "operations", "seed", "of", "$schema"),
    *("_target_", "defaults", "__class__", "hydra", "sweep", "source", "boundary", "per_experience", "loggers", "head"),
    *("", " ", "é", "a.b", "0", "method", "trainer", "stream", "references", "protocol", "folders", "tags", "threads"),
)
SMALL = ("trainer.max_seconds=10", "references=[]", "stream.dataset.name=synthetic", "stream.dataset.samples=6",
         "stream.experiences=2", "trainer.epochs=1")  # fmt: skip
TYPED = (
    *("1", "0", "-1", "1e999", "-1e999", "nan", "0x10", "1_000", "1.", ".5", "null", "true", "''", '""', "", " ", "~"),
    *("[1,2", "[1,2]", "[[[]]]", "{a:1}", "{a:1", "{", "}", "]", "'x", "x'", "\\", "\\,", "a,b", "1,2", "a,,b", ","),
    *("range(0,3)", "range(0)", "range(3,0)", "range(0,1,0)", "range(0,1e9)", "interval(0,1)", "interval(1,0)"),
    "choice(a,b)",
    *("choice()", "choice(", "tag(log,interval(0,1))", "tag(log,interval(1,2))", "tag()", "glob(*)", "glob([)"),
    "sort(3,1)",
    *("shuffle(a)", "cast(1)", "int(x)", "str(1)", "float(x)", "${oc.env:HOME}", "${seed}", "😀", "é", "\u202e"),
    *("er", "ewc"),
    *("split", "digits", "mlp", "SGD", "{name:er}", "{name:er,capacity:-1}", "{name:{}}", "[er,ewc]", "x" * 300, "a=b"),
    *("=", "@"),
)  # fmt: skip


def entries(value: Any) -> list[tuple[Any, Any]]:
    """Every list and mapping inside a value with each of its keys or positions."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    below = [entry for key in keys for entry in entries(value[key])]
    return [(value, key) for key in keys] + below


def like(value: Any) -> tuple[Any, ...]:
    """Wild values, most of them of the kind of a value, which go further than others."""
    kind = (int, float) if isinstance(value, int | float) else type(value)
    return (*[one for one in (*WILD, *fuzz.NUMBERS) if isinstance(one, kind)] * 3, *WILD)


def wrecked(choose: random.Random, job: dict[str, Any]) -> None:
    """Spoil one thing in a job, in a way that `fuzz.random_job` does not."""
    all_of_them = entries(job)
    if not all_of_them:
        return
    holder, key = choose.choice(all_of_them)
    way = choose.choice(("wild", "wild", "deep", "wrap", "key", "other", "swap", "rename", "list"))
    if way == "wild":
        holder[key] = choose.choice(like(holder[key]))
    elif way == "deep":
        holder, key = all_of_them[-1 - choose.randrange(min(8, len(all_of_them)))]
        holder[key] = choose.choice(WILD)
    elif way == "wrap":
        holder[key] = choose.choice(([holder[key]], {"name": holder[key]}, {str(key): holder[key]}, str(holder[key])))
    elif way == "key" and isinstance(holder, dict):
        holder[choose.choice(KEYS)] = choose.choice((1, "er", {"name": "er"}, *WILD[:8]))
    elif way == "other":
        kind = choose.choice(("methods", "streams", "datasets", "models", "operations", "optimizers", "metrics"))
        holder[key] = choose.choice(sorted(kinds.names(kind)))
    elif way == "swap":
        other, place = choose.choice(all_of_them)
        holder[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(holder[key])
    elif way == "rename" and isinstance(holder, dict):
        holder[choose.choice((str(key).upper(), f" {key}", key[:-1] if isinstance(key, str) else key, 7))] = holder.pop(
            key
        )
    elif way == "list":
        entry = choose.choice(({"epochs": 1}, {"epochs": -1}, None, {"optimizer": "SGD"}, {"optimizer": 3}, "x", []))
        job.setdefault("trainer", {})
        if isinstance(job["trainer"], dict):
            job["trainer"]["per_experience"] = [entry] * choose.choice((1, 2, 5))


def pairs(seed: int) -> str:
    """A job in which two to four things are wrong, as Python has it."""
    choose = random.Random(seed)
    job = fuzz.random_job(seed)
    for _ in range(choose.choice((1, 1, 2, 3))):
        wrecked(choose, job)
    return fuzz.try_job(job)


def asked(words: list[str], folder: Path) -> str:
    """What becomes of one command, run in a folder: `ran`, `refused`, or what is wrong."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(cli.app, words)
    finally:
        os.chdir(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 0:
        return "ran"
    told = result.output.strip()
    return (
        "refused" if len(told) > 15 and "Traceback" not in told else f"WRONG exit code {result.exit_code}, and {told!r}"
    )


@functools.cache
def usual() -> list[str]:
    """The dotted keys of a job."""

    def keys(value: Any, path: str) -> list[str]:
        inside = [one for key in value for one in keys(value[key], f"{path}.{key}")] if isinstance(value, dict) else []
        return [path, *inside]

    config = validated({"method": {"name": "er"}, "scheduler": {"name": "StepLR", "step_size": 1}}).config
    return [one for key in config for one in keys(config[key], key)]


def overrides(seed: int) -> str:
    """A command line, with a file or without, whose changes are seldom right."""
    choose = random.Random(seed)
    words = []
    for _ in range(choose.choice((1, 1, 2, 3))):
        path, value = choose.choice(usual()), choose.choice(TYPED)
        if choose.random() < 0.7:
            value = choose.choice(("1", "2", "3", "0.5", "true", "false", "null", repr(choose.choice(fuzz.NUMBERS))))
        sign = choose.choice(("=", "=", "=", "=", "=", "+", "++", "~", "=="))
        path = (
            path if choose.random() < 0.9 else choose.choice((path.upper(), path + ".x", path + ".0", "." + path, "/"))
        )
        words.append(f"~{path}" if sign == "~" else f"{sign}{path}={value}" if "+" in sign else f"{path}{sign}{value}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first: list[str] = []
        if choose.random() < 0.4:
            job = fuzz.random_job(seed)
            wrecked(choose, job)
            first = [choose.choice(("job.json", "job.yaml", "job.yml"))]
            (folder / first[0]).write_bytes(written(job, first[0], choose))
        command = choose.choice((["run", "--quiet"], ["run", "--quiet"], ["validate"], ["config"]))
        return asked([*command, *first, *([] if first else SMALL), *words], folder)


def written(job: dict[str, Any], name: str, choose: random.Random) -> bytes:
    """A job as a file has it: JSON or YAML, now and then cut off or in another encoding."""
    try:
        text = json.dumps(job, default=str) if name.endswith("json") else yaml.safe_dump(job)
    except (TypeError, ValueError, yaml.YAMLError):
        text = json.dumps(job, default=str, skipkeys=True)
    content = text.encode(choose.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")), errors="replace")
    return content[: len(content) // 2] if choose.random() < 0.1 else content


def sources(seed: int) -> str:
    """A job that learns from a source, with parameters that are seldom right."""
    choose = random.Random(seed)
    mild = choose.random() < 0.6
    name = choose.choice(("toy8", "experiences", *sorted(kinds.names("sources"))))
    method = choose.choice(sorted(kinds.names("methods")))
    job: dict[str, Any] = {
        "source": {"name": name, **fuzz.filled(choose, mild, "sources", name)},
        "method": {"name": method, **fuzz.filled(choose, mild, "methods", method)},
        "model": {"name": "mlp", "hidden": [4]},
        "trainer": {"iterations": choose.choice((3, 10)), "batch_size": choose.choice((1, 4))},
    }
    if name == "experiences":
        job["source"]["stream"] = {"name": "split", "dataset": dict(fuzz.DATASETS[0]), "experiences": 2}
    if choose.random() < 0.4:
        boundary = choose.choice(sorted(kinds.names("boundaries")))
        job["boundary"] = {"name": boundary, **fuzz.filled(choose, mild, "boundaries", boundary)}
    if choose.random() < 0.3:
        keys = ("now", "size", "batches", "hold_out", "holdout", "queue", "window", "drop", "x")
        job["arrival"] = {choose.choice(keys): choose.choice((1, 2, 0.1, *WILD)) for _ in range(choose.choice((1, 2)))}
    for _ in range(0 if mild else choose.choice((0, 1, 2))):
        wrecked(choose, job)
    return fuzz.try_job(job)


def spaces(seed: int) -> str:
    """A file of a search or a sweep, of which only the plan is made."""
    choose = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, mock.patch("holdfast.discovery.command.started") as done:
        done.return_value.folder = "x"
        folder = Path(name)
        operations = {choose.choice(("memory", "loss", "x")): [choose.choice(sorted(kinds.names("operations")))]}
        settings: dict[str, Any] = {
            "job": {"stream": {"name": "split", "dataset": dict(fuzz.DATASETS[0]), "experiences": 2}},
            "operations": choose.choice((operations, {}, *WILD[:6])),
            "methods": choose.choice((["er", "ewc"], ["er"], [], "er", 3)),
            "objectives": choose.choice((["accuracy"], "accuracy", ["accuracy", "memory"], ["x"], 1)),
            "at_most": choose.choice(({"memory": 10}, {"memory": "1kb"}, {"x": 1}, {"memory": -1}, 3)),
            "trials": choose.choice((2, 2, 2, 0, -1, 1.5, "x", 10**30)),
            "budget": choose.choice(("1m", "1h", "x", 0, "1e9h", "-1m")),
            "protocol": choose.choice(("validation", "first-k", "transfer", "x", None)),
            "k": choose.choice((1, 2, 0, 99, "x")),
            "memory": choose.choice((10, [10, 20], {"low": 1, "high": 5}, {"low": 5, "high": 1}, "x", -1, 1e308)),
            "parameters": choose.choice(
                ({"capacity": [1, 2]}, {"optimizer.lr": {"low": 0, "high": 1, "log": True}}, 3)
            ),
            "finals": choose.choice((1, 0, -1, 2.5)),
            "keep": choose.choice((0.5, 0, 2, "x")),
            "slots": choose.choice(({"memory": 1}, {"x": 1}, {"memory": -1}, 3)),
            "seed": choose.choice((0, -1, 1e30, "x")),
        }
        content = {key: settings[key] for key in settings if choose.random() < 0.25}
        for _ in range(choose.choice((0, 0, 0, 1))):
            wrecked(choose, content)
        (folder / "space.json").write_bytes(written(content, "space.json", choose))
        words = [f"{choose.choice(('method.capacity', 'optimizer.lr', 'trainer.epochs'))}={choose.choice(TYPED)}"]
        command = choose.choice(("search", "sweep"))
        return asked([command, "space.json", *(words if choose.random() < 0.5 else []), "--quiet"], folder)


@functools.cache
def finished() -> Path:
    """A small run that ended, and one with seeds and references beside it, to be copied."""
    folder = Path(tempfile.mkdtemp())
    job = {
        "stream": {"name": "split", "dataset": dict(fuzz.DATASETS[0]), "experiences": 2},
        "method": {"name": "er", "capacity": 8},
        "model": {"name": "mlp", "hidden": [8]},
        "trainer": {"epochs": 1},
        "references": [],
    }
    running.run(job, folder / "one", quiet=True)
    running.run({**job, "seeds": [0, 1], "references": ["finetune"]}, folder / "many", quiet=True)
    np.save(folder / "new.npy", np.random.default_rng(0).normal(size=(3, 20)).astype("f4"))
    return folder


def damaged(seed: int) -> str:
    """A run's folder in which one or two files are broken, and a command that reads it."""
    choose = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(finished(), folder, dirs_exist_ok=True)
        place = folder / choose.choice(("one", "one", "many"))
        if choose.random() < 0.3:  # as if it had been cut off
            about = json.loads((place / "run.json").read_text())
            (place / "run.json").write_text(json.dumps({**about, "state": "interrupted"}))
        for _ in range(choose.choice((1, 1, 2))):
            broken(choose, choose.choice(sorted(path for path in place.rglob("*") if path.is_file())))
        where = choose.choice((place, next(place.rglob("last.pt"), place), place / "checkpoints"))
        commands = (
            *(
                ["show", str(place)],
                ["show", str(place), str(folder / "one"), "--csv"],
                ["show", str(folder), "--json"],
            ),
            *(["show", "--references", "--sort", "kept", str(folder)], ["eval", str(where)], ["resume", str(place)]),
            *(["predict", str(where), "new.npy", "--out", "p"], ["export", str(where), "--format", "safetensors"]),
        )
        return asked(choose.choice(commands), folder)


def broken(choose: random.Random, path: Path) -> None:
    """Break one file: cut it off, empty it, delete it, fill it with something else, change a value in it."""
    content = path.read_bytes()
    way = choose.choice(("cut", "empty", "gone", "random", "value", "value", "value", "folder"))
    if way == "gone" or way == "folder":
        path.unlink()
        if way == "folder":
            path.mkdir()
    elif way == "value" and path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        index = choose.randrange(len(lines) or 1)
        value = json.loads(lines[index])
        holder, key = choose.choice(entries(value) or [({}, 0)])
        holder[key] = choose.choice([one for one in WILD if isinstance(one, str | int | float | list | None)])
        if choose.random() < 0.2:
            holder.pop(key)
        lines[index] = json.dumps(value)
        path.write_bytes("\n".join(lines).encode(errors="replace"))
    else:
        filled = {"cut": content[: len(content) // 2], "empty": b"", "value": content[:-7]}
        path.write_bytes(filled.get(way, bytes(choose.randrange(256) for _ in range(300))))


SORTS: dict[str, Callable[[int], str]] = {
    "pairs": pairs,
    "overrides": overrides,
    "sources": sources,
    "spaces": spaces,
    "damaged": damaged,
}
fuzz.SORTS.update(SORTS)

if __name__ == "__main__":
    fuzz.main()
