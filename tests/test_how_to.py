"""The pages from nothing to a result: every command of theirs is run, in order, in an empty folder."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.config import plugins

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _no_plugin_is_left() -> Iterator[None]:
    """What a page's plug-in defined is forgotten, for the tests that come after."""
    yield
    for one in plugins.used():
        plugins.drop(one.path.stem)


def commands(page: str) -> list[list[str]]:
    """The commands of a page's console blocks."""
    text = (ROOT / "docs" / page).read_text()
    lines = [
        line for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()
    ]
    return [shlex.split(line)[1:] for line in lines if line.startswith("holdfast ")]


def follow(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(folder)
    told = []
    for words in commands(page):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{words}: {result.output}"
        told.append(result.output)
    return told


def test_my_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = follow("my_table.md", tmp_path, monkeypatch)
    assert len(told) == 4
    assert re.search(r"er +kept \d\d\.\d %", told[1])
    assert "right, of 360 with a label" in told[2]
    with (tmp_path / "labelled.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["predicted_gas"] for row in rows} == {"acetone", "ethanol", "toluene"}
    assert sum(row["right"] == "True" for row in rows) > 300
    assert (tmp_path / "gas.json").is_file()


def test_my_model_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["init", "table", str(tmp_path / "beside")]).exit_code == 0
    lines = (tmp_path / "beside" / "measurements.csv").read_text().splitlines(keepends=True)
    (tmp_path / "april.csv").write_text("".join([lines[0], *(line for line in lines if line.startswith("2024-04"))]))
    told = follow("my_model_in_use.md", tmp_path, monkeypatch)
    assert len(told) == 6
    assert "2024-01: " in told[2]
    assert "passed: nothing lost more than 20 points" in told[2]
    assert "the new data: " in told[3]
    assert "april (new): " in told[4]
    assert "version 1 is in use" in told[4]
    assert "version 0 of runs/first is in use" in told[5]


@pytest.mark.slow
def test_my_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")
    told = follow("my_images.md", tmp_path, monkeypatch)
    assert "right, of 160 with a label" in told[-1]
    assert (tmp_path / "many" / "predictions.png").is_file()


@pytest.mark.slow
def test_my_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = follow("my_method.md", tmp_path, monkeypatch)
    assert "my_method" in told[1]
    assert "der_plus_plus" in told[-1]


@pytest.mark.parametrize("kind", ["table", "images", "method"])
def test_a_beginning_is_a_valid_job_and_is_never_written_over(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "images":
        pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init", kind]).exit_code == 0
    plugin = ["--plugin", "my_method.py"] if kind == "method" else []
    job = {"table": "table.yaml", "images": "images.yaml", "method": "method.yaml"}[kind]
    checked = CliRunner().invoke(app, ["validate", job, *plugin])
    assert checked.exit_code == 0, checked.output
    again = CliRunner().invoke(app, ["init", kind])
    assert again.exit_code == 2
    assert "nothing is overwritten" in again.output


def test_a_beginning_for_a_table_of_ones_own_names_its_columns(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("id;when;heat;state of it\n1;2024-01-02;3,5;good\n2;2024-02-02;4,5;bad\n")
    assert CliRunner().invoke(app, ["init", "table", str(tmp_path / "new"), "--data", str(mine)]).exit_code == 0
    text = (tmp_path / "new" / "table.yaml").read_text()
    assert 'target: "state of it"' in text
    assert 'by: "when"' in text
    wrong = CliRunner().invoke(app, ["init", "tabel"])
    assert "did you mean 'table'?" in wrong.output


def test_the_page_for_language_models_names_files_that_are_there() -> None:
    text = (ROOT / "llms.txt").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_shells_can_complete_commands() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert "--install-completion" in result.output
