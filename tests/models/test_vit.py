"""The small vision transformer: sizes, tokens without an order of their own, and refusals."""

import pytest
import torch

from holdfast.core.body import chain_of
from holdfast.core.errors import ConfigError
from holdfast.models import parameter_count, vit


def test_parameters_are_those_of_its_layers():
    width, depth, tokens, patch = 8, 3, 16, 4
    block = (width * 3 * width + 3 * width) + (width * width + width) + 2 * (2 * width * width) + 3 * width + 4 * width
    patches = 3 * patch * patch * width + width + tokens * width
    model = vit(input_shape=(3, 16, 16), classes=5, width=width, depth=depth, heads=2, patch=patch)
    assert parameter_count(model) == patches + depth * block + 2 * width + width * 5 + 5


def test_without_positions_the_order_of_patches_does_not_matter_and_with_them_it_does():
    torch.manual_seed(0)
    model = vit(input_shape=(1, 8, 8), classes=3, width=8, heads=2, depth=2)
    images = torch.rand(2, 1, 8, 8)
    swapped = torch.cat([images[..., 4:], images[..., :4]], dim=-1)
    assert not torch.allclose(model(images), model(swapped), atol=1e-5)
    torch.nn.init.zeros_(model.backbone.patches.position)
    assert torch.allclose(model(images), model(swapped), atol=1e-5)


def test_it_can_be_cut_after_the_patches_and_after_every_block():
    chain = chain_of(vit(input_shape=(1, 8, 8), classes=3, depth=3))
    assert list(chain.stages) == ["patches", "block1", "block2", "block3", "norm", "mean"]
    assert chain.cuts == (0, 1, 2, 3, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"patch": 5}, "patches of 5"), ({"width": 10, "heads": 4}, "4 heads"), ({"depth": 0}, "1 or more")],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        vit(input_shape=(1, 8, 8), classes=3, **arguments)
