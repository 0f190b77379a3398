"""One Python file beside a run: what it defines can be named wherever the names of Holdfast can."""

import json

import pytest
from typer.testing import CliRunner

from holdfast import cli
from holdfast.config import kinds, plugins
from holdfast.config.build import build_criterion, build_method, build_model, build_stream, resolve
from holdfast.config.show import describe, json_schema
from holdfast.core.errors import ConfigError
from holdfast.runs.run import evaluate, resume, run

SOURCE = '''
"""A plug-in with one thing of each kind."""

import torch
from torch import Tensor, nn

from holdfast import Every, Method, Operation, Stream, plugin
from holdfast.metrics import METRICS, Metric
from holdfast.operations import Remember
from holdfast.streams import split
from holdfast.streams.datasets import Dataset, synthetic


class Shrink(Operation):
    """Pull every weight to zero.

    Args:
        strength: how hard.
    """

    def __init__(self, strength: float = 0.1) -> None:
        super().__init__()
        self.strength = strength

    def loss(self, step, learner):
        return sum((p * p).sum() for p in learner.model.parameters()), self.strength


def shrinking(strength: float = 0.5) -> Method:
    """A method of one operation."""
    return Method(Shrink(strength=strength))


def halves(dataset: Dataset, validation: float = 0.0) -> Stream:
    """Two experiences.

    Args:
        validation: what is held out.
    """
    return split(dataset, experiences=2, validation=validation)


def tiny(rows: int = 30) -> Dataset:
    """Few rows."""
    return synthetic(classes=4, samples=rows)


def one_layer(*, input_shape: tuple[int, ...], classes: int, bias: bool = True) -> nn.Module:
    """One layer."""
    return Wrapped(input_shape[0], classes, bias)


class Wrapped(nn.Module):
    def __init__(self, width: int, classes: int, bias: bool) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.flatten(1))


def doubled(outputs: Tensor, targets: Tensor) -> Tensor:
    """Twice the cross-entropy."""
    return 2 * nn.functional.cross_entropy(outputs, targets)


@plugin("criterion")
def tripled(a, b):
    """Three times the cross-entropy."""
    return 3 * nn.functional.cross_entropy(a, b)


def helper(value: float) -> float:
    return value


class Never(Every):
    """Hardly ever."""

    def __init__(self, steps: int = 1_000_000) -> None:
        super().__init__(steps)


METRICS["answer"] = Metric(lambda record: 42.0, "up", "the answer")
'''
JOB = {
    "stream": {"name": "halves", "dataset": {"name": "tiny", "rows": 20}},
    "model": "one_layer",
    "method": {"operations": [{"name": "shrink", "strength": 0.2}]},
    "criterion": "doubled",
    "trainer": {"iterations": 2},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "strangers.py"
    path.write_text(SOURCE)
    yield path
    for one in plugins.used():
        plugins.drop(one.path.stem)


def call(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_everything_that_a_file_defines_is_found_by_its_kind(file):
    assert plugins.use(file).names == {
        "boundaries": ["never"],
        "criteria": ["doubled", "tripled"],
        "datasets": ["tiny"],
        "methods": ["shrinking"],
        "metrics": ["answer"],
        "models": ["one_layer"],
        "operations": ["shrink"],
        "streams": ["halves"],
    }
    for kind, names in plugins.used()[0].names.items():
        for name in names:
            assert describe(kind, name).summary
    assert build_method(resolve({"method": "shrinking"})["method"]).operations[0].strength == 0.5
    assert build_criterion("tripled").__name__ == "tripled"


def test_a_chain_of_ones_own_can_be_the_network_whose_weights_are_generated(tmp_path):
    own = tmp_path / "chains.py"
    own.write_text(
        '"""A chain."""\nfrom torch import nn\n\n\n'
        "def my_chain(*, input_shape, classes, width: int = 4) -> nn.Module:\n"
        '    """Two layers."""\n'
        "    return nn.Sequential(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, classes))\n"
    )
    plugins.use(own)
    try:
        stream = build_stream({"name": "split", "dataset": "synthetic", "paradigm": "task"})
        model = build_model({"name": "hypernetwork", "backbone": {"name": "my_chain", "width": 6}, "cut": 1}, stream)
        assert [target.shape for target in model.generator.targets.values()] == [(10, 6), (10,)]
        assert [tuple(p.shape) for p in model.below.parameters()] == [(6, stream.input_shape[0]), (6,)]
        with pytest.raises(ConfigError, match=r"model: unknown backbone 'my_chan'.*--plugin FILE"):
            build_model({"name": "hypernetwork", "backbone": "my_chan"}, stream)
        with pytest.raises(ConfigError, match=r"model.backbone.*width"):
            build_model({"name": "hypernetwork", "backbone": {"name": "my_chain", "wide": 6}}, stream)
    finally:
        plugins.drop("chains")


def test_a_job_of_a_plug_in_alone_is_run_resumed_and_evaluated(file, tmp_path):
    plugins.use(file)
    folder = run(JOB, tmp_path / "run", quiet=True)
    assert json.loads((folder / "metrics.json").read_text())["answer"] == 42.0
    info = json.loads((folder / "run.json").read_text())
    assert info["plugins"][0]["names"]["operations"] == ["shrink"]
    assert (folder / "plugins" / "strangers.py").read_text() == SOURCE
    assert evaluate(folder)["experiences"]
    plugins.drop("strangers")
    for again in (resume, evaluate):
        with pytest.raises(
            ConfigError, match=r"made with the plug-in strangers.py. Write --plugin .*strangers.py; a copy"
        ):
            again(folder)
    file.write_text(SOURCE + "\n# changed\n")
    plugins.use(file)
    with pytest.raises(ConfigError, match="is another file or was changed since"):
        resume(folder)
    plugins.use(folder / "plugins" / "strangers.py")
    assert resume(folder) == folder


def test_the_command_line_takes_plug_ins_wherever_names_are_written(file, tmp_path):
    job = tmp_path / "job.json"
    job.write_text(json.dumps(JOB))
    assert call("validate", job).exit_code == 2
    assert "shrink(strength=0.2)" in call("validate", job, "--plugin", file).output
    plugins.drop("strangers")
    assert "shrink" in call("list", "operations", "--plugin", file).output
    assert "how hard" in call("list", "operations", "shrink", "--plugin", file).output
    assert "operation_shrink" in json.loads(call("schema", "--plugin", file).output)["$defs"]
    assert json.loads(call("config", job, "--json", "--plugin", file).output)["model"] == {
        "name": "one_layer",
        "bias": True,
    }
    out = tmp_path / "out"
    assert call("run", job, "--plugin", file, "--out", out, "-q").exit_code == 0
    plugins.drop("strangers")
    missing = call("resume", out)
    assert (missing.exit_code, "--plugin" in missing.output) == (2, True)
    assert call("eval", out, "--plugin", file).exit_code == 0


@pytest.mark.slow
def test_a_sweep_hands_plug_ins_to_its_workers(file, tmp_path):
    job = tmp_path / "job.json"
    job.write_text(json.dumps(JOB))
    out = tmp_path / "sweep"
    done = call("run", "-m", job, "method.operations.0.strength=0.1,0.2", "--plugin", file, "--out", out)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "1" / "run.json").read_text())["plugins"][0]["file"] == str(file)
    assert json.loads((out / "sweep.json").read_text())["plugins"]


