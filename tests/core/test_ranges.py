"""Ranges on signatures: what they hold, when they are checked, and what they say."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pytest
import torch

from holdfast import streams
from holdfast.config.signatures import docs, parameters
from holdfast.core.errors import ConfigError
from holdfast.core.ranges import BelowOne, Count, Doc, Inside, Positive, Range, Share, guard, ranged, rule


@pytest.mark.parametrize(
    ("numbers", "inside", "outside", "words"),
    [
        (Range(0, 1), [0, 0.5, 1], [-0.1, 1.1, float("nan")], "from 0 to 1"),
        (Range(0, 1, low_open=True, high_open=True), [0.5], [0, 1], "above 0 to below 1"),
        (Range(1), [1, 1e300], [0.9], "of 1 or more"),
        (Range(0, log=True, low_open=True), [1e-9], [0, -1], "above 0"),
        (Range(high=3), [-9, 3], [4], "of 3 or less"),
        (Range(high=3, high_open=True), [2.9], [3], "below 3"),
    ],
)
def test_a_range_holds_its_numbers_and_says_which(numbers, inside, outside, words):
    assert all(number in numbers for number in inside)
    assert not any(number in numbers for number in outside)
    assert repr(numbers) == words


@pytest.mark.parametrize("wrong", [(2, 1), (1, 1)])
def test_an_empty_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="is empty"):
        Range(*wrong)


def test_a_range_of_negative_numbers_has_no_logarithms():
    with pytest.raises(ConfigError, match="no logarithms"):
        Range(-1, 1, log=True)


@pytest.mark.parametrize(
    ("annotation", "allowed", "refused"),
    [
        (Count, [1, 200], [0, 2.5, True, "3", None]),
        (Count | None, [None, 3], [0, "all"]),
        (Share, [0, 1, 0.5], [1.5, True, "half"]),
        (Literal["a", "b"], ["a"], ["c", 1, None]),
        (Literal["all"] | Count, ["all", 4], ["some", 0]),
        (Sequence[Count], [[1, 2], (3,), []], [[1, 0], "12"]),
        (Share | torch.Tensor, [0.5, torch.tensor(7.0)], [7.0]),
        (Annotated[float | None, Range(0)], [None, 0, 2.5], [-1]),
        (int | Literal["x"], [-7, "x"], ["y"]),
    ],
)
def test_a_rule_follows_the_annotation(annotation, allowed, refused):
    one = rule(annotation)
    assert all(one.allows(value) for value in allowed)
    assert not any(one.allows(value) for value in refused)


def test_a_range_on_something_that_is_no_number_is_refused_where_it_is_defined():
    with pytest.raises(ConfigError, match="A range is for int, float"):

        @ranged
        def function(name: Annotated[str, Range(0)]) -> None: ...


def test_a_default_outside_its_range_is_refused_where_it_is_defined():
    with pytest.raises(ConfigError, match=r"`function` has the default momentum=1\.0"):

        @ranged
        def function(momentum: BelowOne = 1.0) -> None: ...


def test_a_function_is_checked_when_it_is_called():
    @ranged
    def function(
        rate: Positive, size: Count = 1, *, mode: Literal["fast", "slow"] = "fast", more: object = None
    ) -> int:
        return size

    assert function(0.1, 3, mode="slow", more="anything") == 3
    for arguments, says in (
        ({"rate": 0}, "`function` got rate=0. Give a number above 0."),
        ({"rate": 1, "size": 0}, "`function` got size=0. Give a whole number of 1 or more."),
        ({"rate": 1, "mode": "fats"}, "`function` got mode='fats'; did you mean 'fast'?"),
        ({"rate": 1, "mode": 3}, "`function` got mode=3. Choose fast or slow."),
    ):
        with pytest.raises(ConfigError) as error:
            function(**arguments)
        assert str(error.value) == says


def test_a_constructor_is_checked_under_the_name_of_what_is_made():
    class Base:
        def __init__(self, share: Inside = 0.5) -> None:
            self.share = share

    class Derived(Base):
        """Takes over its constructor."""

    guard(Base)
    guard(Derived)
    assert Derived(0.25).share == 0.25
    with pytest.raises(ConfigError, match=r"`Derived` got share=1. Give a number above 0 to below 1."):
        Derived(1)


def test_what_a_type_says_of_its_parameters_stands_in_the_docstring_where_that_says_nothing_of_its_own():
    Rows = Annotated[Count, Doc("rows of a part.")]

    @ranged
    def cut(data: str, rows: Rows = 1, more: Rows = 2, seed: int = 0) -> str:
        """Cut.

        Args:
            data: all of it,
                at once.
            more: otherwise.
            seed: of the cut.

        Raises:
            ConfigError: for no rows.
        """
        return data

    assert docs(cut.__doc__) == (
        "Cut.",
        {"data": "all of it, at once.", "rows": "rows of a part.", "more": "otherwise.", "seed": "of the cut."},
    )
    assert list(docs(cut.__doc__)[1]) == ["data", "rows", "more", "seed"]
    assert "Raises:\n            ConfigError" in cut.__doc__
    assert [one.doc for one in parameters(streams.split)][-3:] == [
        "fraction of each class held out from training.",
        "of the held-out choice.",
        "of a random class order.",
    ]
