"""Building blocks, task helpers and the unlabelled stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import Continual, Every, methods
from holdfast.compat.streamedml import ContinualLearner, EpisodicMemory
from holdfast.compat.synapse import TaskDict, masked_accuracy, masked_cross_entropy
from holdfast.core.errors import ConfigError, NeedError, UsageError
from holdfast.training.endless import StreamTrainer


class Auto(ContinualLearner):
    """An autoencoder as StreamedML's: it returns the code, the reconstruction and something more."""

    def __init__(self, **options: Any) -> None:
        super().__init__(output=lambda found: found[1], **options)
        self.encoder, self.decoder = nn.Linear(6, 3), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        code = self.encoder(x).tanh()
        return code, self.decoder(code), None


@pytest.fixture
def x() -> Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


# Building blocks -------------------------------------------------------------------------------------------


def test_the_fisher_diagonal_is_the_mean_squared_gradient_of_single_samples(x: Tensor) -> None:
    net = Auto(gamma=0.5)
    assert net.ewc_loss() == 0
    net.train()
    net.estimate_fisher((x, x), F.mse_loss)
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for row in x:
        grads = torch.autograd.grad(F.mse_loss(net(row[None])[1], row[None]), list(net.parameters()))
        for total, grad in zip(expected.values(), grads):
            total += grad**2 / len(x)
    for name, value in expected.items():
        torch.testing.assert_close(net.fisher[name], value)
    assert net.training
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    loss = net.ewc_loss()
    torch.testing.assert_close(loss, 0.5 * sum((f * 0.1**2).sum() for f in expected.values()), rtol=1e-4, atol=1e-8)
    loss.backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, expected[name] * 0.1, rtol=1e-4, atol=1e-8)
    net.estimate_fisher([(x[:10], x[:10])], F.mse_loss)
    assert all((net.fisher[name] >= 0.5 * value).all() for name, value in expected.items())


def test_what_was_measured_is_saved_with_the_weights(x: Tensor) -> None:
    net, other = Auto(), Auto()
    net.estimate_fisher((x, x), F.mse_loss)
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        for a, b in zip(net.parameters(), other.parameters()):
            a.add_(1)
            b.add_(1)
    assert net.ewc_loss() == other.ewc_loss() > 0


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_step_after_overwriting_does_not_raise_the_old_loss(x: Tensor, layerwise: bool) -> None:
    net = Auto()
    old, new = x[:10], x[10:] * -3
    for zero in (True, False):
        measure = net.calculate_ref_gradients_layerwise if layerwise else net.calculate_ref_gradients
        expected = F.mse_loss(net(old)[1], old)
        assert torch.allclose(measure([(old[:4], old[:4]), (old[4:], old[4:])], F.mse_loss), expected)
        reference = torch.autograd.grad(F.mse_loss(net(old)[1], old), list(net.parameters()))
        net.zero_grad(set_to_none=zero)
        (-F.mse_loss(net(old)[1], old) + 0.1 * F.mse_loss(net(new)[1], new)).backward()
        before = [p.grad.clone() for p in net.parameters()]
        (net.overwrite_grad_layerwise if layerwise else net.overwrite_grad)()
        along = [(p.grad * r).sum() for p, r in zip(net.parameters(), reference)]
        assert (min(along) if layerwise else sum(along)) >= -1e-5
        assert any(not torch.equal(p.grad, b) for p, b in zip(net.parameters(), before))


def test_gradients_that_do_not_conflict_stay_as_they_are(x: Tensor) -> None:
    net = Auto()
    net.calculate_ref_gradients((x, x), F.mse_loss)
    F.mse_loss(net(x)[1], x).backward()
    before = [p.grad.clone() for p in net.parameters()]
    net.overwrite_grad()
    assert all(torch.equal(p.grad, b) for p, b in zip(net.parameters(), before))
    with pytest.raises(UsageError, match="calculate_ref_gradients_layerwise"):
        net.overwrite_grad_layerwise()
    with pytest.raises(ConfigError, match="gamma=2"):
        Auto(gamma=2)


