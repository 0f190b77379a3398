"""What every operation and every method must offer before it is ever trained with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

import holdfast.methods
import holdfast.operations
from holdfast.config.build import build_method
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.core.operation import ENTRY_POINTS, ROLES, Operation, snake_case

Make = Callable[[str], Operation]


def test_every_operation_survives_a_round_trip_through_json(operation_name: str, make_operation: Make) -> None:
    operation = make_operation(operation_name)
    config = json.loads(json.dumps(operation.config()))
    assert config["name"] == snake_case(operation_name)
    (built,) = build_method({"operations": [config]}).operations
    assert type(built) is type(operation)
    assert built.config() == operation.config()


def test_every_method_survives_a_round_trip_through_json(method_name: str) -> None:
    method = getattr(holdfast.methods, method_name)()
    config = json.loads(json.dumps(method.config()))
    built = build_method(config)
    assert config["name"] == built.name == method_name
    assert built.config() == method.config()
    assert [one.config() for one in built] == [one.config() for one in method]


def test_every_method_can_be_written_as_the_list_of_its_operations(method_name: str) -> None:
    method = getattr(holdfast.methods, method_name)()
    config = {"operations": json.loads(json.dumps([operation.config() for operation in method]))}
    assert [one.config() for one in build_method(config)] == [one.config() for one in method]


def test_the_clone_of_an_operation_is_another_object_with_equal_arguments(
    operation_name: str, make_operation: Make
) -> None:
    operation = make_operation(operation_name)
    twin = operation.clone()
    assert twin is not operation
    assert type(twin) is type(operation)
    assert twin.config() == operation.config()
    assert twin.needs == operation.needs


def test_the_clone_of_a_method_shares_no_operation_with_it(method_name: str) -> None:
    method = getattr(holdfast.methods, method_name)()
    twin = method.clone()
    assert (twin.name, twin.paper, twin.config()) == (method.name, method.paper, method.config())
    assert not {id(one) for one in twin} & {id(one) for one in method}
    assert [one.config() for one in twin] == [one.config() for one in method]


def test_the_repr_of_an_operation_evaluates_back_to_it(operation_name: str, make_operation: Make) -> None:
    operation = make_operation(operation_name)
    built = eval(repr(operation), dict(vars(holdfast.operations)))
    assert built.config() == operation.config()


def test_the_repr_of_a_method_evaluates_back_to_it(method_name: str) -> None:
    method = getattr(holdfast.methods, method_name)()
    built = eval(repr(method), dict(vars(holdfast.methods)))
    assert built.config() == method.config()


def test_every_operation_declares_a_known_role_and_known_needs(operation_name: str, make_operation: Make) -> None:
    operation = make_operation(operation_name)
    assert operation.role in ROLES
    assert operation.needs <= set(NEEDS)


def test_every_operation_acts_at_some_moment(operation_name: str, make_operation: Make) -> None:
    operation = make_operation(operation_name)
    acts = [entry_point for entry_point in ENTRY_POINTS if operation.overrides(entry_point)]
    changes_model = any(True for _ in operation.children())
    assert acts or changes_model


def test_what_an_operation_declares_as_state_exists_and_is_empty_of_learning(
    operation_name: str, make_operation: Make
) -> None:
    operation = make_operation(operation_name)
    for name in operation.state:
        assert hasattr(operation, name), f"{operation_name} declares state {name!r} and never sets it"
    assert not any(
        isinstance(getattr(operation, name), torch.Tensor) for name in inspect.signature(type(operation)).parameters
    )


def test_every_method_names_its_paper_and_the_arguments_it_takes(method_name: str) -> None:
    factory = getattr(holdfast.methods, method_name)
    method = factory()
    assert len(method.paper) > 10
    assert method.paper == factory.paper
    assert set(method.config()) == {"name", *inspect.signature(factory).parameters}


def _leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return []


def test_declared_state_moves_to_another_dtype_and_device(make: Callable[[], Method], toy: Any) -> None:
    method = make()
    stream = toy.stream_for(method)
    toy.train(method, toy.model(stream), stream)
    for operation in method:
        before = {name: _leaves(getattr(operation, name)) for name in operation.state}
        operation.to(torch.float64)
        for name, tensors in before.items():
            moved = _leaves(getattr(operation, name))
            assert len(moved) == len(tensors)
            for old, new in zip(tensors, moved, strict=True):
                assert new.dtype == (torch.float64 if old.is_floating_point() else old.dtype)
                assert torch.equal(new.double(), old.double())
        operation.to("meta")
        for name in operation.state:
            assert all(tensor.device.type == "meta" for tensor in _leaves(getattr(operation, name)))


@pytest.mark.parametrize("space", [holdfast.operations, holdfast.methods])
def test_the_exported_names_are_sorted_and_all_there(space: Any) -> None:
    assert list(space.__all__) == sorted(space.__all__)
    assert all(hasattr(space, name) for name in space.__all__)
