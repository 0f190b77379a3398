"""Sources: batches in the order in which they arrive, with a position that a training can go back to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from holdfast.core.errors import ConfigError, DataError, UsageError
from holdfast.core.experience import Batch
from holdfast.core.source import Arrays, Experiences, Iterated, Source, as_source
from holdfast.training import Trainer


def ten() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(20.0).view(10, 2), torch.arange(10)


MADE: dict[str, Callable[[Any], Source]] = {
    "arrays": lambda toy: Arrays(*ten(), batch_size=3, passes=2),
    "arrays in a drawn order": lambda toy: Arrays(*ten(), batch_size=4, passes=3, seed=1),
    "arrays by name": lambda toy: Arrays({"a": ten()[0], "b": ten()[0]}, ten()[1], batch_size=4),
    "arrays by position": lambda toy: Arrays((ten()[0], ten()[0]), ten()[1], batch_size=4),
    "NumPy arrays": lambda toy: Arrays(ten()[0].numpy(), ten()[1].numpy(), batch_size=4),
    "a list": lambda toy: Iterated([ten(), ten(), Batch(*ten())]),
    "a stream": lambda toy: Experiences(toy.stream(), batch_size=4, epochs=2),
    "a stream in a drawn order": lambda toy: Experiences(toy.stream(), batch_size=4, epochs=2, seed=3),
}


def targets(source: Source) -> list[list[int]]:
    return [batch.targets.tolist() for batch in source.batches()]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
def test_a_source_gives_as_many_batches_as_it_is_long_and_goes_on_from_any_of_them(toy: Any, make: Any) -> None:
    whole = targets(make(toy))
    assert len(whole) == make(toy).length > 1
    for given in range(len(whole) + 1):
        first = make(toy)
        batches = first.batches()
        for _ in range(given):
            next(batches)
        position = toy.through_disk(first.position())
        assert position["batches"] == given
        again = make(toy)
        assert again.seekable
        again.seek(position)
        assert targets(again) == whole[given:]


def test_a_stream_as_a_source_gives_what_the_trainer_trains_on(toy: Any) -> None:
    stream = toy.stream("task")
    seen: list[list[int]] = []

    class Spy(Trainer):
        pass

    trainer = Spy(toy_method(seen), epochs=2, batch_size=4, evaluate="none", seed=7)
    trainer.fit(toy.model(stream, "task"), stream)
    source = Experiences(stream, batch_size=4, epochs=2, seed=7)
    batches = list(source.batches())
    assert [batch.targets.tolist() for batch in batches] == seen
    assert {batch.task for batch in batches} == {0, 1, 2}


def toy_method(seen: list[list[int]]) -> Any:
    from holdfast.core.method import Method
    from holdfast.core.operation import Operation

    class Note(Operation):
        def observe(self, step: Any, learner: Any) -> None:
            seen.append(step.targets.tolist())

    return Method(Note())


def test_arrays_without_end_begin_again_in_a_new_order_each_time() -> None:
    source = Arrays(*ten(), batch_size=5, passes=None, seed=0)
    assert source.length is None
    batches = source.batches()
    passes = [sorted(next(batches).targets.tolist() + next(batches).targets.tolist()) for _ in range(3)]
    assert passes == [list(range(10))] * 3
    source.seek({"batches": 0})
    again = [next(batch).targets.tolist() for batch in [source.batches()] for _ in range(4)]
    assert again[:2] != again[2:]


def test_an_iterator_cannot_go_back_and_says_what_can() -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield ten()

    source = as_source(endless())
    assert not source.seekable
    assert source.length is None
    next(source.batches())
    next(source.batches())
    assert source.position() == {"batches": 2}
    with pytest.raises(DataError, match=r"cannot go back to batch 1.*Arrays"):
        source.seek({"batches": 1})


def test_closing_a_source_closes_the_generator_behind_it() -> None:
    closed: list[bool] = []

    def given() -> Iterator[Any]:
        try:
            yield ten()
            yield ten()
        finally:
            closed.append(True)

    with Iterated(given()) as source:
        next(source.batches())
    source.close()
    assert closed == [True]


def test_what_is_no_pair_and_what_does_not_match_is_refused() -> None:
    with pytest.raises(UsageError, match="pairs"):
        next(Iterated([torch.zeros(3)]).batches())
    with pytest.raises(DataError, match="10 inputs and 9 targets"):
        Arrays(ten()[0], ten()[1][:9])
    with pytest.raises(ConfigError, match="passes=None"):
        Arrays(*ten(), passes=0)
