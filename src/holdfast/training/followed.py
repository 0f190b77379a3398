"""Optimisers that somebody else moves, one or several: what the method does after the move, and what joins them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.step import Step
from holdfast.training.checks import check_optimizer
from holdfast.training.optimization import join_groups


class Several(torch.optim.Optimizer):
    """Optimisers that move one model together, for what asks for one: its groups, its state, its moves.

    Args:
        optimizers: two or more, each of other parameters.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)

    def __repr__(self) -> str:
        return f"Several({', '.join(type(one).__name__ for one in self.optimizers)})"

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all."""
        return [group for one in self.optimizers for group in one.param_groups]

    @property
    def state(self) -> ChainMap[Any, Any]:  # type: ignore[override]
        """What they keep of each parameter; it can be read, and entries be taken out."""
        return _States(*(one.state for one in self.optimizers))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move with each."""
        for one in self.optimizers:
            one.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let the gradients of all start anew."""
        for one in self.optimizers:
            one.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """New parameters join the last."""
        self.optimizers[-1].add_param_group(param_group)


class _States(ChainMap[Any, Any]):
    """Entries are read and taken out of whichever map has them; optimisers' own maps make one for every key."""

    def __getitem__(self, key: Any) -> Any:
        return next((one[key] for one in self.maps if key in one), None) or {}

    def pop(self, key: Any, *default: Any) -> Any:
        for one in self.maps:
            if key in one:
                return one.pop(key)
        return default[0] if default else super().pop(key)


Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


ALONE, SEVERAL = 2, 20
"""Moves of one optimiser, and of several, before a loop has to ask the method for a gradient."""


