"""A method in a Lightning trainer: a callback for any LightningModule, and a data module over any of our streams."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError, UsageError, needs_extra
from holdfast.core.experience import Data, Stream, Tree
from holdfast.core.learner import Criterion, derive_seed
from holdfast.core.method import Method
from holdfast.core.needs import OFFERS
from holdfast.streams.data import LoaderData
from holdfast.training.wrapper import Continual

if TYPE_CHECKING:
    ContinualCallback: Any
    StreamDataModule: Any

__all__ = ["ContinualCallback", "StreamDataModule"]

TARGETS = ("labels", "targets", "target", "label", "y")
"""Where a batch that is a mapping has its targets."""


class Inside(Continual):
    """The drop-in where Lightning owns precision, accumulation and the order of calls.

    Lightning divides the loss by the number of accumulated batches and scales it; both are undone for the method and
    done again to the total. Inputs are raw where there is a `prepare`, which then acts inside the model's call.
    """

    lightning: Any = None
    _manual: int = 0
    _hidden: list[bool]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._hidden = []
        super().__init__(*args, **kwargs)
        for hook in self._hooks[1:]:
            hook.remove()
        self._hooks = [self._hooks[0], self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True)]
        self._scaled = True

    def _offers(self, boundary: Boundary | None) -> frozenset[str]:
        return OFFERS["Lightning"] if boundary is None else super()._offers(boundary)

    def take(self, trainer: Any, optimizer: torch.optim.Optimizer, accumulate: int) -> None:
        """Work for `trainer`, whose optimiser is `optimizer`, from now on."""
        self.lightning = trainer
        self._manual = 0 if trainer.lightning_module.automatic_optimization else accumulate
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        # Where modules clip the gradients themselves, edits come before that; else Lightning says when all is there.
        self.accumulate = self._manual if self._manual and not scaled else 10**9
        self._distributed = trainer.world_size > 1
        self.optimizer = optimizer
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)

    def before_optimizer(self) -> None:
        """Edit the gradient, when it is complete and unscaled and not clipped yet."""
        if self._parts:
            self._finish()

    def _before_step(self, *_: Any) -> None:
        """Lightning's closure makes the last batch of a group inside the optimiser's step."""

    def undone(self, loss: Tensor) -> Tensor:
        """The loss as the training step returned it."""
        factor = 1.0 if self._manual else self._factor()
        loss = loss if factor == 1 else loss / factor
        return loss if self.scaler is None else loss / self.scaler.get_scale()

    def _factor(self) -> float:
        return 1 / (self._manual or self.lightning.accumulate_grad_batches)

    def _scale(self) -> float | Tensor:
        if self.scaler is None:
            return self._factor()
        return self.scaler.scale(torch.full((), self._factor(), device=self.learner.device))  # type: ignore[return-value]

    def _is_own(self, loss: Tensor) -> bool:
        """Whether `loss` is `cl.loss(...)` up to a factor: Lightning divides and scales it."""
        node, own = loss.grad_fn, None if self._own_loss is None else self._own_loss.grad_fn
        for _ in range(6):
            if node is None or node is own:
                break
            node = node.next_functions[0][0] if node.next_functions else None
        return own is not None and node is own

    def _check_direct_call(self) -> None:
        """Lightning's loop calls the model directly."""

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._busy:
            return None
        self._hidden.append(getattr(vars(module).get("forward"), "__name__", "") == "wrapped_forward")
        if self._hidden[-1]:  # the strategy calls the training step through the module's forward
            return None
        if self._joins or self.learner.multi_head:
            args, kwargs = super()._before_forward(module, args, kwargs) or (args, kwargs)
        if self.learner.prepare is not None and args:
            args = (self.learner.prepare(args[0], module.training, self.learner._augment), *args[1:])
        return args, kwargs

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        if self._busy or (self._hidden and self._hidden.pop()):
            return None
        return super()._after_forward(module, args, kwargs, outputs)


