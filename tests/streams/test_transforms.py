from __future__ import annotations

import math

import pytest
import torch

from holdfast.core.errors import ConfigError
from holdfast.streams.transforms import Chain, Permute, Resize, Rotate, from_description


def images(rows: int = 5, channels: int = 1, side: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, channels, side, side), dtype=torch.uint8, generator=generator)


def test_a_permutation_moves_every_value_of_every_sample_alike():
    batch = images(3, 2, 4)
    permute = Permute(seed=9)
    out, order = permute(batch), permute.order(32).tolist()
    assert sorted(order) == list(range(32))
    for row in range(3):
        for place in range(32):
            assert out[row].flatten()[place] == batch[row].flatten()[order[place]]


def test_a_permutation_by_channel_keeps_channels_apart_and_pixels_together():
    batch = images(2, 3, 4)
    out, order = Permute(seed=1, mode="by_channel")(batch), Permute(seed=1).order(16).tolist()
    for row in range(2):
        for channel in range(3):
            for place in range(16):
                assert out[row, channel].flatten()[place] == batch[row, channel].flatten()[order[place]]


def test_permutations_of_different_seeds_differ():
    assert not torch.equal(Permute(1).order(50), Permute(2).order(50))
    assert torch.equal(Permute(1).order(50), Permute(1).order(50))


def test_quarter_turns_are_exact_and_counter_clockwise():
    batch = images(2, 3, 7)
    assert Rotate(0.0)(batch) is batch
    assert torch.equal(Rotate(360.0)(batch), batch)
    for quarters in range(1, 4):
        assert torch.equal(Rotate(90.0 * quarters)(batch), torch.rot90(batch, quarters, (2, 3)))


@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 9)])
@pytest.mark.parametrize("degrees", [20.0, 137.0])
def test_a_rotation_is_the_bilinear_one_by_loops(height, width, degrees):
    generator = torch.Generator().manual_seed(3)
    batch = torch.randint(0, 256, (2, 2, height, width), dtype=torch.uint8, generator=generator)
    out = Rotate(degrees)(batch)
    angle = math.radians(degrees)
    for i in range(height):
        for j in range(width):
            x, y = j - (width - 1) / 2, i - (height - 1) / 2
            # The output at (x, y), y downwards, comes from where a clockwise turn takes it.
            sx = math.cos(angle) * x - math.sin(angle) * y + (width - 1) / 2
            sy = math.sin(angle) * x + math.cos(angle) * y + (height - 1) / 2
            j0, i0 = math.floor(sx), math.floor(sy)
            value = 0.0
            for di in (0, 1):
                for dj in (0, 1):
                    if 0 <= i0 + di < height and 0 <= j0 + dj < width:
                        weight = (1 - abs(sy - i0 - di)) * (1 - abs(sx - j0 - dj))
                        value += weight * float(batch[1, 1, i0 + di, j0 + dj])
            assert abs(float(out[1, 1, i, j]) - value) <= 0.51


def test_a_rotation_by_a_little_less_than_a_quarter_is_near_the_exact_quarter():
    smooth = torch.linspace(0, 255, 64).view(1, 1, 8, 8)
    near = Rotate(89.999)(smooth)[..., 1:-1, 1:-1]
    assert torch.allclose(near, torch.rot90(smooth, 1, (2, 3))[..., 1:-1, 1:-1], atol=0.1)


def test_only_images_can_be_rotated():
    with pytest.raises(ConfigError, match=r"\(4, 3\)"):
        Rotate(10.0)(torch.zeros(4, 3))


def test_resizing_repeats_channels_scales_values_and_keeps_bytes():
    batch = torch.tensor([[[[0, 16], [16, 0]]]], dtype=torch.uint8)
    out = Resize((4, 4), 3, 255 / 16)(batch)
    assert out.shape == (1, 3, 4, 4)
    assert out.dtype == torch.uint8
    assert int(out.max()) == 255
    assert torch.equal(out[:, 0], out[:, 2])
    assert torch.equal(Resize((2, 2), 1)(batch), batch)


def test_descriptions_make_transforms_and_name_what_is_wrong():
    assert from_description({"kind": "rotate", "degrees": 5.0}) == Rotate(5.0)
    assert from_description({"kind": "permute", "seed": 3, "mode": "all"}) == Permute(3)
    assert from_description({"kind": "none"}) is None
    with pytest.raises(ConfigError, match="did you mean 'rotate'"):
        from_description({"kind": "rotat"})
    with pytest.raises(ConfigError, match="angle"):
        from_description({"kind": "rotate", "angle": 3})


def test_a_chain_applies_the_first_first():
    assert Chain(lambda x: x + 1, lambda x: x * 2)(torch.tensor([1])).item() == 4


def test_a_permutation_first_used_in_an_evaluation_lets_gradients_through_later():
    permute = Permute(0)
    with torch.inference_mode():
        permute(torch.zeros(1, 5))
    inputs = torch.ones(1, 5, requires_grad=True)
    permute(inputs).sum().backward()
    assert inputs.grad.tolist() == [[1.0] * 5]
