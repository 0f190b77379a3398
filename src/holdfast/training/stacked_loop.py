"""The loop of one training among several that are stacked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from holdfast.core.experience import Batch, Data
from holdfast.core.step import Now, Step
from holdfast.streams.data import TensorData
from holdfast.training.captured import leaves_of
from holdfast.training.loop import LATE, STOP, Loop
from holdfast.training.stacked_steps import BLOCK, BYTES, PART, Block, Rows, StackedSteps


class StackedLoop(Loop):
    """The loop over an experience's data that hands over as many steps at once as nobody looks between."""

    _bytes = BYTES  # of the last batch

    def batches(self, data: Data, order: Tensor, size: int, join: int) -> Any:
        """The samples in order, to be parted later."""
        return Rows(data, order, size, join)

    def steps(
        self, batches: Iterable[tuple[Batch, float]], total: int | None, update: Callable[..., Any] | None = None
    ) -> Step | None:
        """Train on each batch, in order, as `Loop.steps` does."""
        if not isinstance(batches, Rows) or total is None:
            return super().steps(batches, total, update)
        session, done, step = self.session, 0, None
        steps, sizes, taken = session.captured, batches.sizes, 0
        assert isinstance(steps, StackedSteps)
        while done < len(sizes) and not session.late:
            most = self._most(sizes[done:], total) if steps.together and steps.recordings.kept else 1
            rows = batches.order[taken : taken + most * sizes[done]]
            block = self._block(batches.data, rows, sizes[done], most, total)
            if steps.offers(block.one(0)):
                steps.block = block
                if self._during is not None and self._during.following == session.position.step:
                    self._during.look()
                steps.turns.wait("block")
                steps.block = None
                self._after(block, total)
            made = block.made
            if not session.late and (not made or block.by_itself):
                step = super().steps([(block.one(made), 1.0)], total)
                made += 1
            done, taken = done + made, taken + made * sizes[done]
        return step

    def _block(self, data: Data, rows: Tensor, size: int, steps: int, total: int) -> Block:
        session, position, last = self.session, self.session.position, self._last_of_epoch
        index, done, epoch_step = session.engine.index, position.step, position.epoch_step
        scheduler = session.optimization.scheduler if session.current.scheduler_every == "step" else None

        def now(step: int) -> Now:
            return Now(index + step, (done + step) / total, (epoch_step + step) / last)

        at_once = isinstance(data, TensorData) and session.device.type == "cpu"
        part = max(1, PART // self._bytes) if at_once else steps
        block = Block(data, rows, size, steps, part, now, None if scheduler is None else scheduler.step)
        self._bytes = max(1, sum(leaf.nbytes for leaf in leaves_of(block.one(0))))
        return block

    def _most(self, sizes: list[int], total: int) -> int:
        """How many steps may be made before somebody looks."""
        session, moment = self.session, time.perf_counter()
        most = min(BLOCK, max(1, BYTES // self._bytes))
        alike = next((position for position, size in enumerate(sizes) if size != sizes[0]), len(sizes))
        most = min(most, alike, total - session.position.step)
        following = None if self._during is None else self._during.following
        if following is not None and following > session.position.step:
            most = min(most, following - session.position.step)
        if session.checkpoints is None:
            return most
        return next((coming for coming in range(1, most) if self.saver.due(moment, coming)), most)

    def _after(self, block: Block, total: int) -> None:
        """What `Loop.steps` does after a step, after those of a block."""
        session, position, bar, left = self.session, self.session.position, self.session.bar, block.made
        steps = session.captured
        assert isinstance(steps, StackedSteps)
        while left:
            part = min(left, steps.until_window)
            left -= part
            steps.count(part, block.size)
            position.step += part
            position.epoch_step += part
            if steps.until_window == 0:
                session.write_window()
        moment = time.perf_counter()
        if moment - self._shown > bar.interval:
            self._shown = moment
            session.show(total)
        wish = self._wish(moment) if block.made else 0
        if wish:
            session.late, session.stop = wish == LATE, session.stop or wish == STOP
            if not session.late:
                position.seconds = self.seconds
                self.saver.save()
