"""The table of methods: name -> function from Settings, and numbers of its own, to a Recipe.

To add one, write its file and its row.
"""

from collections.abc import Callable

from compress.methods.bwcp import bwcp
from compress.methods.c2s2 import c2s2
from compress.methods.channel_similarity import channel_similarity
from compress.methods.csgd import csgd
from compress.methods.darb import darb
from compress.methods.dense import dense
from compress.methods.dmcp import dmcp
from compress.methods.drl import drl
from compress.methods.dsc import dsc1, dsc2
from compress.methods.ezcrop import ezcrop
from compress.methods.filter import filters
from compress.methods.frs import frs
from compress.methods.gate_decorator import gate_decorator
from compress.methods.greg import greg1, greg2
from compress.methods.hessian import hessian
from compress.methods.hrank import hrank
from compress.methods.l1 import l1
from compress.methods.lookahead import lookahead
from compress.methods.movement import block_movement, movement, soft_movement
from compress.methods.one_by_n import one_by_n
from compress.methods.pconv import pconv
from compress.methods.play_and_prune import play_and_prune
from compress.methods.prunenet import prunenet
from compress.methods.random_block import random_block
from compress.methods.resrep import resrep
from compress.methods.rni import rni
from compress.methods.slimming import slimming
from compress.methods.snapshots import snapshots
from compress.methods.ucs import ucs
from compress.methods.uniform_scaling import uniform_scaling
from compress.methods.weight import weight
from compress.methods.while_training import while_training
from compress.recipe import Recipe

METHODS: dict[str, Callable[..., Recipe]] = {
    "dense": dense,
    "one_by_n": one_by_n,
    "random_block": random_block,
    "weight": weight,
    "filter": filters,
    "movement": movement,
    "soft_movement": soft_movement,
    "block_movement": block_movement,
    "dsc1": dsc1,
    "darb": darb,
    "pconv": pconv,
    "resrep": resrep,
    "csgd": csgd,
    "dmcp": dmcp,
    "greg1": greg1,
    "greg2": greg2,
    "gate_decorator": gate_decorator,
    "bwcp": bwcp,
    "c2s2": c2s2,
    "dsc2": dsc2,
    "rni": rni,
    "slimming": slimming,
    "ucs": ucs,
    "l1": l1,
    "lookahead": lookahead,
    "hessian": hessian,
    "hrank": hrank,
    "ezcrop": ezcrop,
    "prunenet": prunenet,
    "play_and_prune": play_and_prune,
    "while_training": while_training,
    "frs": frs,
    "snapshots": snapshots,
    "uniform_scaling": uniform_scaling,
    "channel_similarity": channel_similarity,
    "drl": drl,
}
