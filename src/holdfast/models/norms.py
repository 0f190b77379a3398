"""Normalisation in networks whose weights differ from task to task: what takes the place of batch norm."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError, unknown
from holdfast.core.forward import running_task

Norm = Literal["instance", "batch", "group", "none"]
NORMS = ("instance", "batch", "group", "none")
GROUPS = 8
"""Groups of a group norm, or the largest divisor of the channels below that leaves two channels a group."""


def replace_batch_norm(module: nn.Module, norm: Norm) -> nn.Module:
    """Exchange every batch norm inside `module`, in place; other layers stay.

    Batch norm keeps running statistics of one function; a part whose weights are generated is another function for
    each task. Scales and shifts keep their names and shapes, whichever is chosen.

    Args:
        module: what to look through; a batch norm itself is exchanged too.
        norm: "instance" normalises every channel of every sample on its own, "group" groups of channels of a sample,
            "batch" keeps statistics for each task (`TaskBatchNorm`), "none" leaves normalisation out.

    Returns:
        The module, or what takes its place.

    Raises:
        ConfigError: for an unknown name, or instance norm where there is one value per channel and sample.
    """
    if norm not in NORMS:
        raise ConfigError(unknown("norm", norm, NORMS))
    for name, child in module.named_children():
        setattr(module, name, replace_batch_norm(child, norm))
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module
    channels = module.num_features
    if norm == "none":
        return nn.Identity()
    if norm == "group":
        most = max(1, min(GROUPS, channels // 2))  # a group of one value alone would be normalised to nothing
        groups = max(divisor for divisor in range(1, most + 1) if channels % divisor == 0)
        return nn.GroupNorm(groups, channels, module.eps, module.affine)
    if norm == "batch":
        return TaskBatchNorm(channels, module.eps, 0.1 if module.momentum is None else module.momentum, module.affine)
    if isinstance(module, nn.BatchNorm1d):
        raise ConfigError(
            "norm='instance' cannot normalise the units of fully connected layers, of which each sample has one value. "
            "Write norm='group', 'batch' or 'none'."
        )
    kind = nn.InstanceNorm3d if isinstance(module, nn.BatchNorm3d) else nn.InstanceNorm2d
    return kind(channels, module.eps, affine=module.affine)


class TaskBatchNorm(nn.Module):
    """Batch norm with running statistics for each task: those of the task of the forward that is running.

    In training it normalises by the statistics of the rows at hand, which must all be of one task, and moves the
    task's running statistics; in evaluation it normalises by these. A task that was never trained has mean 0 and
    variance 1.

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: share of the new statistics.
        affine: whether it has a scale and a shift.

    Example:
        >>> from holdfast.core.forward import forward_task
        >>> norm = TaskBatchNorm(3)
        >>> with forward_task(1):
        ...     outputs = norm(torch.randn(8, 3, 4, 4) + 5)
        >>> norm.running_mean.shape, bool(norm.running_mean[1].mean() > 0.4)
        (torch.Size([2, 3]), True)
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(0, channels))
        self.register_buffer("running_var", torch.ones(0, channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[rows, channels, ...]` as it came in, normalised over all but the channels."""
        task = running_task()
        if not isinstance(task, int):
            raise UsageError(
                f"batch norm with statistics for each task was run for the task {task!r}. "
                "Run it within `forward_task(t)`, on rows of one task."
            )
        if self.training:
            self._grow(task + 1)
        elif task >= len(self.running_mean):
            zeros = self.running_mean.new_zeros(self.channels)
            return F.batch_norm(inputs, zeros, zeros + 1, self.weight, self.bias, False, 0.0, self.eps)
        mean, variance = self.running_mean[task], self.running_var[task]  # views: training moves the rows
        return F.batch_norm(inputs, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)

    def extra_repr(self) -> str:
        """Channels, for `print(model)`."""
        return f"{self.channels}, tasks={len(self.running_mean)}"

    def _grow(self, tasks: int) -> None:
        missing = tasks - len(self.running_mean)
        if missing > 0:
            self.running_mean = torch.cat([self.running_mean, self.running_mean.new_zeros(missing, self.channels)])
            self.running_var = torch.cat([self.running_var, self.running_var.new_ones(missing, self.channels)])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the saved number of tasks, then load as every module does."""
        saved = state_dict.get(f"{prefix}running_mean")
        if saved is not None and len(saved) != len(self.running_mean):
            self.running_mean = self.running_mean.new_zeros(saved.shape)
            self.running_var = self.running_var.new_ones(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
