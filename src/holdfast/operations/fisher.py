"""The diagonal of the Fisher information, from per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Data, Tree, tree_map
from holdfast.core.inspect import eval_mode
from holdfast.core.learner import Learner, mean_over_ranks
from holdfast.operations.per_sample import Diagonal, OneByOne, layer_outputs, recorded, summed, supported_layers

Kind = Literal["exact", "true", "empirical", "batch"]


def fisher_diagonal(
    learner: Learner,
    data: Data,
    kind: Kind = "true",
    *,
    samples: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    closed_form: bool | None = None,
) -> Diagonal:
    r"""Diagonal of the Fisher information of the model's outputs, by parameter name.

    $$ F_i = \frac{1}{N} \sum_{n=1}^{N} \mathbb{E}_y \Big[ \big( \partial_{\theta_i} \log p_\theta(y \mid x_n) \big)^2
    \Big] $$

    Args:
        learner: model and criterion; the model is put into eval mode for the pass, so BatchNorm stays as it is.
        data: over which the mean is taken.
        kind: how y is chosen. `exact`: the expectation over all labels under the model (one backward per label);
            `true`: one label drawn from the model; `empirical`: the data's own label (any criterion);
            `batch`: the squared gradient of each batch's mean loss, times its size. The last is not the Fisher
            diagonal: it is what several libraries compute, smaller by about the batch size, and here for comparison.
        samples: use this many samples, drawn without replacement; default: all.
        batch_size: samples per forward; default: 128 where the model has convolutions, else 512 (the `batch` kind: 128,
            whose result depends on it).
        generator: for the choice of samples and of labels.
        closed_form: True, False, or None to use the closed form where the model allows it.

    Returns:
        One tensor per trainable parameter, shaped like it.

    Linear, convolution and BatchNorm layers have a closed form: with a layer's inputs a and output gradients d of
    each sample, the squared weight gradient of a linear layer summed over samples is the product (d^2)^T (a^2),
    one matrix product instead of one backward per sample. Other layers go through `vmap(grad)` in chunks of 32.

    Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", eq. 3; the kinds are
    told apart by Kunstner et al. 2019, "Limitations of the empirical Fisher approximation".
    """
    if kind not in ("exact", "true", "empirical", "batch"):
        raise ConfigError(f"Fisher kind {kind!r} is unknown. Choose one of exact, true, empirical, batch.")
    order = torch.arange(len(data))
    if samples is not None and samples < len(data):
        order = torch.randperm(len(data), generator=generator)[:samples]
    model = learner.model
    if batch_size is None:
        small = kind == "batch" or any(isinstance(module, nn.Conv2d) for module in model.modules())
        batch_size = 128 if small else 512
    with eval_mode(model):
        total = {name: torch.zeros_like(p) for name, p in learner.named_parameters().items()}
        layers = supported_layers(model) if closed_form is not False and kind != "batch" else None
        if closed_form and layers is None:
            raise ConfigError(
                "the Fisher closed form was asked for, but the model has layers without one. Leave it out."
            )
        for batch in data.batches(order, batch_size):
            inputs = tree_map(lambda t: t.to(learner.device), batch.inputs)
            targets = batch.targets.to(learner.device)
            if kind == "batch":
                loss = learner.loss_on(inputs, targets, batch.task)
                grads: Iterator[Tensor] = iter(learner.grad(loss))
                part = {name: next(grads).square() * len(targets) for name in total}
            elif layers is not None:
                found = _closed_form(learner, layers, inputs, targets, batch.task, kind, generator, closed_form)
                if found is None:  # some layer is not called exactly once
                    layers, found = None, _vmapped(learner, inputs, targets, batch.task, kind, generator)
                part = found
            else:
                part = _vmapped(learner, inputs, targets, batch.task, kind, generator)
            for name, value in part.items():
                total[name] += value
    return mean_over_ranks(total, len(order))


def _labels(
    logits: Tensor, targets: Tensor, kind: Kind, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The labels to differentiate by, with the factor of each sample's squared gradient."""
    if kind == "empirical":
        yield targets, None
        return
    probabilities = logits.detach().softmax(-1)
    if not torch.isfinite(probabilities).all():
        raise UsageError(
            "the model's outputs are not finite any more, so no Fisher diagonal can be measured. Training diverged:"
            " lower the learning rate, or the strength of the penalty (lr * strength * F must stay below 2)."
        )
    if kind == "true":
        yield torch.multinomial(probabilities.cpu(), 1, generator=generator).squeeze(1).to(logits.device), None
        return
    for label in range(logits.shape[1]):
        yield torch.full_like(targets, label), probabilities[:, label]


def _per_sample(learner: Learner, kind: Kind) -> Callable[[Tensor, Tensor], Tensor]:
    return learner.criterion if kind == "empirical" else F.cross_entropy


def _closed_form(
    learner: Learner,
    layers: dict[str, nn.Module],
    inputs: Tree,
    targets: Tensor,
    task: int | Tensor | None,
    kind: Kind,
    generator: torch.Generator | None,
    required: bool | None = None,
) -> Diagonal | None:
    result: Diagonal = {}
    criterion = _per_sample(learner, kind)
    with recorded(layers) as seen, torch.enable_grad():
        logits = learner(inputs, task)
        if not required and any(len(calls) != 1 for calls in seen.values()):
            return None
        outputs = layer_outputs(seen)
        for labels, factor in _labels(logits, targets, kind, generator):
            loss = criterion(logits, labels) * len(targets)
            deltas = torch.autograd.grad(loss, outputs, retain_graph=True)
            if factor is not None:
                root = factor.sqrt()
                deltas = tuple(delta * root.view(-1, *[1] * (delta.dim() - 1)) for delta in deltas)
            for name, value in summed(layers, seen, deltas, torch.square).items():
                result[name] = result[name] + value if name in result else value
    return result


def _vmapped(
    learner: Learner,
    inputs: Tree,
    targets: Tensor,
    task: int | Tensor | None,
    kind: Kind,
    generator: torch.Generator | None,
) -> Diagonal:
    model, criterion = OneByOne(learner, inputs, task), _per_sample(learner, kind)
    result: Diagonal = {}
    for labels, factor in _labels(model.outputs(), targets, kind, generator):
        for name, value in model.summed(criterion, labels, torch.square, factor).items():
            result[name] = result[name] + value if name in result else value
    return result
