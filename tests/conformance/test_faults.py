"""Each check of `holdfast.testing` finds the fault it is for, and passes what lacks only that fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast import Every, Method, Operation, Stream
from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Experience
from holdfast.core.method import published
from holdfast.core.source import Arrays
from holdfast.metrics import Metric
from holdfast.streams.data import TensorData
from holdfast.testing import (
    BOUNDARY_CHECKS,
    METHOD_CHECKS,
    METRIC_CHECKS,
    OPERATION_CHECKS,
    SOURCE_CHECKS,
    STREAM_CHECKS,
    CheckError,
    check_boundary,
    check_method,
    check_metric,
    check_operation,
    check_source,
    check_stream,
)


def sees(check, of, name: str, sentence: str, **arguments: Any) -> None:
    """The check called `name` fails, and says so in these words."""
    with pytest.raises(CheckError) as caught:
        check(of, only=[name], **arguments)
    assert list(caught.value.failures) == [name]
    assert sentence in caught.value.failures[name]


# Operations ------------------------------------------------------------------------------------------------


class Shrink(Operation):
    """Weight decay as a loss: nothing is wrong with it.

    Args:
        strength: of the decay.
    """

    role = "knowledge retention"

    def __init__(self, strength: float = 0.01) -> None:
        super().__init__()
        self.strength = strength

    def loss(self, step, learner):
        return self.strength * sum(p.square().sum() for p in learner.parameters())


class Undocumented(Shrink):
    __doc__ = None


class Forgetful(Shrink):
    """Takes an argument and does not store it.

    Args:
        strength: of the decay.
    """

    def __init__(self, strength: float = 0.01) -> None:
        Operation.__init__(self)
        self.kept = strength


class Doubling(Shrink):
    """Stores another value than it was given.

    Args:
        strength: of the decay.
    """

    def __init__(self, strength: float = 0.01) -> None:
        super().__init__(2 * strength)


class Nameless(Shrink):
    """Shows nothing of what it was made with."""

    def __repr__(self) -> str:
        return "an operation"


class Sets(Operation):
    """Takes a set, which JSON does not have.

    Args:
        layers: numbers of layers.
    """

    def __init__(self, layers: frozenset = frozenset({1, 2})) -> None:
        super().__init__()
        self.layers = layers


class Magic(Shrink):
    """Has a role that does not exist."""

    role = "magic"


class Unset(Shrink):
    """Declares a state that it never sets."""

    state = ("average",)


class Idle(Operation):
    """Brings a loss without a gradient."""

    def criterion(self, outputs, targets, inputs, learner):
        return 0.0 * outputs.sum()


class Scratched(Operation):
    """Calls a counter scratch that is not worked out anew."""

    scratch = ("steps",)

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def loss(self, step, learner):
        self.steps += 1
        return step.loss * (0.1 * self.steps)


class Tupled(Operation):
    """Keeps a tensor where no move reaches it."""

    state = ("kept",)

    def __init__(self) -> None:
        super().__init__()
        self.kept = (torch.zeros(2),)

    def observe(self, step, learner):
        self.kept = (step.loss.detach() + torch.zeros(2),)


class Graph(Operation):
    """Keeps a loss with the graph it was computed by."""

    state = ("last",)

    def __init__(self) -> None:
        super().__init__()
        self.last = None

    def observe(self, step, learner):
        self.last = step.loss


class Leaking(Operation):
    """Keeps a tensor of every step."""

    state = ("losses",)

    def __init__(self) -> None:
        super().__init__()
        self.losses = []

    def observe(self, step, learner):
        self.losses.append(step.loss.detach())


class Noisy(Operation):
    """Draws from torch's global random numbers."""

    def loss(self, step, learner):
        return step.loss * torch.rand(())


COUNTED = [0]


class OutOfSight(Operation):
    """Counts its steps where nobody can see it, and does something else after some."""

    def setup(self, learner):
        COUNTED[0] = 0

    def loss(self, step, learner):
        COUNTED[0] += 1
        return step.loss * (0.5 if COUNTED[0] > 20 else 1.0)


class Curt(Shrink):
    """Refuses a head per task, and does not say what to write instead."""

    def setup(self, learner):
        if learner.multi_head:
            raise ConfigError("no")


class Peeking(Operation):
    """Changes inputs only where the targets are there before the forward, which depends on the loop."""

    def batch(self, batch, learner):
        return batch if batch.targets is None else replace(batch, inputs=2 * batch.inputs)


class Wanting(Shrink):
    """Needs what nobody has heard of."""

    needs = frozenset({"luck"})


class Warning_(Shrink):
    """Takes a way that torch warns of."""

    def loss(self, step, learner):
        return F.l1_loss(step.loss.reshape(1, 1), torch.zeros(1, 2, dtype=step.loss.dtype))


