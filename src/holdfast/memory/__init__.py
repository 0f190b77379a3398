"""What is remembered: preallocated tensor columns, policies of insertion and retrieval, exemplar sets."""

from holdfast.memory.balanced import BalancedReservoir
from holdfast.memory.by_class import BalancedUniform
from holdfast.memory.exemplars import ExemplarSets
from holdfast.memory.frequency import FrequencyAware
from holdfast.memory.insertion import Insertion, Placement
from holdfast.memory.memory import Memory
from holdfast.memory.recent import Recent
from holdfast.memory.reservoir import Reservoir
from holdfast.memory.retrieval import Held, Retrieval
from holdfast.memory.ring import First, Ring
from holdfast.memory.selection import select_closest, select_herding, select_random
from holdfast.memory.storage import Storage
from holdfast.memory.uniform import Uniform

__all__ = [
    "BalancedReservoir",
    "BalancedUniform",
    "ExemplarSets",
    "First",
    "FrequencyAware",
    "Held",
    "Insertion",
    "Memory",
    "Placement",
    "Recent",
    "Reservoir",
    "Retrieval",
    "Ring",
    "Storage",
    "Uniform",
    "select_closest",
    "select_herding",
    "select_random",
]
