"""A small vision transformer, cut into named stages, for images of 28 to 64 pixels on a CPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.needs import declares
from holdfast.core.ranges import Count, ranged
from holdfast.models.build import Classifier, HeadName, check_image, check_sizes, make_head, seeded


class Patches(nn.Module):
    """Images as tokens: a linear map of each patch, plus a learnt vector for its position.

    Args:
        channels: of the images.
        tokens: patches in an image.
        patch: height and width of one.
        width: of a token.
    """

    def __init__(self, channels: int, tokens: int, patch: int, width: int) -> None:
        super().__init__()
        self.map = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """`[rows, tokens, width]` of images `[rows, channels, height, width]`."""
        return self.map(images).flatten(2).transpose(1, 2) + self.position


class Block(nn.Module):
    """Self-attention, then two fully connected layers, each behind a layer norm and beside a shortcut.

    Args:
        width: of a token.
        heads: of the attention.
        units: of the hidden layer.
    """

    def __init__(self, width: int, heads: int, units: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, units)
        self.shrink = nn.Linear(units, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[rows, tokens, width]` as it came in."""
        rows, count, width = tokens.shape
        split = self.attention(self.norm1(tokens)).view(rows, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(rows, count, width)
        tokens = tokens + self.join(mixed)
        return tokens + self.shrink(F.gelu(self.hidden(self.norm2(tokens))))


class Mean(nn.Module):
    """The mean of all tokens, `[rows, width]` of `[rows, tokens, width]`."""

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean."""
        return tokens.mean(1)


@declares(inputs="images")
@ranged
def vit(
    *,
    input_shape: Sequence[int],
    classes: int,
    patch: Count = 4,
    width: Count = 64,
    depth: Count = 4,
    heads: Count = 4,
    head: HeadName = "fixed",
    seed: int | None = None,
) -> nn.Module:
    """Small vision transformer: patches as tokens, blocks of attention and layers, the mean of the tokens, the head.

    "An image is worth 16x16 words" (Dosovitskiy et al., ICLR 2021), with the mean of all tokens as features (there
    appendix D.3) instead of a class token. The backbone's children are `patches`, `block1`, `block2` and so on, `norm`
    and `mean`, so that it can be cut by name.

    Args:
        input_shape: channels, height and width of one image.
        classes: number of classes of the whole stream.
        patch: height and width of a patch; it divides those of the images.
        width: of a token.
        depth: number of blocks.
        heads: of the attention; they divide the width.
        head: "fixed" (all classes from the start), "growing", "task" (one set of outputs a task), "cosine",
            "cosine_learnable" (its scale is learnt), "cosine_task" or "plain_cosine" (all classes, no scale).
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for a shape that is not an image, or sizes that do not divide each other.

    Example:
        >>> model = vit(input_shape=(3, 32, 32), classes=10)
        >>> model(torch.zeros(2, 3, 32, 32)).shape, model.head.features
        (torch.Size([2, 10]), 64)
    """
    channels, rows, columns = check_image("vit", input_shape)
    check_sizes("patch, width, depth and heads", [patch, width, depth, heads])
    if rows % patch or columns % patch:
        raise ConfigError(
            f"images of {rows} x {columns} cannot be cut into patches of {patch}. Choose another `patch`."
        )
    if width % heads:
        raise ConfigError(f"a width of {width} cannot be shared by {heads} heads. Choose a multiple of {heads}.")
    with seeded(seed):
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        stages["patches"] = Patches(channels, (rows // patch) * (columns // patch), patch, width)
        for index in range(depth):
            stages[f"block{index + 1}"] = Block(width, heads, 2 * width)
        stages["norm"] = nn.LayerNorm(width)
        stages["mean"] = Mean()
        model = Classifier(nn.Sequential(stages), make_head(head, width, classes, seed))
        model.cuts = ("patches", *(f"block{index + 1}" for index in range(depth - 1)), "norm")
        return model
