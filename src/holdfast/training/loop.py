"""The loop over one experience's data, or over a source: as thin as one written by hand."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import UsageError
from holdfast.core.experience import Batch, Data, Experience, tree_map, tree_rows
from holdfast.core.forward import check_unchanged, versions
from holdfast.core.inspect import has_batch_norm
from holdfast.core.source import Source
from holdfast.core.step import Now, Step
from holdfast.training.evaluation import epoch_ends, limited
from holdfast.training.observations import During
from holdfast.training.session import Session
from holdfast.training.state import Saver

STOP, SAVE, LATE = 1, 2, 3
"""What a process can wish for after a step: to stop with a checkpoint, to save one, or to end since time is up."""


class Loop:
    """Trains on the data of one experience after another, or on a source.

    Args:
        session: whose method, model and settings these are.
        saver: saves its state.
    """

    def __init__(self, session: Session, saver: Saver) -> None:
        self.session = session
        self.saver = saver
        self._since = time.perf_counter()
        self._shown = self._since  # what takes less than the bar's interval draws none
        self._last_of_epoch = 1  # number of an epoch's last step, counted from 0; at least 1, since it is divided by
        self._during: During | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training on the current experience, those before an interruption included."""
        return time.perf_counter() - self._since

    def train(self, experience: Experience, resumed: bool = False) -> float:
        """Train on one experience, from the session's position on.

        Args:
            experience: with the data to train on.
            resumed: whether the position is in the middle of it.

        Returns:
            Seconds of training on it so far.
        """
        session, settings, position = self.session, self.session.current, self.session.position
        learner, ranks = session.learner, session.ranks
        size = settings.batch_size
        data = limited(experience.train, settings.limit_train_batches, size, settings.seed, "train").to(learner.device)
        count = min(ranks.gather(len(data)))
        session.model.train()
        per_epoch, rest = self._per_epoch(count)
        total = per_epoch * settings.epochs if settings.iterations is None else settings.iterations * bool(per_epoch)
        self._during = During(session, experience, total)
        order_rng = learner.rng("order")
        self._since = time.perf_counter() - position.seconds
        if session.captured is not None:
            session.captured.begin(total - position.step)
        while position.step < total:
            if resumed and position.order is not None:
                order_rng.set_state(position.order)
            resumed, position.order = False, order_rng.get_state()
            order = torch.randperm(count, generator=order_rng)
            skip = position.epoch_step  # of a resumed epoch: its order is drawn again, what was trained on is left out
            left = min(per_epoch - skip, total - position.step)
            self._last_of_epoch = max(1, skip + left - 1)
            join = rest if skip + left == per_epoch else 0
            self.steps(self.batches(data, order[skip * size : (skip + left) * size + join], size, join), total)
            position.epoch, position.epoch_step = position.epoch + 1, 0
            if session.late or epoch_ends(session, experience):
                break
        session.write_window()
        if session.captured is not None:
            session.captured.end(experience.index)
        if settings.restore_best and position.best is not None:
            session.model.load_state_dict(position.best["model"])
        ranks.average_buffers(session.model)
        return self.seconds

    def batches(self, data: Data, order: Tensor, size: int, join: int) -> Iterable[tuple[Batch, float]]:
        """The samples in `order` in batches; see `Ranks.batches`."""
        return self.session.ranks.batches(data, order, size, join)

    def _per_epoch(self, count: int) -> tuple[int, int]:
        """How many batches an epoch has, and how many samples at its end join the last of them.

        A last batch of one row, which batch norm cannot take, is joined to the one before; alone it is left out.

        Args:
            count: samples of the experience.
        """
        session, settings = self.session, self.session.current
        size, ranks = settings.batch_size, session.ranks.count
        if settings.drop_last and count >= size:
            return count // size, 0
        rest = count % size
        if not 0 < rest < 2 * ranks or size < 2 * ranks or not has_batch_norm(session.model):
            return -(-count // size), 0
        if count > size:
            return count // size, rest
        warnings.warn(
            f"an experience has {count} sample{'s' * (count > 1)}, too few for batch norm, and is not trained on.",
            stacklevel=3,
        )
        return 0, 0

    def steps(
        self,
        batches: Iterable[tuple[Batch, float]],
        total: int | None,
        update: Callable[..., Any] | None = None,
    ) -> Step | None:
        """Train on each batch, in order; what a process wishes for between two of them is done here.

        Args:
            batches: with their weights in the mean over processes.
            total: batches of the whole experience; None if unknown.
            update: instead of the session's, for loops that do something between loss and update.

        Returns:
            The last step, or None if there was no batch.
        """
        session, position, window = self.session, self.session.position, self.session.records.window
        engine, ranks, bar, clock = session.engine, session.ranks, session.bar, time.perf_counter
        every, alone = session.settings.log_every, ranks.count == 1
        captured = session.captured if update is None else None
        update = session.update if update is None else update
        scheduler = session.optimization.scheduler if session.current.scheduler_every == "step" else None
        step, during = None, self._during
        for batch, weight in batches:
            done = position.step
            if during is not None and during.following == done:
                during.look()
            if total is None:
                now = Now(engine.index)
            else:
                now = Now(engine.index, done / total, position.epoch_step / self._last_of_epoch)
            if not alone:
                ranks.wish = self._wish(clock(), coming=1)
            before, entered = engine.index, versions(batch.inputs) if done < 3 else ()
            if captured is not None:
                step = captured.step(batch, now, weight, done + 1 == total)
            else:
                step = engine.step(batch, now, update, weight, done + 1 == total)
                window.add(step.outputs, step.targets, batch.fresh)
            if entered:
                check_unchanged(entered)  # of the first few
            position.step = done + 1
            position.epoch_step += 1
            if scheduler is not None and engine.index > before:
                scheduler.step()
            if window.steps == every:
                session.write_window()
            moment = clock()
            if moment - self._shown > bar.interval:
                self._shown = moment
                session.show(total)
            if session.update.parts:
                continue  # in the middle of a step of the optimiser there is nothing to save
            wish = self._wish(moment) if alone else ranks.heard(engine.index)
            if wish:
                session.late, session.stop = wish == LATE, session.stop or wish == STOP
                if session.late:
                    break
                position.seconds = self.seconds
                self.saver.save()
        return step

    def _wish(self, moment: float, coming: int = 0) -> int:
        """What should happen after this step, or `coming` steps later, as far as this process has a say in it."""
        session, limit = self.session, self.session.settings.max_seconds
        if session.stop:
            return STOP
        if limit is not None and moment > session.started + limit:
            return LATE
        return SAVE if self.saver.due(moment, coming) else 0


def arriving(session: Session, source: Source, goal: int | None) -> Iterator[tuple[Batch, float]]:
    """The batches of `source`, on the device, each with the weight of the only process.

    Args:
        session: whose position goes on with each batch.
        source: of batches.
        goal: batches of the whole training; None for all there are.

    Raises:
        UsageError: for a batch whose targets do not go with its inputs.
    """
    position, device, observations, clock = session.position, session.device, session.observations, time.perf_counter
    batches, before = source.batches(), 0
    while True:
        # Here, and not after the step: a training that goes on from a checkpoint of that step has not looked yet.
        if observations is not None and observations.due(position.step):
            observations.look()
        if goal is not None and position.step >= goal:
            return
        asked = clock()
        batch = next(batches, None)
        position.idle += clock() - asked
        if batch is None:
            return
        rows = batch.targets.shape[0] if batch.targets.dim() else 0
        if rows == 1 < before and has_batch_norm(session.model):
            warnings.warn(
                "a source gave a batch of one row, which batch norm cannot take; it is left out.", stacklevel=2
            )
            continue
        before = rows
        if rows != tree_rows(batch.inputs):
            raise UsageError(
                f"a source gave targets of shape {tuple(batch.targets.shape)} for {tree_rows(batch.inputs)} inputs."
                " Give a target for each input."
            )
        kind = batch.targets.dtype
        if kind != torch.int64 and not kind.is_floating_point and session.settings.criterion is None:
            raise UsageError(f"a source gave targets of {kind}, and class indices are int64. Give targets.long().")
        batch.inputs = tree_map(lambda leaf: leaf.to(device), batch.inputs)
        batch.targets = batch.targets.to(device)
        position.samples += rows if batch.fresh is None else int(batch.fresh.sum())
        if observations is not None:
            observations.take(batch)
        yield batch, 1.0
