"""From files, groups and changes on the command line to one configuration, and where each of its values came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.config.overrides import GroupFile, Library, Override, apply, element_names, is_block, nested, parse
from holdfast.config.read import CHOSEN, Dialect, completed, default, merged, read, settle_length
from holdfast.config.search import HYDRA, SWEEP, Search, made, split_off
from holdfast.config.words import shown
from holdfast.core.errors import ConfigError

Key = tuple[str, ...]
Origins = dict[Key, str]


@dataclass(frozen=True)
class Layer:
    """What one source says of a job.

    Attributes:
        content: part of a job.
        source: a file, a group's choice, or the command line.
    """

    content: dict[str, Any]
    source: str


def leaves(value: Any, path: Key = ()) -> Iterator[Key]:
    """The path of everything in `value` that has no parts."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    below = [leaf for key, part in items for leaf in leaves(part, (*path, str(key)))]
    yield from below or [path]


def note(origins: Origins, path: Key, value: Any, source: str) -> None:
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
    block, trainer = layer.content.get("trainer"), result.get("trainer")
    if isinstance(block, dict) and isinstance(trainer, dict) and "epochs" in trainer and "iterations" in trainer:
        settle_length(trainer, set(block))
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

    def layers(self, content: dict[str, Any], source: str, group: str = "", package: Key = ()) -> list[Layer]:
        """The layers of one file's content, in the order of its defaults list; the file itself comes last.

        Raises:
            ConfigError: for a defaults list that names something unknown, or itself.
        """
        if source in self._open:
            raise ConfigError(f"defaults: {' -> '.join([*self._open, source])} goes in a circle. Take one out.")
        self._open.append(source)
        content, search = split_off(content, source) if not package else (content, {})
        changes = {key: value for key, value in content.items() if key not in ("defaults", "$schema")}
        try:
            body = changes
            for dialect in self.dialects:
                body = dialect.translated(body, package)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        layer = Layer(nested(package, body), source)
        entries = content.get("defaults", [])
        if not isinstance(entries, list):
            raise ConfigError(f"{source}: defaults is {shown(entries)}. Write a list: [{{trainer: cpu}}, _self_].")
        layers: list[Layer] = []
        for entry in entries:
            layers += [layer] if entry == "_self_" else self._entry(entry, source, group)
        if "_self_" not in entries and body:
            layers.append(layer)
        self.search |= (
            {**search, "params": {**self.search.get("params", {}), **search["params"]}}
            if "params" in search
            else search
        )
        self._open.pop()
        return layers

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


WHOLE = "experiment"
"""The group whose choices are jobs: they take the place of the default job."""

LAST = ("debug",)
"""Groups whose choice goes on top of every other, wherever it was typed."""

TYPED = "command line"
DEFAULT = "default job"


@dataclass(frozen=True)
class Composition:
    """A composed configuration.

    Attributes:
        config: completed by the default job, not yet checked.
        origins: path -> source of the value there; what is missing is a default of its callable.
        notes: what was translated, in sentences.
        search: what the files say of a sweep, if anything.
    """

    config: dict[str, Any]
    origins: Origins
    notes: list[str] = field(default_factory=list)
    search: Search | None = None


