"""Policies of insertion: what is kept of an unbounded stream."""

import io
import math

import pytest
import torch

from holdfast.core.errors import ConfigError, DataError
from holdfast.memory import BalancedReservoir, First, FrequencyAware, Memory, Placement, Reservoir, Ring
from holdfast.memory.balanced import frequency_quotas
from holdfast.memory.insertion import BLOCK


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fill(memory, total, batch, labels=None, start=0):
    for first in range(start, total, batch):
        number = torch.arange(first, min(first + batch, total))
        memory.add({"inputs": number, "targets": number if labels is None else labels[number]})
    return memory


def held(memory):
    return memory.all()["inputs"].tolist()


def by_the_book(total, capacity, generator):
    """Algorithm R, one item at a time, on the documented stream of uniforms."""
    slots, uniforms = [], []
    for number in range(total):
        if number < capacity:
            slots.append(number)
            continue
        place = (number - capacity) % BLOCK
        if place == 0:
            uniforms = torch.rand(BLOCK, generator=generator, dtype=torch.float64).tolist()
        draw = min(math.floor(uniforms[place] * (number + 1)), number)
        if draw < capacity:
            slots[draw] = number
    return slots


def test_a_reservoir_is_algorithm_r_item_by_item():
    expected = by_the_book(10_000, 37, seeded(3))
    assert held(fill(Memory(37, insertion=Reservoir(seeded(3))), 10_000, 7)) == expected


@pytest.mark.parametrize("batch", [1, 3, 64, 4096, 10_000])
def test_a_reservoir_does_not_depend_on_how_items_were_batched(batch):
    total = 10_000 if batch > 1 else 5_000
    assert held(fill(Memory(50, insertion=Reservoir(seeded())), total, batch)) == by_the_book(total, 50, seeded())


def test_a_reservoir_keeps_every_sample_with_equal_probability():
    total, capacity, runs = 40, 8, 2000
    counts = torch.zeros(total)
    for seed in range(runs):
        counts[torch.tensor(held(fill(Memory(capacity, insertion=Reservoir(seeded(seed))), total, 10)))] += 1
    share = capacity / total
    deviation = (counts - runs * share) / math.sqrt(runs * share * (1 - share))
    assert deviation.abs().max() < 5
    # Sum of squared deviations is about chi-square with total - 1 degrees of freedom.
    assert abs(deviation.square().sum() * (1 - share) - (total - 1)) < 5 * math.sqrt(2 * (total - 1))


def test_every_slot_of_a_reservoir_is_replaced_equally_often_slot_0_included():
    total, capacity, runs = 30, 5, 1500
    survived = torch.zeros(capacity)
    for seed in range(runs):
        content = torch.tensor(held(fill(Memory(capacity, insertion=Reservoir(seeded(seed))), total, 10)))
        survived += content == torch.arange(capacity)
    share = capacity / total  # item i < capacity is held, in slot i, with this probability
    assert ((survived - runs * share).abs() < 5 * math.sqrt(runs * share * (1 - share))).all()


def test_of_several_rows_for_one_slot_the_last_wins():
    memory = Memory(1, insertion=Reservoir(seeded(1)))
    content = held(fill(memory, 2000, 2000))
    assert content == by_the_book(2000, 1, seeded(1))
    assert content[0] > 0


def test_a_plan_has_distinct_slots():
    for policy in (Reservoir(seeded()), Ring(), BalancedReservoir(seeded())):
        placement = policy.plan(rows=500, seen=0, capacity=7, targets=torch.arange(500) % 3)
        assert isinstance(placement, Placement)
        slots = placement.tensors()[1]
        assert sorted(torch.arange(7)[slots].tolist()) == list(range(7))


def test_the_count_of_a_reservoir_survives_save_and_load():
    memory = fill(Memory(10, insertion=Reservoir(seeded())), 3000, 10)
    other = Memory(10, insertion=Reservoir(seeded(9)))
    other.load(memory.state())
    assert other.seen == 3000
    replaced = 0
    for _ in range(20):
        before = other.all()["inputs"]
        other.add({"inputs": torch.full((1,), -1), "targets": torch.zeros(1, dtype=torch.int64)})
        replaced += int((other.all()["inputs"] != before).any())
    assert replaced < 5  # had the count started again, all ten slots would be overwritten


@pytest.mark.parametrize("policy", [Reservoir, BalancedReservoir])
@pytest.mark.parametrize("stop", [0, 5, 20, 21, 1000, 1044, 4116, 4117, 6003])
def test_a_reservoir_resumes_exactly_in_the_middle_of_a_block(policy, stop):
    labels = torch.randint(5, (9000,), generator=seeded(5)).square()
    whole = fill(Memory(20, insertion=policy(seeded())), 9000, 11, labels)
    first = fill(Memory(20, insertion=policy(seeded())), stop, 3, labels)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = Memory(20, insertion=policy(seeded(77)))
    second.load(torch.load(file, weights_only=True))
    fill(second, 9000, 13, labels, start=stop)
    assert held(second) == held(whole)
    assert torch.equal(second.insertion.generator.get_state(), whole.insertion.generator.get_state())


