"""What a user gets wrong in the first hour is told in a sentence: no traceback, no word of ours left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from holdfast import Trainer, datasets, methods, models, streams
from holdfast.cli import app
from holdfast.core.errors import ConfigError, DataError, HoldfastError
from holdfast.runs.run import TRACEBACK, run

SMALL = {"model": {"name": "mlp", "hidden": [4]}, "references": [], "trainer": {"limit_experiences": 1}}


@pytest.mark.parametrize("word", ["x" * 300, "x" * 300 + "=1", "x" * 5000, "a\0b"])
@pytest.mark.parametrize("command", ["run", "validate", "show"])
def test_an_argument_that_no_file_system_takes_is_refused(command: str, word: str) -> None:
    result = CliRunner().invoke(app, [command, word])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output


def test_a_loss_for_several_labels_is_refused_for_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multilabel_soft_margin_loss"):
        run({"criterion": "multilabel_margin_loss"}, tmp_path / "run", quiet=True)
    stream = streams.split(datasets.synthetic(classes=4), experiences=2)
    model = models.mlp(input_shape=stream.input_shape, classes=4, seed=0)
    trainer = Trainer(methods.finetune(), criterion=torch.nn.functional.multilabel_margin_loss)
    with pytest.raises(ConfigError, match="several class indices a row"):
        trainer.fit(model, stream)


def test_an_error_of_torch_is_a_sentence_and_its_traceback_is_kept(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=r"training failed in asgd.py: OverflowError: .* optimizer"):
        run({**SMALL, "optimizer": {"name": "ASGD", "alpha": 1e30}}, tmp_path / "run", quiet=True)
    assert "OverflowError" in (tmp_path / "run" / TRACEBACK).read_text()


@pytest.mark.parametrize("seeds", [10**20, 1e30, -3, float("nan")])
def test_no_number_of_seeds_is_too_much_for_a_sentence(seeds: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds: got"):
        run({"seeds": seeds}, tmp_path / "run", quiet=True)


def test_a_name_instead_of_a_method_says_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"Trainer\(methods.er\(\)"):
        Trainer("er")  # type: ignore[arg-type]


def test_data_that_are_not_there_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOLDFAST_DATA", raising=False)
    with pytest.raises(DataError, match=r"torchvision.datasets.MNIST.*HOLDFAST_DATA") as caught:
        datasets.mnist()
    assert "shared" not in str(caught.value)


def test_a_name_that_nobody_has_may_be_a_plug_ins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a plug-in has it, that is not installed here"):
        run({"method": "qqqqqqq"}, tmp_path / "run", quiet=True)


def test_devices_that_are_not_there_are_told_in_few_words(tmp_path: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(ConfigError, match="this machine has no 'mps'") as caught:
        run({"device": "mps"}, tmp_path / "run", quiet=True)
    assert len(str(caught.value)) < 150


def test_a_warning_of_the_command_line_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from holdfast.cli.common import warned

    warned("a column is left out.", UserWarning, "file.py", 3)
    assert capsys.readouterr().err == "warning: a column is left out.\n"
