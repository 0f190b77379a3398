"""Wrong configurations: each is refused with its path and a sentence that helps, before any data is loaded."""

import sys

import pytest

from holdfast.config.build import resolve
from holdfast.core.errors import ConfigError
from holdfast.streams import datasets

OPERATIONS = [{"name": "replay", "size": 8}, {"name": "remember", "capacity": 50}]

# configuration, path, what the sentence must say
WRONG = [
    # misspelt keys
    ({"metod": "er"}, "metod:", "did you mean 'method'?"),
    ({"optimiser": "SGD"}, "optimiser:", "did you mean 'optimizer'?"),
    ({"Model": "mlp"}, "Model:", "did you mean 'model'?"),
    ({"sed": 3}, "sed:", "did you mean 'seed'?"),
    ({"refrences": []}, "refrences:", "did you mean 'references'?"),
    ({"method": {"name": "er", "capcity": 3}}, "method.capcity:", "did you mean 'capacity'?"),
    ({"method": {"capcity": 3}}, "method.capcity:", "did you mean 'capacity'?"),
    ({"trainer": {"epoch": 3}}, "trainer.epoch:", "did you mean 'epochs'?"),
    ({"trainer": {"batchsize": 3}}, "trainer.batchsize:", "did you mean 'batch_size'?"),
    ({"optimizer": {"name": "SGD", "momentun": 0.9}}, "optimizer.momentun:", "did you mean 'momentum'?"),
    ({"optimizer": {"name": "Adam", "momentum": 0.9}}, "optimizer.momentum:", "optimizer `Adam`"),
    ({"model": {"name": "mlp", "hiden": [4]}}, "model.hiden:", "did you mean 'hidden'?"),
    ({"stream": {"name": "split", "experience": 2}}, "stream.experience:", "did you mean 'experiences'?"),
    ({"stream": {"dataset": {"name": "digits", "normalize": True}}}, "stream.dataset.normalize:", "'normalise'?"),
    ({"scheduler": {"name": "StepLR", "stepsize": 2}}, "scheduler.stepsize:", "did you mean 'step_size'?"),
    ({"checkpoint": {"every_second": 2.0}}, "checkpoint.every_second:", "did you mean 'every_seconds'?"),
    ({"method": {"operations": [{"name": "replay", "sise": 3}]}}, "method.operations.0.sise:", "did you mean 'size'?"),
    ({"method": {"operations": {"replay": {"sise": 3}}}}, "method.operations.replay.sise:", "did you mean 'size'?"),
    ({"method": {"operation": OPERATIONS, "name": "er"}}, "method.operation:", "unknown key 'operation'"),
    # right keys in the wrong place
    ({"lr": 0.1}, "lr:", "did you mean 'optimizer.lr'?"),
    ({"epochs": 2}, "epochs:", "did you mean 'trainer.epochs'?"),
    ({"trainer": {"lr": 0.1}}, "trainer.lr:", "did you mean 'optimizer.lr'?"),
    ({"trainer": {"seed": 1}}, "trainer.seed:", "did you mean 'seed'?"),
    ({"model": {"name": "mlp", "batch_size": 4}}, "model.batch_size:", "did you mean 'trainer.batch_size'?"),
    # misspelt names
    ({"method": "derpp"}, "method:", "unknown method 'derpp'"),
    ({"method": {"name": "finetun"}}, "method.name:", "did you mean 'finetune'?"),
    ({"model": "mpl"}, "model:", "did you mean 'mlp'?"),
    ({"optimizer": "sgd"}, "optimizer:", "did you mean 'SGD'?"),
    ({"optimizer": {"name": "AdamV", "lr": 0.1}}, "optimizer.name:", "`holdfast list optimizers`"),
    ({"stream": "splt"}, "stream:", "did you mean 'split'?"),
    ({"stream": {"name": "split", "dataset": "digit"}}, "stream.dataset:", "did you mean 'digits'?"),
    ({"stream": {"name": "domains", "datasets": ["digits", "minst"]}}, "stream.datasets.1:", "did you mean 'mnist'?"),
    ({"scheduler": "StepRL"}, "scheduler:", "did you mean 'StepLR'?"),
    ({"criterion": "cross_entrop"}, "criterion:", "did you mean 'cross_entropy'?"),
    ({"references": ["fintune"]}, "references.0:", "did you mean 'finetune'?"),
    ({"device": "cud"}, "device:", "did you mean 'cuda'?"),
    ({"method": {"operations": ["replai"]}}, "method.operations.0:", "did you mean 'replay'?"),
    ({"method": {"operations": {"replai": {"size": 3}}}}, "method.operations.replai:", "did you mean 'replay'?"),
    ({"method": {"operations": {"Replay_2": None}}}, "method.operations.Replay_2:", "did you mean 'replay'?"),
    # misspelt values
    ({"trainer": {"evaluate": "tset"}}, "trainer.evaluate:", "did you mean 'test'?"),
    ({"trainer": {"capture": "graph"}}, "trainer.capture:", "Write trainer.capture='compile'"),
    ({"trainer": {"precision": "bf16"}}, "trainer.precision:", "expected one of '32-true', 'bf16-mixed'"),
    ({"model": {"name": "mlp", "activation": "rellu"}}, "model.activation:", "did you mean 'relu'?"),
    ({"method": {"name": "er", "policy": "reservior"}}, "method.policy:", "did you mean 'reservoir'?"),
    ({"stream": {"name": "split", "paradigm": "tasks"}}, "stream.paradigm:", "did you mean 'task'?"),
    ({"scheduler": {"name": "StepLR", "step_size": 1, "every": "epochs"}}, "scheduler.every:", "did you mean 'epoch'?"),
    # wrong types
    ({"trainer": {"epochs": "10"}}, "trainer.epochs:", "write 10 without quotes"),
    ({"trainer": {"epochs": 2.0}}, "trainer.epochs:", "write 2."),
    ({"trainer": {"epochs": True}}, "trainer.epochs:", "true and false are not numbers"),
    ({"trainer": {"reset_optimizer": "yes"}}, "trainer.reset_optimizer:", "write true without quotes"),
    ({"trainer": {"reset_optimizer": 1}}, "trainer.reset_optimizer:", "write true."),
    ({"trainer": 5}, "trainer:", "got 5, expected an object"),
    ({"trainer": None}, "trainer:", "got null, expected an object"),
    ({"optimizer": {"name": "SGD", "lr": "1e-3"}}, "optimizer.lr:", "write 1e-3 without quotes"),
    ({"optimizer": {"name": "SGD", "lr": None}}, "optimizer.lr:", "got null, expected a number"),
    ({"optimizer": {"name": "SGD", "lr": float("nan")}}, "optimizer.lr:", "expected a finite number"),
    ({"optimizer": {"name": "Adam", "betas": 0.9}}, "optimizer.betas:", "expected a list; write [0.9]"),
    ({"optimizer": {"name": "Adam", "betas": [0.9]}}, "optimizer.betas.1:", "too few elements"),
    ({"optimizer": {"name": "Adam", "betas": [0.9, "a"]}}, "optimizer.betas.1:", 'got "a", expected a number'),
    ({"model": {"hidden": 100}}, "model.hidden:", "write [100]"),
    ({"model": {"hidden": [100, "a"]}}, "model.hidden.1:", "expected an integer"),
    ({"model": 3}, "model:", "expected the name of a model"),
    ({"model": {"name": 3}}, "model.name:", "expected the name of a model"),
    ({"method": None}, "method:", "expected the name of a method"),
    ({"method": {"name": "er", "capacity": 1.5}}, "method.capacity:", "got 1.5, expected an integer"),
    ({"method": {"operations": "replay"}}, "method.operations:", "expected a list"),
    ({"seed": "0"}, "seed:", "write 0 without quotes"),
    ({"seeds": [0, "1"]}, "seeds.1:", "write 1 without quotes"),
    ({"references": "joint"}, "references:", 'write ["joint"]'),
    ({"device": 0}, "device:", 'write "0" in quotes'),
    ({"stream": {"name": "split", "experiences": [5]}}, "stream.experiences:", "got [5], expected an integer"),
    # values out of range
    ({"trainer": {"epochs": 0}}, "trainer.epochs:", "a number of at least 1"),
    ({"trainer": {"batch_size": -1}}, "trainer.batch_size:", "a number of at least 1"),
    ({"trainer": {"clip_norm": 0}}, "trainer.clip_norm:", "more than 0"),
    ({"optimizer": {"name": "SGD", "lr": -1}}, "optimizer:", "Invalid learning rate"),
    ({"optimizer": {"name": "SGD", "nesterov": True}}, "optimizer:", "Nesterov momentum requires a momentum"),
    ({"scheduler": {"name": "StepLR", "step_size": 0}}, "scheduler:", "StepLR refuses step_size=0"),
    ({"method": {"name": "er", "size": 0}}, "method.size:", "got 0, expected a number of at least 1"),
    ({"method": {"name": "er", "capacity": -1}}, "method.capacity:", "got -1, expected a number of at least 1"),
    ({"stream": {"name": "split", "experiences": 0}}, "stream.experiences:", "a number of at least 1"),
    ({"stream": {"name": "split", "validation": 1.5}}, "stream.validation:", "less than 1"),
    ({"seed": -1}, "seed:", "a number of at least 0"),
    ({"seeds": []}, "seeds:", "a number of seeds from 1 to 10000"),
    ({"seeds": 0}, "seeds:", "a number of seeds from 1 to 10000"),
    ({"seeds": [1, 2, 1]}, "seeds:", "stands twice"),
    ({"threads": 0}, "threads:", "a number of at least 1"),
    ({"checkpoint": {"every_seconds": 0}}, "checkpoint.every_seconds:", "more than 0"),
    # missing parts
    ({"stream": {"name": "domains"}}, "stream.datasets:", "is missing"),
    ({"stream": {"name": "domains", "datasets": []}}, "stream.datasets:", "a list of at least 1"),
    ({"stream": {"dataset": {"name": "idx"}}}, "stream.dataset.path:", "is missing; dataset `idx` needs it"),
    ({"scheduler": "StepLR"}, "scheduler.step_size:", "Write scheduler.step_size=..."),
    ({"scheduler": {"gamma": 0.5}}, "scheduler:", "has no `name`"),
    ({"method": {"operations": [{"size": 3}]}}, "method.operations.0:", "has no `name`"),
    # impossible combinations
    ({"trainer": {"epochs": 2, "iterations": 50}}, "trainer:", "both epochs (2) and iterations (50)"),
    ({"trainer": {"epochs": None, "iterations": None}}, "trainer:", "neither epochs nor iterations"),
    ({"trainer": {"evaluate": "validation"}}, "trainer.evaluate:", "stream.validation=0.1"),
    ({"model": {"head": "task"}}, "model.head:", "stream.paradigm=task"),
    ({"method": {"name": "er", "operations": OPERATIONS}}, "method.name:", "both are given"),
    ({"method": "ewc", "criterion": "mse"}, "criterion:", "`digits` has classes. Write criterion=cross_entropy"),
    ({"method": "icarl", "criterion": "l1"}, "criterion:", "brings its own loss"),
    (
        {"stream": {"name": "data_incremental", "dataset": {"name": "npz", "path": "a.npz", "kind": "regression"}}},
        "criterion:",
        "has numbers as targets. Write criterion=mse",
    ),
    ({"references": ["joint", "joint"]}, "references.1:", "stands twice"),
    ({"method": {"operations": [*OPERATIONS, {"name": "remember"}]}}, "method.operations.2:", "Give one of the two"),
    ({"optimizer": "LBFGS"}, "optimizer:", "needs a closure"),
    ({"scheduler": "ReduceLROnPlateau"}, "scheduler:", "the stream holds no validation data out"),
    (
        {"scheduler": {"name": "ReduceLROnPlateau", "every": "step"}, "trainer": {"monitor_on": "test"}},
        "scheduler.every:",
        "looks at the loss of an epoch",
    ),
    ({"scheduler": "LambdaLR"}, "scheduler:", "can only be given from Python"),
    ({"stream": {"dataset": "arrays"}}, "stream.dataset:", "can only be given from Python"),
    ({"stream": {"name": "online", "of": {"name": "splitt"}}}, "stream.of.name:", "did you mean 'split'?"),
    ({"stream": {"name": "online", "of": {"name": "split", "sise": 1}}}, "stream.of.sise:", "'size"),
]


