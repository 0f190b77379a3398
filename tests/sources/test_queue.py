"""A queue between a source and the training: what each policy keeps, loses and says, and that nothing ever hangs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from holdfast import StreamTrainer, methods
from holdfast.core.errors import ConfigError, DataError, Interrupted
from holdfast.core.experience import Batch
from holdfast.core.source import Arrays, Iterated, Source
from holdfast.sources import HoldOut, Queued, Window


def arrays(rows: int = 40, batch_size: int = 4) -> Arrays:
    return Arrays(torch.arange(float(rows)).unsqueeze(1), torch.arange(rows), batch_size=batch_size)


def seen(source: Source, most: int | None = None) -> list[int]:
    """The fresh targets in order."""
    found: list[int] = []
    for number, batch in enumerate(source.batches(), start=1):
        found += batch.targets.tolist() if batch.fresh is None else batch.targets[batch.fresh].tolist()
        if number == most:
            break
    return found


class Gated(Iterated):
    """Gives a batch each time the gate is opened, and says when it is asked for one."""

    def __init__(self, count: int = 100, fail_after: int | None = None) -> None:
        self.gate = threading.Semaphore(0)
        self.fail_after = fail_after
        super().__init__(self._items(count))

    def halt(self) -> None:
        self.gate.release(1000)

    def _items(self, count: int) -> Iterator[Batch]:
        for number in range(count):
            if number == self.fail_after:
                raise RuntimeError("the writer is gone")
            assert self.gate.acquire(timeout=20)
            yield Batch(torch.full((2, 1), float(number)), torch.tensor([2 * number, 2 * number + 1]))


def until(queue: Queued, arrived: int) -> None:
    """Wait, without a sleep, until so many rows came to a queue."""
    done = threading.Event()
    for _ in range(2000):
        if queue.counts()["arrived"] >= arrived:
            return
        done.wait(0.01)
    raise AssertionError(f"{arrived} rows never arrived, only {queue.counts()}")


def test_block_gives_everything_in_order_however_small_the_queue() -> None:
    with Queued(arrays(), capacity=1) as queue:
        assert seen(queue) == list(range(40))
        assert queue.counts() == {"arrived": 40, "dropped": 0, "waiting": 0}


def test_block_makes_the_source_wait() -> None:
    source = Gated()
    with Queued(source, capacity=2, timeout=20) as queue:
        for _ in range(10):
            source.gate.release()
        queue.peek()
        until(queue, 6)
        assert source.position()["batches"] == 3  # two in the queue, and one that waits for room
        assert seen(queue, most=10) == list(range(20))


def test_drop_loses_what_arrives_while_the_queue_is_full_and_counts_it_exactly() -> None:
    source = Gated(count=10)
    with Queued(source, "drop", capacity=3, timeout=20) as queue:
        for _ in range(10):
            source.gate.release()
        queue.peek()
        until(queue, 20)
        assert seen(queue) == [0, 1, 2, 3, 4, 5]
        assert queue.counts() == {"arrived": 20, "dropped": 14, "waiting": 0}


def test_reservoir_goes_on_with_seen_rows_while_nothing_comes_and_loses_no_unseen_one() -> None:
    source = Gated(count=20)
    with Queued(source, "reservoir", capacity=8, batch_size=2, timeout=20) as queue:
        batches = queue.batches()
        for _ in range(2):
            source.gate.release()
        first = [next(batches) for _ in range(30)]  # more than ever arrived
        again = sum(int((~batch.fresh).sum()) for batch in first if batch.fresh is not None)
        assert again >= 56
        for _ in range(18):
            source.gate.release()
        fresh = [batch.targets[batch.fresh] for batch in [*first, *batches]]
        assert sorted(torch.cat(fresh).tolist()) == list(range(40))
        assert queue.counts()["dropped"] == 0


def test_with_a_producer_half_as_fast_a_reservoir_keeps_the_trainer_at_work_on_every_row() -> None:
    """By counts: the source may give one batch for every two steps, so a step that waited for one would never end."""
    source, steps, given, fresh = Gated(count=100), 0, 0, 0
    seen_rows: list[int] = []
    with Queued(source, "reservoir", capacity=64, batch_size=2, timeout=20) as queue:
        for _ in range(5):  # what is there when the training begins
            source.gate.release()
        given = 5
        for batch in queue.batches():
            steps += 1
            new = torch.ones(2, dtype=torch.bool) if batch.fresh is None else batch.fresh
            seen_rows += batch.targets[new].tolist()
            fresh += int(new.sum())
            if steps % 2 == 0 and given < 100:
                source.gate.release()
                given += 1
                until(queue, 2 * given)
        assert queue.counts()["dropped"] == 0
    assert sorted(seen_rows) == list(range(200))
    assert fresh == 200
    assert steps >= 0.95 * 2 * 95  # two for each batch that came later, of which none had to be waited for


def test_a_reservoir_waits_for_its_watermark() -> None:
    source = Gated(count=4)
    with Queued(source, "reservoir", capacity=8, batch_size=2, watermark=6, timeout=20) as queue:
        source.gate.release()
        source.gate.release()
        until_thread = queue.poll()
        assert until_thread is None
        source.gate.release()
        assert len(next(queue.batches()).targets) == 2
        assert queue.counts()["arrived"] == 6


def test_a_source_that_fails_is_an_error_after_everything_that_had_arrived() -> None:
    source = Gated(fail_after=3)
    for _ in range(3):
        source.gate.release()
    got: list[int] = []
    with Queued(source, timeout=20) as queue:
        batches = queue.batches()
        for _ in range(3):
            got += next(batches).targets.tolist()
        with pytest.raises(DataError, match=r"failed after 6 rows.*writer is gone"):
            next(batches)
    assert got == [0, 1, 2, 3, 4, 5]


def test_a_source_that_fails_ends_normally_where_that_was_asked_for() -> None:
    source = Gated(fail_after=2)
    for _ in range(2):
        source.gate.release()
    with Queued(source, on_failure="end", timeout=20) as queue, pytest.warns(UserWarning, match="ended early"):
        assert seen(queue) == [0, 1, 2, 3]


def test_a_wait_ends_after_its_timeout_with_an_error() -> None:
    with (
        Queued(Gated(), timeout=0.05) as queue,
        pytest.raises(DataError, match=r"nothing arrived from Gated for 0\.05"),
    ):
        next(queue.batches())


def test_halted_it_gives_nothing_more_at_once() -> None:
    source = Gated()
    with Queued(source, timeout=20) as queue:
        source.gate.release()
        batches = queue.batches()
        assert next(batches).targets.tolist() == [0, 1]
        queue.halt()
        assert next(batches, None) is None
        assert queue.position()["batches"] == 1


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_block_and_drop_go_on_from_the_last_batch_that_was_given(taken: int) -> None:
    for policy in ("block", "drop"):
        with Queued(arrays(), policy) as queue:
            before = seen(queue, most=taken) if taken else []
            position = json.loads(json.dumps(queue.position()))
        with Queued(arrays(), policy) as queue:
            queue.seek(position)
            assert before + seen(queue) == list(range(40))
            assert queue.counts() == {"arrived": 40, "dropped": 0, "waiting": 0}


@pytest.mark.parametrize("taken", [1, 3, 9, 14])
def test_a_reservoir_that_goes_on_trains_on_each_row_as_if_for_the_first_time_exactly_once(taken: int) -> None:
    def make() -> Queued:
        return Queued(arrays(), "reservoir", capacity=8, batch_size=4)

    with make() as queue:
        before = seen(queue, most=taken)
        position = json.loads(json.dumps(queue.position()))
    with make() as queue:
        queue.seek(position)
        after = seen(queue)
    assert sorted(before + after) == list(range(40))


def test_a_queue_before_a_source_that_cannot_go_back_says_so() -> None:
    with Queued(Gated()) as queue:
        assert not queue.seekable
        with pytest.raises(DataError, match="cannot go back"):
            queue.seek(queue.position())


@pytest.mark.parametrize(
    "wrong",
    [{"policy": "lose"}, {"capacity": 0}, {"timeout": 0.0}, {"policy": "reservoir", "capacity": 4, "watermark": 5}],
)
def test_arguments_that_cannot_be_right_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Queued(arrays(), **wrong)


# The window ------------------------------------------------------------------------------------------------


def test_the_window_moves_on_after_min_steps_and_each_row_is_fresh_once() -> None:
    window = Window(arrays(16), rows=8, batch_size=8, min_steps=2, max_steps=3)
    batches = list(window.batches())
    held = [sorted(batch.targets.tolist()) for batch in batches]
    assert held[:4] == [list(range(8))] * 2 + [list(range(4, 12))] * 2
    fresh = torch.cat([batch.targets[batch.fresh] for batch in batches])
    assert sorted(fresh.tolist()) == list(range(16))
    assert held[-1] == list(range(8, 16))
    assert len([one for one in held if one == list(range(8, 16))]) == 3  # max_steps after the last arrival


def test_a_window_that_batches_do_not_fill_exactly_moves_on_all_the_same() -> None:
    window = Window(arrays(60, batch_size=7), rows=10, batch_size=5, min_steps=2, max_steps=2)
    batches = list(window.batches())
    assert len(batches) == 2 * (9 - 1)  # nine batches arrive, two of them before the first step
    assert max(batch.targets.max().item() for batch in batches) >= 54


def test_the_window_waits_once_it_was_used_max_steps_times_without_an_arrival() -> None:
    source = Gated(count=6)
    queue = Queued(source, timeout=0.3)
    with Window(queue, rows=4, batch_size=4, min_steps=1, max_steps=3) as window:
        source.gate.release()
        source.gate.release()
        batches = window.batches()
        assert [sorted(next(batches).targets.tolist()) for _ in range(3)] == [[0, 1, 2, 3]] * 3
        with pytest.raises(DataError, match="nothing arrived"):
            next(batches)


def test_a_row_that_left_the_window_undrawn_is_counted() -> None:
    window = Window(arrays(40), rows=8, batch_size=1, min_steps=1, max_steps=1)
    trained = seen(window)
    assert window.counts() == {"arrived": 40, "passed_over": 40 - len(trained)}
    assert len(set(trained)) == len(trained) < 40


@pytest.mark.parametrize("taken", [1, 4, 9])
def test_a_window_goes_on_with_equal_batches(taken: int) -> None:
    def make() -> Window:
        return Window(HoldOut(arrays(60), 0.2), rows=10, batch_size=4, min_steps=2, max_steps=2, seed=3)

    whole = [batch.targets.tolist() for batch in make().batches()]
    first = make()
    batches = first.batches()
    begun = [next(batches).targets.tolist() for _ in range(taken)]
    second = make()
    second.seek(json.loads(json.dumps(first.position())))
    assert begun + [batch.targets.tolist() for batch in second.batches()] == whole


def test_rows_held_out_are_never_trained_on_and_are_the_same_again() -> None:
    def rows(source: Source) -> tuple[list[int], list[int]]:
        trained, held = [], []
        for batch in source.batches():
            trained += batch.targets.tolist()
            held += [] if batch.held_out is None else batch.held_out.targets.tolist()
        return trained, held

    trained, held = rows(HoldOut(arrays(200), 0.1))
    assert sorted(trained + held) == list(range(200))
    assert 18 <= len(held) <= 22
    assert rows(HoldOut(arrays(200, batch_size=7), 0.1)) == (trained, held)
    through = Window(HoldOut(arrays(200), 0.1), rows=20, batch_size=5, max_steps=2)
    assert not set(rows(through)[0]) & set(held)


# In a training ---------------------------------------------------------------------------------------------


class Kept:
    """Checkpoints in memory."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def due(self, seconds: float, steps: int) -> bool:
        return False

    def save(self, state: dict[str, Any]) -> None:
        self.states.append(state)


