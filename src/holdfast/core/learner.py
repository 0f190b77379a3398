"""The learner: the model, and the short closed list of services that operations may use."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Experience, Tree
from holdfast.core.inspect import features_of, find_head
from holdfast.core.ranks import average_over_ranks

Criterion = Callable[[Tensor, Tensor], Tensor]
Snapshot = dict[str, Tensor]

TEACHERS = 8
"""Scratch copies of the model that are kept for snapshots, at most."""

OWN_DRAWS = ("augment", "draw", "remember", "replace")
"""Beginnings of the names of random choices that every rank makes for itself; all others are alike on every rank."""


def derive_seed(seed: int, name: str) -> int:
    """A seed for the random numbers called `name`, independent of every other name's.

    Example:
        >>> derive_seed(0, "order") == derive_seed(0, "order"), derive_seed(0, "order") == derive_seed(0, "replay")
        (True, False)
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1)


class Learner:
    """A model that learns, and what operations may ask of it.

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
        task: the current task label; None in unlabelled streams.
        experience: index of the current experience; -1 before the first.
        members: the classes of each finished or current experience, in order.
        memory: what is remembered, once an operation made one (see `operations.Remember`).
        fields: the extra fields that the method's operations want remembered.
        autocast: `(device type, dtype)` of the main forward's autocast, entered again by every other forward.
        grown: whether outputs were added after the first experience (stored logits may be narrower than today's).
        on_growth: called with the new parameters whenever outputs are added; whoever owns the optimiser listens.
        added: parameters that operations brought along, by name (see `learn`).
        progress: how far the experience has come, from 0 to 1; None in loops that do not know.
        epoch_progress: how far the current pass over the experience's data has come: 0 at its first step, 1 at its
            last; None in loops that do not know.
        optimizer: returns the optimiser, or None where there is none; whoever owns it sets this.
        output: takes the tensor of outputs out of what the model returns; None where the model returns that tensor.
        logged: scalars and their factors, logged since the loop read them last, by name; tensors stay on the device.
    """

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
        self.model = model
        self.rank = rank
        self.ranks = ranks
        self.criterion: Criterion = criterion if criterion is not None else F.cross_entropy
        self.prepare = prepare
        self.seed = seed
        first = next(model.parameters(), None)
        self.device = (
            torch.device(device) if device is not None else (first.device if first is not None else torch.device("cpu"))
        )
        self.head, self._head_path = self._find_head(head)
        self.task: int | None = None
        self.experience = -1
        self.members: list[tuple[int, ...]] = []
        self.memory: Any = None
        self.fields: tuple[str, ...] = ()
        self.autocast: tuple[str, torch.dtype] | None = None
        self.logged: dict[str, list[tuple[Tensor, float]]] = {}
        self.grown = False
        self.on_growth: list[Callable[[list[nn.Parameter]], None]] = []
        self.added: dict[str, nn.Parameter] = {}
        self.progress: float | None = None
        self.epoch_progress: float | None = None
        self.optimizer: Callable[[], torch.optim.Optimizer | None] = lambda: None
        self.given_task: int | Tensor | str | None = None
        self.output: Callable[[Any], Tensor] | None = None
        self._classes = torch.zeros(0, dtype=torch.bool, device=self.device)
        self._generators: dict[str, torch.Generator] = {}
        self._loaded_generators: dict[str, Tensor] = {}
        self._scratch: list[tuple[int, Snapshot, nn.Module]] | None = None
        self._parameters: list[nn.Parameter] | None = None
        self._augment = self.rng("augment")
        self._multi_head = bool(getattr(self.head, "needs_task", False))

    # The forward ---------------------------------------------------------------------------------------

    def __call__(self, inputs: Tree, task: int | Tensor | str | None = None) -> Tensor:
        """The model's outputs on raw `inputs`, in the model's current mode.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            task: for a model with a head per task: the task of all rows, `[rows]` tasks, or "all" for the outputs
                of every task; default: the current one.
        """
        if self.autocast is not None and not torch.is_autocast_enabled(self.autocast[0]):
            with torch.autocast(self.autocast[0], dtype=self.autocast[1]):
                return self._forward(self.model, inputs, task)
        return self._forward(self.model, inputs, task)

    @property
    def forward_task(self) -> int | Tensor | None:
        """The task of the forward that is running, for hooks on inner layers; outside of one, the current task."""
        given = self.given_task
        return self.task if given is None or isinstance(given, str) else given

    def _forward(
        self,
        model: nn.Module,
        inputs: Tree,
        task: int | Tensor | str | None = None,
        inner: nn.Module | None = None,
    ) -> Tensor:
        """Outputs of `model`, which wraps `inner` where that is given."""
        before, self.given_task = self.given_task, task
        try:
            return self._run(model, inputs, task, model if inner is None else inner)
        finally:
            self.given_task = before

    def _run(self, model: nn.Module, inputs: Tree, task: int | Tensor | str | None, inner: nn.Module) -> Tensor:
        if self.prepare is not None:
            inputs = self.prepare(inputs, model.training, self._augment)
        if self._multi_head:
            inner.get_submodule(self._head_path).task = self.task if task is None else task  # type: ignore[assignment]
        if isinstance(inputs, Tensor):
            outputs = model(inputs)
        else:
            outputs = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
        return outputs if self.output is None else self.output(outputs)

    def loss_on(self, inputs: Tree, targets: Tensor, task: int | Tensor | None = None) -> Tensor:
        """The criterion's mean loss on raw `inputs` and `targets`, a scalar with its graph."""
        if self.autocast is not None and not torch.is_autocast_enabled(self.autocast[0]):
            with torch.autocast(self.autocast[0], dtype=self.autocast[1]):
                return self.criterion(self._forward(self.model, inputs, task), targets)
        return self.criterion(self(inputs, task), targets)

    def features(self, inputs: Tree) -> Tensor:
        """What enters the head, `[rows, features]`."""
        if self.head is None:
            raise UsageError(
                "features were asked for, but the model has no linear layer. Name its output layer with head='path'."
            )
        if self.prepare is not None:
            inputs = self.prepare(inputs, self.model.training, self._augment)
        return features_of(self.model, self.head, inputs)

    def _find_head(self, path: str | None) -> tuple[nn.Module | None, str]:
        try:
            name, head = find_head(self.model, path)
        except ConfigError:
            if path is not None:
                raise
            return None, ""
        return head, name

    # Parameters and gradients --------------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the order of `model.named_parameters()`."""
        if self._parameters is None:
            self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        return self._parameters

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def learn(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Let the optimiser move `parameters` of an operation too: embeddings, scores of masks, new columns.

        They are not in `parameters()`, which is the model's: no other operation penalises or projects them.

        Args:
            parameters: by a name that is unique within the method (`f"{self.name}/..."`); a known name is replaced.
        """
        new = [p for name, p in parameters.items() if self.added.get(name) is not p]
        self.added.update(parameters)
        if new:
            for listener in self.on_growth:
                listener(new)

    def optimized(self) -> list[nn.Parameter]:
        """Everything that the optimiser moves: the model's trainable parameters, then those that operations added."""
        return [*self.parameters(), *self.added.values()] if self.added else self.parameters()

    def every_parameter(self) -> dict[str, nn.Parameter]:
        """The model's and the added parameters by name, those that are frozen too: the names in checkpoints."""
        return {**dict(self.model.named_parameters()), **{f"added/{name}": p for name, p in self.added.items()}}

    def freeze(self, parameters: Sequence[nn.Parameter]) -> None:
        """Stop training `parameters` of the model: no gradient, and no move of the optimiser from now on."""
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        self._parameters = None

    def moments(self, parameter: nn.Parameter) -> list[Tensor]:
        """What the optimiser keeps for each value of `parameter` (momentum, Adam's averages), to be edited in place."""
        optimizer = self.optimizer()
        if optimizer is None or parameter not in optimizer.state:
            return []
        held = optimizer.state[parameter].values()
        return [value for value in held if isinstance(value, Tensor) and value.shape == parameter.shape]

    def forget_moments(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let the optimiser forget all it remembers of `parameters`, as if they were new."""
        optimizer = self.optimizer()
        for parameter in parameters if optimizer is not None else ():
            optimizer.state.pop(parameter, None)  # type: ignore[union-attr]

    def grad(self, loss: Tensor, average: bool = True) -> list[Tensor]:
        """Gradient of `loss` by every trainable parameter; never touches `p.grad`.

        Args:
            loss: a scalar with its graph.
            average: over ranks, which must then all ask at the same time.
        """
        found = torch.autograd.grad(loss, self.parameters(), allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters())]
        return average_over_ranks(grads) if average else grads

    def gradients(self) -> list[Tensor]:
        """The gradients that the optimiser is about to use, to be edited in place; zeros where there were none."""
        grads = []
        for parameter in self.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grads.append(parameter.grad)
        return grads

    # Teachers ------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """A copy of the model's parameters and buffers by name: state, to be kept by the operation that took it."""
        snapshot = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        # Teachers of the boundary before are most often replaced now; one that is not is made again when it is wanted.
        self._scratch = [kept for kept in self._scratch or [] if kept[0] == self.experience][1 - TEACHERS :]
        self._scratch.append((self.experience, snapshot, self.twin()))
        return snapshot

    @property
    def multi_head(self) -> bool:
        """Whether the model has one head per task, and so needs task labels."""
        return self._multi_head

    def forward_as(self, snapshot: Snapshot, inputs: Tree, task: int | Tensor | str | None = None) -> Tensor:
        """Outputs of the model as it was at `snapshot`, in eval mode, without a graph.

        The module behind it is a scratch copy, made again after loading a checkpoint
        (`functional_call` on the snapshot was measured four times slower).
        """
        return self.forward_of(self._teacher(snapshot), inputs, task)

    def _teacher(self, snapshot: Snapshot) -> nn.Module:
        """The scratch copy behind `snapshot`; several operations may have one each."""
        for _, known, teacher in self._scratch or []:
            if known is snapshot:
                return teacher
        teacher = self.twin()
        shrink = getattr(teacher.get_submodule(self._head_path), "shrink_to", None)
        if shrink is not None:
            shrink(snapshot, f"{self._head_path}." if self._head_path else "")
        teacher.load_state_dict(snapshot)
        self._scratch = [*(self._scratch or [])[1 - TEACHERS :], (self.experience, snapshot, teacher)]
        return teacher

    def forward_of(self, twin: nn.Module, inputs: Tree, task: int | Tensor | str | None = None) -> Tensor:
        """Outputs of `twin`, a copy of the model, on raw `inputs`, without a graph.

        Args:
            twin: as `twin()` made it.
            inputs: raw inputs, `[rows, ...]`.
            task: as for `learner(inputs, task)`.
        """
        context = (
            torch.autocast(self.autocast[0], dtype=self.autocast[1]) if self.autocast else contextlib.nullcontext()
        )
        with torch.no_grad(), context:
            return self._forward(twin, inputs, task)

    def twin(self) -> nn.Module:
        """A copy of the model with its layers' hooks, in eval mode and without gradients; scratch, not state."""
        model = self.model
        hooks = {name: value for name, value in vars(model).items() if name.startswith("_forward_") and value}
        try:  # the wrapper's hooks hold the wrapper, which a teacher must not have a copy of
            for name, value in hooks.items():
                model.__dict__[name] = type(value)()
            teacher = copy.deepcopy(model)
        finally:
            model.__dict__.update(hooks)
        return teacher.requires_grad_(False).eval()

    # Classes and boundaries ----------------------------------------------------------------------------

    @property
    def classes(self) -> Tensor:
        """Which classes were seen, `[outputs]` bool on the device; read it without waiting for the device."""
        return self._classes

    def see_classes(self, classes: Sequence[int]) -> None:
        """Add `classes` (known on the host, at a boundary) to `classes`."""
        if classes:
            self._widen(max(classes) + 1)
            self._classes[torch.tensor(list(classes), device=self.device)] = True

    def see_targets(self, targets: Tensor) -> None:
        """Add the classes of a batch to `classes` without a host sync; they must be below the head's width."""
        self._classes.index_fill_(0, targets, True)

    def see_width(self, width: int) -> None:
        """Make room for classes below `width` in `classes`, where nobody announces them."""
        self._widen(width)

    def _widen(self, width: int) -> None:
        missing = width - self._classes.shape[0]
        if missing > 0:
            self._classes = torch.cat((self._classes, self._classes.new_zeros(missing)))

    def enter(self, experience: Experience, tasks: Mapping[int, Sequence[int]] | None = None) -> None:
        """Move to the next experience: its task, its classes, its outputs.

        Args:
            experience: with the data to train on.
            tasks: the classes of each task, where its data mixes several.
        """
        self.experience += 1
        self.task = experience.task
        self.members.append(tuple(experience.classes))
        self._grow(experience.classes)
        if self._multi_head and experience.task is not None:
            for task, classes in (tasks or {experience.task: experience.classes}).items():
                self.head.assign(task, list(classes))  # type: ignore[union-attr, operator]

    def _grow(self, classes: Sequence[int]) -> None:
        grow = getattr(self.head, "grow", None)
        if grow is not None and classes:
            own = getattr(self.head, "seed", 0) is None  # a head without a seed of its own takes ours
            new = grow(max(classes) + 1, self.rng("head")) if own else grow(max(classes) + 1)
            if new:
                self.grown = self.grown or self.experience > 0
                self._parameters = None
                for listener in self.on_growth:
                    listener(new)
        self.see_classes(classes)

    # Randomness, logging -------------------------------------------------------------------------------

    def rng(self, name: str) -> torch.Generator:
        """The generator (on the CPU) of the random choices called `name`; the only source of randomness."""
        if name not in self._generators:
            own = self.rank > 0 and name.startswith(OWN_DRAWS)
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, f"{name} on rank {self.rank}" if own else name))
            if name in self._loaded_generators:
                generator.set_state(self._loaded_generators.pop(name))
            self._generators[name] = generator
        return self._generators[name]

    def log(self, name: str, value: Tensor, factor: float = 1.0) -> None:
        """Record the scalar `factor * value`; it stays on the device until the loop reads a whole window."""
        values = self.logged.get(name)
        if values is None:
            values = self.logged[name] = []
        values.append((value.detach(), factor))

    def share(self, count: int) -> int:
        """This rank's part of `count` samples that all ranks keep between them; at least one."""
        if self.ranks == 1:
            return count
        return max(1, count // self.ranks + (self.rank < count % self.ranks))

    def shard(self, order: Tensor) -> Tensor:
        """This rank's part of `order`, the samples that a pass goes over on all ranks together; maybe empty."""
        return order if self.ranks == 1 else order[self.rank :: self.ranks]

    # State ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that changes while learning, as tensors and plain values."""
        return {
            "model": dict(self.model.state_dict()),
            "training": self.model.training,
            "task": self.task,
            "experience": self.experience,
            "grown": self.grown,
            "members": [list(classes) for classes in self.members],
            "classes": self._classes,
            "generators": {name: generator.get_state() for name, generator in self._generators.items()},
            "memory": None if self.memory is None else self.memory.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned into a learner bound to an equal method; outputs grow as they did."""
        self.members = [tuple(classes) for classes in state["members"]]
        for self.experience, classes in enumerate(self.members):  # noqa: B020
            self._grow(classes)
        self.model.load_state_dict(state["model"])
        self.model.train(state["training"])
        self.task, self.experience = state["task"], state["experience"]
        self.grown = state.get("grown", self.grown)  # a model that was loaded before has grown already
        self._classes = state["classes"].to(self.device, copy=True)
        self._scratch = None
        self._loaded_generators = dict(state["generators"])
        for name, generator in self._generators.items():
            if name in self._loaded_generators:
                generator.set_state(self._loaded_generators.pop(name))
        if state["memory"] is not None:
            self.memory.load(state["memory"])
