"""The multi-head of task-incremental learning: one set of outputs a task, the others masked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.core.task import running_task
from holdfast.models.heads.growing import ChunkedHead, linear

MASKED = -(2.0**14)
"""Output of a class outside the sample's task.

Not minus infinity, with which distillation computes `0 * -inf = nan`, and not the lowest float, whose square
overflows: -16384 is exact in float16, bfloat16, float32 and float64, so that a stored output and today's differ
by exactly 0 whatever type it was stored in. It is still far below every real output: its probability underflows
to exactly 0 in a softmax, at temperatures up to 20 in every type.
"""


class TaskHead(ChunkedHead):
    """One head a task, computed as one linear layer over all classes, masked outside the sample's task.

    `z_c = w_c x + b_c` where class c belongs to the sample's task, else `MASKED`. Masking cuts the graph: classes
    outside the task get a gradient of exactly zero from *any* loss. Cross-entropy and softmax give them a
    probability of exactly zero, so they train as if the other classes did not exist; a squared error between two
    outputs of one sample is zero there. (Means over all outputs still count the masked ones, and a loss that wants
    a certain value of them, such as label smoothing, shows a large constant without a gradient.)

    The task of a forward is the one that runs (`core.task.forward_task`, which every forward of a learner is made in):
    an int for all rows, or an int64 tensor `[rows]`, on the device of the features, for a batch that mixes tasks. A
    forward outside of any, such as `model(inputs)` of your own, is of `task`. In evaluation mode an int that no classes
    were assigned to gives masked outputs only: evaluation of a future task creates nothing and predicts nothing.

    Args:
        features: number of features that come in.
        classes: outputs to start with.
        seed: of the initial values; None draws them from torch's global generator, as `nn.Linear` does.
        bias: whether outputs have one.

    Attributes:
        task: the task of forwards that nobody gave one; a learner sets it to the experience's when that begins. "all"
            leaves every output as it is.
        unmasked: the last forward's outputs before masking, for losses over the classes of other tasks.
        members: `[tasks, width]`, which classes belong to which task; saved with the parameters.

    Example:
        >>> head = TaskHead(8, classes=4)
        >>> head.assign(0, [0, 1]); head.assign(1, [2, 3])
        >>> head.task = torch.tensor([0, 1, 0])
        >>> (head(torch.zeros(3, 8)) == MASKED).int().tolist()
        [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
    """

    needs_task = True
    members: Tensor

    def __init__(self, features: int, classes: int = 0, seed: int | None = None, bias: bool = True) -> None:
        super().__init__(features, classes, seed, bias)
        self.task: int | Tensor | str | None = None
        self.unmasked: Tensor | None = None
        self.register_buffer("members", torch.zeros(0, classes, dtype=torch.bool))

    def assign(self, task: int, classes: Iterable[int]) -> None:
        """Say which classes belong to a task; classes that were assigned to it before stay.

        Args:
            task: number of the task.
            classes: class indices below `width`; one class may belong to several tasks.

        Raises:
            UsageError: if the task is negative, or a class has no output.
        """
        chosen = sorted(set(classes))
        width = self.width
        if task < 0 or any(not 0 <= index < width for index in chosen):
            raise UsageError(
                f"classes {chosen} cannot be assigned to task {task} of a head with {width} outputs. "
                "Number tasks from 0, and call `head.grow(...)` up to the highest class plus one before."
            )
        members = self._resized(max(task + 1, len(self.members)), width)
        members[task, chosen] = True
        self.members = members

    def forward(self, features: Tensor) -> Tensor:
        """Outputs `[rows, width]` of features `[rows, features]`, masked outside the task of each row.

        Raises:
            UsageError: if `task` is None, or, in training, an int that no classes were assigned to.
        """
        task = running_task()
        if task is None:
            task = self.task
        if task is None:
            raise UsageError(
                "a task head cannot choose its outputs: no task is set. "
                "Use a task-incremental stream, set `head.task` before the forward, or choose another head."
            )
        outputs = self.unmasked = self.all_outputs(features)
        if isinstance(task, str):
            return outputs
        members = self.members if self.members.shape[1] == outputs.shape[-1] else self._resized(None, self.width)
        if isinstance(task, int) and not 0 <= task < len(members):
            if self.training or task < 0:
                raise UsageError(
                    f"a task head knows {len(members)} tasks, and task {task} is none of them. "
                    f"Call `head.assign({max(task, 0)}, classes)` with the classes of that task first."
                )
            return torch.full_like(outputs, MASKED)
        return torch.where(members[task], outputs, MASKED)

    def all_outputs(self, features: Tensor) -> Tensor:
        """Outputs of the classes of every task, `[rows, width]`."""
        return linear(self, features)

    def __getstate__(self) -> dict[str, Any]:
        """All but the last forward's outputs, whose graph cannot be copied."""
        return {**self.__dict__, "unmasked": None}

    def _resized(self, tasks: int | None, width: int) -> Tensor:
        """A copy of `members` with more rows and columns."""
        old = self.members
        new = old.new_zeros(len(old) if tasks is None else tasks, width)
        new[: old.shape[0], : old.shape[1]] = old
        return new

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the saved number of tasks, then load as every growing head does."""
        saved = state_dict.get(f"{prefix}members")
        if saved is not None and saved.shape != self.members.shape:
            self.members = self.members.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
