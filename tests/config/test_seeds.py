"""A seed moves everything random of a run, its stream too, unless the stream has a seed of its own."""

import json

import pytest
import torch

from holdfast.config import build
from holdfast.config.build import resolve
from holdfast.config.check import validated
from holdfast.streams import permuted, split
from holdfast.streams.datasets import digits, synthetic

DATA = {"name": "synthetic", "classes": 6, "samples": 5}
RANDOM_ORDER = {"name": "split", "dataset": DATA, "experiences": 3, "class_order": "random"}
PERMUTED = {"name": "permuted", "dataset": DATA, "experiences": 3}
HELD_OUT = {"name": "split", "dataset": DATA, "experiences": 2, "validation": 0.4}
ONLINE = {"name": "online", "dataset": DATA, "samples": 5, "of": RANDOM_ORDER | {"dataset": None}}
del ONLINE["of"]["dataset"]


def rows(stream):
    """Everything the stream has to learn from, in order."""
    parts = [data for one in stream for data in (one.train, one.validation) if data is not None]
    return [stream.prepare(part.gather(torch.arange(len(part))).inputs, False, None).flatten(1) for part in parts]


def equal(one, other):
    return len(one) == len(other) and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("spec", [RANDOM_ORDER, PERMUTED, HELD_OUT, ONLINE], ids=lambda spec: spec["name"])
def test_two_seeds_of_a_run_give_two_streams(spec):
    first, again, second = (rows(build.build_stream(spec, seed)) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, second)


def test_two_seeds_give_two_permutations_of_the_same_images():
    first, second = (build.build_stream({**PERMUTED, "dataset": "digits"}, seed) for seed in (0, 1))
    raw = [stream[1].train.gather(torch.arange(9)).inputs for stream in (first, second)]
    assert not torch.equal(*raw)
    assert torch.equal(raw[0].flatten(1).sort().values, raw[1].flatten(1).sort().values)


@pytest.mark.parametrize("spec", [RANDOM_ORDER, PERMUTED, {**HELD_OUT, "class_order": "random"}, ONLINE])
def test_a_stream_with_a_seed_of_its_own_is_the_same_in_every_run(spec):
    fixed = [rows(build.build_stream({**spec, "seed": 4}, seed)) for seed in (0, 1)]
    assert equal(*fixed)
    if spec is not ONLINE:  # its order stays random beside that of the outer stream
        assert not equal(fixed[0], rows(build.build_stream(spec, 0)))


def test_the_first_seed_gives_what_python_gives_by_default():
    data = synthetic(classes=6, samples=5)
    assert equal(rows(build.build_stream(PERMUTED, 0)), rows(permuted(data, experiences=3)))
    assert equal(rows(build.build_stream(RANDOM_ORDER, 0)), rows(split(data, experiences=3, class_order="random")))
    with_seed = {**RANDOM_ORDER, "seed": 3, "validation": 0.4}
    python = split(data, experiences=3, class_order="random", seed=3, validation=0.4)
    assert equal(rows(build.build_stream(with_seed, 0)), rows(python))


def test_a_seed_of_the_validation_data_is_kept_by_itself():
    one, other = (build.build_stream({**HELD_OUT, "validation_seed": 5}, seed) for seed in (0, 1))
    assert equal([one[0].validation.targets.float()[None]], [other[0].validation.targets.float()[None]])
    assert equal(rows(one), rows(other))


def test_the_seeds_of_a_job_have_each_their_own_stream_and_null_is_written_down():
    config = resolve({"stream": {**RANDOM_ORDER, "seed": None}, "seeds": 2})
    assert config["stream"]["seed"] is None
    assert resolve({"stream": RANDOM_ORDER})["stream"]["seed"] is None
    assert resolve({"stream": {**RANDOM_ORDER, "seed": 0}})["stream"]["seed"] == 0
    parts = validated(json.loads(json.dumps(config))).parts()
    assert not equal(*(rows(job.make_stream()) for job in parts.values()))


def test_a_data_set_is_the_same_for_every_seed_unless_its_seed_is_null():
    same = [build.build_dataset(DATA, seed).targets() for seed in (0, 1)]
    assert torch.equal(*same)
    other = [build.build_dataset({"name": "digits", "split_seed": None}, seed).targets() for seed in (0, 1)]
    assert not torch.equal(*other)
    assert torch.equal(other[0], digits(split_seed=0).targets())
