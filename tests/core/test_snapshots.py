"""Copies of the model that operations hold: what is written into them is what they answer, also after a resume."""

from __future__ import annotations

import warnings
from copy import deepcopy
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Continual, methods
from holdfast.core.engine import Engine
from holdfast.core.errors import UsageError
from holdfast.core.experience import Experience
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.core.operation import Operation
from holdfast.core.services import Services
from holdfast.core.snapshot import Snapshot, Twin
from holdfast.core.step import Step
from holdfast.models import hypernetwork
from holdfast.models.expanding import ExpandingBackbone
from holdfast.training.lightning_inside import Tasked

X = torch.linspace(-1, 1, 30).view(6, 5)


class AveragedInPlace(Operation):
    """As an outsider would write it: an average of the weights, in the dictionary that a snapshot looks like."""

    needs = frozenset({"boundaries", "update"})
    state = ("average",)

    def __init__(self, write: str = "lerp_") -> None:
        super().__init__()
        self.write = write
        self.average: Any = None

    def begin(self, experience: Experience, learner: Services) -> None:
        if self.average is None:
            self.average = learner.snapshot()

    def update(self, step: Step, learner: Services) -> None:
        for name, value in learner.model.state_dict().items():
            if self.write == "lerp_":
                self.average[name].lerp_(value, 0.25)
            elif self.write == "data":
                self.average[name].data.copy_(0.75 * self.average[name] + 0.25 * value)
            else:
                self.average[name] = 0.75 * self.average[name] + 0.25 * value

    def predict(self, outputs: Tensor, inputs: Any, learner: Services) -> Tensor:
        return learner.forward_as(self.average, inputs)


class ByHand(Operation):
    """The same average in tensors of its own, for comparison."""

    needs = frozenset({"boundaries", "update"})

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    def begin(self, experience: Experience, learner: Services) -> None:
        self.values = self.values or {name: v.clone() for name, v in learner.model.state_dict().items()}

    def update(self, step: Step, learner: Services) -> None:
        for name, value in learner.model.state_dict().items():
            self.values[name] = 0.75 * self.values[name] + 0.25 * value


@pytest.mark.parametrize("write", ["lerp_", "set", "data"])
def test_an_average_that_is_kept_in_a_snapshot_answers_as_the_average(write: str, toy: Any) -> None:
    stream = toy.stream(experiences=2, classes=4)
    operation, by_hand = AveragedInPlace(write), ByHand()
    trainer = toy.train(Method(operation, by_hand), toy.model(stream), stream)
    expected = toy.model(stream)
    expected.load_state_dict(by_hand.values)
    inputs = stream[0].train.gather(torch.arange(6)).inputs
    with trainer.engine.evaluating(), torch.no_grad():
        found = trainer.engine.predict(inputs)
        torch.testing.assert_close(found, expected.eval()(inputs.float()))
        assert not torch.allclose(found, trainer.learner(inputs))


@pytest.mark.parametrize("write", ["lerp_", "set", "data"])
def test_an_average_goes_on_from_a_checkpoint(write: str, toy: Any) -> None:
    stream = toy.stream(experiences=2, classes=4)
    trainer = toy.train(Method(AveragedInPlace(write)), toy.model(stream), stream)
    saved = toy.through_disk(trainer.engine.state())
    assert type(saved["operations"]["averaged_in_place"]["average"]) is dict
    fresh = Engine(Method(AveragedInPlace(write)), Learner(toy.model(stream, seed=9)), NEEDS)
    fresh.load(saved)
    step = Step(X, torch.zeros(6, dtype=torch.int64), torch.zeros(()))
    for engine in (fresh, trainer.engine):
        engine.update(step)
    with fresh.evaluating(), trainer.engine.evaluating():
        torch.testing.assert_close(fresh.predict(X), trainer.engine.predict(X))


@pytest.mark.parametrize("how", ["data", "replaced"])
def test_a_dictionary_that_came_back_from_a_file_answers_with_what_is_written_into_it(how: str) -> None:
    learner = Learner(nn.Linear(5, 3))
    values = {name: value.clone() for name, value in learner.services.snapshot().items()}
    learner.forward_as(values, X)
    if how == "data":
        values["weight"].data.fill_(0.5)
    else:
        values["weight"] = torch.full((3, 5), 0.5)
    expected = X.sum(1, keepdim=True) * 0.5 + values["bias"]
    torch.testing.assert_close(learner.forward_as(values, X), expected)
    values["weight"].mul_(2.0)
    torch.testing.assert_close(learner.forward_as(values, X), X.sum(1, keepdim=True) + values["bias"])


def test_a_snapshot_takes_no_tensor_that_the_model_does_not_have() -> None:
    snapshot = Learner(nn.Linear(5, 3)).services.snapshot()
    with pytest.raises(UsageError, match="no tensor of that name"):
        snapshot["extra"] = torch.zeros(3)
    with pytest.raises(UsageError, match=r"one of shape \(3,\)"):
        snapshot["bias"] = torch.zeros(4)
    with pytest.raises(UsageError, match="keeps every tensor"):
        del snapshot["bias"]


def test_a_snapshot_saved_by_itself_is_read_back_as_tensors(toy: Any) -> None:
    snapshot = Learner(nn.Linear(5, 3)).services.snapshot()
    back = toy.through_disk({"mine": snapshot})["mine"]
    assert back.keys() == snapshot.keys()
    assert all(torch.equal(back[name], value) for name, value in snapshot.items())


