"""Operations: one idea per file. Methods are lists of these."""

from holdfast.operations.anchor_penalty import AnchorPenalty
from holdfast.operations.asymmetric_cross_entropy import AsymmetricCrossEntropy
from holdfast.operations.binary_distillation import BinaryDistillation
from holdfast.operations.binary_masks import BinaryMasks
from holdfast.operations.complementary_memories import ComplementaryMemories
from holdfast.operations.context_gates import ContextGates
from holdfast.operations.data_choice import CumulativeData, JointData
from holdfast.operations.distillation import Distillation
from holdfast.operations.feature_distillation import FeatureDistillation
from holdfast.operations.fisher_penalty import FisherPenalty
from holdfast.operations.freeze_backbone import FreezeBackbone
from holdfast.operations.gradient_constraints import GradientConstraints
from holdfast.operations.gradient_projection import GradientProjection
from holdfast.operations.interfered_replay import InterferedReplay
from holdfast.operations.joined_replay import JoinedReplay
from holdfast.operations.logit_replay import LogitReplay
from holdfast.operations.merged_replay import MergedReplay
from holdfast.operations.nearest_exemplar_mean import NearestExemplarMean
from holdfast.operations.path_penalty import PathPenalty
from holdfast.operations.pooled_distillation import PooledDistillation
from holdfast.operations.pruned_weights import PrunedWeights
from holdfast.operations.remember import Remember
from holdfast.operations.remember_diverse import RememberDiverse
from holdfast.operations.remember_exemplars import RememberExemplars
from holdfast.operations.replay import Replay
from holdfast.operations.sensitivity_penalty import SensitivityPenalty
from holdfast.operations.separate_networks import SeparateNetworks
from holdfast.operations.streaming_lda import StreamingLDA
from holdfast.operations.subnetworks import Subnetworks
from holdfast.operations.train_on_memory import TrainOnMemory
from holdfast.operations.unit_attention import UnitAttention
from holdfast.operations.walk_penalty import WalkPenalty

__all__ = [
    "AnchorPenalty",
    "AsymmetricCrossEntropy",
    "BinaryDistillation",
    "BinaryMasks",
    "ComplementaryMemories",
    "ContextGates",
    "CumulativeData",
    "Distillation",
    "FeatureDistillation",
    "FisherPenalty",
    "FreezeBackbone",
    "GradientConstraints",
    "GradientProjection",
    "InterferedReplay",
    "JoinedReplay",
    "JointData",
    "LogitReplay",
    "MergedReplay",
    "NearestExemplarMean",
    "PathPenalty",
    "PooledDistillation",
    "PrunedWeights",
    "Remember",
    "RememberDiverse",
    "RememberExemplars",
    "Replay",
    "SensitivityPenalty",
    "SeparateNetworks",
    "StreamingLDA",
    "Subnetworks",
    "TrainOnMemory",
    "UnitAttention",
    "WalkPenalty",
]
