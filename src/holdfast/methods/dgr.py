"""Deep generative replay (DGR)."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Positive
from holdfast.operations import GenerativeReplay


@published(paper="Shin et al., Continual learning with deep generative replay, NeurIPS 2017")
def dgr(
    size: Count = 128,
    units: Count = 400,
    layers: Count = 2,
    latent: Count = 100,
    rate: Positive = 1e-3,
    likelihood: Literal["auto", "bernoulli", "gaussian"] = "auto",
    kind: Literal["auto", "dense", "conv"] = "auto",
) -> Method:
    r"""Replay of samples that a generator makes and the network of before labels.

    $$ L = \frac{1}{c} \ell(x, y) + \Big( 1 - \frac{1}{c} \Big) \ell(x', \hat y'), \qquad
       x' = G_{c-1}(z), \;\; \hat y' = \arg\max_{y \in \text{old}} f_{\theta_{c-1}}(x')_y $$

    Args:
        size: generated samples per step.
        units: of each hidden layer of the generator's encoder and decoder.
        layers: hidden layers of each of the two.
        latent: size of the generator's latent variable.
        rate: learning rate of the generator's Adam.
        likelihood: `bernoulli` for inputs from 0 to 1, `gaussian` for any others, `auto` by the first batch.
        kind: `dense` layers, `conv` for convolutions, or `auto`: convolutions for images in colour.

    Differences: the generator is a variational autoencoder, as in van de Ven et al. 2022; the paper's is adversarial.
    """
    return Method(
        GenerativeReplay(
            size=size, units=units, layers=layers, latent=latent, rate=rate, likelihood=likelihood, kind=kind
        )
    )
