"""What Synapse's page promises: its task dictionary, its methods around a loop, its losses among some classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from holdfast import Continual, TaskDict, Trainer, masked_accuracy, masked_cross_entropy, methods
from holdfast.compat.synapse_methods import AGEM, ER, SI, IndexedAccuracyScore, IndexedCrossEntropyLoss, MultiLinear
from holdfast.core.errors import ConfigError, HoldfastError


class Blobs(TensorDataset):
    """Four blobs in the plane, as a data set of torchvision would give them."""

    def __init__(self, root: Any, train: bool, download: bool = False) -> None:
        generator = torch.Generator().manual_seed(int(train))
        self.root = root
        self.targets = torch.arange(4).repeat(40 if train else 15)
        corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
        inputs = corners[self.targets] + 0.3 * torch.randn(len(self.targets), 2, generator=generator)
        super().__init__(inputs, self.targets)


class BlobsTaskDict(TaskDict):
    """The page's example, of other data."""

    def _create_dataset(self, train: bool) -> Blobs:
        return Blobs(root=self.root, train=train, download=True)

    @property
    def _train_set(self) -> Blobs:
        return self._create_dataset(train=True)

    @property
    def _test_set(self) -> Blobs:
        return self._create_dataset(train=False)


TASKS = {"1": [0, 1], "2": [2, 3]}


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4))


def right(model: nn.Module, tasks: TaskDict) -> float:
    model.eval()
    with torch.no_grad():
        hits = [model(x).argmax(1) == y for task in tasks.values() for x, y in DataLoader(task.test_set, 64)]
    return float(torch.cat(hits).float().mean())


def looped(synapse: Any, model: nn.Module, tasks: TaskDict, optimizer: torch.optim.Optimizer) -> float:
    """The page's loop, `synapse.backward` in the place of `loss.backward`."""
    torch.manual_seed(0)
    for task in tasks.values():
        for _ in range(6):
            model.train()
            for inputs, targets in DataLoader(task.train_set, 16, shuffle=True):
                loss = F.cross_entropy(model(inputs), targets)
                optimizer.zero_grad()
                synapse.backward(loss, targets, inputs=inputs)
                optimizer.step()
    return right(model, tasks)


@pytest.mark.parametrize("made", [{"root": "datasets", "key_to_targets": TASKS}, ("datasets", TASKS)])
def test_a_task_dictionary_of_the_page_makes_its_data_sets_of_its_root(made: Any) -> None:
    tasks = BlobsTaskDict(**made) if isinstance(made, dict) else BlobsTaskDict(*made)
    assert tasks.root == "datasets"
    assert list(tasks) == ["1", "2"]
    assert tasks["2"].targets == (2, 3)
    assert tasks["1"].train_set.dataset.root == "datasets"


def test_a_task_dictionary_without_data_says_how_to_give_them() -> None:
    with pytest.raises(ConfigError, match="subclass TaskDict with the properties _train_set and _test_set"):
        TaskDict(root=Path("datasets"), key_to_targets=TASKS)


def test_the_pages_example_trains_in_the_drop_in_and_in_the_trainer() -> None:
    tasks = BlobsTaskDict(root="datasets", key_to_targets=TASKS)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    assert looped(Continual(model, methods.er(capacity=60), optimizer), model, tasks, optimizer) > 0.9
    stream = tasks.stream()
    trainer = Trainer(methods.er(capacity=60), optimizer={"name": "SGD", "lr": 0.05}, batch_size=16, epochs=6)
    trained = network()
    trainer.fit(trained, stream)
    assert right(trained, tasks) > 0.9


@pytest.mark.parametrize("method", ["er", "der", "der++"])
def test_er_of_synapse_keeps_what_plain_training_forgets(method: Any) -> None:
    tasks = BlobsTaskDict(root="datasets", key_to_targets=TASKS)
    model, plain = network(), network()
    optimizer, other = (torch.optim.SGD(one.parameters(), lr=0.05) for one in (model, plain))
    kept = looped(ER(model, buffer_size=60, method=method), model, tasks, optimizer)
    assert kept > looped(Continual(plain, methods.finetune(), other), plain, tasks, other) + 0.2


