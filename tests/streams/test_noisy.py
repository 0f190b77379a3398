"""The noisy stream and its corruptions: each formula on a few numbers, and which experience gets which."""

import json
import math

import pytest
import torch

from holdfast.core.errors import ConfigError
from holdfast.streams import noisy, saved
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset
from holdfast.streams.transforms import Autocontrast, Blur, Greyscale, Solarize, from_description


def image(*rows):
    return torch.tensor([[rows]], dtype=torch.uint8)


def test_solarizing_inverts_values_from_half_the_range_on():
    assert Solarize(0.5)(image([0, 127, 128, 255])).tolist() == [[[[0, 127, 127, 0]]]]
    floats = torch.tensor([[[[0.2, 0.5, 1.0]]]])
    assert torch.allclose(Solarize(0.5)(floats), torch.tensor([[[[0.2, 0.5, 0.0]]]]))


def test_a_blur_is_a_weighted_mean_of_the_window_with_mirrored_edges():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, 2, 6, 7, generator=generator)
    blurred = Blur(5, 0.9)(values)
    weights = [math.exp(-(offset**2) / (2 * 0.9**2)) for offset in range(-2, 3)]
    weights = [weight / sum(weights) for weight in weights]

    def mirrored(place, size):
        return -place if place < 0 else 2 * (size - 1) - place if place >= size else place

    for channel, row, column in ((0, 3, 3), (1, 0, 0), (0, 5, 6)):
        wanted = sum(
            weights[down]
            * weights[right]
            * values[0, channel, mirrored(row + down - 2, 6), mirrored(column + right - 2, 7)]
            for down in range(5)
            for right in range(5)
        )
        assert float(blurred[0, channel, row, column]) == pytest.approx(float(wanted), abs=1e-6)
    assert Blur(5, 0.9)(torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)).eq(77).all()


def test_autocontrast_stretches_each_channel_of_each_image_to_the_whole_range_and_leaves_flat_ones():
    pair = torch.stack([torch.tensor([[[10, 20, 30]], [[7, 7, 7]]], dtype=torch.uint8)])
    assert Autocontrast()(pair).tolist() == [[[[0, 128, 255]], [[7, 7, 7]]]]


def test_grey_values_are_the_weighted_mean_of_the_colours():
    colours = torch.tensor([[[[100]], [[50]], [[200]]]], dtype=torch.uint8)
    grey = round(100 * 0.2989 + 50 * 0.587 + 200 * 0.114)
    assert Greyscale()(colours).flatten().tolist() == [grey] * 3
    assert Greyscale()(image([5, 6])).tolist() == [[[[5, 6]]]]


def test_a_chain_is_read_from_plain_values():
    chain = from_description(
        {"kind": "chain", "of": [{"kind": "none"}, {"kind": "solarize"}, {"kind": "autocontrast"}]}
    )
    assert chain(image([0, 100, 250])).tolist() == [[[[0, 255, 13]]]]
    with pytest.raises(ConfigError, match="a list, `of`"):
        from_description({"kind": "chain", "off": []})


def colours(make):
    labels = torch.arange(12).repeat(6)
    images = torch.rand(2, 72, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = [TensorData(part, labels) for part in images]
    return Dataset("colours", parts[0], parts[1], 12, (3, 8, 8))


def test_each_experience_has_new_classes_and_its_own_corruption_in_training_and_test(make):
    data = colours(make)
    stream = noisy(data, experiences=4, classes_per_experience=3, seed=5)
    clean = noisy(data, experiences=4, classes_per_experience=3, seed=5, corrupt=False)
    assert [experience.name for experience in stream] == ["clean", "solarized", "blurred", "grey"]
    assert [experience.classes for experience in stream] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    assert [experience.task for experience in stream] == [0, 1, 2, 3]
    changes = [
        lambda images: images,
        Solarize(0.5),
        Blur(5, 0.9),
        lambda images: Blur(5, 0.65)(Greyscale()(Autocontrast()(images))),
    ]
    for part in ("train", "test"):
        for experience, other, change in zip(stream, clean, changes, strict=True):
            every = torch.arange(len(getattr(experience, part)))
            found, plain = getattr(experience, part).gather(every), getattr(other, part).gather(every)
            assert torch.equal(found.targets, plain.targets)
            assert torch.equal(found.inputs, change(plain.inputs))


def test_it_is_written_as_json_and_made_again(make):
    data = colours(make)
    stream = noisy(data, experiences=2, classes_per_experience=4, corruptions=["grey", {"kind": "blur", "sigma": 2.0}])
    again = saved(data, json.loads(json.dumps(stream.description)))
    every = torch.arange(len(stream[0].train))
    assert torch.equal(again[0].train.gather(every).inputs, stream[0].train.gather(every).inputs)
    assert [experience.name for experience in again] == ["grey", "blur"]


@pytest.mark.parametrize("paradigm", ["class", "task", "domain"])
def test_classes_without_room_are_left_out(paradigm, make):
    stream = noisy(colours(make), experiences=3, classes_per_experience=2, paradigm=paradigm)
    assert [len(experience.train) for experience in stream] == [12, 12, 12]
    assert stream.classes == (2 if paradigm == "domain" else 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experiences": 5}, "5 experiences with 4 corruptions"),
        ({"classes_per_experience": 4}, "4 experiences of 4 classes from the 12"),
        ({"corruptions": ["grey", "noise", "clean", "clean"]}, "unknown corruption 'noise'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, make):
    with pytest.raises(ConfigError, match=message):
        noisy(colours(make), **{"classes_per_experience": 2, **arguments})
    with pytest.raises(ConfigError, match="Only images"):
        noisy(make([6] * 12), classes_per_experience=2)
