"""Streams: functions that share a data set out over experiences. Every public name can be used in a configuration."""

from holdfast.streams.domains import domains, grouped
from holdfast.streams.industrial import cil, indus, indus_cil
from holdfast.streams.parts import data_incremental, online, saved
from holdfast.streams.recast import inversion, reconstruction
from holdfast.streams.repetition import repetition_sampling, repetition_slots
from holdfast.streams.shifts import noisy, permuted, rotated
from holdfast.streams.splits import blurry, proportions, split

__all__ = [
    "blurry",
    "cil",
    "data_incremental",
    "domains",
    "grouped",
    "indus",
    "indus_cil",
    "inversion",
    "noisy",
    "online",
    "permuted",
    "proportions",
    "reconstruction",
    "repetition_sampling",
    "repetition_slots",
    "rotated",
    "saved",
    "split",
]
