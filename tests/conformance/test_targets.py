"""Targets that are no class indices: every method learns numbers and several labels a row, or says that it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import holdfast.methods
from holdfast.core.errors import ConfigError, NeedError
from holdfast.core.experience import Experience, Stream
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.metrics import compute
from holdfast.models import mlp
from holdfast.operations import FisherPenalty, Remember, Replay
from holdfast.operations._parts.fisher import fisher_diagonal
from holdfast.streams.data import TensorData
from holdfast.training import Continual, Trainer

CRITERIA = {"numbers": F.mse_loss, "labels": F.binary_cross_entropy_with_logits}
EPOCHS = 5


def stream(kind: str, tasks: bool = False, rows: int = 40) -> Stream:
    """Three experiences, in each of which other weights make two targets of the same inputs."""
    generator = torch.Generator().manual_seed(0)
    experiences = []
    for index in range(3):
        weight = torch.randn(5, 2, generator=generator)

        def part(count: int, weight: torch.Tensor = weight, task: int | None = index if tasks else None) -> TensorData:
            inputs = torch.randn(count, 5, generator=generator)
            targets = inputs @ weight
            return TensorData(inputs, targets if kind == "numbers" else (targets > 0).float(), task=task)

        experiences.append(Experience(index, part(rows), part(20), task=index if tasks else None))
    return Stream(experiences, (5,), 0, "task" if tasks else "domain")


def model() -> torch.nn.Module:
    return mlp(input_shape=(5,), classes=2, hidden=[16], seed=0)


def trained(method: Method, of: Stream, kind: str, net: torch.nn.Module) -> Trainer:
    settings: dict[str, Any] = {"optimizer": {"name": "Adam", "lr": 0.02}, "batch_size": 8, "epochs": EPOCHS}
    trainer = Trainer(method, criterion=CRITERIA[kind], **settings)
    trainer.fit(net, of)
    return trainer


def looped(method: Method, of: Stream, kind: str, net: torch.nn.Module) -> Continual:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    cl = Continual(net, method, optimizer, criterion=CRITERIA[kind])
    order_rng = cl.learner.rng("order")
    net.train()
    for experience in of:
        data = cl.begin(experience, epochs=EPOCHS, batch_size=8)
        for _ in range(EPOCHS if len(data) else 0):
            for batch in data.batches(torch.randperm(len(data), generator=order_rng), 8):
                optimizer.zero_grad()
                loss = cl.loss(cl(batch.inputs, batch.task), batch.targets, batch.inputs)
                cl.backward(loss, batch.targets, inputs=batch.inputs, task=batch.task)
                optimizer.step()
        cl.end()
    return cl


@pytest.mark.basic
@pytest.mark.parametrize("kind", CRITERIA)
def test_every_method_learns_such_targets_in_every_loop_or_says_that_it_needs_class_labels(
    method_name: str, kind: str
) -> None:
    factory = getattr(holdfast.methods, method_name)
    of = stream(kind, tasks="task" in factory().needs)
    if "classes" in factory().needs:
        for run in (trained, looped):
            with pytest.raises(NeedError, match=f"`{method_name}`.*{NEEDS['classes']}"):
                run(factory(), of, kind, model())
        return
    asked = next((one.check_model for one in factory() if hasattr(one, "check_model")), None)
    nets = [model() if asked is None else asked(of, classes=2, hidden=[16]) for _ in range(2)]
    trainer = trained(factory(), of, kind, nets[0])
    looped(factory(), of, kind, nets[1])
    events = [event for event in trainer.events if event["event"] == "evaluate"]
    losses = {(event["after"], event["experience"]): event["loss"] for event in events}
    assert all(torch.tensor(list(losses.values())).isfinite())
    if trainer.engine.index:
        assert min(losses[index, index] / losses[-1, index] for index in range(3)) < 0.7
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[name]), name


def test_what_needs_class_labels_is_refused_before_the_first_step_and_by_a_criterion_nobody_knows_at_begin() -> None:
    needing = [name for name in holdfast.methods.__all__ if "classes" in getattr(holdfast.methods, name)().needs]
    assert len(needing) > 5
    assert len(needing) < len(holdfast.methods.__all__) - 20
    for name in needing:
        method = getattr(holdfast.methods, name)()
        if "task" in method.needs:
            continue
        net = model()
        with pytest.raises(NeedError, match="class labels"):
            Continual(net, method, torch.optim.SGD(net.parameters(), lr=0.1), criterion=torch.nn.MSELoss())
        net = model()
        cl = Continual(net, method.clone(), torch.optim.SGD(net.parameters(), lr=0.1), criterion=lambda a, b: a.sum())
        with pytest.raises(NeedError, match="class labels"):
            cl.begin(stream("numbers")[0].train, epochs=1, batch_size=8)


def test_a_loop_without_boundaries_refuses_numbers_where_classes_are_needed() -> None:
    net = model()
    cl = Continual(net, holdfast.methods.er_ace(), criterion=lambda outputs, targets: (outputs - targets).abs().mean())
    net.train()
    batch = stream("numbers")[0].train.gather(torch.arange(4))
    with pytest.raises(NeedError, match="class labels"):
        cl.backward(F.mse_loss(net(batch.inputs), batch.targets), batch.targets, inputs=batch.inputs)


@pytest.mark.parametrize(
    ("kind", "key"), [("numbers", "average_explained_variance"), ("labels", "average_labels_right")]
)
def test_forgetting_is_measured_by_the_loss_and_replay_and_ewc_forget_less(kind: str, key: str) -> None:
    """Three functions of the same inputs cannot all be learnt by one network: what is kept costs what is new."""
    measures = {}
    for name, method in (
        ("finetune", holdfast.methods.finetune()),
        ("er", holdfast.methods.er(capacity=120, size=24)),
        ("ewc", holdfast.methods.ewc(strength=100.0)),
    ):
        of = stream(kind, rows=120)
        measures[name] = compute(trained(method, of, kind, model()).events)
    assert all(found[key] is not None for found in measures.values())
    assert measures["finetune"]["loss_increase"] is not None
    for name in ("er", "ewc"):
        assert measures[name]["loss_increase"] < 0.7 * measures["finetune"]["loss_increase"]
    assert measures["er"]["average_loss"] < measures["finetune"]["average_loss"]
    assert measures["er"]["average_accuracy"] is None


def test_measures_of_numbers_are_those_written_out() -> None:
    of = stream("numbers")
    net = model()
    trainer = trained(holdfast.methods.finetune(), of, "numbers", net)
    event = [event for event in trainer.events if event["event"] == "evaluate"][-1]
    batch = of[2].test.gather(torch.arange(20))
    with torch.no_grad():
        outputs = net.eval()(batch.inputs)
    absolute = sum(abs(float(outputs[i, j] - batch.targets[i, j])) for i in range(20) for j in range(2)) / 40
    explained = []
    for j in range(2):
        mean = float(batch.targets[:, j].mean())
        spread = sum((float(value) - mean) ** 2 for value in batch.targets[:, j])
        error = sum((float(outputs[i, j]) - float(batch.targets[i, j])) ** 2 for i in range(20))
        explained.append(1 - error / spread)
    assert event["absolute_error"] == pytest.approx(absolute, rel=1e-5)
    assert event["explained_variance"] == pytest.approx(sum(explained) / 2, rel=1e-4)


# Fisher diagonals beyond class indices --------------------------------------------------------------------


def _by_loops(net: torch.nn.Module, data: TensorData, kind: str) -> dict[str, torch.Tensor]:
    """The Gauss-Newton diagonal: for each sample and output the squared gradient of that output, weighted."""
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    inputs = data.gather(torch.arange(len(data))).inputs
    for row in inputs:
        outputs = net(row.unsqueeze(0))[0]
        for place in range(2):
            weight = 2.0
            if kind == "labels":
                p = float(outputs[place].detach().sigmoid())
                weight = p * (1 - p)
            grads = torch.autograd.grad(outputs[place], list(net.parameters()), retain_graph=True)
            for (name, _), grad in zip(net.named_parameters(), grads, strict=True):
                total[name] += weight / 2 * grad.square() / len(inputs)
    return total


@pytest.mark.parametrize("closed_form", [True, False])
@pytest.mark.parametrize("kind", CRITERIA)
def test_the_exact_fisher_diagonal_of_numbers_and_of_several_labels_is_the_one_by_loops(
    kind: str, closed_form: bool
) -> None:
    net, data = model(), stream(kind, rows=7)[0].train
    found = fisher_diagonal(Learner(net, criterion=CRITERIA[kind]), data, "exact", closed_form=closed_form)
    for name, expected in _by_loops(net, data, kind).items():
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", CRITERIA)
def test_drawn_targets_and_the_models_own_give_the_exact_fisher_diagonal_in_the_mean(kind: str) -> None:
    net = model()
    learner = Learner(net, criterion=CRITERIA[kind])
    data = stream(kind, rows=4)[0].train
    exact = fisher_diagonal(learner, data, "exact")
    many = data.subset(torch.arange(4).repeat(3000))
    drawn = fisher_diagonal(learner, many, "true", generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        inputs = many.gather(torch.arange(len(many))).inputs
        outputs, generator = net(inputs), torch.Generator().manual_seed(2)
    if kind == "numbers":
        own = outputs + 0.5**0.5 * torch.randn(outputs.shape, generator=generator)
    else:
        own = (torch.rand(outputs.shape, generator=generator) < outputs.sigmoid()).float()
    empirical = fisher_diagonal(learner, TensorData(inputs, own), "empirical")
    for name, expected in exact.items():
        scale = float(expected.max())
        assert torch.allclose(drawn[name], expected, atol=0.06 * scale)
        assert torch.allclose(empirical[name], expected, atol=0.06 * scale)


def test_a_criterion_that_says_no_distribution_is_refused_before_the_first_step_except_for_the_datas_own_targets() -> (
    None
):
    of = stream("numbers")
    with pytest.raises(ConfigError, match=r"l1_loss says no distribution.*fisher='empirical'"):
        Trainer(Method(FisherPenalty()), criterion=F.l1_loss).fit(model(), of)
    weighted = torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(2))
    with pytest.raises(ConfigError, match="BCEWithLogitsLoss says no distribution"):
        Trainer(Method(FisherPenalty(fisher="exact")), criterion=weighted).fit(model(), stream("labels"))
    trainer = Trainer(Method(FisherPenalty(fisher="empirical")), criterion=F.l1_loss, evaluate="none")
    trainer.fit(model(), of)
    assert float(trainer.method.operations[0].importance["head.weight"].sum()) > 0


def test_numbers_are_remembered_as_they_are_and_replayed_under_the_criterion_of_the_loop() -> None:
    of = stream("numbers")
    net = model()
    trainer = trained(Method(Replay(size=4), Remember(capacity=300)), of, "numbers", net)
    held = trainer.learner.memory.all()
    assert held["targets"].dtype == torch.float32
    assert held["targets"].shape[1:] == (2,)
    seen = torch.cat([experience.train.targets for experience in of])
    assert all(bool((seen == row).all(1).any()) for row in held["targets"])
    replayed = float(trainer.learner.loss_on(held["inputs"], held["targets"]).detach())
    assert replayed == pytest.approx(float(F.mse_loss(net(held["inputs"]), held["targets"]).detach()))
