"""The documentation: generated pages are current, and what the pages show really runs."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import holdfast.methods
from holdfast import cli
from holdfast.config import plugins
from holdfast.core.operation import ENTRY_POINTS
from holdfast.discovery.settings import made, parsed
from holdfast.metrics import METRICS, compute

ROOT = Path(__file__).parents[1]
WRITTEN = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md")])
PAGES = sorted([*WRITTEN, *ROOT.glob("docs/methods/*.md"), *ROOT.glob("docs/operations/*.md")])
COMMANDS = (ROOT / "docs/command_line.md").read_text(encoding="utf-8")


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def with_blocks(pages, language):
    return [page for page in pages if blocks(page, language)]


def files_of(page):
    """The files that a page tells the reader to write: blocks of Python that begin with `# name.py`."""
    found = {block: re.match(r"# (\w+\.py)\n", block) for block in blocks(page, "python")}
    return {match[1]: block for block, match in found.items() if match}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the files of a page into an empty folder, and afterwards forgets what they defined."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(METRICS)
    names = set()

    def write(page):
        for name, text in files_of(page).items():
            (tmp_path / name).write_text(text)
            names.add(name.removesuffix(".py"))
        return tmp_path

    yield write
    for one in plugins.used():
        plugins.drop(one.path.stem)
    for name in names:
        sys.modules.pop(name, None)
    METRICS.clear()
    METRICS.update(before)


def test_the_generated_pages_follow_from_the_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    try:
        runpy.run_path(str(ROOT / "docs/generate.py"), run_name="__main__")
    except SystemExit as stopped:
        pytest.fail(f"{capsys.readouterr().out}\n{stopped}")


AT_LENGTH = "docs/extending.md"
"""A page that builds one of each kind and checks it."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if name_of(page) == AT_LENGTH else ())
        for page in with_blocks(WRITTEN, "python")
    ],
    ids=name_of,
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, written, capsys):
    written(page)
    namespace = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python")):
        if block not in files_of(page).values():
            code = compile("from __future__ import annotations\n" + block, f"{page.name}, block {number}", "exec")
            exec(code, namespace)
    capsys.readouterr()


@pytest.mark.parametrize("page", with_blocks(WRITTEN, "json"), ids=name_of)
def test_the_json_of_a_page_is_a_valid_job(page, tmp_path):
    for block in blocks(page, "json"):
        (tmp_path / "job.json").write_text(block)
        if page.name == "search.md":  # a space of jobs
            assert made(parsed(str(tmp_path / "job.json"), [])[0]).objectives
            continue
        assert cli.validated_job([str(tmp_path / "job.json")]).config["method"]


def first_of(word):
    """The first value of a word of a sweep; a list is one value."""
    value = word.partition("=")[2]
    return word if value.startswith(("[", "{")) else word.split(",")[0].replace("range(", "").rstrip(")")


@pytest.mark.parametrize("page", with_blocks(PAGES, "console"), ids=name_of)
def test_the_commands_of_a_page_are_accepted(page, tmp_path, written):
    written(page)
    jobs = blocks(page, "json")
    (tmp_path / "job.json").write_text(jobs[0] if jobs else "{}")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "searches" / "2026-11-27-143000").mkdir(parents=True)  # the example of a search and its best job
    (tmp_path / "searches" / "2026-11-27-143000" / "best.json").write_text("{}")
    for line in "".join(blocks(page, "console")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["holdfast"]:
            continue
        command, given = words[1], words[2:]
        assert f"## `holdfast {command}" in COMMANDS, line
        if command == "run" and "-m" in given:  # the first of its runs
            given = [first_of(word) for word in given if word != "-m"]
        if command == "init":  # what it writes is named by the commands below it
            assert CliRunner().invoke(cli.app, words[1:]).exit_code == 0, line
        for option in ("--out", "--jobs", "-j"):
            if command == "run" and option in given:
                at = given.index(option)
                del given[at : at + 2]
        if command in ("run", "validate", "config", "list", "schema"):
            done = CliRunner().invoke(cli.app, ["validate" if command == "run" else command, *given])
            assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_that_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_the_files_that_a_page_names_are_there():
    places = [ROOT, ROOT / "src" / "holdfast", ROOT / "docs"]
    gone = [
        f"{page.name}: {name}"
        for page in WRITTEN
        if page.name != "CHANGELOG.md"  # which tells of files that were moved
        for name in re.findall(r"`([\w./]+/[\w.]+\.(?:py|md|toml))`", page.read_text(encoding="utf-8"))
        if not any((place / name).exists() for place in places)
    ]
    assert not gone
    decisions = {page.name: page.read_text(encoding="utf-8") for page in ROOT.glob("docs/decisions/*.md")}
    assert not [name for name, text in decisions.items() if re.search(r"`\w+\.md`", text)], "a page is named by a link"


def test_the_table_of_entry_points_has_all_eleven_in_order():
    text = (ROOT / "docs/entry_points.md").read_text()
    rows = re.findall(r"^\| `(\w+)\([^|]*\)` \|", text, re.MULTILINE)
    assert tuple(row for row in rows if row in ENTRY_POINTS) == ENTRY_POINTS


def test_the_page_of_the_run_folder_names_every_key_of_the_metrics():
    text = (ROOT / "docs/run_folder.md").read_text()
    event = {"event": "evaluate", "after": 0, "experience": 0, "split": "test", "samples": 4, "correct": 3, "loss": 0.5}
    keys = {*METRICS, *compute([event])}
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_the_page_of_captured_steps_names_the_methods_that_are_not_with_what_their_operations_say():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` (.*) \|$", (ROOT / "docs/captured_steps.md").read_text(), re.MULTILINE)
    methods = {name: getattr(holdfast.methods, name)() for name in holdfast.methods.__all__}
    told = [(name, one.name, one.captured) for name, made in sorted(methods.items()) for one in made if one.captured]
    assert rows == told


def readme_commands():
    return [line for block in blocks(ROOT / "README.md", "console") for line in block.splitlines() if ".venv" in line]


def test_the_readme_has_two_commands_of_one_line():
    run, test = readme_commands()
    assert run.startswith("python3 -m venv .venv && ")
    assert run.endswith("holdfast run")
    assert test.startswith("python3 -m venv .venv && ")
    assert test.endswith("python -m pytest")


def test_ci_runs_the_commands_of_the_readme():
    text = (ROOT / ".ci/run").read_text()
    (pattern,) = re.findall(r"grep '(\^.*)' README\.md", text)
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in lines if re.match(pattern, line)] == readme_commands()
