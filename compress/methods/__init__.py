"""The table of methods: name -> function from Settings, and numbers of its own, to a Recipe.

To add one, write its file and its row.
"""

from collections.abc import Callable

from kerf.compress.methods.bwcp import bwcp
from kerf.compress.methods.c2s2 import c2s2
from kerf.compress.methods.channel_similarity import channel_similarity
from kerf.compress.methods.csgd import csgd
from kerf.compress.methods.darb import darb
from kerf.compress.methods.dense import dense
from kerf.compress.methods.dmcp import dmcp
from kerf.compress.methods.drl.drl import drl
from kerf.compress.methods.dsc import dsc1, dsc2
from kerf.compress.methods.ezcrop import ezcrop
from kerf.compress.methods.filter import filters
from kerf.compress.methods.frs import frs
from kerf.compress.methods.gate_decorator import gate_decorator
from kerf.compress.methods.greg import greg1, greg2
from kerf.compress.methods.hessian import hessian
from kerf.compress.methods.hrank import hrank
from kerf.compress.methods.l1 import l1
from kerf.compress.methods.lookahead import lookahead
from kerf.compress.methods.movement import block_movement, movement, soft_movement
from kerf.compress.methods.one_by_n import one_by_n
from kerf.compress.methods.pconv import pconv
from kerf.compress.methods.play_and_prune import play_and_prune
from kerf.compress.methods.prunenet import prunenet
from kerf.compress.methods.random_block import random_block
from kerf.compress.methods.resrep import resrep
from kerf.compress.methods.rni import rni
from kerf.compress.methods.slimming import slimming
from kerf.compress.methods.snapshots import snapshots
from kerf.compress.methods.ucs import ucs
from kerf.compress.methods.uniform_scaling import uniform_scaling
from kerf.compress.methods.weight import weight
from kerf.compress.methods.while_training import while_training
from kerf.compress.pruning.recipe import Recipe

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
