"""A generative model that an operation trains beside the network, with an optimiser of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Tree
from holdfast.core.ranks import average_over_ranks
from holdfast.core.services import Services
from holdfast.models.vae import VAE, ConvVAE, Likelihood, suits

Choice = Literal["auto", "bernoulli", "gaussian"]
Kind = Literal["auto", "dense", "conv"]
FIRST_CHANNELS = 32
"""Of a convolutional encoder; each further layer has twice as many."""


class GenerativeModel:
    """A variational autoencoder and its Adam, made when the first inputs show their shape; both are saved.

    Args:
        hidden: units of the encoder's hidden layers.
        latent: size of the latent variable.
        likelihood: of an input given the latent variable; `auto`: Bernoulli if the first batch lies within 0 to 1.
        rate: learning rate of Adam.
        kind: `dense` layers; `conv`, as many convolutions of 32, 64 ... channels and one hidden layer; or `auto`,
            convolutions for images in colour.

    Raises:
        ConfigError: an unknown likelihood or kind.
    """

    def __init__(
        self, hidden: Sequence[int], latent: int, likelihood: Choice, rate: float, kind: Kind = "auto"
    ) -> None:
        if kind not in ("auto", "dense", "conv"):
            raise ConfigError(f"kind={kind!r} is unknown. Choose auto, dense or conv.")
        self.kind = kind
        if likelihood not in ("auto", "bernoulli", "gaussian"):
            raise ConfigError(f"likelihood={likelihood!r} is unknown. Choose auto, bernoulli or gaussian.")
        self.hidden = list(hidden)
        self.latent = latent
        self.likelihood = likelihood
        self.rate = rate
        self.device = torch.device("cpu")
        self.vae: VAE | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def fit(self, parts: Sequence[tuple[Tensor, float]], generator: torch.Generator) -> None:
        """One step on the weighted sum of the mean losses of `parts`, each divided by the number of values of an input.

        Args:
            parts: inputs `[rows, ...]`, as `unit` gives them, with the factor of their loss.
            generator: CPU generator of the draws; the initial weights come from it too.
        """
        if self.vae is None:
            first = parts[0][0]
            seed = int(torch.randint(2**31, (), generator=generator))
            self._build(first.shape[1:], self._choose(first), first.dtype, seed)
        vae, optimizer = self.vae, self._optimizer
        assert vae is not None
        assert optimizer is not None
        with torch.enable_grad():
            losses = [vae(inputs, generator).mean() * (factor / vae.values) for inputs, factor in parts]
            parameters = list(vae.parameters())
            grads = average_over_ranks(list(torch.autograd.grad(sum(losses), parameters)))  # type: ignore[arg-type]
            for parameter, gradient in zip(parameters, grads):
                parameter.grad = gradient
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    def sample(self, size: int, learner: Services, name: str) -> Tensor:
        """This rank's part of `size` new inputs, by the generator called `name`, without a graph."""
        assert self.vae is not None
        return self.vae.sample(learner.share(size), learner.rng(name))

    def _choose(self, inputs: Tensor) -> Likelihood:
        least, most = float(inputs.min()), float(inputs.max())
        within = least >= 0 and most <= 1
        if self.likelihood == "auto":
            return "bernoulli" if within else "gaussian"
        if self.likelihood == "bernoulli" and not within:
            raise DataError(
                f"inputs run from {least:.3g} to {most:.3g}, and a Bernoulli likelihood is for values from 0 to 1. "
                "Write likelihood='gaussian', or scale the inputs."
            )
        return self.likelihood

    def _build(self, shape: Sequence[int], likelihood: Likelihood, dtype: torch.dtype, seed: int) -> None:
        if self.kind == "conv" or (self.kind == "auto" and suits(shape)):
            channels = [FIRST_CHANNELS * 2**level for level in range(len(self.hidden))]
            made: VAE = ConvVAE(shape, channels, self.hidden[0], self.latent, likelihood, seed=seed)
        else:
            made = VAE(shape, self.hidden, self.latent, likelihood, seed=seed)
        self.vae = made.to(self.device, dtype)
        self._optimizer = torch.optim.Adam(self.vae.parameters(), lr=self.rate)

    def state(self) -> dict[str, Any]:
        """A copy of all that `load` needs, as tensors and plain values."""
        if self.vae is None or self._optimizer is None:
            return {}
        return copy.deepcopy(
            {
                "shape": list(self.vae.input_shape),
                "likelihood": self.vae.likelihood,
                "vae": dict(self.vae.state_dict()),
                "optimizer": self._optimizer.state_dict(),
            }
        )

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on this model's device."""
        self.vae = self._optimizer = None
        if state:
            self._build(state["shape"], state["likelihood"], state["vae"]["output.bias"].dtype, 0)
            self.vae.load_state_dict(state["vae"])  # type: ignore[union-attr, attr-defined]
            self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # type: ignore[union-attr, attr-defined]


def unit(inputs: Tree, learner: Services) -> Tensor:
    """Raw inputs as a generative model sees them: integers divided by their scale (255), floats as they are.

    What it generates is like these: floats that `learner.prepare` normalises as it does images.

    Args:
        inputs: raw, `[rows, ...]`.
        learner: its `prepare` knows the scale.

    Raises:
        ConfigError: inputs that are not one tensor.
    """
    if not isinstance(inputs, Tensor):
        raise ConfigError(
            f"a generative model learns one tensor, and these inputs are a {type(inputs).__name__}. "
            "Choose a method that replays stored samples, or join the inputs into one tensor."
        )
    if inputs.is_floating_point():
        return inputs.detach()
    return inputs.to(torch.float32) / float(getattr(learner.prepare, "scale", 255.0))
