from __future__ import annotations

import inspect
import json
from collections import Counter

import pytest
import torch

from holdfast import streams
from holdfast.core.errors import ConfigError, DataError
from holdfast.streams import (
    blurry,
    cil,
    data_incremental,
    domains,
    indus,
    indus_cil,
    online,
    permuted,
    proportions,
    rotated,
    saved,
    split,
)
from holdfast.streams.data import LoaderData, TensorData, materialise
from holdfast.streams.dataset import Dataset, Prepare
from holdfast.streams.datasets import arrays, digits, synthetic
from holdfast.streams.scenario import Scenario, cut, make_stream

COUNTS = [31, 17, 50, 23, 41, 9, 13]
TABLES = [
    lambda data: split(data, experiences=3, class_order="random", seed=2),
    lambda data: split(data, sizes=[1, 4, 2], class_order="random", paradigm="task"),
    lambda data: blurry(data, experiences=3, overlap=0.3, disjoint=0.4),
    lambda data: cil(data, experiences=4, seed=5),
    lambda data: indus(data, experiences=4, seed=5),
    lambda data: indus_cil(data, experiences=4, seed=5),
    lambda data: proportions(data, [[0.2, 0.3, 0.5]] * 7),
    lambda data: data_incremental(data, experiences=4),
    lambda data: data_incremental(data, experiences=4, shuffle=False),
    lambda data: online(data, samples=7, of={"name": "split", "experiences": 3}),
]
EVERY = [
    *TABLES,
    lambda data: permuted(data, experiences=3, first_identity=True),
    lambda data: permuted(data, experiences=3, paradigm="class", validation=0.2),
    lambda data: online(data, samples=30),
    lambda data: indus_cil(data, experiences=3, paradigm="task", validation=0.1, seed=2),
]


def counts(data, classes):
    return torch.bincount(data.targets, minlength=classes).tolist()


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_every_training_sample_is_in_exactly_one_experience(number, make, rows):
    stream = TABLES[number](make(COUNTS))
    seen = [row for experience in stream for row in rows(experience.train)]
    assert sorted(seen) == list(range(sum(COUNTS)))


@pytest.mark.parametrize("number", range(6))
def test_training_and_test_data_follow_the_same_table(number, make, rows):
    test_counts = [count * 3 for count in COUNTS]
    stream = TABLES[number](make(COUNTS, test_counts))
    seen = [row for experience in stream if experience.test for row in rows(experience.test)]
    assert sorted(seen) == list(range(100_000, 100_000 + sum(test_counts)))
    description = Scenario.from_json(stream.description)
    for position, experience in enumerate(stream):
        for label, share in enumerate(row[position] for row in description.table):
            new = description.labels[label] + position * description.shift
            assert abs(int((experience.train.targets == new).sum()) - share * COUNTS[label]) < 1
            assert experience.test is not None
            assert abs(int((experience.test.targets == new).sum()) - share * test_counts[label]) < 1


@pytest.mark.parametrize("number", range(len(EVERY)))
def test_a_stream_can_be_made_again_from_its_description_through_json(number, make, rows, tmp_path):
    dataset = make(COUNTS)
    stream = EVERY[number](dataset)
    values = json.loads(json.dumps(stream.description))
    assert Scenario.from_json(values).to_json() == stream.description
    file = tmp_path / "scenario.json"
    file.write_text(json.dumps(stream.description))
    for again in (make_stream(Scenario.from_json(values), dataset), saved(dataset, path=str(file))):
        assert (again.name, again.class_names, again.classes) == (stream.name, stream.class_names, stream.classes)
        for one, two in zip(stream, again, strict=True):
            assert rows(one.train) == rows(two.train)
            assert rows(one.test) == rows(two.test)
            assert torch.equal(one.train.targets, two.train.targets)
            assert (one.classes, one.task, one.name) == (two.classes, two.task, two.name)
            assert (one.validation is None) == (two.validation is None)


@pytest.mark.parametrize("number", range(len(EVERY)))
def test_experiences_name_the_classes_that_have_a_training_sample(number, make):
    stream = EVERY[number](make(COUNTS))
    for experience in stream:
        assert experience.classes == tuple(sorted(set(experience.train.targets.tolist())))
        assert max(experience.classes) < stream.classes == len(stream.class_names)
        assert experience.stream is stream


@pytest.mark.parametrize("number", range(len(EVERY)))
def test_no_stream_copies_the_inputs_or_touches_the_global_random_state(number, make):
    dataset = make(COUNTS)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    stream = EVERY[number](dataset)
    assert torch.equal(before, torch.get_rng_state())
    for experience in stream:
        assert experience.train.store is dataset.train.store
        assert experience.test is None or experience.test.store is dataset.test.store


