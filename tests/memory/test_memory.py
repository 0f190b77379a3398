"""The memory: size, insertion and retrieval together."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch

from holdfast.core.errors import ConfigError, DataError
from holdfast.memory import First, Memory, Reservoir, Ring, Uniform


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count, start=0):
    number = torch.arange(start, start + count)
    return {"inputs": number.to(torch.uint8).view(-1, 1).expand(-1, 784), "targets": number}


def test_an_empty_memory_draws_nothing():
    memory = Memory(5, insertion=Ring())
    assert memory.draw(3, Uniform(seeded())) is None
    assert (len(memory), memory.seen, memory.nbytes, memory.all()) == (0, 0, 0, {})
    memory.add(batch(0))
    assert memory.draw(3, Uniform(seeded())) is None


def test_fewer_items_than_asked_for_are_all_drawn_in_random_order():
    memory = Memory(50, insertion=Ring())
    memory.add(batch(20))
    uniform = Uniform(seeded())
    orders = [memory.draw(30, uniform)["targets"].tolist() for _ in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_fields_of_a_row_stay_together():
    memory = Memory(30, insertion=Reservoir(seeded()))
    for start in range(0, 200, 10):
        memory.add({**batch(10, start), "logits": torch.arange(start, start + 10.0).unsqueeze(1)})
    rows = memory.draw(12, Uniform(seeded()))
    assert rows["inputs"].dtype == torch.uint8
    assert torch.equal(rows["inputs"][:, 5].long(), rows["targets"])
    assert torch.equal(rows["logits"][:, 0].long(), rows["targets"])


def test_a_plain_int_stands_for_every_row():
    memory = Memory(6, insertion=Ring())
    memory.add({**batch(4), "task": 0})
    memory.add({**batch(4), "task": 1})
    assert sorted(memory.all()["task"].tolist()) == [0, 0, 1, 1, 1, 1]
    assert memory.all()["task"].dtype == torch.int64


def test_a_size_in_bytes_is_an_upper_bound_that_is_nearly_used():
    memory = Memory(bytes=10_000, insertion=Ring())
    assert memory.capacity is None
    memory.add({**batch(40), "task": 3})
    row = 784 + 8 + 8 + 8  # with the task and the arrival number
    assert memory.capacity == len(memory) == 10_000 // row
    assert 10_000 - row < memory.nbytes <= 10_000


def test_a_size_in_bytes_survives_save_and_load():
    memory = Memory(bytes=10_000, insertion=Reservoir(seeded()))
    memory.add(batch(40))
    other = Memory(bytes=10_000, insertion=Reservoir(seeded(1)))
    other.load(memory.state())
    assert (other.capacity, len(other)) == (memory.capacity, len(memory))


@pytest.mark.parametrize("size", [{}, {"capacity": 3, "bytes": 3}, {"capacity": 0}, {"bytes": -1}])
def test_a_memory_has_exactly_one_positive_size(size):
    with pytest.raises(ConfigError):
        Memory(**size, insertion=Ring())


def test_too_few_bytes_for_a_row_name_the_bytes_needed():
    with pytest.raises(ConfigError, match="bytes=800"):
        Memory(bytes=700, insertion=Ring()).add(batch(2))


def test_memory_reports_bytes_and_releases_past_data():
    memory = Memory(10, insertion=Ring())
    references = []
    for start in range(0, 100, 20):
        data = torch.full((1000, 784), start, dtype=torch.uint8)
        references.append(weakref.ref(data))
        memory.add({"inputs": data[:20], "targets": torch.arange(20)})
        del data
    gc.collect()
    assert [reference() for reference in references] == [None] * 5
    assert memory.nbytes == 10 * (784 + 8 + 8)
    column = weakref.ref(memory.column("inputs")._base)
    memory.clear()
    gc.collect()
    assert column() is None
    assert memory.nbytes == 0


def test_what_is_drawn_and_listed_are_copies():
    memory = Memory(10, insertion=Ring())
    memory.add(batch(10))
    for rows in (memory.all(), memory.draw(10, Uniform(seeded())), memory.draw(2, Uniform(seeded()))):
        rows["targets"].fill_(-1)
        rows["inputs"].fill_(255)
    assert memory.all()["targets"].tolist() == list(range(10))
    assert memory.all()["inputs"].max() == 9


def test_logits_of_a_grown_head_are_padded_with_nan():
    memory = Memory(4, insertion=Ring())
    memory.add({"targets": torch.arange(2), "logits": torch.zeros(2, 2)})
    memory.add({"targets": torch.arange(2), "logits": torch.zeros(2, 5)})
    rows = memory.draw(4, Uniform(seeded()))
    assert (~rows["logits"].isnan()).sum(1).sort().values.tolist() == [2, 2, 5, 5]
    other = Memory(4, insertion=Ring())
    other.load(memory.state())
    assert other.all()["logits"].isnan().equal(memory.all()["logits"].isnan())


def test_a_run_resumed_from_a_file_is_the_uninterrupted_run():
    def steps(memory, uniform, first, last):
        drawn = []
        for step in range(first, last):
            memory.add(batch(10, start=step))
            drawn.append(memory.draw(5, uniform)["targets"].tolist())
        return drawn

    whole, uniform = Memory(60, insertion=Reservoir(seeded())), Uniform(seeded(1))
    expected = steps(whole, uniform, 0, 300)
    for stop in (3, 6, 100):
        first, retrieval = Memory(60, insertion=Reservoir(seeded())), Uniform(seeded(1))
        assert steps(first, retrieval, 0, stop) == expected[:stop]
        file = io.BytesIO()
        torch.save({"memory": first.state(), "retrieval": retrieval.state()}, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        second, retrieval = Memory(60, insertion=Reservoir(seeded(5))), Uniform(seeded(6))
        second.load(state["memory"])
        retrieval.load(state["retrieval"])
        assert steps(second, retrieval, stop, 300) == expected[stop:]
        assert torch.equal(second.arrivals, whole.arrivals)


def test_the_state_of_an_empty_memory_can_be_loaded():
    memory = Memory(5, insertion=First())
    memory.add(batch(3))
    memory.load(Memory(5, insertion=First()).state())
    assert (len(memory), memory.seen) == (0, 0)
    memory.add(batch(9))
    assert len(memory) == 5


def test_a_saved_state_does_not_change_with_the_memory():
    memory = Memory(5, insertion=Ring())
    memory.add(batch(5))
    state = memory.state()
    memory.add(batch(5, start=50))
    other = Memory(5, insertion=Ring())
    other.load(state)
    assert other.all()["targets"].tolist() == list(range(5))
    other.add(batch(5, start=90))
    third = Memory(5, insertion=Ring())
    third.load(state)
    assert third.all()["targets"].tolist() == list(range(5))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))])
def test_a_copy_of_a_memory_goes_on_by_itself_as_the_first_does(copied):
    first = Memory(20, insertion=Reservoir(seeded()))
    rows = [{"inputs": torch.rand(10, 3), "targets": torch.randint(9, (10,)), "task": 1} for _ in range(12)]
    for one in rows[:6]:
        first.add(one)
    second = copied(first)
    kept = first.all()
    for one in rows[6:]:
        second.add(one)
    assert all(torch.equal(first.all()[name], kept[name]) for name in kept)
    for one in rows[6:]:
        first.add(one)
    assert not torch.equal(first.all()["inputs"], kept["inputs"])
    assert all(torch.equal(first.all()[name], second.all()[name]) for name in kept)
    assert torch.equal(first.arrivals, second.arrivals)


def test_a_state_of_another_capacity_is_refused():
    with pytest.raises(ConfigError, match="capacity=5"):
        Memory(6, insertion=Ring()).load(Memory(5, insertion=Ring()).state())


def test_arrivals_are_the_numbers_of_the_held_rows():
    memory = Memory(7, insertion=Reservoir(seeded()))
    for start in range(0, 100, 3):
        memory.add(batch(3, start))
    assert memory.arrivals.tolist() == memory.all()["targets"].tolist()


def test_rows_that_disagree_in_number_are_refused():
    with pytest.raises(DataError, match="rows"):
        Memory(5, insertion=Ring()).add({"inputs": torch.zeros(3, 2), "targets": torch.zeros(2)})
    with pytest.raises(DataError):
        Memory(5, insertion=Ring()).add({"inputs": (torch.zeros(3), torch.zeros(2)), "targets": torch.zeros(3)})


def test_rows_without_targets_can_be_remembered():
    memory = Memory(5, insertion=Reservoir(seeded()))
    memory.add({"inputs": {"a": torch.zeros(3), "b": torch.ones(3, 2)}})
    assert len(memory) == 3
    assert memory.draw(2, Uniform(seeded()))["inputs"]["b"].shape == (2, 2)


def test_moving_a_memory_moves_its_rows_and_draws_go_on():
    memory = Memory(40, insertion=Ring())
    memory.add(batch(40))
    uniform = Uniform(seeded())
    memory.draw(5, uniform)
    assert memory.to("cpu") is memory
    assert memory.device == torch.device("cpu")
    assert memory.draw(5, uniform)["targets"].device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_memory_on_a_gpu_holds_and_draws_what_one_on_the_cpu_does():
    memories = [Memory(40, insertion=Reservoir(seeded()), device=device) for device in ("cpu", "cuda")]
    uniforms = [Uniform(seeded()), Uniform(seeded())]
    for start in range(0, 200, 10):
        drawn = []
        for memory, uniform in zip(memories, uniforms):
            memory.add(batch(10, start))
            rows = memory.draw(4, uniform)
            assert rows["targets"].device.type == memory.device.type
            drawn.append(rows["targets"].tolist())
        assert drawn[0] == drawn[1]
    memories[1].to("cpu")
    assert torch.equal(*(memory.all()["inputs"] for memory in memories))
    assert torch.equal(*(memory.draw(4, uniform)["targets"] for memory, uniform in zip(memories, uniforms)))
