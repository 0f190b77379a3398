"""A model in use: what it has kept, what it learns of new data, the gate, and the way back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import holdfast
from holdfast.cli import app
from holdfast.core.errors import ConfigError, DataError
from holdfast.metrics.log import Log
from holdfast.runs.assemble import restore
from holdfast.runs.check import check
from holdfast.runs.folder import current
from holdfast.runs.predict import measured, predict
from holdfast.runs.recording import Recording
from holdfast.runs.run import run
from holdfast.runs.update import update
from holdfast.runs.verdict import Kept, whole
from holdfast.runs.versions import history, rollback

GASES = ("ethanol", "acetone")


def rows(month: int, names: tuple[str, ...] = GASES, count: int = 24) -> list[str]:
    """Gases that two sensors tell apart; the places of the names are those in `GASES` and one more."""
    draw = np.random.default_rng(month)
    places = {"ethanol": 0, "acetone": 1, "butane": 2}
    found = []
    for name in draw.permutation([names[row % len(names)] for row in range(count)]):
        one, two = draw.normal(4 * places[name], 0.3, 2)
        found.append(f"{month},{one:.4f},{two:.4f},{name}")
    return found


def table(path: Path, *months: list[str]) -> Path:
    path.write_text("\n".join(["month,s1,s2,gas", *(line for month in months for line in month)]) + "\n")
    return path


def job(path: Path, **changes: Any) -> dict[str, Any]:
    dataset = {"name": "csv", "path": str(path), "target": "gas", "by": "month", "standardise": "first"}
    return {
        "stream": {"name": "grouped", "dataset": dataset},
        "model": {"name": "mlp", "hidden": [8], "head": "growing"},
        "method": {"name": "er", "capacity": 12, "size": 4},
        "trainer": {"epochs": 3, "batch_size": 6},
        "optimizer": {"name": "SGD", "lr": 0.1},
        "references": [],
        **changes,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return run(job(table(folder / "gas.csv", rows(0), rows(1))), folder / "run", quiet=True)


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    """A copy of the run for each test."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "model.pt", weights_only=True)  # type: ignore[no-any-return]


def answers(folder: Path) -> torch.Tensor:
    return holdfast.open(folder).predict(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)))


def files(folder: Path) -> dict[str, bytes]:
    """What is in a run folder besides its versions."""
    every = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("version.json", ".lock"))
    return {str(path): path.read_bytes() for path in every if "versions" not in path.relative_to(folder).parts}


def test_an_update_learns_what_the_run_would_have_learned_as_its_next_experience(
    finished: Path, tmp_path: Path
) -> None:
    verdict = update(finished, table(tmp_path / "new.csv", rows(2)), max_drop=1)
    assert verdict.passed
    assert [one.name for one in verdict.experiences] == ["0", "1"]
    whole = run(job(table(tmp_path / "all.csv", rows(0), rows(1), rows(2))), tmp_path / "whole", quiet=True)
    updated, expected = weights(finished / "versions" / "1"), weights(whole)
    assert updated.keys() == expected.keys()
    assert all(torch.equal(updated[name], expected[name]) for name in expected)
    assert torch.equal(answers(finished), answers(whole))
    ours, theirs = holdfast.open(finished / "versions" / "1"), holdfast.open(whole)
    assert np.array_equal(ours.matrix[2], theirs.matrix[2])


def test_new_classes_get_outputs_and_everything_old_stays_as_it_was(finished: Path, tmp_path: Path) -> None:
    before = files(finished)
    new = table(tmp_path / "new.csv", rows(2, ("ethanol", "acetone", "butane", "butane"), 60))
    verdict = update(finished, new, max_drop=1)
    assert "new classes: butane" in verdict.notes
    assert verdict.shift is not None
    assert verdict.shift.drifted
    assert files(finished) == before
    assert restore(finished).stream.class_names == ("acetone", "ethanol", "butane")
    assert set(measured(finished, [str(new)])["confusion"]) == {"ethanol", "acetone", "butane"}
    again = update(finished, table(tmp_path / "next.csv", rows(3, ("butane", "ethanol"))), max_drop=1)
    assert [one.name for one in again.experiences] == ["0", "1", "new"]
    assert current(finished) == (finished / "versions" / "2", 2)


