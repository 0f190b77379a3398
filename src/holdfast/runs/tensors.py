"""Files of tensors and plain values: written beside their place and renamed over it, loaded without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from holdfast.core.errors import DataError, HoldfastError

LAST = "last.pt"
MODEL = "model.pt"
FORMAT = 1


def save_tensors(path: Path, content: Any) -> None:
    """Write tensors and plain values to `path`: whole, or not at all.

    Raises:
        HoldfastError: if the disk is full or the folder cannot be written; what was at `path` is still there.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise HoldfastError(
            f"could not write {path}: {reason}. Make room and run `holdfast resume`; the checkpoint before it is whole."
        ) from error


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote; nothing in the file is ever run.

    Raises:
        DataError: if the file is damaged or of another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as a checkpoint: {error}. Start the run again in another folder."
        ) from error
    if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
        raise DataError(
            f"{path} has format {content['format']}, this version reads {FORMAT}. Use the version that wrote it."
        )
    return content
