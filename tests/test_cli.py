"""The command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast import cli
from holdfast.core.errors import ConfigError, DataError

SOURCE = Path(cli.__file__).parents[2]


def call(*words):
    return CliRunner().invoke(cli.app, list(words))


def python(code_or_module, *words, module=False):
    flags = ["-m", code_or_module] if module else ["-c", code_or_module]
    return subprocess.run(
        [sys.executable, *flags, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "100"},
    )


def test_no_help_imports_torch():
    code = """
import sys
from typer.testing import CliRunner
from holdfast.cli import app
commands = ("run", "resume", "eval", "predict", "show", "config", "convert", "list", "validate", "schema")
for words in [[], ["--help"], *([command, "--help"] for command in commands)]:
    assert "Usage" in CliRunner().invoke(app, words).output, words
assert CliRunner().invoke(app, ["--version"]).output.startswith("holdfast ")
print([name for name in ("torch", "numpy", "hydra", "matplotlib", "sklearn") if name in sys.modules])
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_package_runs_as_a_module():
    done = python("holdfast", "--version", module=True)
    assert done.returncode == 0
    assert done.stdout.startswith("holdfast ")


def test_an_unknown_command_suggests_the_nearest():
    result = call("lst")
    assert result.exit_code == 2
    assert "Did you mean 'list'?" in result.output


@pytest.mark.parametrize("kind", ["methods", "operations", "streams", "datasets", "models", "optimizers", "schedulers"])
def test_list_has_one_line_for_each_name(kind):
    from holdfast.config import kinds

    result = call("list", kind)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(kinds.names(kind))


def test_list_shows_needs_and_role():
    line = next(line for line in call("list", "methods").stdout.splitlines() if line.startswith("ewc "))
    assert "needs boundaries" in line
    assert "knowledge retention" in line


def test_list_shows_the_parameters_of_one():
    output = call("list", "methods", "er").stdout
    assert output.startswith("er: ")
    assert any(line.split()[:3] == ["capacity", "=", "200"] for line in output.splitlines())
    required = call("list", "schedulers", "StepLR").stdout
    assert any(line.split()[:2] == ["step_size", "required"] for line in required.splitlines())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list", "method"], "did you mean 'methods'?"),
        (["list", "methods", "err"], "did you mean 'er'?"),
        (["validate", "method=err"], "ConfigError: method.name: unknown method 'err'; did you mean 'er'?"),
        (["validate", "nowhere.json"], "there is no configuration file 'nowhere.json'"),
        (["validate", "seed=1", "job.json"], "'job.json' is no change to a configuration"),
        (["run", "trainer.epochs=0"], "trainer.epochs"),
        (["eval", "somewhere", "--split", "train"], "--split validation"),
    ],
)
def test_a_configuration_error_is_a_sentence_and_exit_code_2(words, says):
    result = call(*words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_validate_says_valid_and_what_the_job_is(tmp_path):
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"method": {"name": "er", "capacity": 7}}))
    result = call("validate", str(file), "trainer.epochs=3")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[-1] == "valid"
    assert any(line.split() == ["method", "er(capacity=7)"] for line in lines)
    assert any("epochs=3" in line for line in lines)


def test_validate_reports_every_fault_with_the_name_of_the_file(tmp_path):
    file = tmp_path / "job.json"
    file.write_text('{"metod": "er", "trainer": {"epochs": "3"}}')
    result = call("validate", str(file))
    assert result.exit_code == 2
    assert f"{file}: 2 things are wrong" in result.stderr


