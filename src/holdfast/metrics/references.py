"""What reference runs make measurable: joint training, independent models, an untrained model, fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from holdfast.metrics.continual import NAN, mean
from holdfast.metrics.matrix import last_row

DESCRIPTIONS = {
    "forward_transfer_independent": "accuracy on each experience right after learning it, beyond that of a new model",
    "forgetting_ratio": "0 as good as joint training, -1 as good as no training",
}
"""Name of each measure that needs references, and what it says."""

LOWER = ("finetune", "finetuning", "naive", "sequential")
UPPER = ("joint", "jointtraining", "cumulative")


def against(matrix: np.ndarray, references: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The measures that need references: forward transfer needs `independent`, the ratio `joint` and `random`.

    Args:
        matrix: `[T, T]` accuracies of the run.
        references: the same of each reference, by name.

    Returns:
        Name -> value, for those whose references are there.

    Example:
        >>> against(np.array([[1.0, 0.0], [0.5, 0.75]]), {"independent": np.diag([1.0, 0.5])})
        {'forward_transfer_independent': 0.25}
    """
    values = {}
    if "independent" in references:
        values["forward_transfer_independent"] = transfer_from_independent(matrix, np.diag(references["independent"]))
    if "joint" in references and "random" in references:
        joint, untrained = _last(references["joint"]), _last(references["random"])
        values["forgetting_ratio"] = forgetting_ratio(_last(matrix), joint, untrained)
    return {name: value for name, value in values.items() if np.isfinite(value)}


def transfer_from_independent(matrix: np.ndarray, independent: np.ndarray) -> float:
    """What having learned before did for each later experience: `1/(T-1) sum_{j>=1} (A[j, j] - a_j)`.

    The forward transfer of Continual Learning Arena, against a new model for each experience.

    Args:
        matrix: `[T, T]` accuracies.
        independent: `[T]` accuracies `a` of models that learned one experience each.

    Returns:
        -1..1, above 0 where earlier learning helped; NaN where only one experience was learned.

    Example:
        >>> transfer_from_independent(np.array([[1.0, 0.0], [0.5, 0.75]]), np.array([1.0, 0.5]))
        0.25
    """
    return mean(np.diag(matrix)[1:] - np.asarray(independent)[1:])


def forgetting_ratio(final: np.ndarray, joint: np.ndarray, untrained: np.ndarray) -> float:
    """How far the end is from joint training: `1/T sum_j (A[l, j] - r_j) / (J_j - r_j) - 1`.

    Serra et al. 2018, "Overcoming catastrophic forgetting with hard attention to the task", Eq. 8, with the untrained
    model as the one that guesses.

    Args:
        final: `[T]` accuracies at the end.
        joint: `[T]` accuracies `J` of joint training.
        untrained: `[T]` accuracies `r` of a model that was never trained.

    Returns:
        -1 where everything is lost, 0 where nothing is; NaN where joint training is no better than none.

    Example:
        >>> forgetting_ratio(np.array([0.5, 1.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0]))
        -0.25
    """
    gap = np.asarray(joint, dtype=float) - np.asarray(untrained, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (np.asarray(final, dtype=float) - untrained) / np.where(gap == 0, np.nan, gap)
    return mean(shares) - 1


def share_of_gap(value: float, low: float, high: float) -> float:
    """Where a value stands between two references: `(value - low) / (high - low)`.

    With plain fine-tuning as `low` and joint training as `high`, 0 is no better than doing nothing about forgetting
    and 1 as good as having all data at once.

    Args:
        value: of the method.
        low: of the lower reference.
        high: of the upper reference.

    Returns:
        Below 0 or above 1 where the method is outside; NaN if there is no gap, since the upper reference is no
        higher than the lower one, or one is unknown.

    Example:
        >>> share_of_gap(0.75, 0.5, 1.0)
        0.5
    """
    gap = high - low
    return (value - low) / gap if np.isfinite(gap) and gap > 0 else NAN


def end_of_scale(name: str) -> int | None:
    """0 for a reference that does nothing against forgetting, 1 for one that has all data, None for others."""
    plain = "".join(letter for letter in name.lower() if letter.isalpha())
    return 0 if plain in LOWER else 1 if plain in UPPER else None


def scale_order(name: str) -> tuple[int, str]:
    """Where a reference stands among others: fine-tuning first, joint last."""
    end = end_of_scale(name)
    return (1 if end is None else 2 * end, name)


def _last(matrix: np.ndarray) -> np.ndarray:
    row = last_row(matrix)
    return np.asarray(matrix[row]) if row >= 0 else np.full(len(matrix), np.nan)
