"""What is remembered: preallocated tensor columns, policies of insertion and retrieval, exemplar sets."""

from holdfast.memory.balanced import BalancedReservoir, FrequencyAware
from holdfast.memory.exemplars import ExemplarSets, select_closest, select_herding, select_random
from holdfast.memory.insertion import First, Insertion, Placement, Reservoir, Ring
from holdfast.memory.memories import ExemplarMemory, ExperienceMemories
from holdfast.memory.memory import Memory
from holdfast.memory.retrieval import BalancedUniform, Held, Recent, Retrieval, Uniform
from holdfast.memory.storage import Storage

__all__ = [
    "BalancedReservoir",
    "BalancedUniform",
    "ExemplarMemory",
    "ExemplarSets",
    "ExperienceMemories",
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
