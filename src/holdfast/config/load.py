"""The former place of `load`, which is in `holdfast.config.compose` now; kept for one release."""

from __future__ import annotations

import warnings
from typing import Any

from holdfast.config import compose


def load(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """The job that a file and overrides describe; write `from holdfast.config.compose import load`.

    Args:
        *args: of `holdfast.config.compose.load`.
        **kwargs: of the same.
    """
    warnings.warn("write `from holdfast.config.compose import load`.", DeprecationWarning, stacklevel=2)
    return compose.load(*args, **kwargs)
