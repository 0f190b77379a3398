"""Pieces in the user's own hands: a module with Fisher penalties and reference gradients, and a memory by task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import tree_rows
from holdfast.core.services import Services
from holdfast.memory import BalancedReservoir, First, Insertion, Memory, Reservoir, Ring, Uniform
from holdfast.operations._parts.fisher import Kind, fisher_diagonal
from holdfast.operations._parts.quadratic import quadratic
from holdfast.operations.gradient_projection import project
from holdfast.streams.data import Pairs, as_data

Loss = Callable[[Tensor, Tensor], Tensor]
Overflow = Literal["first", "ring", "reservoir", "balanced"]
POLICIES = get_args(Overflow)


class ContinualLearner(nn.Module):
    r"""Base class of a network whose user writes the training loop and wants the pieces of EWC and A-GEM.

    $$ F \leftarrow F_{\text{new}} + \gamma F, \qquad
       \texttt{ewc\_loss()} = \tfrac{1}{2} \sum_i F_i (\theta_i - \theta^*_i)^2 $$

    $$ g \leftarrow g - \min\Big(0, \frac{g^\top g_{\text{ref}}}{g_{\text{ref}}^\top g_{\text{ref}}}\Big)
       g_{\text{ref}} $$

    The network may return a tuple; `output` takes what the loss is computed on out of it. Where `targets` of the data
    equal the inputs (an autoencoder), pass batches `(x, x)`.

    Args:
        gamma: decay of the older Fisher diagonals; 1 keeps them whole.
        output: from what `forward` returns to what losses take; default: the tensor itself.

    Source: Schwarz et al. 2018, "Progress and compress" (online EWC); Chaudhry et al. 2019, "Efficient lifelong
    learning with A-GEM", eq. 11; the interface is StreamedML's.
    Differences from StreamedML: gamma acts on the older diagonals only (there it multiplied all, and its default 0
    switched the penalty off); reference gradients are copies; everything stays on the parameters' device.

    Example:
        >>> class Net(ContinualLearner):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(4, 2)
        ...     def forward(self, x):
        ...         return self.layer(x)
        >>> net, x, y = Net(), torch.randn(8, 4), torch.randint(0, 2, (8,))
        >>> net.estimate_fisher((x, y), nn.functional.cross_entropy)
        >>> float(net.ewc_loss())
        0.0
    """

    def __init__(self, gamma: float = 1.0, output: Callable[[Any], Tensor] | None = None) -> None:
        super().__init__()
        if not 0 <= gamma <= 1:
            raise ConfigError(f"`ContinualLearner` got gamma={gamma}. Give a number from 0 to 1.")
        self.gamma = gamma
        self.output = output
        self._reference: list[Tensor] | None = None
        self._per_layer = False

    # Elastic weight consolidation ------------------------------------------------------------------------

    def estimate_fisher(
        self, data: Pairs, loss_func: Loss, *, kind: Kind = "empirical", samples: int | None = None, seed: int = 0
    ) -> None:
        """Measure the Fisher diagonal on a task's data, and remember the parameters; call it when the task ends.

        Args:
            data: of the task, with targets.
            loss_func: `loss_func(outputs, targets)` -> mean loss.
            kind: how targets are chosen, see `operations._parts.fisher`; `empirical` takes the data's own.
            samples: use this many; default: all.
            seed: of the choice of samples and labels.
        """
        # Squared gradients of `loss_func` itself, whatever likelihood it might stand for, as StreamedML has it.
        learner = self._learner(
            (lambda outputs, targets: loss_func(outputs, targets)) if kind == "empirical" else loss_func
        )
        diagonal = fisher_diagonal(
            learner, as_data(data), kind, samples=samples, generator=torch.Generator().manual_seed(seed)
        )
        older = self.fisher
        for name, value in diagonal.items():
            self._keep("fisher", name, value + self.gamma * older[name] if name in older else value)
        for name, parameter in learner.named_parameters().items():
            self._keep("anchor", name, parameter.detach().clone())

    def ewc_loss(self) -> Tensor:
        """The penalty, a scalar with its graph; zero before the first `estimate_fisher`. Multiply by your lambda."""
        parameters = dict(self.named_parameters())
        anchor = self.anchor
        if not anchor:
            return next(iter(parameters.values())).new_zeros(())
        return 0.5 * quadratic(Services(self), self.fisher, anchor)

    # Gradients -------------------------------------------------------------------------------------------

    def calculate_ref_gradients(self, data: Pairs, loss_func: Loss = nn.functional.cross_entropy) -> Tensor:
        """The gradient of the mean loss on old data, kept for `overwrite_grad`; `p.grad` is not touched.

        Returns:
            The mean loss, without a graph.
        """
        self._per_layer = False
        return self._measure(data, loss_func)

    def calculate_ref_gradients_layerwise(
        self, data: Pairs, loss_func: Loss = nn.functional.cross_entropy, loss_lambda: float = 1.0
    ) -> Tensor:
        """The same, to project each parameter tensor on its own by `overwrite_grad_layerwise`.

        Args:
            data: old samples.
            loss_func: as above.
            loss_lambda: factor of the loss; a projection does not depend on it.
        """
        self._per_layer = True
        return self._measure(data, loss_func, loss_lambda)

    def overwrite_grad(self) -> None:
        """Take out of the gradients what points against the reference; call it between backward and step."""
        self._project(per_layer=False)

    def overwrite_grad_layerwise(self) -> None:
        """The same for each parameter tensor on its own."""
        self._project(per_layer=True)

    def _measure(self, data: Pairs, loss_func: Loss, factor: float = 1.0) -> Tensor:
        learner, total, rows = self._learner(loss_func), None, 0
        loss = torch.zeros((), device=learner.device)
        for batch in as_data(data):
            part = learner.loss_on(batch.inputs, batch.targets)
            count = tree_rows(batch.inputs)
            grads = [factor * count * grad for grad in learner.grad(part)]
            total = grads if total is None else [a + b for a, b in zip(total, grads)]
            loss, rows = loss + count * part.detach(), rows + count
        if total is None:
            raise UsageError("reference gradients were asked for without data. Give old samples, at least one.")
        self._reference = [grad / rows for grad in total]
        return loss / rows

    def _project(self, per_layer: bool) -> None:
        if self._reference is None or per_layer != self._per_layer:
            name = "calculate_ref_gradients_layerwise" if per_layer else "calculate_ref_gradients"
            raise UsageError(f"there is no reference gradient of this kind yet. Call {name}(data) before.")
        project(Services(self).gradients(), self._reference, per_layer)

    def _learner(self, loss_func: Loss) -> Services:
        learner = Services(self, criterion=loss_func)
        learner.forward.output = self.output
        return learner

    # State -----------------------------------------------------------------------------------------------

    @property
    def fisher(self) -> dict[str, Tensor]:
        """The running Fisher diagonal by parameter name; buffers of the module, saved and moved with it."""
        return self._kept("fisher")

    @property
    def anchor(self) -> dict[str, Tensor]:
        """The parameters as they were at the last `estimate_fisher`, by name; buffers likewise."""
        return self._kept("anchor")

    def _keep(self, kind: str, name: str, value: Tensor) -> None:
        self.register_buffer(f"{kind}_of_{name.replace('.', '__')}", value)

    def _kept(self, kind: str) -> dict[str, Tensor]:
        names = {f"{kind}_of_{name.replace('.', '__')}": name for name, _ in self.named_parameters()}
        return {names[key]: value for key, value in self._buffers.items() if key in names and value is not None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make the buffers of a saved state that this module does not have yet."""
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and name.startswith(("fisher_of_", "anchor_of_")) and name not in self._buffers:
                self.register_buffer(name, torch.zeros_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)


