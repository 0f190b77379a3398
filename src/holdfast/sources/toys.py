"""Toy data that change with time: eight Gaussians that wander, as data set, as arrays, and as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from holdfast.core.errors import ConfigError, unknown
from holdfast.core.experience import Batch
from holdfast.core.ranges import Count, Positive
from holdfast.core.source import Source

Labels = Literal["all", "some", "none"]
Mode = Literal["abs", "rel"]
TimeFunction = Callable[[Tensor, Any], Tensor]

CORNER = 1 + 2**0.5
"""2.4142..., the larger coordinate of a corner of the octagon."""

CENTRES = (
    *((CORNER, 1.0), (1.0, CORNER), (-1.0, CORNER), (-CORNER, 1.0)),
    *((-CORNER, -1.0), (-1.0, -CORNER), (1.0, -CORNER), (CORNER, -1.0)),
)
"""The corners of a regular octagon with sides of length 2, in order around it."""

LABELS: dict[str, tuple[int, ...]] = {
    "all": (0, 1, 2, 3, 4, 5, 6, 7),
    "some": (0, 0, 0, 0, 1, 1, 2, 3),
    "none": (0, 0, 0, 0, 0, 0, 0, 0),
}
"""Kind of labels -> label of each Gaussian."""


def generate_toy8(
    label_kind: Labels = "all", npoints: int = 2048, scale: float = 0.2**2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Eight isotropic Gaussians at the corners of an octagon.

    Args:
        label_kind: `all` eight have a label of their own, `some` share one, `none` are told apart.
        npoints: samples, a multiple of 8; as many of each Gaussian, in a random order.
        scale: variance of each coordinate: the covariance is `scale * I`.
        seed: of the samples and of their order.

    Returns:
        X `[npoints, 2]` and one-hot Y `[npoints, 8]`, float32.

    Raises:
        ConfigError: for another kind of labels, or a number that is not a multiple of 8.

    Example:
        >>> x, y = generate_toy8("some", npoints=16)
        >>> x.shape, y.sum(0).tolist()
        (torch.Size([16, 2]), [8.0, 4.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    """
    if label_kind not in LABELS:
        raise ConfigError(unknown("kind of labels", label_kind, LABELS))
    if npoints < 8 or npoints % 8 or scale <= 0:
        raise ConfigError(f"toy8 got npoints={npoints} and scale={scale}. Give a multiple of 8, and a scale above 0.")
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(8).repeat_interleave(npoints // 8)
    x = torch.tensor(CENTRES)[which] + scale**0.5 * torch.randn(npoints, 2, generator=generator)
    y = torch.eye(8)[torch.tensor(LABELS[label_kind])[which]]
    order = torch.randperm(npoints, generator=generator)
    return x[order], y[order]


def shifted(x: Tensor, t: Any) -> Tensor:
    """`X + t`: everything moves along the diagonal."""
    return x + t


def labels_with_time(y: Tensor, t: Any) -> Tensor:
    """`Y + (Y > 0) * t`: the entry of a one-hot label tells the time too."""
    return y + (y > 0) * t


def td_gen(
    x: Tensor,
    y: Tensor,
    time_x_func: TimeFunction = shifted,
    time_y_func: TimeFunction = labels_with_time,
    time_func_mode: Mode = "abs",
    time: Tensor | Sequence[float] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The data at each time.

    Args:
        x: `[npoints, d]` at the beginning.
        y: `[npoints, k]` at the beginning.
        time_x_func: of x and a time.
        time_y_func: of y and a time.
        time_func_mode: `abs`: the functions get what was at the beginning and the time t_i; `rel`: what was at the step
            before and t_i - t_(i-1), and the first step is left untouched. For linear functions and t_0 = 0 both give
            the same.
        time: the times; None for ten from 0 to 10.

    Yields:
        x and y at each time.

    Raises:
        ConfigError: for another mode.
    """
    if time_func_mode not in ("abs", "rel"):
        raise ConfigError(unknown("mode of a time function", time_func_mode, ["abs", "rel"]))
    times = torch.linspace(0, 10, 10).tolist() if time is None else [float(t) for t in time]
    for number, t in enumerate(times):
        if time_func_mode == "abs":
            yield time_x_func(x, t), time_y_func(y, t)
        else:
            if number:
                step = t - times[number - 1]
                x, y = time_x_func(x, step), time_y_func(y, step)
            yield x, y


def td_arrays(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """What `td_gen` yields, stacked: `[nsteps, npoints, d]` and `[nsteps, npoints, k]`."""
    xs, ys = zip(*td_gen(*args, **kwargs))
    return torch.stack(xs), torch.stack(ys)


class TimeDependentDataset(Dataset[tuple[Tensor, Tensor]]):
    """A map-style data set whose rows move on with every `step`, by the `abs` rule of `td_gen`.

    Args:
        x: `[npoints, d]` at time 0.
        y: `[npoints, k]` at time 0.
        time_x_func: of x at time 0 and the time.
        time_y_func: of y at time 0 and the time.
        dt: time of a step.

    Attributes:
        time: now.

    Example:
        >>> data = TimeDependentDataset(*generate_toy8(npoints=8), dt=0.5)
        >>> before = data[0][0]
        >>> data.step()
        >>> [round(float(move), 3) for move in data[0][0] - before], data.time
        ([0.5, 0.5], 0.5)
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        time_x_func: TimeFunction = shifted,
        time_y_func: TimeFunction = labels_with_time,
        dt: float = 1.0,
    ) -> None:
        self._start = x, y
        self.time_x_func = time_x_func
        self.time_y_func = time_y_func
        self.dt = dt
        self.steps = 0
        self.x, self.y = time_x_func(x, 0.0), time_y_func(y, 0.0)

    @property
    def time(self) -> float:
        """Steps times `dt`."""
        return self.steps * self.dt

    def step(self) -> None:
        """Move on by `dt`."""
        self.steps += 1
        self.x, self.y = self.time_x_func(self._start[0], self.time), self.time_y_func(self._start[1], self.time)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class TimeDependentStream(IterableDataset[tuple[Tensor, Tensor]]):
    """The same as an iterable that never ends: every row at a time, then all of them one step later.

    Args:
        data: whose rows are given; it moves on.
    """

    def __init__(self, data: TimeDependentDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for row in range(len(self.data)):
                yield self.data[row]
            self.data.step()


def tdds_arrays(data: TimeDependentDataset, nsteps: int) -> tuple[Tensor, Tensor]:
    """A data set at `nsteps` times, stacked as `td_arrays` does; it moves on."""
    xs, ys = [], []
    for number in range(nsteps):
        if number:
            data.step()
        xs.append(data.x)
        ys.append(data.y)
    return torch.stack(xs), torch.stack(ys)


def points_on_circle(count: int, radius: float = 1.0) -> Tensor:
    """`[count, 2]` points at equal distances on a circle, from (radius, 0) on, against the clock."""
    angle = 2 * torch.pi * torch.arange(count) / count
    return radius * torch.stack((angle.cos(), angle.sin()), 1)


class Toy8(Source):
    """Eight Gaussians that wander: `steps` times a pass over `generate_toy8`, each time moved on by `dt`.

    The task is to tell the label of a point from where it is; as everything moves along the diagonal, where one label
    is now another one was before.

    Args:
        label_kind: `all`, `some` or `none`; see `generate_toy8`.
        npoints: samples of a time, a multiple of 8.
        scale: variance of each coordinate of a Gaussian.
        steps: times; null for no end.
        dt: by which everything moves between two times.
        passes: over the samples of a time.
        seed: of the samples and of the order at each time; null takes that of the run.
        batch_size: rows of a batch.

    Example:
        >>> source = Toy8(npoints=64, steps=3, batch_size=32)
        >>> source.length, source.drifts, next(source.batches()).inputs.shape
        (6, [64, 128], torch.Size([32, 2]))
    """

    seekable = True
    input_shape = (2,)

    def __init__(
        self,
        label_kind: Labels = "all",
        npoints: Count = 2048,
        scale: Positive = 0.2**2,
        steps: Count | None = 10,
        dt: float = 0.3,
        passes: Count = 1,
        seed: int | None = None,
        batch_size: Count = 32,
    ) -> None:
        self.label_kind = label_kind
        self.npoints = npoints
        self.scale = scale
        self.steps = steps
        self.dt = dt
        self.passes = passes
        self.seed = 0 if seed is None else seed
        self.batch_size = batch_size
        self.x, y = generate_toy8(label_kind, npoints, scale, self.seed)
        self.y = y.argmax(1)
        self.classes = 1 + max(LABELS[label_kind])
        self._each = -(-npoints // batch_size)
        self.length = None if steps is None else steps * passes * self._each
        self.drifts = [] if steps is None else [npoints * passes * number for number in range(1, steps)]
        self._served = 0

    def batches(self) -> Iterator[Batch]:
        """Rows in a new order each pass, from the current position on."""
        while self.length is None or self._served < self.length:
            number, first = divmod(self._served, self._each)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            order = torch.randperm(self.npoints, generator=generator)
            for rows in order.split(self.batch_size)[first:]:
                self._served += 1
                yield Batch(shifted(self.x[rows], number // self.passes * self.dt), self.y[rows])

    def position(self) -> dict[str, Any]:
        """How many batches were given."""
        return {"batches": self._served}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to a batch."""
        self._served = int(position["batches"])