def test_a_loss_of_ones_own_gets_logits_past_logits_and_past_targets() -> None:
    model, seen = network(), []

    def own(logits: Tensor, past: Tensor, targets: Tensor) -> Tensor:
        seen.append((logits.shape, past.shape, targets.shape, past.requires_grad))
        return F.mse_loss(logits, past) + F.cross_entropy(logits, targets)

    synapse = ER(model, buffer_size=50, buffer_sample_size=8, method="custom", custom_loss_fn=own)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    looped(synapse, model, BlobsTaskDict(root="r", key_to_targets=TASKS), optimizer)
    assert seen[-1] == (torch.Size([8, 4]), torch.Size([8, 4]), torch.Size([8]), False)
    with pytest.raises(ConfigError, match="custom_loss_fn=f"):
        ER(network(), method="custom")
    with pytest.raises(ConfigError, match="unknown method of ER"):
        ER(network(), method="erx")  # type: ignore[arg-type]


def test_agem_and_si_of_synapse_train_and_si_asks_for_the_optimiser() -> None:
    tasks = BlobsTaskDict(root="datasets", key_to_targets=TASKS)
    for make in (lambda model, _: AGEM(model), lambda model, optimizer: SI(model, optimizer=optimizer)):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        assert looped(make(model, optimizer), model, tasks, optimizer) > 0.4
    with pytest.raises(HoldfastError, match="optimizer"):
        SI(network())


def test_a_masked_loss_takes_weights_smoothing_and_an_ignored_target() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 5, generator=generator)
    targets = torch.tensor([0, 1, 3, 3, 1, -1, 0, 3, -1])
    weight = torch.tensor([0.5, 2.0, 9.0, 1.5, 9.0])
    keep, places = [0, 1, 3], {0: 0, 1: 1, 3: 2}
    rows = targets != -1
    labels = torch.tensor([places[int(one)] for one in targets[rows]])
    wanted = F.cross_entropy(logits[rows][:, keep], labels, weight=weight[keep], label_smoothing=0.1)
    options: dict[str, Any] = {"weight": weight, "label_smoothing": 0.1, "ignore_index": -1}
    torch.testing.assert_close(masked_cross_entropy(logits, targets, keep, **options), wanted)
    torch.testing.assert_close(IndexedCrossEntropyLoss(**options)(logits, targets, keep), wanted)
    assert masked_cross_entropy(logits, torch.full((9,), -1), keep, **options) == 0
    plain = F.cross_entropy(logits[rows], targets[rows], weight=weight)
    torch.testing.assert_close(masked_cross_entropy(logits, targets, weight=weight, ignore_index=-1), plain)
    found = IndexedAccuracyScore(ignore_index=-1)(logits, targets, keep)
    torch.testing.assert_close(found, masked_accuracy(logits[rows], targets[rows], keep))


def test_a_multi_linear_head_gives_one_tasks_outputs_or_all() -> None:
    head = MultiLinear(3)
    head.extend("a", 2)
    head.extend("b", 4, bias=False)
    x = torch.randn(5, 3)
    assert torch.equal(head(x), torch.cat([head(x, "a"), head(x, "b")], 1))
    with pytest.raises(KeyError, match="unknown task 'c'"):
        head(x, "c")
    with pytest.raises(ConfigError, match="already"):
        head.extend("a", 3)


def test_a_forward_that_no_hook_sees_is_told_what_to_write_instead() -> None:
    model = network()
    cl = Continual(model, methods.lwf(), torch.optim.SGD(model.parameters(), lr=0.1))
    cl.begin(classes=(0, 1, 2, 3))
    inputs, targets = torch.randn(6, 2), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = F.cross_entropy(model.forward(inputs), targets)
    with pytest.raises(HoldfastError, match=r"self\(x\), where model.forward\(x\) was called"):
        cl.backward(loss, targets, inputs=inputs)
