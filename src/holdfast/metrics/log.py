"""Reading the raw log of a run: one JSON event per line, append only, possibly cut short by a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError

Event = Mapping[str, Any]
"""One line of the log: a JSON object whose `event` says what happened."""

LOG_NAME = "log.jsonl"


def read_log(source: str | os.PathLike[str] | Iterable[Event]) -> list[Event]:
    """The events that count: superseded ones dropped, a half-written last line ignored.

    An event `{"event": "resume", "keep": k}` says that the run went on from a checkpoint taken when the log had `k`
    lines, so the lines from number `k` (counted from 0, every earlier line included) up to it no longer count.
    Reading never changes the file.

    Args:
        source: a `log.jsonl`, the run folder that holds one, or the events themselves in file order.

    Returns:
        The events in order, without the `resume` events; reading the result again gives the same.

    Raises:
        DataError: no such file, or a line that counts is not a JSON object with an `event` (its number is named).

    Example:
        >>> log = [{"event": "start"}, {"event": "train", "step": 50}, {"event": "resume", "keep": 1}, {"event": "end"}]
        >>> [event["event"] for event in read_log(log)]
        ['start', 'end']
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        path = path / LOG_NAME if path.is_dir() else path
        return _live(_lines(path), str(path))
    return _live(list(source), "the list of events")


def start_event(events: Iterable[Event]) -> Event:
    """The last `start` event, or an empty mapping where the log has none."""
    found: Event = {}
    for event in events:
        if event.get("event") == "start":
            found = event
    return found


def is_finished(events: Iterable[Event]) -> bool:
    """Whether the run came to its end (its log has an `end` event)."""
    return any(event.get("event") == "end" for event in events)


def _lines(path: Path) -> list[Event | str | None]:
    """Each line of the file: its event, None for an empty line, or the complaint about a damaged one."""
    try:
        raw = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"no log can be read at {path}: {error.strerror}. Name a run folder or its {LOG_NAME}."
        ) from error
    if raw[-1] == b"":
        raw.pop()
    lines: list[Event | str | None] = []
    for line in raw:
        if not line.strip():
            lines.append(None)
            continue
        try:
            lines.append(json.loads(line.decode("utf-8")))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            lines.append(str(error))
    if lines and isinstance(lines[-1], str):
        lines.pop()
    return lines


def _live(lines: list[Any], where: str) -> list[Event]:
    """Drop what a resume superseded, then insist that everything left is an event."""
    kept: list[tuple[int, Any]] = []
    for number, line in enumerate(lines):
        if isinstance(line, Mapping) and line.get("event") == "resume":
            keep = line.get("keep")
            if not isinstance(keep, int) or isinstance(keep, bool) or not 0 <= keep <= number:
                raise DataError(
                    f"{where}, line {number + 1}: a resume event keeps {keep!r} lines of {number} before it. "
                    f"Write `keep` as a whole number from 0 to {number}."
                )
            while kept and kept[-1][0] >= keep:
                kept.pop()
        elif line is not None:
            kept.append((number, line))
    for number, line in kept:
        if not isinstance(line, Mapping) or not isinstance(line.get("event"), str):
            what = line if isinstance(line, str) else "it is not a JSON object with an `event`"
            raise DataError(
                f"{where}, line {number + 1} is damaged: {what}. "
                "Restore the file, or remove that line if the run can do without it."
            )
    return [line for _, line in kept]