@pytest.mark.parametrize("generator", [split, blurry, cil, indus, indus_cil])
def test_classes_are_renumbered_in_order_of_first_appearance(generator, make):
    stream = generator(make(COUNTS), experiences=3, seed=11)
    seen: list[int] = []
    for experience in stream:
        new = [label for label in experience.classes if label not in seen]
        assert new == list(range(len(seen), len(seen) + len(new)))
        seen += new
    assert len(seen) == 7


def test_names_stay_with_their_classes():
    data = arrays([[float(row)] for row in range(8)], list("cabdcabd"), test_fraction=0.0)
    stream = split(data, experiences=2, class_order=[2, 3, 0, 1])
    assert stream.class_names == ("c", "d", "a", "b")
    first = {int(value) for value in stream[0].train.gather(torch.arange(4)).inputs.flatten()}
    assert first == {0, 3, 4, 7}
    assert split(data, 2, [2, 3, 0, 1], relabel=False)[0].classes == (2, 3)


def test_no_class_is_dropped_when_classes_do_not_divide_evenly(make):
    stream = split(make(COUNTS), experiences=3)
    assert [len(experience.classes) for experience in stream] == [3, 2, 2]
    stream = split(make(COUNTS), sizes=[5, 1, 1])
    assert [experience.classes for experience in stream] == [(0, 1, 2, 3, 4), (5,), (6,)]


def test_split_shifts_labels_rightly_in_each_paradigm(make):
    order = [3, 1, 0, 2, 4]
    by = {paradigm: split(make([4] * 5), 2, order, paradigm=paradigm) for paradigm in ("class", "task", "domain")}
    assert [experience.classes for experience in by["class"]] == [(0, 1, 2), (3, 4)]
    assert [experience.classes for experience in by["task"]] == [(0, 1, 2), (3, 4)]
    assert [experience.classes for experience in by["domain"]] == [(0, 1, 2), (0, 1)]
    assert [by[paradigm].classes for paradigm in by] == [5, 5, 3]
    assert [experience.task for experience in by["task"]] == [0, 1]
    assert [experience.task for experience in by["class"]] == [None, None]
    assert by["domain"].class_names == ("3/2", "1/4", "0")
    assert next(iter(by["task"][1].train)).task == 1


def test_permuted_streams_shift_labels_rightly_in_each_paradigm(make):
    data = make([4, 5, 6], shape=(1, 3, 3))
    expected = {"domain": [(0, 1, 2)] * 3, "class": [(0, 1, 2), (3, 4, 5), (6, 7, 8)]}
    expected["task"] = expected["class"]
    for paradigm, classes in expected.items():
        stream = permuted(data, experiences=3, paradigm=paradigm)
        assert [experience.classes for experience in stream] == classes
        assert stream.classes == max(classes[-1]) + 1 == len(stream.class_names)
        assert [experience.task for experience in stream] == ([0, 1, 2] if paradigm == "task" else [None] * 3)
        for number, experience in enumerate(stream):
            shift = number * 3 if paradigm != "domain" else 0
            assert torch.equal(experience.train.targets, data.train.targets + shift)
            assert torch.equal(experience.test.targets, data.test.targets + shift)


def test_lazily_permuted_data_equal_eagerly_permuted_ones(make):
    data = make([4, 5], shape=(1, 3, 3))
    stream = permuted(data, experiences=4, first_identity=True)
    orders = set()
    for number, (experience, described) in enumerate(zip(stream, stream.description["transforms"])):
        order = list(range(9))
        if number:
            order = torch.randperm(9, generator=torch.Generator().manual_seed(described["seed"])).tolist()
        orders.add(tuple(order))
        for part, source in ((experience.train, data.train), (experience.test, data.test)):
            lazy = part.gather(torch.arange(9)).inputs.flatten(1)
            raw = source.store.inputs.flatten(1)
            for row in range(9):
                assert lazy[row].tolist() == [raw[row][place].item() for place in order]
    assert len(orders) == 4


def test_rotated_streams_turn_digits_and_keep_the_first():
    data = digits()
    stream = rotated(data, angles=[0.0, 90.0, 45.0])
    index = torch.arange(5)
    raw = data.train.gather(index).inputs
    assert torch.equal(stream[0].train.gather(index).inputs, raw)
    assert torch.equal(stream[1].train.gather(index).inputs, torch.rot90(raw, 1, (2, 3)))
    assert stream[2].train.gather(index).inputs.dtype == torch.uint8
    assert [experience.name for experience in stream] == ["0 degrees", "90 degrees", "45 degrees"]
    assert [values["degrees"] for values in rotated(data, experiences=4).description["transforms"]] == [0, 45, 90, 135]


