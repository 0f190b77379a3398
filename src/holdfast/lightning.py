"""A method in a Lightning trainer: a callback for any LightningModule, and a data module over any of our streams."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import needs_extra
from holdfast.training.lightning_callback import CallbackLogic
from holdfast.training.lightning_data import StreamLogic

if TYPE_CHECKING:
    ContinualCallback: Any
    StreamDataModule: Any

__all__ = ["ContinualCallback", "StreamDataModule"]


@functools.cache
def _classes() -> dict[str, type]:
    try:
        from lightning.pytorch import Callback, LightningDataModule
    except ImportError:
        raise needs_extra("holdfast.lightning", "lightning", "lightning") from None
    return {
        "ContinualCallback": type("ContinualCallback", (CallbackLogic, Callback), {"__doc__": CallbackLogic.__doc__}),
        "StreamDataModule": type(
            "StreamDataModule", (StreamLogic, LightningDataModule), {"__doc__": StreamLogic.__doc__}
        ),
    }


def __getattr__(name: str) -> Any:
    """The two classes, made when they are asked for: Lightning takes three seconds to import."""
    if name in __all__:
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
