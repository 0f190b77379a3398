"""Overrides on the command line in Hydra's grammar, and config groups: small configurations to choose from."""

from __future__ import annotations

import copy
import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.config import kinds
from holdfast.config.read import default, settle_length, takes_dataset
from holdfast.config.schema import operation_name
from holdfast.config.words import dotted, nearest, shown, without_json
from holdfast.core.errors import ConfigError

ENDINGS = (".yaml", ".yml", ".json")
GLOBAL = "_global_"

PACKAGE_DIR = Path(__file__).with_name("library")
"""The groups that come with Holdfast."""


@dataclass(frozen=True)
class GroupFile:
    """One choice of a group.

    Attributes:
        group: `trainer`, or a nested `stream/dataset`.
        name: of the choice.
        path: of its file.
        package: the key its content goes under; empty for the whole job.
    """

    group: str
    name: str
    path: Path
    package: tuple[str, ...]

    @property
    def source(self) -> str:
        """How `holdfast config` calls it."""
        return f"{self.group}={self.name}"


class Library:
    """Every group that can be chosen from; a file in the user's folder goes before one of the package.

    Args:
        folders: of the user, each with one sub-folder per group.

    Raises:
        ConfigError: where one of the folders does not exist.
    """

    def __init__(self, folders: Sequence[Path | str] = ()) -> None:
        self.folders = [*map(Path, folders), PACKAGE_DIR]
        for folder in self.folders[:-1]:
            if not folder.is_dir():
                raise ConfigError(f"--config-dir: there is no folder {str(folder)!r}. Give a folder of config groups.")

    def groups(self) -> list[str]:
        """The names of all groups, nested ones with a slash."""
        groups = {
            str(path.parent.relative_to(folder))
            for folder in self.folders
            for ending in ENDINGS
            for path in folder.rglob(f"*{ending}")
            if path.parent != folder
        }
        return sorted(name.replace("\\", "/") for name in groups)

    def choices(self, group: str) -> list[str]:
        """The names in one group, in order."""
        names = {path.stem for folder in self.folders for path in (folder / group).glob("*") if path.suffix in ENDINGS}
        return sorted(name for name in names if not name.startswith("_"))

    def find(self, group: str, name: str) -> GroupFile | None:
        """The file of one choice, or None; `name` may end with `.yaml`."""
        stem = name.removesuffix(".yaml").removesuffix(".yml").removesuffix(".json")
        for folder in self.folders:
            for ending in ENDINGS:
                path = folder / group / f"{stem}{ending}"
                if path.is_file():
                    return GroupFile(group, stem, path, self._package(group, path))
        return None

    def need(self, group: str, name: object) -> GroupFile:
        """The file of one choice.

        Raises:
            ConfigError: if there is none, with the nearest right name.
        """
        file = self.find(group, str(name)) if isinstance(name, str) else None
        if file is not None:
            return file
        choices = self.choices(group)
        near = nearest(name, choices)
        advice = f"did you mean {near!r}?" if near else f"there are {', '.join(choices) or 'none'}."
        raise ConfigError(f"{group}: there is no {group} called {name!r}; {advice}")

    def matching(self, group: str, patterns: Sequence[str], without: Sequence[str] = ()) -> list[str]:
        """The names in a group that fit one of `patterns` (`*`) and none of `without`."""
        return [
            name
            for name in self.choices(group)
            if any(fnmatch.fnmatchcase(name, one) for one in patterns)
            and not any(fnmatch.fnmatchcase(name, one) for one in without)
        ]

    @staticmethod
    def _package(group: str, path: Path) -> tuple[str, ...]:
        """Where the content goes: what the file's `# @package` line says, else under the group's own name."""
        from holdfast.config.schema import job_model

        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:2] == ["#", "@package"] and len(words) == 3:
                return () if words[2] == GLOBAL else tuple(words[2].split("."))
            if line.strip() and not line.startswith("#"):
                break
        parts = tuple(group.split("/"))
        return parts if parts[0] in job_model().model_fields else ()