def test_a_file_whose_path_has_an_equals_sign_is_a_file(tmp_path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    (folder / "config.json").write_text('{"seed": 5}')
    assert "5" in call("validate", str(folder / "config.json")).stdout


def test_schema_prints_a_json_schema():
    result = call("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["title"] == "Holdfast job"


@pytest.fixture
def stand_in(monkeypatch):
    """The functions of `experiments` replaced: each call is kept, and may raise."""
    import holdfast.runs.opened as closing
    import holdfast.runs.opened as show
    import holdfast.runs.run as run

    monkeypatch.setattr(closing, "closing", lambda folder: f"report: {folder}/report.html")
    calls = []

    def make(name, result, error=None):
        def function(*args, **kwargs):
            calls.append((name, args, kwargs))
            if error is not None:
                raise error
            return result

        return function

    def install(error=None):
        for name, result in (("run", Path("runs/x")), ("resume", Path("runs/x")), ("evaluate", {"accuracy": 0.5})):
            monkeypatch.setattr(run, name, make(name, result, error))
        monkeypatch.setattr(show, "show", make("show", [], error))
        return calls

    return install


def test_run_hands_the_resolved_job_over_and_prints_the_folder_last(stand_in, tmp_path):
    calls = stand_in()
    result = call("run", "seed=4", "method=ewc", "--out", str(tmp_path / "new"), "--quiet")
    assert result.exit_code == 0
    assert result.stdout == "runs/x\n"
    name, (job, out), options = calls[0]
    assert (name, job.config["seed"], job.config["method"]["name"], out) == ("run", 4, "ewc", tmp_path / "new")
    assert options["quiet"] is True


def test_run_without_arguments_is_the_default_job(stand_in):
    from holdfast.config.build import resolve
    from holdfast.config.compose import load

    calls = stand_in()
    result = call("run")
    assert result.exit_code == 0
    assert result.stdout == "runs/x\n"
    assert "report: runs/x/report.html" in result.stderr
    _, (job, out), options = calls[0]
    assert (job.config, out, options["quiet"]) == (resolve(load()), None, False)


def test_resume_eval_and_show_hand_their_folders_over(stand_in):
    calls = stand_in()
    assert call("resume", "a").stdout == "runs/x\n"
    assert json.loads(call("eval", "a", "--split", "validation").stdout) == {"accuracy": 0.5}
    assert call("show", "a", "b").exit_code == 0
    assert [(name, args) for name, args, _ in calls] == [
        ("resume", ("a",)),
        ("evaluate", (Path("a"), "validation")),
        ("show", ([Path("a"), Path("b")], None, False)),
    ]


@pytest.mark.parametrize(("error", "code"), [(DataError("no data. Get some."), 1), (ConfigError("bad. Mend it."), 2)])
def test_errors_of_ours_end_with_their_sentence_and_code(stand_in, error, code):
    stand_in(error)
    result = call("run")
    assert result.exit_code == code
    assert str(error) in result.stderr
    assert "Traceback" not in result.output


def test_ctrl_c_ends_with_130_and_says_how_to_resume(stand_in, tmp_path):
    stand_in(KeyboardInterrupt())
    result = call("run", "--out", str(tmp_path / "new"))
    assert result.exit_code == 130
    assert "nothing was made yet, so run the same command again" in result.stderr
    assert "run the same command again" in call("resume", "a").stderr


def test_an_interrupted_training_ends_with_130(stand_in):
    from holdfast.core.errors import Interrupted

    stand_in(Interrupted("stopped; go on with: holdfast resume runs/x"))
    result = call("run")
    assert result.exit_code == 130
    assert "holdfast resume runs/x" in result.stderr


def test_a_missing_extra_is_a_sentence(stand_in):
    from holdfast.core.errors import needs_extra

    stand_in(needs_extra("the model `timm`", "timm", "vision"))
    result = call("run")
    assert result.exit_code == 1
    assert "pip install 'holdfast[vision]'" in result.stderr


def test_a_bug_of_ours_keeps_its_traceback(stand_in):
    stand_in(ZeroDivisionError("a bug"))
    assert isinstance(call("run").exception, ZeroDivisionError)


def test_config_prints_where_each_value_came_from_or_the_whole_job():
    tree = call("config", "experiment=digits", "trainer.max_epochs=2").stdout
    assert "epochs: 2  command line" in tree
    assert "capacity: 200  experiment=digits" in tree
    job = json.loads(call("config", "experiment=digits", "--json").stdout)
    assert job["method"]["capacity"] == 200
    assert "arena" in call("config", "--groups").stdout


def test_a_whole_job_printed_as_json_is_a_configuration_again(tmp_path):
    printed = call("config", "experiment=arena", "--json").stdout
    (tmp_path / "job.json").write_text(printed)
    assert json.loads(call("config", str(tmp_path / "job.json"), "--json").stdout) == json.loads(printed)


def test_convert_prints_a_job_and_says_what_is_different(tmp_path):
    (tmp_path / "old.json").write_text('{"plugins": [{"name": "CrossEntropyOperation"}]}')
    result = call("convert", str(tmp_path / "old.json"))
    assert json.loads(result.stdout)["criterion"] == "cross_entropy"
    assert "second softmax" in result.stderr
    (tmp_path / "new.json").write_text('{"method": "er"}')
    assert "is no CLMixer file" in call("convert", str(tmp_path / "new.json")).stderr


def test_several_processes_are_for_several_runs():
    assert "Write -m" in call("run", "--jobs", "2").stderr


def test_references_can_be_asked_for_in_one_word(tmp_path):
    assert "references.1: unknown method 'joined'" in call("run", "--references", "random,joined").stderr
