from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import pad

from holdfast.core.errors import ConfigError, UsageError
from holdfast.streams.dataset import Prepare


def images(rows: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bytes_become_exactly_what_torchvision_gives():
    transforms = pytest.importorskip("torchvision.transforms")
    batch = images(1)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    expected = transforms.ToTensor()(batch[0].permute(1, 2, 0).numpy())
    assert torch.equal(Prepare()(batch)[0], expected)
    assert torch.equal(Prepare(mean, std)(batch)[0], transforms.Normalize(mean, std)(expected))


def test_floats_keep_their_values_and_their_owner():
    batch = torch.randn(4, 3, generator=rng())
    kept = batch.clone()
    out = Prepare(mean=[1.0, 2.0, 3.0], std=[1.0, 2.0, 0.0])(batch)
    assert torch.equal(batch, kept)
    for row in range(4):
        for column, (mean, std) in enumerate([(1, 1), (2, 2), (3, 1)]):
            assert out[row, column].item() == pytest.approx((kept[row, column].item() - mean) / std)
    assert Prepare()(batch.double()).dtype == torch.float32


def test_inputs_keep_their_gradient_even_if_an_evaluation_came_first():
    prepare = Prepare(mean=0.5, std=0.25)
    with torch.inference_mode():
        prepare(torch.zeros(2, 3))
    inputs = torch.ones(2, 3, requires_grad=True)
    prepare(inputs).sum().backward()
    assert inputs.grad.tolist() == [[4.0] * 3] * 2


def test_the_scale_divides_integers():
    assert Prepare(scale=16.0)(torch.tensor([[16, 8]], dtype=torch.uint8)).tolist() == [[1.0, 0.5]]


def test_each_crop_is_a_window_of_the_padded_image_and_each_flip_its_mirror():
    batch = images(200)
    out = Prepare(crop=2, flip=True, scale=1.0)(batch, True, rng(1))
    padded = pad(batch, (2, 2, 2, 2)).float()
    windows, mirrored = set(), 0
    for row in range(200):
        found = None
        for dy in range(5):
            for dx in range(5):
                window = padded[row, :, dy : dy + 5, dx : dx + 7]
                if torch.equal(out[row], window):
                    found = (dy, dx, False)
                elif torch.equal(out[row], window.flip(2)):
                    found = (dy, dx, True)
        assert found is not None
        windows.add(found[:2])
        mirrored += found[2]
    assert len(windows) == 25
    assert 60 < mirrored < 140


def test_augmentation_is_a_function_of_the_generator_and_only_of_training():
    prepare, batch = Prepare(crop=1, flip=True), images()
    assert torch.equal(prepare(batch, True, rng(3)), prepare(batch, True, rng(3)))
    assert not torch.equal(prepare(batch, True, rng(3)), prepare(batch, True, rng(4)))
    assert torch.equal(prepare(batch, False, rng(3)), batch.float() / 255)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    prepare(batch, True, rng(3))
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation_without_a_generator_is_an_error():
    with pytest.raises(UsageError, match="generator"):
        Prepare(flip=True)(images(), True)


def test_a_description_survives_json_and_makes_an_equal_prepare():
    prepare = Prepare(mean=(0.1, 0.2, 0.3), std=0.25, scale=16.0, crop=4, flip=True)
    assert Prepare(**json.loads(json.dumps(prepare.describe()))) == prepare


def test_wrong_arguments_name_their_value():
    for wrong, value in (({"crop": -1}, "-1"), ({"scale": 0.0}, "0.0"), ({"std": [-2.0]}, "-2")):
        with pytest.raises(ConfigError, match=value):
            Prepare(**wrong)
    with pytest.raises(ConfigError, match="2 values"):
        Prepare(mean=[0.0, 1.0])(images())
    with pytest.raises(ConfigError, match="crop and flip need images"):
        Prepare(flip=True)(torch.zeros(3, 4), True, rng())
