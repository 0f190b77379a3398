"""The way to train on an unbounded stream without task labels: batches come in, and are trained on once, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Batch, Tree, tree_map
from holdfast.core.learner import Criterion
from holdfast.core.method import Method
from holdfast.core.needs import OFFERS
from holdfast.training.checks import check_head
from holdfast.training.optimization import OptimizerFactory, optimizer_factory
from holdfast.training.precision import PRECISIONS
from holdfast.training.window import Window
from holdfast.training.wrapper import Continual


class Unlabelled(Continual):
    """The drop-in where nobody can say when an experience begins."""

    def _offers(self, boundary: Boundary | None) -> frozenset[str]:
        return OFFERS["unlabelled stream"] if boundary is None else super()._offers(boundary)


class StreamTrainer:
    """Trains a model on batches as they arrive, each once, without being told where anything begins or ends.

    The arithmetic is that of `Continual` in a plain loop, bit for bit. Accuracy is prequential: every batch is
    predicted by the forward it is then trained with, so no sample was seen before it counts.

    Args:
        model: trained in place, where it lies.
        method: what is done around each step; it may need boundaries if `boundary` finds some.
        optimizer: a torch name, a mapping with `name` and arguments, or a function from parameters to an optimiser.
        criterion: `criterion(outputs, targets)` -> mean loss; default: cross-entropy.
        boundary: `Every(steps=...)`, `OnNewClass()` or any `Boundary` that watches the steps; None for no boundaries.
        prepare: turns raw inputs into the model's, as `Stream.prepare` does.
        clip_norm: largest norm of the whole gradient.
        precision: `32-true`, or `bf16-mixed` for autocast.
        log_every: steps between two records.
        record: called with each `train` event, a mapping of plain values.
        seed: of every random choice.

    Raises:
        NeedError: if the method needs boundaries or anything else that such a stream does not have.

    Example:
        >>> from holdfast.methods import er
        >>> generator = torch.Generator().manual_seed(0)
        >>> def endless():
        ...     while True:
        ...         x = torch.randn(16, 4, generator=generator)
        ...         yield x, (x[:, 0] > 0).long()
        >>> trainer = StreamTrainer(nn.Linear(4, 2), er(capacity=50, size=16), optimizer={"name": "SGD", "lr": 0.5})
        >>> trainer.train(endless(), steps=100)
        100
        >>> trainer.accuracy > 0.8
        True
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        optimizer: str | Mapping[str, Any] | OptimizerFactory = "SGD",
        criterion: Criterion | None = None,
        boundary: Boundary | None = None,
        prepare: Callable[..., Any] | None = None,
        clip_norm: float | None = None,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        log_every: int = 50,
        record: Callable[[dict[str, Any]], None] | None = None,
        seed: int = 0,
    ) -> None:
        if precision not in ("32-true", "bf16-mixed"):
            raise ConfigError(f"the trainer got precision={precision!r}. Choose 32-true or bf16-mixed.")
        if log_every < 1:
            raise ConfigError(f"the trainer got log_every={log_every}. Give a number of at least 1.")
        self.model = model
        self.clip_norm = clip_norm
        self.log_every = log_every
        self.record = record
        self._kind = PRECISIONS[precision]
        self.optimizer = optimizer_factory(optimizer)(list(model.parameters()))
        self.cl = Unlabelled(
            model, method, self.optimizer, criterion=criterion, boundary=boundary, prepare=prepare, seed=seed
        )
        check_head(self.cl.learner.head, boundary)
        self._window = Window(self.cl.learner)
        self.steps = 0
        self.samples = 0
        self._right: Tensor | None = None

    def train(self, batches: Iterable[Batch | tuple[Tree, Tensor]], steps: int | None = None) -> int:
        """Train on `batches` in order; call again to go on.

        Args:
            batches: `(inputs, targets)` or `Batch`es, finite or not.
            steps: stop after so many; None takes all there are.

        Returns:
            The number of steps made.
        """
        self.model.train()
        made = 0
        source = iter(batches)
        while steps is None or made < steps:
            batch = next(source, None)
            if batch is None:
                break
            self.step(batch)
            made += 1
        return made

    def step(self, batch: Batch | tuple[Tree, Tensor]) -> Tensor:
        """Train on one batch.

        Returns:
            The model's outputs on it, from before the step.
        """
        inputs, targets = self._parts(batch)
        cl, device = self.cl, self.cl.learner.device
        inputs, targets = tree_map(lambda leaf: leaf.to(device), inputs), targets.to(device)
        with torch.autocast(device.type, dtype=self._kind or torch.bfloat16, enabled=self._kind is not None):
            outputs = cl(inputs)
            loss = cl.loss(outputs, targets, inputs)
        self.optimizer.zero_grad()
        cl.backward(loss, targets, inputs=inputs)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(cl.learner.optimized(), self.clip_norm)
        self.optimizer.step()
        self.steps += 1
        self.samples += targets.shape[0]
        if outputs.dim() == 2 and not targets.is_floating_point():
            hits = (outputs.detach().argmax(1) == targets).sum()
            self._right = hits if self._right is None else self._right + hits
        self._window.add(outputs, targets)
        if self._window.steps == self.log_every:
            event = {"event": "train", "step": self.steps, "samples": self.samples, **self._window.read()}
            if self.record is not None:
                self.record(event)
        return outputs.detach()

    @property
    def accuracy(self) -> float | None:
        """Share of all samples that were predicted right before they were trained on; None without classes."""
        return None if self._right is None else float(self._right) / max(1, self.samples)

    def predict(self, inputs: Tree) -> Tensor:
        """Outputs in eval mode, as the method wants them."""
        return self.cl.predict(inputs)

    def export(self) -> nn.Module:
        """The model for deployment; see `Continual.export`."""
        return self.cl.export()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors and plain values."""
        return {
            "continual": self.cl.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "samples": self.samples,
            "right": self._right,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.cl.load_state_dict(state["continual"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.samples, self._right = state["steps"], state["samples"], state["right"]

    @staticmethod
    def _parts(batch: Batch | tuple[Tree, Tensor]) -> tuple[Tree, Tensor]:
        if isinstance(batch, Batch):
            return batch.inputs, batch.targets
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UsageError(f"a stream gave a batch of type {type(batch).__name__}. Give pairs (inputs, targets).")
        return batch[0], batch[1]
