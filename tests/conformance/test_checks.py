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
    toys,
)


def test_a_method_passes(method: str, among: list[str]) -> None:
    assert list(check_method(getattr(holdfast.methods, method), only=among)) == among


def test_an_operation_passes(operation: str, among: list[str]) -> None:
    assert list(check_operation(getattr(holdfast.operations, operation), only=among)) == among


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bic", "cls_er", "packnet"])
def test_what_records_too_late_to_be_stacked_on_a_short_stream_is_stacked_on_a_longer_one(name: str) -> None:
    """The check asks for a stacked step, or a reason, where there are more than forty."""
    factory = getattr(holdfast.methods, name)
    assert check_method(factory, stream=lambda kind: toys.stream(kind, samples=30), only=["stacked"])


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
