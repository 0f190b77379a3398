"""Layers of a configuration: files with their defaults lists, merged in order, and where each value came from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.config.defaults import CHOSEN, settle_length
from holdfast.config.files import read
from holdfast.config.groups import GroupFile, Library, nested
from holdfast.config.search import split_off
from holdfast.config.words import shown
from holdfast.core.errors import ConfigError

Path = tuple[str, ...]
Origins = dict[Path, str]


@dataclass(frozen=True)
class Layer:
    """What one source says of a job.

    Attributes:
        content: part of a job.
        source: a file, a group's choice, or the command line.
    """

    content: dict[str, Any]
    source: str


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
        self, content: Mapping[str, Any], changes: Mapping[Path, Any], source: str
    ) -> tuple[dict[str, Any], list[str]]:
        """The job that a recognised file with `changes` of its keys means, and what is done differently."""
        return dict(content), []

    def translated(self, content: Mapping[str, Any], package: Path) -> dict[str, Any]:
        """A part of a job of ours, which goes under the keys of `package`, with this project's keys under our names."""
        return dict(content)

    def change(self, path: Path, value: Any) -> dict[Path, Any] | None:
        """What the change of one of this project's keys changes here; None where it is no key of it."""
        return None


def merged(base: Any, given: Any) -> Any:
    """`base` with `given` on top; a block that says its `name` replaces the one below, others change single keys.

    Example:
        >>> merged({"model": {"name": "mlp", "hidden": [9]}}, {"model": {"head": "task"}})
        {'model': {'name': 'mlp', 'hidden': [9], 'head': 'task'}}
        >>> merged({"model": {"name": "mlp", "hidden": [9]}}, {"model": {"name": "linear"}})
        {'model': {'name': 'linear'}}
    """
    if not isinstance(base, Mapping) or not isinstance(given, Mapping) or any(key in given for key in CHOSEN):
        return copy.deepcopy(given)
    return {**base, **{key: merged(base.get(key), value) for key, value in given.items()}}


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of everything in `value` that has no parts."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for key, part in items for leaf in leaves(part, (*path, str(key)))]
    yield from found or [path]


def note(origins: Origins, path: Path, value: Any, source: str) -> None:
    """Write down that `value` at `path` came from `source`."""
    replaces = not isinstance(value, Mapping) or any(key in value for key in CHOSEN)
    if replaces:
        for old in [old for old in origins if old[: len(path)] == path]:
            del origins[old]
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            note(origins, (*path, str(key)), part, source)
    else:
        for leaf in leaves(value, path):
            origins[leaf] = source


def put(config: dict[str, Any], layer: Layer, origins: Origins) -> dict[str, Any]:
    """`config` with a layer on top of it."""
    result: dict[str, Any] = merged(config, layer.content)
    note(origins, (), layer.content, layer.source)
    given, trainer = layer.content.get("trainer"), result.get("trainer")
    if isinstance(given, dict) and isinstance(trainer, dict) and "epochs" in trainer and "iterations" in trainer:
        settle_length(trainer, set(given))
    if "seed" in layer.content and "seeds" not in layer.content and "seeds" in result:
        result["seeds"] = None
    return result


class Reader:
    """Reads files and what their defaults lists name.

    Args:
        library: of groups.
        chosen: group -> choice typed on the command line, which goes before what a defaults list says.
        dialects: of other projects, whose keys are understood too.
    """

    def __init__(self, library: Library, chosen: Mapping[str, str], dialects: Sequence[Dialect] = ()) -> None:
        self.library = library
        self.dialects = tuple(dialects)
        self.chosen = dict(chosen)
        self.used: set[str] = set()
        self.search: dict[str, Any] = {}
        self._open: list[str] = []

    def choice(self, file: GroupFile) -> list[Layer]:
        """The layers of one choice of a group: those of its defaults list, and its own."""
        return self.layers(read(file.path), file.source, file.group, file.package)

    def layers(self, content: dict[str, Any], source: str, group: str = "", package: Path = ()) -> list[Layer]:
        """The layers of one file's content, in the order of its defaults list; the file itself comes last.

        Raises:
            ConfigError: for a defaults list that names something unknown, or itself.
        """
        if source in self._open:
            raise ConfigError(f"defaults: {' -> '.join([*self._open, source])} goes in a circle. Take one out.")
        self._open.append(source)
        content, search = split_off(content, source) if not package else (content, {})
        said = {key: value for key, value in content.items() if key not in ("defaults", "$schema")}
        try:
            body = said
            for dialect in self.dialects:
                body = dialect.translated(body, package)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        own = Layer(nested(package, body), source)
        entries = content.get("defaults", [])
        if not isinstance(entries, list):
            raise ConfigError(f"{source}: defaults is {shown(entries)}. Write a list: [{{trainer: cpu}}, _self_].")
        found: list[Layer] = []
        for entry in entries:
            found += [own] if entry == "_self_" else self._entry(entry, source, group)
        if "_self_" not in entries and body:
            found.append(own)
        self.search |= (
            {**search, "params": {**self.search.get("params", {}), **search["params"]}}
            if "params" in search
            else search
        )
        self._open.pop()
        return found

    def _entry(self, entry: Any, source: str, group: str) -> list[Layer]:
        optional = False
        if isinstance(entry, str):
            return self.choice(self.library.need(group, entry))
        if not isinstance(entry, dict) or len(entry) != 1:
            raise ConfigError(
                f"{source}: the defaults list holds {shown(entry)}. Write `group: name`, a name or _self_."
            )
        (key, name), *_ = entry.items()
        words = str(key).split()
        while words and words[0] in ("optional", "override"):
            optional |= words.pop(0) == "optional"
        wanted = words[0].lstrip("/").split("@")[0] if words else ""
        self.used.add(wanted)
        name = self.chosen.get(wanted, name)
        names = name if isinstance(name, list) else [name]
        layers: list[Layer] = []
        for one in names:
            if one is None or (optional and self.library.find(wanted, str(one)) is None):
                continue
            layers += self.choice(self.library.need(wanted, one))
        return layers
