"""A model as a chain of stages: where `core.body` says how models are described, under the name it had in `models`."""

from __future__ import annotations

from holdfast.core.body import Chain, chain_of

__all__ = ["Chain", "chain_of"]