def test_two_policies_that_share_a_generator_resume_exactly():
    def pair():
        generator = seeded()
        return [Memory(10, insertion=Reservoir(generator)) for _ in range(2)]

    whole, parts = pair(), pair()
    for memory in whole:
        fill(memory, 5000, 10)
    states = [fill(memory, 5000, 10).state() for memory in parts]
    fresh = pair()
    for memory, state in zip(fresh, states):
        memory.load(state)
    for step in range(5000, 20_000, 100):
        for memory in (*whole, *fresh):
            fill(memory, step + 100, 10, start=step)
    assert [held(memory) for memory in fresh] == [held(memory) for memory in whole]


def test_a_cleared_reservoir_starts_again_with_other_numbers():
    memory = fill(Memory(10, insertion=Reservoir(seeded())), 500, 10)
    before = held(memory)
    memory.clear()
    assert (len(memory), memory.seen, memory.nbytes) == (0, 0, 0)
    after = held(fill(memory, 500, 10))
    assert len(after) == 10
    assert after != before


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 50])
def test_a_ring_holds_the_latest_items(batch):
    memory = fill(Memory(7, insertion=Ring()), 50, batch)
    slots = [None] * 7
    for number in range(50):
        slots[number % 7] = number
    assert held(memory) == slots


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_first_fills_and_stops(batch):
    memory = fill(Memory(7, insertion=First()), 50, batch)
    assert held(memory) == list(range(7))
    assert memory.seen == 50


def test_a_balanced_reservoir_keeps_all_of_a_rare_class_and_equal_numbers_of_the_others():
    labels = torch.cat((torch.zeros(3000), torch.ones(1000), torch.full((500,), 2), torch.full((4,), 3))).long()
    labels = labels[torch.randperm(len(labels), generator=seeded(2))]
    memory = fill(Memory(40, insertion=BalancedReservoir(seeded())), len(labels), 10, labels)
    assert memory.all()["targets"].bincount().tolist() == [12, 12, 12, 4]
    assert sorted(set(held(memory))) == sorted(held(memory))
    assert torch.equal(labels[torch.tensor(held(memory))], memory.all()["targets"])


def test_a_balanced_reservoir_is_balanced_on_a_stream_sorted_by_class():
    labels = torch.arange(5).repeat_interleave(400)
    memory = fill(Memory(50, insertion=BalancedReservoir(seeded())), 2000, 10, labels)
    assert memory.all()["targets"].bincount().tolist() == [10] * 5


def test_a_balanced_reservoir_keeps_every_sample_of_a_class_with_equal_probability():
    runs, total = 1500, 40
    labels = (torch.arange(total) % 4 == 3).long()  # 30 of class 0, 10 of class 1
    counts = torch.zeros(total)
    for seed in range(runs):
        content = held(fill(Memory(8, insertion=BalancedReservoir(seeded(seed))), total, 10, labels))
        counts[torch.tensor(content)] += 1
    for label, size in ((0, 30), (1, 10)):
        share = counts[labels == label].sum() / runs / size
        assert share == pytest.approx(4 / size, rel=0.15)
    # Class 0 is full from the start, so it is sampled by a reservoir within the class.
    zero = counts[labels == 0]
    share = zero.sum() / runs / 30
    assert ((zero - runs * share).abs() < 5 * torch.sqrt(runs * share * (1 - share))).all()


@pytest.mark.parametrize("batch", [7, 64, 3000])
def test_a_balanced_reservoir_does_not_depend_on_how_items_were_batched(batch):
    labels = torch.randint(4, (3000,), generator=seeded(1)).square()
    expected = held(fill(Memory(30, insertion=BalancedReservoir(seeded())), 3000, 1, labels))
    assert held(fill(Memory(30, insertion=BalancedReservoir(seeded())), 3000, batch, labels)) == expected


@pytest.mark.parametrize("targets", [None, torch.rand(3), torch.zeros(3, 2, dtype=torch.int64)])
def test_a_balanced_reservoir_refuses_targets_that_are_no_classes(targets):
    with pytest.raises(DataError, match="integer class"):
        BalancedReservoir(seeded()).plan(3, 0, 10, targets)


@pytest.mark.parametrize("policy", [Reservoir, BalancedReservoir])
def test_randomness_needs_an_explicit_generator(policy):
    with pytest.raises(ConfigError, match="generator"):
        policy(0)