def test_random_angles_are_drawn_by_the_seed_within_their_span():
    data = digits()
    angles = [
        [
            values["degrees"]
            for values in rotated(data, angles="random", experiences=20, **how).description["transforms"]
        ]
        for how in ({"seed": 0}, {"seed": 0}, {"seed": 1}, {"seed": 0, "span": 30.0})
    ]
    assert angles[0] == angles[1] != angles[2]
    assert len(set(angles[0])) == 20
    assert 90 < max(angles[0]) < 180
    assert max(angles[3]) < 30
    even = rotated(data, angles="even", experiences=3, span=90.0).description["transforms"]
    assert [values["degrees"] for values in even] == [0, 30, 60]
    with pytest.raises(ConfigError, match="angles"):
        rotated(data, angles="odd")


def test_a_rotation_to_the_nearest_pixel_makes_no_new_values_and_is_kept_in_the_scenario():
    data = digits()
    index = torch.arange(20)
    raw = data.train.gather(index).inputs
    near, smooth = (rotated(data, angles=[30.0], interpolation=how) for how in ("nearest", "bilinear"))
    values = set(raw.unique().tolist())
    assert set(near[0].train.gather(index).inputs.unique().tolist()) <= values
    assert near.description["transforms"][0] == {"kind": "rotate", "degrees": 30.0, "interpolation": "nearest"}
    assert smooth.description["transforms"][0] == {"kind": "rotate", "degrees": 30.0}
    assert not torch.equal(near[0].train.gather(index).inputs, smooth[0].train.gather(index).inputs)


def test_validation_is_stratified_apart_from_training_and_has_its_own_seed(make, rows):
    whole = split(make(COUNTS), experiences=3, class_order="random", seed=4)
    parted = split(make(COUNTS), experiences=3, class_order="random", seed=4, validation=0.25)
    other = split(make(COUNTS), experiences=3, class_order="random", seed=4, validation=0.25, validation_seed=1)
    for one, two, three in zip(whole, parted, other):
        assert sorted(rows(two.train) + rows(two.validation)) == rows(one.train)
        assert sorted(rows(two.test)) == rows(one.test)
        assert rows(two.validation) != rows(three.validation)
        total, held = Counter(one.train.targets.tolist()), Counter(two.validation.targets.tolist())
        for label, count in total.items():
            assert abs(held[label] - 0.25 * count) <= 0.5


def test_permuted_experiences_hold_out_the_same_samples(make):
    stream = permuted(make([8, 8], shape=(4,)), experiences=3, validation=0.5, first_identity=True)
    positions = [experience.validation._rows.tolist() for experience in stream]
    assert positions[0] == positions[1] == positions[2]
    assert len(positions[0]) == 8


