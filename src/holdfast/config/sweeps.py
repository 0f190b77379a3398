"""Sweeps on the command line: changes that stand for several values, and every combination of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from holdfast.config.groups import Library
from holdfast.core.errors import ConfigError


def expand(texts: Sequence[str], folders: Sequence[Path | str] = ()) -> list[list[str]]:
    """The changes of each job of a sweep, in Hydra's grammar: commas, `range(1,4)`, `choice(a,b)`, `glob(*)`.

    Args:
        texts: as typed; those with one value are in every job.
        folders: the user's own folders of config groups, which `glob` looks through too.

    Returns:
        For each job its changes; the last change varies fastest.

    Raises:
        ConfigError: where one cannot be read, or a `glob` fits nothing.

    Example:
        >>> expand(["method=er,ewc", "seed=range(0,2)", "trainer.epochs=1"])[1]
        ['method=er', 'seed=1', 'trainer.epochs=1']
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    library = Library(folders)
    every: list[list[str]] = []
    for text in texts:
        try:
            override = parser.parse_override(text)
            if not override.is_sweep_override():
                every.append([text])
                continue
            key = text.split("=", 1)[0]
            value = override.value()
            if isinstance(value, Glob):
                group = override.key_or_group.replace(".", "/")
                names = library.matching(group, value.include, value.exclude)
                if not names:
                    raise ConfigError(f"{text}: nothing in the group {group!r} fits. It has {library.choices(group)}.")
                every.append([f"{key}={name}" for name in names])
            else:
                every.append([f"{key}={one}" for one in override.sweep_string_iterator()])
        except HydraException as error:
            raise ConfigError(f"cannot read the change {text!r}: {str(error).splitlines()[0]}.") from None
    return [list(combination) for combination in itertools.product(*every)]


def swept(texts: Sequence[str]) -> list[str]:
    """The keys that vary, in the order typed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    parsed = [parser.parse_override(text) for text in texts]
    return [override.key_or_group for override in parsed if override.is_sweep_override()]
