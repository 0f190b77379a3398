"""Last layers: what turns features into one output per class, and how it grows when new classes arrive."""

from holdfast.models.heads.base import FixedHead, Head, Part
from holdfast.models.heads.cosine import CosineHead, CosineTaskHead
from holdfast.models.heads.growing import MASKED, ChunkedHead, GrowingHead, TaskHead

__all__ = [
    "MASKED",
    "ChunkedHead",
    "CosineHead",
    "CosineTaskHead",
    "FixedHead",
    "GrowingHead",
    "Head",
    "Part",
    "TaskHead",
]
