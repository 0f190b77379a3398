"""A run that the release before began (commit a43e79f, LwF on digits, stopped after 20 checkpoints) is gone on with."""

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from holdfast import cli
from holdfast.metrics.log import read_log
from holdfast.runs.folder import load_tensors

BEFORE = Path(__file__).with_name("run_of_before")
"""Its folder as it was left, and in `ended.pt` the weights that the release before ended the whole run with."""


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(BEFORE, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_checkpoint_of_before_is_resumed_to_the_weights_that_the_release_before_ended_with(folder):
    done = CliRunner().invoke(cli.app, ["resume", str(folder), "--quiet"])
    assert done.exit_code == 0, done.output
    engine = load_tensors(folder / "checkpoints" / "last.pt")["state"]["engine"]
    assert engine["index"] == 24
    ended = torch.load(BEFORE / "ended.pt", weights_only=True)
    assert engine["learner"]["model"].keys() == ended.keys()
    for name, value in engine["learner"]["model"].items():
        assert torch.allclose(value.float(), ended[name].float(), atol=1e-5), name
    assert read_log(folder).finished


def test_a_checkpoint_of_before_is_evaluated_as_it_is(folder):
    done = CliRunner().invoke(cli.app, ["eval", str(folder)])
    assert done.exit_code == 0, done.output
    assert '"average_accuracy"' in done.output


def test_a_checkpoint_whose_parts_are_of_another_method_is_refused_in_a_sentence(folder):
    text = (folder / "config.json").read_text()
    assert '"name": "lwf"' in text
    state = load_tensors(folder / "checkpoints" / "last.pt")
    state["state"]["engine"]["operations"] = {}
    torch.save(state, folder / "checkpoints" / "last.pt")
    done = CliRunner().invoke(cli.app, ["resume", str(folder), "--quiet"])
    assert done.exit_code == 1
    assert "holds nothing of the operation 'distillation'; it has none" in done.output
    assert isinstance(done.exception, SystemExit)
