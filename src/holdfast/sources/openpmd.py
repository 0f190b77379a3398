"""Simulations that write openPMD as a source: rows are particles, or whole iterations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.ranges import Count, Positive
from holdfast.core.tree import Tree
from holdfast.sources.openpmd_reader import STREAMING, OpenPMDReader, StreamData, library
from holdfast.sources.pieces import Mark, Pieces


class OpenPMD(Pieces):
    """A simulation's output as batches: rows are particles, or whole iterations of fields or of particle clouds.

    Args:
        path: of a series, or of several that are read in lock step; see `OpenPMDReader`.
        inputs: records, or components, joined as features of a row: `["particles/e/position", "meshes/E/z"]`.
        targets: the same for what is predicted; null for the inputs themselves, which an autoencoder learns.
        rows: `particles`: each particle is a row `[features]`; `iterations`: each iteration is one, `[features, ...]`
            of a field, `[points, features]` of a particle cloud; `auto` for particles where the first input is one.
        points: of a cloud, drawn at random from all particles, the same for every record; null takes all of them.
        clouds: of an iteration, each of `points` particles that no other has; null takes one.
        standardise: whether each feature is standardised by the first iteration's mean and deviation.
        follow: whether a file is still being written; a stream (`.sst`) always is.
        timeout: seconds to wait for an iteration, or for the writer to come.
        start: iterations before this one are skipped.
        stop: iterations from this one on are not read; null reads to the end.
        rank: of this process among `ranks`, which share the data.
        ranks: processes that read the same series.
        distribution: which part a process reads; see `OpenPMDReader`.
        options: further settings of openPMD-api, as its JSON configuration.
        seed: of the points of a cloud.
        batch_size: rows of a batch.

    Raises:
        DataError: see `OpenPMDReader`; or a record that an iteration lacks, or that does not go with the others.
        ConfigError: for a name that is not a path of a record.
        ImportError: where openPMD-api is not installed.
    """

    def __init__(
        self,
        path: str | list[str],
        inputs: list[str],
        targets: list[str] | None = None,
        rows: Literal["auto", "particles", "iterations"] = "auto",
        points: Count | None = None,
        clouds: Count | None = None,
        standardise: bool = True,
        follow: bool = False,
        timeout: Positive = 60.0,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        ranks: Count = 1,
        distribution: Literal["blocks", "chunks"] = "blocks",
        options: dict[str, Any] | None = None,
        seed: int | None = None,
        batch_size: Count = 32,
    ) -> None:
        super().__init__(batch_size)
        if rows not in ("auto", "particles", "iterations"):
            raise ConfigError(f"rows is {rows!r}. Write particles, iterations or auto.")
        self.inputs = [_split(name) for name in inputs]
        self.targets = None if targets is None else [_split(name) for name in targets]
        if not self.inputs or self.targets == []:
            raise ConfigError("no record is named. Write inputs=['particles/e/position'].")
        paths = [path] if isinstance(path, str) else path
        self.live = follow or any(one.endswith(STREAMING) for one in paths)
        self.seekable = not self.live
        for one in paths:
            if not self.live and "%" not in one and not Path(one).exists():
                raise DataError(f"there is no file {one}. Give the path of an openPMD series, or follow=true.")
        self.by_particle = rows == "particles" or (rows == "auto" and self.inputs[0][0] == "particles")
        if clouds is not None and (points is None or self.by_particle):
            raise ConfigError("clouds are of `points` particles each. Write points=256 and rows=iterations.")
        self.points = points
        self.clouds = clouds
        self.standardise = standardise
        self.seed = seed or 0
        self._scaling: dict[str, list[float]] = {}
        tree: dict[str, Any] = {"meshes": {}, "particles": {}}
        for kind, *names in [*self.inputs, *(self.targets or [])]:
            if kind == "meshes":
                _want(tree["meshes"], names[0], names[1:])
            else:
                _want(tree["particles"].setdefault(names[0], {}), names[1], names[2:])
        self._reader: OpenPMDReader | None = None
        self._arguments: dict[str, Any] = {
            "path": path,
            "records": tree,
            "timeout": timeout,
            "stop": stop,
            "rank": rank,
            "ranks": ranks,
            "distribution": distribution,
            "options": options,
        }
        self._start = start
        library()

    def pieces(self, mark: Mark) -> Iterator[tuple[Mark, Tree, torch.Tensor]]:
        """The rows of each iteration."""
        first = self._start if mark is None else int(mark["iteration"])
        self._reader = OpenPMDReader(start=first, **self._arguments)
        for iteration in self._reader:
            index = iteration["iteration_index"]
            x = self._rows(iteration, self.inputs, "inputs")
            y = x if self.targets is None else self._rows(iteration, self.targets, "targets")
            if len(x) != len(y):
                raise DataError(f"iteration {index} has {len(x)} rows of inputs and {len(y)} of targets.")
            if len(x):
                yield {"iteration": index}, x, y

    def _rows(self, iteration: dict[str, Any], names: list[list[str]], part: str) -> torch.Tensor:
        components = [_find(iteration, name) for name in names]
        columns = list(itertools.chain.from_iterable(components))
        shapes = {column.shape for column in columns}
        if len(shapes) > 1:
            raise DataError(
                f"iteration {iteration['iteration_index']}: the {part} have the shapes"
                f" {', '.join(map(str, sorted(shapes)))}. Name records of one shape."
            )
        cloud = names[0][0] == "particles"
        values = np.stack(columns, axis=-1 if cloud else 0).astype(np.float32, copy=False)
        if cloud and not self.by_particle and self.points is not None:
            index, wanted = iteration["iteration_index"], self.points * (self.clouds or 1)
            if len(values) < wanted:
                clouds = f" in each of {self.clouds} clouds" if self.clouds else ""
                raise DataError(f"iteration {index} has {len(values)} particles for {self.points} points{clouds}.")
            chosen = np.random.default_rng([self.seed, index]).permutation(len(values))[:wanted]
            values = values[chosen.reshape(-1, self.points) if self.clouds else chosen]
        if self.standardise:
            values = values if values.base is None else values.copy()
            self._standardised(values, part, -1 if cloud else 0)
        return torch.from_numpy(values if cloud and (self.by_particle or self.clouds) else values[None])

    def _standardised(self, values: np.ndarray, part: str, axis: int) -> None:
        """Bring each feature to mean 0 and deviation 1 of the first iteration, in place."""
        if part not in self._scaling:
            other = tuple(one for one in range(values.ndim) if one != axis % values.ndim)
            deviation = values.std(other, dtype=np.float64)
            deviation[deviation < 1e-300] = 1.0
            self._scaling[part] = [*values.mean(other, dtype=np.float64).tolist(), *deviation.tolist()]
        mean, deviation = np.split(np.array(self._scaling[part]), 2)
        for number, feature in enumerate(np.moveaxis(values, axis, 0)):  # one at a time stays in the processor's cache
            feature[...] = (feature - mean[number]) / deviation[number]

    def position(self) -> dict[str, Any]:
        """Batches given, the iteration that is being read, and by what features are standardised."""
        return {**super().position(), "scaling": dict(self._scaling)}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to a batch; see `Source.seek`."""
        super().seek(position)
        self._scaling = dict(position.get("scaling", {}))

    def halt(self) -> None:
        """End a wait at once."""
        if self._reader is not None:
            self._reader.halt()

    def close(self) -> None:
        """Let the reading threads go."""
        if self._reader is not None:
            self._reader.close()
        super().close()


def _split(name: str) -> list[str]:
    parts = name.split("/")
    least = {"meshes": 2, "particles": 3}.get(parts[0])
    if least is None or not least <= len(parts) <= least + 1 or not all(parts):
        raise ConfigError(
            f"{name!r} is no path of a record. Write meshes/E, meshes/E/x, particles/e/position or"
            " particles/e/position/x."
        )
    return parts


def _want(tree: dict[str, Any], name: str, components: list[str]) -> None:
    """Ask for a record as a whole, or for one more of its components."""
    if not components or (name in tree and tree[name] is None):
        tree[name] = None
    else:
        tree[name] = [*(tree.get(name) or []), *components]


def _find(iteration: dict[str, Any], path: list[str]) -> list[np.ndarray]:
    """The components that a path names, in their order."""
    node: Any = iteration
    for part in path:
        if not isinstance(node, Mapping) or part not in node:
            raise DataError(
                f"iteration {iteration['iteration_index']} has no {'/'.join(path)}, which is to be learned."
            )
        node = node[part]
    return [node.data] if isinstance(node, StreamData) else [one.data for one in node.values()]
