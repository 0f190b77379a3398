import json
import re
import sys
import threading
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))

from fake_run import MATRIX, evaluation, events, write_log, write_run

from holdfast.core.errors import DataError
from holdfast.metrics.classes import confusion
from holdfast.metrics.cost import curves
from holdfast.metrics.log import Log
from holdfast.metrics.statistics import spread
from holdfast.runs import reports
from holdfast.runs.drawing import series, to_png, to_svg
from holdfast.runs.plots import confusion_map, heat_map, learning_rate, loss_terms, over_time, so_far
from holdfast.runs.report import number, percent, points, write_report
from holdfast.runs.result import Results

HOSTILE = '<script>alert("x")</script> & $x_1$'


class Page(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(folder):
    return Page(write_report(folder).read_text())


def test_the_report_contains_the_numbers_in_plain_words(tmp_path):
    text = page(write_run(tmp_path)).text
    for word, value in (("Kept", (0.7 + 0.5 + 1.0) / 3), ("Learned", (0.9 + 0.8 + 1.0) / 3)):
        assert f"{word} {100 * value:.1f} %" in text
    assert f"Forgot {100 * (0.2 + 0.3) / 2:.1f} points" in text
    assert "er on toy" in text
    assert "holdfast run er.json" in text
    assert "2.13.0" in text
    assert '"lr": 0.1' in text


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, with_figures):
    """The folder of a run whose report was made with its figures; to be read."""
    folder = write_run(tmp_path_factory.mktemp("drawn"))
    with with_figures():
        write_report(folder)
    return folder


def test_the_report_refers_to_nothing_outside_itself(drawn):
    text = (drawn / "report.html").read_text()
    found = Page(text)
    assert not re.search(r"https?://|//[a-z]", text)
    assert "script" not in found.tags
    assert not {"link", "iframe", "object", "embed", "base"} & set(found.tags)
    targets = [value for name, value in found.attributes if name in ("src", "href", "xlink:href")]
    assert targets
    assert all(value.startswith("#") for value in targets)
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_moment_a_run_started_is_told_as_a_date(tmp_path):
    write_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"state": "running", "started": 86400.5}))
    text = page(tmp_path).text
    assert "started 1970-01-02 00:00:00 UTC" in text
    assert "running" not in text


def test_plots_are_made_beside_the_page(drawn):
    names = {path.name for path in (drawn / "plots").iterdir()}
    expected = {"accuracy_matrix", "accuracy_matrix_task_aware", "accuracy_over_time", "loss_terms", "classes"}
    expected |= {"classes_over_time"}
    assert names == {f"{name}.png" for name in expected}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (drawn / "plots").iterdir())


