"""How checks are run and how what fails is told: one error with a sentence for each check that did not hold."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from holdfast.core.errors import ConfigError, HoldfastError, unknown

S = TypeVar("S")
Checks = Mapping[str, Callable[[S], None]]
"""The checks of one kind of thing, by name; the first line of a check's docstring says what must hold."""

OURS = (str(Path(__file__).resolve().parents[1]),)
"""Folders whose code is not the user's."""


class CheckError(HoldfastError, AssertionError):
    """What was checked does not keep the promises of its kind.

    Attributes:
        failures: the name of each check that failed, and what it saw.
    """

    def __init__(self, message: str, failures: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.failures = dict(failures or {})


class DoesNotApply(Exception):  # noqa: N818
    """A check that has nothing to say of what is checked; the reason stands in the result."""


def expect(condition: object, sentence: str) -> None:
    """Fail the check that runs, unless `condition` holds.

    Args:
        condition: what must be true.
        sentence: what was seen instead, and where to look.

    Raises:
        CheckError: if it does not hold.
    """
    if not condition:
        raise CheckError(sentence)


def run_checks(
    what: str, subject: S, checks: Checks[S], only: Iterable[str] | None = None, skip: Iterable[str] = ()
) -> dict[str, str]:
    """Run every check, and raise one error that tells all that failed.

    Args:
        what: what is checked, as a message calls it.
        subject: what the checks are given.
        checks: name -> check.
        only: the names of those to run; default: all.
        skip: the names of those to leave out.

    Returns:
        For each check that ran `passed`, or why it does not apply.

    Raises:
        CheckError: with every check that failed, what it saw, and where.
        ConfigError: if there is no check of a name in `only` or `skip`.
    """
    left_out = set(skip)
    for name in {*left_out, *(only or ())}:
        if name not in checks:
            raise ConfigError(unknown("check", name, checks))
    results: dict[str, str] = {}
    failures: dict[str, str] = {}
    for name, check in checks.items():
        if name in left_out or (only is not None and name not in set(only)):
            continue
        try:
            check(subject)
        except DoesNotApply as reason:
            results[name] = f"does not apply: {reason}"
        except Exception as error:
            failures[name] = told(error)
        else:
            results[name] = "passed"
    if failures:
        ran = len(results) + len(failures)
        lines = [f"  {name} ({about(checks[name])}): {sentence}" for name, sentence in failures.items()]
        raise CheckError(f"{what} fails {len(failures)} of {ran} checks.\n" + "\n".join(lines), failures)
    return results


def about(check: Callable[..., None]) -> str:
    """What must hold, in the words of a check's docstring."""
    line = (inspect.getdoc(check) or "").split("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def told(error: Exception) -> str:
    """What a check saw: its sentence, or the error that came up and the line of the user's code where it did."""
    if isinstance(error, CheckError):
        return str(error)
    if isinstance(error, HoldfastError):
        return f"{error}{where(error.__traceback__, theirs=True)}"
    return f"it raised {type(error).__name__}: {error}{where(error.__traceback__)}"


def where(trace: TracebackType | None, theirs: bool = False) -> str:
    """The last line of a traceback that is the user's code; else, unless only theirs will do, the last one."""
    frames = list(traceback.extract_tb(trace))
    users = [one for one in frames if not one.filename.startswith(OURS) and "site-packages" not in one.filename]
    last = (users or ([] if theirs else frames))[-1:]
    if not last:
        return ""
    line = linecache.getline(last[0].filename, last[0].lineno or 0).strip()
    return f" (at {last[0].filename}:{last[0].lineno}" + (f", `{line}`)" if line else ")")


def arguments_of(value: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments to check something with: those it names itself in `check_arguments`, then those given."""
    return {**getattr(value, "check_arguments", {}), **arguments}
