"""Methods: one published algorithm per file, one expression each."""

from holdfast.methods.adahat import adahat
from holdfast.methods.agem import agem
from holdfast.methods.agem_exemplars import agem_exemplars
from holdfast.methods.cls_er import cls_er
from holdfast.methods.cumulative import cumulative
from holdfast.methods.der import der
from holdfast.methods.der_plus_plus import der_plus_plus
from holdfast.methods.er import er
from holdfast.methods.er_ace import er_ace
from holdfast.methods.er_exemplars import er_exemplars
from holdfast.methods.ewc import ewc
from holdfast.methods.ewc_online import ewc_online
from holdfast.methods.exemplar_replay import exemplar_replay
from holdfast.methods.finetune import finetune
from holdfast.methods.freeze_backbone import freeze_backbone
from holdfast.methods.gdumb import gdumb
from holdfast.methods.gem import gem
from holdfast.methods.gss import gss
from holdfast.methods.hat import hat
from holdfast.methods.icarl import icarl
from holdfast.methods.joint import joint
from holdfast.methods.l2 import l2
from holdfast.methods.lwf import lwf
from holdfast.methods.mas import mas
from holdfast.methods.mir import mir
from holdfast.methods.packnet import packnet
from holdfast.methods.piggyback import piggyback
from holdfast.methods.rwalk import rwalk
from holdfast.methods.separate_networks import separate_networks
from holdfast.methods.si import si
from holdfast.methods.slda import slda
from holdfast.methods.wsn import wsn
from holdfast.methods.xdg import xdg

__all__ = [
    "adahat",
    "agem",
    "agem_exemplars",
    "cls_er",
    "cumulative",
    "der",
    "der_plus_plus",
    "er",
    "er_ace",
    "er_exemplars",
    "ewc",
    "ewc_online",
    "exemplar_replay",
    "finetune",
    "freeze_backbone",
    "gdumb",
    "gem",
    "gss",
    "hat",
    "icarl",
    "joint",
    "l2",
    "lwf",
    "mas",
    "mir",
    "packnet",
    "piggyback",
    "rwalk",
    "separate_networks",
    "si",
    "slda",
    "wsn",
    "xdg",
]