@pytest.mark.usefixtures("figures")
def test_hostile_names_are_shown_and_not_run(tmp_path):
    write_run(tmp_path, names=[HOSTILE, "b", "c"], method=HOSTILE, terms=("loss", HOSTILE, "_hidden"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    lines[0]["stream"]["class_names"] = [HOSTILE] * 6
    lines[0]["stream"]["name"] = HOSTILE
    write_log(tmp_path / "log.jsonl", lines)
    (tmp_path / "config.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (tmp_path / "run.json").write_text(
        json.dumps({"command": HOSTILE, "versions": {HOSTILE: HOSTILE}, HOSTILE: HOSTILE})
    )
    found = page(tmp_path)
    assert "script" not in found.tags
    assert HOSTILE in found.text
    assert "_hidden" in found.text


def test_reading_a_run_never_changes_its_files(tmp_path):
    write_run(tmp_path)
    files = [tmp_path / name for name in ("log.jsonl", "config.json", "run.json")]
    kept = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    write_report(tmp_path)
    Results.load(tmp_path)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == kept


@pytest.mark.usefixtures("figures")
def test_the_report_made_again_is_the_same(drawn):
    first = (drawn / "report.html").read_text()
    assert write_report(drawn).read_text() == first
    assert not list(drawn.glob("**/*.tmp"))


def test_a_killed_run_gets_a_report_of_what_it_learned(tmp_path):
    write_run(tmp_path, matrix=MATRIX[:2], finished=False, tail='{"event": "eval')
    text = page(tmp_path).text
    assert "unfinished: 2 of 3 experiences" in text
    assert "Kept 70.0 %" in text


def test_references_are_the_two_ends_of_the_scale(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path / "references" / "finetune", matrix=[[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9]])
    write_run(tmp_path / "references" / "joint", matrix=[[0.9, 0.9, 0.9]] * 3)
    share = ((0.7 + 0.5 + 1.0) / 3 - 0.3) / (0.9 - 0.3)
    found = page(tmp_path)
    assert list(Results.load(tmp_path).references) == ["finetune", "joint"]
    assert f"closes {100 * share:.1f} % of the gap" in found.text
    assert f"left: {100 * share:.2f}%" in [value for name, value in found.attributes if name == "style"]


def test_a_method_below_fine_tuning_stays_on_the_scale(tmp_path):
    write_run(tmp_path, matrix=[[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.5]])
    write_run(tmp_path / "references" / "finetune", matrix=[[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9]])
    write_run(tmp_path / "references" / "joint", matrix=[[0.9, 0.9, 0.9]] * 3)
    found = page(tmp_path)
    assert "below plain fine-tuning" in found.text
    assert "left: 0.00%" in [value for name, value in found.attributes if name == "style"]


def test_one_reference_alone_is_shown_without_a_scale(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path / "references" / "joint", matrix=[[0.9, 0.9, 0.9]] * 3)
    text = page(tmp_path).text
    assert "joint" in text
    assert "of the gap" not in text


def test_several_seeds_are_shown_by_mean_and_interval(tmp_path):
    finals = (0.4, 0.5, 0.9)
    for seed, final in enumerate(finals):
        write_run(tmp_path / f"seed-{seed}", matrix=[[1.0, 0.0], [final, final]], seed=seed)
    mean = sum(finals) / 3
    error = (sum((final - mean) ** 2 for final in finals) / 2 / 3) ** 0.5
    text = page(tmp_path).text
    assert f"Kept {100 * mean:.1f} ± {100 * 4.302652729911275 * error:.1f} %" in text
    assert "mean ± 95 % t interval over 3 seeds" in text


def test_a_run_that_diverged_has_a_red_line_and_no_part_in_the_means(tmp_path):
    write_run(tmp_path / "seed-0", matrix=[[1.0, 0.0], [0.6, 0.6]])
    write_run(tmp_path / "seed-1", matrix=[[1.0, 0.0]], seed=1, finished=False)
    with (tmp_path / "seed-1" / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "diverged", "reason": "the loss is 1e+29 at step 50"}) + "\n")
    found = page(tmp_path)
    assert "Diverged. seed-1: the loss is 1e+29 at step 50" in found.text
    assert ("class", "notice wrong") in found.attributes
    assert "Kept 60.0 %" in found.text


def test_one_report_parses_the_log_of_each_run_once(tmp_path, monkeypatch):
    write_run(tmp_path)
    for name in ("finetune", "joint"):
        write_run(tmp_path / "references" / name, method=name)
    opened, parsed = [], []
    read, made = Path.read_bytes, Log.__init__
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path), read(path))[1])
    monkeypatch.setattr(Log, "__init__", lambda log, *args: (parsed.append(1), made(log, *args))[1])
    write_report(tmp_path)
    logs = [path for path in opened if path.name == "log.jsonl"]
    assert len(logs) == len(set(logs)) == 3
    assert len(parsed) == 3


def test_an_unfinished_seed_is_left_out_of_the_means_and_named(tmp_path):
    write_run(tmp_path / "seed-0", matrix=[[1.0, 0.0], [0.6, 0.6]])
    write_run(tmp_path / "seed-1", matrix=[[1.0, 0.0]], seed=1, finished=False)
    text = page(tmp_path).text
    assert "Kept 60.0 %" in text
    assert "1 run did not finish and is left out" in text
    assert "unfinished: 1 of 2 experiences" in text


DRAWN = """
import pathlib, sys
for line in sys.stdin:
    folder = pathlib.Path(line.rstrip())
    if folder.name == "1":
        sys.exit()
    if folder.name != "2":
        (folder / "report.html").write_text("by another process")
    print("failed" if folder.name == "2" else "drawn", flush=True)
"""
"""Draws in no time, but for one run that it cannot draw, and ends at another."""