def nested(package: Sequence[str], content: Any) -> Any:
    """`content` under the keys of `package`.

    Example:
        >>> nested(("stream", "dataset"), {"name": "digits"})
        {'stream': {'dataset': {'name': 'digits'}}}
    """
    for key in reversed(package):
        content = {key: content}
    return content


@dataclass(frozen=True)
class Override:
    """One change: `path` becomes `value`, or is deleted."""

    text: str
    path: tuple[str, ...]
    value: Any
    delete: bool = False
    force: bool = False

    @property
    def chooses(self) -> bool:
        """Whether it says what a whole block is, so that it must come before changes within the block."""
        return not self.delete and (self.path[-1] in ("name", "operations") or is_block(self.path))

    @property
    def block(self) -> tuple[str, ...]:
        """The path of the block it is about."""
        return self.path[:-1] if self.path[-1] == "name" else self.path


def is_block(path: Sequence[str]) -> bool:
    """Whether the value at `path` is chosen by a `name`."""
    return (
        (len(path) == 1 and path[0] in kinds.BLOCKS)
        or tuple(path) in (("stream", "dataset"), ("source", "stream"), ("source", "stream", "dataset"))
        or (len(path) == 3 and tuple(path[:2]) in (("stream", "datasets"), ("method", "operations")))
    )


def parse(texts: Sequence[str]) -> list[Override]:
    """Read overrides: `key=value` and `++key=value` set, `~key` goes back to the default.

    Args:
        texts: as typed, values in Hydra's grammar: numbers, true, null, [lists], {a: b}, 'quoted strings'; or in JSON.

    Raises:
        ConfigError: where one cannot be read, or stands for several values.
    """
    if not texts:  # reading the grammar takes a tenth of a second
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for text in texts:
        try:
            override = parser.parse_override(without_json(text))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"cannot read the override {text!r}: {reason}. "
                "Write key=value, and quote a value with special characters: 'key=\"a, b\"'."
            ) from None
        path = tuple(override.key_or_group.replace("/", ".").split("."))
        if override.package is not None or "" in path:
            raise ConfigError(f"cannot read the override {text!r}: {text.split('=')[0]!r} is no key. Write key=value.")
        if override.is_sweep_override():
            raise ConfigError(
                f"{dotted(path)}: {text.partition('=')[2]!r} stands for several values, and one run has one. "
                "Write one value, or a list in brackets: [1, 2]."
            )
        delete = override.is_delete()
        value = None if delete and "=" not in text else override.value()
        parsed.append(Override(text, path, value, delete, not delete and text.startswith("+")))
    return parsed


