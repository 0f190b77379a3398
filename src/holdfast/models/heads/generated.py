"""The head of a hypernetwork: outputs of a generated layer, put at the classes of their task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import UsageError
from holdfast.models.heads.base import Head, Part
from holdfast.models.heads.growing import MASKED


class GeneratedOutputs(Head):
    """Outputs of a generated network, put at the classes of their task; the others are masked.

    It has no parameters: the weights of the output layer are generated with the others. `own` networks have one
    output for each class of their task, in ascending order of class; the rest have one for every class of the stream.

    Args:
        outputs: what a generated network puts out for a sample.
        width: number of classes of the whole stream.
        own: whether the outputs are the classes of one task.

    Attributes:
        task: of forwards outside of a running task.
        members: `[tasks, width]`, which classes belong to which task; saved with the model.
    """

    needs_task = True
    members: Tensor

    def __init__(self, outputs: int, width: int, own: bool) -> None:
        super().__init__()
        self.features = self.outputs = outputs
        self.own = own
        self.task: int | Tensor | str | None = None
        self.register_buffer("members", torch.zeros(0, width, dtype=torch.bool))

    @property
    def width(self) -> int:
        """Number of classes."""
        return self.members.shape[1]

    def grow(self, width: int, generator: torch.Generator | None = None) -> list[nn.Parameter]:
        """More classes, where each network has outputs for those of its own task.

        Args:
            width: classes wanted; a number that is already there changes nothing.
            generator: not used, as nothing is created.

        Raises:
            UsageError: if every network has an output for each class, and there are fewer than `width`.
        """
        if width > self.width:
            if not self.own:
                raise UsageError(
                    f"a generated output layer for {self.width} classes cannot grow to {width}. "
                    "Give the hypernetwork all classes of the stream, or `task_classes`, the most of one task."
                )
            self.members = self._resized(len(self.members), width)
        return []

    def parts(self) -> list[Part]:
        """None: no output has parameters of its own."""
        return []

    def assign(self, task: int, classes: Iterable[int]) -> None:
        """Say which classes belong to a task; classes that were assigned to it before stay.

        Args:
            task: number of the task.
            classes: class indices below `width`.

        Raises:
            UsageError: if the task is negative, a class has no output, or a task has more classes than outputs.
        """
        chosen = sorted(set(classes))
        if task < 0 or any(not 0 <= index < self.width for index in chosen):
            raise UsageError(
                f"classes {chosen} cannot be assigned to task {task} of a hypernetwork for {self.width} classes. "
                "Number tasks from 0, and give the model all classes of the stream."
            )
        if not chosen:  # targets are numbers
            return
        members = self._resized(max(task + 1, len(self.members)), self.width)
        members[task, chosen] = True
        count = int(members[task].sum())
        if self.own and count > self.outputs:
            raise UsageError(
                f"task {task} has {count} classes, and each generated network has {self.outputs} outputs. "
                f"Give the hypernetwork task_classes={count}, the most classes of one task."
            )
        self.members = members

    def forward(self, outputs: Tensor, task: int) -> Tensor:  # type: ignore[override]
        """Outputs `[rows, width]` of what the network of `task` put out, `[rows, outputs]`.

        Targets that are not classes are assigned to no task; their outputs are returned as they are.
        """
        if not self.members.shape[0]:
            return outputs
        full = torch.full((), MASKED, dtype=outputs.dtype, device=outputs.device)
        if not self.own:
            if task >= len(self.members):
                return full.expand(outputs.shape[0], self.width)
            return torch.where(self.members[task], outputs, full)
        spread = full.repeat(outputs.shape[0], self.width)
        if task >= len(self.members):
            return spread
        # The k-th class of the task is output k: known on the host once the task began, so no index is read here.
        positions = self.members[task].cumsum(0) - 1
        chosen = outputs[:, positions.clamp(0, self.outputs - 1)]
        return torch.where(self.members[task], chosen, spread)

    def used(self, task: int) -> Tensor | None:
        """Which outputs of a generated network the task uses, `[outputs]` bool; None for all of them."""
        if not self.members.shape[0]:
            return None
        if self.own:
            return torch.arange(self.outputs, device=self.members.device) < self.members[task].sum()
        return self.members[task]

    def _resized(self, tasks: int, width: int) -> Tensor:
        new = self.members.new_zeros(tasks, width)
        new[: self.members.shape[0], : self.members.shape[1]] = self.members
        return new

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}members")
        if saved is not None and saved.shape != self.members.shape:
            self.members = self.members.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
