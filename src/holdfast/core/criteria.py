"""What a criterion says about its targets: which ones take no class labels, and whose likelihood it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, unknown

Measure = Callable[[Tensor, Tensor], Tensor]
Likelihood = Literal["softmax", "normal", "bernoulli"]
"""The distribution of the targets whose negative log-likelihood a criterion is, up to a factor and a constant."""

_LIKELIHOODS: dict[object, Likelihood] = {
    F.cross_entropy: "softmax",
    nn.CrossEntropyLoss: "softmax",
    F.mse_loss: "normal",
    nn.MSELoss: "normal",
    F.binary_cross_entropy_with_logits: "bernoulli",
    nn.BCEWithLogitsLoss: "bernoulli",
}
_FLOATS: tuple[object, ...] = (
    *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.poisson_nll_loss, F.gaussian_nll_loss),
    *(F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss, F.kl_div),
    *(F.soft_margin_loss, nn.SoftMarginLoss),
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.GaussianNLLLoss),
    *(nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, nn.KLDivLoss),
)


def without_classes(criterion: Callable[..., Tensor] | None) -> bool:
    """Whether `criterion` is one of torch's or ours that take numbers or several labels a row, and no class index.

    Example:
        >>> without_classes(F.mse_loss), without_classes(nn.BCEWithLogitsLoss()), without_classes(F.cross_entropy)
        (True, True, False)
    """
    return elementwise(criterion) or bool(getattr(criterion, "without_classes", False))


def elementwise(criterion: Callable[..., Tensor] | None) -> bool:
    """Whether `criterion` is one of torch's that take a number for each output."""
    return criterion in _FLOATS or type(criterion) in _FLOATS


def likelihood(criterion: Callable[..., Tensor]) -> Likelihood | None:
    """The distribution of the targets that `criterion` stands for; None where it is not known.

    Mean squared error stands for a normal distribution around the outputs, binary cross-entropy of logits for a yes or
    no for each output. A criterion with weights of its own, or another reduction than the mean, stands for none.

    Example:
        >>> likelihood(F.mse_loss), likelihood(nn.BCEWithLogitsLoss()), likelihood(F.l1_loss)
        ('normal', 'bernoulli', None)
    """
    if isinstance(criterion, nn.Module):
        weights = (getattr(criterion, name, None) for name in ("weight", "pos_weight"))
        if getattr(criterion, "reduction", "mean") != "mean" or any(weight is not None for weight in weights):
            return None
        return _LIKELIHOODS.get(type(criterion))
    return _LIKELIHOODS.get(criterion)


def by_row(criterion: Measure, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row under a criterion that gives their mean, `[rows]`: one call a row."""
    rows = range(outputs.shape[0])
    return torch.stack([criterion(outputs[row : row + 1], targets[row : row + 1]) for row in rows])


CRITERIA = {
    "cross_entropy": "cross_entropy",
    "mse": "mse_loss",
    "bce": "binary_cross_entropy_with_logits",
    "l1": "l1_loss",
    **{
        name: name
        for name in (
            *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits", "nll_loss"),
            *("multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss", "soft_margin_loss"),
        )
    },
    **{name: name for name in ("chamfer", "sinkhorn", "flow")},
}
"""Name in a configuration -> function of `torch.nn.functional`, or a loss of ours (`models.losses`)."""


def criterion_of(given: Any) -> Measure:
    """The criterion that is meant: a function or module of outputs and targets, or the name of one.

    Args:
        given: what a user gave; None for cross-entropy.

    Raises:
        ConfigError: for an unknown name, a class instead of one of its modules, and what cannot be called.

    Example:
        >>> criterion_of("mse") is F.mse_loss
        True
    """
    if given is None:
        return F.cross_entropy
    if isinstance(given, str):
        function = getattr(F, CRITERIA.get(given, ""), None)
        if function is None:
            raise ConfigError(unknown("criterion", given, [name for name in CRITERIA if hasattr(F, CRITERIA[name])]))
        return function  # type: ignore[no-any-return]
    if isinstance(given, type) and issubclass(given, nn.Module):
        raise ConfigError(f"criterion is the class {given.__name__}. Write criterion={given.__name__}().")
    if not callable(given):
        raise ConfigError(
            f"criterion is {given!r}, which cannot be called. Give a function of outputs and targets that returns their"
            " mean loss, such as torch.nn.functional.mse_loss."
        )
    return given  # type: ignore[no-any-return]


class Sum:
    """Losses that add: each is a function of outputs and targets to their mean loss, and one to the loss of each row.

    Example:
        >>> import torch
        >>> both = Sum((F.mse_loss, lambda outputs, targets: (outputs - targets) ** 2), (F.l1_loss, torch.sub))
        >>> both(torch.tensor([3.0]), torch.tensor([1.0])), both.by_row(torch.tensor([3.0]), torch.tensor([1.0]))
        (tensor(6.), tensor([6.]))
    """

    def __init__(self, *terms: tuple[Measure, Measure]) -> None:
        self.terms = terms

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss, a scalar."""
        first, *others = (measure for measure, _ in self.terms)
        total = first(outputs, targets)
        for measure in others:
            total = total + measure(outputs, targets)
        return total

    def by_row(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, `[rows]`."""
        first, *others = (rows for _, rows in self.terms)
        total = first(outputs, targets)
        for rows in others:
            total = total + rows(outputs, targets)
        return total


def position_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of a class at each position, where the last dimension of the outputs has the classes.

    Args:
        outputs: `[rows, ..., classes]`.
        targets: `[rows, ...]` class indices; -100 counts for nothing.

    Example:
        >>> import torch
        >>> position_cross_entropy(torch.zeros(2, 5, 4), torch.ones(2, 5, dtype=torch.int64))
        tensor(1.3863)
    """
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))


