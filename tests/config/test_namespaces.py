"""The namespaces are the registry, and other packages join through entry points."""

import json
import types
from importlib.metadata import EntryPoint
from unittest.mock import ANY

import pytest
import torch
from typer.testing import CliRunner

from holdfast import cli
from holdfast.config import kinds, plugins
from holdfast.config.build import build_method, resolve
from holdfast.config.compose import compose
from holdfast.config.show import describe
from holdfast.config.signatures import PYTHON_ONLY, docs, json_type, parameters, type_name
from holdfast.core.errors import ConfigError
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.models.build import make_head
from holdfast.runs.loggers import SINKS
from holdfast.streams.transforms import from_description


class Third(Operation):
    """An operation of another package.

    Args:
        size: how much.
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.size = size


def third_method(weight: float = 1.0) -> Method:
    """A method of another package."""
    return Method(Third(size=int(weight)))


@pytest.fixture
def install(monkeypatch):
    """A function that makes entry points appear: (group, name, value or error)."""
    module = types.ModuleType("third_package")
    module.Third, module.third_method, module.number = Third, third_method, 3
    monkeypatch.setitem(__import__("sys").modules, "third_package", module)
    points = []
    monkeypatch.setattr(kinds, "entry_points", lambda group: [p for p in points if p.group == group])

    def add(kind, name, value):
        points.append(EntryPoint(name, value, f"holdfast.{kind}"))
        kinds.forget()

    kinds.forget()
    yield add
    monkeypatch.undo()
    kinds.forget()


def test_an_installed_operation_can_be_named(install):
    install("operations", "third", "third_package:Third")
    resolved = resolve({"method": {"operations": [{"name": "third", "size": 9}]}})
    assert build_method(resolved["method"]).operations[0].size == 9
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        resolve({"method": {"operations": [{"name": "third", "sizes": 9}]}})


def test_an_installed_method_can_be_named(install):
    install("methods", "third_method", "third_package:third_method")
    assert resolve({"method": "third_method"})["method"] == {"name": "third_method", "weight": 1.0}


def test_a_broken_package_is_reported_and_does_not_stop_the_others(install):
    install("methods", "broken", "no_such_module:nothing")
    install("methods", "third_method", "third_package:third_method")
    assert "third_method" in kinds.names("methods")
    with pytest.raises(ConfigError, match=r"'broken' cannot be used: .*is broken \(ModuleNotFoundError"):
        resolve({"method": "broken"})


def test_what_is_no_operation_is_reported(install):
    install("operations", "number", "third_package:number")
    assert "is no operation" in kinds.problems("operations")["number"]


def test_a_name_of_our_own_cannot_be_taken(install):
    own = kinds.find("methods", "er")
    install("methods", "er", "third_package:third_method")
    assert kinds.find("methods", "er") is own
    assert any("its own method" in reason for reason in kinds.problems("methods").values())


def test_a_name_that_two_packages_offer_is_refused(install):
    install("methods", "mine", "third_package:third_method")
    install("methods", "mine", "third_package:third_method")
    assert "mine" not in kinds.names("methods")
    with pytest.raises(ConfigError, match="offered by"):
        resolve({"method": "mine"})


@pytest.mark.parametrize("kind", list(kinds.KINDS))
def test_everything_that_can_be_named_has_a_summary_and_parameters_with_types(kind):
    assert kinds.names(kind) or kinds.problems(kind)  # sources hold Python objects so far
    for name in kinds.names(kind):
        about = describe(kind, name)
        assert about.summary
        for parameter in about.parameters:
            assert type_name(parameter.type)


@pytest.mark.parametrize("kind", ["methods", "operations", "streams", "datasets", "models"])
def test_every_parameter_of_ours_is_described(kind):
    missing = [
        f"{name}.{parameter.name}"
        for name in kinds.names(kind)
        for parameter in describe(kind, name).parameters
        if not parameter.doc
    ]
    assert missing == []


def test_a_description_says_paper_role_and_needs():
    about = describe("methods", "ewc")
    assert about.paper
    assert about.role == "knowledge retention"
    assert "boundaries" in about.needs


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'optimizers'"):
        kinds.names("optimisers")


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (float | torch.Tensor, float),
        (torch.Tensor, PYTHON_ONLY),
        (torch.Tensor | None, PYTHON_ONLY),
        (torch.nn.Module, PYTHON_ONLY),
        (list[torch.Tensor], PYTHON_ONLY),
        (tuple[int, ...], list[int]),
        (dict[str, float], dict[str, float]),
        (str | torch.device, str),
    ],
)
def test_only_the_part_of_a_type_that_json_can_write_is_configurable(hint, expected):
    assert json_type(hint) == expected


def test_docstrings_are_read_in_both_styles():
    text = """Do it
    well.

    More.

    Args:
        size: how many,
            in all.
        lr (float, optional): rate: of change.
        *rest: others.

    Returns:
        size: something else.
    """
    assert docs(text) == ("Do it well.", {"size": "how many, in all.", "lr": "rate: of change.", "rest": "others."})


def test_defaults_are_plain_values():
    def function(sizes: tuple[int, ...] = (1, 2), other: object = object()) -> None: ...

    first, second = parameters(function)
    assert first.default == [1, 2]
    assert not second.configurable


@pytest.mark.parametrize("kind", ["heads", "transforms", "loggers", "experiments"])
def test_what_is_no_block_is_listed_too_and_brought_by_no_plug_in(kind):
    done = CliRunner().invoke(cli.app, ["list", kind, "--json"])
    listed = json.loads(done.stdout)
    assert list(listed) == list(kinds.names(kind))
    assert all(len(about["summary"]) > 10 for about in listed.values())
    with pytest.raises(ConfigError, match=f"a plug-in cannot bring {kind}"):
        plugins.plugin(kind)


def test_every_head_transform_and_logger_that_is_listed_can_be_named():
    for head in kinds.names("heads"):
        make_head(head, 3, 4, seed=0)
    assert from_description({"kind": "rotate", "degrees": 90}) is not None
    assert set(kinds.names("loggers")) == set(SINKS)
    for experiment in kinds.names("experiments"):
        assert compose(None, [f"experiment={experiment}"]).config


def test_one_name_is_told_as_json_with_its_parameters():
    done = CliRunner().invoke(cli.app, ["list", "methods", "er", "--json"])
    parameters = json.loads(done.stdout)["er"]["parameters"]
    assert parameters["capacity"] == {"type": "int of 1 or more", "default": 200, "description": ANY}
