"""Conditional invertible network: what is sought, given what was observed, as a distribution that can be drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.ranges import Count, Positive, ranged
from holdfast.models.build import check_sizes, seeded


class Coupling(nn.Module):
    r"""An affine coupling block with two halves and a condition, inverted in closed form.

    $$ v_1 = u_1 \odot e^{s_2(u_2, c)} + t_2(u_2, c), \qquad v_2 = u_2 \odot e^{s_1(v_1, c)} + t_1(v_1, c) $$

    with s softly clamped to +-clamp by an arc tangent. Where there is one dimension alone, the second half does all.

    Args:
        size: of a sample.
        condition: size of the condition; 0 for none.
        hidden: units of the two hidden layers' each.
        clamp: largest |s|.

    Source: Dinh et al. 2017, "Density estimation using Real NVP"; Kingma and Dhariwal 2018, "Glow"; the clamp and the
    order of halves are those of FrEIA's `GLOWCouplingBlock`, whose outputs are equal for equal weights.
    """

    def __init__(self, size: int, condition: int, hidden: int, clamp: float) -> None:
        super().__init__()
        self.halves = (size // 2, size - size // 2)
        self.clamp = clamp
        first, second = self.halves
        self.subnet1 = subnet(first + condition, 2 * second, hidden)
        self.subnet2 = subnet(second + condition, 2 * first, hidden)

    def forward(self, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """The block's values `[rows, size]`, and the log-determinant of each row."""
        u1, u2 = u.split(self.halves, dim=1)
        s2, t2 = self._affine(self.subnet2, u2, condition)
        v1 = u1 * s2.exp() + t2
        s1, t1 = self._affine(self.subnet1, v1, condition)
        v2 = u2 * s1.exp() + t1
        return torch.cat([v1, v2], dim=1), s1.sum(1) + s2.sum(1)

    def inverse(self, v: Tensor, condition: Tensor) -> Tensor:
        """What `forward` made these values of, `[rows, size]`."""
        v1, v2 = v.split(self.halves, dim=1)
        s1, t1 = self._affine(self.subnet1, v1, condition)
        u2 = (v2 - t1) * (-s1).exp()
        s2, t2 = self._affine(self.subnet2, u2, condition)
        return torch.cat([(v1 - t2) * (-s2).exp(), u2], dim=1)

    def _affine(self, net: nn.Module, half: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = net(torch.cat([half, condition], dim=1)).chunk(2, dim=1)
        return self.clamp * 0.636 * torch.atan(raw), shift


class Nothing(nn.Module):
    """No outputs at all, `[rows, 0]`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Nothing of each row."""
        return inputs[:, :0]


def subnet(inputs: int, outputs: int, hidden: int) -> nn.Module:
    """Two hidden layers whose last layer starts at zero, so that a block starts as the identity."""
    if not outputs:  # of the empty half of a single dimension
        return Nothing()
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden), nn.LeakyReLU(), last)


