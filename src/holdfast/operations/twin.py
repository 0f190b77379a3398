"""Where `Twin` was before; it is offered by `learner.twin()` and lives in `core.snapshot`."""

from __future__ import annotations

from holdfast.core.snapshot import Twin

__all__ = ["Twin"]