class CallbackLogic:
    """Puts a method into a Lightning trainer: `Trainer(callbacks=[ContinualCallback(er(capacity=500))])`.

    Terms of the loss enter in the module's `backward`, edits of the gradient before Lightning clips it, and what
    follows
    the optimiser's move follows it. The module's own code stays as it is. An experience is one `fit`, or what a
    `StreamDataModule` or `boundary` announces. The same callback object serves all fits of a run.

    Args:
        method: what is done around each step.
        model: dotted path of the network inside the module; default: its only child with parameters, else the module.
        criterion: the loss on replayed samples; default: cross-entropy.
        boundary: `Every(steps=...)` or `OnNewClass()` instead of one experience per fit.
        batch: takes `(inputs, targets)` out of a batch; default: first and last of a sequence, or of a mapping its
            `labels`, `targets`, `target`, `label` or `y`, and the rest as inputs.
        output: takes the tensor of outputs out of what the network returns.
        data: from the trainer to the experience's data, for methods that go over it; default: the training loader's
            data set.
        accumulate: calls of `manual_backward` for one step of the optimiser, each with its undivided loss; for modules
            that move the optimiser themselves.
        task: the task label of the next fit; assign `callback.task` between fits.
        seed: of every random choice.
        head: dotted path of the output layer in the network.

    Raises:
        ImportError: if lightning is not installed.
        NeedError: at the first fit, if the method needs what it lacks.
    """

    def __init__(
        self,
        method: Method,
        *,
        model: str | None = None,
        criterion: Criterion | None = None,
        boundary: Boundary | None = None,
        batch: Callable[[Any], tuple[Tree, Tensor]] | None = None,
        output: Callable[[Any], Tensor] | None = None,
        data: Callable[[Any], Data] | None = None,
        accumulate: int = 1,
        task: int | None = None,
        seed: int = 0,
        head: str | None = None,
    ) -> None:
        self.method = method
        self.accumulate = accumulate
        self.model = model
        self.criterion = criterion
        self.boundary = boundary
        self.batch = split_batch if batch is None else batch
        self.output = output
        self.data = data
        self.task = task
        self.seed = seed
        self.head = head
        self.cl: Inside | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._resumed = False
        self._now: tuple[Tree, Tensor] | None = None

    # What a module and its user may call ---------------------------------------------------------------

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tree | None = None) -> Tensor:
        """The loss of a method that brings its own, for `training_step`; see `Continual.loss`."""
        return self._bound.loss(outputs, targets, inputs)

    def predict(self, inputs: Tree, task: int | None = None) -> Tensor:
        """Outputs in eval mode, as the method wants them; see `Continual.predict`."""
        return self._bound.predict(inputs, task)

    def export(self) -> nn.Module:
        """The network for deployment; see `Continual.export`."""
        return self._bound.export()

    @property
    def _bound(self) -> Inside:
        if self.cl is None:
            raise UsageError("the method is bound by the first `fit`. Call trainer.fit(...) before.")
        return self.cl

    # Lightning's hooks -----------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Bind the method at the first fit, and take the new optimiser at each."""
        stream = getattr(trainer.datamodule, "stream", None)
        network = self._network(pl_module)
        optimizer = self._optimizer(trainer, network)
        if self.cl is None:
            self.cl = Inside(
                network,
                self.method,
                optimizer,
                criterion=self.criterion,
                boundary=self.boundary,
                prepare=None if stream is None else stream.prepare,
                output=self.output,
                seed=self.seed,
                head=self.head,
            )
        elif self.cl.model is not network:
            raise UsageError(
                "this callback serves another module already. Make one for each: ContinualCallback(method.clone())."
            )
        self.cl.take(trainer, optimizer, self.accumulate)
        if self._loaded is not None:
            self._restore(trainer, optimizer)
        pl_module.backward = self._backward

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open this fit's experience, unless a stream or a boundary does."""
        if self.boundary is not None or getattr(trainer.datamodule, "stream", None) is not None:
            return
        cl = self._bound
        wanted = {"boundaries", "data", "classes"} & set(self.method.needs) or hasattr(cl.learner.head, "grow")
        data = None
        if wanted:
            data = self.data(trainer) if self.data is not None else _data_of(trainer)
        if self._resumed and cl._experience is not None:
            if data is not None:
                cl._experience.train = data
        else:
            steps = trainer.num_training_batches if trainer.num_training_batches != float("inf") else None
            steps = None if steps is None else -(-int(steps) // trainer.accumulate_grad_batches)
            cl.begin(data, task=self.task, epochs=max(1, trainer.max_epochs or 1), steps=steps)
        self._resumed = False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the experience."""
        if self._bound._experience is not None and self.boundary is None:
            self._bound.end()
        pl_module.__dict__.pop("backward", None)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the batch."""
        self._now = self.batch(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Edit the gradient."""
        self._bound.before_optimizer()

    def state_dict(self) -> dict[str, Any]:
        """The method's state for Lightning's checkpoint; the network's weights are in it already."""
        if self.cl is None:
            return {}
        state = self.cl.state_dict()
        state["engine"]["learner"]["model"] = None
        names = {id(p): name for name, p in self.cl.learner.every_parameter().items()}
        assert self.cl.optimizer is not None
        groups = [[names.get(id(p)) for p in group["params"]] for group in self.cl.optimizer.param_groups]
        return {"continual": state, "groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the state until the next fit has made what it belongs to."""
        self._loaded = state_dict or None

    def _restore(self, trainer: Any, optimizer: torch.optim.Optimizer) -> None:
        assert self._loaded is not None
        cl, loaded = self._bound, self._loaded
        state = dict(loaded["continual"])
        engine = dict(state["engine"])
        engine["learner"] = {**engine["learner"], "model": dict(cl.learner.model.state_dict())}
        cl.load_state_dict({**state, "engine": engine})
        named, groups = cl.learner.every_parameter(), loaded["groups"]
        if len(groups) != len(optimizer.param_groups) and all(name in named for names in groups for name in names):
            options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
            optimizer.param_groups[:] = [{**options, "params": [named[name] for name in names]} for names in groups]
        self._loaded, self._resumed = None, True

    # What they share -------------------------------------------------------------------------------------

    def _backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        cl = self._bound
        if self._now is None:
            raise UsageError("the training step's batch is not known. Train with batches, not with dataloader_iter.")
        inputs, targets = self._now
        raw = cl.undone(loss)
        if cl._owns_loss and cl._is_own(loss):
            cl._own_loss = raw
        cl.backward(raw, targets, inputs=inputs)

    def _network(self, module: nn.Module) -> nn.Module:
        if self.model is not None:
            return module.get_submodule(self.model)
        children = [child for child in module.children() if any(True for _ in child.parameters())]
        own = any(True for _ in module.parameters(recurse=False))
        return children[0] if len(children) == 1 and not own else module

    def _optimizer(self, trainer: Any, network: nn.Module) -> torch.optim.Optimizer:
        held = {id(p) for p in network.parameters()}
        found = [
            o for o in trainer.optimizers if any(id(p) in held for group in o.param_groups for p in group["params"])
        ]
        if len(found) != 1:
            raise ConfigError(
                f"{len(found)} of the module's {len(trainer.optimizers)} optimizers move the network. "
                "Name the network that the method is for: ContinualCallback(method, model='path')."
            )
        return found[0]  # type: ignore[no-any-return]


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
            cl, generator = callback._bound, callback._bound.learner.rng("order")
            if callback._resumed and cl._experience is not None:
                data = cl.resume(self.stream[cl.learner.experience])
            callback._resumed = False
            if cl._experience is not None and cl.learner.experience != index:
                cl.end()
            if cl._experience is None:
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

    def __len__(self) -> int:
        ranks = 1 if self.trainer is None else self.trainer.world_size
        return -(-(len(self.dataset) // ranks) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tree, Tensor]]:
        for batch in self.dataset.batches(self._order(), self.batch_size):
            yield batch.inputs, batch.targets

    def _order(self) -> Tensor:
        count = len(self.dataset)
        if self.generator is None or self.trainer is None:
            return torch.arange(count)
        epoch = self.trainer.current_epoch
        if self._drawn is None or self._drawn[0] != epoch:  # Lightning starts an epoch's loader twice
            self._drawn = epoch, torch.randperm(count, generator=self.generator)
        order, ranks = self._drawn[1], self.trainer.world_size
        if ranks == 1:
            return order
        steps = order[: count // ranks * ranks].split(self.batch_size * ranks)
        return torch.cat([step[self.trainer.global_rank :: ranks] for step in steps])


def split_batch(batch: Any) -> tuple[Tree, Tensor]:
    """Inputs and targets of a batch as most loaders make them."""
    if isinstance(batch, Mapping):
        found = next((name for name in TARGETS if name in batch), None)
        if found is not None:
            return {name: value for name, value in batch.items() if name != found}, batch[found]
    elif isinstance(batch, list | tuple) and len(batch) >= 2:
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return (dict(inputs) if isinstance(inputs, Mapping) else inputs), batch[-1]
    elif isinstance(batch, Tensor):
        return batch, batch
    raise UsageError(
        f"a batch of type {type(batch).__name__} does not say which part is the targets. "
        "Pass ContinualCallback(..., batch=lambda batch: (inputs, targets))."
    )


def _data_of(trainer: Any) -> Data | None:
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    if isinstance(dataset, Data) or dataset is None:
        return dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return None
    return LoaderData(dataset)


@functools.cache
def _classes() -> dict[str, type]:
    try:
        from lightning.pytorch import Callback, LightningDataModule
    except ImportError:
        raise needs_extra("holdfast.lightning", "lightning", "lightning") from None
    return {
        "ContinualCallback": type("ContinualCallback", (CallbackLogic, Callback), {"__doc__": CallbackLogic.__doc__}),
        "StreamDataModule": type(
            "StreamDataModule", (StreamLogic, LightningDataModule), {"__doc__": StreamLogic.__doc__}
        ),
    }


def __getattr__(name: str) -> Any:
    """The two classes, made when they are asked for: Lightning takes three seconds to import."""
    if name in __all__:
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