class Halved(Operation):
    """Keeps outputs as they come, which under autocast are half numbers."""

    state = ("outputs",)

    def __init__(self) -> None:
        super().__init__()
        self.outputs = None

    def observe(self, step, learner):
        self.outputs = step.outputs.detach()


class Single(Operation):
    """Multiplies by single-precision numbers of its own."""

    def loss(self, step, learner):
        return 0.01 * (step.outputs @ torch.ones(step.outputs.shape[1], 1)).square().mean()


class Viewing(Shrink):
    """Takes what a convolution gives for contiguous."""

    def setup(self, learner):
        for part in learner.model.modules():
            if isinstance(part, nn.Conv2d):
                part.register_forward_hook(lambda layer, inputs, outputs: None if outputs.view(-1).numel() else outputs)


class Counting(Operation):
    """Works with class labels and does not say so."""

    def loss(self, step, learner):
        return step.loss * torch.bincount(step.targets).max()


class Alone(Shrink):
    """Takes for granted that no rows of other operations are in the batch."""

    def loss(self, step, learner):
        assert not step.extras, "rows of others"
        return super().loss(step, learner)


OPERATIONS = {
    "documented": (Undocumented, "has no docstring"),
    "arguments": (Forgetful, "does not store it"),
    "clone": (Doubling, "has other arguments"),
    "repr": (Nameless, "does not evaluate"),
    "json": (Sets, "cannot be written as JSON"),
    "declared": (Magic, "has role 'magic'"),
    "state": (Unset, "never sets it"),
    "first_step": (Idle, "moves no weight"),
    "resume": (Scratched, "ends with other weights than in one go"),
    "device": (Tupled, "kept[0] is torch.float32 after .to(torch.float64)"),
    "graph": (Graph, "keeps last with the graph"),
    "random": (Noisy, "draws from the global random numbers of torch"),
    "captured": (OutOfSight, "where its steps are recorded and run again"),
    "stacked": (OutOfSight, "of two that are trained at once"),
    "heads": (Curt, "refused with a head per task, but in no sentence"),
    "ways": (Peeking, "are others than the trainer's"),
    "ways_growing": (Peeking, "are others than the trainer's"),
    "ways_task": (Peeking, "are others than the trainer's"),
    "lightning": (Peeking, "are others than the trainer's"),
    "accumulate": (Peeking, "with two accumulated batches a step ends with other"),
    "needs": (Wanting, "luck"),
    "optimizers": (Warning_, "UserWarning"),
    "half": (Halved, "in half precision"),
    "double": (Single, "same dtype"),
    "channels_last": (Viewing, "view size is not compatible"),
    "targets": (Counting, "bincount"),
    "beside": (Alone, "breaks: AssertionError: rows of others"),
}
"""Check -> an operation that it must find wrong, and a part of what it says."""

SLOW = pytest.mark.slow


def cases(table, slow=("lightning", "stacked")):
    """The names of a table as parameters, those that take long marked."""
    return [pytest.param(name, marks=[SLOW] if name in slow else []) for name in table]


def test_every_check_of_operations_has_a_fault_to_find() -> None:
    assert set(OPERATIONS) == set(OPERATION_CHECKS)


@pytest.mark.parametrize("name", cases(OPERATIONS))
def test_a_fault_of_an_operation_is_found(name: str) -> None:
    kind, sentence = OPERATIONS[name]
    sees(check_operation, kind, name, sentence)


@pytest.mark.parametrize("name", cases(OPERATIONS, slow=("lightning", "stacked", "ways", "ways_growing", "beside")))
def test_an_operation_without_a_fault_passes(name: str) -> None:
    assert check_operation(Shrink, only=[name]) == {name: "passed"}


def test_a_tensor_kept_at_every_step_is_found() -> None:
    sees(check_operation, Leaking, "graph", "keeps tensors of each step")


# Methods ---------------------------------------------------------------------------------------------------


class Unclonable(Method):
    """Its clone is itself."""

    def clone(self) -> Method:
        return self


class Mute(Method):
    """Shows nothing of its operations."""

    def __repr__(self) -> str:
        return "a method"


def shrinking(strength: float = 0.01) -> Method:
    """Weight decay: nothing is wrong with it.

    Args:
        strength: of the decay.
    """
    return Method(Shrink(strength))


def no_words(strength: float = 0.01) -> Method:
    return Method(Shrink(strength))


@published(paper="Nobody, Nothing, Nowhere 2000")
def by_sets(layers: frozenset = frozenset({1, 2})) -> Method:
    """A method that takes a set.

    Args:
        layers: numbers of layers.
    """
    return Method(Shrink(0.01 * len(layers)))


