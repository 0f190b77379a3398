"""The calls: what is checked, made ready for the checks of its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.core.source import Source
from holdfast.metrics import Metric
from holdfast.operations import Remember
from holdfast.testing import construction, toys
from holdfast.testing.capture import CAPTURE_CHECKS
from holdfast.testing.checking import METRIC_CHECKS, arguments_of, run_checks
from holdfast.testing.construction import MethodSubject, OperationSubject
from holdfast.testing.kinds import KIND_CHECKS, beside_others
from holdfast.testing.sources import BOUNDARY_CHECKS, SOURCE_CHECKS, BoundarySubject, SourceSubject
from holdfast.testing.streams import STREAM_CHECKS, StreamSubject
from holdfast.testing.training import TRAINING_CHECKS
from holdfast.testing.ways import WAYS_CHECKS

__all__ = ["BOUNDARY_CHECKS", "METHOD_CHECKS", "METRIC_CHECKS", "OPERATION_CHECKS", "SOURCE_CHECKS", "STREAM_CHECKS"]

TRAINED: dict[str, Callable[[MethodSubject], None]] = {
    **TRAINING_CHECKS,
    **CAPTURE_CHECKS,
    **WAYS_CHECKS,
    **KIND_CHECKS,
}
"""The checks that train with a method, or with a method of an operation alone."""

METHOD_CHECKS: dict[str, Callable[[MethodSubject], None]] = {**construction.METHOD_CHECKS, **TRAINED}
"""What `check_method` checks, by name."""


def _trained(check: Callable[[MethodSubject], None]) -> Callable[[OperationSubject], None]:
    """A check of a method as one of an operation: of a method of it alone, or with the memory it draws from."""

    def of_operation(subject: OperationSubject) -> None:
        check(alone(subject))

    of_operation.__doc__ = check.__doc__
    return of_operation


OPERATION_CHECKS: dict[str, Callable[[OperationSubject], None]] = {
    **construction.OPERATION_CHECKS,
    **{name: _trained(check) for name, check in TRAINED.items()},
    "beside": beside_others,
}
"""What `check_operation` checks, by name."""


def alone(subject: OperationSubject) -> MethodSubject:
    """A method of an operation, of those it stands beside, and of a memory if it draws from one."""

    def of(before: bool, after: bool) -> Callable[[], Method]:
        def make() -> Method:
            beside = [operation.clone() for operation in subject.beside]
            first, last = ([Remember(capacity=20)] if wanted else [] for wanted in (before, after))
            return Method(*first, subject.make(), *beside, *last)

        return make

    ways = [of(False, False), of(False, True), of(True, False)]
    chosen = next((make for make in ways if works(make, subject)), ways[0])  # if there is none, the checks say why
    return MethodSubject(subject.kind.__name__, chosen, None, subject.stream, subject.model)


def works(make: Callable[[], Method], subject: OperationSubject) -> bool:
    """Whether a method is not refused when it is trained with for a step an experience."""
    try:
        method = make()
        stream = subject.stream(toys.paradigm_for(method))
        head = "task" if stream.paradigm == "task" else "fixed"
        toys.train(method, subject.model(stream, head), stream, iterations=1)
    except ConfigError:
        return False
    except Exception:
        return True  # it is broken, which the checks tell better
    return True


def check_operation(
    kind: type[Operation],
    *beside: Operation,
    stream: Callable[..., Stream] = toys.small,
    model: Callable[..., nn.Module] = toys.model,
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    **arguments: Any,
) -> dict[str, str]:
    """Check that an operation keeps the promises of an operation: `OPERATION_CHECKS` says which.

    Args:
        kind: the class, not an object of it.
        *beside: operations that it cannot do without; a memory is added by itself.
        stream: what to train on: `stream(paradigm)` makes a stream of the paradigm `class` or `task`.
        model: what to train: `model(stream, head)` makes a model with a `fixed`, `growing` or `task` head.
        only: names of checks; default: all.
        skip: names of checks to leave out.
        **arguments: to make it with, beside those in its `check_arguments`.

    Returns:
        For each check `passed`, or why it does not apply.

    Raises:
        CheckError: with every check that failed, what it saw, and where to look.

    Example:
        >>> from holdfast.operations import AnchorPenalty
        >>> check_operation(AnchorPenalty, strength=0.5, only=["clone", "json"])
        {'clone': 'passed', 'json': 'passed'}
    """
    model = toys.model_for((kind, *beside)) if model is toys.model else model
    subject = OperationSubject(kind, arguments_of(kind, arguments), beside, stream, model)
    return run_checks(f"`{kind.__name__}`", subject, OPERATION_CHECKS, only, skip)


def check_method(
    method: Method | Callable[..., Method],
    *,
    stream: Callable[..., Stream] = toys.small,
    model: Callable[..., nn.Module] = toys.model,
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    **arguments: Any,
) -> dict[str, str]:
    """Check that a method keeps the promises of a method: `METHOD_CHECKS` says which.

    Args:
        method: the function that makes it, or a method, of which clones are checked.
        stream: what to train on: `stream(paradigm)` makes a stream of the paradigm `class` or `task`.
        model: what to train: `model(stream, head)` makes a model with a `fixed`, `growing` or `task` head.
        only: names of checks; default: all.
        skip: names of checks to leave out.
        **arguments: of the function, beside those in its `check_arguments`.

    Returns:
        For each check `passed`, or why it does not apply.

    Raises:
        CheckError: with every check that failed, what it saw, and where to look.

    Example:
        >>> from holdfast.methods import er
        >>> check_method(er, capacity=50, only=["resume"])
        {'resume': 'passed'}
    """
    if isinstance(method, Method):
        model = toys.model_for(method) if model is toys.model else model
        subject = MethodSubject(method.name, method.clone, None, stream, model)
    else:
        keywords = arguments_of(method, arguments)
        model = toys.model_for(method(**keywords)) if model is toys.model else model
        name = getattr(method, "__name__", "method")
        subject = MethodSubject(name, lambda: method(**keywords), method, stream, model)
    return run_checks(f"`{subject.name}`", subject, METHOD_CHECKS, only, skip)


def check_stream(
    stream: Callable[..., Stream], *, only: Iterable[str] | None = None, skip: Iterable[str] = (), **arguments: Any
) -> dict[str, str]:
    """Check that a stream keeps the promises of a stream: `STREAM_CHECKS` says which.

    Args:
        stream: the function that makes it. If its first parameter is called `dataset` and not given, it gets a small
            data set of vectors.
        only: names of checks; default: all.
        skip: names of checks to leave out.
        **arguments: of the function, beside those in its `check_arguments`.

    Returns:
        For each check `passed`, or why it does not apply.

    Raises:
        CheckError: with every check that failed, what it saw, and where to look.
    """
    subject = StreamSubject(stream, arguments_of(stream, arguments))
    return run_checks(f"`{subject.name}`", subject, STREAM_CHECKS, only, skip)


def check_metric(metric: Metric, *, only: Iterable[str] | None = None, skip: Iterable[str] = ()) -> dict[str, str]:
    """Check that a metric keeps the promises of a metric: `METRIC_CHECKS` says which.

    Args:
        metric: its function, its good direction and what it says in one line.
        only: names of checks; default: all.
        skip: names of checks to leave out.

    Returns:
        For each check `passed`, or why it does not apply.

    Raises:
        CheckError: with every check that failed, what it saw, and where to look.
    """
    name = getattr(getattr(metric, "function", metric), "__name__", "metric")
    return run_checks(f"`{name}`", metric, METRIC_CHECKS, only, skip)


def check_boundary(
    kind: Callable[..., Boundary], *, only: Iterable[str] | None = None, skip: Iterable[str] = (), **arguments: Any
) -> dict[str, str]:
    """Check that a boundary keeps the promises of a boundary: `BOUNDARY_CHECKS` says which.

    Args:
        kind: the class, not an object of it.
        only: names of checks; default: all.
        skip: names of checks to leave out.
        **arguments: to make it with, beside those in its `check_arguments`.

    Returns:
        For each check `passed`, or why it does not apply.

    Raises:
        CheckError: with every check that failed, what it saw, and where to look.

    Example:
        >>> from holdfast import Every
        >>> check_boundary(Every, steps=5, only=["state"])
        {'state': 'passed'}
    """
    subject = BoundarySubject(kind, arguments_of(kind, arguments))
    return run_checks(f"`{subject.name}`", subject, BOUNDARY_CHECKS, only, skip)


def check_source(
    kind: Callable[..., Source], *, only: Iterable[str] | None = None, skip: Iterable[str] = (), **arguments: Any
) -> dict[str, str]:
    """Check that a source keeps the promises of a source: `SOURCE_CHECKS` says which.

    Args:
        kind: the class, or a function that makes one; it is made again for each check.
        only: names of checks; default: all.
        skip: names of checks to leave out.
        **arguments: to make it with, beside those in its `check_arguments`.

    Returns:
        For each check `passed`, or why it does not apply.

    Raises:
        CheckError: with every check that failed, what it saw, and where to look.

    Example:
        >>> import torch
        >>> from holdfast.core.source import Arrays
        >>> check_source(Arrays, inputs=torch.zeros(9, 2), targets=torch.arange(9), batch_size=2, only=["seeks"])
        {'seeks': 'passed'}
    """
    subject = SourceSubject(kind, arguments_of(kind, arguments))
    return run_checks(f"`{subject.name}`", subject, SOURCE_CHECKS, only, skip)
