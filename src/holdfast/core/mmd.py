"""The kernel two-sample test, and the drift detector that is made of it."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.ranges import Count, Inside, guard


class MMD:
    """The kernel two-sample test: whether two samples come from the same distribution.

    With `k(x, y) = exp(-|x - y|^2 / (2 s^2))`, `s` the median distance between rows of the reference (Gretton et al.
    2012, "A kernel two-sample test", Journal of Machine Learning Research 13, equation 3), the score is the unbiased
    estimate `mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j)`. How improbable it is
    comes from permutations of the joined rows, so no distribution is assumed.

    Args:
        level: probability of an alarm where nothing changed, at each test.
        permutations: of the joined rows; at least `1 / level`, or no score is ever improbable enough.
        seed: of the permutations.

    Attributes:
        p_value: of the last `score`: the share of permutations with a score as large, the rows as they came included.
        reference: `[rows, d]` rows given to `fit`.

    Raises:
        ConfigError: for too few permutations.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> test = MMD().fit(torch.randn(80, 3, generator=generator))
        >>> test.score(torch.randn(60, 3, generator=generator)) < 0.02, test.drifted
        (True, False)
        >>> test.score(torch.randn(60, 3, generator=generator) + 1) > 0.1, test.p_value, test.drifted
        (True, 0.001, True)
    """

    def __init__(self, level: Inside = 0.001, permutations: Count = 999, seed: int = 0) -> None:
        if (permutations + 1) * level < 1 - 1e-9:
            raise ConfigError(
                f"MMD got level={level} and permutations={permutations}, which find nothing less probable than"
                f" {1 / (permutations + 1):.2g}. Give permutations={int(1 / level)} or more."
            )
        self.level = level
        self.permutations = permutations
        self.seed = seed
        self.p_value = 1.0
        self.reference: Tensor | None = None

    def fit(self, reference: Tensor) -> MMD:
        """Take `[rows, d]` rows as what is usual; returns itself.

        Raises:
            ConfigError: for fewer than two rows.
        """
        if len(reference) < 2:
            raise ConfigError(f"MMD got a reference of {len(reference)} rows. Give two or more.")
        self.reference = reference.detach().flatten(1).double()
        return self

    def score(self, rows: Tensor) -> float:
        """The estimate of the squared MMD between the reference and `[rows, d]`; sets `p_value`.

        Raises:
            ConfigError: before `fit`, or for fewer than two rows.
        """
        if self.reference is None or len(rows) < 2:
            raise ConfigError("MMD compares two or more rows with a reference. Call fit(reference) first.")
        x, y = self.reference, rows.detach().flatten(1).double()
        n, m = len(x), len(y)
        within = torch.pdist(x)
        scale = within.median().clamp_min(1e-12)
        joined = torch.cat((x, y))
        kernel = torch.exp(-0.5 * (torch.cdist(joined, joined) / scale).square())
        kernel.fill_diagonal_(0)
        generator = torch.Generator().manual_seed(self.seed)
        orders = torch.rand(self.permutations, n + m, generator=generator).argsort(1)
        first = torch.zeros(1 + self.permutations, n + m, dtype=torch.float64)
        first[0, :n] = 1
        first[1:].scatter_(1, orders[:, :n], 1.0)
        second = 1 - first
        among_first = ((first @ kernel) * first).sum(1) / (n * (n - 1))
        among_second = ((second @ kernel) * second).sum(1) / (m * (m - 1))
        between = ((first @ kernel) * second).sum(1) / (n * m)
        scores = among_first + among_second - 2 * between
        self.p_value = float((scores >= scores[0] - 1e-12).double().mean())
        return float(scores[0])

    @property
    def drifted(self) -> bool:
        """Whether the last score is less probable than `level` where nothing changed."""
        return self.p_value <= self.level + 1e-12


guard(MMD)


class KernelDetector:
    """The two-sample test on a stream: the first rows are the reference, and the newest are tested now and then.

    Args:
        reference: rows that are the reference.
        window: newest rows that are compared with them, tested whenever half of them are new.
        level: see `MMD`.
        permutations: see `MMD`.
        seed: see `MMD`.
    """

    def __init__(
        self, reference: int = 100, window: int = 50, level: float = 0.001, permutations: int = 999, seed: int = 0
    ) -> None:
        if reference < 2 or window < 2:
            raise ConfigError(f"the detector mmd got reference={reference} and window={window}. Give two or more rows.")
        self.reference, self.window = reference, window
        self.test = MMD(level, permutations, seed)
        self.rows = torch.zeros(0, 1)
        self.since = 0
        self.drift_detected = False

    def update(self, rows: Tensor) -> None:
        """Take `[rows, d]` rows."""
        rows = rows.detach().flatten(1).float().cpu() if rows.dim() > 1 else rows.detach().float().cpu().unsqueeze(1)
        self.rows = torch.cat((self.rows, rows)) if len(self.rows) else rows
        self.since += len(rows)
        self.drift_detected = False
        if len(self.rows) < self.reference + self.window or self.since < max(1, self.window // 2):
            return
        self.since = 0
        self.rows = torch.cat((self.rows[: self.reference], self.rows[self.reference :][-self.window :]))
        self.test.fit(self.rows[: self.reference]).score(self.rows[self.reference :])
        self.drift_detected = self.test.drifted
