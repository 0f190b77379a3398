"""Jobs and states that come from elsewhere: a CLMixer file's notes, a checkpoint file, features that are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.compat.dialects import DIALECTS
from holdfast.config.build import build_model, resolve
from holdfast.config.check import validated
from holdfast.config.compose import compose
from holdfast.config.job import with_features
from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Stream
from holdfast.runs.run import resume, run
from holdfast.streams.datasets import image_folder

DUMMY = {
    "optimisation": {"lr": 0.01, "epochs": 2, "optimizer": {"type": "adam", "weight_decay": 0.0}, "batch_size": 32},
    "model": {"model_type": "mlp", "hidden_size": 8},
    "data": {"dataset_name": "dummy", "n_experiments": 2, "backbone": "None", "scenario": "indus_cil"},
    "plugins": [
        {"name": "RandomMemoryUpdaterOperation", "hyperparameters": {"cls_budget": 4}},
        {"name": "CrossEntropyOperation", "hyperparameters": {}},
        {"name": "MSEOperation", "hyperparameters": {}},
    ],
    "seed": 3,
}


def test_what_a_file_means_differently_stands_in_the_run_folder_and_its_report(tmp_path: Path) -> None:
    file = tmp_path / "dummy.json"
    file.write_text(json.dumps(DUMMY))
    composition = compose(file, [], dialects=DIALECTS)
    job = validated(composition.config)
    job.notes = composition.notes
    folder = run(job, tmp_path / "run", quiet=True)
    assert json.loads((folder / "run.json").read_text())["translated"] == composition.notes
    page = (folder / "report.html").read_text()
    assert "Translated differently" in page
    assert "a second softmax" in page
    terms = [json.loads(line).get("terms") for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [one for one in terms if one][-1]
    assert last["loss"] == pytest.approx(last["cross_entropy"] + last["one_hot_error"], rel=1e-5)


def test_a_run_goes_on_from_a_checkpoint_file_to_the_same_weights(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ["trainer.epochs=1", "stream.experiences=3", "references=[]", "folders.experiences=true"]
    whole = run(resolve(compose(None, changes).config), tmp_path / "whole", quiet=True)
    alone = tmp_path / "alone" / "far" / "last.pt"
    alone.parent.mkdir(parents=True)
    shutil.copy(whole / "experience0" / "checkpoints" / "last.pt", alone)
    wanted = torch.load(whole / "checkpoints" / "model.pt", weights_only=True)
    for where in (whole / "experience1" / "checkpoints" / "last.pt", alone.as_uri()):
        folder = resume(where, quiet=True)
        assert folder.resolve() != whole
        found = torch.load(folder / "checkpoints" / "model.pt", weights_only=True)
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())
        assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    assert resume(whole / "checkpoints" / "last.pt", quiet=True) == whole
    with pytest.raises(DataError, match="holds no state of a run"):
        resume(whole / "checkpoints" / "model.pt", quiet=True)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for label in "ab":
        for part, count in (("train", 6), ("test", 2)):
            (tmp_path / "set" / label / part).mkdir(parents=True)
            for row in range(count):
                pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
                image.fromarray(pixels).save(tmp_path / "set" / label / part / f"{row}.png")
    return tmp_path / "set"


def test_images_are_cropped_as_for_imagenet(pictures: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    data = image_folder(str(pictures), size=24, shorter_side=30, filter="bicubic", normalise="imagenet")
    assert (len(data.train), len(data.test), data.class_names) == (12, 4, ("a", "b"))
    with image.open(pictures / "a" / "train" / "0.png") as opened:
        resized = opened.resize((45, 30), image.Resampling.BICUBIC)
    wanted = torch.from_numpy(np.asarray(resized.crop((10, 3, 34, 27))).copy()).permute(2, 0, 1)
    assert torch.equal(data.train.gather(torch.tensor([0])).inputs[0], wanted)
    assert data.prepare.describe()["mean"] == [0.485, 0.456, 0.406]
    with pytest.raises(ConfigError, match="at most shorter_side"):
        image_folder(str(pictures), size=40, shorter_side=30)


def test_lists_of_another_machine_and_images_beside_train_are_understood(pictures: Path) -> None:
    lines = {part: [] for part in ("train", "test")}
    for file in sorted(pictures.rglob("*.png")):
        lines[file.parent.name].append(f"/elsewhere/kth/{file.relative_to(pictures)}")
    for part, found in lines.items():
        (pictures / f"{part}.txt").write_text("\n".join(found))
    data = image_folder(str(pictures), size=8)
    assert (len(data.train), len(data.test), data.class_names) == (12, 4, ("a", "b"))
    for part in lines:
        (pictures / f"{part}.txt").unlink()
    for label in "ab":
        (pictures / label / "test").rename(pictures / label / "other")
    data = image_folder(str(pictures), size=8)
    assert (len(data.train), len(data.test)) == (12, 4)


def test_features_are_kept_by_default_unless_inputs_are_augmented(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    model = {"name": "frozen", "library": "torchvision", "architecture": "squeezenet1_1", "weights": "random"}
    dataset = {"name": "image_folder", "path": str(pictures), "size": 32}

    def stream(**more: Any) -> tuple[Stream, Stream]:
        spec = {"name": "split", "experiences": 2, "dataset": {**dataset, **more}}
        job = validated({"model": {**model, "cache_folder": str(tmp_path / "cache")}, "stream": spec, "references": []})
        raw = job.make_stream()
        return raw, with_features(raw, job.make_model(raw))

    raw, kept = stream()
    assert kept is not raw
    assert kept.input_shape == (3, 32, 32)
    assert kept[0].train.gather(torch.arange(2)).inputs.shape == (2, 512)
    raw, same = stream(flip=True)
    assert same is raw


def test_random_weights_of_a_frozen_backbone_are_asked_for() -> None:
    pytest.importorskip("torchvision")
    spec = {"name": "frozen", "library": "torchvision", "architecture": "resnet18"}
    with pytest.warns(FutureWarning, match="write weights=random"):
        build_model(spec, Stream([], (3, 32, 32), 4), 0)
    job = validated({"model": {**spec, "weights": "resnet18.pth"}, "stream": {"dataset": "mnist"}, "references": []})
    with pytest.raises(DataError, match=r"there is no 'resnet18.pth', the weights of resnet18.*model.weights=random"):
        job.check_weights()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "torchvision", "architecture": "resnet19"}, "unknown torchvision architecture 'resnet19'"),
        ({"name": "frozen", "library": "torchvision", "architecture": "resnet_18"}, "did you mean 'resnet18'?"),
    ],
)
def test_names_that_a_library_lacks_are_refused_before_anything_is_loaded(spec: dict[str, Any], says: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(ConfigError, match=says):
        resolve({"model": spec, "stream": {"dataset": "mnist"}})
    with pytest.raises(ConfigError, match=r"stream\.dataset\.which: unknown torchvision data set 'CIFAR11'"):
        resolve({"stream": {"dataset": {"name": "torchvision", "which": "CIFAR11"}}})
