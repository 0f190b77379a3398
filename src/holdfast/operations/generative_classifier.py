"""Generative classifier: a generative model per class; a sample belongs to the class whose model likes it best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.core.experience import Tree
from holdfast.core.operation import Operation
from holdfast.core.ranges import Count, Positive
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.models.heads import MASKED
from holdfast.operations._parts.generative_model import Choice, GenerativeModel, Kind, unit


class ClassModels:
    """A generative model for each class, made when the class first appears; saved as one.

    Args:
        hidden: units of the encoder's hidden layers.
        latent: size of the latent variable.
        likelihood: of an input given the latent variable.
        rate: learning rate of each Adam.
        kind: `dense`, `conv`, or `auto` by the shape of inputs.
    """

    def __init__(self, hidden: Sequence[int], latent: int, likelihood: Choice, rate: float, kind: Kind) -> None:
        self._arguments = (hidden, latent, likelihood, rate, kind)
        self.device = torch.device("cpu")
        self.models: dict[int, GenerativeModel] = {}

    def of(self, label: int) -> GenerativeModel:
        """The model of a class."""
        if label not in self.models:
            self.models[label] = GenerativeModel(*self._arguments)
            self.models[label].device = self.device
        return self.models[label]

    def state(self) -> dict[str, Any]:
        """The state of every model."""
        return {"models": {label: model.state() for label, model in self.models.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.models = {}
        for label, saved in state["models"].items():
            self.of(label).load(saved)


class GenerativeClassifier(Operation):
    r"""In evaluation the outputs are the log-probabilities of the classes under one generative model for each.

    $$ z_y(x) = \log p(y \mid x) = \log p(x \mid y) - \log \sum_{y'} p(x \mid y'), \qquad
       p(x \mid y) \approx \frac{1}{S} \sum_{s=1}^{S} \frac{p_y(x \mid z_s) \, p(z_s)}{q_y(z_s \mid x)}, \;\;
       z_s \sim q_y(z \mid x) $$

    with equal probabilities of all classes beforehand. Each class has a variational autoencoder with its own Adam,
    which sees that class's samples only: learning a class cannot harm another one, and no boundaries are needed.
    The network of the loop is trained as ever and has no part in the predictions. The classes of each batch are
    read on the host, so each step waits for the device. Evaluation costs S decodings per sample and class.

    Args:
        units: of each hidden layer of each encoder and decoder.
        layers: hidden layers of each of the two.
        latent: size of z.
        rate: learning rate of each Adam.
        samples: S, importance samples per input in evaluation; the paper has 10,000.
        likelihood: of an input given z: `bernoulli` for values from 0 to 1, `gaussian` for any others, `auto` by the
            first batch.
        gaussian: the predictions take p(x | z) as normal with variance 1, whatever was trained; van de Ven et al. 2022
            do, after training with Bernoulli.
        kind: of each model: `dense` layers; `conv`, convolutions of 32, 64 ... channels and one layer of `units`;
            `auto` takes those for images in colour.

    Raises:
        ConfigError: a size or rate that is not positive, or inputs that are not one tensor.
        DataError: inputs outside 0 to 1 with a Bernoulli likelihood.

    Source: van de Ven, Li and Tolias 2021, "Class-incremental learning with generative classifiers", eq. 2 and 3.
    Differences: 50 importance samples unless told otherwise; a step of each model takes the rows of its class in
    the current batch, so batches of a class are smaller than the loop's.

    Example:
        >>> GenerativeClassifier().latent
        5
    """

    alone = "trains a model for each class on all of its samples"
    role = "knowledge incorporation"
    captured = "parts every batch by class, on the host, among a model for each"
    needs = frozenset({"classes"})
    state = ("models",)

    def __init__(
        self,
        units: Count = 85,
        layers: Count = 2,
        latent: Count = 5,
        rate: Positive = 1e-3,
        samples: Count = 50,
        likelihood: Choice = "auto",
        gaussian: bool = False,
        kind: Kind = "auto",
    ) -> None:
        super().__init__()
        self.units = units
        self.layers = layers
        self.latent = latent
        self.rate = rate
        self.samples = samples
        self.likelihood = likelihood
        self.gaussian = gaussian
        self.kind = kind
        self.models = ClassModels([units] * layers, latent, likelihood, rate, kind)

    def setup(self, learner: Services) -> None:
        """Put the models where the network is."""
        self.models.device = learner.device

    def observe(self, step: Step, learner: Services) -> None:
        """One step of the model of each class in the batch."""
        inputs = unit(step.inputs, learner)
        for label in torch.unique(step.targets).tolist():
            rows = inputs[step.targets == label]
            self.models.of(label).fit([(rows, 1.0)], learner.rng(f"noise/{self.name}"))

    def predict(self, outputs: Tensor, inputs: Tree, learner: Services) -> Tensor:
        """Log-probabilities of the classes, `[rows, outputs]`; classes without a model get none."""
        labels = sorted(label for label in self.models.models if label < outputs.shape[1])
        if not labels:
            return outputs
        data = unit(inputs, learner)
        generator = learner.rng(f"importance/{self.name}")
        before = generator.get_state()
        likelihoods = [self._likelihood(label, data, generator) for label in labels]
        generator.set_state(before)  # equal inputs get equal predictions
        scores = torch.stack(likelihoods, dim=1).log_softmax(1)
        answer = torch.full_like(outputs, MASKED, dtype=scores.dtype)
        answer[:, labels] = scores
        return answer

    def _likelihood(self, label: int, data: Tensor, generator: torch.Generator) -> Tensor:
        vae = self.models.of(label).vae
        assert vae is not None
        return vae.log_likelihood(data, self.samples, generator, self.gaussian)
