"""Measures of continual learning: pure functions of a run's log, without torch."""

from holdfast.metrics.classes import per_class, wamica, worst_class, worst_class_so_far
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
    share_of_gap,
    stability_weighted,
    waacc,
)
from holdfast.metrics.cost import costs, curves
from holdfast.metrics.files import replace_file
from holdfast.metrics.log import read_log
from holdfast.metrics.matrix import accuracy_matrix, before, loss_matrix, read_matrix, sample_counts, write_matrix
from holdfast.metrics.repetition import class_group_accuracy
from holdfast.metrics.summary import METRICS, Metric, Record, compute, record

__all__ = [
    "METRICS",
    "Metric",
    "Record",
    "accuracy_matrix",
    "accuracy_so_far",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "before",
    "class_group_accuracy",
    "compute",
    "costs",
    "curves",
    "forgetting_first",
    "forgetting_max",
    "forward_transfer",
    "loss_matrix",
    "per_class",
    "plasticity",
    "read_log",
    "read_matrix",
    "record",
    "replace_file",
    "sample_accuracy",
    "sample_counts",
    "sample_incremental_accuracy",
    "share_of_gap",
    "stability_weighted",
    "waacc",
    "wamica",
    "worst_class",
    "worst_class_so_far",
    "write_matrix",
]
