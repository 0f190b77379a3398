"""A source that runs beside the training: a bounded queue between the two, with a policy for when it is full."""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Batch
from holdfast.core.source import Source
from holdfast.sources.reservoir import Reservoir

Policy = Literal["block", "drop", "reservoir"]
OnFailure = Literal["raise", "end"]

SLICE = 0.1
"""Seconds after which somebody who waits looks again whether the training was told to stop."""


class Queued(Source):
    """Another source, read by a thread of its own, so that waiting for data and training go on at the same time.

    **Policies** for when the training is slower than the source. `block`: the source waits, and nothing is lost.
    `drop`: what arrives while the queue is full is dropped, and counted. `reservoir`: rows are drawn at random from a
    buffer, seen ones again while nothing new has come; a new row takes the room of a seen one, never of an unseen one,
    and where all are unseen the source waits (Meyer et al. 2023, "Training deep surrogate models with large scale
    online learning", the reservoir of Melissa). At the end each row that was not seen is given once.

    **Waiting.** A wait for the source ends after `timeout` seconds with an error. A source that fails ends the batches
    with its error, after those that had arrived; with `on_failure="end"` it ends them as if it were complete, with a
    warning.

    Args:
        source: what is read; this queue closes it.
        policy: what happens when the queue is full.
        capacity: of the queue, in batches; of the reservoir, in rows.
        timeout: seconds to wait for a batch.
        on_failure: whether a source that fails is an error, or an end.
        batch_size: rows of a batch from the reservoir; None for as many as the first batch that arrived has.
        watermark: rows that the reservoir holds before any is drawn, while the source goes on; None for one batch.
        seed: of the draws from the reservoir.

    Attributes:
        arrived: rows that came from the source.
        dropped: those of them that were dropped.
        waited: seconds that who asked for batches waited for one to arrive.

    Raises:
        ConfigError: for a capacity or a timeout that is not positive, or a watermark above the capacity.

    Example:
        >>> import torch
        >>> from holdfast.core.source import Arrays
        >>> with Queued(Arrays(torch.arange(6.0).unsqueeze(1), torch.arange(6), batch_size=2)) as source:
        ...     [batch.targets.tolist() for batch in source.batches()]
        [[0, 1], [2, 3], [4, 5]]
    """

    def __init__(
        self,
        source: Source,
        policy: Policy = "block",
        capacity: int = 64,
        timeout: float = 60.0,
        on_failure: OnFailure = "raise",
        batch_size: int | None = None,
        watermark: int | None = None,
        seed: int = 0,
    ) -> None:
        if policy not in ("block", "drop", "reservoir") or on_failure not in ("raise", "end"):
            raise ConfigError(
                f"a queue got policy={policy!r} and on_failure={on_failure!r}. Write block, drop or reservoir, and"
                " raise or end."
            )
        if capacity < 1 or timeout <= 0:
            raise ConfigError(
                f"a queue got capacity={capacity} and timeout={timeout}. Give a capacity of at least 1, and more than 0"
                " seconds."
            )
        if policy == "reservoir" and max(watermark or 0, batch_size or 0) > capacity:
            raise ConfigError(
                f"a reservoir of {capacity} rows cannot hold a batch of {batch_size} or wait for {watermark} rows."
                " Give a larger capacity."
            )
        self.source = source
        self.policy = policy
        self.capacity = capacity
        self.timeout = timeout
        self.on_failure = on_failure
        self.seekable = source.seekable
        self.length = source.length if policy == "block" else None
        self.arrived = self.dropped = 0
        self.waited = 0.0
        self._reservoir = Reservoir(capacity, batch_size, watermark, seed) if policy == "reservoir" else None
        self._waiting: deque[tuple[Batch, dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._over = self._halted = self._closed = False
        self._served = self._given = 0
        self._position = source.position()

    # The thread that reads ---------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._closed:
            raise DataError("this source was closed, and gives nothing more. Make a new one.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="holdfast source", daemon=True)
            self._thread.start()

    def _read(self) -> None:
        try:
            before = self.source.position()
            for batch in self.source.batches():
                after = self.source.position()
                if not self._take(batch, before, after):
                    return
                before = after
        except BaseException as error:  # told to who waits for it
            self._error = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _take(self, batch: Batch, before: dict[str, Any], after: dict[str, Any]) -> bool:
        """Put one batch where it goes; False where nobody wants more."""
        rows = len(batch.targets)
        with self._changed:
            self.arrived += rows
            if self._reservoir is not None:
                for part in self._reservoir.parts(batch):
                    while not self._closed and not self._reservoir.room(len(part.targets)):
                        self._changed.wait(SLICE)
                    if self._closed:
                        return False
                    self._reservoir.add(part, before, after)
                self._changed.notify_all()
                return True
            if self.policy == "drop" and len(self._waiting) >= self.capacity:
                self.dropped += rows
                return not self._closed
            while not self._closed and len(self._waiting) >= self.capacity:
                self._changed.wait(SLICE)
            if self._closed:
                return False
            self._waiting.append((batch, after))
            self._changed.notify_all()
            return True

    # The training ------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Batch]:
        """What has arrived, in order, or drawn from the reservoir.

        Raises:
            DataError: where nothing came for `timeout` seconds, or the source failed.
        """
        self._start()
        while True:
            with self._changed:
                batch = self._next(wait=True)
            if batch is None:
                return
            yield batch

    def poll(self) -> Batch | None:
        """The next batch if one is ready; None if there is none yet or none will come (see `over`)."""
        self._start()
        with self._changed:
            return self._next(wait=False)

    def peek(self) -> Batch:
        """The next batch, which stays where it is; waits for it.

        Raises:
            DataError: see `batches`; or where the source ended without one.
        """
        self._start()
        with self._changed:
            if not self._waited():
                raise DataError(f"{type(self.source).__name__} gave no batch. Look at what it reads.")
            return self._waiting[0][0] if self._reservoir is None else self._reservoir.example()

    @property
    def over(self) -> bool:
        """Whether the source ended and everything that arrived was given."""
        with self._changed:
            return self._over and not self._ready()

    def _ready(self) -> bool:
        return bool(self._waiting) if self._reservoir is None else self._reservoir.ready(self._over)

    def _next(self, wait: bool) -> Batch | None:
        if not (self._waited() if wait else self._ready()):
            return None
        self._served += 1
        if self._reservoir is not None:
            batch = self._reservoir.draw(self._served, self._over)
            self._position = self._reservoir.position or self._position
        else:
            batch, self._position = self._waiting.popleft()
            self._given += len(batch.targets)
        self._changed.notify_all()
        return batch

    def _waited(self) -> bool:
        """Wait until a batch is there; False where none comes any more, or the training was told to stop."""
        until = time.monotonic() + self.timeout
        while not self._ready():
            if self._over or self._halted or self._closed:
                if self._over and not self._halted:
                    self._failed()
                return False
            left = until - time.monotonic()
            if left <= 0:
                raise DataError(
                    f"nothing arrived from {type(self.source).__name__} for {self.timeout:g} seconds. Look whether what"
                    " writes to it still runs, or give a longer timeout."
                )
            begun = time.monotonic()
            self._changed.wait(min(left, SLICE))
            self.waited += time.monotonic() - begun
        return True

    def _failed(self) -> None:
        """Say what ended the source, where that was an error."""
        error, self._error = self._error, None
        if error is None:
            return
        if self.on_failure == "end":
            warnings.warn(f"the source ended early, by {type(error).__name__}: {error}", stacklevel=4)
            return
        if isinstance(error, DataError | ConfigError):
            raise error
        raise DataError(
            f"{type(self.source).__name__} failed after {self.arrived} rows: {type(error).__name__}: {error}. What was"
            " trained until then stands; write on_failure=end to take that as the end."
        ) from error

    def halt(self) -> None:
        """Let a wait for the source end within a tenth of a second, as if there were no more."""
        self._halted = True  # no lock is taken: a signal may come while this thread holds it

    # Where it stands ---------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Rows that `arrived` and that were `dropped`, and rows that wait."""
        with self._changed:
            if self._reservoir is not None:
                waiting = self._reservoir.unseen
            else:
                waiting = sum(len(batch.targets) for batch, _ in self._waiting)
            return {"arrived": self.arrived, "dropped": self.dropped, "waiting": waiting}

    def position(self) -> dict[str, Any]:
        """Batches given, and where the source was when the last of them left it; rows that wait are read again."""
        with self._changed:
            position: dict[str, Any] = {"batches": self._served, "source": dict(self._position)}
            if self._reservoir is not None:
                position["unseen"] = self._reservoir.pending()
            position["dropped"] = self.dropped
            position["given"] = self._given
            return position

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go on where another queue over an equal source was; what it dropped while it was full may now arrive.

        Raises:
            DataError: where the source cannot go back, or is being read already.
        """
        if not self.seekable:
            super().seek(position)
        if self._thread is not None:
            raise DataError("a queue that is being read cannot go to another position. Make a new one.")
        self.source.seek(position["source"])
        self._served, self._position = int(position["batches"]), dict(position["source"])
        self.dropped, self._given = (int(position.get(name, 0)) for name in ("dropped", "given"))
        self.arrived = self.dropped + self._given
        if self._reservoir is not None:
            self._reservoir.expect(position["unseen"], self._position)

    def close(self) -> None:
        """Stop reading, and close the source; a thread that hangs in the source is left behind."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.source.halt()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(min(self.timeout, 5.0))
        if self._thread is None or not self._thread.is_alive():
            self.source.close()
