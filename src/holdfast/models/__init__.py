"""Models: backbones with a head that can grow, made by factories that a configuration can name."""

from holdfast.core.inspect import features_of, find_head, parameter_bytes, parameter_count
from holdfast.models.autoencoders import Autoencoder, ConvAutoencoder, autoencoder, conv_autoencoder
from holdfast.models.build import Classifier
from holdfast.models.clouds import CloudVAE, PointNet, cloud_vae
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
from holdfast.models.invertible import ConditionalFlow, invertible
from holdfast.models.library import timm, torchvision, transformers
from holdfast.models.vit import vit

FACTORIES = (
    "autoencoder",
    "cloud_vae",
    "cnn",
    "conv_autoencoder",
    "frozen",
    "hypernetwork",
    "invertible",
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
    "Autoencoder",
    "CachedBackbone",
    "ChunkedHead",
    "Classifier",
    "CloudVAE",
    "ConditionalFlow",
    "ConvAutoencoder",
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
    "PointNet",
    "TaskHead",
    "autoencoder",
    "cloud_vae",
    "cnn",
    "conv_autoencoder",
    "features_of",
    "find_head",
    "frozen",
    "hypernetwork",
    "invertible",
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