class MeanTeacher(Operation):
    """A running average by the twin that the library offers."""

    needs = frozenset({"update"})
    state = ("teacher",)

    def __init__(self, share: float = 0.25) -> None:
        super().__init__()
        self.share = share
        self.teacher: Twin | None = None

    def setup(self, learner: Services) -> None:
        self.teacher = learner.twin()

    def update(self, step: Step, learner: Services) -> None:
        assert self.teacher is not None
        self.teacher.average(self.share)

    def predict(self, outputs: Tensor, inputs: Any, learner: Services) -> Tensor:
        assert self.teacher is not None
        return self.teacher(inputs)


def test_a_mean_teacher_follows_a_head_that_grows_and_a_checkpoint(toy: Any) -> None:
    stream = toy.stream(experiences=3, classes=6)
    trainer = toy.train(Method(MeanTeacher()), toy.model(stream, "growing"), stream)
    inputs = stream[0].train.gather(torch.arange(6)).inputs
    with trainer.engine.evaluating():
        expected = trainer.engine.predict(inputs)
    assert expected.shape == (6, 6)
    saved = toy.through_disk(trainer.engine.state())
    fresh = Engine(Method(MeanTeacher()), Learner(toy.model(stream, "growing", seed=9)), NEEDS)
    fresh.load(saved)
    with fresh.evaluating():
        assert torch.equal(fresh.predict(inputs), expected)


def test_what_was_called_twin_before_is_still_a_module_for_one_release() -> None:
    learner = Learner(nn.Linear(5, 3))
    with pytest.warns(DeprecationWarning, match=r"twin\.module\.weight"):
        weight = learner.services.twin().weight
    assert torch.equal(weight, learner.model.weight)
    with pytest.warns(DeprecationWarning, match="forward_of"):
        outputs = learner.services.forward_of(learner.services.twin(), X)
    assert torch.equal(outputs, learner(X))


def test_a_snapshot_moves_with_the_operation_that_holds_it() -> None:
    class Holder(Operation):
        state = ("teacher",)

        def __init__(self) -> None:
            super().__init__()
            self.teacher: Snapshot | None = None

    learner = Learner(nn.Linear(5, 3))
    holder = Holder()
    holder.teacher = learner.services.snapshot()
    holder.to(torch.float64)
    assert holder.teacher["weight"].dtype == torch.float64
    assert holder.teacher(X.double()).dtype == torch.float64


WAYS = ["forward", "default", "partial", "method", "weight norm", "hook"]


def adapted(how: str) -> nn.Module:
    """A frozen layer and two trainable factors beside it, put there in the ways in which people do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8).requires_grad_(False), nn.Tanh(), nn.Linear(8, 4))
    layer, down, up = model[0], nn.Linear(5, 2, bias=False), nn.Linear(2, 8, bias=False)
    layer.factors = nn.ModuleList([down, up])  # type: ignore[assignment]
    before, factors = layer.forward, [down, up]
    if how == "forward":
        layer.forward = lambda x: before(x) + up(down(x))  # type: ignore[method-assign]
    elif how == "default":
        layer.forward = lambda x, first=before, parts=factors: first(x) + parts[1](parts[0](x))  # type: ignore[misc]
    elif how == "partial":
        layer.forward = partial(lambda old, parts, x: old(x) + parts[1](parts[0](x)), before, factors)  # type: ignore[method-assign]
    elif how == "method":
        layer.forward = MethodType(lambda self, x: before(x) + up(down(x)), layer)  # type: ignore[method-assign]
    elif how == "weight norm":  # its weight is a tensor within the graph of the last forward
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(up)
        layer.register_forward_hook(lambda module, args, out: out + up(down(args[0])))
    else:

        def kept(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            module.seen = {"last": [out + factors[1](factors[0](args[0]))]}  # type: ignore[assignment]
            return module.seen["last"][0]  # type: ignore[index, return-value]

        layer.register_forward_hook(kept)
    return model


@pytest.mark.parametrize("how", WAYS)
def test_a_teacher_and_an_export_stay_as_they_were_where_functions_hold_the_adapters(how: str) -> None:
    model = adapted(how)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    cl = Continual(model, methods.lwf(), optimizer=optimizer)
    for classes in ((0, 1), (2, 3)):
        cl.begin(classes=classes)
        for _ in range(3):
            optimizer.zero_grad()
            cl.backward(F.cross_entropy(model(X), labels := torch.tensor(classes * 3)), labels, inputs=X)
            optimizer.step()
        cl.end()
        if classes == (0, 1):
            expected, exported, teacher = cl.predict(X), cl.export(), cl.learner.snapshot()
    assert not torch.allclose(model(X), expected, atol=1e-2)
    factors = [p.grad for p in model[0].factors.parameters()]  # type: ignore[union-attr, operator]
    assert all(grad is not None and bool(grad.any()) for grad in factors)
    for answers in (teacher(X), exported(X), deepcopy(teacher)(X)):
        torch.testing.assert_close(answers, expected)


@pytest.mark.parametrize("made", ["teacher", "frozen copy", "wrapped", "cut backbone"])
@pytest.mark.parametrize("how", WAYS)
def test_every_copy_of_a_users_module_is_apart_from_it(how: str, made: str) -> None:
    model = adapted(how)
    model(X).sum().backward()  # so that what it keeps of a forward is in a graph
    copied: Any
    if made == "teacher":
        copied = Learner(model).services.snapshot()
    elif made == "wrapped":
        copied = deepcopy(Tasked(model)).module
    elif made == "cut backbone":
        copied = hypernetwork(input_shape=(5,), classes=4, backbone=model, cut=1).below
    else:
        body = ExpandingBackbone(model, nn.Parameter(torch.zeros(1, 4, 4)))
        body.duplicate()
        copied = body.frozen[0]
    expected = copied(X).detach().clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(copied(X), expected)
    assert made == "cut backbone" or not torch.allclose(model(X), expected)
