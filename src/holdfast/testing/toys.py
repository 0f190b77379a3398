"""Toys that every check trains on: a stream that is learnt in a blink, small models of it, and the two plain loops."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.experience import Batch, Experience, Stream
from holdfast.core.method import Method
from holdfast.models import cnn, mlp
from holdfast.streams import permuted, split
from holdfast.streams.data import TensorData
from holdfast.streams.datasets import synthetic
from holdfast.training import Continual, Trainer

SEED = 3
"""Of every training here."""

Optimizers = Callable[..., torch.optim.Optimizer]


def stream(paradigm: Any = "class", experiences: int = 3, classes: int = 6, samples: int = 9, **other: Any) -> Stream:
    """Vectors of five numbers: `experiences` of them, by default of two classes and nine samples a class.

    Args:
        paradigm: `class`, `task` or `domain`; in a domain stream every experience has all classes.
        experiences: how many.
        classes: of the whole stream.
        samples: training samples of a class.
        **other: of `streams.datasets.synthetic`.
    """
    data = synthetic(classes=classes, features=5, samples=samples, test_samples=5, seed=1, **other)
    if paradigm == "domain":
        return permuted(data, experiences=experiences, paradigm="domain", seed=2)
    return split(data, experiences=experiences, paradigm=paradigm)


def small(paradigm: Any = "class") -> Stream:
    """What methods are checked on: three experiences of ten samples, the last batch of four smaller than the others."""
    return stream(paradigm, samples=5)


def images(paradigm: str = "class", channels_last: bool = False) -> Stream:
    """Three experiences of two classes of images `[2, 8, 8]`, eight samples a class."""
    generator = torch.Generator().manual_seed(0)
    experiences = []
    for index in range(3):
        inputs = torch.rand(16, 2, 8, 8, generator=generator)
        if channels_last:
            inputs = inputs.to(memory_format=torch.channels_last)
        task = index if paradigm == "task" else None
        data = TensorData(inputs, torch.arange(16) % 2 + 2 * index, task=task)
        experiences.append(Experience(index, data, classes=(2 * index, 2 * index + 1), task=task))
    return Stream(experiences, (2, 8, 8), 6, paradigm)


def numbers(kind: str, tasks: bool = False, rows: int = 40, experiences: int = 3) -> Stream:
    """Experiences in each of which other weights make two targets of five numbers.

    Args:
        kind: `numbers` for targets of any size, `labels` for several labels a row, each 0 or 1.
        tasks: whether experiences have a task label.
        rows: training samples of an experience.
        experiences: how many.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(experiences):
        weight = torch.randn(5, 2, generator=generator)
        parts = []
        for count in (rows, 20):
            inputs = torch.randn(count, 5, generator=generator)
            targets = inputs @ weight
            targets = targets if kind == "numbers" else (targets > 0).float()
            parts.append(TensorData(inputs, targets, task=index if tasks else None))
        train, test = parts
        made.append(Experience(index, train, test, task=index if tasks else None))
    return Stream(made, (5,), 0, "task" if tasks else "domain")


def model(of: Stream, head: str = "fixed", hidden: Sequence[int] = (7,), seed: int = 0, **other: Any) -> nn.Module:
    """A perceptron for a stream, with one hidden layer of seven units."""
    settings: dict[str, Any] = {"input_shape": of.input_shape, "classes": of.classes, "hidden": list(hidden), **other}
    return mlp(**{"head": head, "seed": seed, **settings})


def cnn_for(of: Stream, head: Any = "fixed") -> nn.Module:
    """A small convolutional network for a stream of images."""
    return cnn(input_shape=of.input_shape, classes=of.classes, channels=[4, 6], head=head, seed=0)


def model_for(operations: Iterable[Any]) -> Callable[..., nn.Module]:
    """What makes the model to check these operations (or their classes) with: what one of them asks for, else `model`.

    An operation that cannot work with just any model says which it is to be checked with in `check_model`, a function
    like `model`.
    """
    return next((kind.check_model for kind in operations if hasattr(kind, "check_model")), model)


def paradigm_for(method: Method) -> str:
    """`task` where a method needs task labels, else `class`."""
    return "task" if "task" in method.needs else "class"


def stream_for(method: Method, **other: Any) -> Stream:
    """A stream with task labels if the method needs them."""
    return stream(paradigm_for(method), **other)


