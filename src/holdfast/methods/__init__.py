"""Methods: one published algorithm per file, one expression each."""

from holdfast.methods.adahat import adahat
from holdfast.methods.agem import agem
from holdfast.methods.agem_exemplars import agem_exemplars
from holdfast.methods.ar1 import ar1
from holdfast.methods.bic import bic
from holdfast.methods.cls_er import cls_er
from holdfast.methods.continual_backprop import continual_backprop
from holdfast.methods.cumulative import cumulative
from holdfast.methods.cwr import cwr
from holdfast.methods.der import der
from holdfast.methods.der_plus_plus import der_plus_plus
from holdfast.methods.dgr import dgr
from holdfast.methods.duplicate_backbone import duplicate_backbone
from holdfast.methods.er import er
from holdfast.methods.er_ace import er_ace
from holdfast.methods.er_exemplars import er_exemplars
from holdfast.methods.ewc import ewc
from holdfast.methods.ewc_online import ewc_online
from holdfast.methods.exemplar_replay import exemplar_replay
from holdfast.methods.fdr import fdr
from holdfast.methods.fecam import fecam
from holdfast.methods.fg_adahat import fg_adahat
from holdfast.methods.finetune import finetune
from holdfast.methods.fix import fix
from holdfast.methods.freeze_backbone import freeze_backbone
from holdfast.methods.freeze_below import freeze_below
from holdfast.methods.gdumb import gdumb
from holdfast.methods.gem import gem
from holdfast.methods.generative_classifier import generative_classifier
from holdfast.methods.gss import gss
from holdfast.methods.hal import hal
from holdfast.methods.hat import hat
from holdfast.methods.hypernetwork_regularised import hypernetwork_regularised
from holdfast.methods.icarl import icarl
from holdfast.methods.joint import joint
from holdfast.methods.l2 import l2
from holdfast.methods.labels_trick import labels_trick
from holdfast.methods.latent_replay import latent_replay
from holdfast.methods.lwf import lwf
from holdfast.methods.mas import mas
from holdfast.methods.mer import mer
from holdfast.methods.mir import mir
from holdfast.methods.ncm import ncm
from holdfast.methods.packnet import packnet
from holdfast.methods.partial_hypernetwork import partial_hypernetwork
from holdfast.methods.piggyback import piggyback
from holdfast.methods.progressive import progressive
from holdfast.methods.random import random
from holdfast.methods.ranpac import ranpac
from holdfast.methods.rwalk import rwalk
from holdfast.methods.separate_networks import separate_networks
from holdfast.methods.si import si
from holdfast.methods.simple_cil import simple_cil
from holdfast.methods.slda import slda
from holdfast.methods.wa import wa
from holdfast.methods.wsn import wsn
from holdfast.methods.xdg import xdg

__all__ = [
    "adahat",
    "agem",
    "agem_exemplars",
    "ar1",
    "bic",
    "cls_er",
    "continual_backprop",
    "cumulative",
    "cwr",
    "der",
    "der_plus_plus",
    "dgr",
    "duplicate_backbone",
    "er",
    "er_ace",
    "er_exemplars",
    "ewc",
    "ewc_online",
    "exemplar_replay",
    "fdr",
    "fecam",
    "fg_adahat",
    "finetune",
    "fix",
    "freeze_backbone",
    "freeze_below",
    "gdumb",
    "gem",
    "generative_classifier",
    "gss",
    "hal",
    "hat",
    "hypernetwork_regularised",
    "icarl",
    "joint",
    "l2",
    "labels_trick",
    "latent_replay",
    "lwf",
    "mas",
    "mer",
    "mir",
    "ncm",
    "packnet",
    "partial_hypernetwork",
    "piggyback",
    "progressive",
    "random",
    "ranpac",
    "rwalk",
    "separate_networks",
    "si",
    "simple_cil",
    "slda",
    "wa",
    "wsn",
    "xdg",
]
