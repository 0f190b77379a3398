"""`ContinualCallback` and `StreamDataModule`: a method in a Lightning trainer; needs the extra `lightning`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.training.lightning import ContinualCallback, StreamDataModule

__all__ = ["ContinualCallback", "StreamDataModule"]


def __getattr__(name: str) -> Any:
    """Import Lightning when one of the two is asked for."""
    if name in __all__:
        from holdfast.training import lightning

        return getattr(lightning, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