class ConditionalFlow(nn.Module):
    r"""An invertible network between what is sought x and a normal latent z, given what was observed c.

    $$ z = f(x; c), \qquad -\log p(x \mid c) = \tfrac{1}{2} \lVert z \rVert^2 - \log |\det \partial z / \partial x|
       + \text{const}, \qquad x = f^{-1}(z; c), \; z \sim N(0, I) $$

    A row of inputs is `[x | c]`, so that training sees both (the stream `inversion` makes such rows). The forward gives
    z and the log-determinant, `[rows, sought + 1]`, for the criterion `flow`. What the model answers when it is asked
    is the mean of draws of x given c alone; x in the row is not looked at, and may be left out.

    Args:
        sought: numbers of x.
        observed: numbers of c; 0 learns the density of x.
        blocks: coupling blocks, a fixed permutation behind each.
        hidden: units of a block's hidden layers.
        embedding: numbers that c is brought to by a layer of its own before the blocks; None leaves it as it is.
        clamp: see `Coupling`.
        draws: that the answer is the mean of.
        seed: of the permutations and of these draws.

    Source: Ardizzone et al. 2019, "Guided image generation with conditional invertible neural networks", section 3.
    """

    orders: Tensor
    back: Tensor
    latents: Tensor

    def __init__(
        self,
        sought: int,
        observed: int,
        blocks: int,
        hidden: int,
        embedding: int | None,
        clamp: float,
        draws: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sought, self.observed = sought, observed
        width = observed if embedding is None or not observed else embedding
        self.condition: nn.Module = nn.Identity()
        if embedding is not None and observed:
            self.condition = nn.Sequential(nn.Linear(observed, embedding), nn.LeakyReLU())
        self.blocks = nn.ModuleList(Coupling(sought, width, hidden, clamp) for _ in range(blocks))
        generator = torch.Generator().manual_seed(seed)
        orders = torch.stack([torch.randperm(sought, generator=generator) for _ in range(blocks)])
        self.register_buffer("orders", orders)
        self.register_buffer("back", orders.argsort(1))
        self.register_buffer("latents", torch.randn(draws, sought, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        """Latents z and the log-determinant of rows `[x | c]`, `[rows, sought + 1]`."""
        if inputs.shape[1] != self.sought + self.observed:
            raise UsageError(
                f"inputs have {inputs.shape[1]} numbers a row, and training takes what is sought ({self.sought}) and"
                f" what was observed ({self.observed}) side by side. Choose the stream `inversion`."
            )
        z, condition = inputs[:, : self.sought], self.condition(inputs[:, self.sought :])
        total = z.new_zeros(len(z))
        for block, order in zip(self.blocks, self.orders):
            z, determinant = block(z, condition)
            z, total = z[:, order], total + determinant
        return torch.cat([z, total.unsqueeze(1)], dim=1)

    def inverse(self, z: Tensor, observed: Tensor) -> Tensor:
        """What is sought `[rows, sought]` for latents `[rows, sought]` and observations `[rows, observed]`."""
        condition = self.condition(observed)
        for block, back in zip(reversed(self.blocks), self.back.flip(0)):  # type: ignore[call-overload]
            z = block.inverse(z[:, back], condition)  # type: ignore[operator]
        return z

    def sample(self, observed: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Draws of what is sought for each observation `[rows, observed]`: `[rows, draws, sought]`; without a graph."""
        with torch.no_grad():
            z = torch.randn(len(observed) * draws, self.sought, generator=generator).to(observed)
            return self.inverse(z, observed.repeat_interleave(draws, 0)).view(len(observed), draws, self.sought)

    def answer(self, inputs: Tensor) -> Tensor:
        """The mean of draws of what is sought, `[rows, sought]`, for rows `[x | c]` or `[c]`."""
        observed = inputs[:, inputs.shape[1] - self.observed :]
        draws, rows = self.latents.shape[0], observed.shape[0]
        z = self.latents.to(observed.dtype).repeat(rows, 1)
        return self.inverse(z, observed.repeat_interleave(draws, 0)).view(rows, draws, self.sought).mean(1)


@ranged
def invertible(
    *,
    input_shape: Sequence[int],
    classes: int,
    blocks: Count = 4,
    hidden: Count = 128,
    embedding: Count | None = None,
    clamp: Positive = 2.0,
    draws: Count = 64,
    seed: int | None = None,
) -> nn.Module:
    """Conditional invertible network for an inverse problem: the distribution of targets given inputs.

    For the stream `inversion` of any regression data set, whose rows have the targets in front of the inputs, and
    criterion=flow. `predict` gives the mean of `draws` draws; in Python `model.sample(observed, 100, generator)` gives
    them all.

    Args:
        input_shape: numbers of a row: what is sought, then what was observed.
        classes: numbers that are sought.
        blocks: affine coupling blocks, with a fixed permutation behind each.
        hidden: units of each hidden layer of a block.
        embedding: numbers that observations are brought to before the blocks, for long ones; null leaves them as they
            are.
        clamp: largest logarithm of a block's scale.
        draws: that a prediction is the mean of.
        seed: of the initial weights, permutations and draws; None draws weights from torch's global generator.

    Raises:
        ConfigError: for inputs that are not vectors, or fewer numbers than are sought.

    Example:
        >>> model = invertible(input_shape=(7,), classes=3, seed=0)
        >>> rows = torch.randn(5, 7)
        >>> z = model(rows)[:, :3]
        >>> torch.allclose(model.inverse(z, rows[:, 3:]), rows[:, :3], atol=1e-5)
        True
    """
    check_sizes("input_shape", input_shape)
    if len(input_shape) != 1 or input_shape[0] < classes or classes < 1:
        raise ConfigError(
            f"`invertible` takes rows of what is sought ({classes} numbers, as many as a target has) and what was"
            f" observed, and these inputs have shape {tuple(input_shape)}. Choose the stream `inversion`."
        )
    with seeded(seed):
        observed = math.prod(input_shape) - classes
        return ConditionalFlow(classes, observed, blocks, hidden, embedding, clamp, draws, 0 if seed is None else seed)


invertible.criteria = ("flow",)  # type: ignore[attr-defined]
