"""A trained model goes with its user: predictions, measures and exports without the training data, from any folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import holdfast
from holdfast.cli import app
from holdfast.core.errors import ConfigError, DataError
from holdfast.runs.assemble import restore
from holdfast.runs.export import export
from holdfast.runs.inputs import outputs
from holdfast.runs.predict import measured, predict
from holdfast.runs.run import run
from holdfast.streams import grouped, online
from holdfast.streams.datasets import arrays, npz

MODEL = {"name": "mlp", "hidden": [8]}


def table(path: Path, rows: int = 60, target: bool = True, site: str = "north") -> Path:
    """Gases that two sensors tell apart, over three months."""
    random = np.random.default_rng(0)
    lines = ["month,s1,s2,site" + (",gas" if target else "")]
    for row in range(rows):
        gas, month = row % 2, row * 3 // rows
        values = random.normal(4 * gas, 0.3, 2)
        where = site if row % 4 else "south"
        lines.append(f"{month},{values[0]:.4f},{values[1]:.4f},{where}" + (f",{('ethanol', 'acetone')[gas]}" * target))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def gases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table that is not there any more."""
    folder = tmp_path_factory.mktemp("gases")
    path = table(folder / "gas.csv")
    dataset = {"name": "csv", "path": str(path), "target": "gas", "by": "month"}
    job = {"stream": {"name": "grouped", "dataset": dataset}, "model": MODEL, "references": [], "method": "er"}
    made = run({**job, "trainer": {"epochs": 10}}, folder / "run", quiet=True)
    path.unlink()
    return made


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = {"model": MODEL, "references": [], "trainer": {"epochs": 1, "limit_experiences": 2}}
    return run(job, tmp_path_factory.mktemp("digits") / "run", quiet=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_table_comes_back_with_the_users_labels_and_a_probability_for_each(
    gases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    new = table(tmp_path / "new.csv", 20, target=False)
    made = predict(gases, [str(new)])
    rows = rows_of(made.paths[0])
    assert list(rows[0]) == [*("month", "s1", "s2", "site", "predicted_gas", "probability", "p(acetone)", "p(ethanol)")]
    assert [row["predicted_gas"] for row in rows[:4]] == ["ethanol", "acetone", "ethanol", "acetone"]
    assert all(abs(float(row["p(acetone)"]) + float(row["p(ethanol)"]) - 1) < 1e-4 for row in rows)
    assert made.scores.measures() == {}


def test_rows_with_a_label_are_scored_and_labels_never_learned_are_named(gases: Path, tmp_path: Path) -> None:
    new = table(tmp_path / "new.csv", 20)
    new.write_text(new.read_text() + "9,0.1,0.2,north,benzene\n9,0.1,0.2,north,\n")
    found = measured(gases, [str(new)])
    assert (found["samples"], found["unknown_labels"]) == (21, {"benzene": 1})
    assert found["accuracy"] == pytest.approx(20 / 21)
    made = predict(gases, [str(new)], tmp_path / "out")
    assert "benzene (1)" in made.scores.sentence(made.rows)
    assert [row["right"] for row in rows_of(made.paths[0])[-2:]] == ["False", ""]


def test_words_that_no_training_row_had_are_said(gases: Path, tmp_path: Path) -> None:
    made = predict(gases, [str(table(tmp_path / "new.csv", 8, site="west"))], tmp_path / "out")
    assert "'west'" in made.notes[0]


def test_what_is_there_is_never_written_over(gases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new = str(table(tmp_path / "new.csv", 8))
    assert [predict(gases, [new]).paths[0].parent.name for _ in range(2)] == ["predictions", "predictions-2"]
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        predict(gases, [new], Path("predictions"))
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        predict(gases, [new], Path("new.csv"))
    assert len(new) > 0
    assert "predicted_gas" not in Path("new.csv").read_text()


def test_a_table_that_lacks_a_column_is_refused_by_its_name(gases: Path, tmp_path: Path) -> None:
    new = table(tmp_path / "new.csv", 8)
    new.write_text(new.read_text().replace("s2", "S2"))
    with pytest.raises(ConfigError, match="lacks the columns 's2'"):
        predict(gases, [str(new)], tmp_path / "out")


def test_a_missing_value_is_refused_with_its_line(gases: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"
    new.write_text("month,s1,s2,site,gas\n1,0.1,,north,acetone\n")
    with pytest.raises(DataError, match=r"line 2: column 's2'"):
        predict(gases, [str(new)], tmp_path / "out")


def test_a_parquet_table_comes_back_as_one(gases: Path, tmp_path: Path) -> None:
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    pandas.read_csv(table(tmp_path / "new.csv", 8)).to_parquet(tmp_path / "new.parquet")
    made = predict(gases, [str(tmp_path / "new.parquet")], tmp_path / "out")
    back = pandas.read_parquet(made.paths[0])
    assert list(back["predicted_gas"][:2]) == ["ethanol", "acetone"]
    assert back["p(acetone)"].dtype.kind == "f"
    assert made.scores.right == 8


def test_a_data_frame_is_predicted_in_python(gases: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    opened = holdfast.open(gases)
    assert opened.predict(pandas.read_csv(table(tmp_path / "new.csv", 8))).argmax(1).tolist() == [1, 0] * 4


def test_eval_without_the_data_says_what_to_give(gases: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["eval", str(gases)])
    assert result.exit_code == 1
    assert "the data of this run cannot be loaded" in result.output
    told = CliRunner().invoke(app, ["eval", str(gases), str(table(tmp_path / "new.csv", 8))])
    assert json.loads(told.output)["accuracy"] == 1.0


def test_eval_finds_the_data_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "gas.csv", 30)
    dataset = {"name": "csv", "path": "gas.csv", "target": "gas", "ordered": False}
    job = {"stream": {"name": "split", "experiences": 2, "dataset": dataset}, "model": MODEL, "references": []}
    run(job, Path("run"), quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = CliRunner().invoke(app, ["eval", "../run"])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.output)["experiences"]) == 2


def test_images_as_counts_floats_or_last_channel_are_answered_as_in_training(digits: Path, tmp_path: Path) -> None:
    restored = restore(digits)
    data = restored.with_data()[0].test
    assert data is not None
    batch = data.gather(torch.arange(12))
    expected = outputs(restored.engine, batch.inputs).argmax(1).tolist()
    pixels = batch.inputs.numpy()
    labels = np.array([restored.stream.class_names[label] for label in batch.targets.tolist()])
    forms = {
        "bytes": pixels,
        "counts": pixels[:, 0].astype(np.int64),
        "floats": pixels.astype(np.float64),
        "last": pixels.transpose(0, 2, 3, 1),
        "flat": pixels.reshape(12, -1),
    }
    for name, form in forms.items():
        np.savez(tmp_path / f"{name}.npz", x=form, y=labels)
        made = predict(digits, [str(tmp_path / f"{name}.npz")], tmp_path / name)
        rows = rows_of(made.paths[0])
        assert [row["label"] for row in rows] == [restored.stream.class_names[label] for label in expected], name
        assert made.scores.samples == 12
        assert {row["target"] for row in rows} == set(labels.tolist())


def test_an_image_file_is_brought_to_the_scale_of_the_training_images(digits: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    restored = restore(digits)
    data = restored.with_data()[0].test
    assert data is not None
    batch = data.gather(torch.arange(6))
    for row, label in enumerate(batch.targets.tolist()):
        folder = tmp_path / "images" / restored.stream.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        white = (batch.inputs[row, 0].float() * 255 / 16).round().to(torch.uint8).numpy()
        image.fromarray(white).save(folder / f"{row}.png")
    made = predict(digits, [str(tmp_path / "images")], tmp_path / "out")
    expected = outputs(restored.engine, batch.inputs).argmax(1)
    right = int((expected == batch.targets).sum())
    assert (made.scores.samples, made.scores.right) == (6, right)
    assert made.paths[1].suffix == ".png"


def test_an_export_answers_as_the_run_does(digits: Path, tmp_path: Path) -> None:
    path, beside = export(digits, "torch", tmp_path / "m.pt2")
    restored = restore(digits)
    inputs = torch.randint(0, 17, (5, 1, 8, 8), dtype=torch.uint8)
    assert torch.allclose(torch.export.load(path).module()(inputs), outputs(restored.engine, inputs), atol=1e-5)
    about = json.loads(beside.read_text())
    assert about["output"]["classes"] == [str(number) for number in range(10)]
    assert about["input"] == {"type": "uint8", "shape": ["rows", 1, 8, 8]}
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        export(digits, "torch", tmp_path / "m.pt2")
    with pytest.raises(ConfigError, match="did you mean 'torch'"):
        export(digits, "torhc", tmp_path / "n.pt2")


@pytest.mark.slow
def test_a_program_for_onnx_answers_as_the_run_does_for_any_number_of_rows(digits: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[dev]'")
    import onnxruntime

    path, beside = export(digits, "onnx", tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(path)
    restored = restore(digits)
    for rows in (1, 5):
        inputs = torch.randint(0, 17, (rows, 1, 8, 8), dtype=torch.uint8)
        (found,) = session.run(["outputs"], {"inputs": inputs.numpy()})
        np.testing.assert_allclose(found, outputs(restored.engine, inputs).numpy(), rtol=1e-4, atol=1e-5)
    assert json.loads(beside.read_text())["format"] == "onnx"


def test_exported_weights_say_what_they_are(gases: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    path, _ = export(gases, "safetensors", tmp_path / "m.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["holdfast"])
        assert set(file.keys()) == set(restore(gases).engine.learner.model.state_dict())
    assert about["output"]["classes"] == ["acetone", "ethanol"]
    assert [one["name"] for one in about["table"]["features"]] == ["s1", "s2", "site"]


def test_arrays_and_archives_come_in_groups(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((40, 3)), np.arange(40) % 2
    words = grouped(arrays(x, y, by=["mill"] * 20 + ["lathe"] * 20))
    assert [(one.name, len(one.train), len(one.test or ())) for one in words] == [("mill", 16, 4), ("lathe", 16, 4)]
    np.savez(tmp_path / "g.npz", x=x, y=y, machine=np.repeat([7, 3], 20), split=np.arange(40) % 4 == 0)
    numbers = grouped(npz(str(tmp_path / "g.npz"), by="machine"))
    assert [(one.name, len(one.train), len(one.test or ())) for one in numbers] == [("3", 15, 5), ("7", 15, 5)]
    with pytest.raises(ConfigError, match="19 groups for 40"):
        arrays(x, y, by=list(range(19)))
    with pytest.raises(ConfigError, match="the groups of the test data are not there"):
        arrays(x, y, x, y, by=[0] * 40)


def test_rows_that_are_dropped_take_their_group_along() -> None:
    x = np.random.default_rng(0).random((8, 2))
    x[0] = np.nan
    with pytest.warns(UserWarning, match="left out"):
        data = arrays(x, [0, 1] * 4, by=["a"] * 2 + ["b"] * 6, missing="drop", test_fraction=0.0)
    assert data.groups is not None
    assert data.groups.tolist() == [0, 1, 1, 1, 1, 1, 1]


def test_online_cuts_the_groups_of_a_table(tmp_path: Path) -> None:
    data = holdfast.datasets.csv(str(table(tmp_path / "t.csv", 40)), target="gas", by="month")
    stream = online(data, samples=5, of={"name": "grouped"})
    assert list(dict.fromkeys(one.name.split(" ")[0] for one in stream)) == ["0", "1", "2"]
    assert all(len(one.train) <= 5 for one in stream)
    assert stream.table == grouped(data).table


def test_classes_without_a_test_row_are_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the classes 'ethanol' have no test row"):
        holdfast.datasets.csv(str(table(tmp_path / "t.csv", 40)), target="gas")