@pytest.fixture
def another_process(monkeypatch):
    """Reports are worth a process of their own, of which there is one."""
    monkeypatch.setattr(reports, "WORTH", 0.0)
    monkeypatch.setattr(reports, "DRAWS", DRAWN)
    monkeypatch.setattr(reports.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    helpers = reports.Helpers()
    monkeypatch.setattr(reports, "helpers", helpers)
    yield helpers
    helpers.end()


@pytest.mark.parametrize("left", [["3", "4"], ["2", "3"], ["1", "3"]])
def test_reports_of_many_runs_are_drawn_by_several_processes_and_none_is_missing(
    tmp_path, another_process, monkeypatch, left
):
    here = []
    gate = threading.Event()

    def draw(folder):
        here.append(folder.name)
        if folder.name == "0":
            gate.set()
        elif left and left[0] not in ("1", "2"):
            gate.wait()
        (folder / "report.html").write_text("here")

    monkeypatch.setattr(reports, "write_report", draw)
    folders = [tmp_path / name for name in ("0", *left)]
    for folder in folders:
        folder.mkdir()
    reports.write_reports(folders)
    assert all((folder / "report.html").is_file() for folder in folders)
    assert "0" in here
    assert not {"1", "2"} & set(left) or {"1", "2"} & set(here), "what the process could not do is done here"


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_a_process_that_draws_reports_draws_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "WORTH", 0.0)
    monkeypatch.setattr(reports.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    folders = [write_run(tmp_path / str(number)) for number in range(6)]
    reports.write_reports(folders)
    pages = [(folder / "report.html").read_text() for folder in folders]
    shapes = [[tag for tag in Page(text).tags if tag in ("svg", "td", "h2")] for text in pages]
    assert "svg" in shapes[0]
    assert all(shape == shapes[0] for shape in shapes)


def test_seeds_are_ordered_by_number(tmp_path):
    for seed in (10, 2, 0):
        write_run(tmp_path / f"seed-{seed}", seed=seed)
    assert [run.path.name for run in Results.load(tmp_path)] == ["seed-0", "seed-2", "seed-10"]


def test_regression_is_reported_by_its_loss(tmp_path):
    log = [*events()[:1], evaluation(0, 0, None), evaluation(1, 0, None) | {"loss": 0.75}, evaluation(1, 1, None)]
    write_log(tmp_path / "log.jsonl", [*log, {"event": "end", "seconds": 1.0}])
    text = page(tmp_path).text
    assert "Kept 0.625" in text
    assert "Forgot 0.25" in text


@pytest.mark.parametrize("settings", [{"matrix": [[0.9]]}, {"classes": False}, {"terms": ()}, {"paradigm": "task"}])
@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("figures")
def test_a_run_with_parts_missing_has_a_report(tmp_path, settings):
    assert "Kept" in page(write_run(tmp_path, **settings)).text


def test_a_run_that_only_started_has_a_report(tmp_path):
    write_log(tmp_path / "log.jsonl", events()[:1])
    assert "unfinished: 0 of 3 experiences" in page(tmp_path).text


def test_a_folder_without_a_run_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_configuration_is_an_error_that_names_the_file(tmp_path):
    write_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is damaged"):
        write_report(tmp_path)


@pytest.mark.parametrize("count", [1, 3, 14, 45])
def test_figures_become_well_formed_svg_in_the_colours_of_the_page(count):
    matrix = np.tril(np.full((count, count), 0.5))
    names = [f"experience {index}" for index in range(count)]
    for figure, coloured in ((heat_map(matrix, names), 0), (over_time(matrix, names), count)):
        svg = to_svg(figure, "name", coloured)
        ElementTree.fromstring(svg)
        assert "var(--ink)" in svg
        assert "#1b2330" not in svg
    assert len(series(count)) == count


def test_ids_of_two_figures_never_meet():
    svgs = [to_svg(heat_map(np.eye(2), ["a", "b"]), name) for name in ("one", "two")]
    first, second = ({item.get("id") for item in ElementTree.fromstring(svg).iter() if item.get("id")} for svg in svgs)
    assert first
    assert not first & second


def test_a_heat_map_writes_every_number():
    svg = to_svg(heat_map(np.array([[0.123, np.nan], [0.5, 1.0]]), ["a", "b"]), "name")
    words = [item.text for item in ElementTree.fromstring(svg).iter("text")]
    assert {"12.3", "50.0", "100.0"} <= set(words)


@pytest.mark.usefixtures("figures")
def test_a_learning_rate_that_moves_is_drawn_and_one_that_does_not_is_not(tmp_path):
    folder = write_run(tmp_path)
    assert "Learning rate" not in page(folder).text
    moving = events()
    for place, line in enumerate(line for line in moving if line["event"] == "train"):
        line["lr"] = 0.1 / 4**place
    write_log(folder / "log.jsonl", moving, "")
    assert "Learning rate" in page(folder).text
    assert (folder / "plots" / "learning_rate.png").is_file()
    drawn = curves(moving)
    assert learning_rate(drawn).axes[0].lines[0].get_ydata().tolist() == drawn["lr"]
    assert learning_rate(drawn).axes[0].get_yscale() == "log"


def test_loss_terms_of_very_different_size_share_a_logarithmic_scale():
    lines = {"step": [1, 2], "experience": [0, 1], "terms": {"loss": [1.0, 2.0], "penalty": [None, 1e-5]}}
    assert loss_terms(lines).axes[0].get_yscale() == "log"
    lines["terms"]["penalty"] = [None, 0.5]
    assert loss_terms(lines).axes[0].get_yscale() == "linear"


def test_numbers_are_said_with_one_decimal_and_their_error():
    assert percent(0.87349) == "87.3 %"
    assert percent(spread([0.5, 0.6, 0.7])) == "60.0 ± 24.8 %"
    assert percent(spread([0.5, 0.7])) == "60.0 (50.0, 70.0) %"
    assert points(-0.123) == "−12.3"
    assert number(1234.0) == "1,234"
    assert (percent(None), points(None), number(None), percent(float("nan"))) == ("–",) * 4
    assert spread([None, float("nan")]) is None


def with_confusions(log):
    """The log with what each class was taken for: every wrong answer is class 0, or 1 for class 0 itself."""
    for line in log:
        for label, count in (line.get("class_samples") or {}).items():
            right = line["class_correct"][label]
            row = {label: right, "1" if label == "0" else "0": count - right}
            line.setdefault("confusion", {})[label] = {answer: n for answer, n in row.items() if n}
    return log


@pytest.mark.usefixtures("figures")
def test_the_confusions_of_the_log_are_shown(tmp_path):
    write_run(tmp_path)
    write_log(tmp_path / "log.jsonl", with_confusions(events()))
    text = page(tmp_path).text
    assert "Confusions" in text
    assert "how many samples of each class (rows) were answered with each class" in text
    assert (tmp_path / "plots" / "confusion.png").is_file()
    classes, counts = confusion(Log.read(tmp_path))
    assert classes == [0, 1, 2, 3, 4, 5]
    assert counts.sum() == 30
    assert counts[3, 0] + counts[3, 3] == 5
    svg = to_svg(confusion_map(counts, [str(label) for label in classes]), "name")
    words = [item.text for item in ElementTree.fromstring(svg).iter("text")]
    assert str(counts[3, 0]) in words


@pytest.mark.usefixtures("figures")
def test_the_report_says_in_a_sentence_what_was_done_and_what_came_of_it(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path / "references" / "joint", method="joint", matrix=[[0.9, 0.9, 0.9]] * 3)
    found = page(tmp_path)
    told = "er learned 3 experiences of toy one after another; at the end it answers 73.3 % of the test samples right"
    assert f"{told} (beside it: joint 90.0 %)." in found.text
    assert "er: " in found.text
    assert "(lr=0.1)." in found.text
    assert "references/joint/report.html" in [value for name, value in found.attributes if name == "href"]
    assert (tmp_path / "plots" / "references_over_time.png").is_file()


def test_experiences_of_the_same_name_are_numbered(tmp_path):
    text = page(write_run(tmp_path, names=["cats", "cats", "dogs"])).text
    assert "0: cats" in text
    assert "1: cats" in text
    assert "2: dogs" not in text


def test_the_stream_is_shown_with_its_sizes_and_classes(tmp_path):
    text = page(write_run(tmp_path)).text
    assert "The stream experience to train on to test on classes 0-1 100 10 class 0, class 1" in text


@pytest.mark.parametrize(
    "names", [("er", "joint"), ("slda (one_more)", "gdumb (train_on_memory) (1393)", "er"), "WWWW"]
)
def test_a_legend_of_long_names_leaves_room_for_the_lines(figures, names):
    table = np.where(np.tri(5, dtype=bool), 0.9, np.nan)
    figure = so_far(
        {f"{number} {name * (40 if name == 'W' else 1)}": table for number, name in enumerate(names)}, "01234"
    )
    to_png(figure)
    assert figure.axes[0].get_position().width > 0.6
