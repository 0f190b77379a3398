"""Plug-in files: one Python file whose operations, methods, streams and so on can be named like those of Holdfast."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import shlex
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from holdfast.config import kinds
from holdfast.config.words import nearest
from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.core.method import Method
from holdfast.core.operation import Operation, snake_case
from holdfast.core.source import Source

FOLDER = "plugins"
"""Where a run folder keeps copies of the files that it was made with."""

MARK = "holdfast_kind"
Value = TypeVar("Value", bound=Callable[..., Any])

OUTPUTS = ("input", "inputs", "output", "outputs", "logits", "prediction", "predictions")
SNAKE = ("operations", "boundaries", "sources")
"""Kinds whose classes are named in snake case."""

TARGETS = ("target", "targets", "label", "labels")
"""Names of the first two parameters of a criterion."""


@dataclass(frozen=True)
class Plugin:
    """A plug-in file that was imported.

    Attributes:
        path: of the file.
        digest: SHA-256 of its bytes.
        names: kind -> the names it defines.
        content: its bytes, as they were imported.
    """

    path: Path
    digest: str
    names: dict[str, list[str]]
    content: bytes = field(repr=False)


_used: dict[str, Plugin] = {}


def plugin(kind: str) -> Callable[[Value], Value]:
    """Say which kind a function or class of a plug-in file is of, where nothing else tells.

    Args:
        kind: `"criterion"`, `"criteria"`, `"model"`, ...

    Raises:
        ConfigError: for a kind that there is not.
    """
    plurals = {row.word: row.plural for row in kinds.KINDS.values() if row.open}
    plural = plurals.get(kind, kind)
    if not kinds.kind_of(plural).open:
        raise ConfigError(f"a plug-in cannot bring {plural}; it can bring {', '.join(plurals.values())}.")

    def mark(value: Value) -> Value:
        setattr(value, MARK, plural)
        return value

    return mark


def use(path: Path | str) -> Plugin:
    """Import one plug-in file, so that what it defines can be named.

    Everything public that the file itself defines is looked at (with `__all__`: what that lists):

    * marked by `@plugin("criterion")`: what the mark says;
    * a class: an operation, boundary, source, optimizer or scheduler by the class it inherits from; a module whose
      constructor takes `input_shape` and `classes`: a model;
    * a function, by what it is annotated to return: `Method`, `Stream`, `Dataset`, `Source`, `nn.Module`; a `Tensor` of
      `(outputs, targets)` makes it a criterion;
    * what the decorator `metric` of `holdfast.metrics` has entered: metrics.

    Operations, boundaries and sources are named in snake case (`WeightAverage` is `weight_average`), the rest as in
    Python. The file is imported under its own name and can import its neighbours. Used again after a change, it is read
    again.

    Args:
        path: of the file.

    Returns:
        The plug-in.

    Raises:
        ConfigError: if there is no such file, it cannot be imported, defines nothing that can be named, or takes a
            name that something else has.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file() or path.suffix != ".py":
        siblings = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        advice = f"did you mean {str(path.with_name(near))!r}?" if near else "give the path of a file that ends in .py."
        raise ConfigError(f"--plugin: there is no Python file {str(path)!r}; {advice}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    before = _used.get(path.stem)
    if before is not None and (before.path, before.digest) == (path, digest):
        return before
    if before is not None:
        drop(path.stem)
    module, metrics = _imported(path)
    names: dict[str, dict[str, Any]] = {"metrics": metrics} if metrics else {}
    for name, value in _public(module).items():
        kind = kind_of(value)
        if kind is not None:
            names.setdefault(kind, {})[_named(kind, name)] = value
    _check(path, names)
    made = Plugin(path, digest, {kind: sorted(values) for kind, values in sorted(names.items())}, content)
    _used[path.stem] = made
    kinds.add_file(str(path), {kind: values for kind, values in names.items() if kind != "metrics"})
    return made


def drop(stem: str) -> None:
    """Take a plug-in file out again, by its name without `.py`."""
    gone = _used.pop(stem, None)
    if gone is None:
        return
    sys.modules.pop(stem, None)
    table = _metrics()
    for name in gone.names.get("metrics", []):
        table.pop(name, None)
    kinds.add_file(str(gone.path), None)


def used() -> list[Plugin]:
    """The plug-in files of this process, in the order in which they were imported."""
    return list(_used.values())


def digests() -> list[str]:
    """What runs with these plug-in files are told from others by."""
    return sorted(one.digest for one in _used.values())


def flags() -> str:
    """The options of a command that uses the same files, with a space before each."""
    return "".join(f" --plugin {shlex.quote(str(one.path))}" for one in _used.values())


def described() -> list[dict[str, Any]]:
    """The plug-in files in use, as plain values."""
    return [{"file": str(one.path), "sha256": one.digest, "names": one.names} for one in used()]


def recorded(folder: Path) -> dict[str, Any]:
    """What a run folder writes down of the plug-in files in use, under the key `plugins`; nothing if there are none.

    Copies of the files are put in its folder `plugins`.
    """
    for one in used():
        copy = folder / FOLDER / one.path.name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(one.content)
    return {"plugins": described()} if _used else {}


def use_all(records: Sequence[Mapping[str, Any]]) -> None:
    """Import the files that another process uses.

    Args:
        records: what `described` gave there.

    Raises:
        ConfigError: where one was changed since.
    """
    for one in records:
        if use(one["file"]).digest != one["sha256"]:
            raise ConfigError(f"{one['file']} was changed since this was started. Start it again.")


def check_recorded(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Whether the plug-in files that a run was made with are in use, unchanged.

    Args:
        records: what `described` gave then.
        folder: of the run.

    Raises:
        ConfigError: with what to write.
    """
    for one in records:
        file = Path(one["file"])
        now = _used.get(file.stem)
        if now is not None and now.digest == one["sha256"]:
            continue
        copy = folder / FOLDER / file.name
        kept = f"; a copy as it was then is {copy}" if copy.is_file() else ""
        if now is None:
            raise ConfigError(f"{folder} was made with the plug-in {file.name}. Write --plugin {file}{kept}.")
        raise ConfigError(
            f"{folder} was made with the plug-in {file.name}, and {now.path} is another file or was changed since. "
            f"Write --plugin with the file as it was{kept}."
        )


def kind_of(value: Any) -> str | None:
    """The kind (its plural) that something in a plug-in file is of, or None."""
    marked = getattr(value, MARK, None)
    if marked is not None:
        return str(marked)
    if isinstance(value, type):
        if inspect.isabstract(value):
            return None
        bases = {
            Operation: "operations",
            Boundary: "boundaries",
            Source: "sources",
            torch.optim.Optimizer: "optimizers",
            torch.optim.lr_scheduler.LRScheduler: "schedulers",
        }
        kind = next((kind for base, kind in bases.items() if issubclass(value, base)), None)
        sized = issubclass(value, nn.Module) and {"input_shape", "classes"} <= set(inspect.signature(value).parameters)
        return kind or ("models" if sized else None)
    if not inspect.isfunction(value):
        return None
    returned = _returned(value)
    if not isinstance(returned, type):
        return None
    from holdfast.streams.dataset import Dataset

    results = {Method: "methods", Stream: "streams", Dataset: "datasets", Source: "sources", nn.Module: "models"}
    if returned is Tensor:
        first = list(inspect.signature(value).parameters)[:2]
        return "criteria" if len(first) == 2 and first[0] in OUTPUTS and first[1] in TARGETS else None
    return next((kind for base, kind in results.items() if issubclass(returned, base)), None)


def _returned(function: Callable[..., Any]) -> Any:
    try:
        return typing.get_type_hints(inspect.unwrap(function)).get("return")
    except (NameError, AttributeError, TypeError):  # other annotations may be for type checkers only
        annotation = inspect.unwrap(function).__annotations__.get("return")
        types = {"Method": Method, "Stream": Stream, "Module": nn.Module, "Tensor": Tensor}
        return types.get(str(annotation).rsplit(".", 1)[-1])


def _named(kind: str, name: str) -> str:
    return snake_case(name) if kind in SNAKE else name


def _public(module: ModuleType) -> dict[str, Any]:
    """What the file itself defines and does not hide, or what its `__all__` lists."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    }


def _imported(path: Path) -> tuple[ModuleType, dict[str, Any]]:
    """The module of a file, under the file's own name so that other processes can import it too; and its metrics."""
    name = path.stem
    if name in sys.modules or name in sys.stdlib_module_names or _installed(name):
        raise ConfigError(
            f"--plugin: there is a Python module {name!r} already, so {path.name} cannot be imported under its name. "
            f"Rename it, for instance to my_{path.name}."
        )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    table = _metrics()
    before = dict(table)
    try:
        spec.loader.exec_module(module)
        taken = [name for name, value in before.items() if table.get(name) is not value]
        if taken:
            raise ConfigError(f"there is a metric {taken[0]!r} already. Give yours another name.")
    except BaseException as error:
        sys.modules.pop(name, None)
        table.clear()
        table.update(before)
        if not isinstance(error, Exception):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" (line {lines[-1]})" if lines else ""
        raise ConfigError(
            f"--plugin: {path} cannot be imported: {type(error).__name__}: {error}{where}. Correct it."
        ) from error
    return module, {name: value for name, value in table.items() if name not in before}


def _installed(name: str) -> bool:
    """Whether a package of this name is installed; a file that merely lies on the path does not count."""
    spec = importlib.util.find_spec(name)
    origin = None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or []), None)
    return origin is not None and bool({"site-packages", "dist-packages"} & set(Path(origin).parts))


def _check(path: Path, names: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a file whose names are taken, that defines nothing, or nothing that a configuration could make."""
    problem = ""
    if not any(names.values()):
        words = ", ".join(row.plural for row in kinds.KINDS.values() if row.open)
        problem = f"it defines none of {words}. Annotate what a function returns, or mark it: @plugin('criterion')"
    for kind, values in names.items():
        row = kinds.KINDS[kind]
        space = kinds.Namespace({}, {})
        for name, value in values.items():
            if kind != "metrics" and name in kinds.names(kind):
                problem = problem or f"there is a {row.word} {name!r} already. Give yours another name"
            if kind != "metrics":
                kinds.admit(space, row, name, value)
        for name, reason in space.problems.items():
            problem = problem or f"its {row.word} {name!r} cannot be used: {reason}"
    if problem:
        sys.modules.pop(path.stem, None)
        table = _metrics()
        for name in names.get("metrics", {}):
            table.pop(name, None)
        raise ConfigError(f"--plugin: {path}: {problem}.")


def _metrics() -> dict[str, Any]:
    table: dict[str, Any] = importlib.import_module(kinds.KINDS["metrics"].module).METRICS
    return table
