"""Models: backbones with a head that can grow, made by factories that a configuration can name."""

from holdfast.core.inspect import features_of, find_head, parameter_bytes, parameter_count
from holdfast.models.build import Classifier
from holdfast.models.convolutional import cnn, resnet18
from holdfast.models.dense import LowRankLinear, MixedLinear, linear, low_rank_mlp, mlp, subspace_mlp
from holdfast.models.frozen import CachedBackbone, FrozenBackbone, frozen
from holdfast.models.heads import (
    MASKED,
    ChunkedHead,
    CosineHead,
    CosineTaskHead,
    FixedHead,
    GrowingHead,
    Head,
    Part,
    TaskHead,
)
from holdfast.models.hypernetwork import Hypernetwork, hypernetwork
from holdfast.models.library import timm, torchvision, transformers
from holdfast.models.vit import vit

FACTORIES = (
    "cnn",
    "frozen",
    "hypernetwork",
    "linear",
    "low_rank_mlp",
    "mlp",
    "resnet18",
    "subspace_mlp",
    "timm",
    "torchvision",
    "transformers",
    "vit",
)
"""What a configuration can name as a model; each takes `input_shape` and `classes` from the stream."""

__all__ = [
    "FACTORIES",
    "MASKED",
    "CachedBackbone",
    "ChunkedHead",
    "Classifier",
    "CosineHead",
    "CosineTaskHead",
    "FixedHead",
    "FrozenBackbone",
    "GrowingHead",
    "Head",
    "Hypernetwork",
    "LowRankLinear",
    "MixedLinear",
    "Part",
    "TaskHead",
    "cnn",
    "features_of",
    "find_head",
    "frozen",
    "hypernetwork",
    "linear",
    "low_rank_mlp",
    "mlp",
    "parameter_bytes",
    "parameter_count",
    "resnet18",
    "subspace_mlp",
    "timm",
    "torchvision",
    "transformers",
    "vit",
]
