"""The services: the closed list of what operations may ask of the model that learns, and of the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from holdfast.core.attributes import Of
from holdfast.core.body import Body, Cut
from holdfast.core.criteria import criterion_of, or_zero, padding_of
from holdfast.core.decide import decide
from holdfast.core.errors import renamed
from holdfast.core.experience import Extras
from holdfast.core.forward import Forward, Task, forward_task, gradients_of
from holdfast.core.memory import Memory
from holdfast.core.randomness import Generators
from holdfast.core.ranks import Share, average_over_ranks
from holdfast.core.snapshot import Snapshot, Twin, copy_of
from holdfast.core.step import Now
from holdfast.core.trainable import Trainable
from holdfast.core.tree import Fill, Tree

T = TypeVar("T")
Criterion = Callable[[Tensor, Tensor], Tensor]

ROOM = 256
"""Values behind a mask of classes, for what is not a label: -256 to -1, and 255 if there are fewer classes."""

SNAPSHOTS = 8
"""Copies of the model that are kept for snapshots that came back as plain dictionaries, at most."""


class SeenClasses:
    """Which classes were seen so far.

    Args:
        device: of the mask.

    Labels that count for nothing (-100, -1, 255) may be among those of a batch: there is room behind the mask where
    they leave their mark, so that no step has to look for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._room = torch.zeros(ROOM, dtype=torch.bool, device=device)
        self._width = 0

    @property
    def mask(self) -> Tensor:
        """`[outputs]` bool."""
        return self._room[: self._width]

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        self._width = len(mask)
        self._room = torch.cat((mask, mask.new_zeros(ROOM)))

    def add(self, classes: Sequence[int]) -> None:
        """Add classes that are known on the host, at a boundary."""
        if classes:
            self.widen(max(classes) + 1)
            self.mask[torch.tensor(list(classes), device=self.mask.device)] = True

    def add_targets(self, targets: Tensor) -> None:
        """Add the classes of a batch without waiting for the device: those below the width."""
        self._room.index_fill_(0, targets, True)

    def widen(self, width: int) -> None:
        """Make room for classes below `width`."""
        missing = width - self._width
        if missing > 0:
            self.mask = torch.cat((self.mask, self.mask.new_zeros(missing)))