def test_where_the_gate_fails_the_old_model_stays_in_use(finished: Path, tmp_path: Path) -> None:
    swapped = [line.replace("ethanol", "x").replace("acetone", "ethanol").replace("x", "acetone") for line in rows(2)]
    new, before = table(tmp_path / "new.csv", swapped * 6), answers(finished)
    verdict = update(finished, new)
    assert not verdict.passed
    assert any("points, more than 3" in line for line in verdict.failures)
    assert torch.equal(answers(finished), before)
    assert [one["passed"] for one in history(finished)] == [True, False]
    with pytest.raises(ConfigError, match="not updated"):
        rollback(finished)
    kept = update(finished, new, max_drop=1)  # judged again, not learned again
    assert kept.passed
    assert kept.version == 1
    assert not torch.equal(answers(finished), before)
    assert rollback(finished) == 0
    assert torch.equal(answers(finished), before)
    assert rollback(finished, 1) == 1
    with pytest.raises(ConfigError, match="no finished version 7"):
        rollback(finished, 7)


def test_an_interrupted_update_leaves_the_old_model_and_goes_on_to_the_same_weights(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, before = table(tmp_path / "new.csv", rows(2)), answers(finished)
    whole = Path(shutil.copytree(finished, tmp_path / "other"))
    update(whole, new, max_drop=1)
    record = Recording.record

    def dies(self: Recording, event: dict[str, Any]) -> None:
        record(self, event)
        if event["event"] == "train":
            raise OSError("the power went")

    monkeypatch.setattr(Recording, "record", dies)
    with pytest.raises(OSError, match="the power went"):
        update(finished, new, max_drop=1)
    assert torch.equal(answers(finished), before)
    assert current(finished)[1] == 0
    monkeypatch.setattr(Recording, "record", record)
    assert update(finished, new, max_drop=1).version == 1
    one, other = weights(finished / "versions" / "1"), weights(whole / "versions" / "1")
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        (["month,s1,gas", "2,0.1,ethanol"], ConfigError, "lacks the columns 's2'"),
        (["month,s1,s2", "2,0.1,0.2"], DataError, "no labels"),
        (["month,s1,s2,gas", "2,0.1,0.2,ethanol"], DataError, "too few to learn and to test"),
        (["month,s1,s2,gas", *["2,0.1,word,ethanol"] * 9], DataError, "word"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_is_made(
    made: Path, tmp_path: Path, content: list[str], error: type[Exception], told: str
) -> None:
    path = tmp_path / "new.csv"
    path.write_text("\n".join(content) + "\n")
    with pytest.raises(error, match=told):
        update(made, path)
    assert not list(made.glob("versions/*"))
    with pytest.raises(DataError, match="no data at"):
        update(made, tmp_path / "nothing.csv")


def test_a_head_that_cannot_grow_refuses_new_classes(tmp_path: Path) -> None:
    model = {"name": "mlp", "hidden": [4]}
    folder = run(job(table(tmp_path / "gas.csv", rows(0)), model=model), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match=r"butane.*model\.head=growing"):
        update(folder, table(tmp_path / "new.csv", rows(1, ("butane", "ethanol"))))


def log(folder: Path, end: int, paradigm: str = "class") -> Path:
    """A run's log: experience 0 of 100 rows, 95 of them right when learned and `end` later."""
    folder.mkdir()
    about = {"experiences": 2, "paradigm": paradigm, "class_names": ["a", "b", "c"], "experience_names": ["x", "y"]}
    first = {"event": "evaluate", "split": "test", "samples": 100, "loss": 1.0, "class_samples": {"0": 60, "1": 40}}
    events: list[dict[str, Any]] = [
        {"event": "start", "seed": 0, "method": "er", "stream": about},
        {**first, "after": 0, "experience": 0, "correct": 95, "class_correct": {"0": 60, "1": 35}},
        {**first, "after": 1, "experience": 0, "correct": end, "class_correct": {"0": 60, "1": end - 60}},
        {**first, "after": 1, "experience": 1, "correct": 50, "class_samples": {"2": 100}, "class_correct": {"2": 50}},
        {"event": "end", "seconds": 1.0},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps({"correct_task": 1, **event}) + "\n" for event in events))
    return folder


def test_a_check_says_what_was_kept_of_each_experience_and_class_with_intervals(tmp_path: Path) -> None:
    verdict = check(log(tmp_path / "run", end=80))
    (kept,) = verdict.experiences
    assert (kept.name, kept.rows, kept.before, kept.now) == ("x", 100, 0.95, 0.8)
    assert kept.drop == pytest.approx(0.15)
    assert kept.low == pytest.approx(0.0576, abs=2e-3)
    assert kept.high == pytest.approx(0.2431, abs=2e-3)
    assert [(one.name, round(one.drop, 3)) for one in verdict.classes] == [("a", 0.0), ("b", 0.375)]
    assert verdict.failures == ["x lost 15.0 points, more than 3"]
    assert any("y was learned last: 50.0 % right" in note for note in verdict.notes)
    assert check(log(tmp_path / "few", end=91)).failures == ["x lost 4.0 points, more than 3, which may be chance"]
    assert check(tmp_path / "run", max_drop=0.2).passed
    assert not check(tmp_path / "run", max_drop=0.2, max_class_drop=0.3).passed
    assert Kept.of_errors("e", 5, 2.0, 3.0).drop == 0.5


def test_rows_that_several_experiences_are_asked_on_count_once(tmp_path: Path) -> None:
    stream = {"name": "data_incremental", "dataset": {"name": "synthetic", "classes": 2, "samples": 20}}
    method = {"name": "er", "capacity": 10}
    changes = {"stream": {**stream, "experiences": 4}, "method": method, "model": {"name": "mlp", "hidden": [8]}}
    folder = run({**changes, "trainer": {"epochs": 1}, "references": []}, tmp_path / "run", quiet=True)
    verdict, tested = check(folder), Log.read(folder).of("evaluate", "test")[-1]
    assert len(verdict.experiences) == 3
    assert verdict.whole is not None
    assert [one.rows for one in verdict.experiences] == [tested["samples"]] * 3
    assert verdict.whole.rows == tested["samples"]
    assert sum(one.rows for one in verdict.classes) == tested["samples"]
    assert verdict.whole.now == verdict.experiences[0].now
    assert any("asked on the same rows count once" in note for note in verdict.notes)
    draw = np.random.default_rng(0)
    width = holdfast.open(folder).config["stream"]["dataset"].get("features", 20)
    np.savez(tmp_path / "new.npz", x_train=draw.random((20, 20), np.float32), y_train=np.arange(20) % 2)
    updated = update(folder, tmp_path / "new.npz", max_drop=1)
    assert len(updated.experiences) == 4
    assert updated.whole is not None
    assert updated.whole.rows == tested["samples"] == sum(one.rows for one in updated.classes)
    alone, twice = Kept.counted("a", (90, 100), (80, 100)), Kept.counted("b", (90, 100), (80, 100))
    together, apart = whole([alone, twice], "both", ["one", "one"]), whole([alone, twice], "both")
    assert together is not None
    assert apart is not None
    assert (together.rows, together.low, together.high) == (100, pytest.approx(alone.low), pytest.approx(alone.high))
    assert apart.rows == 200
    assert apart.low is not None
    assert alone.low is not None
    assert apart.low > alone.low


def test_the_command_exits_with_3_where_too_much_was_lost_and_json_says_the_same(tmp_path: Path) -> None:
    folder = str(log(tmp_path / "run", end=80))
    invoked = CliRunner().invoke(app, ["check", folder])
    assert invoked.exit_code == 3
    assert "b: 87.5 % right when it was learned, 50.0 % now, on 40 rows: 37.5 points lost" in invoked.output
    assert invoked.output.splitlines()[-1] == "failed: x lost 15.0 points, more than 3"
    passed = CliRunner().invoke(app, ["check", folder, "--max-drop", "0.2", "--json"])
    assert passed.exit_code == 0
    told = json.loads(passed.output)
    assert told["passed"]
    assert told["experiences"][0]["now"] == 0.8
    assert CliRunner().invoke(app, ["check", folder, "--max-drop", "3"]).exit_code == 2
    assert CliRunner().invoke(app, ["check", str(tmp_path / "none")]).exit_code == 1


def test_check_on_new_data_compares_with_the_test_data(made: Path, tmp_path: Path) -> None:
    good = check(made, [str(table(tmp_path / "good.csv", rows(0)))], max_drop=1)
    assert good.new is not None
    assert good.new.rows == 24
    assert good.shift is not None
    assert not good.shift.drifted
    swapped = [line.replace("ethanol", "x").replace("acetone", "ethanol").replace("x", "acetone") for line in rows(0)]
    bad = check(made, [str(table(tmp_path / "bad.csv", swapped))], max_drop=0.5)
    assert len(bad.failures) == 1
    assert bad.failures[0].startswith("the new data lost")
    assert {one.name for one in bad.new_classes} == {"ethanol in the new data", "acetone in the new data"}
    alone = check(made / "checkpoints" / "last.pt", max_drop=1)
    assert [one.drop for one in alone.experiences] == [one.drop for one in check(made).experiences]


def test_python_has_the_same(finished: Path) -> None:
    opened: Any = holdfast.open(finished)
    assert opened.check(max_drop=1).passed
    draw = np.random.default_rng(5)
    labels = np.array(GASES)[np.arange(40) % 2]
    inputs = (draw.normal(0, 0.3, (40, 2)) + 4 * (np.arange(40) % 2)[:, None]).astype("f4")
    assert opened.update((inputs, labels), max_drop=1).passed
    assert opened.version == 1
    assert opened.rollback() == 0


# Sources ---------------------------------------------------------------------------------------------------


def stream_table(path: Path, months: int, first: int = 0) -> Path:
    return table(path, *(rows(month, count=60) for month in range(first, first + months)))


@pytest.fixture(scope="module")
def on_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    config = {
        "source": {"name": "csv", "path": str(stream_table(folder / "a.csv", 6)), "drop": ["month"]},
        "model": {"name": "mlp", "hidden": [8]},
        "method": {"name": "er", "capacity": 20},
        "trainer": {"batch_size": 8, "log_every": 5},
        "arrival": {"hold_out": 0.2, "observe_every": 5},
        "optimizer": {"name": "SGD", "lr": 0.1},
    }
    made = run(config, folder / "run", quiet=True)
    (folder / "a.csv").unlink()
    return made


def test_a_run_on_a_csv_source_answers_tables_by_name(on_source: Path, tmp_path: Path) -> None:
    path = stream_table(tmp_path / "b.csv", 1, first=9)
    made = predict(on_source, [str(path)], tmp_path / "out.csv")
    assert made.scores.samples == 60
    assert measured(on_source, [str(path)])["accuracy"] > 0.9
    head, line = (tmp_path / "out.csv").read_text().splitlines()[:2]
    assert head == "month,s1,s2,gas,predicted_gas,probability,p(acetone),p(ethanol),right"
    assert line.split(",")[4] in GASES
    again = restore(on_source / "checkpoints" / "last.pt")
    assert all(
        torch.equal(value, again.engine.learner.model.state_dict()[key]) for key, value in weights(on_source).items()
    )
    evaluated = CliRunner().invoke(app, ["eval", str(on_source), str(path)])
    assert json.loads(evaluated.output)["samples"] == 60


def test_a_run_on_a_source_is_checked_and_updated(on_source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(on_source, tmp_path / "run"))
    verdict = check(folder, max_drop=1)
    assert [one.name for one in verdict.experiences] == [
        "the oldest quarter",
        "the second quarter",
        "the third quarter",
    ]
    made = update(folder, stream_table(tmp_path / "b.csv", 2, first=6), max_drop=1)
    assert made.passed
    assert made.experiences[0].name == "the oldest quarter"
    assert made.new is not None
    assert made.new.rows == 30
    before, after = Log.read(folder).of("train"), Log.read(folder / "versions" / "1").of("train")
    assert after[-1]["samples"] == before[-1]["samples"] + 90
    with pytest.raises(ConfigError, match="butane"):
        update(folder, table(tmp_path / "c.csv", rows(9, ("butane", "ethanol"))))
