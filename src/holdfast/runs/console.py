"""The log of the console in a run folder: what a command said while it worked there, without redrawn lines."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from holdfast.runs.folder import read_info
from holdfast.runs.result import ENDED

CONSOLE = "console.log"
"""In a run folder: what was printed while the run was made, command after command."""

_REDRAWN = re.compile(r"\r(?!\n)|\x1b\[\d*[AK]|\x1b\[\?25")
"""What a progress bar writes to go over its own line again: such a piece is not kept."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def console_log(folder: Path) -> Iterator[None]:
    """What is printed inside goes into `console.log` too, behind a line with time and command.

    The folder of a run that ended is left as it is.

    Args:
        folder: of the run; it must be there.
    """
    info = read_info(folder)
    if info.get("state") in ENDED:
        yield
        return
    again = (folder / CONSOLE).exists()
    with (folder / CONSOLE).open("a", encoding="utf-8") as file:
        command = "gone on with" if again else info.get("command") or ""
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {command}".rstrip() + "\n")
        file.writelines(f"{note}\n" for note in ([] if again else info.get("translated", [])))
        file.flush()
        out, errors = _Both(sys.stdout, file), _Both(sys.stderr, file)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):  # type: ignore[type-var]
                yield
        except BaseException as error:
            file.write(f"{type(error).__name__}: {error}\n")
            raise


def also_logged(folder: Path, text: str) -> None:
    """Append to `console.log` what is said when the work is done."""
    with contextlib.suppress(OSError), (folder / CONSOLE).open("a", encoding="utf-8") as file:
        file.write(text.rstrip("\n") + "\n")


class _Both:
    """A stream that writes into a file too; for everything else it is the stream."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream = stream
        self._file = file

    def write(self, text: str) -> int:
        """Write to both; what goes over a line again is not kept."""
        if text and not _REDRAWN.search(text):
            with contextlib.suppress(OSError, ValueError):  # a full disk ends the run where its own files are written
                self._file.write(_COLOURS.sub("", text))
                self._file.flush()
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        """Each line to both."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
