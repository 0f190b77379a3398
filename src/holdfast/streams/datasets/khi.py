"""The Kelvin-Helmholtz boxes of a PIConGPU simulation: particles of six regions, and the radiation of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import DAMAGED_ARRAYS, ConfigError, DataError
from holdfast.core.ranges import Count, Inside, ranged
from holdfast.streams.data import TensorData
from holdfast.streams.dataset import Dataset

Task = Literal["reconstruction", "radiation", "momentum"]
COMPONENTS = ("momentum/x", "momentum/y", "momentum/z", "force/x", "force/y", "force/z")
"""The columns of a region's particles."""


@ranged
def khi(
    path: str,
    task: Task = "reconstruction",
    points: Count = 256,
    particles: Count | None = None,
    bins: Count = 64,
    test_fraction: Inside = 0.25,
    seed: int = 0,
) -> Dataset:
    """Regions of a Kelvin-Helmholtz instability: clouds of particles (momentum and force) and radiation spectra.

    Each region is a group, so that the stream `grouped` has an experience for each. Each component of the particles is
    standardised by all regions together, and so are the spectra as a whole: a choice of units, made beforehand.

    Args:
        path: of a .npz file with `NAME_particles` [particles, 6] and `NAME_radiation` [frequencies] for each region.
        task: what is predicted of what: `reconstruction` of clouds [points, 6] from themselves; their `radiation`
            [bins]; or the `momentum` [3] of each particle from the radiation of its region [bins], the inverse problem.
        points: particles of a cloud, chosen at random, each in one cloud.
        particles: of a region that are used, chosen at random; null takes all.
        bins: that frequencies are averaged to.
        test_fraction: of the clouds, or particles, of each region.
        seed: of the choices.

    Raises:
        DataError: no such file, or one without regions.
        ConfigError: fewer than two clouds a region, or more bins than frequencies.
    """
    regions = read_khi(Path(path))
    clouds, spectra = [], []
    for name, (rows, spectrum) in regions.items():
        if bins > len(spectrum):
            raise ConfigError(
                f"khi got bins={bins}, and a spectrum has {len(spectrum)} frequencies. Give at most that."
            )
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:particles]
        clouds.append(rows[order])
        spectra.append(torch.stack([part.mean() for part in spectrum.tensor_split(bins)]))
        if len(order) < 2 * points and task != "momentum":
            raise ConfigError(f"khi got points={points}, and {name} has {len(order)} particles. Give at most half.")
    every, light = torch.cat(clouds), torch.stack(spectra)
    mean, deviation = every.mean(0), every.std(0)
    clouds = [(rows - mean) / deviation for rows in clouds]
    light = (light - light.mean()) / light.std()
    parts: list[list[Tensor]] = [[], [], []]
    for number, rows in enumerate(clouds):
        if task == "momentum":
            x, y = light[number].expand(len(rows), -1), rows[:, :3]
        else:
            x = rows[: len(rows) // points * points].view(-1, points, rows.shape[1])
            y = x if task == "reconstruction" else light[number].expand(len(x), -1)
        for part, values in zip(parts, (x, y, torch.full((len(x),), number))):
            part.append(values)
    is_test = [torch.arange(len(x)) < max(1, round(test_fraction * len(x))) for x in parts[0]]
    inputs, targets, groups = (torch.cat(part) for part in parts)
    test = torch.cat(is_test)
    same = task == "reconstruction"
    train_inputs, test_inputs = inputs[~test], inputs[test]
    return Dataset(
        name="khi",
        train=TensorData(train_inputs, train_inputs if same else targets[~test]),
        test=TensorData(test_inputs, test_inputs if same else targets[test]),
        classes=0,
        input_shape=tuple(inputs.shape[1:]),
        kind="regression",
        groups=groups[~test],
        test_groups=groups[test],
        group_names=tuple(regions),
    )


khi.kind = "regression"  # type: ignore[attr-defined]


def read_khi(path: Path) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Particles `[particles, 6]` and spectrum `[frequencies]` of each region by its name, ordered by number.

    Raises:
        DataError: no such file, or one without regions.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}. Give the .npz file of the regions.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(np.asarray(file[name], dtype=np.float32)) for name in file.files}
    except DAMAGED_ARRAYS as error:
        raise DataError(f"{path} holds no arrays: {error}. Give a file that numpy.savez wrote.") from error
    names = sorted(
        (name.removesuffix("_particles") for name in arrays if name.endswith("_particles")),
        key=lambda name: [int(number) for number in re.findall(r"\d+", name)],
    )
    regions = {}
    for name in names:
        rows, spectrum = arrays[f"{name}_particles"], arrays.get(f"{name}_radiation")
        if spectrum is None or rows.dim() != 2 or rows.shape[1] != len(COMPONENTS) or spectrum.dim() != 1:
            raise DataError(
                f"{path}: region {name!r} needs {name}_particles of shape [particles, 6] and {name}_radiation of shape"
                " [frequencies]."
            )
        regions[f"region {re.sub('^gpu', '', name)}"] = (rows, spectrum)
    if not regions:
        raise DataError(f"{path} has no array NAME_particles. It holds {', '.join(arrays) or 'none'}.")
    return regions