@pytest.mark.parametrize("overflow", ["first", "ring", "reservoir", "balanced"])
def test_each_task_keeps_its_share_by_the_named_policy(overflow: Any) -> None:
    memory = EpisodicMemory(size=11, tasks=3, overflow=overflow)
    assert memory.quotas == (4, 4, 3)
    for task in range(3):
        rows = torch.arange(10.0).view(10, 1) + 100 * task
        memory.add_data_for_task(task, rows, torch.tensor([0] * 8 + [1] * 2))
    assert len(memory) == 11
    inputs, targets = memory.get_data_for_reference_gradient(1)
    assert len(inputs) == 4
    assert (inputs < 10).all()
    kept = sorted(inputs.flatten().tolist())
    if overflow in ("first", "ring"):
        assert kept == ([0, 1, 2, 3] if overflow == "first" else [6, 7, 8, 9])
    if overflow == "balanced":
        assert sorted(targets.tolist()) == [0, 0, 1, 1]


def test_reference_data_is_one_earlier_task_whole_or_a_sample_of_all() -> None:
    memory = EpisodicMemory(size=12, tasks=3)
    assert memory.get_data_for_reference_gradient(2) is None
    for task in range(3):
        memory.add_data_for_task(task, torch.full((9, 1), float(task)), torch.zeros(9, dtype=torch.int64))
    chosen = {float(memory.get_data_for_reference_gradient(2)[0][0]) for _ in range(30)}
    assert chosen == {0.0, 1.0}
    assert all(len(memory.get_data_for_reference_gradient(2)[0].unique()) == 1 for _ in range(5))
    drawn = torch.cat([memory.get_data_for_reference_gradient(2, size=3)[0] for _ in range(30)])
    assert len(drawn) == 90
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
    assert len(memory.get_data_for_reference_gradient(2, size=99)[0]) == 8
    twin = EpisodicMemory(size=12, tasks=3)
    twin.load_state_dict(memory.state_dict())
    for _ in range(5):
        a, b = memory.get_data_for_reference_gradient(2, size=3), twin.get_data_for_reference_gradient(2, size=3)
        assert torch.equal(a[0], b[0])
    with pytest.raises(UsageError, match="tasks=6"):
        memory.add_data_for_task(5, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ConfigError, match="one sample per task"):
        EpisodicMemory(size=2, tasks=3)


# Task helpers ----------------------------------------------------------------------------------------------


class Images(torch.utils.data.Dataset):
    """As torchvision's: items of an image and a target, and `targets`."""

    def __init__(self, rows: int) -> None:
        self.targets = [i % 5 for i in range(rows)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 2, 2), float(self.targets[index])), self.targets[index]


def test_tasks_hold_the_items_of_their_targets_with_their_transforms() -> None:
    tasks = TaskDict(
        Images(50), Images(10), {"a": [3, 1], "b": [0], "c": [4, 3]}, key_to_transform={"b": lambda v: v + 100}
    )
    assert list(tasks) == ["a", "b", "c"]
    assert tasks.num_targets == 4
    assert len(tasks["a"].train_set) == 20
    assert len(tasks["a"].test_set) == 4
    assert {target for _, target in tasks["a"].train_set} == {1, 3}
    assert all((value == 100).all() for value, _ in tasks["b"].train_set)
    stream = tasks.stream()
    assert [e.classes for e in stream] == [(0, 1), (2,), (0, 3)]
    assert stream.class_names == ("3", "1", "0", "4")
    assert stream.input_shape == (1, 2, 2)
    for experience in stream:
        for batch in experience.train:
            shown = [float(stream.class_names[t]) + 100 * (experience.name == "b") for t in batch.targets]
            assert torch.equal(batch.inputs[:, 0, 0, 0], torch.tensor(shown))
    labelled = tasks.stream("task", relabel=False)
    assert [(e.task, e.classes) for e in labelled] == [(0, (1, 3)), (1, (0,)), (2, (3, 4))]
    with pytest.raises(KeyError, match="unknown task 'aa'"):
        tasks["aa"]
    for wrong in ({}, {"a": []}, {"a": [9]}, {"a": [1, 1]}):
        with pytest.raises(ConfigError):
            TaskDict(Images(10), Images(10), wrong)


