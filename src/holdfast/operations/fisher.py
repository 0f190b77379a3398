"""The diagonal of the Fisher information, from per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.criteria import Likelihood, likelihood
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Data, Tree, tree_map
from holdfast.core.inspect import eval_mode
from holdfast.core.ranks import mean_over_ranks
from holdfast.core.services import Services
from holdfast.operations.per_sample import Diagonal, OneByOne, layer_outputs, recorded, summed, supported_layers

Kind = Literal["exact", "true", "predicted", "empirical", "batch"]


def fisher_diagonal(
    learner: Services,
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

    The distribution p is the one that the criterion stands for (`core.criteria`): of class indices the softmax of the
    outputs; for mean squared error a normal one around each of the d outputs, for binary cross-entropy a yes or no for
    each. The last two criteria are means over the outputs, so their F is that of the d outputs together, over d: with
    p_j the sigmoid of output j, the expectations are

    $$ F_i = \frac{2}{d} \sum_j (\partial_{\theta_i} f_j)^2 \quad\text{and}\quad
       F_i = \frac{1}{d} \sum_j p_j (1 - p_j) (\partial_{\theta_i} f_j)^2, $$

    the diagonals of the criteria's Gauss-Newton matrices.

    Args:
        learner: model and criterion; the model is put into eval mode for the pass, so BatchNorm stays as it is.
        data: over which the mean is taken.
        kind: how y is chosen. `exact`: the expectation over all targets under the model (one backward per output);
            `true`: one target drawn from the model; `predicted`: the class the model finds likeliest (Hsu et al. 2018;
            smaller by 1 - p where the model is sure); `empirical`: the data's own target (any criterion);
            `batch`: the squared gradient of each batch's mean loss, times its size. The last is not the Fisher
            diagonal: it is what several libraries compute, smaller by about the batch size, and here for comparison.
        samples: use this many samples, drawn without replacement; default: all.
        batch_size: samples per forward; default: 128 where the model has convolutions, else 512 (the `batch` kind: 128,
            whose result depends on it).
        generator: for the choice of samples and of targets.
        closed_form: True, False, or None to use the closed form where the model allows it.

    Returns:
        One tensor per trainable parameter, shaped like it.

    Raises:
        ConfigError: `exact` or `true` with targets that are no class indices, under a criterion whose distribution is
            not known.

    Linear, convolution and BatchNorm layers have a closed form: with a layer's inputs a and output gradients d of
    each sample, the squared weight gradient of a linear layer summed over samples is the product (d^2)^T (a^2),
    one matrix product instead of one backward per sample. Other layers go through `vmap(grad)` in chunks of 32.

    Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", eq. 3; the kinds are
    told apart by Kunstner et al. 2019, "Limitations of the empirical Fisher approximation".
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"Fisher kind {kind!r} is unknown. Choose one of {', '.join(get_args(Kind))}.")
    order = torch.arange(len(data))
    if samples is not None and samples < len(data):
        order = torch.randperm(len(data), generator=generator)[:samples]
    if kind != "batch":  # which depends on who is in a batch with whom
        order = learner.share.rows(order)
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
                grads: Iterator[Tensor] = iter(learner.grad(loss, average=False))
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


Labels = Iterator[tuple[Tensor, Tensor | float | None]]
"""Targets to differentiate by, with the factor of each sample's squared gradient (None for 1)."""


def distribution(criterion: Callable[..., Tensor], targets: Tensor, kind: Kind) -> Likelihood | None:
    """What the targets are drawn from: of class indices the softmax, of others what the criterion stands for.

    Args:
        criterion: of the learner.
        targets: some of them; only their dtype is looked at.
        kind: of Fisher diagonal; `exact` and `true` draw.

    Raises:
        ConfigError: they draw, and the criterion says no distribution.
    """
    if not targets.is_floating_point():
        return "softmax"
    found = likelihood(criterion)
    if kind == "predicted":
        raise ConfigError(
            "the 'predicted' Fisher diagonal takes the likeliest class, and these targets are no classes."
            " Write fisher='true' or fisher='empirical'."
        )
    if kind in ("exact", "true") and found not in ("normal", "bernoulli"):
        name = getattr(criterion, "__name__", type(criterion).__name__)
        raise ConfigError(
            f"the {kind!r} Fisher diagonal draws targets from the model, and {name} says no distribution of "
            f"{targets.dtype} targets. Write fisher='empirical', or train on mse_loss or"
            " binary_cross_entropy_with_logits."
        )
    return found