@pytest.fixture(autouse=True)
def _no_data(monkeypatch):
    """Loading any data set fails the test."""

    def load(*args, **kwargs):
        raise AssertionError("data was loaded")

    monkeypatch.setattr(sys.modules["holdfast.streams.datasets.arrays"], "_digits_table", load)
    monkeypatch.setattr(sys.modules["holdfast.streams.datasets.vision"], "read_idx", load)


@pytest.mark.parametrize(("config", "path", "help_"), WRONG, ids=[f"{i}-{case[1]}" for i, case in enumerate(WRONG)])
def test_a_wrong_configuration_is_refused_with_its_path_and_help(config, path, help_):
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    matching = [line for line in lines if line.startswith(path)]
    assert matching, f"no line begins with {path!r} in:\n{caught.value}"
    assert any(help_ in line for line in matching), f"{help_!r} is not in:\n{caught.value}"


def test_the_guard_against_loading_works():
    with pytest.raises(AssertionError, match="data was loaded"):
        datasets.digits()


def test_all_faults_are_reported_at_once_in_their_order():
    with pytest.raises(ConfigError) as caught:
        resolve({"model": "mpl", "trainer": {"epochs": "3", "lr": 1}, "metod": "er"}, "job.json")
    first, *rest = str(caught.value).splitlines()
    assert first == "job.json: 4 things are wrong in this configuration:"
    assert [line.split(":")[0].strip() for line in rest] == ["model", "trainer.epochs", "trainer.lr", "metod"]


