import json
import sys
from io import StringIO
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))

from fake_run import MATRIX, write_run

from holdfast.core.errors import DataError
from holdfast.runs.compare import render, show, summarise


def shown(rows):
    from rich.console import Console

    console = Console(file=StringIO(), width=160, color_system=None)
    console.print(render(rows))
    return console.file.getvalue()


def test_one_run_is_shown_with_its_headline_and_matrix(tmp_path):
    text = shown(summarise([write_run(tmp_path / "a")]))
    assert "er on toy" in text
    assert "finished" in text
    assert f"{100 * (0.7 + 0.5 + 1.0) / 3:.1f}" in text
    for row in MATRIX:
        for value in row:
            assert f"{100 * value:.1f}" in text


def test_runs_equal_but_for_the_seed_are_one_row_with_mean_and_spread(tmp_path):
    for seed, final in enumerate((0.4, 0.6)):
        write_run(tmp_path / str(seed), matrix=[[1.0, 0.0], [final, final]], seed=seed)
    rows = summarise([tmp_path / "0", tmp_path / "1"])
    assert len(rows) == 1
    kept = rows[0].values["average_accuracy"]
    assert (kept.mean, kept.runs) == (pytest.approx(0.5), 2)
    assert kept.error == pytest.approx(0.1)
    assert "50.0 ± 10.0" in shown(rows)


def test_runs_of_other_configurations_are_rows_of_their_own(tmp_path):
    write_run(tmp_path / "a", method="er")
    write_run(tmp_path / "b", method="ewc")
    write_run(tmp_path / "c", method="er", config={"method": {"name": "er", "lr": 0.2}})
    rows = summarise([tmp_path / name for name in "abc"])
    assert len(rows) == 3
    assert len({row.name for row in rows}) == 3
    text = shown(rows)
    assert "er on toy (a)" in text
    assert "ewc on toy" in text


def test_a_folder_of_seeds_counts_as_its_seeds_and_once(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"seed-{seed}", seed=seed)
    rows = summarise([tmp_path, tmp_path / "seed-1"])
    assert [len(row.runs) for row in rows] == [3]


def test_runs_without_a_configuration_are_never_averaged(tmp_path):
    for name in "ab":
        (write_run(tmp_path / name) / "config.json").unlink()
    assert len(summarise([tmp_path / "a", tmp_path / "b"])) == 2


def test_a_killed_run_is_shown_as_unfinished_and_not_averaged_with_finished_ones(tmp_path):
    write_run(tmp_path / "whole")
    write_run(tmp_path / "killed", seed=1, matrix=MATRIX[:2], finished=False, tail='{"event": "evalu')
    (tmp_path / "killed" / "run.json").write_text(json.dumps({"state": "running"}))
    rows = summarise([tmp_path / "whole", tmp_path / "killed"])
    assert [row.state for row in rows] == ["finished", "unfinished (running): 2 of 3 experiences"]
    assert rows[1].values["average_accuracy"].mean == pytest.approx(0.7)
    assert "unfinished (running): 2 of 3 experiences" in shown(rows)
    assert "unfinished" in shown(rows[1:])


def test_a_task_incremental_run_is_judged_by_its_task_aware_measures(tmp_path):
    row = summarise([write_run(tmp_path, paradigm="task")])[0]
    assert row.value("average_accuracy") == row.values["task_aware_average_accuracy"]
    assert row.value("average_accuracy") != row.values["average_accuracy"]


def test_names_are_text_and_not_markup(tmp_path):
    row = summarise([write_run(tmp_path, method="[red]er", names=["[b]a", "b", "c"])])
    assert "[red]er on toy" in shown(row)
    assert "[b]a" in shown(row)
    assert "[red]er on toy" in shown([*row, *row])


def test_asking_for_references_makes_no_other_experiment(tmp_path):
    write_run(tmp_path / "a", config={"method": "er", "references": ["joint"]})
    write_run(tmp_path / "b", config={"method": "er", "references": []}, seed=1)
    assert len(summarise([tmp_path / "a", tmp_path / "b"])) == 1


def test_showing_prints_the_table(tmp_path, capsys):
    show([write_run(tmp_path)])
    assert "er on toy" in capsys.readouterr().out


def test_no_runs_make_an_empty_table():
    assert summarise([]) == []
    assert "kept" in shown([])


def test_a_folder_without_a_run_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        summarise([tmp_path])