METHODS = {
    "documented": (no_words, "has no docstring"),
    "clone": (lambda: Unclonable(Shrink()), "shares operations with its clone"),
    "repr": (lambda: Mute(Shrink()), "does not evaluate"),
    "json": (by_sets, "cannot be written as JSON"),
}


def test_every_check_of_methods_has_a_fault_to_find() -> None:
    assert set(METHODS) | (set(OPERATIONS) & set(METHOD_CHECKS)) == set(METHOD_CHECKS)


@pytest.mark.parametrize("name", METHODS)
def test_a_fault_of_a_method_is_found(name: str) -> None:
    factory, sentence = METHODS[name]
    sees(check_method, factory, name, sentence)


@pytest.mark.parametrize("name", cases(name for name in OPERATIONS if name in METHOD_CHECKS and name not in METHODS))
def test_a_fault_of_an_operation_is_found_in_a_method_of_it(name: str) -> None:
    kind, sentence = OPERATIONS[name]
    sees(check_method, Method(kind()), name, sentence)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_without_a_fault_passes(name: str) -> None:
    assert check_method(shrinking, only=[name])[name] in (
        "passed",
        "does not apply: it is not decorated with @published",
    )


# Streams ---------------------------------------------------------------------------------------------------


def good_stream(rows: int = 8, seed: int = 0) -> Stream:
    """Two experiences of two classes: nothing is wrong with it.

    Args:
        rows: of each experience.
        seed: of the inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(2):
        targets = torch.arange(rows) % 2 + 2 * index
        parts = [TensorData(torch.randn(rows, 5, generator=generator), targets) for _ in range(2)]
        made.append(Experience(index, *parts, classes=(2 * index, 2 * index + 1)))
    return Stream(made, (5,), 4)


def no_words_stream(rows: int = 8) -> Stream:
    return good_stream(rows)


def object_stream(rows: object = frozenset({8})) -> Stream:
    """Takes a set.

    Args:
        rows: of each experience.
    """
    return good_stream(*rows)


def wrong_classes(rows: int = 8) -> Stream:
    """Announces classes that it does not have.

    Args:
        rows: of each experience.
    """
    stream = good_stream(rows)
    return replace(stream, experiences=[replace(one, classes=(0, 3)) for one in stream])


def random_stream(rows: int = 8) -> Stream:
    """Draws from torch's global random numbers.

    Args:
        rows: of each experience.
    """
    return good_stream(rows, int(torch.randint(100, ())))


def undescribable(rows: int = 8) -> Stream:
    """Describes itself by a tensor.

    Args:
        rows: of each experience.
    """
    return replace(good_stream(rows), description={"rows": torch.tensor(rows)})


MADE = iter(range(10**6))


def never_the_same(rows: int = 8) -> Stream:
    """Another stream whenever it is made.

    Args:
        rows: of each experience.
    """
    return good_stream(rows, next(MADE))


STREAMS = {
    "documented": (no_words_stream, "has no docstring"),
    "arguments": (object_stream, "which no JSON can hold"),
    "consistent": (wrong_classes, "announces the classes (0, 3)"),
    "repeatable": (random_stream, "draws from the global random numbers of torch"),
    "described": (undescribable, "cannot be written as JSON"),
    "trained": (never_the_same, "a model ends with other weights"),
}


def test_every_check_of_streams_has_a_fault_to_find() -> None:
    assert set(STREAMS) == set(STREAM_CHECKS)


@pytest.mark.parametrize("name", STREAMS)
def test_a_fault_of_a_stream_is_found(name: str) -> None:
    factory, sentence = STREAMS[name]
    sees(check_stream, factory, name, sentence)


def test_a_stream_without_a_fault_passes() -> None:
    assert check_stream(good_stream) == dict.fromkeys(STREAM_CHECKS, "passed")


def test_a_stream_that_differs_when_it_is_made_again_is_not_repeatable() -> None:
    sees(check_stream, never_the_same, "repeatable", "when it is made again")


# Metrics ---------------------------------------------------------------------------------------------------


def worst(record) -> float | None:
    """The smallest accuracy of a run."""
    values = record.accuracy[np.isfinite(record.accuracy)]
    return float(values.min()) if values.size else None


def breaking(record) -> float:
    """Takes for granted that something was evaluated."""
    return float(record.accuracy[-1, -1])


def overwriting(record) -> float | None:
    """Changes the matrix it reads."""
    record.accuracy[...] = np.nan_to_num(record.accuracy) + 1
    return worst(record)


METRICS = {
    "documented": (lambda: Metric(worst, "up", "short"), "Write one line of what it measures"),
    "total": (lambda: Metric(breaking, "up", "the last accuracy of a run"), "it raises"),
    "pure": (lambda: Metric(overwriting, "up", "the smallest accuracy of a run"), "on "),
}


def test_every_check_of_metrics_has_a_fault_to_find() -> None:
    assert set(METRICS) == set(METRIC_CHECKS)


@pytest.mark.parametrize("name", METRICS)
def test_a_fault_of_a_metric_is_found(name: str) -> None:
    make, sentence = METRICS[name]
    sees(check_metric, make(), name, sentence)


def test_a_metric_without_a_fault_passes() -> None:
    metric = Metric(worst, "up", "the smallest accuracy of a run")
    assert check_metric(metric) == dict.fromkeys(METRIC_CHECKS, "passed")


# Boundaries ------------------------------------------------------------------------------------------------


class Wordless(Every):
    __doc__ = None


class Hidden(Every):
    """Does not show how many steps it counts.

    Args:
        steps: between two boundaries.
    """

    def __init__(self, steps: int = 5) -> None:
        super().__init__(steps)

    def __repr__(self) -> str:
        return "Hidden()"


class Counted(Boundary):
    """Answers with a number.

    Args:
        steps: between two boundaries.
    """

    def __init__(self, steps: int = 5) -> None:
        self.steps = steps
        self.window = 16
        self.count = 0

    def crossed(self, step):
        self.count += 1
        return int(self.count % self.steps == 0)

    def state(self):
        return {"count": self.count}

    def load(self, state):
        self.count = state["count"]


class Restarting(Counted):
    """Begins to count anew after a checkpoint."""

    def crossed(self, step):
        return bool(super().crossed(step))

    def state(self):
        return {}

    def load(self, state):
        pass


class ClassesOnly(Counted):
    """Breaks on targets that are no classes."""

    def crossed(self, step):
        return int(torch.bincount(step.targets).max()) > 10


BOUNDARIES = {
    "documented": (Wordless, "has no docstring"),
    "repr": (Hidden, "does not tell the argument 'steps'"),
    "decides": (Counted, "answers with int"),
    "state": (Restarting, "decides otherwise than one that went on"),
    "trains": (Restarting, "ends with other weights"),
    "numbers": (ClassesOnly, "bincount"),
}


def test_every_check_of_boundaries_has_a_fault_to_find() -> None:
    assert set(BOUNDARIES) == set(BOUNDARY_CHECKS)


@pytest.mark.parametrize("name", BOUNDARIES)
def test_a_fault_of_a_boundary_is_found(name: str) -> None:
    kind, sentence = BOUNDARIES[name]
    sees(check_boundary, kind, name, sentence, steps=6)


# Sources ---------------------------------------------------------------------------------------------------


class Fixed(Arrays):
    """Nine batches: nothing is wrong with them.

    Args:
        size: rows of a batch.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__(torch.arange(36.0).reshape(18, 2), torch.arange(18) % 3, batch_size=size)