def apply(config: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """A copy of a completed `config` with `overrides` applied; what chooses a block goes first, in any order typed.

    A new name drops the parameters of the old one. Where only one of `epochs` and `iterations` is given, the other
    becomes null; `seed` puts an end to `seeds`.

    Raises:
        ConfigError: where a path leads nowhere, with the nearest right one.
    """
    config = copy.deepcopy(config)
    for override in sorted((o for o in overrides if o.chooses), key=lambda o: len(o.block)):
        _choose(config, override)
    for override in overrides:
        if not override.chooses and not override.delete:
            holder, key = _locate(config, override)
            holder[key] = override.value
    deletions = [(*_locate(config, override), override) for override in overrides if override.delete]
    for holder, key, override in sorted(deletions, key=lambda d: d[1] if isinstance(d[1], int) else -1, reverse=True):
        if "=" in override.text and holder[key] != override.value:
            raise ConfigError(
                f"{dotted(override.path)}: is {shown(holder[key])}, not {shown(override.value)}, so it is not deleted. "
                f"Write ~{dotted(override.path)} to delete it whatever it is."
            )
        del holder[key]
    typed = {override.path for override in overrides if not override.delete}
    trainer = config.get("trainer")
    if isinstance(trainer, dict):
        settle_length(trainer, {path[1] for path in typed if len(path) == 2 and path[0] == "trainer"})
    if ("seed",) in typed and ("seeds",) not in typed:
        config["seeds"] = None
    return config


def _choose(config: dict[str, Any], override: Override) -> None:
    """Set a whole block, or give it another name and so the defaults of that name."""
    by_name = override.path[-1] == "name" or isinstance(override.value, str)
    if override.path == ("method", "operations"):
        config["method"] = {"operations": override.value}
        return
    if len(override.block) == 0:
        config["name"] = override.value
        return
    holder, key = _locate(config, override, override.block)
    if not by_name:
        holder[key] = override.value
        return
    old = holder.get(key) if isinstance(holder, dict) else holder[key]
    old_name = old.get("name") if isinstance(old, dict) else old
    if old_name is None and isinstance(old, dict) and override.block[:2] == ("method", "operations"):
        old_name = operation_name(str(key))
    if old_name == override.value:
        return
    new: dict[str, Any] = {"name": override.value}
    if override.block == ("stream",) and takes_dataset(override.value):
        kept = old.get("dataset") if isinstance(old, dict) else None
        new["dataset"] = kept or default()["stream"]["dataset"]
    holder[key] = new


def _locate(config: dict[str, Any], override: Override, path: tuple[str, ...] | None = None) -> tuple[Any, Any]:
    """The container of what `path` names and its key there, an index in a list."""
    path = path or override.path
    here: Any = config
    for depth, part in enumerate(path[:-1]):
        key = _key(here, part, path[:depth], override)
        below = here.get(key) if isinstance(here, dict) else here[key]
        if isinstance(below, str) and is_block(path[: depth + 1]):
            below = here[key] = {"name": below}
        elif below is None:
            below = here[key] = {}
        if not isinstance(below, (dict, list)):
            where = dotted(path[: depth + 1])
            raise ConfigError(
                f"{dotted(path)}: {where} is {shown(below)} and has no parts. Write {where}=... to change it."
            )
        here = below
    return here, _key(here, path[-1], path[:-1], override)


def _key(here: Any, part: str, path: tuple[str, ...], override: Override) -> Any:
    """`part` as a key of `here`; in a list, the position of the element with that number or name."""
    where = dotted((*path, part))
    if isinstance(here, dict):
        operations = path == ("method", "operations") and not override.force
        if part not in here and (override.delete or operations):
            near = nearest(part, here)
            advice = f"did you mean {near!r}?" if near else f"there are {', '.join(here) or 'none'}."
            more = f" Write ++{where}=... to add it." if operations and not override.delete else ""
            raise ConfigError(f"{where}: there is no {part!r} in {dotted(path) or 'the configuration'}; {advice}{more}")
        return part
    if part.isdigit():
        if int(part) < len(here):
            return int(part)
        raise ConfigError(f"{where}: {dotted(path)} has {len(here)} elements, numbered from 0. Choose one of them.")
    names = element_names(here)
    if part in names:
        return names.index(part)
    near = nearest(part, names)
    named = [name for name in names if name]
    advice = (
        f"did you mean {near!r}?"
        if near
        else f"its elements are {', '.join(named)}."
        if named
        else "number its elements from 0."
    )
    raise ConfigError(f"{where}: there is no {part!r} in {dotted(path)}; {advice}")


def element_names(elements: list[Any]) -> list[str]:
    """The name of each block in a list; a second `replay` is `replay_2`, a plain value has none."""
    counts: dict[str, int] = {}
    names = []
    for element in elements:
        name = element.get("name") if isinstance(element, dict) else element if isinstance(element, str) else None
        if not isinstance(name, str):
            names.append("")
            continue
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return names


def experiments() -> dict[str, str]:
    """The experiments that come with Holdfast, each with what its file says of it at the top."""
    library, summaries = Library(), {}
    for name in library.choices("experiment"):
        lines = library.need("experiment", name).path.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
        summaries[name] = comment or f"experiment={name}"
    return summaries
