"""Models: backbones with a head that can grow, made by factories that a configuration can name."""

from holdfast.core.inspect import features_of, find_head, parameter_bytes, parameter_count
from holdfast.models.classifier import Classifier
from holdfast.models.convolutional import cnn
from holdfast.models.dense import linear, mlp
from holdfast.models.frozen import frozen
from holdfast.models.heads import MASKED, ChunkedHead, CosineHead, FixedHead, GrowingHead, Head, Part, TaskHead
from holdfast.models.library import timm, torchvision
from holdfast.models.resnet import resnet18

FACTORIES = ("cnn", "frozen", "linear", "mlp", "resnet18", "timm", "torchvision")
"""What a configuration can name as a model; each takes `input_shape` and `classes` from the stream."""

__all__ = [
    "FACTORIES",
    "MASKED",
    "ChunkedHead",
    "Classifier",
    "CosineHead",
    "FixedHead",
    "GrowingHead",
    "Head",
    "Part",
    "TaskHead",
    "cnn",
    "features_of",
    "find_head",
    "frozen",
    "linear",
    "mlp",
    "parameter_bytes",
    "parameter_count",
    "resnet18",
    "timm",
    "torchvision",
]
