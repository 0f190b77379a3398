"""Finding runs: folders of runs and of multiruns as the runs in them, by tag."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from holdfast.core.errors import ConfigError
from holdfast.runs.folder import CONFIG, INFO
from holdfast.runs.report_data import read_json


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, of one seed or several."""
    return (folder / CONFIG).is_file() or (folder / "log.jsonl").is_file() or (folder / "metrics.json").is_file()


def found_runs(folders: Iterable[Path], tags: Sequence[str] = ()) -> list[Path]:
    """The run folders that are given, or that lie in what is given, and have all of `tags`.

    Args:
        folders: runs, multiruns, or folders of them.
        tags: words that a run must have been given.

    Raises:
        ConfigError: where no run has the tags, with those there are.
    """
    runs: list[Path] = []
    for folder in folders:
        runs += [folder] if is_run(folder) else _inside(folder) or [folder]  # whoever reads it says that it holds none
    if not tags:
        return runs
    kept = [run for run in runs if set(tags) <= set(tags_of(run))]
    if not kept:
        known = sorted({tag for run in runs for tag in tags_of(run)})
        raise ConfigError(f"no run has the tag {', '.join(tags)}. There are {', '.join(known) or 'none'}.")
    return kept


def tags_of(run: Path) -> list[str]:
    """The tags of a run."""
    said = read_json(run / INFO).get("tags") or read_json(run / CONFIG).get("tags") or []
    return [str(tag) for tag in said]


def _inside(folder: Path) -> list[Path]:
    """The runs below a folder, not those within another run; numbers in their order."""
    found: list[Path] = []
    children = [child for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []
    for child in sorted(children, key=lambda one: (len(one.name) if one.name.isdigit() else 0, one.name)):
        found += [child] if is_run(child) else _inside(child)
    return found