def train(method: Method, net: nn.Module, of: Stream, **other: Any) -> Trainer:
    """By the trainer; a last batch of another size is left on purpose.

    Args:
        method: bound here.
        net: trained in place.
        of: the stream.
        **other: settings of the trainer, and `resume`.
    """
    settings = {"optimizer": {"name": "SGD", "lr": 0.05}, "batch_size": 4, "evaluate": "none", "seed": SEED, **other}
    resume = settings.pop("resume", None)
    trainer = Trainer(method, **settings)
    trainer.fit(net, of, resume=resume)
    return trainer


def wrap(
    method: Method,
    net: nn.Module,
    of: Stream,
    optimizer: Optimizers,
    batch_size: int = 4,
    epochs: int = 1,
    seed: int = SEED,
    prepare: bool = True,
    after_step: Callable[[], None] = lambda: None,
    accumulate: int = 1,
    criterion: Callable[..., Tensor] | None = None,
) -> Continual:
    """By a loop of one's own around `Continual`, on the same batches as the trainer.

    Args:
        method: bound here.
        net: trained in place.
        of: the stream.
        optimizer: makes one of the parameters.
        batch_size: rows of a batch.
        epochs: passes over each experience.
        seed: of every random choice.
        prepare: whether the loop calls `cl(x)` with raw inputs, or else the model itself.
        after_step: called after every step of the optimiser.
        accumulate: batches of one step of the optimiser.
        criterion: the loss; default: cross-entropy.
    """
    settings: dict[str, Any] = {"prepare": of.prepare} if prepare else {}
    mover = optimizer(net.parameters())
    cl = Continual(net, method, mover, seed=seed, accumulate=accumulate, criterion=criterion, **settings)
    order_rng = cl.learner.rng("order")
    net.train()
    for experience in of:
        data = cl.begin(experience, epochs=epochs, batch_size=batch_size * accumulate)
        assert data is not None
        total, done = epochs * -(-len(data) // batch_size), 0
        for _ in range(epochs if len(data) else 0):
            order = torch.randperm(len(data), generator=order_rng)
            for batch in data.batches(order, batch_size):
                if done % accumulate == 0:
                    mover.zero_grad()
                outputs = cl(batch.inputs, batch.task) if prepare else net(batch.inputs)
                loss = cl.loss(outputs, batch.targets, batch.inputs)
                cl.backward(loss, batch.targets, inputs=batch.inputs, task=batch.task)
                done += 1
                if done % accumulate == 0 or done == total:
                    mover.step()
                    after_step()
        cl.end()
    return cl


def weights(net: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in the state of `net`."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models are the same to the bit."""
    return not differing(one, other)


def differing(one: nn.Module, other: nn.Module) -> list[str]:
    """The names of the tensors in which two models differ."""
    a, b = one.state_dict(), other.state_dict()
    return [name for name in {**a, **b} if name not in a or name not in b or not torch.equal(a[name], b[name])]


def through_disk(state: Any) -> Any:
    """What comes back after saving and loading, without running any code of the file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def batches(of: Stream, index: int, count: int, size: int = 4, seed: int = 0) -> list[Batch]:
    """`count` random batches of one experience, with its task."""
    data = of[index].train
    generator = torch.Generator().manual_seed(seed)
    return [data.gather(torch.randint(len(data), (size,), generator=generator)) for _ in range(count)]


def global_random_state() -> dict[str, Any]:
    """The state of each library's global random numbers, by name."""
    numpy: Any = np.random.get_state()  # noqa: NPY002
    return {"torch": torch.get_rng_state().tolist(), "random": random.getstate(), "numpy": numpy[1].tolist()}


class KeepAt:
    """Checkpoints that keep the states after chosen steps, as they would come back from disk.

    Args:
        *steps: of the optimiser, counted from 1.

    Attributes:
        states: step -> state.
        watch: called with the step whenever a checkpoint is due, before it is saved.
    """

    def __init__(self, *steps: int, watch: Callable[[int], None] = lambda step: None) -> None:
        self.steps = steps
        self.watch = watch
        self.count = 0  # the step that was asked about last
        self.states: dict[int, Any] = {}
        self._saved = 0

    @property
    def kept(self) -> Any:
        """The first state kept."""
        return next(iter(self.states.values()), None)

    def due(self, seconds: float, steps: int) -> bool:
        """After the chosen steps."""
        self.count = self._saved + steps
        self.watch(self.count)
        return self.count in self.steps

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state`, unless it was saved for another reason: an experience that ended."""
        self._saved = self.count
        if self.count in self.steps and self.count not in self.states:
            self.states[self.count] = through_disk(state)
