"""Copies of the model that answer beside it: a snapshot, which stays as it was, and a twin, whose values move."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from holdfast.core.copying import deep_copy
from holdfast.core.errors import DataError, UsageError, renamed
from holdfast.core.forward import Forward, Task
from holdfast.core.tree import Saved, Tree


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of the model with its layers' hooks, in eval mode and without gradients."""
    hooks = {name: value for name, value in vars(model).items() if name.startswith("_forward_") and value}
    try:  # hooks on the whole model are the loop's: they hold the loop, which a teacher must not have a copy of
        for name, value in hooks.items():
            model.__dict__[name] = type(value)()
        with torch.inference_mode(False):  # it may first be wanted in an evaluation, and written to in training
            made = deep_copy(model)
    finally:
        model.__dict__.update(hooks)
    return made.requires_grad_(False).eval()


class Snapshot(MutableMapping[str, Tensor]):
    """The model as it was: its parameters and buffers by name, and its answers (`snapshot(inputs, task)`).

    The tensors are those of the copy that answers. What is written into them, or set by name, therefore holds at once:
    an average of the weights can be kept in a snapshot (a `Twin` follows a head that grows, too). Declared in an
    operation's `state` it is saved as a dictionary of tensors.

    Args:
        module: the copy, in eval mode and without gradients.
        forward: how the learner makes forwards.
    """

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        self.module = module
        self._forward = forward
        self._values = tensors_of(module)

    def __call__(self, inputs: Tree, task: Task = None) -> Tensor:
        """Outputs on raw `inputs`, in eval mode, without a graph; `task` as for `learner(inputs, task)`."""
        with torch.no_grad():
            return self._forward(inputs, task, self.module)

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        here = self._values.get(name)
        if here is None or here.shape != value.shape:
            has = "no tensor of that name" if here is None else f"one of shape {tuple(here.shape)}"
            raise UsageError(
                f"a snapshot cannot take {name!r} of shape {tuple(value.shape)}: it has {has}. Keep what is not the"
                " model's in a dictionary of your own."
            )
        with torch.no_grad():
            here.copy_(value)

    def __delitem__(self, name: str) -> None:
        raise UsageError("a snapshot keeps every tensor of the model. Copy it with dict(snapshot) to drop some.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def state(self) -> dict[str, Tensor]:
        """Every tensor by name, as `load` takes them."""
        return dict(self._values)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, from a snapshot of another width too."""
        load_into(self.module, values)
        self._values = tensors_of(self.module)

    def apply_(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace each tensor by `function` of it: another device, another type."""
        self.module._apply(function)
        self._values = tensors_of(self.module)

    def __deepcopy__(self, memo: dict[int, object]) -> Snapshot:
        return Snapshot(deep_copy(self.module, memo), self._forward)

    def __reduce__(self) -> tuple[object, ...]:
        """Saved by itself it is an ordered dictionary of tensors, which torch reads with `weights_only=True`."""
        return OrderedDict, (), None, None, iter(self._values.items())


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and tensors of extra state by name, sharing their memory with the module."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def load_into(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Load `values` into a copy of the model, whose heads drop the outputs that `values` do not have."""
    for name, part in module.named_modules():
        shrink = getattr(part, "shrink_to", None)
        if callable(shrink):
            shrink(values, f"{name}." if name else "")
    module.load_state_dict(dict(values))


OLD_SNAPSHOTS = ("teacher", "solver")
"""Where operations of ours kept snapshots when checkpoints did not say so yet."""


def restore_snapshots(
    operation: object, saved: Mapping[str, Any], make: Callable[[dict[str, Tensor]], Snapshot]
) -> None:
    """Make snapshots again of the dictionaries that an operation got back from a checkpoint.

    Args:
        operation: that was loaded.
        saved: what it was loaded from, which names its snapshots.
        make: from a dictionary of tensors to the snapshot.
    """
    for name in saved.get("snapshots", OLD_SNAPSHOTS):
        loaded = getattr(operation, name, None)
        if isinstance(loaded, dict):
            setattr(operation, name, make(loaded))


def check_operations(names: Sequence[str], saved: Saved) -> None:
    """Refuse a checkpoint of another method.

    Args:
        names: of the operations that are to be loaded.
        saved: what the checkpoint has, by the name of the operation.

    Raises:
        DataError: if it lacks one of them.
    """
    missing = [name for name in names if name not in saved]
    if missing:
        raise DataError(
            f"this checkpoint holds nothing of the operation {missing[0]!r}; it has {', '.join(saved) or 'none'}. It is"
            " of another method, or of a version of Holdfast whose operations were called otherwise. Begin anew."
        )


class Live(Protocol):
    """What a twin must know of its original (`Services`, `Learner`)."""

    model: nn.Module
    forward: Forward
    experience: int

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters; another list once the model changed."""


class Twin:
    """A second model like the learner's, whose values an operation moves without ever touching the first.

    A running average of the weights is `twin.average(0.01)` in `update`, and `twin(inputs)` are its answers. A head
    that grows is followed: new outputs start with the model's own values. Declared in an operation's `state`, its
    values are saved as a dictionary of tensors. Nothing is copied before the twin is first used.

    Args:
        learner: whose model is copied.
        start: values by name to start from; None starts from the model's own.

    Example:
        >>> from holdfast import Learner
        >>> learner = Learner(nn.Linear(1, 1, bias=False))
        >>> twin = Twin(learner)
        >>> before = float(twin.values["weight"])
        >>> with torch.no_grad():
        ...     _ = learner.model.weight.add_(1.0)
        >>> twin.average(0.25)
        >>> round(float(twin.values["weight"]) - before, 4)
        0.25
    """

    def __init__(self, learner: Live, start: Mapping[str, Tensor] | None = None) -> None:
        self._learner = learner
        self._module: nn.Module | None = None
        self._values: dict[str, Tensor] = dict(start or {})
        self._made_for: tuple[list[nn.Parameter], int] | None = None

    @property
    def module(self) -> nn.Module:
        """The copy: in eval mode, without gradients, as wide as the model is now."""
        self._follow()
        assert self._module is not None
        return self._module

    @property
    def values(self) -> dict[str, Tensor]:
        """Its parameters and buffers by name; write into them to change it."""
        self._follow()
        return self._values

    @property
    def started(self) -> bool:
        """Whether there are values yet: after the first use, or a load."""
        return bool(self._values)

    def __call__(self, inputs: Tree, task: Task = None) -> Tensor:
        """Outputs on raw `inputs`, without a graph; `task` as for `learner(inputs, task)`."""
        with torch.no_grad():
            return self._learner.forward(inputs, task, self.module)

    def copy_from(self, values: Mapping[str, Tensor]) -> None:
        """Take over those of `values` that have a tensor of the same name and shape here; the others stay."""
        with torch.no_grad():
            for name, here in self.values.items():
                if name in values and values[name].shape == here.shape:
                    here.copy_(values[name])

    def average(self, share: float | Tensor) -> None:
        r"""Move towards the model: `values <- values + share * (model - values)`; integers are copied.

        Args:
            share: from 0 to 1, a number or a scalar tensor.
        """
        values, live = self.values, self._learner.model.state_dict()
        floats = [name for name, value in values.items() if value.is_floating_point()]
        with torch.no_grad():
            if isinstance(share, Tensor):
                for name in floats:
                    values[name].lerp_(live[name], share.to(values[name].dtype))
            else:
                torch._foreach_lerp_([values[name] for name in floats], [live[name] for name in floats], share)
            for name in values.keys() - set(floats):
                values[name].copy_(live[name])

    def state(self) -> dict[str, Tensor]:
        """Its values by name; empty before the first use."""
        return dict(self._values)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self._values, self._module, self._made_for = {name: value.clone() for name, value in values.items()}, None, None

    def apply_(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace each tensor by `function` of it: another device, another type."""
        self._values = {name: function(value) for name, value in self._values.items()}
        self._module = self._made_for = None

    def _follow(self) -> None:
        """Make the copy anew where the model has other outputs, or other tasks, than when it was made."""
        learner, made_for = self._learner, self._made_for
        parameters = learner.parameters()
        if made_for is not None and made_for[0] is parameters and made_for[1] == learner.experience:
            return
        before, self._module = self._values, copy_of(learner.model)
        self._values, self._made_for = tensors_of(self._module), (parameters, learner.experience)
        self.copy_from({name: value for name, value in before.items() if value.is_floating_point()})

    def __deepcopy__(self, memo: dict[int, object]) -> Twin:
        return Twin(self._learner, {name: value.clone() for name, value in self._values.items()})

    def __reduce__(self) -> tuple[object, ...]:
        """Saved by itself it is an ordered dictionary of tensors."""
        return OrderedDict, (), None, None, iter(self._values.items())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_learner" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self.module, name)  # `learner.twin()` returned the module itself before
        renamed(f"twin.{name}", f"twin.module.{name}")
        return value
