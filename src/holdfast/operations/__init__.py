"""Operations: one idea per file. Methods are lists of these."""

from holdfast.operations.data_choice import CumulativeData, JointData
from holdfast.operations.distillation import Distillation
from holdfast.operations.fisher_penalty import FisherPenalty
from holdfast.operations.gradient_projection import GradientProjection
from holdfast.operations.joined_replay import JoinedReplay
from holdfast.operations.logit_replay import LogitReplay
from holdfast.operations.path_penalty import PathPenalty
from holdfast.operations.remember import Remember
from holdfast.operations.replay import Replay

__all__ = [
    "CumulativeData",
    "Distillation",
    "FisherPenalty",
    "GradientProjection",
    "JoinedReplay",
    "JointData",
    "LogitReplay",
    "PathPenalty",
    "Remember",
    "Replay",
]
