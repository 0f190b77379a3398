"""The files of a run: written so that readers see the old one or the new one, never half of it; JSON read whole."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from holdfast.core.errors import DataError


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
    """A JSON object from a file, empty where there is no such file.

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
