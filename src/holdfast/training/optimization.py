"""Optimisers by their torch names, the move of one step, and our optimiser of a model that grows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from holdfast.core.errors import ConfigError, UsageError, unknown
from holdfast.training.export import copied

OptimizerFactory = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]


def optimizer_names() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimiser class of `torch.optim`, by name, that works without a closure and on dense gradients."""
    optimizers = {}
    for name in dir(torch.optim):
        value = getattr(torch.optim, name)
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer):
            optimizers[name] = value
    for unusable in ("Optimizer", "LBFGS", "SparseAdam"):
        optimizers.pop(unusable, None)
    return optimizers


def optimizer_factory(optimizer: str | Mapping[str, Any] | OptimizerFactory) -> OptimizerFactory:
    """A function from parameters to a new optimiser.

    Args:
        optimizer: a torch name (`"Adam"`), a mapping with `name` and arguments (`{"name": "SGD", "lr": 0.1}`),
            or such a function already (`functools.partial(torch.optim.SGD, lr=0.1)`); or an optimiser, whose class and
            values are taken, over the parameters of the model that is trained.

    Raises:
        ConfigError: for a name that `torch.optim` does not have, arguments that its class does not take, or an
            optimiser whose groups of parameters have values of their own.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return _like(optimizer)
    if callable(optimizer):
        return optimizer
    arguments = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer)
    name = arguments.pop("name", None)
    names = optimizer_names()
    if name not in names:
        raise ConfigError(unknown("optimizer", name, names, "Names are those of torch.optim."))
    try:
        names[name]([nn.Parameter(torch.zeros(1))], **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the optimizer {name} does not take {arguments}: {error}. See torch.optim.{name}.") from None
    return functools.partial(names[name], **arguments)


def _like(optimizer: torch.optim.Optimizer) -> OptimizerFactory:
    """What makes optimisers of the same class and values; the trainer makes a new one where a method asks for that."""
    kind = type(optimizer)
    taken = inspect.signature(kind).parameters
    values = {key: value for key, value in optimizer.defaults.items() if key in taken}
    for group in optimizer.param_groups:
        differing = {key: group[key] for key in values if key in group and group[key] != values[key]}
        if differing and len(optimizer.param_groups) > 1:
            raise ConfigError(
                f"the optimizer {kind.__name__} has groups of parameters with values of their own ({differing}). Give a"
                " function of the parameters that makes it."
            )
        values |= differing
    return functools.partial(kind, **values)


def step_function(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """The cheapest function that moves the parameters exactly as `optimizer.step()` does.

    For plain SGD that is one call over all parameters; the bookkeeping around `Optimizer.step` was measured at
    45 us a step, a seventh of a whole step of a small network. Every other case is `optimizer.step` itself.
    """
    plain = type(optimizer) is torch.optim.SGD and not (
        optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    )
    keys = ("momentum", "weight_decay", "dampening")
    if not plain or any(group[key] != 0 for group in optimizer.param_groups for key in keys):
        return optimizer.step  # type: ignore[return-value]
    if any(group["nesterov"] or group["maximize"] for group in optimizer.param_groups):
        return optimizer.step  # type: ignore[return-value]
    groups = optimizer.param_groups
    bare = [[p.detach() for p in group["params"]] for group in groups]

    def move() -> None:
        for group, values in zip(groups, bare):
            grads, whole = [], True
            for parameter in group["params"]:  # a loop, and neither a comprehension nor `any`, at every step
                grad = parameter.grad
                grads.append(grad)
                whole = whole and grad is not None
            if not whole:
                values = [value for value, grad in zip(values, grads) if grad is not None]
                grads = [grad for grad in grads if grad is not None]
            if grads:  # what torch.optim.SGD calls for this, without its checks and hooks; same rounding
                torch._foreach_add_(values, grads, alpha=-group["lr"])

    return move


def join_groups(optimizer: torch.optim.Optimizer, joined: Collection[int]) -> None:
    """Make one group of neighbouring ones that are of the same values and hold parameters that joined later only.

    Each experience may bring parameters, and an optimiser's step costs some forty calls a group.

    Args:
        optimizer: left as it is where its class has its own way to take parameters, moves one group only, or is fused:
            fused SGD cannot move parameters that have a momentum together with such that have none yet.
        joined: the parameters that were added one experience after the other, by `id`; others stay in their groups.
    """
    kind, groups = type(optimizer), optimizer.param_groups
    if kind.add_param_group is not torch.optim.Optimizer.add_param_group or isinstance(optimizer, torch.optim.LBFGS):
        return
    if any(group.get("fused") for group in groups):
        return
    for index in range(len(groups) - 1, 0, -1):
        first, second = groups[index - 1 : index + 1]
        later = all(id(p) in joined for p in (*first["params"], *second["params"]))
        if later and first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first if k != "params"):
            first["params"].extend(second["params"])
            del groups[index]  # the list itself stays: schedulers and hooks hold it


def _same(one: Any, two: Any) -> bool:
    """Whether two values of groups are equal; rates that are tensors (of a captured step) only if they are one."""
    return one is two if isinstance(one, torch.Tensor) or isinstance(two, torch.Tensor) else bool(one == two)


def _nothing_to_move() -> None:
    raise UsageError("the model has no trainable parameter yet. Begin an experience whose classes its head grows to.")


class Optimization:
    """An optimiser, its schedulers, and how both follow a model that grows.

    Args:
        make: from parameters to a new optimiser.
        make_scheduler: from an optimiser to a scheduler, or None.
        scheduler_every: `"step"` or `"epoch"`.
    """

    def __init__(
        self, make: OptimizerFactory, make_scheduler: SchedulerFactory | None = None, scheduler_every: str = "epoch"
    ) -> None:
        if scheduler_every not in ("step", "epoch"):
            raise ConfigError(f"a scheduler got every={scheduler_every!r}. Choose step or epoch.")
        self.make = make
        self.make_scheduler = make_scheduler
        self.scheduler_every = scheduler_every
        self.scheduler: Any = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.move: Callable[[], Any] = _nothing_to_move
        self._joined: set[int] = set()

    def start(self, parameters: Sequence[nn.Parameter]) -> None:
        """A new optimiser over `parameters`; without any (a head that has yet to grow) it waits for the first."""
        if not parameters:
            self.optimizer = None
            return
        self.optimizer = self.make(list(parameters))
        self._initial = {key: value for key, value in self.optimizer.param_groups[0].items() if key != "params"}
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._joined = set()
        self._refresh()

    def follow(self, new: list[nn.Parameter]) -> None:
        """Add parameters that grew, as a group of their own until the next experience opens."""
        if self.optimizer is None:
            self.start(new)
        else:
            self.optimizer.add_param_group({**self._initial, "params": new})
            self._joined |= {id(p) for p in new}
            self._refresh()

    def choose(self, make: OptimizerFactory, make_scheduler: SchedulerFactory | None, scheduler_every: str) -> bool:
        """What the coming experience is trained with. Returns whether that needs another optimiser."""
        other = make is not self.make
        self.make, self.make_scheduler, self.scheduler_every = make, make_scheduler, scheduler_every
        return other

    def open_experience(self) -> None:
        """A new scheduler from the initial learning rate, for a new experience; what grew joins what grew before."""
        assert self.optimizer is not None
        self._reset()
        join_groups(self.optimizer, self._joined)
        self._schedule()

    def _reset(self) -> None:
        assert self.optimizer is not None
        if self.make_scheduler is not None or self.scheduler is not None:
            for index, group in enumerate(self.optimizer.param_groups):
                group["lr"] = self._rates[index] if index < len(self._rates) else self._initial["lr"]
                group.pop("initial_lr", None)

    def _schedule(self) -> None:
        assert self.optimizer is not None
        self.scheduler = None if self.make_scheduler is None else self.make_scheduler(self.optimizer)
        self._refresh()

    def _refresh(self) -> None:
        assert self.optimizer is not None
        self.move = step_function(self.optimizer) if self.make_scheduler is None else self.optimizer.step

    @property
    def lr(self) -> float:
        """The learning rate of the first group."""
        assert self.optimizer is not None
        return float(self.optimizer.param_groups[0]["lr"])

    def state(self, names: dict[int, str]) -> dict[str, Any]:
        """Optimiser and scheduler as plain values and tensors.

        Args:
            names: parameter name by `id`, so that groups can be built again.
        """
        assert self.optimizer is not None
        return {
            "groups": [[names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else plain_values(self.scheduler.state_dict()),
        }

    def load(self, state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> None:
        """Restore what `state` returned, over the model's `parameters` by name."""
        groups = [[parameters[name] for name in names] for names in state["groups"]]
        self.start([p for group in groups for p in group])
        assert self.optimizer is not None
        made = len(self.optimizer.param_groups)  # by whoever made the optimiser; the others grew
        self.optimizer.param_groups[:] = [{**self._initial, "params": group} for group in groups]
        self._joined = {id(p) for group in groups[made:] for p in group}
        if state["scheduler"] is not None:
            self._reset()
            self._schedule()
        self.optimizer.load_state_dict(copied(state["optimizer"]))  # torch keeps the tensors it is given
        if state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._refresh()


def plain_values(state: Mapping[str, Any]) -> dict[str, Any]:
    """Only what a `weights_only` checkpoint can hold: schedulers keep functions, which are built again instead."""

    def plain(value: Any) -> bool:
        if isinstance(value, Mapping):
            return all(plain(item) for item in value.values())
        if isinstance(value, list | tuple):
            return all(plain(item) for item in value)
        return value is None or isinstance(value, bool | int | float | str | torch.Tensor)

    return {key: value for key, value in state.items() if plain(value)}
