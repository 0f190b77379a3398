"""A configuration can never run code."""

import json

import pytest

from holdfast.config import kinds
from holdfast.config.build import resolve
from holdfast.config.compose import load
from holdfast.config.read import read
from holdfast.core.errors import ConfigError

TARGET = {"_target_": "pathlib.Path.write_text", "_args_": ["evil"]}


@pytest.mark.parametrize("key", ["method", "model", "optimizer", "scheduler", "stream"])
def test_a_target_in_a_block_is_refused(key):
    with pytest.raises(ConfigError, match=rf"{key}.*cannot run code"):
        resolve({key: TARGET})
    with pytest.raises(ConfigError, match=rf"{key}\._target_: a configuration cannot run code"):
        resolve({key: {"name": next(iter(kinds.names(f"{key}s"))), "_target_": "os.system"}})


def test_a_target_deep_inside_is_refused():
    for config, path in [
        ({"stream": {"name": "split", "dataset": TARGET}}, r"stream\.dataset"),
        ({"method": {"operations": [TARGET]}}, r"method\.operations\.0"),
        ({"trainer": TARGET}, r"trainer\._target_"),
        (TARGET, "_target_"),
        ({"model": {"name": "mlp", "hidden": [TARGET]}}, r"model\.hidden\.0"),
    ]:
        with pytest.raises(ConfigError, match=path):
            resolve(config)


@pytest.mark.parametrize("name", ["os.system", "holdfast.methods.er", "torch.optim:SGD", "../er", "__import__"])
@pytest.mark.parametrize("key", ["method", "model", "optimizer", "scheduler", "stream"])
def test_a_dotted_name_is_refused(key, name):
    with pytest.raises(ConfigError, match=r"never imports them by path"):
        resolve({key: name})


def test_only_what_a_namespace_exports_has_a_name():
    for kind, inner in [
        ("methods", "Method"),
        ("streams", "Dataset"),
        ("models", "Classifier"),
        ("models", "find_head"),
    ]:
        with pytest.raises(ConfigError, match="unknown"):
            kinds.find(kind, inner)


def test_python_tags_in_yaml_are_refused(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("method: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        read(file)


def test_interpolations_are_plain_strings(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "er")
    with pytest.raises(ConfigError, match="unknown method"):
        resolve(load(None, ["method=${oc.env:SECRET}"]))
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"method": "${oc.env:SECRET}"}))
    with pytest.raises(ConfigError, match="unknown method"):
        resolve(load(file))
