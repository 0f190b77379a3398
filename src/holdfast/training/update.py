"""One step of the optimiser: batches add up to it, the method edits its gradient, the weights move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from holdfast.core.engine import Engine
from holdfast.core.experience import Batch, task_column, tree_rows
from holdfast.core.step import Now, Step
from holdfast.core.tree import Fill, Tree, tree_cat_padded


class Mover(Protocol):
    """Who has the optimiser and moves the weights with it."""

    optimizer: torch.optim.Optimizer | None

    def move(self) -> None:
        """Move the weights by the gradients that are there."""


class Steps(Protocol):
    """What makes the steps of a training in another way than as they are written; see `training.captured`."""

    def begin(self, steps: int | None) -> None:
        """Before the steps of an experience, or what is left of it: so many, at most; None where nobody knows."""

    def end(self, experience: int, steps: int | None = None) -> None:
        """After the steps of an experience: so many, of which the loop may have made some by itself."""

    def step(self, batch: Batch, now: Now, weight: float, last: bool) -> Step | None:
        """Train on one batch. Returns what was seen and computed, if that is known."""

    def predict(self, inputs: Tree, task: int | Tensor | None = None) -> Tensor:
        """Outputs in evaluation, as `Engine.predict` gives them."""


class Update:
    """Makes the optimiser's step of the losses of one or several batches.

    A loop of ours calls it; the drop-in calls its parts, between which the user's loop clips and moves.

    Args:
        engine: whose operations add terms to the loss, edit the gradient and watch the weights move.
        mover: has the optimiser.
        accumulate: batches whose gradients are averaged in one step; 0 where `complete` alone says how many.
        scaler: of float16 gradients, or None.
        average: averages the gradients over processes; None for one process.
        clip_norm: largest norm, or value, of the whole gradient; None for no limit.
        clip_by: which of the two.
        finished: called with each step whose gradient is complete, before the weights move.

    Attributes:
        optimized: returns the parameters that the optimiser moves.
        parts: the batches so far of a step that is not complete.
    """

    def __init__(
        self,
        engine: Engine,
        mover: Mover,
        *,
        accumulate: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        average: Callable[[Sequence[nn.Parameter]], None] | None = None,
        clip_norm: float | None = None,
        clip_by: Literal["norm", "value"] = "norm",
        finished: Callable[[Step], None] | None = None,
    ) -> None:
        self.engine = engine
        self.optimized = engine.services.trainable.optimized
        self.mover = mover
        self.accumulate = accumulate
        self.scaler = scaler
        self.average = average
        self.clip_norm = clip_norm
        self.clip_by = clip_by
        self.finished = finished
        self.parts: list[Step] = []
        self._takes_steps = engine.acts_at("take_step")

    # The whole step --------------------------------------------------------------------------------------

    def __call__(self, step: Step, weight: float = 1.0, last: bool = False) -> bool:
        """Backward of one batch; with the last one of a group the weights move.

        Args:
            step: the batch, with its loss.
            weight: of the batch in the mean over processes.
            last: whether to move though the group has fewer batches than `accumulate`.

        Returns:
            Whether the weights moved: not before the group is complete, and not where its gradient overflowed.
        """
        if weight == 1.0 and self.single and not self._takes_steps:
            self.clear()
            self.at_once(step)
            if self.clip_norm is not None:
                self.clip()
            self.mover.move()
            self.engine.update(step)
            return True
        if not self.parts:
            self.clear()
        if self._takes_steps:
            optimizer = self.mover.optimizer
            assert optimizer is not None
            if self.engine.take_step(step, optimizer):
                self.engine.update(step)
                return True
        self.add(step, weight)
        return self.finish() if last or len(self.parts) == self.accumulate else False

    def finish(self) -> bool:
        """Move the weights by the batches that were added. Returns whether they moved."""
        step = self.complete(unscale=True)
        if step is not None:
            if self.clip_norm is not None:
                self.clip()
            self.mover.move()
        if self.scaler is not None:
            self.scaler.update()  # after a skipped move too: that is how the scale comes down
        if step is not None:
            self.engine.update(step)
        return step is not None

    # Its parts -------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Let the gradients start anew."""
        for parameter in self.optimized():
            parameter.grad = None  # not zero: an optimiser leaves out what has no gradient, also its decay and momentum

    @property
    def single(self) -> bool:
        """Whether each batch makes a step, and no scaler has a part in it."""
        return self.accumulate == 1 and self.scaler is None

    def at_once(self, step: Step) -> Step:
        """What `add` and `complete` do with the batch of a `single` step, without what joins several."""
        self.engine.accumulate(step)
        if self.average is not None:
            self.average(self.optimized())
        self.engine.finish(step)
        if self.finished is not None:
            self.finished(step)
        return step

    def add(self, step: Step, weight: float = 1.0) -> None:
        """Backward of one batch: its gradient is added to that of the batches before it."""
        plain = weight == 1.0 and self.accumulate == 1 and self.scaler is None
        self.engine.accumulate(step, None if plain else self.scale(weight))
        if self.accumulate != 1:  # graphs are not kept until the group is complete
            step.loss, step.outputs = step.loss.detach(), None if step.outputs is None else step.outputs.detach()
        self.parts.append(step)

    @property
    def full(self) -> bool:
        """Whether as many batches were added as make a step."""
        return len(self.parts) == self.accumulate

    def complete(self, unscale: bool = False) -> Step | None:
        """Finish the gradient of all batches that were added: what the method edits, observes and remembers.

        Args:
            unscale: whether the gradients are still multiplied by the scaler's factor.

        Returns:
            The step as if all batches had been one; None where the gradient overflowed, and nothing was done with it.
        """
        # Averaged first, so that all processes see the same overflow; edited last, in the true size of the gradient.
        step = self.parts.pop() if len(self.parts) == 1 else self._whole()
        if self.average is not None:
            self.average(self.optimized())
        if self.scaler is not None:
            if unscale:
                optimizer = self.mover.optimizer
                assert optimizer is not None
                for one in getattr(optimizer, "optimizers", (optimizer,)):
                    self.scaler.unscale_(one)
            if not self.finite():
                return None
        self.engine.finish(step)
        if self.finished is not None:
            self.finished(step)
        return step

    def clip(self) -> None:
        """Bound the gradient, if it is to be bounded."""
        if self.clip_norm is not None:
            by = torch.nn.utils.clip_grad_norm_ if self.clip_by == "norm" else torch.nn.utils.clip_grad_value_
            by(self.optimized(), self.clip_norm)

    def scale(self, weight: float = 1.0) -> float | Tensor | None:
        """The factor of one batch's loss; None for 1."""
        factor = weight / max(1, self.accumulate)
        if self.scaler is None:
            return None if factor == 1.0 else factor
        return self.scaler.scale(torch.full((), factor, device=self.engine.services.device))

    def finite(self) -> bool:
        """Whether no gradient overflowed. Waits for the device."""
        grads = [p.grad for p in self.optimized() if p.grad is not None]
        return not grads or bool(torch.nn.utils.get_total_norm(grads).isfinite())

    def _whole(self) -> Step:
        parts, self.parts = self.parts, []
        services = self.engine.services
        return join_steps(parts, [name for name in services.fields if name not in ("logits", "task")], services.fill)


