"""The model for deployment: a copy without the wrapper's hooks, with what the method does to predictions baked in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from holdfast.core.copying import deep_copy
from holdfast.core.engine import Engine
from holdfast.core.experience import Tree
from holdfast.core.learner import Learner
from holdfast.core.needs import NEEDS

TABLES = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
Hooks = dict[int, set[int]]


def hooks_of(model: nn.Module) -> Hooks:
    """The ids of the forward hooks of each layer, by the layer's `id`."""
    return {id(m): {key for table in TABLES[:2] for key in getattr(m, table)} for m in model.modules()}


@contextmanager
def without(model: nn.Module, first_hooks: Hooks) -> Iterator[None]:
    """The model with only the hooks in `first_hooks` inside, with all of its hooks afterwards."""
    tables = [(module, table, dict(getattr(module, table))) for module in model.modules() for table in TABLES]
    try:
        for module, table, entries in tables:
            for key in entries.keys() - first_hooks.get(id(module), set()):
                del getattr(module, table)[key]
        yield
    finally:
        for module, table, entries in tables:
            getattr(module, table).clear()
            getattr(module, table).update(entries)


class Exported(nn.Module):
    """A trained model whose call gives what `Continual.predict` gave: raw inputs in, the method's outputs out.

    Args:
        engine: a copy of the method, bound to a copy of the model.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.model = engine.learner.model
        self._engine = engine
        self.eval()

    def forward(self, *args: Tensor, task: int | Tensor | None = None, **kwargs: Tensor) -> Tensor:
        """Outputs of one batch, called as the model was."""
        inputs: Tree = kwargs if not args else (args[0] if len(args) == 1 else args)
        return self._engine.predict(inputs, task)


def exported(engine: Engine, first_hooks: Hooks) -> nn.Module:
    """A copy of the engine's model that shares nothing with the training.

    Args:
        engine: of the method.
        first_hooks: the hooks that the model had before the method was bound to it.

    Returns:
        A module of the model's own class in eval mode, or an `Exported` where predictions are not the model's alone:
        the method replaces them, or acts in the model's layers, or inputs are prepared.
    """
    learner, method = engine.learner, engine.method
    grads = {p: p.grad for p in learner.model.parameters()}
    with without(learner.model, first_hooks):
        for parameter in grads:
            parameter.grad = None
        try:
            model = deep_copy(learner.model)
        finally:
            for parameter, grad in grads.items():
                parameter.grad = grad
    acts = engine.acts_at("predict")
    hooked = any(
        hooks_of(layer)[id(layer)] - first_hooks.get(id(layer), set())
        for name, layer in learner.model.named_modules()
        if name
    )
    if not (acts or hooked or learner.prepare is not None or learner.output is not None or learner.forward.others):
        return model.eval()
    twin = Learner(
        model,
        criterion=learner.criterion,
        prepare=learner.prepare,
        seed=learner.seed,
        head=learner.services.body.path or None,
    )
    twin.output = learner.output
    twin.forward.others, twin.forward.names = learner.forward.others, learner.forward.names
    state = copied(engine.state(check=False))
    bound = Engine(method.clone(), twin, NEEDS)
    if not acts:
        state["learner"]["memory"] = None
    bound.load(state)
    return Exported(bound)


def copied(state: Any) -> Any:
    """`state` with every tensor copied."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state