def _labels(
    outputs: Tensor, targets: Tensor, kind: Kind, drawn_from: Likelihood | None, generator: torch.Generator | None
) -> Labels:
    """The targets to differentiate by, with the factor of each sample's squared gradient."""
    width = outputs[0].numel() if len(outputs) else 1
    if kind == "empirical":
        yield targets, None if drawn_from in (None, "softmax") else float(width)
        return
    if not torch.isfinite(outputs.detach().softmax(-1) if drawn_from == "softmax" else outputs).all():
        raise UsageError(
            "the model's outputs are not finite any more, so no Fisher diagonal can be measured. Training diverged:"
            " lower the learning rate, or the strength of the penalty (lr * strength * F must stay below 2)."
        )
    if drawn_from == "softmax":
        yield from _classes(outputs.detach().softmax(-1), targets, kind, generator)
    else:
        yield from _numbers(outputs.detach(), kind, drawn_from == "normal", width, generator)


def _classes(probabilities: Tensor, targets: Tensor, kind: Kind, generator: torch.Generator | None) -> Labels:
    """Class indices: one drawn for each row, or every class with its probability."""
    if kind == "true":
        drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator).squeeze(1)
        yield drawn.to(probabilities.device), None
        return
    if kind == "predicted":
        yield probabilities.argmax(1), None
        return
    for label in range(probabilities.shape[1]):
        yield torch.full_like(targets, label), probabilities[:, label]


def _numbers(outputs: Tensor, kind: Kind, normal: bool, width: int, generator: torch.Generator | None) -> Labels:
    """Numbers, or a yes or no for each output: drawn, or one standard deviation away from the outputs in turn.

    The criterion is the negative log-likelihood of all d outputs (of variance 1/2 where they are normal), over d: with
    its squared gradient, d times that is the Fisher information over d.
    """
    mean = outputs if normal else outputs.sigmoid()
    if kind == "true":
        if normal:
            noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype).to(outputs.device)
            yield mean + 0.5**0.5 * noise, float(width)
        else:
            drawn = torch.rand(outputs.shape, generator=generator, dtype=outputs.dtype).to(outputs.device)
            yield (drawn < mean).to(outputs.dtype), float(width)
        return
    deviation = torch.full_like(mean, 0.5**0.5) if normal else (mean * (1 - mean)).sqrt()
    for place in range(width):
        away = torch.zeros_like(mean).flatten(1)
        away[:, place] = deviation.flatten(1)[:, place]
        yield mean + away.view_as(mean), float(width)


def _closed_form(
    learner: Services,
    layers: dict[str, nn.Module],
    inputs: Tree,
    targets: Tensor,
    task: int | Tensor | None,
    kind: Kind,
    generator: torch.Generator | None,
    required: bool | None = None,
) -> Diagonal | None:
    result: Diagonal = {}
    drawn_from = distribution(learner.criterion, targets, kind)
    criterion = _criterion(learner, kind, drawn_from)
    with recorded(layers) as seen, torch.enable_grad():
        logits = learner(inputs, task)
        if not required and any(len(calls) != 1 for calls in seen.values()):
            return None
        outputs = layer_outputs(seen)
        for labels, factor in _labels(logits, targets, kind, drawn_from, generator):
            loss = criterion(logits, labels) * len(targets)
            deltas = torch.autograd.grad(loss, outputs, retain_graph=True)
            if factor is not None:
                root = factor**0.5 if isinstance(factor, float) else factor.sqrt()
                shaped = [root if isinstance(root, float) else root.view(-1, *[1] * (d.dim() - 1)) for d in deltas]
                deltas = tuple(delta * value for delta, value in zip(deltas, shaped))
            for name, value in summed(layers, seen, deltas, torch.square).items():
                result[name] = result[name] + value if name in result else value
    return result


def _vmapped(
    learner: Services,
    inputs: Tree,
    targets: Tensor,
    task: int | Tensor | None,
    kind: Kind,
    generator: torch.Generator | None,
) -> Diagonal:
    drawn_from = distribution(learner.criterion, targets, kind)
    model, criterion = OneByOne(learner, inputs, task), _criterion(learner, kind, drawn_from)
    result: Diagonal = {}
    for labels, factor in _labels(model.outputs(), targets, kind, drawn_from, generator):
        weight = torch.full((len(labels),), factor, device=labels.device) if isinstance(factor, float) else factor
        for name, value in model.summed(criterion, labels, torch.square, weight).items():
            result[name] = result[name] + value if name in result else value
    return result


def _criterion(learner: Services, kind: Kind, drawn_from: Likelihood | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss to differentiate: of class indices drawn from the model the cross-entropy, else the learner's."""
    return F.cross_entropy if kind != "empirical" and drawn_from == "softmax" else learner.criterion
