"""Where endless batches come from: files, folders, simulations, message brokers, toys; and queues before them."""

from holdfast.core.source import Arrays, Experiences, Iterated, Source, as_source
from holdfast.sources.brokers import Kafka, Redis
from holdfast.sources.folder import Folder
from holdfast.sources.openpmd import OpenPMD
from holdfast.sources.openpmd_reader import OpenPMDReader
from holdfast.sources.pieces import Pieces, Replay
from holdfast.sources.queue import Queued
from holdfast.sources.shared import InStep
from holdfast.sources.tables import Parquet, Table
from holdfast.sources.text import Csv
from holdfast.sources.toys import TimeDependentDataset, Toy8, generate_toy8
from holdfast.sources.window import HoldOut, Window

__all__ = [
    "Arrays",
    "Csv",
    "Experiences",
    "Folder",
    "HoldOut",
    "InStep",
    "Iterated",
    "Kafka",
    "OpenPMD",
    "OpenPMDReader",
    "Parquet",
    "Pieces",
    "Queued",
    "Redis",
    "Replay",
    "Source",
    "Table",
    "TimeDependentDataset",
    "Toy8",
    "Window",
    "as_source",
    "generate_toy8",
]
