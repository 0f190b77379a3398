"""In Python, data and optimisers are taken as people have them: loaders, data sets, lists of batches, objects."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import Method, Trainer, methods, models, streams
from holdfast.core.errors import ConfigError, DataError
from holdfast.streams.datasets import synthetic


def parts() -> tuple[list[TensorDataset], list[TensorDataset]]:
    stream = streams.split(synthetic(classes=4, samples=20, test_samples=5), experiences=2)

    def plain(data: object) -> TensorDataset:
        batch = data.gather(torch.arange(len(data)))  # type: ignore[attr-defined, arg-type]
        return TensorDataset(batch.inputs, batch.targets)

    return [plain(one.train) for one in stream], [plain(one.test) for one in stream]


def fitted(experiences: object, tests: object, **settings: object) -> dict[str, torch.Tensor]:
    model = models.mlp(input_shape=(20,), classes=4, hidden=[8], seed=0)
    trainer = Trainer(methods.er(capacity=20), **{"optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9}, **settings})  # type: ignore[arg-type]
    events = trainer.fit(model, experiences, tests=tests)  # type: ignore[arg-type]
    assert sum(event["event"] == "evaluate" for event in events) == 6
    return model.state_dict()


def test_data_sets_loaders_and_lists_of_batches_give_the_same_weights() -> None:
    train, test = parts()
    expected = fitted(train, test)
    for made in (
        [DataLoader(one, batch_size=7) for one in train],
        [list(DataLoader(one, batch_size=7)) for one in train],
        [one.tensors for one in train],
    ):
        found = fitted(made, test)
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_an_optimizer_object_or_a_class_stands_for_its_values() -> None:
    train, test = parts()
    expected = fitted(train, test)
    other = torch.nn.Linear(2, 2)
    made = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    for optimizer in (made, functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)):
        found = fitted(train, test, optimizer=optimizer)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    fitted(train, test, optimizer=torch.optim.AdamW(other.parameters(), lr=0.01))
    groups = [{"params": other.weight, "lr": 0.5}, {"params": other.bias}]
    with pytest.raises(ConfigError, match="values of their own"):
        Trainer(methods.er(), optimizer=torch.optim.SGD(groups, lr=0.1))


def test_a_run_folder_an_evaluation_and_predictions_of_loaders(tmp_path: Path) -> None:
    train, test = parts()
    model = models.mlp(input_shape=(20,), classes=4, hidden=[8], seed=0)
    trainer = Trainer(methods.er(capacity=20))
    trainer.fit(model, [DataLoader(one) for one in train], tests=test, out=tmp_path / "run")
    assert holdfast.open(tmp_path / "run").state == "finished"
    measured = trainer.evaluate([DataLoader(one, batch_size=3) for one in test])
    assert measured["average_accuracy"] == pytest.approx(trainer.evaluate()["average_accuracy"])
    inputs = test[0].tensors[0]
    assert torch.allclose(trainer.predict(DataLoader(test[0], batch_size=3)), trainer.predict(inputs), atol=1e-6)


def test_tests_that_do_not_go_with_the_experiences_are_refused() -> None:
    train, test = parts()
    model = models.mlp(input_shape=(20,), classes=4, seed=0)
    with pytest.raises(DataError, match="2 experiences and 1 tests"):
        Trainer(methods.er()).fit(model, train, tests=test[:1])
    with pytest.raises(ConfigError, match="tests are for a list"):
        Trainer(methods.er()).fit(model, streams.split(synthetic(classes=4), experiences=2), tests=test)


def test_a_run_is_compared_with_references_as_on_the_command_line(tmp_path: Path) -> None:
    train, test = parts()

    def fit(references: object, **more: object) -> None:
        model = models.mlp(input_shape=(20,), classes=4, hidden=[8], seed=0)
        trainer = Trainer(methods.er(capacity=20), optimizer={"name": "SGD", "lr": 0.1})
        trainer.fit(model, train, tests=test, **{"out": tmp_path / "run", "references": references, **more})  # type: ignore[arg-type]

    fit(["finetune"])
    fit(["finetune", methods.joint()], resume=True)
    run = holdfast.open(tmp_path / "run")
    assert list(run.references) == ["finetune", "joint"]
    assert run.references["joint"][0].state == "finished"
    assert "references/joint" in (tmp_path / "run" / "report.html").read_text()
    alone = models.mlp(input_shape=(20,), classes=4, hidden=[8], seed=0)
    Trainer(methods.finetune(), optimizer={"name": "SGD", "lr": 0.1}).fit(alone, train, tests=test)
    kept = torch.load(tmp_path / "run" / "references" / "finetune" / "checkpoints" / "model.pt", weights_only=True)
    assert all(torch.equal(value, kept[key]) for key, value in alone.state_dict().items())
    for wrong, says in ((["nothing"], "nothing"), ([3], "no method"), ([Method(name="independent")], "Rename it")):
        with pytest.raises(ConfigError, match=says):
            fit(wrong, out=tmp_path / "other")
    with pytest.raises(ConfigError, match="references need a run folder"):
        fit(["finetune"], out=None)
    assert not (tmp_path / "other").exists()


def test_the_memory_and_the_padding_are_settings_of_the_trainer_too() -> None:
    train, _ = parts()
    trainer = Trainer(methods.er(capacity=20), memory_device="meta", pad=0)
    trainer.bind(models.mlp(input_shape=(20,), classes=4, hidden=[8], seed=0), streams.data.stream_of(train))
    assert trainer.learner.services.pads == 0
    assert trainer.learner.memory is not None
    assert trainer.learner.memory.device == torch.device("meta")
