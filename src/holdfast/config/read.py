"""Reading configurations: JSON and YAML files, other projects' ways to write a job, and the default job."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from holdfast.config import kinds
from holdfast.config.signatures import parameters
from holdfast.config.words import dotted, nearest
from holdfast.core.errors import ConfigError

DEPTH = 32
"""How deep a configuration may nest."""


def check_plain(value: Any, path: tuple[Any, ...] = ()) -> list[str]:
    """A sentence for everything in `value` that JSON cannot write."""
    where = f"{dotted(path)}: " if path else ""
    if len(path) > DEPTH:
        return [f"{where}nested more than {DEPTH} deep. `holdfast schema` shows the shape of a configuration."]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where}got {value}, expected a finite number."]
    if value is None or isinstance(value, (bool, int, float, str)):
        return []
    if isinstance(value, (list, tuple)):
        return [problem for i, item in enumerate(value) for problem in check_plain(item, (*path, i))]
    if isinstance(value, dict):
        keys = [
            f"{where}the key {key!r} is no string; write {str(key)!r}." for key in value if not isinstance(key, str)
        ]
        return keys + [problem for key, item in value.items() for problem in check_plain(item, (*path, key))]
    return [
        f"{where}got a {type(value).__name__}, expected a plain JSON value: number, string, true, null, list or object."
    ]


def as_plain(value: Any) -> Any:
    """`value` copied, with tuples as lists."""
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def read(path: Path | str) -> dict[str, Any]:
    """What a configuration file says, as plain values.

    Args:
        path: `.yaml` or `.yml` for YAML, anything else is JSON.

    Raises:
        ConfigError: if there is no such file, it is malformed, or a key stands twice.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "config.json"
        advice = f"Write {inside}." if inside.is_file() else "Write the path of a JSON or YAML file."
        raise ConfigError(f"{path} is a folder, not a configuration. {advice}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_file()] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        advice = f"did you mean {str(path.with_name(near))!r}?" if near else "write the path of a JSON or YAML file."
        raise ConfigError(f"there is no configuration file {str(path)!r}; {advice}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not a text file: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None
    try:
        values = read_yaml(text, str(path)) if path.suffix.lower() in (".yaml", ".yml") else read_json(text, str(path))
    except RecursionError:
        raise ConfigError(
            f"{path} is nested too deeply to be a configuration. `holdfast schema` shows its shape."
        ) from None
    if not isinstance(values, dict):
        kind = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ConfigError(f'{path} {kind}, not a configuration. Write an object: {{"method": "er"}}.')
    problems = check_plain(values)
    if problems:
        raise ConfigError(f"{path}: {problems[0]}")
    return values


def read_json(text: str, source: str) -> Any:
    """Parse JSON, refusing repeated keys and NaN or infinity."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for key, value in items:
            if key in read:
                raise ConfigError(f"{source}: the key {key!r} stands twice in one object. Keep one of the two.")
            read[key] = value
        return read

    def constant(name: str) -> Any:
        raise ConfigError(f"{source}: {name} is not a number that JSON knows. Write a finite number, or null.")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text.strip() else ""
        seen = f" near {line[:60]!r}" if line else ""
        raise ConfigError(
            f"{source}: not valid JSON at line {error.lineno}, column {error.colno}{seen}: {error.msg}."
        ) from None


def read_yaml(text: str, source: str) -> Any:
    """Parse YAML by the rules of version 1.2: `on` and `no` are strings, `1e-3` is a number, `012` is 12."""
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(
                        f"{source}: the key {str(key.value)!r} stands twice, again in line {line}. Keep one of the two."
                    )
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

        def construct_number(self, node: Any) -> int | float:
            return int(node.value) if node.tag.endswith(":int") else float(node.value)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
    number = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_number)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_number)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{source}: not valid YAML{where}: {problem}.") from None


CHOSEN = ("name", "operations")
"""The keys that choose what a block is; a block with one of them stands for itself."""


class Dialect:
    """Another project's way to write a job, which whoever calls `compose` passes in; this one understands nothing.

    Attributes:
        name: of the project.
    """

    name = ""

    def recognised(self, content: Mapping[str, Any]) -> bool:
        """Whether a file is one of this project."""
        return False

    def owns(self, path: Sequence[str]) -> bool:
        """Whether a change on the command line is one of a file of this project, by the project's own keys."""
        return False

    def convert(
        self, content: Mapping[str, Any], changes: Mapping[tuple[str, ...], Any], source: str
    ) -> tuple[dict[str, Any], list[str]]:
        """The job that a recognised file with `changes` of its keys means, and what is done differently."""
        return dict(content), []

    def space(
        self, content: Mapping[str, Any], changes: Mapping[tuple[str, ...], Any], source: str
    ) -> tuple[dict[str, Any], list[str]]:
        """The space file that a recognised file with `changes` of its keys means, and what is done differently."""
        job, notes = self.convert(content, changes, source)
        return {"job": job}, notes

    def translated(self, content: Mapping[str, Any], package: tuple[str, ...]) -> dict[str, Any]:
        """A part of a job of ours, which goes under the keys of `package`, with this project's keys under our names."""
        return dict(content)

    def change(self, path: tuple[str, ...], value: Any) -> dict[tuple[str, ...], Any] | None:
        """What the change of one of this project's keys changes here; None if it is not such a key."""
        return None


def default() -> dict[str, Any]:
    """The default job as it stands in the package: `holdfast run` without a configuration."""
    values: dict[str, Any] = json.loads(Path(__file__).with_name("default.json").read_text(encoding="utf-8"))
    return values


OF_A_SOURCE: dict[str, Any] = {
    "stream": None,
    "boundary": None,
    "arrival": {},
    "trainer": {"epochs": None, "batch_size": 32},
    "references": [],
}
"""What the default job says where it learns from a source."""


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with what it leaves out taken from the default job.

    A block that says its `name` stands for itself, and what it leaves out is that callable's default; a block
    without a name, like `trainer`, changes single keys of the default job's. References are run only where asked for.
    """
    result: dict[str, Any] = {}
    usual = default() if config.get("source") is None else {**default(), **OF_A_SOURCE}
    for key, base in usual.items():
        if key in config:
            result[key] = merged(base, config[key])
        else:
            result[key] = [] if key == "references" else base
    result.update(
        {key: copy.deepcopy(value) for key, value in config.items() if key not in result and key != "$schema"}
    )
    stream = result["stream"]
    if isinstance(stream, str) and takes_dataset(stream):
        stream = result["stream"] = {"name": stream}
    if isinstance(stream, dict) and "dataset" not in stream and takes_dataset(stream.get("name")):
        stream["dataset"] = default()["stream"]["dataset"]
    source = result.get("source")
    if isinstance(source, dict) and takes_dataset(_name(source.get("stream"))):
        inner = source["stream"] if isinstance(source["stream"], dict) else {"name": source["stream"]}
        source["stream"] = {"dataset": default()["stream"]["dataset"], **inner}
    trainer = config.get("trainer")
    if isinstance(trainer, dict) and isinstance(result["trainer"], dict):
        settle_length(result["trainer"], set(trainer))
    return result


def _name(block: Any) -> object:
    """The name of a block, which may stand for itself."""
    return block.get("name") if isinstance(block, dict) else block


def merged(base: Any, changes: Any) -> Any:
    """`base` with `changes` on top; a block that says its `name` replaces the one below, others change single keys.

    Example:
        >>> merged({"model": {"name": "mlp", "hidden": [9]}}, {"model": {"head": "task"}})
        {'model': {'name': 'mlp', 'hidden': [9], 'head': 'task'}}
        >>> merged({"model": {"name": "mlp", "hidden": [9]}}, {"model": {"name": "linear"}})
        {'model': {'name': 'linear'}}
    """
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping) or any(key in changes for key in CHOSEN):
        return copy.deepcopy(changes)
    return {**base, **{key: merged(base.get(key), value) for key, value in changes.items()}}


def takes_dataset(name: object) -> bool:
    """Whether the stream called `name` is made from one data set."""
    factory = kinds.names("streams").get(str(name))
    return factory is not None and any(parameter.name == "dataset" for parameter in parameters(factory))


def settle_length(trainer: dict[str, Any], changed: set[str]) -> None:
    """Of `epochs` and `iterations`, the one that was given wins over the one that was not."""
    for one, other in (("iterations", "epochs"), ("epochs", "iterations")):
        if one in changed and other not in changed and trainer.get(one) is not None and trainer.get(other) is not None:
            trainer[other] = None
