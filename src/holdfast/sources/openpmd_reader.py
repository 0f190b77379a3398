"""The iterations of openPMD series: files (HDF5, JSON, ADIOS2 BP), files being written, SST between processes."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from holdfast.core.errors import ConfigError, DataError, needs_extra

Records = Mapping[str, Any] | None

STREAMING, BP = (".sst", ".ssc"), (".bp", ".bp4", ".bp5")
SCALAR = "\x0bScalar"
"""Under which the library lists the only component of a scalar record."""

SLICE = 0.1
"""Seconds after which a waiting thread looks whether it is still wanted."""


class StreamData(NamedTuple):
    """One component of a record as it was read.

    Attributes:
        data: the values that this process reads, in the units of the file.
        np_shape: of the whole component, whatever part of it was read.
        pic_shape: the attribute `shape` that PIConGPU writes for constant components, else None.
    """

    data: np.ndarray
    np_shape: tuple[int, ...]
    pic_shape: Any = None


_HDF5 = threading.Lock()
"""HDF5's library serves one thread at a time, also where the files differ."""


class OpenPMDReader:
    """The iterations of one or several openPMD series, each as a nested dictionary.

    An iteration is `{"iteration_index": 100, "time": .., "meshes": {"E": {"x": StreamData, ..}}, "particles": {"e":
    {"position": {"x": ..}}}}`; a scalar record is a `StreamData` itself. What `records` names and an iteration lacks is
    in its `missing`, and warned of once. All components of an iteration are asked for first, and read by one flush.

    **Several series** (`["particles.sst", "radiation.sst"]`) are opened and read by a thread each, in whatever order a
    simulation opens them; they go in lock step, and an iteration that one of them lacks is an error. **Waiting** for
    the next iteration, or for a writer to come, ends after `timeout` seconds with an error.

    Args:
        path: of a series, or several: `run.h5`, `run_%T.h5`, `run.bp`, `run.sst`.
        records: what to read: `{"meshes": ["E"], "particles": {"e": ["position", "weighting"]}}`; None reads all.
        timeout: seconds to wait for an iteration.
        start: iterations before this one are skipped.
        stop: iterations from this one on are not read; None reads to the end.
        rank: of this process among `ranks`, which share the data.
        ranks: processes that read the same series.
        distribution: which part of a component a process reads: `blocks` along its first axis, or every `ranks`-th of
            the `chunks` in which it was written, joined along the first axis.
        options: further settings of openPMD-api, as its JSON configuration.

    Raises:
        ConfigError: for names that are not records.
        ImportError: where openPMD-api is not installed.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        records: Records = None,
        timeout: float = 60.0,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        distribution: Literal["blocks", "chunks"] = "blocks",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= rank < ranks or distribution not in ("blocks", "chunks") or timeout <= 0:
            raise ConfigError(
                f"a reader of openPMD got rank={rank} of {ranks}, distribution={distribution!r} and timeout={timeout}."
                " Give a rank below ranks, blocks or chunks, and more than 0 seconds."
            )
        self.paths = [path] if isinstance(path, str) else list(path)
        self.records = checked_records(records)
        self.timeout = timeout
        self.start = start
        self.stop = stop
        self.rank = rank
        self.ranks = ranks
        self.distribution = distribution
        self.options = dict(options or {})
        self.missing: set[str] = set()
        self._closed = threading.Event()
        self._halted = threading.Event()
        self._library = library()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The iterations in order.

        Raises:
            DataError: where a series breaks off, series differ in their iterations, or none comes for too long.
        """
        arriving: list[queue.Queue[Any]] = [queue.Queue(1) for _ in self.paths]
        left = threading.Event()
        threads = [
            threading.Thread(target=self._follow, args=(path, into, left), name=f"openPMD {path}", daemon=True)
            for path, into in zip(self.paths, arriving)
        ]
        for thread in threads:
            thread.start()
        ended = False
        try:
            yield from self._together(arriving)
            ended = not self._halted.is_set()
        finally:
            left.set()
            # One that waits in ADIOS2 for a writer is left behind; HDF5 does not bear another thread beside one.
            for path, thread in zip(self.paths, threads):
                thread.join(self.timeout if ended or path.endswith(".h5") else 1.0)

    def _together(self, arriving: list[queue.Queue[Any]]) -> Iterator[dict[str, Any]]:
        while not self._halted.is_set():
            parts = [self._next(path, one) for path, one in zip(self.paths, arriving)]
            if self._halted.is_set():
                return
            ended = [part is None for part in parts]
            if any(ended):
                if not all(ended):
                    raise DataError(
                        f"{self.paths[ended.index(True)]} ended, and {self.paths[ended.index(False)]} goes on."
                    )
                return
            index = parts[0]["iteration_index"]
            for path, part in zip(self.paths, parts):
                if part["iteration_index"] != index:
                    raise DataError(
                        f"{self.paths[0]} is at iteration {index}, and {path} at {part['iteration_index']}. Let both"
                        " write the same iterations."
                    )
            yield self._joined(parts)

    def _joined(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The records of all series in one dictionary; those that none of them has are missing."""
        whole = parts[0]
        for part in parts[1:]:
            for kind in ("meshes", "particles"):
                for name, record in part[kind].items():
                    mine = whole[kind].setdefault(name, record)
                    if mine is not record and isinstance(mine, dict):
                        mine.update(record)
        absent = set.intersection(*(set(part["missing"]) for part in parts))
        whole["missing"] = sorted(absent)
        for name in sorted(absent - self.missing):
            warnings.warn(
                f"iteration {whole['iteration_index']} of {', '.join(self.paths)} has no {name}; it is left out.",
                stacklevel=3,
            )
        self.missing |= absent
        return whole

    def _next(self, path: str, arriving: queue.Queue[Any]) -> Any:
        until = time.monotonic() + self.timeout
        while not self._halted.is_set():
            try:
                item = arriving.get(timeout=SLICE)
            except queue.Empty:
                if time.monotonic() > until:
                    raise DataError(
                        f"no iteration of {path} came for {self.timeout:g} seconds. Look whether the simulation runs"
                        " and writes there, or give a longer timeout."
                    ) from None
                continue
            if isinstance(item, BaseException):
                raise item
            return item
        return None

    # In the thread of a series -----------------------------------------------------------------------------

    def _follow(self, path: str, into: queue.Queue[Any], left: threading.Event) -> None:
        last = series = steps = iteration = None
        alone = _HDF5 if path.endswith(".h5") else contextlib.nullcontext()
        try:
            while path.endswith(BP) and not Path(path).exists() and not (self._closed.is_set() or left.is_set()):
                left.wait(
                    SLICE
                )  # its writer is still to come; who waits for an iteration tells when that takes too long
            with alone:
                series = self._library.Series(path, self._library.Access.read_linear, json.dumps(self._configuration()))
                steps = iter(series.read_iterations())
            while True:
                with alone:
                    iteration = next(steps, None)
                    if iteration is None:
                        break
                    index = int(iteration.iteration_index)
                    if self.stop is not None and index >= self.stop:
                        break
                    if index < self.start:
                        iteration.close()
                        last = index
                        continue
                    values = self._read(iteration, index)
                if not self._put(into, values, left):
                    break
                last = index
            self._put(into, None, left)
        except DataError as error:
            self._put(into, error, left)
        except Exception as error:  # the library raises RuntimeError and others of its own
            plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # ADIOS2 colours what it says
            reason = (plain or type(error).__name__).splitlines()[0].rstrip(".")
            if last is None:
                text = f"{path} cannot be read: {reason}. Look whether the simulation runs and writes there."
            else:
                text = f"{path} broke off after iteration {last}: {reason}. Look why its writer stopped."
            self._put(into, DataError(text), left)
        finally:
            with alone, contextlib.suppress(Exception):  # it says again why it broke off
                if series is not None:
                    series.close()
                del iteration, steps, series  # whose destructors call the library, too

    def _put(self, into: queue.Queue[Any], value: Any, left: threading.Event) -> bool:
        while not (self._closed.is_set() or left.is_set()):
            try:
                into.put(value, timeout=SLICE)
                return True
            except queue.Full:
                continue
        return False

    def _configuration(self) -> dict[str, Any]:
        seconds = str(max(1, int(self.timeout)))
        engine = {"parameters": {"OpenTimeoutSecs": seconds}}
        live = any(path.endswith((*STREAMING, *BP)) for path in self.paths)
        return {"defer_iteration_parsing": True, **({"adios2": {"engine": engine}} if live else {}), **self.options}

    def _read(self, iteration: Any, index: int) -> dict[str, Any]:
        """Ask for everything wanted, then let one flush read it."""
        content: dict[str, Any] = {"iteration_index": index, "time": float(iteration.time)}
        content |= {"meshes": {}, "particles": {}}
        missing: list[str] = []
        wanted = self.records.get("meshes", []) if self.records is not None else list(iteration.meshes)
        for name, components in _named(wanted):
            if name in iteration.meshes:
                content["meshes"][name] = self._record(iteration.meshes[name], components, f"meshes/{name}", missing)
            else:
                missing.append(f"meshes/{name}")
        species = self.records.get("particles", {}) if self.records is not None else list(iteration.particles)
        for name, records in _named(species):
            if name not in iteration.particles:
                missing.append(f"particles/{name}")
                continue
            container, by_record = iteration.particles[name], {}
            for record, components in _named(list(container) if records is None else records):
                where = f"particles/{name}/{record}"
                if record in container:
                    by_record[record] = self._record(container[record], components, where, missing)
                else:
                    missing.append(where)
            content["particles"][name] = by_record
        iteration.close()
        content["missing"] = missing
        return content

    def _record(self, record: Any, components: list[str] | None, where: str, missing: list[str]) -> Any:
        if list(record) == [SCALAR]:
            return self._component(record[SCALAR])
        wanted = list(record) if components is None else components
        missing += [f"{where}/{name}" for name in wanted if name not in record]
        return {name: self._component(record[name]) for name in wanted if name in record}

    def _component(self, component: Any) -> StreamData:
        """One component, or this process's part of it; its values are there after the flush."""
        shape = tuple(int(length) for length in component.shape)
        told = component.get_attribute("shape") if component.constant and "shape" in component.attributes else None
        chunks = []
        if self.ranks > 1 and self.distribution == "chunks":
            chunks = sorted(component.available_chunks(), key=lambda chunk: tuple(chunk.offset))
        if chunks:
            mine = chunks[self.rank :: self.ranks]
            if any(tuple(chunk.extent)[1:] != shape[1:] for chunk in mine):
                raise DataError(
                    "chunks that cut other axes than the first cannot be joined. Write distribution=blocks."
                )
            rows = sum(int(chunk.extent[0]) for chunk in mine)
            data = np.empty((rows, *shape[1:]), dtype=component.dtype)
            start = 0
            for chunk in mine:
                stop = start + int(chunk.extent[0])
                component.load_chunk(data[start:stop], list(chunk.offset), list(chunk.extent))
                start = stop
            return StreamData(data, shape, told)
        if self.ranks == 1 or not shape:
            return StreamData(component.load_chunk() if 0 not in shape else np.empty(shape), shape, told)
        first, last = (rank * shape[0] // self.ranks for rank in (self.rank, self.rank + 1))
        if first == last:
            return StreamData(np.empty((0, *shape[1:]), dtype=component.dtype), shape, told)
        offset, extent = [first, *(0 for _ in shape[1:])], [last - first, *shape[1:]]
        return StreamData(component.load_chunk(offset, extent), shape, told)

    def halt(self) -> None:
        """End a wait at once."""
        self._halted.set()

    def close(self) -> None:
        """Let the reading threads go."""
        self._closed.set()
        self._halted.set()


def library() -> Any:
    """openPMD-api, which an extra brings."""
    try:
        import openpmd_api  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise needs_extra("openPMD", "openPMD-api", "stream") from error
    return openpmd_api


def checked_records(records: Records) -> dict[str, Any] | None:
    """The records to read, if they are a tree of names.

    Raises:
        ConfigError: where they are not.
    """
    if records is None:
        return None
    for kind, wanted in records.items():
        if kind not in ("meshes", "particles"):
            raise ConfigError(f"records has {kind!r}. Choose among meshes and particles.")
        if not isinstance(wanted, list | Mapping):
            raise ConfigError(f'records.{kind} is {wanted!r}. Write ["E"], or {{"E": ["x", "y"]}}.')
    return dict(records)


def _named(wanted: Any) -> list[tuple[str, Any]]:
    """Names with what is wanted below each: None for all of it."""
    return list(wanted.items()) if isinstance(wanted, Mapping) else [(str(name), None) for name in wanted]
