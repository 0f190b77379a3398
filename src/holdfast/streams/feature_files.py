"""Columns of features on disk: one row a sample, memory-mapped, written once and never half."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.core.errors import DataError

try:
    import fcntl
except ImportError:  # not on Windows: two processes then both compute, and the last one's equal file stays
    fcntl = None  # type: ignore[assignment]

VARIABLE = "HOLDFAST_CACHE"
BLOCK = 1024
"""Rows between two digests: what a pass that was killed loses at most, and what is read to find damage."""
VERSION = 1

Precision = Literal["float32", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
Compute = Callable[[int, int], Tensor]
"""From the first and one past the last row to their features `[rows, width]`."""


@dataclass(frozen=True)
class Column:
    """Where a column of features lies.

    Args:
        folder: of the cache.
        key: name of the column: the digest of all that its values depend on.
        rows: samples.
        precision: of the values on disk.
        of: what it was made of, in plain values, for `holdfast cache list`.
    """

    folder: Path
    key: str
    rows: int
    precision: Precision
    of: dict[str, Any]

    @property
    def values(self) -> Path:
        """The file of the values, row by row."""
        return self.folder / f"{self.key}.features"

    @property
    def notes(self) -> Path:
        """The file that says what the values are, written last: a column without it does not count."""
        return self.folder / f"{self.key}.json"

    def load(self, width: int | None = None) -> Tensor | None:
        """The column, memory-mapped `[rows, width]`, or None where it is not there, not whole or damaged."""
        try:
            notes = json.loads(self.notes.read_text(encoding="utf-8"))
            width = int(notes["width"])
            fits = notes["version"] == VERSION and notes["rows"] == self.rows and notes["precision"] == self.precision
            size = self.rows * width * DTYPES[self.precision].itemsize
            if not fits or self.values.stat().st_size != size:
                return None
            if list(_digests(self.values, width * DTYPES[self.precision].itemsize)) != notes["digests"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return mapped(self.values, self.rows, width, DTYPES[self.precision])

    def make(self, compute: Compute) -> Tensor:
        """The column: as another process wrote it meanwhile, or computed now, from where a killed pass stopped.

        Args:
            compute: features of a range of rows.

        Raises:
            DataError: for features that are not finite, or beyond the range of the precision.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder / f"{self.key}.lock") as locked:
            column = self.load() if locked else None
            if column is None:
                self._write(compute, "part" if locked else f"{uuid.uuid4().hex}.part")
                column = self.load()
        if column is None:
            raise DataError(
                f"{self.values} is not what was written to it a moment ago. Look after the disk, or choose another "
                f"folder with the environment variable {VARIABLE}."
            )
        return column

    def forget(self) -> None:
        """Remove the column."""
        for path in (self.notes, self.values):
            path.unlink(missing_ok=True)

    def _write(self, compute: Compute, ending: str) -> None:
        part, log = self.folder / f"{self.key}.{ending}", self.folder / f"{self.key}.{ending}.log"
        width, digests = _resumed(part, log, DTYPES[self.precision])
        with part.open("r+b" if part.exists() else "w+b") as file, log.open("a", encoding="utf-8") as lines:
            for block in range(len(digests), -(-self.rows // BLOCK)):
                features = compute(block * BLOCK, min(self.rows, (block + 1) * BLOCK))
                stored = features.detach().to(DTYPES[self.precision]).cpu().contiguous()
                if not bool(torch.isfinite(stored).all()):
                    raise DataError(
                        f"features of rows {block * BLOCK} and following are not finite in {self.precision}. "
                        "Keep them in float32, or look after the weights of the backbone."
                    )
                if not digests:
                    width = stored.shape[1]
                    lines.write(f"{width}\n")
                data = stored.numpy().tobytes()
                file.seek(block * BLOCK * width * stored.itemsize)
                file.write(data)
                file.flush()
                digests.append(hashlib.sha256(data).hexdigest())
                lines.write(digests[-1] + "\n")
                lines.flush()
            file.truncate(self.rows * width * DTYPES[self.precision].itemsize)
            os.fsync(file.fileno())
        notes: dict[str, Any] = {"version": VERSION, "rows": self.rows, "width": width, "precision": self.precision}
        notes |= {"digests": digests, "of": self.of, "made": time.time()}
        half = self.notes.with_suffix(f".{uuid.uuid4().hex}.half")
        half.write_text(json.dumps(notes), encoding="utf-8")
        self.notes.unlink(missing_ok=True)  # of a damaged column: values without notes do not count
        os.replace(part, self.values)
        os.replace(half, self.notes)
        log.unlink(missing_ok=True)


def mapped(path: Path, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """A file of values as a tensor `[rows, width]` that is read when it is used; writing to it leaves the file."""
    if rows * width == 0:
        return torch.empty(rows, width, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=rows * width, dtype=dtype).view(rows, width)


def default_folder() -> Path:
    """Where features are kept: `$HOLDFAST_CACHE`, else `holdfast` in the user's folder of caches."""
    configured = os.environ.get(VARIABLE)
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "holdfast"


def entries(folder: Path) -> list[dict[str, Any]]:
    """What the cache in `folder` holds, newest first: key, bytes, rows, width, precision, time made and what of."""
    kept = []
    for notes in folder.glob("*.json"):
        values = notes.with_suffix(".features")
        try:
            read = json.loads(notes.read_text(encoding="utf-8"))
            entry = {name: read[name] for name in ("rows", "width", "precision", "made", "of")}
            kept.append({"key": notes.stem, "bytes": values.stat().st_size, **entry})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(kept, key=lambda entry: -entry["made"])


def clear(folder: Path) -> int:
    """Remove every column in `folder`, half-written ones too, and nothing else; returns the bytes that were freed."""
    freed = 0
    for ending in ("json", "features", "part", "log", "lock", "half"):
        for path in folder.glob(f"*.{ending}"):
            if len(path.name.split(".")[0]) == 64:  # a sha256 in hexadecimal: ours
                freed += path.stat().st_size
                path.unlink(missing_ok=True)
    return freed


def _digests(path: Path, row_bytes: int) -> Iterator[str]:
    with path.open("rb") as file:
        while block := file.read(BLOCK * row_bytes):
            yield hashlib.sha256(block).hexdigest()


def _resumed(part: Path, log: Path, dtype: torch.dtype) -> tuple[int, list[str]]:
    """Width and digests of the whole blocks that a killed pass left; nothing where they are not as written."""
    try:
        first, *digests = log.read_text(encoding="utf-8").splitlines()
        width = int(first)
        kept = []
        for digest, real in zip(digests, _digests(part, width * dtype.itemsize)):
            if digest != real:
                break
            kept.append(digest)
    except (OSError, ValueError):
        width, kept = 0, []
    part.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(f"{line}\n" for line in (width, *kept)) if kept else "", encoding="utf-8")
    if not kept:
        part.unlink(missing_ok=True)
    return (width, kept) if kept else (0, [])


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Wait until no other process makes this column; whether that could be had on this system."""
    with path.open("a") as file:
        locked = fcntl is not None
        if locked:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                locked = False
        yield locked
        path.unlink(missing_ok=True)  # only after success; who waited for it looks for the finished column first
