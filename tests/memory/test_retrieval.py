"""Policies of retrieval: which held rows are replayed."""

import io
import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast.core.errors import ConfigError, DataError
from holdfast.memory import BalancedUniform, Memory, Recent, Reservoir, Ring, Uniform, retrieval
from holdfast.memory.retrieval import distinct


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(count, capacity=None, targets=None):
    memory = Memory(capacity or count, insertion=Ring())
    number = torch.arange(count)
    memory.add({"inputs": number, "targets": number if targets is None else targets})
    return memory


class Largest(TorchDispatchMode):
    """Counts tensor operations and notes the most elements that one of them made."""

    def __init__(self):
        super().__init__()
        self.elements = self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and not any(value is given for given in args):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize(("n", "size"), [(5, 1), (8, 2), (9, 2), (40, 10), (41, 10), (1000, 10), (20, 20), (12, 11)])
def test_uniform_never_draws_a_row_twice(n, size):
    uniform = Uniform(seeded())
    for _ in range(300):
        drawn = uniform.indices(n, size).tolist()
        assert len(drawn) == size == len(set(drawn))
        assert min(drawn) >= 0
        assert max(drawn) < n


@pytest.mark.parametrize(("n", "size"), [(12, 3), (8, 2), (4, 2)])
def test_uniform_draws_every_ordered_tuple_equally_often(n, size):
    tuples = dict.fromkeys(itertools.permutations(range(n), size), 0)
    calls = 30 * len(tuples)
    uniform = Uniform(seeded(4))
    for _ in range(calls):
        tuples[tuple(uniform.indices(n, size).tolist())] += 1
    chi_square = sum((count - 30) ** 2 / 30 for count in tuples.values())
    freedom = len(tuples) - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_uniform_is_uniform_while_the_memory_fills():
    uniform = Uniform(seeded())
    counts = torch.zeros(100)
    for n in range(100, 40, -1):
        for _ in range(100):
            counts[uniform.indices(n, 4)] += 1
    expected = torch.tensor([sum(100 * 4 / n for n in range(100, 40, -1) if slot < n) for slot in range(100)])
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_a_block_is_used_only_for_the_number_of_rows_it_was_drawn_for():
    uniform = Uniform(seeded())
    for _ in range(50):
        uniform.indices(1000, 10)
    assert all(max(uniform.indices(40, 10).tolist()) < 40 for _ in range(5))
    assert len(uniform.indices(40, 3)) == 3


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 40, 63, 64, 126, 127, 128, 200])
@pytest.mark.parametrize(("n", "size"), [(1000, 10), (30, 10)])
def test_uniform_resumes_exactly_in_the_middle_of_a_block(calls, n, size):
    uniform = Uniform(seeded())
    for _ in range(calls):
        uniform.indices(n, size)
    file = io.BytesIO()
    torch.save(uniform.state(), file)
    expected = [uniform.indices(n, size).tolist() for _ in range(150)]
    file.seek(0)
    other = Uniform(seeded(9))
    other.indices(50, 5)
    other.load(torch.load(file, weights_only=True))
    assert [other.indices(n, size).tolist() for _ in range(150)] == expected


def test_a_call_with_a_block_at_hand_makes_no_tensor_operation():
    uniform = Uniform(seeded())
    for _ in range(64):
        uniform.indices(1000, 10)  # blocks of 1, 2, 4 ... 32 and one call of the block of 64
    with Largest() as watch:
        for _ in range(63):
            uniform.indices(1000, 10)
    assert watch.operations == 0


def test_the_cost_of_add_and_draw_does_not_depend_on_how_much_is_stored():
    operations = []
    for capacity in (1_000, 50_000):
        memory = Memory(capacity, insertion=Reservoir(seeded()))
        uniform = Uniform(seeded())
        memory.add({"inputs": torch.zeros(capacity, 3, dtype=torch.uint8), "targets": torch.zeros(capacity).long()})
        batch = {"inputs": torch.zeros(10, 3, dtype=torch.uint8), "targets": torch.zeros(10).long()}
        memory.add(batch)  # a block of 4096 items is drawn
        with Largest() as watch:
            for _ in range(100):
                memory.draw(10, uniform)
        assert 64 * 10 <= watch.elements <= 10 * 1000
        operations.append(watch.operations)
        with Largest() as watch:
            for _ in range(100):
                memory.add(batch)
        assert watch.elements <= 30
        assert capacity + 900 < memory.arrivals.max() < memory.seen == capacity + 1010  # of which some were kept
    assert abs(operations[0] - operations[1]) < 40  # rounds of redrawing differ a little


def test_a_batch_of_which_nothing_is_kept_makes_no_tensor_operation():
    memory = Memory(1, insertion=Reservoir(seeded()))
    number = torch.arange(4000)
    memory.add({"targets": number})
    kept = memory.all()["targets"]
    with Largest() as watch:
        memory.add({"targets": number[:10]})
        memory.add({"targets": number[:10]})
    assert torch.equal(memory.all()["targets"], kept)
    assert watch.operations <= 2  # the two slices made here


def test_recent_draws_the_latest_arrivals_the_latest_first():
    memory = filled(5, capacity=5)
    memory.add({"inputs": torch.arange(5, 8), "targets": torch.arange(5, 8)})
    assert memory.draw(4, Recent())["inputs"].tolist() == [7, 6, 5, 4]
    reservoir = Memory(20, insertion=Reservoir(seeded()))
    for first in range(0, 2000, 10):
        reservoir.add({"inputs": torch.arange(first, first + 10), "targets": torch.zeros(10).long()})
    held = sorted(reservoir.all()["inputs"].tolist(), reverse=True)
    assert reservoir.draw(6, Recent())["inputs"].tolist() == held[:6]


