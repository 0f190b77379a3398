"""The ways to train, each a thin loop around `core.engine`."""

from holdfast.training.stacked import fit_stacked
from holdfast.training.trainer import Trainer
from holdfast.training.wrapper import Continual

__all__ = ["Continual", "Trainer", "fit_stacked"]
