"""A stream as a Lightning data module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, Stream, Tree
from holdfast.core.inspect import has_batch_norm
from holdfast.core.learner import derive_seed
from holdfast.training.lightning_callback import CallbackLogic


class StreamLogic:
    """A Lightning data module over a stream: every experience in one fit, or one experience per fit.

    In one fit, Lightning's epochs are shared out over the experiences, `epochs` to each in order, so the trainer's
    `max_epochs` is `epochs * len(stream)`. With `ContinualCallback`, batches are raw and prepared inside the network's
    call
    (so that memory keeps images as uint8); without it they come prepared.

    Args:
        stream: of experiences.
        batch_size: samples per step, of each process.
        epochs: passes over each experience, in one fit over all of them.
        experience: which experience the next fit is on, or None for all; assign `datamodule.experience` between fits.
        eval_batch_size: samples per forward in validation and test.
        seed: of the order, without the callback.
    """

    trainer: Any

    def __init__(
        self,
        stream: Stream,
        batch_size: int = 32,
        *,
        epochs: int = 1,
        experience: int | None = None,
        eval_batch_size: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.stream = stream
        self.batch_size = batch_size
        self.epochs = epochs
        self.experience = experience
        self.eval_batch_size = eval_batch_size
        self.generator = torch.Generator().manual_seed(derive_seed(seed, "order"))
        self._open: int | None = None
        self._skipped = 0
        self._loader: Loader | None = None

    def setup(self, stage: str) -> None:
        """Let Lightning ask for a loader at every epoch, since experiences differ in length."""
        if stage == "fit" and self.experience is None:
            wanted = self.epochs * len(self.stream)
            if self.trainer.max_epochs != wanted:
                raise ConfigError(
                    f"the trainer has max_epochs={self.trainer.max_epochs}, and {len(self.stream)} experiences of"
                    f" {self.epochs} epochs are {wanted}. Write Trainer(max_epochs={wanted}), or name one:"
                    " experience=0."
                )
            self.trainer.reload_dataloaders_every_n_epochs = 1
        self._loader = None

    def train_dataloader(self) -> Loader:
        """The loader of the current experience, which is opened here if it is new."""
        callback, epoch = self._callback(), self.trainer.current_epoch
        if self._loader is not None and self._loader.epoch not in (None, epoch):
            count_from_zero(self.trainer.fit_loop.epoch_loop)
        while True:
            index = (epoch + self._skipped) // self.epochs if self.experience is None else self.experience
            if self._loader is None or self._open != index:
                self._open, self._loader = index, self._loader_of(index, callback)
            if self.experience is not None or index >= len(self.stream) or len(self._loader.dataset):
                return self._loader
            self._skipped += self.epochs  # Lightning would stop at an epoch without batches

    def _loader_of(self, index: int, callback: Any) -> Loader:
        if index >= len(self.stream):
            return Loader(self.stream[0].train.subset(torch.arange(0)), self.batch_size, self.trainer, self.generator)
        experience = self.stream[index]
        epochs = self.epochs if self.experience is None else max(1, self.trainer.max_epochs or 1)
        data, generator = experience.train, self.generator
        if callback is not None:
            cl, generator = callback.bound, callback.bound.learner.rng("order")
            if callback.resumed and cl.experience is not None:
                data = cl.resume(self.stream[cl.learner.experience])
            callback.resumed = False
            if cl.experience is not None and cl.learner.experience != index:
                cl.end()
            if cl.experience is None:
                data = cl.begin(experience, epochs=epochs, batch_size=self.batch_size * self.trainer.world_size)
        return Loader(data, self.batch_size, self.trainer, generator)

    def state_dict(self) -> dict[str, Any]:
        """How many epochs were skipped for want of data, and the order's generator."""
        return {"skipped": self._skipped, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._skipped = state_dict["skipped"]
        self.generator.set_state(state_dict["generator"])

    def val_dataloader(self) -> list[Loader]:
        """One loader per experience that has validation data."""
        return [Loader(e.validation, self.eval_batch_size, None, None) for e in self.stream if e.validation is not None]

    def test_dataloader(self) -> list[Loader]:
        """One loader per experience that has test data."""
        return [Loader(e.test, self.eval_batch_size, None, None) for e in self.stream if e.test is not None]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Prepare the inputs, unless the callback does so inside the network."""
        if self.stream.prepare is None or self._callback() is not None:
            return batch
        return (self.stream.prepare(batch[0], bool(self.trainer.training), self.generator), *batch[1:])

    def _callback(self) -> Any:
        return next((callback for callback in self.trainer.callbacks if isinstance(callback, CallbackLogic)), None)


def count_from_zero(loop: Any) -> None:
    """Make Lightning begin a new epoch at its first batch, where it resumes after the last batch of the one before.

    It would count that batch, and leave out as many of the new epoch's batches as the old one had, if there are more.
    """
    progress = loop.batch_progress
    if loop.restarting and progress.total.processed == progress.total.completed + 1:
        progress.current.reset()
        progress.current.completed = -1  # which it counts to 0


class Loader:
    """Batches `(inputs, targets)` of one experience's data, in a new order each epoch, or in order without a generator.

    Args:
        data: of the experience.
        batch_size: samples per step, of each process.
        trainer: knows the epoch and the ranks; None for evaluation.
        generator: of the order.
    """

    def __init__(self, data: Data, batch_size: int, trainer: Any, generator: torch.Generator | None) -> None:
        self.dataset = data
        self.batch_size = batch_size
        self.trainer = trainer
        self.generator = generator
        self._drawn: tuple[int, Tensor] | None = None
        self._served = 0

    def __len__(self) -> int:
        ranks = 1 if self.trainer is None else self.trainer.world_size
        count = len(self.dataset) // ranks
        return -(-count // self.batch_size) - self._joins(count)

    def _joins(self, count: int) -> bool:
        """Whether a last batch of one row joins the one before, since batch norm could not take it."""
        if self.generator is None or self.trainer is None or not 1 < self.batch_size < count:
            return False
        network = self.trainer.lightning_module
        return count % self.batch_size == 1 and network is not None and has_batch_norm(network)

    def __iter__(self) -> Iterator[tuple[Tree, Tensor]]:
        order = self._order()
        join, start = self._joins(len(order)), self._served * self.batch_size
        last = len(order) - self.batch_size - 1 if join else len(order)
        rest = order[last:] if start <= last else order[:0]
        for rows, size in ((order[start:last], self.batch_size), (rest, self.batch_size + 1)):
            for batch in self.dataset.batches(rows, size) if len(rows) else ():
                self._served += 1
                yield batch.inputs, batch.targets

    @property
    def epoch(self) -> int | None:
        """The epoch whose order was drawn last."""
        return None if self._drawn is None else self._drawn[0]

    def _order(self) -> Tensor:
        count = len(self.dataset)
        if self.generator is None or self.trainer is None:
            self._served = 0
            return torch.arange(count)
        epoch = self.trainer.current_epoch
        if self._drawn is None or self._drawn[0] != epoch:  # Lightning starts an epoch's loader twice
            self._drawn, self._served = (epoch, torch.randperm(count, generator=self.generator)), 0
        order, ranks = self._drawn[1], self.trainer.world_size
        if ranks == 1:
            return order
        steps = order[: count // ranks * ranks].split(self.batch_size * ranks)
        return torch.cat([step[self.trainer.global_rank :: ranks] for step in steps])

    def state_dict(self) -> dict[str, Any]:
        """The epoch's order, and how many of its batches were given: Lightning resumes within an epoch by these."""
        epoch, order = self._drawn or (-1, torch.empty(0, dtype=torch.int64))
        return {"epoch": epoch, "order": order, "given": self._served}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on within the epoch of `state_dict`, if that is the one that is trained next."""
        self._drawn, self._served = (state_dict["epoch"], state_dict["order"]), state_dict["given"]
