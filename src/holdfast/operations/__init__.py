"""Operations: one idea per file. Methods are lists of these."""

from holdfast.operations._parts.draws import Draws as Draws  # a base class, not an operation to list
from holdfast.operations.anchor_penalty import AnchorPenalty
from holdfast.operations.asymmetric_cross_entropy import AsymmetricCrossEntropy
from holdfast.operations.balanced_finetune import BalancedFinetune
from holdfast.operations.bias_correction import BiasCorrection
from holdfast.operations.binary_distillation import BinaryDistillation
from holdfast.operations.binary_masks import BinaryMasks
from holdfast.operations.common_minimum import CommonMinimum
from holdfast.operations.complementary_memories import ComplementaryMemories
from holdfast.operations.context_gates import ContextGates
from holdfast.operations.copy_weights import CopyWeights
from holdfast.operations.cross_entropy import CrossEntropy
from holdfast.operations.data_choice import CumulativeData, JointData
from holdfast.operations.distillation import Distillation
from holdfast.operations.duplicate_backbone import DuplicateBackbone
from holdfast.operations.evidential import Evidential
from holdfast.operations.feature_distillation import FeatureDistillation
from holdfast.operations.fisher_penalty import FisherPenalty
from holdfast.operations.freeze_backbone import FreezeBackbone
from holdfast.operations.freeze_below import FreezeBelow
from holdfast.operations.function_distance import FunctionDistance
from holdfast.operations.function_distance_step import FunctionDistanceStep
from holdfast.operations.generative_classifier import GenerativeClassifier
from holdfast.operations.generative_replay import GenerativeReplay
from holdfast.operations.gradient_constraints import GradientConstraints
from holdfast.operations.gradient_projection import GradientProjection
from holdfast.operations.hindsight_anchors import HindsightAnchors
from holdfast.operations.infer_task import InferTask
from holdfast.operations.interfered_replay import InterferedReplay
from holdfast.operations.joined_replay import JoinedReplay
from holdfast.operations.latent_replay import LatentReplay
from holdfast.operations.lateral_connections import LateralConnections
from holdfast.operations.logit_replay import LogitReplay
from holdfast.operations.loss_surrogate import LossSurrogate
from holdfast.operations.mahalanobis import Mahalanobis
from holdfast.operations.masked_cross_entropy import MaskedCrossEntropy
from holdfast.operations.merged_replay import MergedReplay
from holdfast.operations.meta_replay import MetaReplay
from holdfast.operations.nearest_class_mean import NearestClassMean
from holdfast.operations.nearest_exemplar_mean import NearestExemplarMean
from holdfast.operations.one_hot_error import OneHotError
from holdfast.operations.output_regularisation import OutputRegularisation
from holdfast.operations.path_penalty import PathPenalty
from holdfast.operations.pooled_distillation import PooledDistillation
from holdfast.operations.pruned_weights import PrunedWeights
from holdfast.operations.random_projection import RandomProjection
from holdfast.operations.remember import Remember
from holdfast.operations.remember_diverse import RememberDiverse
from holdfast.operations.remember_exemplars import RememberExemplars
from holdfast.operations.replay import Replay
from holdfast.operations.sensitivity_penalty import SensitivityPenalty
from holdfast.operations.separate_networks import SeparateNetworks
from holdfast.operations.streaming_lda import StreamingLDA
from holdfast.operations.subnetworks import Subnetworks
from holdfast.operations.train_on_memory import TrainOnMemory
from holdfast.operations.train_only import TrainOnly
from holdfast.operations.unit_attention import UnitAttention
from holdfast.operations.unit_importance import UnitImportance
from holdfast.operations.unit_replacement import UnitReplacement
from holdfast.operations.walk_penalty import WalkPenalty
from holdfast.operations.weight_align import WeightAlign
from holdfast.operations.weighted_cross_entropy import WeightedCrossEntropy

__all__ = [
    "AnchorPenalty",
    "AsymmetricCrossEntropy",
    "BalancedFinetune",
    "BiasCorrection",
    "BinaryDistillation",
    "BinaryMasks",
    "CommonMinimum",
    "ComplementaryMemories",
    "ContextGates",
    "CopyWeights",
    "CrossEntropy",
    "CumulativeData",
    "Distillation",
    "DuplicateBackbone",
    "Evidential",
    "FeatureDistillation",
    "FisherPenalty",
    "FreezeBackbone",
    "FreezeBelow",
    "FunctionDistance",
    "FunctionDistanceStep",
    "GenerativeClassifier",
    "GenerativeReplay",
    "GradientConstraints",
    "GradientProjection",
    "HindsightAnchors",
    "InferTask",
    "InterferedReplay",
    "JoinedReplay",
    "JointData",
    "LatentReplay",
    "LateralConnections",
    "LogitReplay",
    "LossSurrogate",
    "Mahalanobis",
    "MaskedCrossEntropy",
    "MergedReplay",
    "MetaReplay",
    "NearestClassMean",
    "NearestExemplarMean",
    "OneHotError",
    "OutputRegularisation",
    "PathPenalty",
    "PooledDistillation",
    "PrunedWeights",
    "RandomProjection",
    "Remember",
    "RememberDiverse",
    "RememberExemplars",
    "Replay",
    "SensitivityPenalty",
    "SeparateNetworks",
    "StreamingLDA",
    "Subnetworks",
    "TrainOnMemory",
    "TrainOnly",
    "UnitAttention",
    "UnitImportance",
    "UnitReplacement",
    "WalkPenalty",
    "WeightAlign",
    "WeightedCrossEntropy",
]
