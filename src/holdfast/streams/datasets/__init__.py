"""Data sets: functions that load or make one. Those whose arguments are plain values can be used in a configuration."""

from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets.arrays import arrays, digits, polynomial, spiral, synthetic, torch_dataset
from holdfast.streams.datasets.chosen import cifar100_coarse, coarse, fields, sub_dataset
from holdfast.streams.datasets.folders import image_folder
from holdfast.streams.datasets.khi import khi
from holdfast.streams.datasets.npz import npz
from holdfast.streams.datasets.tables import csv, frame, parquet
from holdfast.streams.datasets.vision import fashion_mnist, idx, mnist, torchvision, usps

__all__ = [
    "Dataset",
    "arrays",
    "cifar100_coarse",
    "coarse",
    "csv",
    "digits",
    "fashion_mnist",
    "fields",
    "frame",
    "idx",
    "image_folder",
    "khi",
    "mnist",
    "npz",
    "parquet",
    "polynomial",
    "spiral",
    "sub_dataset",
    "synthetic",
    "torch_dataset",
    "torchvision",
    "usps",
]
