"""What a trainer shows of its session: the method bound to the model, and the parts around it."""

from __future__ import annotations

from torch import nn

from holdfast.core.engine import Engine
from holdfast.core.learner import Learner
from holdfast.training.optimization import Optimization
from holdfast.training.session import Session


class Bound:
    """The parts of a session that a trainer's user asks for.

    Attributes:
        session: everything the training works on.
    """

    session: Session

    @property
    def engine(self) -> Engine:
        """The method bound to the model."""
        return self.session.engine

    @property
    def learner(self) -> Learner:
        """The model with its services."""
        return self.session.learner

    @property
    def model(self) -> nn.Module:
        """The model, on its device."""
        return self.session.model

    @property
    def optimization(self) -> Optimization:
        """Optimiser and scheduler."""
        return self.session.optimization

    @property
    def seconds(self) -> float:
        """Seconds since the training began, those before an interruption included."""
        return self.session.seconds
