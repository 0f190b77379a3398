"""A method within the `Trainer` of transformers: what it is bound to, and what happens at its moments."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Tree
from holdfast.core.learner import Criterion
from holdfast.core.method import Method
from holdfast.core.needs import ADVICE, LOOP_WITH_BOUNDARY, NEEDS, Way
from holdfast.streams.collated import TARGETS, CollatedData, Split, split_batch
from holdfast.training.calls import logits_of
from holdfast.training.checks import check_arguments
from holdfast.training.dropin import DropIn
from holdfast.training.followed import Followed
from holdfast.training.forwards import Forwards
from holdfast.training.phases import Phases
from holdfast.training.ranks import average_unknown
from holdfast.training.transformers_loss import SharedUpdate, Shares, criterion_of
from holdfast.training.wrapper import bound

STATE = "holdfast"
"""Name, without its ending, of the file that a checkpoint of transformers gets from us."""

TRANSFORMERS = Way(
    "transformers Trainer",
    frozenset(NEEDS) - {"targets", "replacement", "stream"},
    {
        **ADVICE,
        "replacement": "Use the drop-in in a loop of your own; for joint training give this trainer all data at once.",
        "task": "Set trainer.continual.task before train(), or choose a method that needs no task labels.",
    },
)


class Attached:
    """A method, and the trainers that it works in: `trainer.continual`. One serves all trainings of a model.

    Args:
        method: what is done around each step.
        criterion: the loss on replayed samples; default: the model's, where it is known (cross-entropy of classes, of
            tokens, or of the next token; with label smoothing; squared error or yes and no where the configuration of
            the model says so).
        boundary: `Every(steps=...)` or `OnNewClass()` instead of one experience per `train()`.
        batch: takes `(inputs, targets)` out of a batch; default: its labels, and the rest as inputs.
        output: takes the tensor of outputs out of what the model returns; default: its `logits`.
        task: the task label of the next `train()`; assign `trainer.continual.task` between them.
        seed: of every random choice; default: that of the arguments.
        head: dotted path of the output layer in the model.
        pad: what inputs are padded with; default: as the model or the tokenizer says.
        memory_device: where the memory keeps its rows, for instance "cpu" beside a model on a GPU.
    """

    def __init__(
        self,
        method: Method,
        *,
        criterion: Criterion | None = None,
        boundary: Boundary | None = None,
        batch: Split | None = None,
        output: Callable[[Any], Tensor] | None = None,
        task: int | None = None,
        seed: int | None = None,
        head: str | None = None,
        pad: float | Mapping[str, float] | None = None,
        memory_device: torch.device | str | None = None,
    ) -> None:
        check_arguments(method, None, 1, None)
        self.method = method
        self.boundary = boundary
        self.task = task
        self._batch = batch
        self._options = {"output": output, "head": head, "memory_device": memory_device}
        self._criterion, self._seed, self._pad = criterion, seed, pad
        self._cl: DropIn | None = None
        self._update: SharedUpdate | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._called: dict[str, Any] | None = None
        self._items: Any = None
        self._shares = Shares()
        self._open = self._resumed = False

    # What users may call ---------------------------------------------------------------------------------

    @property
    def bound(self) -> DropIn:
        """The method bound to the model.

        Raises:
            UsageError: before the first step.
        """
        if self._cl is None:
            raise UsageError("the method is bound by the first step. Call trainer.train() before.")
        return self._cl

    def predict(self, inputs: Tree, task: int | None = None) -> Tensor:
        """Outputs in eval mode, as the method wants them; see `Continual.predict`."""
        return self.bound.predict(inputs, task)

    def losses(self) -> dict[str, float]:
        """The current loss and each operation's term since the last reading; see `Continual.losses`."""
        return self.bound.losses()

    def answers(self, outputs: Any, inputs: Mapping[str, Any]) -> Any:
        """The model's outputs on a batch in an evaluation, or what a method that answers otherwise makes of them."""
        if outputs is None or self._cl is None or not self._cl.engine.acts_at("predict"):
            return outputs
        named = {name: value for name, value in inputs.items() if name not in TARGETS}
        return self._cl.predict(named, self.task)

    def export(self) -> nn.Module:
        """The model for deployment; see `Continual.export`."""
        return self.bound.export()

    # One train() -----------------------------------------------------------------------------------------

    def begin(self, trainer: Any, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Before the first step of a training: bind the method if it is new, and open the experience.

        Args:
            trainer: of transformers.
            model: as its loop calls it.
            inputs: its first batch.
        """
        if "task" in self.method.needs and self.task is None and self.boundary is None:
            raise UsageError(f"`{self.method.name}` uses task labels. {TRANSFORMERS.advice['task']}")
        self._open = True
        if self._cl is None:
            self._cl = self._bind(trainer, model, inputs)
        elif self._cl.model is not model:
            raise UsageError(
                "this method serves another model, or a new wrapper around it. Make a new one for each model:"
                " method.clone(); to go on with one model, set trainer.train_dataset and call trainer.train() again."
            )
        cl, optimizer = self._cl, trainer.optimizer
        while hasattr(optimizer, "optimizer"):  # what accelerate wraps around it
            optimizer = optimizer.optimizer
        if cl.optimizer is not optimizer:
            cl.optimizer = optimizer
        cl.update.scaler = scaler = trainer.accelerator.scaler
        if scaler is not None and not isinstance(trainer.accelerator.unscale_gradients, _Once):
            trainer.accelerator.unscale_gradients = _Once(trainer.accelerator.unscale_gradients)
        if self._loaded is not None:
            self._restore()
        data = self._data(trainer) if {"data", "classes"} & set(self.method.needs) else None
        if self._resumed and cl.experience is not None:
            if data is not None:
                cl.phases.hand_over(data)
        elif self.boundary is None and cl.experience is None:  # else a training that was interrupted goes on
            epochs = max(1, round(trainer.state.num_train_epochs))
            cl.begin(data, task=self.task, epochs=epochs, steps=-(-trainer.state.max_steps // epochs))
        self._resumed = False

    def end(self) -> None:
        """After a training: close the experience, if one was opened."""
        if self._open and self.boundary is None and self.bound.experience is not None:
            self.bound.end()
        self._open = False

    def step(self, trainer: Any, model: nn.Module, inputs: Mapping[str, Any], items: Any) -> None:
        """Before the forward of a batch.

        Args:
            trainer: of transformers.
            model: as its loop calls it.
            inputs: the batch.
            items: how many labels all batches of the optimiser's step have, where the loop counts them.
        """
        if not self._open:
            self.begin(trainer, model, inputs)
        self._called, self._items = None, items

    def note(self, prepared: Mapping[str, Any]) -> None:
        """Note the batch as the model is called with it, on its device."""
        if self._open and self._called is None:
            self._called = dict(prepared)

    def loss(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Any] | None:
        """The loss of a method that brings its own, and what the model returned; None for all others."""
        cl = self._cl
        if cl is None or not cl.engine.acts_at("criterion"):
            return None
        named, targets = self._split(inputs)
        returned = model(**named)  # type: ignore[arg-type]
        outputs = returned if self._options["output"] is None else self._options["output"](returned)  # type: ignore[operator]
        return cl.loss(logits_of(outputs), targets, inputs=named), returned

    def backward(self, trainer: Any, loss: Tensor) -> None:
        """Instead of accelerate's backward: that of the drop-in, and the end of a step after its last batch."""
        cl, update = self.bound, self._update
        assert update is not None and self._called is not None
        inputs, targets = self._split(self._called)
        if cl.own_loss is not None:
            loss, update.share = cl.own_loss, 1.0 / trainer.current_gradient_accumulation_steps
        else:
            called, items, fits = self._called, self._items, cl.intake.fits
            share = self._shares(trainer, items, called, targets, lambda share: fits(inputs, targets, loss / share))
            update.share = share
            loss = loss if isinstance(share, float) and share == 1.0 else loss / share
        cl.backward(loss, targets, inputs=inputs)
        if trainer.accelerator.sync_gradients:
            if update.scaler is not None:
                trainer.accelerator.unscale_gradients.anew()
                trainer.accelerator.unscale_gradients()
            cl.complete()

    # Checkpoints -----------------------------------------------------------------------------------------

    def save(self, folder: str, trainer: Any) -> None:
        """Write the method's state into a checkpoint of transformers, which has the weights and the optimiser."""
        if self._cl is None:
            return
        state = self._cl.state_dict()
        state["engine"]["learner"]["model"] = None
        torch.save(state, _file(folder, trainer))

    def load(self, folder: str, trainer: Any) -> None:
        """Keep the state of a checkpoint until the method is bound.

        Raises:
            UsageError: for a checkpoint that was saved without one.
        """
        file = _file(folder, trainer)
        if not file.is_file():
            raise UsageError(
                f"{folder} has no {file.name}: it was saved without this method, or by another number of processes. Go"
                " on with the trainer that saved it, or take its weights only: from_pretrained(folder)."
            )
        self._loaded = torch.load(file, map_location="cpu", weights_only=True)

    def _restore(self) -> None:
        assert self._loaded is not None
        cl, engine = self.bound, dict(self._loaded["engine"])
        engine["learner"] = {**engine["learner"], "model": dict(cl.learner.model.state_dict())}
        cl.load_state_dict({**self._loaded, "engine": engine})
        self._loaded, self._resumed = None, True

    # What it works with ----------------------------------------------------------------------------------

    def _split(self, batch: Mapping[str, Any]) -> tuple[Tree, Tensor]:
        return (split_batch if self._batch is None else self._batch)(batch)

    def _data(self, trainer: Any) -> CollatedData:
        """This process's part of the training data, made into batches as the loop makes them."""
        loader = trainer.callback_handler.train_dataloader
        if not hasattr(loader.dataset, "__getitem__") or not hasattr(loader.dataset, "__len__"):
            raise UsageError(
                f"`{self.method.name}` goes over an experience's data, and this training set gives its items once only."
                " Give one with a length, or choose a method that needs none: er, der_plus_plus, agem."
            )
        args = trainer.args
        rows = torch.arange(args.process_index, len(loader.dataset), args.world_size)
        return CollatedData(loader.dataset, loader.collate_fn, self._split, rows, args.device)

    def _bind(self, trainer: Any, model: nn.Module, inputs: Mapping[str, Any]) -> DropIn:
        _check(trainer, self.method)
        targets = self._split(inputs)[1]
        criterion = criterion_of(trainer, targets) if self._criterion is None else self._criterion
        token = getattr(trainer.processing_class, "pad_token_id", None)
        pad = {"input_ids": token} if self._pad is None and token is not None else self._pad
        way = TRANSFORMERS if self.boundary is None else LOOP_WITH_BOUNDARY
        seed = trainer.args.seed if self._seed is None else self._seed
        engine, own_hooks = bound(
            model, self.method, way, criterion=criterion, seed=seed, pad=pad, **self._options  # type: ignore[arg-type]
        )  # fmt: skip
        distributed = isinstance(model, DistributedDataParallel)
        if engine.acts_at("take_step") and (trainer.args.gradient_accumulation_steps > 1 or trainer.accelerator.scaler):
            raise ConfigError(
                f"`{self.method.name}` makes the whole step itself. Leave gradient_accumulation_steps and fp16 out."
            )
        phases, followed = Phases(engine, self.boundary, distributed), Followed(engine)
        average = average_unknown(model.parameters()) if distributed else None
        self._update = SharedUpdate(engine, followed, accumulate=0, average=average, finished=phases.keeper)
        forwards = Forwards(engine, model, self._options["output"])  # type: ignore[arg-type]
        cl = DropIn(engine, forwards, phases, self._update, followed, own_hooks, criterion is not None)
        # The model makes the loss of all rows that it is called with, unless the loop makes it of the outputs.
        forwards.apart = trainer.label_smoother is None and trainer.compute_loss_func is None
        config = getattr(cl.learner.model, "config", None)
        cl.intake.keeps_targets = self._batch is not None or bool(getattr(config, "is_encoder_decoder", False))
        return cl


class _Once:
    """Unscales gradients once a step: the method does before its edits, and the loop would again before it clips."""

    def __init__(self, unscale: Any) -> None:
        self._unscale: Callable[[Any], Any] = unscale
        self._done = False

    def anew(self) -> None:
        """Another step's gradients are there."""
        self._done = False

    def __call__(self, optimizer: Any = None) -> None:
        if not self._done:
            self._done = True
            self._unscale(optimizer)


def _file(folder: str, trainer: Any) -> Path:
    """Each process has its own memory, and so its own file."""
    rank = f"_{trainer.args.process_index}" if trainer.args.world_size > 1 else ""
    return Path(os.fspath(folder)) / f"{STATE}{rank}.pt"


def _check(trainer: Any, method: Method) -> None:
    """Refuse what transformers can do and no method can work in."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ConfigError("DeepSpeed and FSDP cut parameters into shards, and operations need them whole. Use DDP.")
    if trainer.args.auto_find_batch_size:
        raise ConfigError(
            f"auto_find_batch_size starts the training anew, and what `{method.name}` did by then would stay. Give"
            " per_device_train_batch_size."
        )
