"""Putting a head, saved weights and another number of colours onto a model that a library built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError, DataError, needs_extra
from holdfast.models.build import HeadName, make_head
from holdfast.models.classifier import Classifier

NO_LINEAR = (
    "{!r} does not end with a linear layer on features, so it can have no other head. Choose another architecture."
)


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
        raise DataError(f"there is no file of weights at {path!r}. Give the path of a state saved with `torch.save`.")
    try:
        state: Any = _safetensors(path) if path.endswith(".safetensors") else None
        state = torch.load(path, map_location="cpu", weights_only=True) if state is None else state
    except ImportError:
        raise
    except Exception as error:  # many kinds: not a zip, not a pickle, a pickle of more than tensors
        raise DataError(
            f"{path!r} cannot be read as weights ({_first_line(error)}). "
            "Save them with `torch.save(model.state_dict(), path)`: tensors only."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path!r} holds no saved state. Save it with `torch.save(model.state_dict(), path)`.")
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


def _misfits(model: nn.Module, state: dict[str, Tensor], prefixes: tuple[str, ...]) -> list[str]:
    """Entries that only one of model and state has, or that differ in shape; those that get replaced do not count."""
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(prefixes)}
    kept = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    wrong = sorted(own.keys() ^ kept.keys())
    return wrong + sorted(key for key in own.keys() & kept.keys() if own[key].shape != kept[key].shape)


def with_head(
    backbone: nn.Module,
    architecture: str,
    input_shape: Sequence[int],
    classes: int,
    head: HeadName,
    weights: str | None,
    seed: int | None,
    preprocess: nn.Module | None = None,
) -> Classifier:
    """Put a head onto a backbone, and what it wants of images before it, after trying it on one black image."""
    channels = input_shape[0]
    if preprocess is not None:
        backbone = nn.Sequential(preprocess, backbone)
    if channels != 3 and not (channels == 1 and preprocess is not None and len(preprocess.mean) == 3):  # type: ignore[arg-type]
        match_channels(backbone, channels, keep=weights is not None)
    backbone.eval()  # batch norm neither learns from the black image nor refuses a batch of one
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(1, *input_shape))
    except Exception as error:  # whatever the library raises for a wrong size
        raise ConfigError(
            f"{architecture!r} cannot take images of shape {tuple(input_shape)} ({_first_line(error)}). "
            "Resize the images in the stream to the size that it was made for, or choose another architecture."
        ) from error
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise ConfigError(NO_LINEAR.format(architecture))
    backbone.train()
    return Classifier(backbone, make_head(head, features.shape[1], classes, seed))


def match_channels(backbone: nn.Module, channels: int, keep: bool) -> None:
    """Let the first convolution take another number of channels.

    Weights worth keeping become the mean over the three colours, scaled so that the same grey image in all
    channels gives the same maps as before.
    """
    found = next(((name, part) for name, part in backbone.named_modules() if isinstance(part, nn.Conv2d)), None)
    if found is None:
        raise ConfigError(
            f"a model without convolutions takes 3 channels, not {channels}. Choose another architecture."
        )
    name, module = found
    new = nn.Conv2d(
        channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )
    if keep:
        with torch.no_grad():
            new.weight.copy_(module.weight.mean(1, keepdim=True) * (module.in_channels / channels))
            if new.bias is not None and module.bias is not None:
                new.bias.copy_(module.bias)
    backbone.set_submodule(name, new)


def _safetensors(path: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise needs_extra("a .safetensors file", "safetensors", "backbones") from error
    return load_file(path)


def _first_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
