"""Methods: one published algorithm per file, one expression each."""

from holdfast.methods.agem import agem
from holdfast.methods.cumulative import cumulative
from holdfast.methods.der import der
from holdfast.methods.der_plus_plus import der_plus_plus
from holdfast.methods.er import er
from holdfast.methods.ewc import ewc
from holdfast.methods.ewc_online import ewc_online
from holdfast.methods.finetune import finetune
from holdfast.methods.joint import joint
from holdfast.methods.lwf import lwf
from holdfast.methods.si import si

__all__ = [
    "agem",
    "cumulative",
    "der",
    "der_plus_plus",
    "er",
    "ewc",
    "ewc_online",
    "finetune",
    "joint",
    "lwf",
    "si",
]
