"""Heads that get new outputs as classes arrive, and the multi-head of task-incremental learning."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.forward import running_task
from holdfast.models.heads.base import Head, Part


class ChunkedHead(Head):
    """Base of the heads that grow: chunk k of the outputs has its own parameters `weights.k` and `biases.k`.

    Growing appends a chunk and touches no other, so optimiser state, and anchors kept by name, stay valid.
    A saved state with more chunks than this head has makes it grow first (the parameters that this creates
    must join the optimiser, as after `grow`); one with fewer, or with other sizes, is torch's usual error.

    Each chunk gets the initial values `nn.Linear` would: uniform within `1/sqrt(features)`. They come from the
    generator given to `grow`, else from `seed` and the number of outputs before, whatever happened since the
    start (so that a resumed run grows as an uninterrupted one), else from torch's global generator.

    Args:
        features: number of features that come in.
        classes: outputs to start with.
        seed: of the initial values.
        bias: whether outputs have one.
    """

    apart: bool = False
    """Whether evaluation computes each chunk on its own: outputs stay the same to the bit when others are added."""
    _place: Tensor

    def __init__(self, features: int, classes: int = 0, seed: int | None = None, bias: bool = True) -> None:
        super().__init__()
        if features < 1 or classes < 0:
            raise ConfigError(
                f"a growing head cannot have {features} features and {classes} classes. "
                "Give at least 1 feature, and 0 classes or more."
            )
        self.features = features
        self.classes = classes
        self.seed = seed
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList() if bias else None
        self.register_buffer("_place", torch.empty(0), persistent=False)  # where an empty head is
        self.grow(classes)

    @property
    def width(self) -> int:
        """Number of outputs today."""
        return sum(weight.shape[0] for weight in self.weights)

    def grow(self, width: int, generator: torch.Generator | None = None) -> list[nn.Parameter]:
        """Add one chunk of outputs up to `width`.

        Args:
            width: outputs wanted; a width that is already there changes nothing.
            generator: source of the initial values of the new outputs; None takes `seed`.

        Returns:
            The new parameters: nothing, a weight, or a weight and a bias.
        """
        before = self.width
        if width <= before:
            return []
        if generator is None and self.seed is not None:
            digest = hashlib.sha256(f"head {self.seed} {before}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        device = self._place.device if generator is None else generator.device
        weight = torch.empty(width - before, self.features, device=device)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        bias = None
        if self.biases is not None:
            bound = 1 / math.sqrt(self.features)
            bias = torch.empty(width - before, device=device).uniform_(-bound, bound, generator=generator)
        return self._append(weight, bias)

    def parts(self) -> list[Part]:
        """One part a chunk."""
        parts, start = [], 0
        for index, weight in enumerate(self.weights):
            stop = start + weight.shape[0]
            parts.append(Part(start, stop, weight, None if self.biases is None else self.biases[index]))
            start = stop
        return parts

    def shrink_to(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Drop the chunks that `state` does not have: a copy of this head becomes what it was when that was saved.

        Args:
            state: a state dict of the model, from before this head grew.
            prefix: of this head's names in it.
        """
        saved = sum(f"{prefix}weights.{index}" in state for index in range(len(self.weights)))
        self.weights = nn.ParameterList(self.weights[:saved])
        if self.biases is not None:
            self.biases = nn.ParameterList(self.biases[:saved])

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"features={self.features}, width={self.width}"

    def _append(self, weight: Tensor, bias: Tensor | None) -> list[nn.Parameter]:
        """Make a chunk of these values where the head is."""
        created = [nn.Parameter(weight.to(self._place))]
        self.weights.append(created[0])
        if self.biases is not None and bias is not None:
            created.append(nn.Parameter(bias.to(self._place)))
            self.biases.append(created[1])
        return created

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Grow to the saved chunks, then load as every module does."""
        while (key := f"{prefix}weights.{len(self.weights)}") in state_dict:
            rows = state_dict[key].shape[0]
            self._append(torch.zeros(rows, self.features), torch.zeros(rows))
        super()._load_from_state_dict(state_dict, prefix, *args)


def joined(chunks: nn.ParameterList) -> Tensor:
    """All chunks as one tensor; without a copy where there is one only.

    Read as one list: to go over a `ParameterList` costs ten calls a chunk, in every forward.
    """
    tensors: list[Tensor] = [value for value in chunks._parameters.values() if value is not None]
    if len(tensors) != len(chunks):  # a replica of `nn.DataParallel`, whose tensors are attributes
        tensors = list(chunks)
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def linear(head: ChunkedHead, features: Tensor) -> Tensor:
    """The affine map of all chunks together, `[rows, width]`; no columns while the head is empty."""
    if len(head.weights) == 0:
        return features.new_zeros(*features.shape[:-1], 0)
    if head.apart and not head.training:
        biases = [None] * len(head.weights) if head.biases is None else head.biases
        return torch.cat([F.linear(features, weight, bias) for weight, bias in zip(head.weights, biases)], dim=-1)
    return F.linear(features, joined(head.weights), None if head.biases is None else joined(head.biases))


class GrowingHead(ChunkedHead):
    """A linear layer that gets new outputs as classes arrive: `z = x W^T + b` over all chunks of W and b.

    A forward never creates outputs: a class that was not announced by `grow` has none.

    Args:
        features: number of features that come in.
        classes: outputs to start with.
        seed: of the initial values; None draws them from torch's global generator, as `nn.Linear` does.

    Example:
        >>> head = GrowingHead(64)
        >>> [tuple(new.shape) for new in head.grow(2) + head.grow(5) + head.grow(5)]
        [(2, 64), (2,), (3, 64), (3,)]
        >>> head(torch.zeros(7, 64)).shape
        torch.Size([7, 5])
    """

    def __init__(self, features: int, classes: int = 0, seed: int | None = None) -> None:
        super().__init__(features, classes, seed)

    def forward(self, features: Tensor) -> Tensor:
        """Outputs `[rows, width]` of features `[rows, features]`."""
        return linear(self, features)


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

    The task is that of the forward that is running (`core.forward.forward_task`, in which every forward of a learner is
    made): an int for all rows, or an int64 tensor `[rows]`, on the device of the features, for a batch that mixes
    tasks. A forward outside of any, such as `model(inputs)` of your own, is of `task`. In evaluation mode an int that
    no classes were assigned to gives masked outputs only: evaluation of a future task creates nothing and predicts
    nothing.

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
                    f"a task head knows {len(members)} tasks, and task {task} is not one of them. "
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
