"""The learner: a model that learns, as the loops see it; what operations may ask of it are its services."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from holdfast.core.attributes import Of
from holdfast.core.body import Body
from holdfast.core.criteria import ignored_label
from holdfast.core.errors import NeedError
from holdfast.core.experience import Experience
from holdfast.core.forward import Forward, Task
from holdfast.core.memory import Memory
from holdfast.core.randomness import derive_seed
from holdfast.core.ranks import Share
from holdfast.core.services import Criterion, Services
from holdfast.core.snapshot import Snapshot
from holdfast.core.step import Now
from holdfast.core.trainable import Listener, Trainable
from holdfast.core.tree import Saved, State, Tree

__all__ = ["Criterion", "Learner", "Services", "Snapshot", "derive_seed"]


class Learner:
    """A model that learns: what whoever drives the steps owns of it, and the `services` that operations get.

    Args:
        model: any module; called with the prepared inputs.
        criterion: `criterion(outputs, targets)` -> mean loss, a scalar. Default: cross-entropy.
        prepare: turns raw inputs into model inputs: `prepare(inputs, training, generator)`; None keeps them.
        seed: of every random choice; each purpose has its own generator, see `rng`.
        device: where the model lives; default: where its first parameter is.
        head: dotted path of the output layer; default: `model.head`, else the last linear layer.
        rank: the number of this process among those that share every batch and the memory.
        ranks: how many those are.

    Attributes:
        services: what operations may ask.
        model: the model that learns.
        now: where training is; the loop sets it before each step: `learner.now = Now(index, progress, epoch_progress)`.
        task: the current task label; None in unlabelled streams.
        experience: index of the current experience; -1 before the first.
        members: the classes of each finished or current experience, in order.
        autocast: `(device type, dtype)` of the main forward's autocast, entered again by every other forward.
        output: takes the tensor of outputs out of what the model returns; None where the model returns that tensor.
        on_growth: called with the new parameters whenever outputs are added; whoever owns the optimiser listens.
        optimizer: returns the optimiser, or None if there is none; whoever owns it sets this.
        added: parameters that operations brought along, by name.
        replaceable: whether the loop calls whatever `model` is now, so that a method can put another in its place.
        logged: scalars and their factors, logged since the loop read them last, by name; tensors stay on the device.
    """

    services: Services
    model: Of[nn.Module] = Of("services")
    head: Of[nn.Module | None] = Of("services.body")
    device: Of[torch.device] = Of("services")
    criterion: Of[Criterion] = Of("services")
    memory: Of[Memory | None] = Of("services")
    fields: Of[tuple[str, ...]] = Of("services")
    experience: Of[int] = Of("services")
    members: Of[list[tuple[int, ...]]] = Of("services")
    grown: Of[bool] = Of("services")
    logged: Of[dict[str, list[tuple[Tensor, float]]]] = Of("services")
    now: Of[Now] = Of("services")
    multi_head: Of[bool] = Of("services")
    forward: Of[Forward] = Of("services")
    trainable: Of[Trainable] = Of("services")
    share: Of[Share] = Of("services")
    rng: Of[Callable[[str], torch.Generator]] = Of("services")
    log: Of[Callable[..., None]] = Of("services")
    loss_on: Of[Callable[..., Tensor]] = Of("services")
    grad: Of[Callable[..., list[Tensor]]] = Of("services")
    parameters: Of[Callable[[], list[nn.Parameter]]] = Of("services")
    named_parameters: Of[Callable[[], dict[str, nn.Parameter]]] = Of("services")
    task: Of[int | None] = Of("services.forward")
    prepare: Of[Callable[..., Any] | None] = Of("services.forward")
    output: Of[Callable[[Any], Tensor] | None] = Of("services.forward")
    autocast: Of[tuple[str, torch.dtype] | None] = Of("services.forward")
    on_growth: Of[list[Listener]] = Of("services.trainable")
    optimizer: Of[Callable[[], torch.optim.Optimizer | None]] = Of("services.trainable")
    added: Of[dict[str, nn.Parameter]] = Of("services.trainable")
    optimized: Of[Callable[[], list[nn.Parameter]]] = Of("services.trainable")
    every_parameter: Of[Callable[[], dict[str, nn.Parameter]]] = Of("services.trainable", "every")
    classes: Of[Tensor] = Of("services.seen", "mask")
    see_classes: Of[Callable[[Sequence[int]], None]] = Of("services.seen", "add")
    see_targets: Of[Callable[[Tensor], None]] = Of("services.seen", "add_targets")
    see_width: Of[Callable[[int], None]] = Of("services.seen", "widen")
    seed: Of[int] = Of("services.generators")
    rank: Of[int] = Of("services.share")
    ranks: Of[int] = Of("services.share")

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: Criterion | None = None,
        prepare: Callable[..., Any] | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        head: str | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.services = Services(
            model,
            criterion=criterion,
            prepare=prepare,
            seed=seed,
            device=device,
            head=head,
            share=Share(rank, ranks),
        )
        self.replaceable = True

    def __call__(self, inputs: Tree, task: Task = None) -> Tensor:
        """The model's outputs on raw `inputs`, as `Services` gives them."""
        return self.services.forward(inputs, task)

    @property
    def progress(self) -> float | None:
        """How far the experience has come: `now.progress`."""
        return self.now.progress

    @progress.setter
    def progress(self, value: float | None) -> None:
        self.now = Now(self.now.index, value, self.now.epoch_progress)

    @property
    def epoch_progress(self) -> float | None:
        """How far the pass over the experience's data has come: `now.epoch_progress`."""
        return self.now.epoch_progress

    @epoch_progress.setter
    def epoch_progress(self, value: float | None) -> None:
        self.now = Now(self.now.index, self.now.progress, value)

    def change_model(self, wrap: Callable[[nn.Module, Services], nn.Module | None], method: str) -> None:
        """Let a method change the model (see `Method`); parameters that it brings along are trained, too.

        Args:
            wrap: of the method.
            method: its name.

        Raises:
            NeedError: if it returns another model, and the loop goes on calling the one it was given.
        """
        before = {id(parameter) for parameter in self.model.parameters()}
        model = wrap(self.model, self.services)
        if model is not None and model is not self.model:
            if not self.replaceable:
                raise NeedError(
                    f"`{method}` puts another model in the place of yours, and this loop goes on calling yours.\n"
                    "  Use the Trainer, or a wrap that changes the model itself and returns None."
                )
            self._adopt(model)
        self.trainable.changed()
        self.trainable.brought = [p for p in self.trainable.parameters() if id(p) not in before]

    def _adopt(self, model: nn.Module) -> None:
        """Train `model` in the place of the one before, whose head it has, or one of its own."""
        services, head = self.services, self.head
        path = next((name for name, part in model.named_modules() if part is head and name), None)
        declared = getattr(model, "stages", None) is not None
        services.model = services.forward.model = services.trainable.model = model.to(self.device)
        services.body = Body(model, None if declared else path)
        services.multi_head = bool(getattr(services.body.head, "needs_task", False))

    # Boundaries ----------------------------------------------------------------------------------------

    def enter(self, experience: Experience, tasks: Mapping[int, Sequence[int]] | None = None) -> None:
        """Move to the next experience: its task, its classes, its outputs.

        Args:
            experience: with the data to train on.
            tasks: the classes of each task, where its data mixes several.
        """
        self.experience += 1
        self.members.append(tuple(experience.classes))
        self._add_tasks(max(tasks) if tasks else experience.task)
        self.grow(experience.classes)
        if self.multi_head and experience.task is not None:
            for task, classes in (tasks or {experience.task: experience.classes}).items():
                self.head.assign(task, list(classes))  # type: ignore[union-attr, operator]
        self._set_task(experience.task)
        targets = experience.train.targets
        if self.services.memory is not None and len(targets) and not targets.is_floating_point():
            self.services.ignores = self.services.ignores or bool((targets == ignored_label(self.criterion)).any())

    def grow(self, classes: Sequence[int]) -> None:
        """Announce classes: the head grows to have outputs for them."""
        grow = getattr(self.head, "grow", None)
        if grow is not None and classes:
            unseeded = getattr(self.head, "seed", 0) is None  # a head without a seed of its own takes ours
            new = grow(max(classes) + 1, self.rng("head")) if unseeded else grow(max(classes) + 1)
            if new:
                self.grown = self.grown or self.experience > 0
                self.trainable.changed()
                self.trainable.announce(new)
        self.services.seen.add(classes)

    def _add_tasks(self, task: int | None) -> None:
        """Let a model that has a part of its own for each task make the part of this one."""
        if task is None:
            return
        for module in self.model.modules():
            add = getattr(module, "add_tasks", None)
            new = add(task + 1) if callable(add) else []
            if new:
                self.trainable.changed()
                self.trainable.announce(new)

    def _set_task(self, task: int | None) -> None:
        """The current task; forwards that nobody gave a task (the user's own) are of this one, too."""
        self.task = task
        if self.multi_head:
            self.head.task = task  # type: ignore[union-attr, assignment]

    # State ---------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Everything that changes while learning, as tensors and plain values."""
        return {
            "model": dict(self.model.state_dict()),
            "training": self.model.training,
            "task": self.task,
            "experience": self.experience,
            "grown": self.grown,
            "members": [list(classes) for classes in self.members],
            "classes": self.classes,
            "generators": self.services.generators.state(),
            "memory": None if self.memory is None else self.memory.state(),
        }

    def load(self, state: Saved) -> None:
        """Restore what `state` returned into a learner bound to an equal method; outputs grow as they did."""
        self.members = [tuple(classes) for classes in state["members"]]
        for self.experience, classes in enumerate(self.members):  # noqa: B020
            self.grow(classes)
        before = {id(parameter) for parameter in self.model.parameters()}
        self.model.load_state_dict(state["model"])
        grown = [parameter for parameter in self.model.parameters() if id(parameter) not in before]
        if grown:  # parts of tasks, which nobody but the state counts
            self.trainable.changed()
            self.trainable.announce(grown)
        self.model.train(state["training"])
        self.experience = state["experience"]
        self._set_task(state["task"])
        self.grown = state.get("grown", self.grown)  # a model that was loaded before has grown already
        self.classes = state["classes"].to(self.device, copy=True)
        self.services.generators.load(state["generators"])
        if state["memory"] is not None and self.memory is not None:
            self.memory.load(state["memory"])

    if not TYPE_CHECKING:  # tests and loops of one's own hand a learner to an operation, which asks for services

        def __getattr__(self, name: str) -> Any:
            if name == "services":
                raise AttributeError(name)
            return getattr(self.services, name)
