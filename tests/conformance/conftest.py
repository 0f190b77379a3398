"""Every method and every operation that Holdfast exports, found by looking; new ones are covered without new tests."""

from __future__ import annotations

import inspect
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
from holdfast.testing.toys import model as any_model
from holdfast.testing.toys import model_for

REQUIRED = {"capacity": 20, "size": 6, "max_task": 8, "path": "backbone.0"}
"""Values for arguments that have no default, or whose default says that something must be given."""


def made_operation(name: str) -> Operation:
    """An operation with as few arguments given as it takes."""
    kind = getattr(holdfast.operations, name)
    parameters = inspect.signature(kind).parameters
    missing = {key: REQUIRED[key] for key, p in parameters.items() if p.default is p.empty}
    try:
        return kind(**missing)
    except ConfigError:
        return kind(**missing, **{key: value for key, value in REQUIRED.items() if key in parameters})


def made_alone(name: str) -> Method:
    """A method of this operation, and of the memory it may draw from."""
    operation = made_operation(name)
    return Method(operation) if isinstance(operation, Remember) else Method(operation, Remember(capacity=20))


def operations() -> list[str]:
    exported = {name: getattr(holdfast.operations, name) for name in holdfast.operations.__all__}
    return [name for name, value in exported.items() if isinstance(value, type) and issubclass(value, Operation)]


def methods() -> list[str]:
    return list(holdfast.methods.__all__)


def subjects() -> list[Any]:
    """Every method, and every operation that is part of none, on its own; as factories."""

    def of_method(name: str) -> Callable[[], Method]:
        return lambda: getattr(holdfast.methods, name)()

    def of_operation(name: str) -> Callable[[], Method]:
        return lambda: made_alone(name)

    within = {type(operation) for name in methods() for operation in getattr(holdfast.methods, name)()}
    alone = [name for name in operations() if getattr(holdfast.operations, name) not in within]
    return [pytest.param(of_method(name), id=name) for name in methods()] + [
        pytest.param(of_operation(name), id=name) for name in alone
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "operation_name" in metafunc.fixturenames:
        metafunc.parametrize("operation_name", operations())
    if "method_name" in metafunc.fixturenames:
        metafunc.parametrize("method_name", methods())
    if "make" in metafunc.fixturenames:
        metafunc.parametrize("make", subjects())


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


@pytest.fixture
def make_operation() -> Callable[[str], Operation]:
    return made_operation
