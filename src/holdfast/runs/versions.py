"""The versions of a run: which one is in use, which data each learned, and the way back; in `versions/`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.core.errors import ConfigError
from holdfast.metrics.log import LOG_NAME, Log, read_json, write_json
from holdfast.runs.assemble import is_address
from holdfast.runs.folder import VERSION, VERSIONS, current, locked, read_config, refuse_objects
from holdfast.runs.result import seed_folders
from holdfast.runs.verdict import Verdict

UPDATE = "update.json"
"""In the folder of a version: what it learned, and what came of it."""


def rollback(where: Path | str, to: int | None = None) -> int:
    """Use an earlier version of a run again; nothing is deleted.

    Args:
        where: the run folder.
        to: the version; None for the one that the version in use was made of. 0 is the run itself.

    Returns:
        The version that is in use now.

    Raises:
        ConfigError: if there is no such version.
    """
    path = run_folder(where)
    with locked(path):
        number = current(path)[1]
        if to is None:
            if not number:
                raise ConfigError(f"{path} was not updated, so there is nothing to go back to. It is used as it is.")
            to = int(read_json(path / VERSIONS / str(number) / UPDATE)["base"])
        if to and not read_json(path / VERSIONS / str(to) / UPDATE).get("verdict"):
            there = ", ".join(["0", *(str(one) for one in numbers(path))])
            raise ConfigError(f"{path} has no finished version {to}. There are {there}.")
        _use(path, to, "rollback")
    return to


def history(where: Path | str) -> list[dict[str, Any]]:
    """The versions of a run, each with its number, base, data, whether it passed, and whether it is in use."""
    path = Path(where)
    number = current(path)[1]
    versions: list[dict[str, Any]] = [{"version": 0, "base": None, "data": None, "passed": True, "in_use": number == 0}]
    for one in numbers(path):
        about = read_json(path / VERSIONS / str(one) / UPDATE)
        verdict = about.get("verdict") or {}
        versions.append(
            {
                "version": one,
                "base": about.get("base"),
                "data": about.get("data"),
                "passed": verdict.get("passed"),
                "in_use": number == one,
            }
        )
    return versions


def run_folder(where: Path | str) -> Path:
    """The folder of a finished run of one seed."""
    if is_address(str(where)):
        raise ConfigError(f"{where} is an address, and an update needs a run folder to be kept in. Give one.")
    path = Path(where)
    if path.is_file():
        raise ConfigError(f"{path} is a file. Give the run folder; `holdfast resume {path}` makes one of a checkpoint.")
    if path.is_dir() and not (path / LOG_NAME).is_file() and seed_folders(path):
        raise ConfigError(f"{path} holds several seeds. Give one of them, for instance {seed_folders(path)[0]}.")
    config = read_config(path)
    refuse_objects(config, path)
    if not Log.read(path).finished:
        raise ConfigError(f"{path} did not come to its end. First: holdfast resume {path}")
    return path


def numbers(path: Path) -> list[int]:
    """The versions that there are, beside the run itself."""
    folders = (path / VERSIONS).iterdir() if (path / VERSIONS).is_dir() else ()
    return sorted(int(one.name) for one in folders if one.name.isdigit())


def made_before(path: Path, number: int, wanted: Mapping[str, Any]) -> Path | None:
    """The version of the same data, made of the version in use or part of what made that; None if there is none."""
    line = [number]
    while line[-1]:
        line.append(int(read_json(path / VERSIONS / str(line[-1]) / UPDATE)["base"]))
    for one in reversed(numbers(path)):
        about = read_json(path / VERSIONS / str(one) / UPDATE)
        same = all(about.get(key) == value for key, value in wanted.items())
        if same and (one in line or about.get("base") == number):
            return path / VERSIONS / str(one)
    return None


def again(path: Path, folder: Path, number: int, max_drop: float, max_class_drop: float | None) -> Verdict:
    """The verdict on a version that is there, by today's limits."""
    verdict = Verdict.from_dict(read_json(folder / UPDATE)["verdict"])
    verdict.max_drop, verdict.max_class_drop = max_drop, max_class_drop
    if int(folder.name) == number:
        verdict.notes.append(f"these data were learned before, by version {number}, which is in use")
        return verdict
    if read_json(folder / UPDATE).get("base") != number:
        verdict.notes.append(f"these data were learned before, by version {folder.name}, which later ones were made of")
        return verdict
    return decide(path, folder, verdict)


def decide(path: Path, folder: Path, verdict: Verdict) -> Verdict:
    """Keep the verdict, and use the version if it passes."""
    write_json(folder / UPDATE, {**read_json(folder / UPDATE), "verdict": verdict.as_dict()})
    if verdict.passed:
        _use(path, int(folder.name), "passed")
    return verdict


def _use(path: Path, number: int, why: str) -> None:
    """From here on `number` is the version in use: written whole, or not at all."""
    before = read_json(path / VERSION)
    entry = {"version": number, "time": time.time(), "why": why}
    write_json(path / VERSION, {"version": number, "history": [*(before.get("history") or []), entry]})


# What a new version begins with ------------------------------------------------------------------------------


def config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration without limits on how many experiences there are."""
    trainer = dict(config["trainer"])
    if trainer.get("limit_experiences") is not None:
        trainer["limit_experiences"] = None
    if isinstance(trainer.get("per_experience"), list):
        trainer["per_experience"] = [*trainer["per_experience"], None]
    return {**config, "trainer": trainer, "references": []}


def state_before(state: Mapping[str, Any], experiences: int, source: bool) -> dict[str, Any]:
    """The state to go on from: before one more experience, or before what a source gives next."""
    position = {**state["position"], "clock": 0.0}
    if source:
        position = {key: value for key, value in position.items() if key != "source"}
    elif position["phase"] != "before" or position["experience"] != experiences:
        raise ConfigError(
            f"the run learned {position['experience']} of its {experiences} experiences, so new data cannot come after"
            " them. Let it finish: raise trainer.max_seconds, and train it again."
        )
    return {**state, "position": position}


def log_with(base: Path, classes: Mapping[str, Any], rows: int, tests: int, card: Mapping[str, Any]) -> list[Any]:
    """The events of the base, with a start that says what is learned from here on."""
    events = [dict(event) for event in Log.read(base) if event["event"] != "end"]
    for event in events:
        if event["event"] == "start" and not event.get("source"):
            stream = dict(event["stream"])
            names = stream["experience_names"] + [classes["name"]]
            stream |= {"experiences": len(names), "experience_names": names, "class_names": list(card["class_names"])}
            stream["experience_classes"] = [*stream["experience_classes"], list(classes["classes"])]
            stream["train_samples"], stream["test_samples"] = (
                [*stream[key], count] for key, count in (("train_samples", rows), ("test_samples", tests))
            )
            event["stream"] = {**stream, "classes": card["classes"]}
    return events
