"""The loop over one experience's data: as thin as one written by hand, and the only code that runs every step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from holdfast.core.experience import Batch, Data, Experience
from holdfast.core.step import Step
from holdfast.training.capture import join_steps
from holdfast.training.early_stopping import validated
from holdfast.training.limits import limited

if TYPE_CHECKING:
    from holdfast.training.trainer import Trainer

STOP, SAVE, LATE = 1, 2, 3
"""What the process that keeps the checkpoints can wish for after a step."""


class Loop:
    """Trains on the data of one experience after another.

    Args:
        trainer: bound to its model and stream.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.engine = trainer.engine
        self.learner = trainer.learner
        self.optimization = trainer.optimization
        self.ranks = trainer.ranks
        self.scaler = trainer.scaler
        self.window = trainer.records.window
        self.ready(0)

    def ready(self, index: int) -> None:
        """Take over the settings of experience `index`."""
        settings = self.settings = self.trainer.settings_of(index)
        self._accumulate = settings.accumulate
        self._scheduled = settings.scheduler is not None and settings.scheduler_every == "step"
        self._plain = self.ranks.count == 1 and self.scaler is None and settings.accumulate == 1
        self._learning = self.learner.optimized()
        self._last_step = 1
        self._parts: list[Step] = []

    def train(self, experience: Experience, loaded: Mapping[str, Any] | None = None) -> float:
        """Train on one experience, from the position loaded if there is one; returns seconds of training so far."""
        trainer, settings, position = self.trainer, self.settings, self.trainer.position
        size = settings.batch_size
        data = limited(experience.train, settings.limit_train_batches, size, trainer.seed, "train")
        data = data.to(self.learner.device)
        count = min(self.ranks.gather(len(data)))
        per_epoch = count // size if settings.drop_last else -(-count // size)
        total = per_epoch * settings.epochs if settings.iterations is None else settings.iterations * bool(per_epoch)
        order_rng = self.learner.rng("order")
        self._since = time.perf_counter() - position["seconds"]
        self._shown = 0.0
        self._learning = self.learner.optimized()
        trainer.model.train()
        while position["step"] < total:
            if loaded is not None:
                order_rng.set_state(loaded["order"])
            position["order"] = order_rng.get_state()
            order = torch.randperm(count, generator=order_rng)
            skip = position["epoch_step"]
            left = min(per_epoch - skip, total - position["step"])
            self._last_step = max(1, skip + left - 1)
            self._epoch(data, order[skip * size : (skip + left) * size], total)
            position.update(epoch=position["epoch"] + 1, epoch_step=0)
            loaded = None
            if self.optimization.scheduler is not None and settings.scheduler_every == "epoch":
                self.optimization.scheduler.step()
            if trainer.late or (
                (settings.patience or settings.restore_best) and validated(trainer, settings, experience) == "stop"
            ):
                break
        if self.window.steps:
            trainer.records.write_window()
        if settings.restore_best and "best" in position:
            trainer.model.load_state_dict(position["best"]["model"])
        self.ranks.average_buffers(trainer.model)
        return self.seconds

    @property
    def seconds(self) -> float:
        """Seconds of training on the current experience, those before an interruption included."""
        return time.perf_counter() - self._since

    def _epoch(self, data: Data, order: Tensor, total: int) -> None:
        trainer, position, window, ranks = self.trainer, self.trainer.position, self.window, self.ranks
        accumulate, alone, bar, now = self._accumulate, self.ranks.count == 1, self.trainer.bar, time.perf_counter
        for batch, weight in ranks.batches(data, order, self.settings.batch_size):
            done = position["step"]
            moves = accumulate == 1 or (done + 1) % accumulate == 0 or done + 1 == total
            targets = batch.targets
            if not alone:
                ranks.wish = self._wish(now(), coming=1)
            outputs = self.step(batch, done / total, done % accumulate == 0, moves, weight)
            window.add(outputs, targets)
            position["step"] = done + 1
            position["epoch_step"] += 1
            if window.steps == trainer.log_every:
                trainer.records.write_window()
            moment = now()
            if moment - self._shown > bar.interval:
                self._shown = moment
                bar.show(done + 1, total, f"experience {position['experience'] + 1} of {len(trainer.stream)}")
            if not moves:
                continue
            wish = self._wish(moment) if alone else ranks.heard(self.engine.index)
            if wish:
                trainer.late = wish == LATE
                trainer.stop = wish == STOP
                if trainer.late:
                    return
                trainer.checkpoint()

    def _wish(self, moment: float, coming: int = 0) -> int:
        """What should happen after this step, or `coming` steps later, as far as this process has a say in it."""
        trainer = self.trainer
        if trainer.stop:
            return STOP
        if trainer.max_seconds is not None and moment > trainer.started + trainer.max_seconds:
            return LATE
        return SAVE if trainer.checkpoints is not None and trainer.checkpoint_due(moment, coming) else 0

    def step(
        self, batch: Batch, progress: float = 0.0, first: bool = True, moves: bool = True, weight: float = 1.0
    ) -> Tensor:
        """Train on one batch; returns the model's outputs on it, from before the step.

        Args:
            batch: current samples.
            progress: how far the experience has come, from 0 to 1.
            first: whether gradients start anew.
            moves: whether the optimiser moves.
            weight: of the batch among those of all ranks.
        """
        engine, learner, optimization = self.engine, self.learner, self.optimization
        learner.progress, learner.epoch_progress = progress, self.trainer.position["epoch_step"] / self._last_step
        if batch.task is None:
            batch.task = learner.task
        batch = engine.batch(batch)
        if learner.autocast is None:
            outputs, extras = engine.forward(batch)
            loss = engine.criterion(outputs, batch.targets, batch.inputs)
        else:
            with torch.autocast(learner.autocast[0], dtype=learner.autocast[1]):
                outputs, extras = engine.forward(batch)
                loss = engine.criterion(outputs, batch.targets, batch.inputs)
        step = Step(batch.inputs, batch.targets, loss, outputs, batch.task, engine.index, progress, extras)
        if first:
            for parameter in self._learning:
                parameter.grad = None
        assert optimization.optimizer is not None
        if not engine.take_step(step, optimization.optimizer):
            if self._plain:
                engine.backward(step)
            else:
                whole = self._backward(step, moves, weight)
                if whole is None:
                    return outputs
                step = whole
            if self.settings.clip_norm is not None:
                clip_by = self.settings.clip_by
                clip = torch.nn.utils.clip_grad_norm_ if clip_by == "norm" else torch.nn.utils.clip_grad_value_
                clip(self._learning, self.settings.clip_norm)
            optimization.move()
            if self.scaler is not None:
                self.scaler.update()
        engine.update(step)
        if self._scheduled:
            optimization.scheduler.step()
        return outputs

    def _backward(self, step: Step, moves: bool, weight: float) -> Step | None:
        """Backward where batches are accumulated, scaled, or shared between ranks.

        Edits of the gradient, and what is remembered, belong to the optimiser's step and not to each batch.

        Returns:
            The step that the optimiser is to make, None if it is not to move.
        """
        scaler, optimizer = self.scaler, self.optimization.optimizer
        factor = weight / self._accumulate
        scale: float | Tensor = factor
        if scaler is not None:
            scale = scaler.scale(torch.full((), factor, device=self.learner.device))
        self.engine.accumulate(step, None if scaler is None and factor == 1.0 else scale)
        if self._accumulate > 1:
            step.loss, step.outputs = step.loss.detach(), None if step.outputs is None else step.outputs.detach()
            self._parts.append(step)
            if not moves:
                return None
            step = join_steps(self._parts, [name for name in self.learner.fields if name not in ("logits", "task")])
            self._parts = []
        if self.ranks.count > 1:
            self.ranks.average_gradients(self._learning)
        if scaler is not None:
            assert optimizer is not None
            scaler.unscale_(optimizer)
            grads = [p.grad for p in self._learning if p.grad is not None]
            if grads and not bool(torch.nn.utils.get_total_norm(grads).isfinite()):
                scaler.update()  # the step overflowed: it leaves no trace, and the scale shrinks
                return None
        self.engine.finish(step)
        return step
