"""How other projects write a job, for `compose`: CLMixer's files, and Lightning's and Arena's names of flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.compat import arena_keys, clmixer, clmixer_space, flags
from holdfast.compat.clmixer_values import changed
from holdfast.config.read import Dialect


class CLMixer(Dialect):
    """CLMixer's JSON files, as they are."""

    name = "CLMixer"

    def recognised(self, content: Mapping[str, Any]) -> bool:
        """Whether a file has a key that only CLMixer has."""
        return clmixer.recognised(content)

    def owns(self, path: Sequence[str]) -> bool:
        """Whether a change is one of a CLMixer file: `data.data_path`, `plugins.FinetuneOperation.cls_budget`."""
        return clmixer.owns(path)

    def convert(
        self, content: Mapping[str, Any], changes: Mapping[tuple[str, ...], Any], source: str
    ) -> tuple[dict[str, Any], list[str]]:
        """The job that a file with changes of its own keys means, and what is done differently."""
        return clmixer.convert(changed(content, changes), source)

    def space(
        self, content: Mapping[str, Any], changes: Mapping[tuple[str, ...], Any], source: str
    ) -> tuple[dict[str, Any], list[str]]:
        """The space that the file's lists of values and plugins span."""
        return clmixer_space.space(changed(content, changes), source)


class Lightning(Dialect):
    """Flags of a trainer as Lightning and Arena call them: `trainer.max_epochs`, `trainer.accelerator`."""

    name = "Lightning"

    def translated(self, content: Mapping[str, Any], package: tuple[str, ...]) -> dict[str, Any]:
        """A part of a job with these flags under our names."""
        return flags.translated(content if package else arena_keys.translated(content), package)

    def change(self, path: tuple[str, ...], value: Any) -> dict[tuple[str, ...], Any] | None:
        """What a change of a flag, or of another key of Arena's, changes here."""
        if len(path) == 2 and path[0] == "trainer":
            return flags.flag(path[1], value)
        return arena_keys.change(path, value)


DIALECTS: tuple[Dialect, ...] = (CLMixer(), Lightning())
"""Every other project's way to write a job that the command line understands."""
