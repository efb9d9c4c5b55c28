"""The table of methods: name -> function from Settings, and numbers of its own, to a Recipe.

To add one, write its file and its row.
"""

from collections.abc import Callable

from compress.methods.csgd import csgd
from compress.methods.dense import dense
from compress.methods.dmcp import dmcp
from compress.methods.filter import filters
from compress.methods.l1 import l1
from compress.methods.one_by_n import one_by_n
from compress.methods.random_block import random_block
from compress.methods.resrep import resrep
from compress.methods.rni import rni
from compress.methods.slimming import slimming
from compress.methods.ucs import ucs
from compress.methods.weight import weight
from compress.recipe import Recipe

METHODS: dict[str, Callable[..., Recipe]] = {
    "dense": dense,
    "one_by_n": one_by_n,
    "random_block": random_block,
    "weight": weight,
    "filter": filters,
    "resrep": resrep,
    "csgd": csgd,
    "dmcp": dmcp,
    "rni": rni,
    "slimming": slimming,
    "ucs": ucs,
    "l1": l1,
}
