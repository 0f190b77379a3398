"""Captured steps of a loop that somebody else writes, handed over as a function of its batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.tape import Tape
from holdfast.training.captured import Tally, roots_of
from holdfast.training.decisions import Decisions
from holdfast.training.dropin import DropIn
from holdfast.training.programs import CaptureMode, chosen, runner
from holdfast.training.rates import Rates
from holdfast.training.recordings import Recordings, tensors_of

Step = Callable[..., Any]


class CapturedLoop:
    """One step of a loop, run as a recording where it can be; made by `Continual.captured`.

    Args:
        loop: the method in the loop.
        step: the loop's own step, from the batch to the optimiser's move.
        capture: how recordings are run.

    Attributes:
        counts: steps that ran `plain`, were `recorded`, and were `run` as recorded.
        reasons: why steps were not captured.

    Raises:
        ConfigError: where no step of this loop can be captured, or not on this machine.
    """

    def __init__(self, loop: DropIn, step: Step, capture: CaptureMode) -> None:
        device = loop.learner.device
        self._loop, self._step = loop, step
        self.how = "tape" if capture == "auto" and device.type != "cuda" else chosen(capture, device)
        self.reasons = self._against()
        self.rates = Rates(lambda: loop.optimizer)
        engine = loop.engine
        first = next(engine.learner.model.parameters(), None)
        self.recordings = Recordings(
            lambda: {**roots_of(engine, loop.optimizer), "step": step},
            Decisions(device, torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32),
            lambda tape: runner(self.how, tape, self.rates.numbers),
            self.rates.mark,
            self.rates.baked,
            (loop, *vars(loop).values(), engine.learner),
        )
        self.counts = self.recordings.counts
        self.tally = loop.tally = Tally(device)
        self._static: dict[Hashable, tuple[Any, ...]] = {}
        self._of: Hashable = None

    def _against(self) -> list[str]:
        loop = self._loop
        if loop.accumulate > 1 or loop.scaler is not None or loop.boundary is not None:
            raise ConfigError(
                "capture=... is for loops with one batch a step, without a scaler and without a boundary. Leave it out,"
                " or leave out accumulate, scaler and boundary."
            )
        if loop.optimizer is None:
            raise ConfigError("capture=... needs to know the optimizer. Write Continual(..., optimizer=optimizer).")
        reasons = [f"`{operation.name}`: {operation.captured}" for operation in loop.method if operation.captured]
        if "progress" in loop.method.needs:
            reasons.append(f"`{loop.method.name}` follows the progress, which a loop like this tells it within a step")
        return reasons

    def __call__(self, *batch: Any) -> Any:
        """One step.

        Args:
            *batch: what the step's function takes: tensors, and trees of them; anything else is part of what a
                recording is good for.

        Returns:
            What the function returns; tensors are copies.

        Raises:
            UsageError: if the function did not make exactly one step of the method.
        """
        if self.how == "none" or self.reasons:
            self.counts["plain"] += 1
            return self._step(*batch)
        self._renew()
        leaves, form = tree_flatten(batch)
        key = (str(form), *((t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in leaves))
        static = self._static.get(key)
        if static is None:
            static = self._static[key] = tree_map_only(Tensor, torch.clone, batch)
        fed = tensors_of(static)
        for kept, new in zip(fed, tensors_of(batch)):
            kept.copy_(new, non_blocking=True)
        runs, index = self.counts["run"], self._loop.engine.index
        out = self.recordings.step(key, lambda: self._body(static), lambda: self._as_written(batch), fed)
        if self.counts["run"] > runs:
            self._loop.passed()
            self.tally.steps += 1
        elif self._loop.engine.index != index + 1:
            raise UsageError(
                f"the function given to cl.captured made {self._loop.engine.index - index} steps, and it must make one:"
                " a forward, cl.backward(loss, ...), and optimizer.step()."
            )
        return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), out)

    def _as_written(self, batch: tuple[Any, ...]) -> Any:
        self.rates.moved_otherwise()
        return self._step(*tree_map_only(Tensor, torch.clone, batch))  # operations may keep it, and recordings write

    def _renew(self) -> None:
        """What was recorded is of one experience, with one optimiser."""
        now = (self._loop.learner.experience, id(self._loop.optimizer), self._loop.model.training)
        if now != self._of:
            self._of = now
            self.recordings.forget()
            self.rates.begin()
            self._static.clear()

    def _body(self, static: tuple[Any, ...]) -> Any:
        services, decisions = self._loop.engine.services, self.recordings.decisions
        optimizer, logged = self._loop.optimizer, services.logged
        assert optimizer is not None
        tape: Tape | None = None if decisions.watch is None else decisions.watch.tape
        hooks = [
            optimizer.register_step_pre_hook(lambda *_: self.rates.start(tape)),
            optimizer.register_step_post_hook(lambda *_: self.rates.stop()),
        ]
        trainable, services.logged = services.trainable, {}
        optimizer_of = trainable.optimizer
        trainable.optimizer = self.rates.watched(optimizer_of, decisions.recording)
        try:
            out = self._step(*static)
            self.tally.take(None, torch.empty(0), services.logged)
        finally:
            for hook in hooks:
                hook.remove()
            services.logged, trainable.optimizer = logged, optimizer_of
        self.tally.steps += 1
        return out