def test_a_masked_loss_is_the_loss_among_the_kept_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=generator, requires_grad=True)
    targets = torch.randint(0, 5, (12,), generator=generator)
    keep = [3, 0]
    rows = [i for i in range(12) if int(targets[i]) in keep]
    each = [logits[i, keep].logsumexp(0) - logits[i, targets[i]] for i in rows]
    torch.testing.assert_close(masked_cross_entropy(logits, targets, keep), torch.stack(each).mean())
    torch.testing.assert_close(masked_cross_entropy(logits, targets, keep, "sum"), torch.stack(each).sum())
    torch.testing.assert_close(masked_cross_entropy(logits, targets), F.cross_entropy(logits, targets))
    assert masked_cross_entropy(logits, targets, keep, "none").shape == (12,)
    masked_cross_entropy(logits, targets, keep).backward()
    assert (logits.grad[:, [1, 2, 4]] == 0).all()
    right = [keep[int(logits[i, keep].argmax())] == int(targets[i]) for i in rows]
    assert masked_accuracy(logits, targets, keep) == torch.tensor(sum(right) / len(right))
    assert masked_accuracy(logits, targets, keep, top_k=2) == 1
    assert not masked_accuracy(logits, targets).requires_grad
    assert masked_cross_entropy(logits, torch.ones(12, dtype=torch.int64), keep) == 0
    for wrong in ([1, 1], [7], []):
        with pytest.raises(UsageError, match="each once"):
            masked_cross_entropy(logits, targets, wrong)
    with pytest.raises(UsageError, match="int64"):
        masked_cross_entropy(logits, targets.float(), keep)


# The unlabelled stream -------------------------------------------------------------------------------------


def endless(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(8, 4, generator=generator)
        yield x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 4))


def attempt(call: Any, *errors: type[Exception]) -> tuple[Any, Exception | None]:
    try:
        return call(), None
    except errors as refused:
        return None, refused


NEEDY = {name: set(getattr(methods, name)().needs) for name in methods.__all__}


KINDS = {"der_plus_plus", "ewc_online", "si", "lwf", "agem", "hat", "icarl", "slda", "gdumb", "mir"}
"""Methods of each kind, for a test that the digests of loops over endless streams make of every one."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in methods.__all__]
)
def test_every_method_on_an_unlabelled_stream_equals_the_wrapper_or_is_refused(name: str) -> None:
    make = getattr(methods, name)
    bounded = None if "boundaries" not in NEEDY[name] else Every(steps=10, window=40)
    options: Any = {"optimizer": {"name": "SGD", "lr": 0.1}, "boundary": bounded, "seed": 4}
    trainer, refused = attempt(lambda: StreamTrainer(small(), make(), **options), NeedError, ConfigError)
    if trainer is None:
        lacking = NEEDY[name] - {"update", "batch", "classes", *(["boundaries", "data"] if bounded else ["criterion"])}
        assert lacking or "before the head" in str(refused)
        return
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    again = None if bounded is None else Every(steps=10, window=40)
    cl = Continual(model, make(), optimizer, boundary=again, seed=4)
    source, steps = endless(), 25
    made, refused = attempt(lambda: trainer.train(endless(), steps=steps), UsageError)
    if made is None:
        assert "changes weights at a boundary" in str(refused)
        return
    assert made == steps
    for _ in range(steps):
        x, y = next(source)
        loss = cl.loss(model(x), y, x)
        optimizer.zero_grad()
        cl.backward(loss, y, inputs=x)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trainer.model.parameters()))


def test_an_unlabelled_stream_goes_on_after_a_restart_and_counts_before_it_trains(toy: Any) -> None:
    events: list[dict[str, Any]] = []
    options: Any = {"optimizer": {"name": "Adam", "lr": 0.02}, "boundary": None, "clip_norm": 1.0}
    one = StreamTrainer(small(), methods.er(capacity=30, size=8), record=events.append, log_every=20, **options)
    source = endless()
    one.train(source, steps=30)
    two = StreamTrainer(small(), methods.er(capacity=30, size=8), **options)
    two.load_state_dict(toy.through_disk(one.state_dict()))
    two.model.load_state_dict(one.model.state_dict())
    rest = [next(source) for _ in range(30)]
    assert one.train(rest) == two.train(rest) == 30
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters()))
    assert one.accuracy == two.accuracy > 0.5
    assert [event["step"] for event in events] == [20, 40, 60]
    assert events[-1]["accuracy"] > events[0]["accuracy"]
    assert set(events[0]["terms"]) >= {"loss", "joined_replay"}
    with pytest.raises(NeedError, match=r"Pass boundary=Every"):
        StreamTrainer(small(), methods.ewc())
    with pytest.raises(UsageError, match="pairs"):
        one.train([torch.zeros(3, 4)])
