"""Everything that Holdfast exports passes the checks that it ships."""

from __future__ import annotations

import inspect

import pytest

import holdfast.methods
import holdfast.operations
from holdfast import streams
from holdfast.core import boundary
from holdfast.core.boundary import Boundary
from holdfast.metrics import METRICS
from holdfast.testing import (
    BOUNDARY_CHECKS,
    STREAM_CHECKS,
    check_boundary,
    check_method,
    check_metric,
    check_operation,
    check_stream,
)


def test_a_method_passes(method: str, among: list[str]) -> None:
    assert list(check_method(getattr(holdfast.methods, method), only=among)) == among


def test_an_operation_passes(operation: str, among: list[str]) -> None:
    assert list(check_operation(getattr(holdfast.operations, operation), only=among)) == among


TRAINED_STREAMS = ("split", "permuted", "repetition_slots")
"""Streams that are also trained on in the fast tests: of classes, of shifts, of classes that come back."""


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, marks=pytest.mark.slow if check == "trained" and name not in TRAINED_STREAMS else ())
        for name in streams.__all__
        for check in STREAM_CHECKS
    ],
)
def test_a_stream_passes(name: str, check: str) -> None:
    factory = getattr(streams, name)
    assert check_stream(factory, only=[check])


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_passes(name: str) -> None:
    assert check_metric(METRICS[name])


BOUNDARIES = {
    name: value
    for name, value in vars(boundary).items()
    if isinstance(value, type) and issubclass(value, Boundary) and not inspect.isabstract(value)
}


@pytest.mark.parametrize("check", BOUNDARY_CHECKS)
@pytest.mark.parametrize("name", BOUNDARIES)
def test_a_boundary_passes(name: str, check: str) -> None:
    assert check_boundary(BOUNDARIES[name], only=[check])
