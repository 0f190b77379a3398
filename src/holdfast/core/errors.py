"""The few errors Holdfast raises on purpose, and the helper that names the nearest right word."""

from __future__ import annotations

import difflib
import warnings
import zipfile
import zlib
from collections.abc import Iterable

DAMAGED_ARRAYS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for a file of arrays that is cut off, damaged, of another kind, or without an array."""


class HoldfastError(Exception):
    """Base of every error that Holdfast raises on purpose; the command line prints it without a traceback."""


class NeedError(HoldfastError):
    """A method needs something that the loop it was put into cannot offer."""


class ConfigError(HoldfastError):
    """A configuration, or an argument of a constructor, has a wrong key, name or value."""


class DataError(HoldfastError):
    """Data on disk or in memory is not what was announced."""


class UsageError(HoldfastError):
    """The calls of a user's own loop come in an order, or with values, that cannot be right."""


class Diverged(HoldfastError):  # noqa: N818
    """A loss or a weight is not finite, or a loss a thousand times its start, and training was stopped for it."""


class Interrupted(HoldfastError):  # noqa: N818
    """Training was asked to stop and did, after saving a checkpoint if it had where to."""


def unknown(kind: str, name: object, known: Iterable[str], hint: str = "") -> str:
    """The sentence for an unknown name, with the nearest right one.

    Args:
        kind: what was looked for, in the singular (`"operation"`).
        name: the value seen.
        known: every right name.
        hint: a closing sentence, for instance the command that lists them all.

    Returns:
        A message of one or two sentences.

    Example:
        >>> unknown("operation", "replai", ["replay", "distillation"])
        "unknown operation 'replai'; did you mean 'replay'?"
    """
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    text = f"unknown {kind} {name!r}; "
    if near:
        text += f"did you mean {near[0]!r}?"
    else:
        text += (
            f"choose one of {', '.join(choices)}."
            if len(choices) <= 24
            else f"there are {len(choices)} to choose from."
        )
    return f"{text} {hint}".rstrip()


def needs_extra(what: str, package: str, extra: str) -> ImportError:
    """The error for an optional library that is not installed, naming the extra that brings it."""
    return ImportError(f"{what} needs {package}, which is not installed; run `pip install 'holdfast[{extra}]'`.")


def renamed(old: str, new: str) -> None:
    """Say that a name still works and what it is called now; the caller's caller is the one who wrote it.

    Args:
        old: as it was written.
        new: what to write from the next release on.
    """
    warnings.warn(f"`{old}` is called `{new}` now; the old name works until the next release.", DeprecationWarning, 3)
