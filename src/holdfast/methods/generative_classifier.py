"""The generative classifier: one variational autoencoder per class."""

from typing import Literal

from holdfast.core.method import Method, published
from holdfast.core.ranges import Count, Positive
from holdfast.operations import GenerativeClassifier


@published(
    paper="van de Ven, Li and Tolias, Class-incremental learning with generative classifiers, CVPR workshops 2021"
)
def generative_classifier(
    units: Count = 85,
    layers: Count = 2,
    latent: Count = 5,
    rate: Positive = 1e-3,
    samples: Count = 50,
    likelihood: Literal["auto", "bernoulli", "gaussian"] = "auto",
    gaussian: bool = False,
    kind: Literal["auto", "dense", "conv"] = "auto",
) -> Method:
    r"""A sample belongs to the class whose generative model finds it likeliest.

    $$ \hat y = \arg\max_y \log p_y(x), \qquad
       p_y(x) \approx \frac{1}{S} \sum_s \frac{p_y(x \mid z_s) \, p(z_s)}{q_y(z_s \mid x)} $$

    Args:
        units: of each hidden layer of each model's encoder and decoder.
        layers: hidden layers of each of the two.
        latent: size of the latent variable.
        rate: learning rate of each model's Adam.
        samples: S, importance samples in evaluation.
        likelihood: `bernoulli` for inputs from 0 to 1, `gaussian` for any others, `auto` by the first batch.
        gaussian: predictions by a normal p(x | z) of variance 1, whatever was trained, as van de Ven et al. 2022.
        kind: `dense` layers, `conv` for convolutions, or `auto`: convolutions for images in colour.

    Differences: 50 importance samples instead of 10,000; the loop's network is trained beside it and not used.
    """
    return Method(
        GenerativeClassifier(
            units=units,
            layers=layers,
            latent=latent,
            rate=rate,
            samples=samples,
            likelihood=likelihood,
            gaussian=gaussian,
            kind=kind,
        )
    )
