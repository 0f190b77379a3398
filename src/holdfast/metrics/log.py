"""The log of a run, parsed once: one JSON event per line, append only; and how files of a run are written and read."""

from __future__ import annotations

import functools
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from holdfast.core.errors import DataError, needs_extra
from holdfast.metrics.shapes import check

if TYPE_CHECKING:
    import pandas


def replace_file(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write `content` to a temporary file beside `path`, then rename it over `path`.

    Args:
        path: the file to make or replace; its folder must exist.
        content: text (written as UTF-8, line ends as they are) or bytes.

    Returns:
        `path`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     replace_file(Path(folder) / "a.txt", "one").read_text()
        'one'
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON: whole, or not at all."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file, empty if there is no such file.

    Raises:
        DataError: where it is something else.
    """
    file = Path(path)
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}. Restore it, or remove it to do without.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, not an object. Restore it, or remove it.")
    return content


Event = Mapping[str, Any]
"""One line of the log: a JSON object whose `event` says what happened."""

LOG_NAME = "log.jsonl"


class Log(Sequence[Event]):
    """The events of a run that count, in order; every measure and every report reads them from here.

    An event `{"event": "resume", "keep": k}` says that the run went on from a checkpoint taken when the log had `k`
    lines, so the lines from number `k` (counted from 0, every earlier line included) up to it no longer count, nor
    does the `resume` itself. A log is never changed once it is made.

    Args:
        events: in file order, those that a resume superseded included.
        source: where they come from, for errors.

    Raises:
        DataError: an entry that counts is not a mapping with an `event` (its number is named), or holds something else
            than events of its kind do.

    Example:
        >>> log = Log([{"event": "start"}, {"event": "train", "step": 50}, {"event": "resume", "keep": 1},
        ...            {"event": "train", "step": 25}, {"event": "end"}])
        >>> [event["event"] for event in log], log.finished
        (['start', 'train', 'end'], True)
        >>> log.values("train", "step").tolist()
        [25.0]
    """

    def __init__(self, events: Iterable[Event], source: str = "the list of events") -> None:
        self._events: list[Event] = _live(list(events), source)
        self._kinds: dict[str, list[Event]] = {}
        for event in self._events:
            self._kinds.setdefault(event["event"], []).append(event)
        check(self._kinds, source)
        self._splits: dict[tuple[str, str], list[Event]] = {}
        self._columns: dict[tuple[str, str, str | None], np.ndarray] = {}

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Log:
        """Parse a file; a half-written last line is ignored, and the file is never changed.

        Args:
            path: a `log.jsonl`, or the run folder that holds one.

        Raises:
            DataError: no such file, or a damaged line (its number is named).
        """
        file = Path(path)
        file = file / LOG_NAME if file.is_dir() else file
        return cls(_lines(file), str(file))  # type: ignore[arg-type]

    def of(self, kind: str, split: str | None = None) -> list[Event]:
        """The events of one kind, in order.

        Args:
            kind: `start`, `train`, `evaluate`, `experience`, `diverged`, `end` or one of your own.
            split: of evaluations, `test` or `validation`; None for all.
        """
        events = self._kinds.get(kind, [])
        if split is None:
            return list(events)
        if (kind, split) not in self._splits:
            self._splits[kind, split] = [event for event in events if event.get("split", "test") == split]
        return list(self._splits[kind, split])

    def values(self, kind: str, key: str, split: str | None = None) -> np.ndarray:
        """One number of every event of a kind, `[events]` float64, NaN where it is missing or null.

        Args:
            kind: of the events.
            key: its name.
            split: of evaluations.
        """
        if (kind, key, split) not in self._columns:
            column = np.array([event.get(key) for event in self.of(kind, split)], dtype=np.float64)
            column.flags.writeable = False  # it is handed out again
            self._columns[kind, key, split] = column
        return self._columns[kind, key, split]

    def arrays(self, kind: str) -> dict[str, np.ndarray]:
        """Every plain number of the events of a kind by name, each `[events]` float64 with NaN where it is missing."""
        names = dict.fromkeys(
            key for event in self.of(kind) for key, value in event.items() if isinstance(value, int | float)
        )
        return {name: self.values(kind, name) for name in names}

    def frame(self, kind: str | None = None) -> pandas.DataFrame:
        """The events as a table of pandas, one row each; nested values become columns such as `terms.loss`.

        Args:
            kind: only events of this kind; None for all.

        Raises:
            ImportError: where pandas is not installed, with what to install.
        """
        try:
            import pandas
        except ImportError as error:
            raise needs_extra("a table of a log's events", "pandas", "tables") from error
        return pandas.json_normalize([dict(event) for event in (self._events if kind is None else self.of(kind))])

    @functools.cached_property
    def start(self) -> Event:
        """The last `start` event, or an empty mapping if there is none."""
        return (self.of("start") or [{}])[-1]

    @property
    def stream(self) -> Event:
        """What the start says of the stream; empty where it says nothing."""
        return self.start.get("stream") or {}

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return "end" in self._kinds

    @property
    def diverged(self) -> str:
        """Why the run was found to diverge, in a sentence; empty where it was not."""
        return str(self._kinds["diverged"][0].get("reason", "")) if "diverged" in self._kinds else ""

    @functools.cached_property
    def experiences(self) -> int:
        """Number of experiences T: what the stream announced, or more where the log mentions later ones."""
        if self.start.get("source"):  # boundaries may be many, and none of these is evaluated by itself
            return 1 + max((int(event["after"]) for event in self.of("evaluate")), default=-1)
        seen = [int(event["experience"]) for event in self._events if event.get("experience") is not None]
        seen += [int(event["after"]) for event in self.of("evaluate")]
        return max(int(self.stream.get("experiences") or 0), 1 + max(seen, default=-1))

    @property
    def experience_names(self) -> list[str]:
        """A name for each experience: the stream's, or its number."""
        names = self.stream.get("experience_names") or []
        return [
            str(names[index]) if index < len(names) and names[index] else str(index)
            for index in range(self.experiences)
        ]

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, as far as the stream has some."""
        return [str(name) for name in self.stream.get("class_names") or []]

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self._events[index]

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __eq__(self, other: object) -> bool:
        return self._events == list(other) if isinstance(other, Log | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        kinds = ", ".join(f"{len(events)} {kind}" for kind, events in self._kinds.items())
        return f"Log({kinds})"


def read_log(source: str | os.PathLike[str] | Iterable[Event]) -> Log:
    """The log of a run; one that is a `Log` already is given back as it is, and parsed no second time.

    Args:
        source: a `log.jsonl`, the run folder that holds one, or the events themselves in file order.

    Returns:
        The events that count.

    Raises:
        DataError: no such file, or a line that counts is not a JSON object with an `event` (its number is named).

    Example:
        >>> log = [{"event": "start"}, {"event": "train", "step": 50}, {"event": "resume", "keep": 1}, {"event": "end"}]
        >>> [event["event"] for event in read_log(log)]
        ['start', 'end']
    """
    if isinstance(source, Log):
        return source
    return Log.read(source) if isinstance(source, str | os.PathLike) else Log(source)


def _lines(path: Path) -> list[Event | str | None]:
    """Each line of the file: its event, None for an empty line, or the complaint about a damaged one."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"no log can be read at {path}: {error.strerror}. Name a run folder or its {LOG_NAME}."
        ) from error
    lines = raw.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    try:  # one call for all lines is three times as fast as one for each
        parsed: list[Event | str | None] = json.loads(b"[" + b",".join(lines) + b"]")
        if len(parsed) == len(lines):
            return parsed
    except ValueError:
        pass
    parsed = [_line(line) for line in lines]
    if parsed and isinstance(parsed[-1], str):
        parsed.pop()
    return parsed


def _line(line: bytes) -> Event | str | None:
    if not line.strip():
        return None
    try:
        event: Event = json.loads(line)
    except ValueError as error:
        return str(error)
    return event


def _live(lines: list[Any], where: str) -> list[Event]:
    """Drop what a resume superseded, then insist that everything left is an event."""
    if all(type(line) is dict and type(line.get("event")) is str and line["event"] != "resume" for line in lines):
        return lines
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
