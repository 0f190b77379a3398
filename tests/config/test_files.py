"""Reading files: JSON and YAML, and what is refused."""

import json

import pytest

from holdfast.config.build import resolve
from holdfast.config.compose import load
from holdfast.config.read import read
from holdfast.core.errors import ConfigError


def write(folder, name, text):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.json", '{"optimizer": {"name": "SGD", "lr": 0.1, "lr": 0.2}}'),
        ("job.yaml", "optimizer:\n  name: SGD\n  lr: 0.1\n  lr: 0.2\n"),
        ("job.yml", "{lr: 1, lr: 2}"),
        ("top.json", '{"lr": 1, "seed": 2, "lr": 3}'),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_key_and_file(tmp_path, name, text):
    with pytest.raises(ConfigError, match=rf"{name}: the key 'lr' stands twice"):
        read(write(tmp_path, name, text))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"job\.json"):
        read(write(tmp_path, "job.json", f'{{"optimizer": {{"name": "SGD", "lr": {value}}}}}'))


def test_yaml_is_read_by_the_rules_of_version_1_2(tmp_path):
    text = (
        "a: on\nb: no\nc: 012\nd: 1e-3\ne: true\nf: null\ng: ~\nh: 2026-01-01\ni: 1.5\nj: '3'\nk:\nl: 1_000\nm: -.5\n"
    )
    assert read(write(tmp_path, "job.yaml", text)) == {
        "a": "on",
        "b": "no",
        "c": 12,
        "d": 0.001,
        "e": True,
        "f": None,
        "g": None,
        "h": "2026-01-01",
        "i": 1.5,
        "j": "3",
        "k": None,
        "l": "1_000",
        "m": -0.5,
    }


def test_json_and_yaml_say_the_same(tmp_path):
    job = {"method": {"name": "ewc"}, "trainer": {"epochs": 2}, "model": {"name": "mlp", "hidden": [5, 6]}}
    as_json = write(tmp_path, "job.json", json.dumps(job))
    text = "method:\n  name: ewc\ntrainer:\n  epochs: 2\nmodel: {name: mlp, hidden: [5, 6]}\n"
    assert resolve(load(as_json)) == resolve(load(write(tmp_path, "job.yaml", text)))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '{"method": er}', "not valid JSON at line 1"),
        ("a.json", "", "not valid JSON"),
        ("a.json", "[1]", "holds a list"),
        ("a.json", '{"a": 1', "not valid JSON"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"a":' * 200 + "1" + "}" * 200, "nested more than"),
        ("a.yaml", "", "is empty"),
        ("a.yaml", "a: [1, 2", "not valid YAML at line"),
        ("a.yaml", "a: b: c", "not valid YAML at line 1"),
        ("a.yaml", "1: 2", "is no string"),
        ("a.yaml", "? [a]\n: 2", "not valid YAML at line 1"),
        ("a.yaml", "a: &a [*a]", "nested more than"),
        ("a.yaml", "a: .nan\nb: 1e999", "expected a finite number"),
    ],
)
def test_a_malformed_file_is_refused_with_its_name(tmp_path, name, text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        read(write(tmp_path, name, text))
    assert name in str(caught.value)


def test_a_file_that_is_not_there_names_the_nearest(tmp_path):
    write(tmp_path, "job.json", "{}")
    with pytest.raises(ConfigError, match=r"did you mean '.*job\.json'\?"):
        read(tmp_path / "jbo.json")
    with pytest.raises(ConfigError, match="there is no configuration file"):
        read(tmp_path / "nowhere" / "x.json")


def test_a_folder_and_a_binary_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        read(tmp_path / "b.json")


def test_the_schema_key_is_ignored_and_a_byte_order_mark_too(tmp_path):
    file = tmp_path / "job.json"
    file.write_text('\ufeff{"$schema": "anything", "seed": 3}', encoding="utf-8")
    resolved = resolve(load(file))
    assert resolved["seed"] == 3
    assert "$schema" not in resolved
