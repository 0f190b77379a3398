"""Holdfast: continual learning with PyTorch. An algorithm is defined once and runs everywhere."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from holdfast.compat import moved

moved.install()
__version__ = "0.1.0"

if TYPE_CHECKING:
    from holdfast import boundaries, methods, metrics, models, operations, sources, streams
    from holdfast.boundaries import OnDrift
    from holdfast.compat.scikit_learn import ContinualClassifier
    from holdfast.compat.streamedml import ContinualLearner, EpisodicMemory
    from holdfast.compat.synapse import TaskDict, masked_accuracy, masked_cross_entropy
    from holdfast.config.plugins import plugin
    from holdfast.core.boundary import Every, OnNewClass
    from holdfast.core.experience import Batch, Data, Experience, Stream
    from holdfast.core.learner import Learner
    from holdfast.core.method import Method
    from holdfast.core.operation import Operation
    from holdfast.core.services import Services
    from holdfast.core.step import Step
    from holdfast.discovery import search, sweep
    from holdfast.runs.opened import open as open
    from holdfast.runs.trainer import Trainer
    from holdfast.streams import datasets
    from holdfast.training import Continual
    from holdfast.training.endless import StreamTrainer

_WHERE = {
    "Batch": "holdfast.core.experience",
    "Continual": "holdfast.training",
    "ContinualClassifier": "holdfast.compat.scikit_learn",
    "ContinualRegressor": "holdfast.compat.scikit_learn",
    "ContinualLearner": "holdfast.compat.streamedml",
    "Data": "holdfast.core.experience",
    "EpisodicMemory": "holdfast.compat.streamedml",
    "Every": "holdfast.core.boundary",
    "Experience": "holdfast.core.experience",
    "Learner": "holdfast.core.learner",
    "Method": "holdfast.core.method",
    "OnDrift": "holdfast.boundaries",
    "OnNewClass": "holdfast.core.boundary",
    "Operation": "holdfast.core.operation",
    "Services": "holdfast.core.services",
    "Step": "holdfast.core.step",
    "Stream": "holdfast.core.experience",
    "StreamTrainer": "holdfast.training.endless",
    "TaskDict": "holdfast.compat.synapse",
    "Trainer": "holdfast.runs.trainer",
    "masked_accuracy": "holdfast.compat.synapse",
    "masked_cross_entropy": "holdfast.compat.synapse",
    "open": "holdfast.runs.opened",
    "plugin": "holdfast.config.plugins",
    "search": "holdfast.discovery",
    "sweep": "holdfast.discovery",
}
_MODULES = {
    "boundaries": "holdfast.boundaries",
    "datasets": "holdfast.streams.datasets",
    "methods": "holdfast.methods",
    "metrics": "holdfast.metrics",
    "models": "holdfast.models",
    "operations": "holdfast.operations",
    "sources": "holdfast.sources",
    "streams": "holdfast.streams",
}

__all__ = [
    "Batch",
    "Continual",
    "ContinualClassifier",
    "ContinualLearner",
    "ContinualRegressor",
    "Data",
    "EpisodicMemory",
    "Every",
    "Experience",
    "Learner",
    "Method",
    "OnDrift",
    "OnNewClass",
    "Operation",
    "Services",
    "Step",
    "Stream",
    "StreamTrainer",
    "TaskDict",
    "Trainer",
    "boundaries",
    "datasets",
    "masked_accuracy",
    "masked_cross_entropy",
    "methods",
    "metrics",
    "models",
    "operations",
    "plugin",
    "search",
    "sources",
    "streams",
    "sweep",
]
# Not `open`: `from holdfast import *` must not hide Python's own.


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `holdfast --help` must not wait for torch."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What the package offers, loaded or not."""
    return sorted({*globals(), *__all__, *_WHERE})