class Followed:
    """An optimiser that somebody else moves: what the method does after the move, and parameters that join.

    Of several optimisers over one model, the move is over when the last of them has moved. An optimiser that asks a
    closure for the gradient several times a move (LBFGS) makes one step of all that: see `evaluating`.

    Args:
        engine: whose method watches.
        before_move: called before the optimiser moves, where gradients may not be complete by then.

    Attributes:
        pending: the step whose gradient is complete, until the optimiser moves.
        inside: whether the optimiser is within a move that asks a closure for gradients.
        evaluating: whether all that happens there is one step to the method.
        ignored: inside of it, forwards are the method's own: operations may call the model after the move.
    """

    def __init__(self, engine: Engine, before_move: Callable[[], None] | None = None) -> None:
        self.engine = engine
        self.pending: Step | None = None
        self.inside = self.evaluating = False
        self.ignored: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._before_move = before_move
        self._optimizer: torch.optim.Optimizer | None = None
        self._moved: list[torch.optim.Optimizer] = []
        self._all: list[torch.optim.Optimizer] = []
        self._joined: set[int] = set()
        self._mark: tuple[nn.Parameter, int] | None = None
        self._draws: Any = None
        self._drawn: Any = None
        self._observed = True
        self._unheard: int | None = 0  # moves before the first gradient of ours
        self._updates = engine.acts_at("update")
        self._hooks: list[Any] = []
        engine.learner.optimizer = lambda: self._optimizer
        engine.learner.on_growth.append(self.follow)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser, or all as one; training goes on with a new one."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizers | None) -> None:
        every: list[torch.optim.Optimizer]
        if optimizer is None:
            every = []
        else:
            every = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        for one in every:
            check_optimizer(one, self.engine.learner)
        self.close()
        self.pending, self._moved, self._all = None, [], every  # type: ignore[assignment]
        self._optimizer = None if not every else every[0] if len(every) == 1 else Several(every)  # type: ignore[assignment]
        if self._optimizer is None:
            return
        moved = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        trainable = self.engine.learner.trainable
        missing = [p for p in (*trainable.added.values(), *trainable.brought) if id(p) not in moved]
        self._joined = {id(p) for p in missing}
        if missing:
            self._optimizer.add_param_group({"params": missing})
        self._check_whole(moved | {id(p) for p in missing})
        for one in self._all:
            self._hooks.append(one.register_step_post_hook(self._after))
            if self._before_move is not None:
                self._hooks.append(one.register_step_pre_hook(self._before))
            if isinstance(one, torch.optim.LBFGS):
                self._check_closure(one)
            if isinstance(one, torch.optim.SparseAdam):
                self._hooks.append(one.register_step_pre_hook(self._check_sparse))
            if isinstance(one, torch.optim.LBFGS) or not type(one).__module__.startswith("torch.optim"):
                self._hooks.append(one.register_step_pre_hook(self._begin))

    def _check_whole(self, moved: set[int]) -> None:
        """Refuse part of the optimisers where the method acts after the move."""
        engine, trainable = self.engine, self.engine.learner.trainable
        outside = [name for name, p in trainable.named().items() if id(p) not in moved]
        if outside and (engine.acts_at("update") or engine.acts_at("take_step")):
            raise ConfigError(
                f"`{engine.method.name}` acts after the weights moved, and the optimizer lacks some that train"
                f" ({', '.join(outside[:3])}). Give every optimizer of the model, Continual(model, method, [one, two]),"
                " and freeze what no optimizer moves: parameter.requires_grad_(False)."
            )

    def _check_sparse(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Refuse gradients that the method made dense, before torch does without saying whose they are."""
        grads = (p.grad for group in optimizer.param_groups for p in group["params"])
        if any(grad is not None and not grad.is_sparse for grad in grads):
            raise UsageError(
                f"SparseAdam moves by sparse gradients only, and `{self.engine.method.name}` adds to the gradient of"
                " every row. Take SGD or Adam (with Embedding(sparse=False)), or a method such as er or lwf."
            )

    def _check_closure(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimiser that moves several times a step where the method follows each move."""
        engine, name = self.engine, type(optimizer).__name__
        if len(self._all) > 1 or self._before_move is not None:
            raise ConfigError(
                f"{name} asks a closure for gradients several times a step. Give it alone, and without accumulate."
            )
        if engine.acts_at("update") or engine.acts_at("take_step"):
            raise ConfigError(
                f"`{engine.method.name}` follows every move of the weights, and {name} moves them several times a step,"
                " within its closure. Choose another optimizer, or a method such as ewc, mas, er or lwf."
            )

    def move(self) -> None:
        """Move the weights as its owner would."""
        assert self._optimizer is not None
        self._optimizer.step()

    def follow(self, new: list[nn.Parameter]) -> None:
        """Let the optimiser move parameters that the model, or an operation, got since."""
        if self._optimizer is None:
            raise UsageError(
                "the model got new parameters, and no optimizer follows them. Pass optimizer=... to Continual."
            )
        self._optimizer.add_param_group({"params": new})
        self._joined |= {id(p) for p in new}
        join_groups(self._all[-1], self._joined)

    def close(self) -> None:
        """Take the hooks off the optimiser."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # Between backward and move -----------------------------------------------------------------------------

    def expect(self, step: Step) -> None:
        """The gradient of `step` is complete: the optimiser moves next, if the loop does not leave that out."""
        self._unheard = None
        self.pending = step
        mark = None if self._mark is None else self._mark[0]  # the same one as before, if it may be
        if mark is None or mark.grad is None or not mark.requires_grad:
            mark = next((p for p in self.engine.services.parameters() if p.grad is not None), None)
        # Torch counts in-place writes to a tensor: another count says that somebody moved the weights, and reads none.
        self._mark = None if mark is None else (mark, mark._version)

    def go_on(self) -> None:
        """Another step begins: one whose move was left out is over, as after an overflow.

        Raises:
            UsageError: if the weights were moved by somebody else, or the gradient of the last step is still there.
        """
        if self.pending is None or self._optimizer is None:
            return
        if self.inside:
            raise UsageError(
                f"`{self.engine.method.name}` follows every move of the weights, and {type(self._optimizer).__name__}"
                " moves them several times a step, within its closure. Choose another optimizer, or a method such as"
                " ewc, mas, er or lwf."
            )
        if self._moved:  # the loop left some of the optimisers out
            self._finish()
            return
        if self._mark is not None and self._mark[0]._version != self._mark[1]:
            raise UsageError(
                "the weights were moved since the last backward(), and not by the optimizer given to Continual. When"
                " you make a new optimizer, assign cl.optimizer; pass all of several, [one, two], and of a wrapper such"
                " as SAM the one inside whose step() moves (optimizer.base_optimizer); of two passes for one step give"
                " backward() the last one, and write loss.backward() for the first."
            )
        grads = [p.grad for p in self.engine.services.parameters() if p.grad is not None]
        if grads and bool(torch.nn.utils.get_total_norm(grads) != 0):
            raise UsageError(
                "backward() was called again, and the optimizer given to Continual did not move in between. Pass"
                " accumulate=... for gradient accumulation; where the loop leaves a step out, call"
                " optimizer.zero_grad() all the same before the next backward()."
            )
        self.pending = None

    def _before(self, *_: Any) -> None:
        assert self._before_move is not None
        self._before_move()

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.inside = self.evaluating = False
        if self._drawn is not None:
            self.engine.services.generators.load(self._drawn)
            self._drawn = None
        if self.pending is None:
            if self._unheard is not None:
                self._count_unheard()
            return
        if len(self._all) > 1:
            if not any(optimizer is one for one in self._moved):
                self._moved.append(optimizer)
            if len(self._moved) < len(self._all):
                return
        self._finish()

    def _count_unheard(self) -> None:
        """Refuse a loop whose optimiser moves and never asks the method for a gradient: nothing would be retained."""
        assert self._unheard is not None
        self._unheard += 1
        operations = self.engine.method.operations
        if operations and self._unheard > (SEVERAL if len(self._all) > 1 else ALONE):
            raise UsageError(
                f"the optimizer moved the weights {self._unheard} times, and `{self.engine.method.name}` was never"
                " asked for a gradient, so it did nothing. Write cl.backward(loss, targets, inputs=x) in the place of"
                " loss.backward(). Train what comes before continual learning before you make a Continual."
            )

    def _finish(self) -> None:
        step, self.pending, self._moved = self.pending, None, []
        assert step is not None
        if not self._observed:
            self._observed = True
            self.engine.finish(step, edits=False)
        if self._updates:
            with self.ignored():
                self.engine.update(step)

    # Moves that ask for gradients ---------------------------------------------------------------------------

    def _begin(self, _: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("closure") is None and (len(args) < 2 or args[1] is None):
            return
        self.inside, self.evaluating = True, not self.engine.acts_at("update")
        self._draws, self._drawn = self.engine.services.generators.state(), None

    def evaluate(self, step: Step) -> bool:
        """The gradient of `step` within a move. The first is that of the step; every one draws the same samples.

        What is remembered of the step is remembered when the move is over, so that nothing changes within it.

        Returns:
            Whether it is the first.
        """
        generators, first = self.engine.services.generators, self.pending is None
        self._unheard = None
        if first:
            self.pending, self._observed = step, False
        self.engine.finish(step, observers=False)
        if self._drawn is None:
            self._drawn = generators.state()
        generators.load(self._draws)
        return first