def compose(
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    folders: Sequence[Path | str] = (),
    dialects: Sequence[Dialect] = (),
) -> Composition:
    """Put a job together: default job, then file or experiment, then other groups, then `debug`, then single changes.

    Args:
        path: a JSON or YAML file, ours or one of `dialects`; None for the default job.
        overrides: `key=value`, `group=choice`, `~key`, as on the command line.
        folders: the user's own folders of groups.
        dialects: other projects' ways to write a job that are understood too.

    Raises:
        ConfigError: where a file, a group or a change cannot be read.
    """
    library = Library(folders)
    parsed = parse(overrides)
    owners = {i: dialect for i, one in enumerate(parsed) for dialect in dialects if dialect.owns(one.path)}
    chosen = {position: files for position, one in enumerate(parsed) if (files := _files(library, one))}
    reader = Reader(library, {files[0].group: files[0].name for files in chosen.values()}, dialects)
    origins: Origins = {}
    notes: list[str] = []
    whole: list[Any] = []
    if path is not None:
        content = read(path)
        for dialect in dialects:
            if dialect.recognised(content):
                foreign = {parsed[i].path: parsed[i].value for i, owner in owners.items() if owner is dialect}
                content, notes = dialect.convert(content, foreign, str(path))
                break
        whole += reader.layers(content, str(path))
    if owners and not notes:
        first = min(owners)
        raise ConfigError(
            f"{parsed[first].text!r} is a key of {owners[first].name}'s files, and none is given. Name the file first."
        )
    later: list[GroupFile] = []
    for files in chosen.values():
        for file in files:
            if file.group == WHOLE:
                whole += reader.choice(file)
            elif file.group not in reader.used:
                later.append(file)
    config: dict[str, Any] = {}
    note(origins, (), default(), DEFAULT)
    if path is None and not whole:
        config = default()
    else:
        origins.pop(("references",), None)
        for old in [old for old in origins if old[0] == "references"]:
            del origins[old]
        for layer in whole:
            config = put(config, layer, origins)
        config = completed(config)
    for file in sorted(later, key=lambda one: one.group in LAST):
        for layer in reader.choice(file):
            config = put(config, layer, origins)
    sweeps = [one for one in parsed if _of_sweep(one.path)]
    for one in sweeps:
        search_keys = split_off(nested(one.path, one.value), TYPED)[1]  # type: ignore[arg-type]
        params = {**reader.search.get("params", {}), **search_keys.pop("params", {})}
        reader.search |= {**search_keys, "params": params}
    rest = [one for i, one in enumerate(parsed) if i not in chosen and not _empty(library, one) and i not in owners]
    rest = [one for one in rest if one not in sweeps]
    changes = [change for one in rest for change in _translated(one, dialects)]
    config = apply(completed(config), changes)
    if config.get("source") is not None:
        config = _without_a_stream(config, origins, changes)
    for change in changes:
        if change.chooses:
            note(origins, change.block, change.value if isinstance(change.value, Mapping) else {"name": 0}, TYPED)
        elif not change.delete:
            note(origins, _numbered(config, change.path), change.value, TYPED)
    return Composition(config, origins, notes, made(reader.search))


def _of_sweep(path: Sequence[str]) -> bool:
    """Whether a change is about the sweep and not the job: `sweep.trials`, `hydra.sweeper.n_trials`."""
    return len(path) > 1 and (path[0] == SWEEP or tuple(path[:2]) == (HYDRA, "sweeper"))


def _without_a_stream(config: dict[str, Any], origins: Origins, changes: Sequence[Override]) -> dict[str, Any]:
    """A job of a source without what the default job says of experiences, unless somebody else said it."""
    typed = {change.path for change in changes}
    chosen = {path[:2] for path, source in origins.items() if source != DEFAULT} | {path[:2] for path in typed}
    kept = dict(config)
    for key in ("stream", "references"):
        if not any(path[0] == key for path in chosen):
            kept.pop(key, None)
            for path in [path for path in origins if path[0] == key]:
                del origins[path]
    if ("trainer", "epochs") not in chosen and isinstance(kept.get("trainer"), dict):
        kept["trainer"] = {key: value for key, value in kept["trainer"].items() if key != "epochs"}
        origins.pop(("trainer", "epochs"), None)
    return completed(kept)


def load(
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    folders: Sequence[Path | str] = (),
    dialects: Sequence[Dialect] = (),
) -> dict[str, Any]:
    """What `compose` puts together, without where it came from: completed by the default job, not yet checked.

    Args:
        path: a JSON or YAML file; None for the default job with its references.
        overrides: `key=value`, `group=choice`, `~key`, as on the command line.
        folders: the user's own folders of config groups.
        dialects: other projects' ways to write a job that are understood too.

    Raises:
        ConfigError: where the file or an override cannot be read.
    """
    return compose(path, overrides, folders, dialects).config


def _files(library: Library, override: Override) -> list[GroupFile]:
    """The files that an override chooses, if it chooses from a group and not a name."""
    group = "/".join(override.path)
    if override.delete or group not in library.groups() or override.value is None:
        return []
    values = override.value if isinstance(override.value, list) else [override.value]
    if not all(isinstance(value, str) for value in values):
        return []
    if is_block(override.path) and library.find(group, str(values[0])) is None:
        return []
    return [library.need(group, value) for value in values]


def _empty(library: Library, override: Override) -> bool:
    """Whether it says that a group of whole jobs is not used: `experiment=null`, `~debug`."""
    group = "/".join(override.path)
    return override.value is None and override.path[0] in ("experiment", "debug") and group in library.groups()


def _translated(override: Override, dialects: Sequence[Dialect]) -> list[Override]:
    """An override, with another project's key under our names."""
    for dialect in dialects:
        changes = dialect.change(override.path, override.value)
        if changes is not None:
            return [replace(override, path=path, value=value) for path, value in changes.items()]
    return [override]


def _numbered(config: dict[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    """A path whose operations are named, with their positions instead."""
    method = config.get("method")
    operations = method.get("operations") if isinstance(method, dict) else None
    if path[:2] == ("method", "operations") and len(path) > 2 and operations:
        names = element_names(operations) if isinstance(operations, list) else list(operations)
        if path[2] in names:
            return (*path[:2], str(names.index(path[2])), *path[3:])
    return path
