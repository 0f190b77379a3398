"""Measures of continual learning: pure functions of a run's log, without torch."""

from holdfast.metrics.classes import confusion, per_class, recall_over_time, wamica, worst_class, worst_class_so_far
from holdfast.metrics.continual import (
    accuracy_so_far,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting_first,
    forgetting_max,
    forward_transfer,
    plasticity,
    sample_accuracy,
    sample_incremental_accuracy,
    stability_weighted,
    waacc,
)
from holdfast.metrics.cost import costs, curves
from holdfast.metrics.log import Log, read_log, replace_file
from holdfast.metrics.losses import (
    average_absolute_error,
    average_explained_variance,
    average_labels_right,
    average_loss,
    loss_increase,
)
from holdfast.metrics.matrix import accuracy_matrix, before, loss_matrix, read_matrix, sample_counts, write_matrix
from holdfast.metrics.references import share_of_gap
from holdfast.metrics.stream import (
    anytime_accuracy,
    class_group_accuracy,
    missing_class_accuracy,
    prequential_accuracy,
    seen_class_accuracy,
    windowed_accuracy,
)
from holdfast.metrics.summary import compute, record
from holdfast.metrics.table import METRICS, Metric, Record, metric

__all__ = [
    "METRICS",
    "Log",
    "Metric",
    "Record",
    "accuracy_matrix",
    "accuracy_so_far",
    "anytime_accuracy",
    "average_absolute_error",
    "average_accuracy",
    "average_explained_variance",
    "average_incremental_accuracy",
    "average_labels_right",
    "average_loss",
    "backward_transfer",
    "before",
    "class_group_accuracy",
    "compute",
    "confusion",
    "costs",
    "curves",
    "forgetting_first",
    "forgetting_max",
    "forward_transfer",
    "loss_increase",
    "loss_matrix",
    "metric",
    "missing_class_accuracy",
    "per_class",
    "plasticity",
    "prequential_accuracy",
    "read_log",
    "read_matrix",
    "recall_over_time",
    "record",
    "replace_file",
    "sample_accuracy",
    "sample_counts",
    "sample_incremental_accuracy",
    "seen_class_accuracy",
    "share_of_gap",
    "stability_weighted",
    "waacc",
    "wamica",
    "windowed_accuracy",
    "worst_class",
    "worst_class_so_far",
    "write_matrix",
]
