"""A stream of features: the data of every experience as a frozen backbone sees it, computed once and kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.core.experience import Data, Stream, Tree
from holdfast.core.inspect import eval_mode
from holdfast.core.randomness import add_tensor, module_digest
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Prepare
from holdfast.streams.feature_files import BLOCK, Column, Precision, default_folder
from holdfast.streams.loader import LoaderData
from holdfast.streams.transforms import Chain, Permute, Resize, Rotate
from holdfast.streams.views import View

PARTS = ("train", "test", "validation")
BATCH = 64
"""Samples that go through the backbone together."""
PROBES = 4
"""Rows of a column found on disk that are computed again, to be sure."""
TOLERANCE = {"float32": 1e-3, "float16": 4e-3}
"""Largest difference of a row computed again, relative to the largest value."""


def cache_features(
    stream: Stream,
    backbone: nn.Module,
    folder: str | Path | None = None,
    precision: Precision = "float32",
    name: str = "",
) -> Stream:
    """The same stream with features in the place of the inputs, read from disk where they were computed before.

    Every method, memory and trainer works on it as on the stream itself, with a model that takes features: a memory
    then holds features. The first pass over the data runs the backbone; later ones, of other methods and seeds
    too, read a memory-mapped file. A file is known by the digest of all it depends on: values and structure of the
    backbone with the versions of its libraries, the kind of device, the content of the data (image files: paths,
    sizes and times of change), transforms and `prepare`. A few rows of a file found are computed again and compared.

    Args:
        stream: any; its training inputs must not be augmented.
        backbone: prepared inputs to features `[rows, width]`; runs in eval mode, where its parameters are.
        folder: of the cache; None takes `$HOLDFAST_CACHE`, else a folder `holdfast` among the user's caches.
        precision: of the values on disk; float16 halves their size and rounds them.
        name: of the backbone, for `holdfast cache list`.

    Raises:
        ConfigError: for augmented inputs, or data and `prepare` of a kind that has no digest.
        DataError: for features that are not finite.

    Example:
        >>> from holdfast.streams import split
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = split(synthetic(features=4, classes=4), experiences=2)
        >>> folder = getfixture("tmp_path")
        >>> cached = cache_features(stream, nn.Linear(4, 6), folder)
        >>> cached[0].train.gather(torch.arange(3)).inputs.shape, cached.input_shape
        (torch.Size([3, 6]), (4,))
    """
    prepare = _checked(stream.prepare)
    cache_folder = default_folder() if folder is None else Path(folder).expanduser()
    about = {"stream": stream.name, "backbone": name or type(backbone).__name__}
    digest = module_digest(backbone)
    made: dict[int, Data | None] = {}
    for source in _sources(stream):
        column = _column(source, backbone, digest, prepare, cache_folder, precision, about)
        made |= {id(view): source.read_from(column, view) for view in source.views}
    experiences = []
    for experience in stream:
        parts = {part: getattr(experience, part) for part in PARTS}
        moved = {part: made.get(id(data), data) for part, data in parts.items()}
        experiences.append(dataclasses.replace(experience, **moved))
    return dataclasses.replace(
        stream, experiences=experiences, prepare=PassFeatures(stream.prepare, stream.input_shape)
    )


def augments(stream: Stream) -> bool:
    """Whether training inputs are changed at random, or prepared in a way that does not say what it does."""
    prepare = stream.prepare
    return prepare is not None and (not isinstance(prepare, Prepare) or bool(prepare.crop or prepare.flip))


class PassFeatures:
    """Lets features through, and prepares raw inputs as before: what a model on cached features is given.

    Args:
        prepare: of raw inputs, or None.
        input_shape: of one raw input; where that is a vector, everything counts as features.
    """

    def __init__(self, prepare: Callable[..., Any] | None, input_shape: Sequence[int]) -> None:
        self.prepare = prepare
        self.dims = len(input_shape) + 1
        self.scale = float(getattr(prepare, "scale", 255.0))

    def __call__(self, inputs: Tree, training: bool = False, generator: torch.Generator | None = None) -> Any:
        """Features as float32; raw inputs as the stream prepared them."""
        if isinstance(inputs, Tensor) and (inputs.dim() != self.dims or self.dims == 2):
            return inputs.to(torch.float32)
        return inputs if self.prepare is None else self.prepare(inputs, training, generator)


@dataclass
class Source:
    """Views of one store with one transform, and the rows of it that any of them has, ascending."""

    views: list[View]
    rows: Tensor

    @property
    def whole(self) -> View:
        """All rows as one view, without labels."""
        return self.views[0].with_rows(self.rows, torch.zeros(len(self.rows), dtype=torch.int64))

    def digest(self) -> str:
        """Of the inputs: their content, or what identifies the files they are in."""
        view, transform = self.views[0], self.views[0].transform
        described = transform is None or _described(transform)
        digest = hashlib.sha256(repr(transform).encode() if described else b"content")
        identity = getattr(view.store, "identity", None) if isinstance(view, LoaderData) and described else None
        if identity is not None:
            for row in self.rows.tolist():
                digest.update(f"{identity(row)}\n".encode())
            return digest.hexdigest()
        data = self.whole
        if described:
            data.transform = None
        for start in range(0, len(data), BLOCK):
            positions = torch.arange(start, min(len(data), start + BLOCK))
            for number, batch in enumerate(data.batches(positions, BLOCK)):
                if start == number == 0 and isinstance(view, LoaderData):
                    _check_repeats(data, batch.inputs)
                add_tensor(digest, _one(batch.inputs))
        return digest.hexdigest()

    def read_from(self, column: TensorData, view: View) -> TensorData:
        """The rows of `view` in the column of this source, with its targets and task labels."""
        task = view.task.cpu() if isinstance(view.task, Tensor) else view.task
        return column.with_rows(torch.searchsorted(self.rows, view.stored()), view.targets, task)


def _sources(stream: Stream) -> list[Source]:
    sources: list[Source] = []
    seen: set[int] = set()
    for experience in stream:
        for part in PARTS:
            data = getattr(experience, part)
            if data is None or len(data) == 0 or id(data) in seen:
                continue
            if not isinstance(data, View):
                raise ConfigError(
                    f"data of type {type(data).__name__} have no rows that features could be kept of. Use TensorData "
                    "or LoaderData, or leave the cache out."
                )
            seen.add(id(data))
            for source in sources:
                if source.views[0].store is data.store and source.views[0].transform == data.transform:
                    source.views.append(data)
                    break
            else:
                sources.append(Source([data], torch.empty(0, dtype=torch.int64)))
    for source in sources:
        source.rows = torch.cat([view.stored() for view in source.views]).unique()
    return sources


def _column(
    source: Source,
    backbone: nn.Module,
    digest: str,
    prepare: Prepare | None,
    folder: Path,
    precision: Precision,
    about: dict[str, Any],
) -> TensorData:
    data = source.whole
    device = next((value.device for value in (*backbone.parameters(), *backbone.buffers())), torch.device("cpu"))

    def compute(start: int, stop: int, step: int = 1) -> Tensor:
        parts = []
        with eval_mode(backbone), torch.no_grad():
            for batch in data.batches(torch.arange(start, stop, step), BATCH):
                inputs = _one(batch.inputs).to(device)
                inputs = inputs.to(torch.float32) if prepare is None else prepare(inputs, False, None)
                parts.append(_checked_features(backbone(inputs)))
        return torch.cat(parts)

    preparation = None if prepare is None else prepare.describe()
    key = [digest, device.type, source.digest(), preparation, precision]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    column = Column(folder, name, len(data), precision, about)
    cached = column.load()
    if cached is not None and not _agrees(cached, compute, precision):
        warnings.warn(
            f"features in {column.values} are not what the backbone gives now; they are made again.", stacklevel=2
        )
        column.forget()
        cached = None
    values = column.make(compute) if cached is None else cached
    return TensorData(values, torch.zeros(len(values), dtype=torch.int64))


def _agrees(cached: Tensor, compute: Callable[..., Tensor], precision: str) -> bool:
    """Whether a few rows, computed again, are as they were."""
    step = max(1, len(cached) // PROBES)
    again = compute(0, len(cached), step).cpu()
    if again.shape[1] != cached.shape[1]:
        return False
    old = cached[::step].to(torch.float32)
    return bool((old - again).abs().max() <= TOLERANCE[precision] * again.abs().max().clamp(min=1e-6))


def _checked(prepare: Any) -> Prepare | None:
    """What can be kept: a `Prepare` that does not augment."""
    if prepare is None:
        return None
    if not isinstance(prepare, Prepare):
        raise ConfigError(
            f"inputs are prepared by {type(prepare).__name__}, which does not say what it does, so features of them "
            "cannot be told apart. Use streams.prepare.Prepare, or leave the cache out."
        )
    if prepare.crop or prepare.flip:
        raise ConfigError(
            f"training inputs are augmented (crop={prepare.crop}, flip={str(prepare.flip).lower()}), so the backbone "
            "sees others each time and features cannot be kept. Write crop=0 and flip=false, or leave the cache out."
        )
    return prepare


def _checked_features(features: Any) -> Tensor:
    if not isinstance(features, Tensor) or features.dim() != 2 or not features.is_floating_point():
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(f"the backbone gives {shape}, and a cache keeps [rows, width] floats. Pool or flatten them.")
    return features


def _check_repeats(data: View, first: Tree) -> None:
    """Refuse a data set whose items are drawn anew at each reading."""
    rows = torch.arange(min(len(data), 2))
    again = _one(data.gather(rows).inputs)
    if not torch.equal(again, _one(first)[: len(rows)].to(again.device)):
        raise ConfigError(
            "an item of the data set is another one when it is read again, so features of it cannot be kept. "
            "Take the random transform out of the data set, or leave the cache out."
        )


def _described(transform: Any) -> bool:
    """Whether the repr of a transform says all that it does."""
    if isinstance(transform, Chain):
        return _described(transform.first) and _described(transform.second)
    return isinstance(transform, (Permute, Rotate, Resize))


def _one(inputs: Tree) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise ConfigError(
            f"a cache keeps features of one input tensor, and these inputs are a {type(inputs).__name__}. "
            "Join them, or leave the cache out."
        )
    return inputs