def next_position_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of each position's outputs under the class of the next position: labels that are the inputs.

    Args:
        outputs: `[rows, positions, classes]`.
        targets: `[rows, positions]` class indices; -100 counts for nothing.
    """
    return position_cross_entropy(outputs[:, :-1], targets[:, 1:])


def ignored_label(criterion: Callable[..., Tensor]) -> int:
    """The label that counts for nothing under `criterion`: its `ignore_index`, else cross-entropy's own, -100.

    Example:
        >>> ignored_label(nn.CrossEntropyLoss(ignore_index=255)), ignored_label(F.cross_entropy)
        (255, -100)
    """
    keywords = getattr(criterion, "keywords", {})  # of a functools.partial
    return int(getattr(criterion, "ignore_index", keywords.get("ignore_index", -100)))


def labels_in(targets: Tensor, criterion: Callable[..., Tensor] | None = None) -> tuple[int, ...]:
    """The classes among class indices, ascending: without labels that count for nothing, and negative ones.

    Example:
        >>> import torch
        >>> labels_in(torch.tensor([3, -100, 1, 255]), nn.CrossEntropyLoss(ignore_index=255))
        (1, 3)
    """
    ignored = -100 if criterion is None else ignored_label(criterion)
    return tuple(label for label in targets.unique().tolist() if label >= 0 and label != ignored)


def or_zero(criterion: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`criterion`, and 0 instead of NaN where none of the labels counts.

    Example:
        >>> import torch
        >>> or_zero(F.cross_entropy)(torch.zeros(2, 4), torch.tensor([-100, -100]))
        tensor(0.)
    """
    ignored = ignored_label(criterion)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return criterion(outputs, targets)
        some = (targets != ignored).any()
        return criterion(outputs, targets.where(some, 0)) * some

    return loss


def padding_of(
    column: str,
    value: Tensor,
    model: nn.Module,
    criterion: Callable[..., Tensor],
    asked: float | Mapping[str, float] | None = None,
) -> float | None:
    """What rows of different lengths are padded with; None where neither the model nor the user says.

    Args:
        column: `targets`, `logits`, `inputs`, or of several inputs `inputs.name`.
        value: some of the rows.
        model: its embeddings say what tokens are padded with (`padding_idx`), or its `config.pad_token_id`.
        criterion: says which label counts for nothing.
        asked: of the inputs, or of each by name; it comes first.

    Example:
        >>> import torch
        >>> model, tokens = nn.Embedding(9, 2, padding_idx=3), torch.ones(2, 5, dtype=torch.int64)
        >>> [padding_of(one, tokens, model, F.cross_entropy) for one in ("inputs", "inputs.mask", "targets")]
        [3, 0, -100]
    """
    name = column.partition(".")[2] or column
    if isinstance(asked, Mapping) and name in asked:
        return asked[name]
    if column == "logits":
        return float("nan")
    if column == "targets" or "label" in name.lower():
        return None if value.is_floating_point() else ignored_label(criterion)
    if any(word in name.lower() for word in ("mask", "token_type", "segment", "position")):
        return 0
    if asked is not None and not isinstance(asked, Mapping):
        return asked
    if value.is_floating_point() or value.dtype.itemsize < 4:
        return None
    indices = {getattr(part, "padding_idx", None) for part in model.modules() if isinstance(part, nn.Embedding)} - {
        None
    }
    indices = indices or {getattr(getattr(model, "config", None), "pad_token_id", None)} - {None}
    return indices.pop() if len(indices) == 1 else None


def mismatch(criterion: Callable[..., Tensor] | None, targets: Tensor) -> str:
    """Why `criterion` cannot take `targets` of this kind; empty if nothing speaks against it.

    Args:
        criterion: any; nothing is known of one that is not torch's.
        targets: some of them, `[rows, ...]`.

    Example:
        >>> import torch
        >>> mismatch(F.mse_loss, torch.tensor([3, 1]))
        'mse_loss takes numbers as targets, and these are class indices. Choose cross_entropy.'
    """
    name = getattr(criterion, "__name__", type(criterion).__name__)
    lists = criterion is F.multilabel_margin_loss or isinstance(criterion, nn.MultiLabelMarginLoss)
    if lists and (targets.is_floating_point() or targets.dim() != 2):
        return f"{name} takes several class indices a row, and these are not. Choose cross_entropy."
    if without_classes(criterion) and not targets.is_floating_point():
        return f"{name} takes numbers as targets, and these are class indices. Choose cross_entropy."
    softmax = criterion is not None and likelihood(criterion) == "softmax"
    if softmax and targets.is_floating_point() and (targets.dim() < 2 or targets.shape[1] == 1):
        return f"{name} takes class indices as targets, and these are numbers. Choose mse_loss."
    return ""


def beside(before: Callable[[Tensor, Tensor], Tensor], total: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The loss of replayed data in a method with a criterion of its own: losses that add, add to the one from before.

    Args:
        before: the learner's criterion before operations were set up.
        total: the same afterwards.
    """
    return Sum((before, functools.partial(by_row, before)), *total.terms) if isinstance(total, Sum) else total