@pytest.mark.parametrize("policy", [Reservoir, BalancedReservoir])
def test_the_global_random_state_is_neither_used_nor_changed(policy):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = held(fill(Memory(10, insertion=policy(seeded())), 300, 10, torch.arange(300) % 3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert held(fill(Memory(10, insertion=policy(seeded())), 300, 10, torch.arange(300) % 3)) == first


def frequency_memory(capacity, experiences, seed=0):
    """A memory after experiences, each a list of labels with 200 rows of each in random order."""
    policy = FrequencyAware(seeded(seed))
    memory = Memory(capacity, insertion=policy)
    for place, labels in enumerate(experiences):
        policy.next_experience()
        targets = torch.tensor(labels).repeat(200)
        targets = targets[torch.randperm(len(targets), generator=seeded(seed + place))]
        for part in targets.split(37):
            memory.add({"inputs": torch.arange(len(part)), "targets": part})
    return memory


def test_frequency_quotas_are_in_proportion_to_one_over_the_experiences_rounded_up_then_trimmed():
    # shares 3/7, 3/7, 1/7 of 20 slots: 8.57, 8.57, 2.86 up to 9, 9, 3; the one too many from the class seen most often
    assert frequency_quotas({5: 1, 2: 1, 7: 3}, 20) == {5: 9, 2: 9, 7: 2}
    assert frequency_quotas({0: 4}, 5) == {0: 5}
    for capacity in (1, 3, 10, 57):
        quotas = frequency_quotas({label: 1 + label for label in range(12)}, capacity)
        assert sum(quotas.values()) == capacity
        assert all(quota >= 0 for quota in quotas.values())


def test_a_frequency_aware_memory_holds_the_quotas_of_what_was_seen():
    memory = frequency_memory(60, [[0, 1], [0, 2], [0, 3]])
    assert frequency_quotas({0: 3, 1: 1, 2: 1, 3: 1}, 60) == {0: 6, 1: 18, 2: 18, 3: 18}
    assert torch.bincount(memory.column("targets")).tolist() == [6, 18, 18, 18]
    # class 1 comes back: its quota falls, but classes that do not come cannot take what it would give
    memory = frequency_memory(60, [[0, 1], [0, 2], [0, 3], [0, 1]])
    assert torch.bincount(memory.column("targets")).tolist() == [6, 18, 18, 18]


def test_a_class_that_always_comes_would_fill_a_balanced_memory_more_than_a_frequency_aware_one():
    experiences = [[0, label] for label in range(1, 9)]
    aware = frequency_memory(40, experiences)
    counts = torch.bincount(aware.column("targets"))
    assert counts[0] <= 1
    assert counts[1:].min() >= 4


def test_a_frequency_aware_memory_keeps_rows_of_a_class_with_equal_probability():
    total, runs = 30, 1500
    counts = torch.zeros(total)
    for seed in range(runs):
        policy = FrequencyAware(seeded(seed))
        memory = Memory(6, insertion=policy)
        policy.next_experience()
        fill(memory, total, 7, labels=torch.zeros(total, dtype=torch.int64))
        counts[torch.tensor(held(memory))] += 1
    expected = runs * 6 / total
    assert float(((counts - expected) ** 2 / expected).sum()) < 62  # 29 degrees of freedom, 0.0003


def test_a_frequency_aware_memory_resumes_exactly():
    policy, twin = FrequencyAware(seeded(1)), FrequencyAware(seeded(2))
    one, other = Memory(9, insertion=policy), Memory(9, insertion=twin)
    targets = torch.randint(4, (300,), generator=seeded(5))
    policy.next_experience()
    one.add({"inputs": torch.arange(150), "targets": targets[:150]})
    other.load(one.state())
    for memory, insertion in ((one, policy), (other, twin)):
        memory.add({"inputs": torch.arange(150, 160), "targets": targets[150:160]})
        insertion.next_experience()
        memory.add({"inputs": torch.arange(160, 300), "targets": targets[160:]})
    assert held(one) == held(other)


def test_a_frequency_aware_memory_refuses_targets_that_are_no_classes():
    with pytest.raises(DataError, match="frequency-aware"):
        Memory(3, insertion=FrequencyAware(seeded())).add({"inputs": torch.rand(2), "targets": torch.rand(2)})


def test_a_reservoir_places_many_batches_at_once_as_one_after_another():
    one, other = (Reservoir(torch.Generator().manual_seed(0)) for _ in range(2))
    assert one.several(7, 0, 50, 0) is None, "it is not full yet"
    seen = 0
    while seen < 50:
        for policy in (one, other):
            policy.plan(7, seen, 50)
        seen += 7
    for steps in (1, 5, 0, 900, 40):  # 900 batches of 7 reach into another block of draws
        slots = torch.full((steps, 7), 50)
        for step in range(steps):
            placed = one.plan(7, seen + 7 * step, 50)
            if placed is not None:
                rows, places = placed.tensors()
                slots[step, rows] = places
        assert torch.equal(other.several(7, seen, 50, steps), slots)
        seen += 7 * steps
    assert (slots < 50).any()
    state, same = one.state(), other.state()
    assert all(torch.equal(state[key], same[key]) for key in ("start", "generator"))
    assert {key: state[key] for key in ("block", "position", "next")} == {
        key: same[key] for key in ("block", "position", "next")
    }
