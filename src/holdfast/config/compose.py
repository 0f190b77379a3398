"""From files, groups and changes on the command line to one configuration, and where each of its values came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.config.defaults import completed, default
from holdfast.config.files import read
from holdfast.config.groups import GroupFile, Library
from holdfast.config.layers import Dialect, Origins, Reader, note, put
from holdfast.config.overrides import Override, apply, element_names, is_block, parse
from holdfast.config.search import Search, made
from holdfast.core.errors import ConfigError

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
    rest = [one for i, one in enumerate(parsed) if i not in chosen and not _empty(library, one) and i not in owners]
    changes = [change for one in rest for change in _translated(one, dialects)]
    config = apply(completed(config), changes)
    for change in changes:
        if change.chooses:
            note(origins, change.block, change.value if isinstance(change.value, Mapping) else {"name": 0}, TYPED)
        elif not change.delete:
            note(origins, _numbered(config, change.path), change.value, TYPED)
    return Composition(config, origins, notes, made(reader.search))


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


def origin(composition: Composition, resolved: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Where the value at `path` of a resolved configuration came from.

    Args:
        composition: what was resolved.
        resolved: of `resolve`.
        path: of a value without parts.
    """
    for length in range(len(path), 0, -1):
        if path[:length] in composition.origins:
            return composition.origins[path[:length]]
    block: Any = resolved
    owner = ""
    for part in path[:-1]:
        block = block[int(part)] if isinstance(block, list) else block[part]
        if isinstance(block, Mapping) and isinstance(block.get("name"), str):
            owner = block["name"]
    if path[-1] == "name" and len(path) > 1:
        above = [known for known in composition.origins if known[: len(path) - 1] == path[:-1]]
        return composition.origins[above[0]] if above else DEFAULT
    return f"default of {owner}" if owner else "default"
