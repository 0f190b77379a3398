"""Resolving: every default filled in, once and for all."""

import json

import pytest

from holdfast.config import kinds, schema
from holdfast.config.build import resolve, trainer_arguments
from holdfast.config.compose import load
from holdfast.config.read import default
from holdfast.config.show import summary
from holdfast.training.trainer import Trainer

JOBS = [
    {},
    {"method": "ewc", "seeds": 3, "optimizer": {"name": "Adam", "lr": 1}},
    {"method": {"operations": {"replay": {"size": 3}, "replay_2": None, "remember": {"capacity": 9}}}},
    {"method": {"operations": ["replay", {"name": "remember", "bytes": 4096}]}},
    {"trainer": {"iterations": 5}, "scheduler": {"name": "OneCycleLR", "max_lr": [0.1], "total_steps": 9}},
    {"stream": {"name": "domains", "datasets": ["digits", {"name": "synthetic", "classes": 3}]}},
    {"stream": {"name": "online", "of": {"name": "split", "experiences": 2}}, "scheduler": None},
    {"stream": {"name": "split", "paradigm": "task"}, "model": {"head": "task"}, "references": ["joint"]},
    {"stream": "permuted", "model": "linear", "checkpoint": {"every_steps": 10}, "threads": 1},
    {"stream": {"validation": 0.1}, "trainer": {"evaluate": "both"}, "criterion": "cross_entropy"},
]


@pytest.mark.parametrize("job", JOBS)
def test_resolving_a_resolved_configuration_changes_nothing(job):
    once = resolve(job)
    assert json.dumps(resolve(once)) == json.dumps(once)
    assert json.loads(json.dumps(once, allow_nan=False)) == once


@pytest.mark.parametrize("job", JOBS)
def test_resolving_does_not_change_what_it_is_given(job):
    before = json.dumps(job)
    resolve(job)
    assert json.dumps(job) == before


@pytest.mark.parametrize("kind", ["models", "optimizers", "methods", "streams", "datasets"])
def test_everything_with_defaults_can_be_named_alone(kind):
    tried = 0
    for name, function in kinds.names(kind).items():
        given = kinds.configurable(kind, function)
        if any(parameter.required for parameter in given) or name in ("domains", "saved", "blurry"):
            continue
        key = "stream" if kind == "datasets" else kinds.KINDS[kind].word
        given_job = {key: {"name": "split", "dataset": name} if kind == "datasets" else name}
        if "task" in (function().needs if kind == "methods" else getattr(function, "needs", ())):
            given_job["stream"] = {"paradigm": "task"}
        if getattr(function, "kind", "") == "regression":
            given_job |= {"criterion": "mse", "method": "finetune"}
        if name in ("cloud_vae", "invertible"):
            numbers = {"name": "data_incremental", "dataset": "polynomial"}
            given_job |= {"criterion": "chamfer" if name == "cloud_vae" else "flow", "stream": numbers}
            given_job |= {"method": "finetune"}
        resolved = resolve(given_job)
        block = resolved["stream"]["dataset"] if kind == "datasets" else resolved[key]
        assert set(block) >= {"name", *(parameter.name for parameter in given)}
        tried += 1
    assert tried >= 3


def test_the_default_job_is_replay_on_class_incremental_digits():
    job = resolve(load())
    assert job["method"]["name"] == "er"
    assert job["method"]["capacity"] == 200
    assert job["stream"]["dataset"]["name"] == "digits"
    assert (job["stream"]["experiences"], job["stream"]["paradigm"]) == (5, "class")
    assert job["references"] == ["finetune", "joint"]


def test_references_are_run_only_where_asked_for():
    assert resolve({"method": "ewc"})["references"] == []


def test_a_block_with_a_name_stands_for_itself():
    assert resolve({"optimizer": {"name": "SGD"}})["optimizer"]["lr"] == 0.001  # torch's default, not the default job's
    assert resolve({"optimizer": {"momentum": 0.5}})["optimizer"]["lr"] == default()["optimizer"]["lr"]


def test_the_model_keeps_a_null_seed_so_that_every_seed_of_a_job_has_its_own_weights():
    assert resolve({"seeds": 3})["model"]["seed"] is None


def test_the_trainer_takes_what_is_resolved():
    arguments = trainer_arguments(resolve({"trainer": {"iterations": 5}})["trainer"])
    assert Trainer(resolve_method(), **arguments).settings.iterations == 5
    assert "epochs" not in arguments


def resolve_method():
    from holdfast.config.build import build_method

    return build_method("finetune")


def test_every_parameter_of_the_trainer_is_a_key_or_has_one_of_its_own():
    names = {parameter.name for parameter in schema.trainer_parameters()}
    assert {"epochs", "iterations", "batch_size", "evaluate", "precision", "clip_norm"} <= names
    assert not names & {"method", "optimizer", "scheduler", "criterion", "seed", "device", "record", "progress"}


def test_the_summary_names_what_is_not_a_default():
    lines = summary(resolve({"method": {"name": "er", "capacity": 7}, "trainer": {"epochs": 3}, "seeds": 2}))
    assert lines["method"] == "er(capacity=7)"
    assert lines["stream"].startswith("split(digits()")
    assert "epochs=3" in lines["trainer"]
    assert lines["seeds"] == "0, 1"
