"""What a loop that is not ours hands over, made into a step: what its model saw and gave, and what its loss is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.criteria import next_position_cross_entropy, position_cross_entropy
from holdfast.core.engine import Engine
from holdfast.core.errors import UsageError
from holdfast.core.experience import Tree, tree_map, tree_rows
from holdfast.core.forward import check_unchanged, versions
from holdfast.core.inspect import eval_mode
from holdfast.core.services import Criterion
from holdfast.core.step import Step
from holdfast.training.calls import At, Capture, described, first_leaf, same_values, tensors_in
from holdfast.training.checks import Watch, check_tree
from holdfast.training.forwards import Forwards
from holdfast.training.update import Update

POSITIONS = (position_cross_entropy, next_position_cross_entropy)
"""Losses of class indices at positions that a loop can be seen to use, where it names no criterion."""


class Intake:
    """Makes the step of what `backward` gets.

    What is remembered is what the model was called with; arguments without a row per sample are given to every other
    forward too. Where a model returns several tensors, its outputs are those that the loss is of. Where the loop names
    no criterion, it is noticed whether the loss is the default one.

    Args:
        engine: of the method.
        forwards: of the model.
        update: knows how many batches make a step, and the scaler.
        given: whether the user gave a criterion.

    Attributes:
        keeps_targets: whether targets that the model was called with are remembered among its inputs too.
    """

    def __init__(self, engine: Engine, forwards: Forwards, update: Update, targets_given: bool) -> None:
        self.engine = engine
        self.services = engine.services
        self.forwards = forwards
        self.update = update
        asked = {operation.asks for operation in engine.method}
        self._reruns = bool(asked - {"nothing"})
        self._targets_given = targets_given
        self._compared = "loss" not in asked or engine.acts_at("criterion")
        self.keeps_targets = True
        self._takes_called = False
        modules = self.services.forward.model.modules()
        self._suspects = self._reruns and any(getattr(one, "batch_first", True) is False for one in modules)
        self._alike = 0
        self.watch = Watch(engine, forwards, targets_given, self._reruns)
        self._looks: list[Any] = []
        self._before: list[tuple[Tensor, int]] = []
        if self._reruns or engine.method.remembers:
            model, forwards.looks = forwards.model, 1
            self._looks.append(model.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True))
            self._looks.append(model.register_forward_hook(self._leave, with_kwargs=True))

    def _enter(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the loop's first forward; later ones are not looked at."""
        if torch.is_grad_enabled() and not self.forwards.ignoring:
            self._before = versions((args, kwargs))

    def _leave(self, *_: object) -> None:
        if self._before:
            self.close()
            before, self._before = self._before, []
            check_unchanged(before)

    def close(self) -> None:
        """Take the hooks off the model."""
        self.forwards.looks = 0
        while self._looks:
            self._looks.pop().remove()

    def step(
        self,
        count: int,
        loss: Tensor,
        targets: Tensor,
        inputs: Tree | None,
        outputs: Tensor | None,
        task: int | Tensor | None,
        named: Mapping[str, Tensor],
    ) -> Step:
        """What `backward` was given and what its forward left, as a step; see `DropIn.backward`.

        Raises:
            UsageError: for what cannot be one batch of the model's.
        """
        if named:
            inputs = dict(named) if inputs is None else {"inputs": inputs, **named}  # type: ignore[dict-item]
        if inputs is None:
            raise UsageError(
                "backward() got no inputs. Write cl.backward(loss, targets, inputs=x) with what the model was called"
                " with."
            )
        if not isinstance(inputs, Tensor):
            check_tree(inputs)
        capture = self.forwards.of(inputs)
        extras: dict[str, Any] = {}
        if capture is not None and outputs is None:
            if capture.returned is not None:
                capture = self._resolved(capture, loss, targets)
            outputs = capture.outputs
        self.watch.check(count, loss, targets, inputs, outputs, capture)
        if capture is not None:
            if self._reruns and (capture.others or self.services.forward.others):
                self._take_others(capture)
            if capture.called is not None and capture.called is not inputs:
                inputs = self._seen(inputs, capture.called, targets)
            if capture.waits:
                capture = self.forwards.answered(capture)
            extras = capture.extras
            task = capture.task if task is None else task
            if capture.inputs is not None:
                inputs = capture.inputs  # what operations made of them, as the model saw it
        if not self._compared and outputs is not None and self.watch.closely:
            self._compare(outputs, targets, loss)
        services = self.services
        task = services.forward.task if task is None else task
        if self._suspects and tree_rows(inputs) > 1:
            self._check_rows(inputs, task)
        return Step(inputs, targets, loss, outputs, task, self.engine.index, services.now.progress, extras)

    # What the model was called with ----------------------------------------------------------------------

    def _seen(self, passed: Tree, called: Tree, targets: Tensor) -> Tree:
        """What is remembered: the inputs passed, if they hold what the model was called with; else that."""
        if not self._takes_called:
            if isinstance(called, Mapping) and len(passed) < len(called):  # the model may have got the targets too
                rest = {name: value for name, value in called.items() if value is not targets}
                if len(rest) < len(called) and same_values(passed, rest, look=self.watch.closely > 0):
                    self._takes_called = self.keeps_targets
                    return called if self.keeps_targets else passed
            if same_values(passed, called, look=self.watch.closely > 0):
                return passed
            self._takes_called = True
            if self._reruns:
                warnings.warn(
                    "backward() got other inputs than the model was called with (other values, shapes or types, or a"
                    " part of them), and goes on with what the model was called with. Pass that, or give"
                    " Continual(..., prepare=...) what turns raw inputs into the model's, and call cl(inputs).",
                    stacklevel=4,
                )
        return called

    def _check_rows(self, inputs: Tree, task: int | Tensor | None) -> None:
        """Refuse, once, a model that mixes its rows, such as a recurrent network of steps by samples.

        Raises:
            UsageError: if the last row alone gets another output than among all.
        """
        self._suspects = False
        forward = self.services.forward
        last = task[-1:] if isinstance(task, Tensor) else task
        with self.forwards.ignored(), eval_mode(forward.model), torch.no_grad():
            try:
                whole, alone = forward(inputs, task), forward(tree_map(lambda leaf: leaf[-1:], inputs), last)
            except Exception:  # it takes more than a row: what is wrong shows elsewhere
                return
        if whole.shape[1:] == alone.shape[1:] and torch.allclose(whole[-1:], alone, rtol=1e-2, atol=1e-3):
            return
        raise UsageError(
            f"the model mixes the rows that it is called with ({described(first_leaf(inputs))}): the last one alone"
            f" gets another output than among all of them, and `{self.engine.method.name}` makes forwards of other"
            " samples. Where steps come first and samples second, wrap the model in a module that brings rows to the"
            " first dimension (docs/in_your_own_loop.md, a recurrent network); or choose a method that makes no other"
            " forwards, such as si."
        )

    def _take_others(self, capture: Capture) -> None:
        """Let every other forward have the arguments that have no row per sample, too.

        Raises:
            UsageError: where they may differ from sample to sample, and nobody can tell which belong to which.
        """
        forward, others = self.services.forward, capture.others
        if not forward.others:
            for name, value in others.items():
                self._refuse_rows_in(name, value, capture.rows)
            names = list(capture.called) if isinstance(capture.called, Mapping) else self.forwards.calls.parameters()
            forward.names = [name for name in names if name not in others]
        for name in {**forward.others, **others} if self._alike else ():
            before, now = forward.others.get(name), others.get(name)
            if any(type(value) in (int, str) for value in (before, now)) and before != now:
                raise UsageError(
                    f"the model is called with {name}={now!r} now, and was with {name}={before!r} before: remembered"
                    " samples would be answered with another value than they came with. Pass it as a tensor with a row"
                    f" per sample ({name}=torch.full((len(x),), ...)); of a number that means the same for every sample"
                    f" (a count of steps), make an attribute of the model. For a head per task take holdfast.models"
                    " with head='task', and begin(data, task=...)."
                )
        forward.others, self._alike = others, 1

    def _refuse_rows_in(self, name: str, value: Any, rows: int) -> None:
        if name.isdecimal():
            raise UsageError(
                f"the model was called with {value!r} at position {name}, and its forward has no name for that. Give"
                " the parameter a name in forward(...)."
            )
        inner = list(tensors_in(value))
        turned = isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == rows
        if turned or (inner and not isinstance(value, Tensor)):
            what = (
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            )
            raise UsageError(
                f"the model was called with {name}={what}, and `{self.engine.method.name}` makes forwards of other"
                f" samples. Wrap the model in a module that takes tensors with a row per sample in their first"
                " dimension, and turns them there (docs/in_your_own_loop.md, a recurrent network); or choose a method"
                " that makes no other forwards, such as si."
            )

    # What the model returned -----------------------------------------------------------------------------

    def _resolved(self, capture: Capture, loss: Tensor, targets: Tensor) -> Capture:
        """`capture` with the part of what the model returned that the loss is of."""
        parts = [
            (path, value)
            for path, value in tensors_in(capture.returned)
            if value.dim() and value.requires_grad and value.is_floating_point()
        ]
        matching = [part for part in parts if self._criterion_of(part[1], targets, loss) is not None]
        if not matching and len(parts) == 1:
            matching = parts
        if not matching:
            if self._reruns:
                raise UsageError(
                    f"the model returned {described(capture.returned)}, and the loss is the criterion of none of these."
                    " Say which are its outputs: Continual(..., output=lambda returned: returned[0], criterion=...)."
                )
            return capture
        path, outputs = matching[0]
        self.services.forward.output = At(path)
        return capture._replace(outputs=outputs, returned=None)

    def inputs_of(self, outputs: Tensor) -> Tree | None:
        """What the model was called with when it gave `outputs`; None where no forward is known."""
        capture = self.forwards.that_gave(outputs)
        if capture is None:
            return None
        if capture.returned is not None:
            path = next((path for path, value in tensors_in(capture.returned) if value is outputs), None)
            if path is not None:
                self.services.forward.output = At(path)
                self.forwards.resolve(capture, outputs)
        return capture.called if capture.inputs is None else capture.inputs

    # What the loss is ------------------------------------------------------------------------------------

    def _value(self, criterion: Criterion, outputs: Tensor, targets: Tensor) -> float | None:
        """The criterion of one batch, without a graph; None where it cannot be taken."""
        with torch.no_grad(), self.services.forward.autocasting():
            try:
                return float(criterion(outputs.detach(), targets))
            except (RuntimeError, ValueError, IndexError, TypeError):
                return None

    def _near(self, value: float | None, loss: float) -> bool:
        rough = 2e-2 if self.services.forward.autocast is not None else 1e-3
        return value is not None and abs(value - loss) <= rough * max(abs(value), abs(loss)) + 1e-6

    def _criterion_of(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Criterion | None:
        """The criterion that gives `loss` of `outputs`: the learner's, or one of class indices at positions."""
        wanted = float(loss.detach())
        if not math.isfinite(wanted):
            return None
        several = not self._targets_given and not targets.is_floating_point() and outputs.dim() > 2
        for criterion in (self.services.criterion, *(POSITIONS if several else ())):
            if self._near(self._value(criterion, outputs, targets), wanted):
                return criterion
        return None

    def fits(self, inputs: Tree, targets: Tensor, loss: Tensor) -> bool:
        """Whether `loss` is the criterion of what the model gave for `inputs`, as far as that is known."""
        capture = self.forwards.of(inputs)
        return (
            capture is not None
            and capture.outputs is not None
            and self._criterion_of(capture.outputs, targets, loss) is not None
        )

    def _compare(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Notice a loss that is not what replayed samples get; once.

        Raises:
            UsageError: if it was divided or scaled, or no loss of replayed samples can be made.
        """
        if not math.isfinite(float(loss.detach())):
            return
        self._compared = True
        criterion = self._criterion_of(outputs, targets, loss)
        if criterion is not None:
            self.services.criterion = criterion
            return
        value, got = self._value(self.services.criterion, outputs, targets), float(loss.detach())
        parts, scaler = self.update.accumulate, self.update.scaler
        if value is not None and parts > 1 and self._near(value / parts, got):
            raise UsageError(
                f"the loss given to backward() is {got:.4g}, that of the batch divided by accumulate={parts}. Give the"
                " undivided loss of each batch; it is divided here."
            )
        if value is not None and scaler is not None and self._near(value * scaler.get_scale(), got):
            raise UsageError(
                f"the loss given to backward() is {got:.4g}, that of the batch times the scaler's factor. Give the"
                " unscaled loss; it is scaled here."
            )
        name = getattr(self.services.criterion, "__name__", type(self.services.criterion).__name__)
        if value is None and self.services.memory is not None:
            raise UsageError(
                f"{name} cannot be taken of outputs of shape {tuple(outputs.shape)} and targets of shape"
                f" {tuple(targets.shape)}, and replayed samples get it. Pass the loss of your loop:"
                " Continual(..., criterion=lambda outputs, targets: ...)."
            )
        if self._targets_given or value is None:
            return
        first = outputs.detach()[:8].float()
        unit = bool(((first >= 0) & (first <= 1)).all()) if first.dim() == 2 else False
        hint = " The outputs look like probabilities: return logits, or pass a criterion of them." if unit else ""
        warnings.warn(
            f"the loss given to backward() is {got:.4g}, and {name} of the model's outputs and these targets is"
            f" {value:.4g}: `{self.engine.method.name}` takes the latter of old samples.{hint} Pass the loss of your"
            " loop, Continual(..., criterion=...), or criterion=torch.nn.functional.cross_entropy if this is meant.",
            stacklevel=4,
        )