def test_blurry_leaves_a_share_at_home_and_spreads_the_rest_evenly(make):
    stream = blurry(make([100] * 6), experiences=3, overlap=0.2, relabel=False)
    for number, experience in enumerate(stream):
        for label, count in enumerate(counts(experience.train, 6)):
            assert count == (80 if label // 2 == number else 10)
    still = blurry(make([100] * 6), experiences=3, overlap=0.2, disjoint=0.5, relabel=False)
    whole = [row for row in still.description["table"] if 1.0 in row]
    assert len(whole) == 3


def test_cil_gives_every_class_to_one_experience_and_none_is_empty(make):
    for seed in range(20):
        stream = cil(make([6] * 9), experiences=4, seed=seed, relabel=False)
        table = stream.description["table"]
        assert all(sorted(row) == [0, 0, 0, 1] for row in table)
        assert all(experience.classes for experience in stream)
        homes = [row.index(1.0) for row in table]
        assert sorted(homes[:4]) == [0, 1, 2, 3]
    sizes = {tuple(len(e.classes) for e in cil(make([6] * 9), experiences=4, seed=seed)) for seed in range(20)}
    assert len(sizes) > 1


def test_indus_has_every_class_everywhere_in_uneven_amounts(make):
    table = indus(make([500] * 4), experiences=3, seed=1).description["table"]
    assert all(0 < share < 1 for row in table for share in row)
    assert all(sum(row) == pytest.approx(1) for row in table)
    assert len({share for row in table for share in row}) == 12


def test_in_indus_cil_classes_vanish_and_come_back(make):
    vanished = returned = 0
    for seed in range(10):
        for row in indus_cil(make([50] * 6), experiences=6, seed=seed).description["table"]:
            assert sum(row) == pytest.approx(1)
            present = [share > 0 for share in row]
            first, last = present.index(True), 5 - present[::-1].index(True)
            vanished += not all(present)
            returned += not all(present[first : last + 1])
    assert vanished > 30
    assert returned > 20


def test_a_class_with_an_empty_row_is_left_out(make, rows):
    stream = proportions(make([4, 5, 6]), [[0, 1], [0, 0], [1, 0]])
    assert stream.classes == 2
    assert stream.class_names == ("2", "0")
    assert sum(len(experience.train) for experience in stream) == 10
    assert [experience.classes for experience in stream] == [(0,), (1,)]


def test_returning_classes_have_other_labels_in_every_task(make):
    stream = proportions(make([10, 10]), [[0.5, 0.5], [0.2, 0.8]], paradigm="task")
    assert [experience.classes for experience in stream] == [(0, 1), (2, 3)]
    assert stream.class_names == ("0 (0)", "1 (0)", "0 (1)", "1 (1)")


def test_chunks_in_order_follow_time_and_shuffled_ones_are_tested_on_everything(make, rows):
    ordered = data_incremental(make(COUNTS), experiences=4, shuffle=False)
    assert [row for experience in ordered for row in rows(experience.train)] == list(range(sum(COUNTS)))
    assert [row for experience in ordered for row in rows(experience.test)] == list(
        range(100_000, 100_000 + sum(COUNTS))
    )
    shuffled = data_incremental(make(COUNTS), experiences=4)
    assert {len(experience.test) for experience in shuffled} == {sum(COUNTS)}
    sizes = [len(experience.train) for experience in shuffled]
    assert max(sizes) - min(sizes) <= 1


def test_regression_can_be_cut_but_not_split():
    data = arrays(torch.randn(20, 3), torch.randn(20), kind="regression", test_fraction=0.25)
    stream = data_incremental(data, experiences=3, validation=0.2)
    assert stream.classes == 0
    assert [experience.classes for experience in stream] == [(), (), ()]
    assert sum(len(experience.train) + len(experience.validation) for experience in stream) == 15
    assert permuted(data, experiences=2, paradigm="task")[1].train.targets.equal(data.train.targets)
    assert len(online(data, samples=4)) == 4
    with pytest.raises(ConfigError, match="regression"):
        split(data)


def test_online_batches_keep_test_data_and_task_of_their_experience(make, rows):
    data = make(COUNTS)
    base = split(data, experiences=3, paradigm="task")
    stream = online(data, samples=10, of={"name": "split", "experiences": 3, "paradigm": "task"})
    assert [experience.index for experience in stream] == list(range(len(stream)))
    sizes = [-(-len(experience.train) // 10) for experience in base]
    assert [sum(e.task == task for e in stream) for task in range(3)] == sizes
    for experience in stream:
        parent = base[experience.task]
        assert set(rows(experience.train)) <= set(rows(parent.train))
        assert rows(experience.test) == rows(parent.test)
        assert len(experience.train) <= 10


def test_any_stream_can_be_cut(make):
    pieces = cut(domains([make([3, 4]), make([5, 6])]), 4)
    assert [len(experience.train) for experience in pieces] == [4, 3, 4, 4, 3]


def test_domains_resize_images_to_one_shape_range_and_number_of_channels():
    grey = digits(normalise=True)
    colour = arrays(
        torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        [0, 1, 2] * 4,
        name="colour",
        test_fraction=0.25,
    )
    stream = domains([grey, colour], size=16)
    assert stream.input_shape == (3, 16, 16)
    assert stream.classes == 10
    assert [experience.name for experience in stream] == ["digits", "colour"]
    for experience in stream:
        for data in (experience.train, experience.test):
            inputs = data.gather(torch.arange(3)).inputs
            assert inputs.shape == (3, 3, 16, 16)
            assert inputs.dtype == torch.uint8
    assert stream[0].train.gather(torch.arange(100)).inputs.max() > 240
    assert torch.equal(stream[1].train.gather(torch.arange(3)).inputs, colour.train.gather(torch.arange(3)).inputs)
    assert stream.prepare == Prepare(grey.prepare.mean, grey.prepare.std)  # of the first, for all
    apart = domains([grey, colour], paradigm="task", size=16)
    assert [experience.classes for experience in apart] == [tuple(range(10)), (10, 11, 12)]
    assert apart.class_names[10:] == ("colour 0", "colour 1", "colour 2")
    with pytest.raises(ConfigError, match="size="):
        domains([grey, colour])


def test_streams_work_on_data_behind_a_loader(make, rows):
    plain = make([6, 7, 8])
    items = [(plain.train.store.inputs[row], int(plain.train.targets[row])) for row in range(21)]
    loaded = Dataset("loaded", LoaderData(items), None, 3, (1,))
    one, two = split(plain, experiences=3, validation=0.3), split(loaded, experiences=3, validation=0.3)
    for first, second in zip(one, two):
        assert rows(first.train) == rows(second.train)
        assert rows(first.validation) == rows(second.validation)
        assert second.test is None


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda d: split(d, experiences=8), "8 experiences from the 7 classes"),
        (lambda d: split(d, experiences=0), "experiences=0"),
        (lambda d: split(d, experiences=2.0), "experiences=2.0"),
        (lambda d: split(d, class_order=[0, 0, 1, 2, 3, 4, 5]), "repeats"),
        (lambda d: split(d, sizes=[3, 3]), "sum to 6"),
        (lambda d: split(d, sizes=[7, 0]), r"\[7, 0\]"),
        (lambda d: split(d, experiences=3, sizes=[3, 4]), "experiences is 3"),
        (lambda d: split(d, paradigm="clas"), "did you mean 'class'"),
        (lambda d: split(d, validation=1.0), "validation=1.0"),
        (lambda d: blurry(d, overlap=1.5), "overlap=1.5"),
        (lambda d: blurry(d, disjoint=-0.1), "disjoint=-0.1"),
        (lambda d: blurry(d, experiences=1), "one experience"),
        (lambda d: cil(d, experiences=8), "8 experiences"),
        (lambda d: proportions(d, [[1.0]]), "1 rows"),
        (lambda d: permuted(d, mode="some"), "'some'"),
        (lambda d: permuted(d, experiences=-1), "-1"),
        (lambda d: rotated(d), "Only images"),
        (lambda d: data_incremental(d, experiences=1000), "none of the 184"),
        (lambda d: online(d, samples=0), "samples=0"),
        (lambda d: online(d, of="spilt"), "did you mean 'split'"),
        (lambda d: online(d, of={"name": "split", "experience": 3}), "experience"),
        (lambda d: saved(d), "Give one of them"),
        (
            lambda d: saved(d, {"name": "x", "paradigm": "class", "experiences": 1, "classes": 7, "tabel": []}),
            "'table'",
        ),
        (lambda d: saved(d, {"name": "x"}), "lacks paradigm"),
        (lambda d: saved(synthetic(classes=3), split(d).description), "7 classes"),
        (lambda d: domains([]), "no data set"),
        (lambda d: domains([d], validation=2), "validation=2"),
        (lambda d: domains([d], size=4), "Only images"),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_value(call, word, make):
    with pytest.raises(ConfigError, match=word):
        call(make(COUNTS))


def test_angles_and_experiences_that_disagree_are_an_error():
    with pytest.raises(ConfigError, match="2 angles"):
        rotated(digits(), angles=[0.0, 1.0], experiences=3)


def test_a_saved_file_that_is_missing_or_broken_is_an_error(make, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for path in (broken, tmp_path / "none.json"):
        with pytest.raises(DataError, match=path.name):
            saved(make(COUNTS), path=str(path))


def test_every_public_stream_takes_a_data_set_first_and_plain_values_with_defaults_after_it():
    for name in streams.__all__:
        generator = getattr(streams, name)
        first, *others = inspect.signature(generator).parameters.values()
        assert first.name in ("dataset", "datasets")
        for parameter in others:
            assert parameter.default is not inspect.Parameter.empty or (name, parameter.name) == (
                "proportions",
                "table",
            )
            assert f"        {parameter.name}: " in generator.__doc__


def test_twenty_permutations_take_the_memory_of_one_copy():
    images = torch.zeros(500, 1, 28, 28, dtype=torch.uint8)
    data = arrays(images, torch.arange(500) % 10)
    stream = permuted(data, experiences=20)
    assert {experience.train.store.inputs.data_ptr() for experience in stream} == {images.data_ptr()}
    assert isinstance(materialise(stream[3].train), TensorData)


def test_chunks_and_shares_are_drawn_at_random_by_the_seed(make, rows):
    for generator in (data_incremental, indus):
        first, again, other = (generator(make([60, 60]), experiences=2, seed=seed) for seed in (0, 0, 1))
        assert rows(first[0].train) == rows(again[0].train)
        assert rows(first[0].train) != rows(other[0].train)
    data = make([60, 60])
    halves = proportions(data, [[0.5, 0.5]] * 2)
    members = (data.train.targets == 0).nonzero().flatten().tolist()
    drawn = [row for row in rows(halves[0].train) if row in set(members)]
    assert drawn != members[:30]
    assert drawn == sorted(drawn)
