"""The raw log of a run: one JSON object per line, appended, never rewritten."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from holdfast.core.errors import HoldfastError


class Journal:
    """Appends events to a log; a line is written whole or, if the machine dies, cut off and dropped at the next start.

    Args:
        path: the log file; made if it does not exist.

    Attributes:
        lines: how many whole lines the log has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.lines, self._end = self._drop_half_line()

    def _drop_half_line(self) -> tuple[int, int]:
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.ftruncate(self._file, end)
        return content.count(b"\n"), end

    def write(self, event: dict[str, Any]) -> None:
        """Append one event.

        Raises:
            HoldfastError: if the disk is full; what was written of the line is taken back.
        """
        line = (json.dumps(_plain(event), allow_nan=False) + "\n").encode()
        try:
            written = os.write(self._file, line)
        except OSError as error:
            written, reason = 0, error.strerror
        else:
            reason = "No space left on device"
        if written < len(line):
            os.ftruncate(self._file, self._end)
            raise HoldfastError(f"could not write to {self.path}: {reason}. Make room; `holdfast resume` then goes on.")
        self._end += len(line)
        self.lines += 1

    def settle(self) -> int:
        """See that the lines are on the disk, as a checkpoint that counts them must not outlive them; how many."""
        os.fsync(self._file)
        return self.lines

    def resume(self, keep: int) -> None:
        """Say that the run goes on from a checkpoint taken when the log had `keep` lines."""
        self.write({"event": "resume", "keep": keep})

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: both become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
