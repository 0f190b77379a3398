"""A method in a Lightning trainer: what the callback does at each of Lightning's moments, and how it reads batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.experience import Data, Tree
from holdfast.core.learner import Criterion
from holdfast.core.method import Method
from holdfast.core.needs import LIGHTNING, LOOP_WITH_BOUNDARY
from holdfast.streams.collated import CollatedData, Split, split_batch
from holdfast.streams.data import LoaderData
from holdfast.training.checks import check_arguments
from holdfast.training.followed import Followed
from holdfast.training.lightning_inside import Inside, InsideForwards, InsideUpdate, Tasked, made_from, takes_task
from holdfast.training.phases import Phases
from holdfast.training.wrapper import bound


class CallbackLogic:
    """Puts a method into a Lightning trainer: `Trainer(callbacks=[ContinualCallback(er(capacity=500))])`.

    Terms of the loss enter in the module's `backward`, edits of the gradient before Lightning clips it, and what
    follows the optimiser's move follows it. The module's own code stays as it is. An experience is one `fit`, or what a
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
        task: the task label of the next fit; assign `callback.task` between fits. Where it is None and the network's
            forward is `forward(x, task_id)`, the module's `task_id` counts.
        seed: of every random choice.
        head: dotted path of the output layer in the network.
        pad: what inputs are padded with that are as long as the longest of their batch; see `Continual`.
        memory_device: where the memory keeps its rows, for instance "cpu" beside a network on a GPU.

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
        pad: float | Mapping[str, float] | None = None,
        memory_device: torch.device | str | None = None,
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
        self.pad, self.memory_device = pad, memory_device
        self.cl: Inside | None = None
        self.resumed = False
        self._loaded: Mapping[str, Any] | None = None
        self._now: tuple[Tree, Tensor] | None = None
        self._tasked: Tasked | None = None

    # What a module and its user may call ---------------------------------------------------------------

    def loss(self, outputs: Tensor, targets: Tensor, inputs: Tree | None = None) -> Tensor:
        """The loss of a method that brings its own, for `training_step`; see `Continual.loss`."""
        return self.bound.loss(outputs, targets, inputs)

    def predict(self, inputs: Tree, task: int | None = None) -> Tensor:
        """Outputs in eval mode, as the method wants them; see `Continual.predict`."""
        return self.bound.predict(inputs, task)

    def export(self) -> nn.Module:
        """The network for deployment; see `Continual.export`."""
        return self.bound.export()

    @property
    def bound(self) -> Inside:
        """The method bound to the network.

        Raises:
            UsageError: before the first fit.
        """
        if self.cl is None:
            raise UsageError("the method is bound by the first `fit`. Call trainer.fit(...) before.")
        return self.cl

    # Lightning's hooks -----------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Bind the method at the first fit, and take the new optimiser at each."""
        stream = getattr(trainer.datamodule, "stream", None)
        network = self._network(pl_module)
        if takes_task(network):
            network = self._tasked if self._tasked is not None and self._tasked.module is network else Tasked(network)
            self._tasked = network
        optimizer = self._optimizer(trainer, network)
        if self.cl is None:
            self.cl = self._bind(network, None if stream is None else stream.prepare)
        elif self.cl.model is not network:
            raise UsageError(
                "this callback serves another module already. Make one for each: ContinualCallback(method.clone())."
            )
        self.cl.work_for(trainer, optimizer, self.accumulate)
        if self._loaded is not None:
            self._restore(trainer, optimizer)
        pl_module.backward = self._backward
        if self._tasked is not None:
            self._tasked.watch(lambda: self.bound.learner.task)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open this fit's experience, unless a stream or a boundary does."""
        if self.boundary is not None or getattr(trainer.datamodule, "stream", None) is not None:
            return
        cl = self.bound
        wanted = {"boundaries", "data", "classes"} & set(self.method.needs) or hasattr(cl.learner.head, "grow")
        data = None
        if wanted:
            data = self.data(trainer) if self.data is not None else data_of(trainer, self.batch)
        if self.resumed and cl.experience is not None:
            if data is not None:
                cl.phases.hand_over(data)
        else:
            steps = trainer.num_training_batches if trainer.num_training_batches != float("inf") else None
            steps = None if steps is None else -(-int(steps) // trainer.accumulate_grad_batches)
            told = getattr(pl_module, "task_id", None) if self._tasked is not None else None
            task = int(told) if self.task is None and isinstance(told, int) else self.task
            cl.begin(data, task=task, epochs=max(1, trainer.max_epochs or 1), steps=steps)
        self.resumed = False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the experience."""
        if self.bound.experience is not None and self.boundary is None:
            self.bound.end()
        pl_module.__dict__.pop("backward", None)
        if self._tasked is not None:
            self._tasked.unwatch()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the batch."""
        self._now = self.batch(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Edit the gradient."""
        self.bound.complete()

    def state_dict(self) -> dict[str, Any]:
        """The method's state for Lightning's checkpoint; the network's weights are in it already."""
        if self.cl is None:
            return {}
        state = self.cl.state_dict()
        state["engine"]["learner"]["model"] = None
        names = {id(p): name for name, p in self.cl.learner.every_parameter().items()}
        assert self.cl.optimizer is not None
        return {"continual": state, "groups": _groups(self.cl.optimizer, names)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the state until the next fit has made what it belongs to."""
        self._loaded = state_dict or None

    def _restore(self, trainer: Any, optimizer: torch.optim.Optimizer) -> None:
        assert self._loaded is not None
        cl, loaded = self.bound, self._loaded
        state = dict(loaded["continual"])
        engine = dict(state["engine"])
        engine["learner"] = {**engine["learner"], "model": dict(cl.learner.model.state_dict())}
        cl.load_state_dict({**state, "engine": engine})
        named, groups = cl.learner.every_parameter(), loaded["groups"]
        now = _groups(optimizer, {id(p): name for name, p in named.items()})
        if groups != now and all(name in named for names in groups for name in names):
            options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
            optimizer.param_groups[:] = [{**options, "params": [named[name] for name in names]} for names in groups]
        self._loaded, self.resumed = None, True

    # What they share -------------------------------------------------------------------------------------

    def _backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        cl = self.bound
        if self._now is None:
            raise UsageError("the training step's batch is not known. Train with batches, not with dataloader_iter.")
        inputs, targets = self._now
        raw = cl.update.undone(loss)
        if cl.own_loss is not None and made_from(loss, cl.own_loss):
            cl.own_loss = raw
        cl.backward(raw, targets, inputs=inputs)

    def _bind(self, network: nn.Module, prepare: Callable[..., Any] | None) -> Inside:
        check_arguments(self.method, None, 1, None)
        engine, own_hooks = bound(
            network,
            self.method,
            LIGHTNING if self.boundary is None else LOOP_WITH_BOUNDARY,
            criterion=self.criterion,
            prepare=prepare,
            output=self.output,
            seed=self.seed,
            head=self.head,
            pad=self.pad,
            memory_device=self.memory_device,
        )
        followed = Followed(engine)
        forwards = InsideForwards(engine, network, self.output, direct=True)
        phases = Phases(engine, self.boundary)
        update = InsideUpdate(engine, followed, accumulate=0, finished=phases.keeper)
        return Inside(engine, forwards, phases, update, followed, own_hooks, self.criterion is not None)

    def _network(self, module: nn.Module) -> nn.Module:
        if self.model is not None:
            return module.get_submodule(self.model)
        children = [child for child in module.children() if any(True for _ in child.parameters())]
        has_parameters = any(True for _ in module.parameters(recurse=False))
        return children[0] if len(children) == 1 and not has_parameters else module

    def _optimizer(self, trainer: Any, network: nn.Module) -> torch.optim.Optimizer:
        within = {id(p) for p in network.parameters()}
        moving = [
            o for o in trainer.optimizers if any(id(p) in within for group in o.param_groups for p in group["params"])
        ]
        if len(moving) != 1:
            raise ConfigError(
                f"{len(moving)} of the module's {len(trainer.optimizers)} optimizers move the network. "
                "Name the network that the method is for: ContinualCallback(method, model='path')."
            )
        return moving[0]  # type: ignore[no-any-return]


def data_of(trainer: Any, split: Split) -> Data | None:
    """The data behind the training loader, if it can be gone over again.

    Args:
        trainer: that trains.
        split: takes inputs and targets out of a batch.
    """
    loader = trainer.train_dataloader
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, Data) or dataset is None:
        return dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return None
    pairs = split is split_batch and len(dataset) and isinstance(dataset[0], list | tuple) and len(dataset[0]) == 2
    collate = getattr(loader, "collate_fn", default_collate)
    return LoaderData(dataset) if pairs and collate is default_collate else CollatedData(dataset, collate, split)


def _groups(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[list[str | None]]:
    """What each group of an optimiser holds, by name."""
    return [[names.get(id(p)) for p in group["params"]] for group in optimizer.param_groups]