def test_one_fault_is_one_line_that_names_the_file():
    with pytest.raises(ConfigError, match=r"^job\.json: method: unknown method 'err'; did you mean 'er'\?"):
        resolve({"method": "err"}, "job.json")


def test_where_a_number_or_a_list_may_stand_only_the_nearer_fault_is_told():
    cyclic = {"name": "CyclicLR", "base_lr": [0.1, "a"], "max_lr": "b"}
    with pytest.raises(ConfigError) as caught:
        resolve({"scheduler": cyclic})
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        'scheduler.base_lr.1: got "a", expected a number.',
        'scheduler.max_lr: got "b", expected a number or a list; write ["b"].',
    ]


def test_faults_between_parts_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        resolve({"trainer": {"epochs": 1, "iterations": 1}, "references": ["jont"], "device": "gpu"})
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "trainer",
        "references.0",
        "device",
    ]


@pytest.mark.parametrize("value", [{1, 2}, object(), {"a": b"x"}, {1: 2}])
def test_only_plain_values_are_taken(value):
    with pytest.raises(ConfigError, match="model"):
        resolve({"model": {"name": "mlp", "hidden": value}})


def test_a_configuration_that_holds_itself_is_refused():
    config = {"model": {"name": "mlp"}}
    config["model"]["hidden"] = config
    with pytest.raises(ConfigError, match="nested more than"):
        resolve(config)


@pytest.mark.parametrize("config", [None, [], "er", 3])
def test_a_configuration_is_an_object(config):
    with pytest.raises(ConfigError, match="a configuration is an object"):
        resolve(config)


def test_a_data_set_of_torchvision_is_told_how_to_be_written():
    pytest.importorskip("torchvision")
    with pytest.raises(ConfigError, match=r'Write \{"name": "torchvision", "which": "CIFAR10"\}'):
        resolve({"stream": {"dataset": "cifar-10"}})