def test_told_to_stop_while_it_waits_for_data_a_training_saves_and_stops_at_once() -> None:
    source, kept, trained = Gated(), Kept(), threading.Event()
    events: list[dict[str, Any]] = []

    def record(event: dict[str, Any]) -> None:
        events.append(event)
        if sum(one["event"] == "train" for one in events) == 2:
            trained.set()

    with Queued(source, timeout=20) as queue:
        trainer = StreamTrainer(
            nn.Linear(1, 400), methods.finetune(), optimizer={"name": "SGD", "lr": 1e-4}, log_every=1, record=record,
            checkpoints=kept, on_divergence="go_on",
        )  # fmt: skip
        for _ in range(2):
            source.gate.release()

        def stop() -> None:
            assert trained.wait(20)
            trainer.stop = True

        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(Interrupted, match="saved"):
            trainer.train(queue)
        thread.join()
    assert kept.states[-1]["position"]["source"]["batches"] == 2
    assert kept.states[-1]["position"]["samples"] == 4


def test_a_window_puts_each_row_into_the_memory_once() -> None:
    window = Window(arrays(64, batch_size=8), rows=16, batch_size=8, min_steps=4, max_steps=4)
    trainer = StreamTrainer(
        nn.Linear(1, 64), methods.er(capacity=100, size=4), optimizer={"name": "SGD", "lr": 1e-5}, on_divergence="go_on"
    )
    trainer.train(window)
    memory = trainer.learner.memory
    assert memory is not None
    held = memory.column("targets").tolist()
    assert len(held) == len(set(held)) == trainer.samples
    assert trainer.samples + window.counts()["passed_over"] == 64
    assert trainer.steps > 16
