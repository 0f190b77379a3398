"""A job from a file and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.config.compose import compose
from holdfast.config.layers import Dialect


def load(
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    folders: Sequence[Path | str] = (),
    dialects: Sequence[Dialect] = (),
) -> dict[str, Any]:
    """The job that a file and overrides describe, completed by the default job, not yet checked.

    Args:
        path: a JSON or YAML file; None for the default job with its references.
        overrides: `key=value`, `group=choice`, `~key`, as on the command line.
        folders: the user's own folders of config groups.
        dialects: other projects' ways to write a job that are understood too.

    Raises:
        ConfigError: where the file or an override cannot be read.
    """
    return compose(path, overrides, folders, dialects).config
