"""Every method and every operation that Holdfast exports, found by looking; new ones are covered without new tests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import holdfast.methods
import holdfast.operations
from holdfast.core.errors import ConfigError
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.operations import Remember
from holdfast.testing import METHOD_CHECKS, OPERATION_CHECKS
from holdfast.testing.subjects import TRAINED
from holdfast.testing.toys import model as any_model
from holdfast.testing.toys import model_for

SLOW = {"ways", "ways_growing", "ways_task", "optimizers", "beside"}
SLOW |= {"resume", "accumulate", "half", "double", "channels_last", "random", "targets", "heads"}
"""Checks that are left to the slow tests, except for one method of each kind and a few operations.

The digests train every method in the ways of `ways`, with every head, resumed and on accumulated batches, and hold each
to the same record; the others take long, or look less at an operation's arithmetic than at what all share.
"""

BASIC = ("der_plus_plus", "ewc_online", "si", "lwf", "agem")
"""One method of each kind, which every check is run on."""

LENGTHY, FOR_LENGTHY = {"graph", "captured"}, ("der_plus_plus", "si")
"""Checks of hundreds of steps, and the methods that have them in the fast tests: with a memory, and without one."""

NEVER_FAST = {"stacked", "lightning"}
"""Checks of the slow tests alone: Lightning's import takes as long as all that is checked with it."""

BASIC_OPERATIONS = ("Replay", "Distillation", "GradientProjection", "Evidential")
"""Operations that are trained beside others in the fast tests too: of a memory, a teacher, a gradient, a loss."""

OTHER_KINDS = ("hat", "icarl")
"""Masks and exemplars, for the tests that are marked `basic`: they are slow for all but `BASIC` and these."""


def made_operation(name: str) -> Operation:
    """An operation with as few arguments given as it takes."""
    kind = getattr(holdfast.operations, name)
    try:
        return kind()
    except (ConfigError, TypeError):
        return kind(**kind.check_arguments)


def made_alone(name: str) -> Method:
    """A method of this operation, and of the memory it may draw from."""
    operation = made_operation(name)
    return Method(operation) if isinstance(operation, Remember) else Method(operation, Remember(capacity=20))


def operations() -> list[str]:
    exported = {name: getattr(holdfast.operations, name) for name in holdfast.operations.__all__}
    return [name for name, value in exported.items() if isinstance(value, type) and issubclass(value, Operation)]


def methods() -> list[str]:
    return list(holdfast.methods.__all__)


@functools.cache
def alone() -> list[str]:
    """The operations that are part of no method."""
    within = {type(operation) for name in methods() for operation in getattr(holdfast.methods, name)()}
    return [name for name in operations() if getattr(holdfast.operations, name) not in within]


def subjects(basic: bool = False) -> list[Any]:
    """Every method, and every operation that is part of none, on its own; as factories.

    Args:
        basic: whether all but one method of each kind are marked slow.
    """

    def marks(name: str) -> Any:
        return pytest.mark.slow if basic and name not in BASIC + OTHER_KINDS else ()

    def of_method(name: str) -> Callable[[], Method]:
        return lambda: getattr(holdfast.methods, name)()

    def of_operation(name: str) -> Callable[[], Method]:
        return lambda: made_alone(name)

    return [pytest.param(of_method(name), id=name, marks=marks(name)) for name in methods()] + [
        pytest.param(of_operation(name), id=name, marks=marks(name)) for name in alone()
    ]


def checks(names: list[str], of: dict[str, Any], slow: bool = False) -> list[Any]:
    """Each thing with all of its fast checks at once, and with each slow one."""
    every_check, marks = BASIC + BASIC_OPERATIONS, pytest.mark.slow

    def is_slow(name: str, check: str) -> bool:
        if check in LENGTHY:
            return name not in FOR_LENGTHY
        return slow or check in NEVER_FAST or (check in SLOW and name not in every_check)

    fast = {name: [check for check in of if not slow and not is_slow(name, check)] for name in names}
    return [pytest.param(name, among, id=name) for name, among in fast.items() if among] + [
        pytest.param(name, [check], id=f"{name}-{check}", marks=marks)
        for name in names
        for check in of
        if check not in fast[name]
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    basic = metafunc.definition.get_closest_marker("basic") is not None
    if "operation_name" in metafunc.fixturenames:
        metafunc.parametrize("operation_name", operations())
    if {"method", "among"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("method", "among"), checks(methods(), METHOD_CHECKS))
    elif "method_name" in metafunc.fixturenames:
        metafunc.parametrize(
            "method_name",
            [
                pytest.param(name, marks=pytest.mark.slow if basic and name not in BASIC + OTHER_KINDS else ())
                for name in methods()
            ],
        )
    if {"operation", "among"} <= set(metafunc.fixturenames):
        untrained = {name: check for name, check in OPERATION_CHECKS.items() if name not in TRAINED}
        within = [name for name in operations() if name not in alone()]
        metafunc.parametrize(
            ("operation", "among"),
            # An operation of a method is trained with as part of it; by itself it is in the slow tests.
            checks(operations(), untrained) + checks(alone(), TRAINED) + checks(within, TRAINED, slow=True),
        )
    if "make" in metafunc.fixturenames:
        metafunc.parametrize("make", subjects(basic))


@pytest.fixture
def toy(toy: Any, request: pytest.FixtureRequest) -> Any:
    """The toys, with the model that the subject's operations ask for, where they do not work with just any."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    made: Any = ()
    if "make" in params:
        made = params["make"]()
    elif "method_name" in params:
        made = getattr(holdfast.methods, params["method_name"])()
    elif "operation_name" in params:
        made = [getattr(holdfast.operations, params["operation_name"])]
    chosen = model_for(made)
    return toy if chosen is any_model else SimpleNamespace(**{**vars(toy), "model": chosen})
