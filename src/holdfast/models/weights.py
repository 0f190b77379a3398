"""Saved weights: read as tensors only, and put into a model, whole or where they fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import DataError, needs_extra


def load_weights(
    model: nn.Module,
    path: str,
    replaced: tuple[str, ...],
    architecture: str,
    convert: Callable[[Any, nn.Module], Any] | None = None,
) -> None:
    """Load a saved state, but for the layers that get replaced, which may have any number of classes.

    Args:
        model: that the state is of.
        path: of a file that `torch.save` or safetensors wrote; only tensors are ever read from it.
        replaced: names of the layers that need not fit.
        architecture: for errors.
        convert: a library's own way to read states under other names, tried where names do not fit.

    Raises:
        DataError: for no file, a file of another kind, or a state that does not fit.
    """
    if not Path(path).is_file():
        raise DataError(
            f"there is no file of weights at {path!r}. Give the path of a state saved with `torch.save`, or "
            "write weights=random."
        )
    state = read_weights(path)
    prefixes = tuple(f"{name}." for name in replaced)
    wrong = _misfits(model, state, prefixes)
    if wrong and convert is not None:
        try:
            state = convert(dict(state), model)
        except Exception:  # whatever a library makes of names it does not know
            state = {}
        wrong = _misfits(model, state, prefixes) if state else wrong
    if wrong:
        raise DataError(
            f"{path!r} does not fit the architecture {architecture!r}: {len(wrong)} entries are missing, unknown or of "
            f"another shape, the first is {wrong[0]!r}. Give the architecture that the weights were saved from."
        )
    kept = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    model.load_state_dict(kept, strict=False)


def read_weights(path: str) -> dict[str, Any]:
    """The tensors of a saved state by name: of a plain state, one inside a checkpoint, or a checkpoint of ours.

    Raises:
        DataError: for a file of another kind.
    """
    try:
        state: Any = _safetensors(path) if path.endswith(".safetensors") else None
        state = torch.load(path, map_location="cpu", weights_only=True) if state is None else state
    except ImportError:
        raise
    except Exception as error:  # many kinds: not a zip, not a pickle, a pickle of more than tensors
        raise DataError(
            f"{path!r} cannot be read as weights ({first_line(error)}). "
            "Save them with `torch.save(model.state_dict(), path)`: tensors only."
        ) from error
    for key in ("state_dict", "state", "engine", "learner", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path!r} holds no saved state. Save it with `torch.save(model.state_dict(), path)`.")
    return state


def start_from(model: nn.Module, path: str) -> list[str]:
    """Take from a saved state what fits `model`, and say what does not.

    An entry fits by its whole name and its shape, or else by its name without the first part and its shape: so the
    `backbone.layer1...` of an ordinary network become the `below.layer1...` of a hypernetwork.

    Args:
        model: keeps its own values where nothing fits.
        path: of a run folder, one of its checkpoints, or any file that `torch.save` or safetensors wrote.

    Returns:
        The entries of the model that nothing was found for, in its order.

    Raises:
        DataError: for no such file, a file of another kind, or one of which nothing fits.
    """
    file = Path(path)
    if file.is_dir():
        file = next((one for one in (file / "checkpoints" / "model.pt", file / "model.pt") if one.is_file()), file)
    if not file.is_file():
        raise DataError(
            f"start_from: there are no weights at {path!r}. Give the folder of a finished run, one of its checkpoints,"
            " or a file of weights."
        )
    state = read_weights(str(file))
    inner = {name.partition(".")[2]: value for name, value in state.items() if "." in name}
    taken, left = {}, []
    for name, current in model.state_dict().items():
        of_name = [state.get(name), inner.get(name.partition(".")[2])]
        fitting = next((one for one in of_name if one is not None and one.shape == current.shape), None)
        if fitting is None:
            left.append(name)
        else:
            taken[name] = fitting
    if not taken:
        raise DataError(
            f"start_from: none of the {len(state)} tensors in {str(file)!r} ({next(iter(state), 'none')}, ...) fits by"
            f" name and shape ({next(iter(left), 'none')}, ...). Give weights of a model with the same parts."
        )
    model.load_state_dict(taken, strict=False)
    return left


def _misfits(model: nn.Module, state: dict[str, Tensor], prefixes: tuple[str, ...]) -> list[str]:
    """Entries that only one of model and state has, or that differ in shape; those that get replaced do not count."""
    current = {key: value for key, value in model.state_dict().items() if not key.startswith(prefixes)}
    kept = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    wrong = sorted(current.keys() ^ kept.keys())
    return wrong + sorted(key for key in current.keys() & kept.keys() if current[key].shape != kept[key].shape)


def _safetensors(path: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise needs_extra("a .safetensors file", "safetensors", "backbones") from error
    return load_file(path)


def first_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
