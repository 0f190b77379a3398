"""Generators: small networks that turn the embedding of a task into every weight of another network."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError, unknown
from holdfast.models.build import Activation, check_sizes, make_activation
from holdfast.models.hyperfan import Init, initialise_heads

# Letters in shapes: T tasks that weights are generated for, H units of the last hidden layer.


class Target(NamedTuple):
    """One tensor to generate, and what its initial values follow from.

    Attributes:
        shape: of the tensor.
        fan_in: inputs of one unit of its layer.
        fan_out: units that one input of its layer feeds.
        offset: added to what is generated: 1 for the weights of normalisation layers, else 0.
        output: whether it belongs to the layer that makes the outputs.
        rectified: whether a ReLU or the like follows, which halves the second moment of what comes in.
    """

    shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    offset: float = 0.0
    output: bool = False
    rectified: bool = True

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def vector(self) -> bool:
        """Whether it is a bias, or a scale or shift of a normalisation layer."""
        return len(self.shape) < 2

    def variance(self, fan: Literal["in", "out"]) -> float:
        """Of the initial values that keep the second moment of activations ("in") or gradients ("out") the same.

        He et al. 2015, eq. 10 and 14, for weights; the variance of torch's own biases, 1 / (3 fan in), for vectors.
        """
        if self.vector:
            return 1 / (3 * self.fan_in)
        return (2.0 if self.rectified else 1.0) / (self.fan_in if fan == "in" else self.fan_out)


class Generator(nn.Module, ABC):
    """Weights of another network for each of several tasks: `generator([0, 2])` gives every tensor for tasks 0 and 2.

    What belongs to one task alone is one entry of a `ParameterList`, so that tasks can be added without touching what
    exists: names, values and optimiser state of the others stay. A saved state with more tasks than this generator has
    makes it grow first.

    Args:
        targets: the tensors to generate, by name.
        tasks: how many to start with.
        embedding: values of a task's embedding.
        embedding_std: standard deviation of their initial values, which are normal with mean 0.
        seed: of what tasks get that are added later; None draws it from torch's global generator.

    Attributes:
        embeddings: one vector `[embedding]` for each task.
    """

    def __init__(
        self, targets: Mapping[str, Target], tasks: int, embedding: int, embedding_std: float, seed: int | None
    ) -> None:
        super().__init__()
        check_sizes("embedding", [embedding])
        if tasks < 0:
            raise ConfigError(f"tasks is {tasks}. Write how many tasks to start with, from 0 up.")
        if embedding_std <= 0:
            raise ConfigError(f"embedding_std is {embedding_std}. Write a positive number, usually 1.")
        self.targets = dict(targets)
        self.embedding = embedding
        self.embedding_std = embedding_std
        self.seed = seed
        self.embeddings = nn.ParameterList()

    @property
    def tasks(self) -> int:
        """Number of tasks it can generate for."""
        return len(self.embeddings)

    @property
    def generated(self) -> int:
        """Number of values generated for one task."""
        return sum(target.size for target in self.targets.values())

    @abstractmethod
    def forward(self, tasks: Sequence[int]) -> dict[str, Tensor]:
        """Every tensor for each of `tasks`, `[T, *shape]`, by name and in the order of `targets`."""

    @abstractmethod
    def _new_task(self, generator: torch.Generator | None) -> list[nn.Parameter]:
        """Append what one more task has of its own, beside its embedding."""

    def grow(self, tasks: int, generator: torch.Generator | None = None) -> list[nn.Parameter]:
        """Add tasks up to `tasks`; those that exist keep their values, names and `Parameter` objects.

        Args:
            tasks: number of tasks wanted; a number that is already there changes nothing.
            generator: source of the initial values; None takes `seed` and the task's number.

        Returns:
            The new parameters, for the optimiser.
        """
        created: list[nn.Parameter] = []
        while self.tasks < tasks:
            source = generator
            if source is None and self.seed is not None:
                digest = hashlib.sha256(f"task {self.seed} {self.tasks}".encode()).digest()
                source = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            values = torch.randn(self.embedding, generator=source) * self.embedding_std
            self.embeddings.append(self._placed(values))
            created += [self.embeddings[-1], *self._new_task(source)]
        return created

    def copy_embedding(self, source: int, task: int) -> None:
        """Let `task` start from the embedding of task `source`; nothing else that belongs to the task is copied."""
        self.check([source, task])
        with torch.no_grad():
            self.embeddings[task].copy_(self.embeddings[source])

    def of_task(self, task: int) -> list[nn.Parameter]:
        """What belongs to this task alone."""
        return [self.embeddings[task]]

    def shrink_to(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Drop the tasks that `state` does not have: a copy becomes what it was when that was saved.

        Args:
            state: a state dict of the model, from before tasks were added.
            prefix: of this generator's names in it.
        """
        self._keep_tasks(sum(f"{prefix}embeddings.{task}" in state for task in range(self.tasks)))

    def _keep_tasks(self, tasks: int) -> None:
        self.embeddings = nn.ParameterList(self.embeddings[:tasks])

    def check(self, tasks: Sequence[int]) -> None:
        """Refuse tasks that it cannot generate for.

        Raises:
            UsageError: for a number outside 0 to `self.tasks` - 1.
        """
        wrong = [task for task in tasks if not 0 <= task < self.tasks]
        if wrong:
            raise UsageError(
                f"a hypernetwork of {self.tasks} tasks was asked for the weights of task {wrong[0]}. "
                f"Number tasks from 0, and call `grow({max(wrong) + 1})` first."
            )

    def _placed(self, values: Tensor) -> nn.Parameter:
        """A parameter of these values on the device and of the type that the others have."""
        like = next(self.parameters(), values)
        return nn.Parameter(values.to(like.device, like.dtype if like.is_floating_point() else values.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Have as many tasks as were saved, then load as every module does."""
        saved = sum(f"{prefix}embeddings.{task}" in state_dict for task in range(len(state_dict)))
        self.grow(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)


class RowsHead(nn.Module):
    r"""One tensor of several rows from a hidden layer: `W_o = M [h ; e_o] + b` for each row o.

    The rows are output channels of a convolution or units of a linear layer; each has an embedding, and the map is the
    same for all, so that a tensor of O rows takes `O e + (H + e + 1) values of a row` parameters.

    Args:
        target: the tensor.
        hidden: units of the hidden layer, H.
        embedding: values of a row's embedding.
    """

    def __init__(self, target: Target, hidden: int, embedding: int) -> None:
        super().__init__()
        self.shape = target.shape
        self.hidden = hidden
        self.rows = nn.Parameter(torch.randn(target.shape[0], embedding))
        self.map = nn.Linear(hidden + embedding, target.size // target.shape[0])

    def forward(self, hidden_TH: Tensor) -> Tensor:
        """The tensor for each task, `[T, *shape]`."""
        weight = self.map.weight
        of_task = F.linear(hidden_TH, weight[:, : self.hidden])  # once a task, not once a row
        of_row = F.linear(self.rows, weight[:, self.hidden :], self.map.bias)
        return (of_task[:, None] + of_row[None]).view(-1, *self.shape)


class HeadsGenerator(Generator):
    """One head for each tensor, on a hidden layer that all share.

    Weights of convolutions and hidden layers are generated row by row (`RowsHead`), the weight of the output layer
    whole by one linear map, and vectors (biases, scales and shifts of normalisation) are not generated: each task has
    its own. "Partial Hypernetworks for Continual Learning" (Hemati et al., CoLLAs 2023). Difference: the published
    code has one table of vectors for each tensor, here a task's vectors are one parameter.

    Args:
        targets: the tensors to generate, by name.
        tasks: how many to start with.
        embedding: values of a task's embedding.
        hidden: units of the hidden layers.
        head_embedding: values of a row's embedding; 0 makes every tensor whole, by one linear map.
        activation: after each hidden layer.
        init: "default" is torch's; "xavier" is uniform with zero biases; "hyperfan_in" and "hyperfan_out" give the
            generated weights the variance that He et al. 2015 give a network's own (`hyperfan`).
        vectors: "own" keeps a task's vectors, "generated" makes them by a linear map too.
        embedding_std: standard deviation of the initial embeddings of tasks.
        seed: of what tasks get that are added later.

    Example:
        >>> generator = HeadsGenerator({"weight": Target((6, 3, 5, 5), 75, 150)}, tasks=2)
        >>> generator([1, 0])["weight"].shape
        torch.Size([2, 6, 3, 5, 5])
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        tasks: int = 1,
        embedding: int = 32,
        hidden: Sequence[int] = (50, 32),
        head_embedding: int = 32,
        activation: Activation = "relu",
        init: Init = "default",
        vectors: Literal["own", "generated"] = "own",
        embedding_std: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(targets, tasks, embedding, embedding_std, seed)
        check_sizes("hidden", hidden)
        check_sizes("head_embedding", [head_embedding + 1])
        if vectors not in ("own", "generated"):
            raise ConfigError(unknown("kind of vectors", vectors, ["own", "generated"]))
        self.trunk = nn.Sequential()
        for inputs, units in pairwise((embedding, *hidden)):
            self.trunk.append(nn.Linear(inputs, units))
            self.trunk.append(make_activation(activation))
        width = hidden[-1] if len(hidden) else embedding
        self.kept = [name for name, target in self.targets.items() if target.vector and vectors == "own"]
        self.heads = nn.ModuleDict()
        for name, target in self.targets.items():
            if name not in self.kept:
                whole = target.output or target.vector or head_embedding == 0
                head = nn.Linear(width, target.size) if whole else RowsHead(target, width, head_embedding)
                self.heads[_key(name)] = head
        self.vectors = nn.ParameterList()
        self.grow(tasks)
        initialise_heads(self, init)

    def forward(self, tasks: Sequence[int]) -> dict[str, Tensor]:
        """Every tensor for each of `tasks`, `[T, *shape]`, by name."""
        self.check(tasks)
        hidden_TH = self.trunk(torch.stack([self.embeddings[task] for task in tasks]))
        vectors: dict[str, Tensor] = {}
        if self.kept:
            sizes = [self.targets[name].size for name in self.kept]
            parts = torch.stack([self.vectors[task] for task in tasks]).split(sizes, dim=1)
            vectors = dict(zip(self.kept, parts))
        made = {}
        for name, target in self.targets.items():
            if name in vectors:
                made[name] = vectors[name].view(-1, *target.shape)
            else:
                values = self.head(name)(hidden_TH).view(-1, *target.shape)
                made[name] = values + target.offset if target.offset else values
        return made

    def head(self, name: str) -> nn.Module:
        """What makes the tensor of this name."""
        return self.heads[_key(name)]

    def of_task(self, task: int) -> list[nn.Parameter]:
        """Its embedding, and its vectors where tasks keep them."""
        return [self.embeddings[task], *([self.vectors[task]] if self.kept else [])]

    def _keep_tasks(self, tasks: int) -> None:
        super()._keep_tasks(tasks)
        self.vectors = nn.ParameterList(self.vectors[:tasks])

    def _new_task(self, generator: torch.Generator | None) -> list[nn.Parameter]:
        if not self.kept:
            return []
        values = [torch.full((self.targets[name].size,), self.targets[name].offset) for name in self.kept]
        self.vectors.append(self._placed(torch.cat(values)))
        return [self.vectors[-1]]


def _key(name: str) -> str:
    """A tensor's name as a module may be called."""
    return name.replace(".", "/")


def targets_of(upper: nn.Module, output: str) -> dict[str, Target]:
    """The parameters of `upper` as what a generator is to make, by name and in order.

    Args:
        upper: with its parameters.
        output: name of its output layer.

    Raises:
        ConfigError: if there is nothing to generate, or two layers share a parameter.
    """
    targets: dict[str, Target] = {}
    seen: set[int] = set()
    for prefix, module in upper.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                raise ConfigError(f"the parameter {prefix}.{key} is shared by two layers, and cannot be generated.")
            seen.add(id(parameter))
            name = f"{prefix}.{key}" if prefix else key
            of_layer = isinstance(weight, Tensor) and weight.dim() > 1
            shape = weight.shape if parameter.dim() < 2 and of_layer else parameter.shape  # type: ignore[union-attr]
            window = 1
            for size in shape[2:]:
                window *= size
            fan_in = shape[1] * window if len(shape) > 1 else shape[0]
            scale = parameter.dim() < 2 and not of_layer and key == "weight"  # of a normalisation layer
            last = prefix == output or prefix.startswith(f"{output}.")
            targets[name] = Target(
                shape=tuple(parameter.shape),
                fan_in=fan_in,
                fan_out=shape[0] * window,
                offset=1.0 if scale else 0.0,
                output=last,
                rectified=not last,
            )
    if not targets:
        raise ConfigError("above this cut nothing has parameters, so there is nothing to generate. Cut further down.")
    return targets
