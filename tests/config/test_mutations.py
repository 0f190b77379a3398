"""More than a hundred wrong configurations: each is refused with its path, and none starts anything."""

import copy
import json

import pytest
from typer.testing import CliRunner

from holdfast import cli
from holdfast.config.build import resolve
from holdfast.core.errors import ConfigError
from holdfast.runs import run as running

COMPOSED = {
    "stream": {
        "name": "permuted",
        "dataset": {"name": "synthetic", "classes": 4},
        "experiences": 3,
        "paradigm": "task",
    },
    "model": {"name": "mlp", "hidden": [8], "head": "growing"},
    "method": {
        "operations": [
            {"name": "replay", "size": 8, "weight": 0.5},
            {"name": "distillation", "temperature": 2.0},
            {"name": "remember", "capacity": 20, "policy": "reservoir"},
        ]
    },
    "optimizer": {"name": "Adam", "lr": 0.01, "weight_decay": 0.0},
    "scheduler": {"name": "StepLR", "step_size": 2, "every": "epoch"},
    "trainer": {"epochs": 2, "batch_size": 4, "clip_norm": 1.0, "precision": "32-true", "evaluate": "test"},
    "loggers": [{"name": "tensorboard", "project": "p"}],
    "checkpoint": {"every_seconds": 5.0, "every_steps": 3},
    "seed": 1,
    "device": "cpu",
    "criterion": "cross_entropy",
    "references": ["joint"],
    "tags": ["a"],
}


def places(value, path=()):
    """The path of every key and list element."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*path, key)
        yield from places(part, (*path, key))


def holder(config, path):
    for part in path[:-1]:
        config = config[part]
    return config


def mutated():
    """Every mutation: what it is called, where it is, and the configuration."""
    for path in places(COMPOSED):
        name = ".".join(map(str, path))
        if isinstance(path[-1], str):
            config = copy.deepcopy(COMPOSED)
            inside = holder(config, path)
            key = path[-1][:-1] + "x" + path[-1][-1]
            inside[key] = inside.pop(path[-1])
            yield f"{name} misspelt", path, config
        value = holder(COMPOSED, path)[path[-1]]
        wrongs = [{"a": 1}] if not isinstance(value, dict) else [[1], 3]
        if isinstance(value, str):
            wrongs += [value + "zzz", 7] if path[-1] not in ("project",) and path[0] != "tags" else [7]
        elif isinstance(value, (int, float)):
            wrongs += ["many", [value], -5]
        for wrong in wrongs:
            config = copy.deepcopy(COMPOSED)
            holder(config, path)[path[-1]] = wrong
            yield f"{name}={json.dumps(wrong)}", path, config


ALLOWED = {
    ("stream", "dataset", "classes"),  # what is built from data is checked when it is built
    ("method", "operations", 0, "weight"),  # a loss may count negatively
}
MUTATIONS = [
    pytest.param(path, config, id=name) for name, path, config in mutated() if not (path in ALLOWED and "=-5" in name)
]


def test_the_configuration_that_is_mutated_is_right():
    resolve(COMPOSED)


def test_there_are_more_than_a_hundred():
    assert len(MUTATIONS) > 100


@pytest.mark.parametrize(("path", "config"), MUTATIONS)
def test_a_mutated_configuration_is_refused_with_its_path(path, config):
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    assert str(path[0]).rstrip("s")[:4] in str(caught.value)
    assert len(str(caught.value).split()) > 5


IMPOSSIBLE = [
    ["experiment=digits", "method=hat"],
    ["experiment=digits", "model.head=task"],
    ["experiment=digits", "trainer.evaluate=validation"],
    ["experiment=digits", "trainer.patience=3"],
    ["experiment=digits", "references=[hat]"],
    ["experiment=digits", "method=ewc", "criterion=mse"],
    ["experiment=digits", "trainer.epochs=2", "trainer.iterations=3"],
    ["experiment=digits", "seeds=[1,1]"],
]


@pytest.mark.parametrize("changes", IMPOSSIBLE, ids=lambda changes: " ".join(changes[1:]))
def test_an_impossible_combination_starts_no_training(changes, monkeypatch):
    monkeypatch.setattr(running, "run", lambda *given, **more: pytest.fail("it started"))
    result = CliRunner().invoke(cli.app, ["run", *changes])
    assert result.exit_code == 2
    assert result.stderr.startswith("ConfigError: ")


@pytest.mark.parametrize(("path", "config"), MUTATIONS[::8])
def test_a_mutated_file_starts_nothing_on_the_command_line_either(path, config, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "run", lambda *given, **more: pytest.fail("it started"))
    file = tmp_path / "job.json"
    file.write_text(json.dumps(config))
    result = CliRunner().invoke(cli.app, ["run", str(file)])
    assert result.exit_code == 2
    assert "job.json" in result.stderr
