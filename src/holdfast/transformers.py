"""A method in the `Trainer` of transformers: that trainer with one, and the mixin for trainers made from it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ConfigError, needs_extra
from holdfast.core.method import Method
from holdfast.training.transformers_inside import Attached

if TYPE_CHECKING:
    ContinualTrainer: Any

__all__ = ["Attached", "ContinualMixin", "ContinualTrainer"]


class ContinualMixin:
    """Puts a method into a trainer of transformers: `class Mine(ContinualMixin, Seq2SeqTrainer): pass`.

    An experience is one `train()`: set `trainer.train_dataset` to the next one's data and call it again. The loop stays
    that of transformers, with its arguments, callbacks, evaluation, checkpoints and resume; terms of the loss enter in
    its backward, edits of the gradient come before it clips, and what follows the optimiser's move follows it. With
    gradient accumulation each batch draws old samples of its own, and what is edited and remembered acts on all of them
    once. Evaluation and `predict` answer as the method does. Checkpoints get one more file, `holdfast.pt`.

    Args:
        *args: of the trainer.
        method: what is done around each step.
        continual: instead of a method, that of an earlier trainer of the same model, to go on with:
            `continual=first.continual`; or `Attached(method, ...)`.
        criterion: with `method`, as all that follow: the loss on replayed samples; default: the model's.
        boundary: `Every(steps=...)` or `OnNewClass()` instead of one experience per `train()`.
        batch: takes `(inputs, targets)` out of a batch; default: its labels, and the rest as inputs.
        task: the task label of the first `train()`; assign `trainer.continual.task` before later ones.
        pad: what inputs are padded with; default: as the model or the tokenizer says.
        memory_device: where the memory keeps its rows, for instance "cpu" beside a model on a GPU.
        **kwargs: of the trainer; and of `Attached`: `output`, `seed`, `head`.

    Raises:
        ConfigError: for neither or both of `method` and `continual`, and where the trainer cuts parameters into shards.
        NeedError: at the first step, if the method needs what this loop does not offer.
    """

    def __init__(
        self,
        *args: Any,
        method: Method | None = None,
        continual: Attached | None = None,
        **kwargs: Any,
    ) -> None:
        names = ("criterion", "boundary", "batch", "output", "task", "seed", "head", "pad", "memory_device")
        options = {name: kwargs.pop(name) for name in names if name in kwargs}
        if (method is None) == (continual is None) or (continual is not None and options):
            raise ConfigError(
                "the trainer got method and continual, or neither, or settings beside continual. Give one:"
                " method=methods.er(capacity=500), or continual=first.continual to go on with an earlier trainer's."
            )
        self.continual = Attached(method, **options) if continual is None else continual  # type: ignore[arg-type]
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one experience, as the trainer does."""
        result = super().train(*args, **kwargs)  # type: ignore[misc]
        self.continual.end()
        return result

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """One batch: the trainer's step, with the method's backward."""
        items = args[0] if args else kwargs.get("num_items_in_batch")
        self.continual.step(self, model, inputs, items)
        accelerator = self.accelerator  # type: ignore[attr-defined]
        accelerator.backward = lambda loss, **_: self.continual.backward(self, loss)
        try:
            return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        finally:
            del accelerator.backward

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared = super()._prepare_inputs(inputs)  # type: ignore[misc]
        self.continual.note(prepared)
        return prepared

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The trainer's loss, or that of a method that brings its own."""
        made = self.continual.loss(model, inputs) if model.training else None
        if made is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)  # type: ignore[misc]
        return made if return_outputs else made[0]

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Loss, outputs and labels of a batch; outputs as the method wants them."""
        loss, outputs, labels = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        return loss, self.continual.answers(outputs, super()._prepare_inputs(inputs)), labels  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        self.continual.save(output_dir, self)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            self.continual.load(checkpoint, self)


@functools.cache
def _trainer() -> type:
    try:
        import accelerate  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
        from transformers import Trainer
    except ImportError:
        raise needs_extra(
            "holdfast.transformers.ContinualTrainer", "transformers and accelerate", "transformers"
        ) from None
    return type("ContinualTrainer", (ContinualMixin, Trainer), {"__doc__": ContinualMixin.__doc__})


def __getattr__(name: str) -> Any:
    """The trainer, made when it is asked for: transformers takes seconds to import."""
    if name == "ContinualTrainer":
        return _trainer()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