class Services:
    """What operations may ask: each entry point gets these as its argument `learner`.

    Args:
        model: any module; called with the prepared inputs.
        criterion: `criterion(outputs, targets)` -> mean loss, a scalar. Default: cross-entropy.
        prepare: turns raw inputs into model inputs: `prepare(inputs, training, generator)`; None keeps them.
        seed: of every random choice; each purpose has its own generator, see `rng`.
        device: where the model lives; default: where its first parameter is.
        head: dotted path of the output layer; default: `model.head`, else the last linear layer.
        share: this process's part of the whole.

    Attributes:
        model: the model that learns.
        body: how it is described: its head, its stages and where it can be cut.
        multi_head: whether it has one head per task, and so needs task labels.
        head: its output layer; None if it has none.
        device: where it lives.
        prepare: turns raw inputs into the model's; None keeps them.
        criterion: the loss of the current data, unless an operation brings its own.
        now: where training is: `now.index`, `now.progress`, `now.epoch_progress`; read it within `decide`.
        task: the current task label; None in unlabelled streams.
        forward_task: the task of the forward that is running, for hooks on inner layers; outside of one, the current.
        autocast: `(device type, dtype)` of the main forward's autocast, entered again by every other forward.
        experience: index of the current experience; -1 before the first.
        classes: which classes were seen, `[outputs]` bool on the device; read it without waiting for the device.
        members: the classes of each finished or current experience, in order.
        memory: what is remembered, once an operation made one (see `operations.Remember`).
        memory_device: where memories keep their rows; they come to the model's device when they are drawn.
        pads: what inputs of different lengths are padded with, where the model does not say.
        fill: what rows of a column that are of different lengths are padded with: `fill(column, rows)`, or None.
        ignores: whether labels were seen that count for nothing.
        counts_all: whether all labels of the current experience were looked at, and each counts.
        fields: the extra fields that the method's operations want remembered.
        grown: whether outputs were added after the first experience (stored logits may be narrower than today's).
        forward: how forwards are made: with which `prepare`, `autocast` and `output`.
        trainable: the parameters that are trained: `add`, `freeze`, `moments`, `forget_moments`, `rate`,
            `kind`.
        share: this process's part of what all ranks keep or draw: `learner.share(count)`, `learner.share.rows(order)`.
        seen: which classes were seen so far.
        generators: the generators behind `rng`.
        logged: scalars and their factors, logged since the loop read them last, by name; tensors stay on the device.
    """

    head: Of[nn.Module | None] = Of("body", "taken")
    task: Of[int | None] = Of("forward")
    forward_task: Of[int | Tensor | None] = Of("forward", "running")
    prepare: Of[Callable[..., Any] | None] = Of("forward")
    autocast: Of[tuple[str, torch.dtype] | None] = Of("forward")
    classes: Of[Tensor] = Of("seen", "mask")

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: Criterion | None = None,
        prepare: Callable[..., Any] | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        head: str | None = None,
        share: Share | None = None,
    ) -> None:
        self.model = model
        self.criterion: Criterion = criterion_of(criterion)
        self.device = torch.device(device) if device is not None else place_of(model)
        self.share = Share() if share is None else share
        self.generators = Generators(seed, self.share.rank)
        self.forward = Forward(model, prepare, self.generators("augment"))
        self.trainable = Trainable(model)
        self.body = Body(model, head)
        self.multi_head = bool(getattr(self.body.head, "needs_task", False))
        self.now = Now()
        self.experience = -1
        self.members: list[tuple[int, ...]] = []
        self.memory: Memory | None = None
        self.fields: tuple[str, ...] = ()
        self.grown = self.ignores = self.counts_all = False
        self.seen = SeenClasses(self.device)
        self.logged: dict[str, list[tuple[Tensor, float]]] = {}
        self.pads: float | Mapping[str, float] | None = None
        self.fill: Fill = lambda column, value: padding_of(column, value, self.model, self.criterion, self.pads)
        self.memory_device = self.device
        self._checkpoints: bool | None = None
        self._teachers: list[tuple[object, Snapshot]] = []

    # The forward ---------------------------------------------------------------------------------------

    def __call__(self, inputs: Tree, task: Task = None) -> Tensor:
        """The model's outputs on raw `inputs`, in the model's current mode.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            task: for a model with a head per task: the task of all rows, `[rows]` tasks, or "all" for the outputs
                of every task; default: the current one.
        """
        return self.forward(inputs, task)

    def loss_on(self, inputs: Tree, targets: Tensor, task: int | Tensor | None = None) -> Tensor:
        """The criterion's mean loss on raw `inputs` and `targets`, a scalar with its graph."""
        with self.forward.autocasting():
            criterion = or_zero(self.criterion) if self.ignores else self.criterion
            return criterion(self.forward(inputs, task), targets)

    def features(self, inputs: Tree, task: Task = None) -> Tensor:
        """What enters the head, `[rows, features]`.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            task: for inner layers that depend on it; default: the current one.
        """
        with forward_task("all" if task is None else task):  # a head per task would ask for one
            return self.body.features(self.forward.prepared(inputs, self.model.training))

    def below(self, inputs: Tree, cut: Cut = None, task: Task = None) -> Tensor:
        """Latents of raw `inputs` at a cut of the model, `[rows, ...]`: what a memory can hold instead of inputs.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            cut: a number, the name of the last stage below, or None: the model's own cut, or before the head.
            task: as for `learner(inputs, task)`.
        """
        with forward_task(self.task if task is None else task):
            return self.body.below(self.forward.prepared(inputs, self.model.training), cut)

    def above(self, latents: Tensor, cut: Cut = None, task: Task = None) -> Tensor:
        """The model's outputs on latents: `above(below(inputs, cut), cut)` is `learner(inputs)`."""
        with forward_task(self.task if task is None else task):
            return self.body.above(latents, cut)

    # Gradients -----------------------------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the order of `model.named_parameters()`."""
        return self.trainable.parameters()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return self.trainable.named()

    def grad(self, loss: Tensor, average: bool = True) -> list[Tensor]:
        """Gradient of `loss` by every trainable parameter; never touches `p.grad`.

        Args:
            loss: a scalar with its graph.
            average: over ranks, which must then all ask at the same time.
        """
        # The first graph is kept, since a reentrant checkpoint in it is only found when half of it is used up.
        grads, checkpointed = gradients_of(loss, self.parameters(), self._checkpoints is not False)
        self._checkpoints = self._checkpoints or checkpointed
        return average_over_ranks(grads) if average else grads

    def gradients(self) -> list[Tensor]:
        """The gradients that the optimiser is about to use, to be edited in place; zeros where there were none."""
        grads = []
        for parameter in self.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
            grads.append(parameter.grad)
        return grads

    # Copies --------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The model as it is now, by name and as a function (`snapshot(inputs, task)`).

        It is state, to be kept by the operation that took it.
        """
        return Snapshot(copy_of(self.model), self.forward)

    def twin(self) -> Twin:
        """A second model whose values move: a running average (`twin.average(0.01)`), a virtual step."""
        return Twin(self)

    def snapshot_of(self, values: Mapping[str, Tensor]) -> Snapshot:
        """The snapshot that `values` were saved from (`snapshot.state()`), also if the head has grown since."""
        snapshot = Snapshot(copy_of(self.model), self.forward)
        snapshot.load(values)
        return snapshot

    def forward_as(self, snapshot: Snapshot | dict[str, Tensor], inputs: Tree, task: Task = None) -> Tensor:
        """Outputs of the model as it was at `snapshot`, in eval mode, without a graph: `snapshot(inputs, task)`.

        Args:
            snapshot: what `snapshot()` returned, or a dictionary of all its tensors.
            inputs: raw inputs, `[rows, ...]`.
            task: as for `learner(inputs, task)`.
        """
        return (snapshot if isinstance(snapshot, Snapshot) else self._teacher(snapshot))(inputs, task)

    def _teacher(self, values: dict[str, Tensor]) -> Snapshot:
        """The copy behind a plain dictionary, whose tensors become those of the copy: what is written into them holds.

        Dictionaries are told apart by identity, so they are kept as long as their copies.
        """
        teacher = next((teacher for kept, teacher in self._teachers if kept is values), None)
        if teacher is None:
            teacher = self.snapshot_of(values)
            self._teachers = [*self._teachers[1 - SNAPSHOTS :], (values, teacher)]
            values.update(teacher)
        for name, here in teacher.items():
            if values[name] is not here:  # replaced since
                teacher[name] = values[name]
                values[name] = here
        return teacher

    # Classes, randomness, logging ----------------------------------------------------------------------

    def rng(self, name: str) -> torch.Generator:
        """The generator (on the CPU) of the random choices called `name`; the only source of randomness."""
        return self.generators(name)

    def decide(self, make: Callable[[], T], device: torch.device | None = None) -> T:
        """The value of `make()`: all that the host decides anew at a step goes through here (see `core.decide`)."""
        return decide(make, device)

    def log(self, name: str, value: Tensor, factor: float = 1.0) -> None:
        """Record the scalar `factor * value`; it stays on the device until the loop reads a whole window."""
        values = self.logged.get(name)
        if values is None:
            values = self.logged[name] = []
        values.append((value.detach(), factor))

    def _forward_of(self, twin: Any, inputs: Tree, task: Task = None) -> Tensor:
        with torch.no_grad():
            return self.forward(inputs, task, twin.module if isinstance(twin, Twin) else twin)

    # Names of before -----------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name in _MOVED and "trainable" in self.__dict__:
            new, value = _MOVED[name]
            renamed(f"learner.{name}", f"learner.{new}")
            return value(self)
        raise AttributeError(f"what operations may ask (Services) has no {name!r}; docs/entry_points.md lists it all")


_MOVED: dict[str, tuple[str, Callable[[Services], object]]] = {
    "learn": ("trainable.add", lambda services: services.trainable.add),
    "freeze": ("trainable.freeze", lambda services: services.trainable.freeze),
    "moments": ("trainable.moments", lambda services: services.trainable.moments),
    "forget_moments": ("trainable.forget_moments", lambda services: services.trainable.forget_moments),
    "optimized": ("trainable.optimized", lambda services: services.trainable.optimized),
    "every_parameter": ("trainable.every", lambda services: services.trainable.every),
    "added": ("trainable.added", lambda services: services.trainable.added),
    "optimizer": ("trainable.optimizer", lambda services: services.trainable.optimizer),
    "on_growth": ("trainable.on_growth", lambda services: services.trainable.on_growth),
    "shard": ("share.rows", lambda services: services.share.rows),
    "rank": ("share.rank", lambda services: services.share.rank),
    "ranks": ("share.ranks", lambda services: services.share.ranks),
    "seed": ("generators.seed", lambda services: services.generators.seed),
    "output": ("forward.output", lambda services: services.forward.output),
    "progress": ("now.progress", lambda services: services.now.progress),
    "epoch_progress": ("now.epoch_progress", lambda services: services.now.epoch_progress),
    "forward_of": ("twin()(inputs, task)", lambda services: services._forward_of),
}
"""Name on the learner before -> what to write now, and its value."""


def place_of(model: nn.Module) -> torch.device:
    """Where the first parameter of `model` is; the CPU if it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def note_unmasked(services: Services, outputs: Tensor, extras: Extras) -> None:
    """For a model with a head per task: put the main forward's outputs of every task into `extras["unmasked"]`.

    Where each task has more than a head of its own, these are not a by-product, and there are none.
    """
    unmasked = getattr(services.body.head, "unmasked", None) if services.multi_head else None
    if unmasked is not None:
        extras["unmasked"] = unmasked[: outputs.shape[0]]
