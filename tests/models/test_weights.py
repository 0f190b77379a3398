"""Weights that a model starts from: what fits is taken, the rest is named, and a run begins with it."""

import json
import warnings

import pytest
import torch
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.core.errors import DataError
from holdfast.models import hypernetwork, resnet18
from holdfast.models.weights import start_from

SHAPE = {"input_shape": (3, 32, 32), "classes": 4}


def test_a_hypernetwork_takes_its_stem_from_an_ordinary_network_and_names_the_rest(tmp_path):
    plain = resnet18(**SHAPE, width=4, seed=1)
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    model = hypernetwork(**SHAPE, backbone={"name": "resnet18", "width": 4}, cut="SPv2", seed=2)
    before = {name: value.clone() for name, value in model.generator.state_dict().items()}
    left = start_from(model, str(tmp_path / "plain.pt"))
    stem = model.below.state_dict()
    assert len(stem) > 20
    assert all(torch.equal(value, plain.state_dict()[f"backbone.{name}"]) for name, value in stem.items())
    assert all(torch.equal(value, before[name]) for name, value in model.generator.state_dict().items())
    assert {name for name in left if name.startswith("below.")} == set()
    assert {f"generator.{name}" for name in before} <= set(left)


def test_entries_of_another_shape_stay_and_nothing_that_fits_is_refused(tmp_path):
    torch.save(resnet18(**SHAPE, width=4, seed=1).state_dict(), tmp_path / "four.pt")
    wider = resnet18(input_shape=(3, 32, 32), classes=9, width=4, seed=2)
    assert start_from(wider, str(tmp_path / "four.pt")) == [n for n in wider.state_dict() if n.startswith("head.")]
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="none of the 1 tensors"):
        start_from(wider, str(tmp_path / "other.pt"))
    with pytest.raises(DataError, match="there are no weights at"):
        start_from(wider, str(tmp_path / "nowhere"))


def test_a_run_starts_from_another_run_or_its_checkpoint_and_says_what_it_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["trainer.epochs=1", "trainer.limit_train_batches=2", "model.hidden=[8]", "references=[]", "-q"]

    def run(*words):
        return CliRunner().invoke(app, ["run", *short, *words])

    assert run("-o", "first").exit_code == 0
    first = torch.load("first/checkpoints/model.pt", weights_only=True)
    for start in ("first", "first/checkpoints/last.pt", "first/checkpoints/model.pt"):
        done = run("-o", f"from_{start.replace('/', '_')}", f"start_from={start}", "optimizer.lr=0", "seed=5")
        assert done.exit_code == 0, done.output
        kept = torch.load(f"from_{start.replace('/', '_')}/checkpoints/model.pt", weights_only=True)
        assert all(torch.equal(kept[name], first[name]) for name in first if name.endswith("weight"))
    assert json.loads((tmp_path / "from_first" / "config.json").read_text())["start_from"] == "first"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run("-o", "wider", "start_from=first", "model.hidden=[8, 3]").exit_code == 0
    assert any("have no counterpart in 'first' and keep their initial values" in str(one.message) for one in caught)
    refused = run("-o", "never", "start_from=nowhere")
    assert refused.exit_code != 0
    assert "start_from: there is no 'nowhere'" in refused.output
    assert not (tmp_path / "never").exists()
