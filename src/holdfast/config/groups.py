"""Config groups: folders of small configurations to choose from, in the package and in the user's own folder."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.config.words import nearest
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
        found = {
            str(path.parent.relative_to(folder))
            for folder in self.folders
            for ending in ENDINGS
            for path in folder.rglob(f"*{ending}")
            if path.parent != folder
        }
        return sorted(name.replace("\\", "/") for name in found)

    def choices(self, group: str) -> list[str]:
        """The names in one group, in order."""
        found = {path.stem for folder in self.folders for path in (folder / group).glob("*") if path.suffix in ENDINGS}
        return sorted(name for name in found if not name.startswith("_"))

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
            ConfigError: where there is none, with the nearest right name.
        """
        found = self.find(group, str(name)) if isinstance(name, str) else None
        if found is not None:
            return found
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
