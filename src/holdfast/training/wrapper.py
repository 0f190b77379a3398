"""The drop-in: a method in the user's own loop, by one changed line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.boundary import Boundary
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Batch, Data, Experience, Tree, tree_rows
from holdfast.core.learner import Criterion, Learner
from holdfast.core.method import Method
from holdfast.core.needs import OFFERS
from holdfast.core.step import Step
from holdfast.memory import Memory, Ring
from holdfast.streams.data import TensorData

ADVICE = {
    "boundaries": "Pass boundary=Every(steps=1000) or boundary=OnNewClass(), or call begin() and end() yourself.",
    "data": "Call begin(data) and end(data) around each experience, or choose a method that needs none: er, der_plus_plus, agem.",
    "replacement": "Leave boundary out and loop over the data that `begin` returns, or use the Trainer.",
    "stream": "Leave boundary out and call begin(experience) with the experiences of a stream, or use the Trainer.",
    "update": "Pass optimizer=..., so that the method sees when the parameters moved.",
    "progress": "Use the Trainer, which knows how long an experience is.",
    "criterion": "Use the Trainer, or choose a method that takes your loss.",
}


class Continual:
    """Puts a method into any PyTorch loop: `cl.backward(loss, targets, inputs=x)` stands where `loss.backward()` stood.

    The model's outputs are captured from its forward, so none is computed twice. Operations that join old samples
    to the batch act inside that forward: the model sees more rows, and the caller gets back those of its own.

    Args:
        model: any module, on its device already.
        method: what is done around each step; bound here, once.
        optimizer: needed by methods that act after it moved, and by models that grow.
        criterion: the loss on replayed samples, `criterion(outputs, targets)` -> mean; default: cross-entropy.
        boundary: who says that an experience ended: None (you call `begin` and `end`), `Every(steps=...)`, or
            `OnNewClass()`.
        prepare: turns raw inputs into the model's, as `Stream.prepare` does; memory then keeps them raw (images as
            uint8), and the loop calls `cl(x)` with raw inputs instead of `model(x)`.
        seed: of every random choice.
        head: dotted path of the output layer; default: `model.head`, else the last linear layer.

    Raises:
        NeedError: if the method needs what this loop does not offer, with what to write instead.
        ConfigError: if the optimiser does not hold the model's parameters.

    Example:
        >>> from holdfast.methods import der_plus_plus
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> cl = Continual(model, der_plus_plus(capacity=100, size=8), optimizer=optimizer)
        >>> for _ in range(3):
        ...     x, y = torch.randn(8, 4), torch.randint(0, 2, (8,))
        ...     loss = nn.functional.cross_entropy(model(x), y)
        ...     optimizer.zero_grad()
        ...     cl.backward(loss, y, inputs=x)
        ...     optimizer.step()
        >>> len(cl.learner.memory)
        24
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        criterion: Criterion | None = None,
        boundary: Boundary | None = None,
        prepare: Callable[..., Any] | None = None,
        seed: int = 0,
        head: str | None = None,
    ) -> None:
        if not isinstance(method, Method):
            raise ConfigError(f"`Continual` got {method!r} as its method. Write Continual(model, er(capacity=200), optimizer).")
        self.model = model
        self.method = method
        self.optimizer = optimizer
        self.boundary = boundary
        self.learner = Learner(model, criterion=criterion, prepare=prepare, seed=seed, head=head)
        self._given_criterion = criterion is not None
        ways = [name for name in OFFERS if name.startswith("wrapper")]
        offers = set(OFFERS[ways[0] if boundary is None else ways[1]])
        if optimizer is None:
            offers.discard("update")
        self.engine = Engine(method, self.learner, offers, ADVICE)
        self._check_optimizer()
        self.learner.on_growth.append(self._follow)
        self.learner.optimizer = lambda: self.optimizer
        if self.learner.added:
            self._follow(list(self.learner.added.values()))
        self._experience: Experience | None = None
        self._busy = False
        self._captured: tuple[Tensor, dict[str, Any], int] | None = None
        self._pending: Step | None = None
        self._count = 0
        self._recent: Memory | None = None
        self._present = torch.zeros(0, dtype=torch.bool, device=self.learner.device)
        if boundary is not None and "data" in method.needs:
            self._recent = Memory(boundary.window, insertion=Ring(), device=self.learner.device)
        self._hooks = [model.register_forward_hook(self._after_forward, with_kwargs=True)]
        if self.engine.acts_at("batch"):
            self._hooks.append(model.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        if optimizer is not None and (self.engine.acts_at("update")):
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    # The one changed line ------------------------------------------------------------------------------

    def backward(
        self,
        loss: Tensor,
        targets: Tensor,
        *,
        inputs: Tree | None = None,
        outputs: Tensor | None = None,
        task: int | None = None,
        **named: Tensor,
    ) -> None:
        """Compute gradients as `loss.backward()` would, with the method's part in them.

        Args:
            loss: the current data's mean loss, a scalar with its graph.
            targets: the current data's targets, `[rows, ...]`.
            inputs: what the model was called with: a tensor, a tuple of positional arguments or a mapping of
                keyword arguments.
            outputs: the model's outputs on `inputs`; default: those of its last forward in training mode.
            task: the task label; default: that of the experience.
            **named: instead of `inputs`, the model's keyword arguments by name.

        Raises:
            UsageError: if the model was not called since the last step, rows do not match, or an experience is missing.
        """
        if named:
            inputs = dict(named) if inputs is None else {"inputs": inputs, **named}  # type: ignore[dict-item]
        if inputs is None:
            raise UsageError("backward() got no inputs. Write cl.backward(loss, targets, inputs=x) with what the model was called with.")
        self._check(loss, targets, inputs)
        extras: dict[str, Any] = {}
        if self._captured is not None:
            captured, extras, _ = self._captured
            outputs = captured if outputs is None else outputs
        step = Step(
            inputs, targets, loss, outputs, self.learner.task if task is None else task, self.engine.index, None, extras
        )
        self._busy = True
        try:
            if self.boundary is not None:
                self._watch(step)
                self._note_classes(step)
            self.engine.backward(step)
            if self._recent is not None:
                self._recent.add({"inputs": step.inputs, "targets": step.targets})
        finally:
            self._busy = False
            self._captured = None
        self._pending = step
        self.learner.logged.clear() if self._count % 1000 == 999 else None
        self._count += 1

    # Boundaries ----------------------------------------------------------------------------------------

    def begin(
        self, data: Experience | Data | None = None, *, task: int | None = None, classes: tuple[int, ...] = ()
    ) -> Data | None:
        """Say that an experience begins.

        Args:
            data: an experience of a stream, or the data itself, for methods that choose or go over it.
            task: its task label, if it has one.
            classes: its classes, if the model's head must grow; read off the data where it is given.

        Returns:
            The data to train on: what was given, unless the method chose otherwise.
        """
        if self.boundary is not None:
            raise UsageError(f"begin() was called, but boundary={self.boundary!r} decides here. Leave one of the two out.")
        if self._experience is not None:
            raise UsageError("begin() was called twice. Call end() after each experience.")
        experience = data if isinstance(data, Experience) else self._wrap(data, task, classes)
        self._open(experience)
        assert self._experience is not None
        return None if data is None else self._experience.train

    def end(self, data: Experience | Data | None = None) -> None:
        """Say that the experience ended, before its model is evaluated or the next one begins.

        Args:
            data: the experience's data, if `begin` did not get it and the method goes over it.
        """
        if self._experience is None:
            raise UsageError("end() was called without begin(). Call begin() before an experience's first step.")
        if isinstance(data, Data):
            self._experience.train = data
        if "data" in self.method.needs and len(self._experience.train) == 0 and "replacement" not in self.method.needs:
            raise UsageError(
                f"`{self.method.name}` goes over an experience's data when it ends, and got none. Pass it: begin(data) or end(data)."
            )
        self._close()

    def _open(self, experience: Experience) -> None:
        self._busy = True
        try:
            self._experience, _ = self.engine.begin(experience)
        finally:
            self._busy = False

    def _close(self) -> None:
        assert self._experience is not None
        busy, self._busy = self._busy, True
        try:
            self.engine.end(self._experience)
        finally:
            self._busy = busy
        self._experience = None

    def _watch(self, step: Step) -> None:
        assert self.boundary is not None
        crossed = self.boundary.crossed(step)
        if crossed and self._experience is not None:
            if self._recent is not None and len(self._recent):
                rows = self._recent.all()
                self._experience.train = TensorData(rows["inputs"], rows["targets"])
                self._recent.clear()
            self._tell_classes()
            self._close()
        if self._experience is None:
            self._open(self._wrap(None, None, ()))
            self._busy = True

    def _note_classes(self, step: Step) -> None:
        """Nobody says which classes an experience has where a boundary decides: they are read off the targets."""
        outputs, targets = step.outputs, step.targets
        if outputs is None or outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
            return
        missing = outputs.shape[1] - self._present.shape[0]
        if missing > 0:
            self._present = torch.cat((self._present, self._present.new_zeros(missing)))
            self.learner.see_width(outputs.shape[1])
        self._present.index_fill_(0, targets, True)
        self.learner.see_targets(targets)

    def _tell_classes(self) -> None:
        self.learner.members[-1] = tuple(self._present.nonzero().flatten().tolist())
        self._present.zero_()

    def _wrap(self, data: Data | None, task: int | None, classes: tuple[int, ...]) -> Experience:
        if data is not None and not classes and not data.targets.is_floating_point():
            classes = tuple(torch.unique(data.targets).tolist())
        empty = TensorData(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
        return Experience(self.learner.experience + 1, empty if data is None else data, classes=classes, task=task)

    # Prediction, state ---------------------------------------------------------------------------------

    def __call__(self, inputs: Tree, task: int | None = None) -> Tensor:
        """The model's outputs on raw `inputs`, through `prepare` if there is one; in training, for `backward`.

        Args:
            inputs: raw inputs, `[rows, ...]`.
            task: the task label; default: that of the experience.
        """
        if not self._listening():
            return self.learner(inputs, task)
        task = self.learner.task if task is None else task
        batch = Batch(inputs, torch.empty(tree_rows(inputs)), task)
        self._busy = True
        try:
            outputs, extras = self.engine.forward(self.engine.batch(batch))
        finally:
            self._busy = False
        self._captured = (outputs, extras, outputs.shape[0])
        return outputs

    def predict(self, inputs: Tree, task: int | None = None) -> Tensor:
        """Outputs in eval mode without gradients, as the method wants them."""
        busy, self._busy = self._busy, True
        try:
            with self.engine.evaluating(), torch.no_grad():
                return self.engine.predict(inputs, task)
        finally:
            self._busy = busy

    def state_dict(self) -> dict[str, Any]:
        """Model, memory, operations and random states, as tensors and plain values."""
        return {
            "engine": self.engine.state(),
            "boundary": {} if self.boundary is None else self.boundary.state(),
            "recent": None if self._recent is None else self._recent.state(),
            "inside": self._experience is not None,
            "present": self._present,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the optimiser is restored by its own, afterwards."""
        self.engine.load(state["engine"])
        if self.boundary is not None:
            self.boundary.load(state["boundary"])
        self._present = state["present"].to(self.learner.device, copy=True)
        if self._recent is not None:
            self._recent.load(state["recent"])
        self._experience = None
        if state["inside"]:
            members = self.learner.members[-1] if self.learner.members else ()
            self._experience = self._wrap(None, self.learner.task, members)
        self._captured = None

    def close(self) -> None:
        """Take every hook off the model and the optimiser; the model is the user's alone again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # Hooks ---------------------------------------------------------------------------------------------

    def _listening(self) -> bool:
        return self.model.training and not self._busy and torch.is_grad_enabled()

    def _before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._listening() or self._captured is not None:
            return None
        if self.learner.prepare is not None:
            raise UsageError("the model was called directly, but `prepare` was given. Call cl(inputs) with raw inputs instead.")
        tree: Tree = kwargs if not args else (args[0] if len(args) == 1 and not kwargs else args)
        if args and kwargs:
            raise UsageError("joining old samples needs inputs all by position or all by name. Call the model in one of the two ways.")
        batch = self.engine.batch(Batch(tree, torch.empty(tree_rows(tree)), self.learner.task))
        self._batch = batch
        if not batch.appended:
            return None
        joined, task = self.engine.join(batch)
        if task is not None and self.learner.multi_head:
            self.learner.head.task = task  # type: ignore[union-attr, assignment]
            self.learner.given_task = task
        if isinstance(joined, Tensor):
            return (joined,), {}
        return ((), dict(joined)) if isinstance(joined, Mapping) else (joined, {})

    def _after_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        if not self._listening() or not isinstance(outputs, Tensor):
            return None
        self.learner.given_task = None
        if torch.is_autocast_enabled(outputs.device.type):
            kind = outputs.device.type
            self.learner.autocast = (kind, torch.get_autocast_dtype(kind))
        batch = getattr(self, "_batch", None)
        self._batch: Batch | None = None
        extras: dict[str, Any] = {}
        changed = batch is not None and bool(batch.appended)
        if changed:
            assert batch is not None
            outputs, extras = self.engine.split(outputs, batch)
        self.engine.note_unmasked(outputs, extras)
        self._captured = (outputs, extras, outputs.shape[0])
        return outputs if changed else None

    def _after_step(self, *_: Any) -> None:
        if self._pending is not None:
            step, self._pending = self._pending, None
            self.engine.update(step)

    # Checks --------------------------------------------------------------------------------------------

    def _check(self, loss: Tensor, targets: Tensor, inputs: Tree) -> None:
        if loss.dim() or not loss.requires_grad:
            raise UsageError(
                f"backward() got a loss of shape {tuple(loss.shape)} with requires_grad={loss.requires_grad}. "
                "Pass the mean loss of the model's outputs, a scalar with its graph."
            )
        if self.boundary is None and self._experience is None and "boundaries" in self.method.needs:
            raise UsageError(f"`{self.method.name}` needs boundaries. Call begin() before an experience's first step, or {ADVICE['boundaries'][0].lower()}{ADVICE['boundaries'][1:]}")
        rows = tree_rows(inputs)
        if targets.shape[0] != rows:
            raise UsageError(f"backward() got {targets.shape[0]} targets for {rows} inputs. Pass those of the same batch.")
        if targets.is_floating_point() and not self._given_criterion and self.learner.memory is not None:
            raise UsageError(
                f"targets are {targets.dtype}, and replayed samples would get cross-entropy. "
                "Pass the criterion of your loop: Continual(..., criterion=torch.nn.functional.mse_loss)."
            )
        if self._captured is not None and self._captured[2] != rows:
            raise UsageError(
                f"the model's last forward had {self._captured[2]} rows, backward() got {rows}. Pass the batch it was called with."
            )
        if self._captured is None and (self.method.remembers or self.engine.acts_at("batch")):
            raise UsageError(
                "backward() was called without a forward of the model in training mode before it. "
                "Call the model that was given to Continual, once a step."
            )

    def _check_optimizer(self) -> None:
        if self.optimizer is None:
            return
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in self.learner.named_parameters().items() if id(p) not in held]
        if missing and len(missing) == len(self.learner.parameters()):
            raise ConfigError(
                "the optimizer holds none of the model's parameters. Make it from this model: torch.optim.SGD(model.parameters(), ...)."
            )

    def _follow(self, new: list[nn.Parameter]) -> None:
        if self.optimizer is None:
            raise UsageError("the model got new parameters, and no optimizer follows them. Pass optimizer=... to Continual.")
        self.optimizer.add_param_group({"params": new})