def join_steps(steps: Sequence[Step], fields: Sequence[str] = (), fill: Fill = lambda *_: None) -> Step:
    """Several accumulated batches as the one step that the optimiser makes of them.

    Args:
        steps: in order, without their graphs.
        fields: extras with a row per sample, to be joined; of others the last step's are kept.
        fill: what rows of different lengths are padded with.
    """
    last = steps[-1]
    extras: dict[str, Any] = dict(last.extras)
    for name in fields:
        if name in extras and isinstance(extras[name], Tensor):
            extras[name] = torch.cat([step.extras[name] for step in steps])
    outputs = [step.outputs for step in steps if step.outputs is not None]
    task = last.task
    fresh = None
    if any(step.fresh is not None for step in steps):
        every = [
            torch.ones(len(step.targets), dtype=torch.bool) if step.fresh is None else step.fresh for step in steps
        ]
        fresh = torch.cat([part.to(steps[0].targets.device) for part in every])
    if any(isinstance(step.task, Tensor) or step.task != task for step in steps):
        unlabelled = -1
        task = torch.cat([
            task_column(unlabelled if step.task is None else step.task, tree_rows(step.inputs), step.targets.device)
            for step in steps
        ])  # fmt: skip
    return Step(
        tree_cat_padded([step.inputs for step in steps], fill),
        cast(Tensor, tree_cat_padded([step.targets for step in steps], fill, "targets")),
        torch.stack([step.loss for step in steps]).mean(),
        cast(Tensor, tree_cat_padded(outputs, fill, "logits")) if len(outputs) == len(steps) else None,
        task,
        last.index,
        last.progress,
        extras,
        last.weight,
        fresh,
    )