def test_a_run_with_another_version_of_a_plug_in_has_another_key(file):
    from holdfast.runs.assemble import job_key

    config = resolve({})
    keys = {job_key(config)}
    plugins.use(file)
    keys.add(job_key(config))
    file.write_text(SOURCE + "\n# changed\n")
    plugins.use(file)
    keys.add(job_key(config))
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def er() -> 'Method': ...\nfrom holdfast import Method", "there is a method 'er' already"),
        ("x = 1", "defines none of"),
        ("x = 1 / 0", r"ZeroDivisionError: division by zero \(line 1\)"),
        ("x =", "SyntaxError"),
        (
            "import torch\nfrom holdfast import Method\ndef m(t: torch.Tensor) -> Method: ...",
            "its method 'm' cannot be used: its t",
        ),
        ("from holdfast.metrics import METRICS\nMETRICS['plasticity'] = 3", "there is a metric 'plasticity' already"),
        ("from holdfast import plugin\n@plugin('metod')\ndef f(): ...", "did you mean 'methods'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_leaves_nothing_behind(file, text, says):
    from holdfast.metrics import METRICS

    before = dict(METRICS)
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        plugins.use(file)
    assert plugins.used() == []
    assert before == METRICS
    file.write_text(SOURCE)
    plugins.use(file)


def test_a_path_that_leads_nowhere_names_the_nearest_file(file):
    with pytest.raises(ConfigError, match=r"did you mean '.*strangers.py'"):
        plugins.use(file.with_name("stranger.py"))


def test_a_file_called_like_a_module_is_refused(file):
    other = file.with_name("json.py")
    other.write_text(SOURCE)
    with pytest.raises(ConfigError, match=r"a Python module 'json' already.*my_json.py"):
        plugins.use(other)


def test_a_changed_file_takes_the_place_of_what_it_defined_before(file):
    plugins.use(file)
    file.write_text(SOURCE.replace("class Shrink(", "class Shrivel("))
    plugins.use(file)
    assert "shrivel" in kinds.names("operations")
    assert "shrink" not in kinds.names("operations")
    assert "operation_shrink" not in json_schema()["$defs"]


def test_a_configuration_cannot_name_a_plug_in_file(file):
    with pytest.raises(ConfigError, match="unknown key 'plugins'"):
        resolve({"plugins": [str(file)]})
