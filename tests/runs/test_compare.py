import json
import sys
from io import StringIO
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))

from fake_run import MATRIX, write_run

from holdfast.core.errors import DataError
from holdfast.runs.compare import as_csv, as_json, differences, gathered, sort, summarise
from holdfast.runs.opened import render, show


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
    for seed, final in enumerate((0.4, 0.5, 0.6)):
        write_run(tmp_path / str(seed), matrix=[[1.0, 0.0], [final, final]], seed=seed)
    rows = summarise([tmp_path / "0", tmp_path / "1", tmp_path / "2"])
    assert len(rows) == 1
    kept = rows[0].values["average_accuracy"]
    assert (kept.mean, kept.runs) == (pytest.approx(0.5), 3)
    assert kept.half == pytest.approx(4.302652729911275 * 0.1 / 3**0.5)
    assert "50.0 ± 24.8" in shown(rows)
    assert "95 % t interval over 3 seeds" in shown(rows)


def test_two_seeds_are_told_by_their_values_and_not_by_an_interval(tmp_path):
    for seed, final in enumerate((0.4, 0.6)):
        write_run(tmp_path / str(seed), matrix=[[1.0, 0.0], [final, final]], seed=seed)
    text = shown(summarise([tmp_path / "0", tmp_path / "1"]))
    assert "50.0 (40.0, 60.0)" in text
    assert "±" not in text


def test_the_same_run_twice_is_one_seed(tmp_path):
    for name, started in (("first", 1.0), ("again", 2.0)):
        folder = write_run(tmp_path / name)
        (folder / "run.json").write_text(json.dumps({"state": "finished", "started": started}))
    [row] = summarise([tmp_path / "first", tmp_path / "again"])
    assert [run.path.name for run in row.runs] == ["again"]
    assert row.values["average_accuracy"].half is None


def test_a_run_that_diverged_stands_apart_and_says_why(tmp_path):
    write_run(tmp_path / "good", seed=0)
    folder = write_run(tmp_path / "bad", seed=1, finished=False)
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "diverged", "reason": "the loss is not finite at step 7"}) + "\n")
    rows = summarise([tmp_path / "good", folder])
    assert [row.state for row in rows] == ["finished", "diverged: the loss is not finite at step 7"]
    assert rows[0].values["average_accuracy"].runs == 1
    assert "not finite at step 7" in shown(rows)


def test_a_damaged_folder_does_not_hide_the_others(tmp_path, capsys):
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad")
    (tmp_path / "bad" / "log.jsonl").write_text('{"event": "start"}\nbroken\n{"event": "end"}\n')
    write_run(tmp_path / "no_json")
    (tmp_path / "no_json" / "run.json").write_text("{")
    problems = show([tmp_path / "bad", tmp_path / "good", tmp_path / "no_json", tmp_path / "missing"])
    assert "er on toy" in capsys.readouterr().out
    assert len(problems) == 3
    assert "line 2 is damaged" in problems[0]
    with pytest.raises(DataError, match="damaged"):
        gathered([tmp_path / "bad"])


def test_names_are_whole_in_a_pipe(tmp_path, capsys):
    name = "a_method_whose_name_is_" + "very_" * 40 + "long"
    write_run(tmp_path / "a", method=name)
    write_run(tmp_path / "b")
    show([tmp_path / "a", tmp_path / "b"])
    assert name in capsys.readouterr().out


def test_what_differs_between_configurations_is_said_and_the_best_is_marked(tmp_path):
    for name, final in (("small", 0.4), ("large", 0.9)):
        config = {"method": {"name": "er", "size": name}, "trainer": {"epochs": 3}, "folders": {"run": name}}
        write_run(tmp_path / name, matrix=[[1.0, 0.0], [final, final]], config=config)
    rows = summarise([tmp_path / "small", tmp_path / "large"])
    assert [row.settings for row in rows] == [{"method.size": "small"}, {"method.size": "large"}]
    lines = shown(rows).splitlines()
    assert ["90.0 *" in line for line in lines if "method.size=" in line] == [False, True]
    assert [row.name for row in sort(rows, "kept")] == ["er on toy (large)", "er on toy (small)"]


def test_nothing_is_best_where_streams_differ(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", paradigm="task")
    assert " *" not in shown(summarise([tmp_path / "a", tmp_path / "b"])).split("\n", 2)[2]


def test_runs_as_csv_and_json_hold_every_measure(tmp_path):
    import csv

    write_run(tmp_path / "a", config={"method": {"name": "er", "size": 1}})
    write_run(tmp_path / "b", config={"method": {"name": "er", "size": 2}}, seed=4)
    rows = summarise([tmp_path / "a", tmp_path / "b"])
    lines = list(csv.DictReader(StringIO(as_csv(rows))))
    assert [(line["seed"], line["config.method.size"]) for line in lines] == [("0", "1"), ("4", "2")]
    assert float(lines[0]["average_accuracy"]) == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    content = json.loads(as_json(rows))
    assert content[1]["runs"][0]["seed"] == 4
    assert content[0]["values"]["average_accuracy"]["mean"] == pytest.approx((0.7 + 0.5 + 1.0) / 3)


def test_references_are_shown_where_they_are_asked_for(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "a" / "references" / "joint", method="joint")
    assert [row.name for row in summarise([tmp_path / "a"], references=True)] == ["er on toy", "joint on toy"]
    assert differences([{"a": {"b": 1}}, {"a": {}}]) == [{"a.b": 1}, {"a": {}}]


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