class Silent(Fixed):
    __doc__ = None


class Uncounted(Fixed):
    """Does not tell how many batches were given."""

    def position(self):
        return {**super().position(), "batches": 1}


class Overstated(Fixed):
    """Says that it has one batch more than it gives."""

    def __init__(self, size: int = 2) -> None:
        super().__init__(size)
        self.length += 1


class Rewound(Fixed):
    """Goes back to its beginning, wherever it is sent."""

    def seek(self, position):
        super().seek({**position, "batches": 0})

    def position(self):
        return {**super().position(), "batches": 3}


class ClosedOnce(Fixed):
    """Cannot be closed twice."""

    def __init__(self, size: int = 2) -> None:
        super().__init__(size)
        self.file = [1]

    def close(self):
        self.file.pop()


class Shaken(Fixed):
    """Draws from torch's global random numbers."""

    def batches(self):
        for batch in super().batches():
            yield replace(batch, inputs=batch.inputs + torch.rand(()))


SOURCES = {
    "documented": (Silent, "has no docstring"),
    "counts": (Uncounted, "Count `batches`"),
    "length": (Overstated, "says that it has 10 batches, and gives 9"),
    "seeks": (Rewound, "gives other batches after seek"),
    "closes": (ClosedOnce, "pop from empty list"),
    "random": (Shaken, "draws from the global random numbers of torch"),
}


def test_every_check_of_sources_has_a_fault_to_find() -> None:
    assert set(SOURCES) == set(SOURCE_CHECKS)


@pytest.mark.parametrize("name", SOURCES)
def test_a_fault_of_a_source_is_found(name: str) -> None:
    kind, sentence = SOURCES[name]
    sees(check_source, kind, name, sentence)


def test_a_source_without_a_fault_passes() -> None:
    assert check_source(Fixed) == dict.fromkeys(SOURCE_CHECKS, "passed")
