"""Reading configurations: JSON and YAML files, refused where they say something twice or what JSON cannot say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from holdfast.config.plain import check_plain
from holdfast.config.words import nearest
from holdfast.core.errors import ConfigError


def read(path: Path | str) -> dict[str, Any]:
    """What a configuration file says, as plain values.

    Args:
        path: `.yaml` or `.yml` for YAML, anything else is JSON.

    Raises:
        ConfigError: where there is no such file, it is malformed, or a key stands twice.
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
    """Parse JSON, refusing keys that stand twice and numbers that are none."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise ConfigError(f"{source}: the key {key!r} stands twice in one object. Keep one of the two.")
            found[key] = value
        return found

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