class EpisodicMemory:
    """A memory of `size` samples shared out evenly over `tasks` tasks, with what happens on overflow named.

    Args:
        size: samples in all.
        tasks: tasks that are stored; the first ones get one sample more where it does not divide.
        overflow: within a task's share: `first` keeps the oldest, `ring` the newest, `reservoir` each with equal
            probability; `balanced` shares the task's samples out over its classes, too.
        seed: of what is kept and drawn.

    Example:
        >>> memory = EpisodicMemory(size=5, tasks=2)
        >>> memory.add_data_for_task(0, torch.arange(10.0).view(10, 1), torch.zeros(10, dtype=torch.int64))
        >>> memory.quotas, len(memory)
        ((3, 2), 3)
    """

    def __init__(self, size: int, tasks: int, overflow: Overflow = "first", seed: int = 0) -> None:
        if tasks < 1 or size < tasks:
            raise ConfigError(
                f"a memory of {size} samples cannot serve {tasks} tasks. Give at least one sample per task."
            )
        if overflow not in POLICIES:
            raise ConfigError(f"overflow is {overflow!r}. Choose one of {', '.join(POLICIES)}.")
        self.size, self.tasks, self.overflow, self.seed = size, tasks, overflow, seed
        self.quotas = tuple(size // tasks + (task < size % tasks) for task in range(tasks))
        self._memories: dict[int, Memory] = {}
        self._choice = torch.Generator().manual_seed(seed + 1)
        self._draw = Uniform(torch.Generator().manual_seed(seed))

    def add_data_for_task(self, task: int, inputs: Tensor, targets: Tensor) -> None:
        """Offer samples of a task, numbered from 0.

        Raises:
            UsageError: for a task beyond those the memory was made for.
        """
        if not 0 <= task < self.tasks:
            raise UsageError(
                f"task {task} has no share in a memory of {self.tasks} tasks. Make it with tasks={task + 1} or more."
            )
        if task not in self._memories:
            self._memories[task] = Memory(self.quotas[task], insertion=self._policy(task))
        self._memories[task].add({"inputs": inputs, "targets": targets})

    def get_data_for_reference_gradient(self, task: int, size: int = 0) -> tuple[Tensor, Tensor] | None:
        """Old samples for the task that is trained now.

        Args:
            task: samples of earlier tasks only are given.
            size: samples drawn at random from all of them (A-GEM), all if there are fewer; 0 gives all samples of
                one earlier task, chosen at random (S-GEM).

        Returns:
            `(inputs, targets)`, or None if no earlier task is stored.
        """
        earlier = [memory.all() for number, memory in sorted(self._memories.items()) if number < task and len(memory)]
        if not earlier:
            return None
        if size == 0:
            earlier = [earlier[int(torch.randint(len(earlier), (), generator=self._choice))]]
        inputs = torch.cat([rows["inputs"] for rows in earlier])  # type: ignore[misc]
        targets = torch.cat([rows["targets"] for rows in earlier])  # type: ignore[misc]
        if 0 < size < len(targets):
            chosen = self._draw.indices(len(targets), size)
            inputs, targets = inputs[chosen], targets[chosen]
        return inputs, targets

    def _policy(self, task: int) -> Insertion:
        if self.overflow in ("first", "ring"):
            return First() if self.overflow == "first" else Ring()
        generator = torch.Generator().manual_seed(self.seed + 7919 * (task + 1))
        return Reservoir(generator) if self.overflow == "reservoir" else BalancedReservoir(generator)

    def __len__(self) -> int:
        return sum(len(memory) for memory in self._memories.values())

    def state_dict(self) -> dict[str, Any]:
        """What is held, and the random states."""
        return {
            "memories": {task: memory.state() for task, memory in self._memories.items()},
            "choice": self._choice.get_state(),
            "draw": self._draw.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._memories = {}
        for task, memory in state["memories"].items():
            self._memories[task] = Memory(self.quotas[task], insertion=self._policy(task))
            self._memories[task].load(memory)
        self._choice.set_state(state["choice"])
        self._draw.load(state["draw"])
