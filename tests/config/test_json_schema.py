"""The JSON Schema that editors complete with: it takes what is right and refuses what is not."""

import json

import jsonschema
import pytest

from holdfast.config import kinds
from holdfast.config.build import resolve
from holdfast.config.read import default
from holdfast.config.show import json_schema


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(
    "job",
    [
        default(),
        resolve(default()),
        {},
        {"$schema": "holdfast.json", "method": "er"},
        {"method": {"capacity": 3}},
        {"method": {"operations": ["replay", {"name": "remember", "capacity": 3}]}},
        {"method": {"operations": {"replay": {"size": 3}, "replay_2": None, "remember": {"capacity": 3}}}},
        {"stream": {"name": "domains", "datasets": ["digits", {"name": "synthetic"}]}},
        {"optimizer": {"name": "Adam", "betas": [0.9, 0.99]}, "scheduler": {"name": "StepLR", "step_size": 1}},
        {"trainer": {"per_experience": {"0": {"epochs": 2, "optimizer": "Adam"}, "1-": {"scheduler": None}}}},
        {"trainer": {"per_experience": [None, {"optimizer": {"name": "SGD", "lr": 0.1}}, None, None, None]}},
        {"trainer": {"devices": 2, "strategy": "ddp", "precision": "bf16-mixed"}},
        {"seeds": 5},
        {"seeds": [0, 1]},
    ],
)
def test_a_right_configuration_is_valid(validator, job):
    assert [error.message for error in validator.iter_errors(job)] == []
    resolve(job)


@pytest.mark.parametrize(
    "job",
    [
        {"metod": "er"},
        {"method": "err"},
        {"method": {"name": "er", "capcity": 3}},
        {"method": {"capcity": 3}},
        {"method": {"name": "er", "capacity": "3"}},
        {"method": {"operations": {"replai": {}}}},
        {"method": {"operations": [{"name": "replay", "sise": 3}]}},
        {"trainer": {"epochs": "10"}},
        {"trainer": {"per_experience": {"0": {"epoch": 2}}}},
        {"trainer": {"per_experience": {"0": {"optimizer": "sgd"}}}},
        {"trainer": {"epochs": 0}},
        {"trainer": {"evaluate": "tset"}},
        {"model": {"hidden": 5}},
        {"optimizer": {"name": "sgd"}},
        {"optimizer": "LBFGS"},
        {"stream": {"name": "split", "dataset": "digts"}},
        {"scheduler": {"name": "StepLR"}},
        {"references": ["jont"]},
        {"seeds": []},
    ],
)
def test_a_wrong_configuration_is_invalid(validator, job):
    assert list(validator.iter_errors(job))


def test_every_name_and_parameter_is_in_the_schema_with_its_description():
    definitions = json_schema()["$defs"]
    for kind in ("methods", "operations", "models", "optimizers"):
        for name, function in kinds.names(kind).items():
            properties = definitions[f"{kinds.KINDS[kind].word}_{name}"]["properties"]
            for parameter in kinds.configurable(kind, function):
                assert parameter.name in properties
                assert not parameter.doc or properties[parameter.name]["description"] == parameter.doc
