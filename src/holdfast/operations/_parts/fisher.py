"""The diagonal of the Fisher information, from per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.criteria import Likelihood, ignored_label, likelihood
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Data, Tree, tree_map
from holdfast.core.forward import gradients_of
from holdfast.core.inspect import eval_mode
from holdfast.core.ranks import mean_over_ranks
from holdfast.core.services import Services
from holdfast.operations._parts.layer_gradients import Diagonal, square
from holdfast.operations._parts.per_sample import Labels, PerSample
from holdfast.operations._parts.rows import class_dim, counted, sum_of_rows

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
        One real tensor per trainable parameter, shaped like it.

    Raises:
        ConfigError: `exact` or `true` with targets that are not class indices, under a criterion whose distribution is
            not known; `exact` with a class at each position; an unknown kind.
        UsageError: the outputs are not finite, or have no value per class for each target.

    Linear, convolution and BatchNorm layers have a closed form: with a layer's inputs a and output gradients d of
    each sample, the squared weight gradient of a linear layer summed over samples is the product (d^2)^T (a^2),
    one matrix product instead of one backward per sample. Other models go through `vmap(grad)`, and those that it does
    not take through one backward a sample (`operations.per_sample`, which also checks that a faster way is right).

    Targets `[rows, ...]` may have a class at each position (segmentation, language models): a sample's loss is the mean
    over its T positions that count, and its part of F that of the T positions together, over T. Samples whose labels
    are all the criterion's `ignore_index` are left out. Of a complex parameter it is the squared magnitude.

    Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", eq. 3; the kinds are
    told apart by Kunstner et al. 2019, "Limitations of the empirical Fisher approximation".
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"Fisher kind {kind!r} is unknown. Choose one of {', '.join(get_args(Kind))}.")
    order = counted(torch.arange(len(data)), data.targets, learner.criterion)
    if samples is not None and samples < len(order):
        order = order[torch.randperm(len(order), generator=generator)[:samples]]
    if kind != "batch":  # which depends on who is in a batch with whom
        order = learner.share.rows(order)
    model = learner.model
    if batch_size is None:
        small = kind == "batch" or any(isinstance(module, nn.Conv2d) for module in model.modules())
        batch_size = 128 if small else 512
    named = learner.named_parameters()
    with eval_mode(model):
        total = {name: square(torch.zeros_like(p)) for name, p in named.items()}
        measured = None if kind == "batch" else PerSample(learner, square, closed_form)
        for batch in data.batches(order, batch_size):
            inputs = tree_map(lambda t: t.to(learner.device), batch.inputs)
            targets = batch.targets.to(learner.device)
            if measured is None:
                loss = learner.loss_on(inputs, targets, batch.task)
                gradients = gradients_of(loss, list(named.values()))[0]
                part = {name: square(value) * len(targets) for name, value in zip(named, gradients)}
            else:
                part = _of_batch(measured, inputs, targets, batch.task, kind, generator)
                measured.warn(len(order))
            for name, value in part.items():
                total[name] += value
    return mean_over_ranks(total, len(order))


def _of_batch(
    measured: PerSample,
    inputs: Tree,
    targets: Tensor,
    task: int | Tensor | None,
    kind: Kind,
    generator: torch.Generator | None,
) -> Diagonal:
    """The part of one batch: the labels that its kind asks for, and the loss that is differentiated."""
    criterion = measured.learner.criterion
    drawn_from = distribution(criterion, targets, kind)
    drawn = kind != "empirical" and drawn_from == "softmax"
    ignored = ignored_label(criterion)

    dim = 1

    def draw(outputs: Tensor, targets: Tensor) -> Labels:
        nonlocal dim
        dim = class_dim(criterion, outputs, targets)
        return _labels(outputs, targets, kind, drawn_from, generator, dim, ignored)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        if not drawn:
            return sum_of_rows(criterion, outputs, labels)
        if outputs.dim() == 2 and labels.dim() == 1:
            return F.cross_entropy(outputs, labels) * len(labels)
        return _over_positions(outputs, labels, dim, ignored)

    return measured.summed(inputs, targets, task, loss, draw)


def distribution(criterion: Callable[..., Tensor], targets: Tensor, kind: Kind) -> Likelihood | None:
    """What the targets are drawn from: of class indices the softmax, of others what the criterion stands for.

    Args:
        criterion: of the learner.
        targets: some of them, `[rows, ...]`; only their dtype and dimensions are looked at.
        kind: of Fisher diagonal; `exact` and `true` draw.

    Raises:
        ConfigError: they draw, and the criterion says no distribution; or `exact` with a class at each position.
    """
    if not targets.is_floating_point():
        if kind == "exact" and targets.dim() > 1:
            raise ConfigError(
                "the 'exact' Fisher diagonal takes a backward for every class, and these targets have a class at each"
                " position: that is one for every class and position. Write fisher='true' or fisher='empirical'."
            )
        return "softmax"
    family = likelihood(criterion)
    if kind == "predicted":
        raise ConfigError(
            "the 'predicted' Fisher diagonal takes the likeliest class, and these targets are no classes."
            " Write fisher='true' or fisher='empirical'."
        )
    if kind in ("exact", "true") and family not in ("normal", "bernoulli"):
        name = getattr(criterion, "__name__", type(criterion).__name__)
        raise ConfigError(
            f"the {kind!r} Fisher diagonal draws targets from the model, and {name} says no distribution of "
            f"{targets.dtype} targets. Write fisher='empirical', or train on mse_loss or"
            " binary_cross_entropy_with_logits."
        )
    return family


def _labels(
    outputs: Tensor,
    targets: Tensor,
    kind: Kind,
    drawn_from: Likelihood | None,
    generator: torch.Generator | None,
    dim: int,
    ignored: int,
) -> Labels:
    """The targets to differentiate by, with the factor of each sample's squared gradient."""
    width = outputs[0].numel() if len(outputs) else 1
    factor: Tensor | float | None = None
    if drawn_from == "softmax" and targets.dim() > 1:  # a class at each position, and the loss is their mean
        factor = (targets != ignored).flatten(1).sum(1).to(outputs.dtype)
    elif drawn_from in ("normal", "bernoulli"):
        factor = float(width)
    if kind == "empirical":
        yield targets, factor
        return
    if not torch.isfinite(outputs.detach().softmax(dim) if drawn_from == "softmax" else outputs).all():
        raise UsageError(
            "the model's outputs are not finite any more, so no Fisher diagonal can be measured. Training diverged:"
            " lower the learning rate, or the strength of the penalty (lr * strength * F must stay below 2)."
        )
    if drawn_from == "softmax":
        probabilities = outputs.detach().softmax(dim).movedim(dim, -1)
        for labels, probability in _classes(probabilities, targets, kind, generator):
            if targets.dim() > 1:
                labels = torch.where(targets == ignored, ignored, labels)
            yield labels, factor if probability is None else probability
    else:
        yield from _numbers(outputs.detach(), kind, drawn_from == "normal", width, generator)


def _classes(
    probabilities: Tensor, targets: Tensor, kind: Kind, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Class indices like the targets: one drawn for each, or every class with its probability."""
    if kind == "true":
        flat = probabilities.reshape(-1, probabilities.shape[-1])
        drawn = torch.multinomial(flat.cpu(), 1, generator=generator).squeeze(1)
        yield drawn.to(probabilities.device).view(targets.shape), None
        return
    if kind == "predicted":
        yield probabilities.argmax(-1).view(targets.shape), None
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
    for output in range(width):
        away = torch.zeros_like(mean).view(len(mean), -1)
        away[:, output] = deviation.reshape(len(mean), -1)[:, output]
        yield mean + away.view_as(mean), float(width)


def _over_positions(outputs: Tensor, labels: Tensor, dim: int, ignored: int) -> Tensor:
    """The sum over rows of the mean cross-entropy of each row's positions that count."""
    wanted = labels.reshape(-1) if outputs.dim() == 2 else labels
    losses = F.cross_entropy(outputs.movedim(dim, 1), wanted, reduction="none", ignore_index=ignored)
    count = (labels != ignored).flatten(1).sum(1).clamp(min=1)
    return (losses.reshape(len(labels), -1).sum(1) / count).sum()
