"""USPS, handwritten digits of the United States Postal Service, from its HDF5 file."""

from __future__ import annotations

import numpy as np
import torch

from holdfast.core.errors import DataError, needs_extra
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.build import data_folder, of_tensors


def usps(path: str | None = None, normalise: bool = False) -> Dataset:
    """USPS: 7,291 + 2,007 handwritten digits of 16 x 16 pixels, from `usps.h5`.

    The file holds floats 0..1; here they are rounded to the 256 levels of a byte, as other images are. Needs h5py,
    which the extra `hdf5` brings.

    Args:
        path: folder of the file; None takes `usps` in the folder that the variable HOLDFAST_DATA says.
        normalise: whether inputs are normalised by mean and standard deviation of the training data.

    Raises:
        DataError: the file is not there, or lacks `train/data`, `train/target`, `test/data` or `test/target`.
        ImportError: h5py is not installed.
    """
    try:
        import h5py  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise needs_extra("usps", "h5py", "hdf5") from error
    file = data_folder("usps", path) / "usps.h5"
    if not file.is_file():
        raise DataError(f"there is no file {file}. Put usps.h5 there.")
    pixels, labels = [], []
    try:
        with h5py.File(file, "r") as opened:
            for part in ("train", "test"):
                grey = np.asarray(opened[part]["data"]).reshape(-1, 1, 16, 16)
                pixels.append(torch.from_numpy(np.rint(grey * 255).astype(np.uint8)))
                labels.append(np.asarray(opened[part]["target"]))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{file} is not the USPS file: {error}. Get it again.") from error
    return of_tensors("usps", pixels[0], labels[0], pixels[1], labels[1], normalise=normalise)