def test_balanced_retrieval_gives_every_class_the_same_share_and_no_row_twice():
    targets = torch.tensor([0] * 50 + [3] * 20 + [7] * 2)[torch.randperm(72, generator=seeded(1))]
    memory = filled(72, targets=targets)
    balanced = BalancedUniform(seeded())
    for _ in range(20):
        rows = memory.draw(12, balanced)
        assert len(set(rows["inputs"].tolist())) == 12
        assert rows["targets"].bincount(minlength=8).tolist() == [5, 0, 0, 5, 0, 0, 0, 2]
    assert sorted(memory.draw(99, balanced)["inputs"].tolist()) == list(range(72))


def test_balanced_retrieval_is_uniform_within_a_class_and_over_classes_of_an_incomplete_round():
    targets = torch.tensor([0] * 12 + [1] * 6 + [2] * 3)
    memory = filled(21, targets=targets)
    balanced = BalancedUniform(seeded())
    counts = torch.zeros(21)
    for _ in range(3000):
        counts[memory.draw(4, balanced)["inputs"]] += 1
    expected = 3000 * (4 / 3) / torch.tensor([12.0] * 12 + [6.0] * 6 + [3.0] * 3)
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_balanced_retrieval_can_balance_by_another_column_and_resumes_exactly():
    memory = Memory(30, insertion=Ring())
    memory.add({"inputs": torch.arange(24), "targets": torch.arange(24), "task": 0})
    memory.add({"inputs": torch.arange(6), "targets": torch.arange(6), "task": 1})
    balanced = BalancedUniform(seeded(), column="task")
    assert memory.draw(10, balanced)["task"].sum() == 5
    other = BalancedUniform(seeded(8), column="task")
    other.load(balanced.state())
    assert torch.equal(memory.draw(10, balanced)["inputs"], memory.draw(10, other)["inputs"])


def test_policies_that_look_at_rows_say_so_when_they_cannot():
    with pytest.raises(ConfigError, match="no memory"):
        Recent().indices(5, 2)
    with pytest.raises(ConfigError, match="no memory"):
        BalancedUniform(seeded()).indices(5, 2)
    with pytest.raises(DataError, match="Uniform"):
        filled(4, targets=torch.rand(4)).draw(2, BalancedUniform(seeded()))
    with pytest.raises(DataError, match="targets"):
        filled(4).draw(2, BalancedUniform(seeded(), column="target"))


@pytest.mark.parametrize(("n", "size"), [(5, 6), (5, 0), (5, -1)])
def test_a_size_that_cannot_be_drawn_is_refused(n, size):
    with pytest.raises(ConfigError, match="different rows"):
        Uniform(seeded()).indices(n, size)


def test_retrieval_neither_uses_nor_changes_the_global_random_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    uniform = Uniform(seeded())
    first = [uniform.indices(100, 5).tolist() for _ in range(10)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    uniform = Uniform(seeded())
    assert [uniform.indices(100, 5).tolist() for _ in range(10)] == first


def test_repeats_are_drawn_again_and_the_first_occurrence_stays():
    drawn = distinct(50, 6, 24, seeded(2))
    generator = seeded(2)
    rows = torch.randint(24, (50, 6), generator=generator).tolist()
    while True:
        # Repeats are taken row by row, and in a row by ascending value, then position.
        repeats = [
            (row, place)
            for row, values in enumerate(rows)
            for _, place in sorted((value, place) for place, value in enumerate(values) if value in values[:place])
        ]
        if not repeats:
            break
        for (row, place), value in zip(repeats, torch.randint(24, (len(repeats),), generator=generator).tolist()):
            rows[row][place] = value
    assert drawn.tolist() == rows


def test_drawing_most_of_the_rows_takes_one_permutation():
    with Largest() as watch:
        assert sorted(Uniform(seeded()).indices(500, 500).tolist()) == list(range(500))
    assert watch.elements == 500
    assert watch.operations < 10


@pytest.mark.parametrize(("size", "n"), [(1, 4), (8, 32), (32, 128), (32, 500), (64, 1000)])
def test_a_single_row_is_drawn_alike_with_and_without_tensors(
    size: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(20):
        one, other = seeded(seed), seeded(seed)
        quick = distinct(1, size, n, one)
        monkeypatch.setattr(retrieval, "FEW", 0)
        assert torch.equal(quick, distinct(1, size, n, other))
        assert torch.equal(one.get_state(), other.get_state())
        monkeypatch.undo()


@pytest.mark.parametrize(("n", "size"), [(1000, 10), (60, 20), (500, 500)])
def test_draws_for_many_calls_at_once_are_those_of_one_after_another(n, size):
    one, other = Uniform(seeded()), Uniform(seeded())
    for calls in (1, 3, 200, 0, 70):
        singly = [one.indices(n, size) for _ in range(calls)]
        assert torch.equal(other.several(n, size, calls), torch.stack(singly) if calls else torch.empty(0, size).long())
        assert torch.equal(one.indices(n, size), other.indices(n, size))
    again = Uniform(seeded(1))
    again.load(other.state())
    assert torch.equal(again.several(n, size, 90), one.several(n, size, 90))
    assert torch.equal(again.indices(n + 1, size), one.indices(n + 1, size))
    assert BalancedUniform(seeded()).several(n, size, 0) is None, "it looks at what is held"
