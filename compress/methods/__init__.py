"""The table of methods: name -> how a Recipe is made of Settings and numbers of its own, and what there is to know.

To add one, write its file and its row.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from kerf.compress.methods.obs import obs
from kerf.compress.methods.obs_channels import obs_channels
from kerf.compress.methods.one_by_n import one_by_n
from kerf.compress.methods.pconv import pconv
from kerf.compress.methods.play_and_prune import play_and_prune
from kerf.compress.methods.prunenet import prunenet
from kerf.compress.methods.random_block import random_block
from kerf.compress.methods.resrep import resrep
from kerf.compress.methods.rni import rni
from kerf.compress.methods.slimming import slimming
from kerf.compress.methods.snapshots import snapshots
from kerf.compress.methods.subp import subp
from kerf.compress.methods.ucs import ucs
from kerf.compress.methods.uniform_scaling import uniform_scaling
from kerf.compress.methods.weight import weight
from kerf.compress.methods.while_training import while_training
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.settings import Settings
from kerf.errors import BadInput


@dataclass(frozen=True)
class Method:
    """A row of the table. Called with Settings, and numbers of its own by name, it gives a Recipe."""

    make: Callable[..., Recipe]
    paper: str  # authors and arXiv number
    removes: str
    scope: str  # within what units compete
    target: str  # what can be asked for: a share of "layers", of "macs", of "either" channels or MACs; "nothing"
    needs: tuple[str, ...] = ()  # beyond the weights: "training" of its own, "images" to look at before it removes
    faithful: bool = True  # to what was published, or in its style: parts are filled in, as its Differs says

    def __call__(self, settings: Settings, **numbers: Any) -> Recipe:
        if (images := numbers.get("images", 1)) < 1:  # a criterion that has seen nothing would rank by chance
            raise BadInput(f"images is {images}: expected at least 1")
        return self.make(settings, **numbers)

    @property
    def numbers(self) -> dict[str, Any]:
        """Of its own, and their defaults: what --set takes."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def does(self) -> str:
        return inspect.getdoc(self.make) or ""

    @property
    def head(self) -> str:
        """Of its file: Paper, Code, Differs."""
        return inspect.cleandoc(inspect.getmodule(self.make).__doc__ or "")


TRAINING, IMAGES, BOTH = ("training",), ("images",), ("training", "images")

METHODS: dict[str, Method] = {
    "dense": Method(dense, "none", "nothing", "each layer", "nothing"),
    "one_by_n": Method(one_by_n, "Lin et al., arXiv 2105.14713", "1xN blocks", "each layer", "layers"),
    "obs": Method(
        obs, "Frantar and Alistarh, arXiv 2208.11580", "1xN blocks", "each layer", "layers", IMAGES, faithful=False
    ),
    "obs_channels": Method(
        obs_channels,
        "Frantar and Alistarh, arXiv 2208.11580",
        "channels",
        "all layers",
        "either",
        IMAGES,
        faithful=False,
    ),
    "random_block": Method(random_block, "Lin et al., arXiv 2105.14713", "1xN blocks", "each layer", "layers"),
    "weight": Method(weight, "Han et al., arXiv 1506.02626", "weights", "each layer", "layers"),
    "filter": Method(filters, "Li et al., arXiv 1608.08710", "filters' weights", "each layer", "layers"),
    "movement": Method(movement, "Sanh et al., arXiv 2005.07683", "weights", "each layer", "layers", TRAINING),
    "soft_movement": Method(
        soft_movement, "Sanh et al., arXiv 2005.07683", "weights", "all layers", "layers", TRAINING
    ),
    "block_movement": Method(
        block_movement, "Sanh et al., arXiv 2005.07683", "1xN blocks", "all layers", "layers", TRAINING
    ),
    "subp": Method(
        subp, "Xiang et al., arXiv 2310.06218", "1xN blocks", "each layer", "layers", TRAINING, faithful=False
    ),
    "dsc1": Method(dsc1, "Guo et al., arXiv 2002.04301", "weights", "all layers", "layers", TRAINING, faithful=False),
    "darb": Method(darb, "Ren et al., arXiv 1911.08020", "weights", "its own rule", "layers", faithful=False),
    "pconv": Method(
        pconv, "Ma et al., arXiv 1909.05073", "kernels' entries", "each layer", "layers", TRAINING, faithful=False
    ),
    "resrep": Method(resrep, "Ding et al., arXiv 2007.03260", "channels", "its own rule", "macs", TRAINING),
    "csgd": Method(csgd, "Ding et al., arXiv 1904.03837", "channels", "its own rule", "either", TRAINING),
    "dmcp": Method(dmcp, "Guo et al., arXiv 2005.03354", "channels", "all layers", "macs", TRAINING),
    "greg1": Method(greg1, "Wang et al., arXiv 2012.09243", "channels", "its own rule", "either", TRAINING),
    "greg2": Method(greg2, "Wang et al., arXiv 2012.09243", "channels", "its own rule", "either", TRAINING),
    "gate_decorator": Method(
        gate_decorator, "You et al., arXiv 1909.08174", "channels", "all layers", "either", TRAINING
    ),
    "bwcp": Method(bwcp, "Shao et al., arXiv 2105.06423", "channels", "all layers", "either", TRAINING),
    "c2s2": Method(c2s2, "Chiu et al., arXiv 1904.03508", "channels", "all layers", "either", TRAINING, faithful=False),
    "dsc2": Method(dsc2, "Guo et al., arXiv 2002.04301", "channels", "all layers", "either", TRAINING, faithful=False),
    "rni": Method(rni, "Suteu and Guo, arXiv 2204.06404", "channels", "all layers", "either", TRAINING),
    "slimming": Method(slimming, "Liu et al., arXiv 1708.06519", "channels", "all layers", "either", TRAINING),
    "ucs": Method(ucs, "Suteu and Guo, arXiv 2204.06404", "channels", "each layer", "either"),
    "l1": Method(l1, "Li et al., arXiv 1608.08710", "channels", "each layer", "either"),
    "lookahead": Method(lookahead, "Park et al., arXiv 2002.04809", "weights", "each layer", "layers"),
    "hessian": Method(
        hessian, "Li et al., arXiv 2006.10903", "weights", "all layers", "layers", IMAGES, faithful=False
    ),
    "hrank": Method(hrank, "Lin et al., arXiv 2002.10179", "channels", "each layer", "either", IMAGES),
    "ezcrop": Method(ezcrop, "Lin et al., arXiv 2105.03679", "channels", "each layer", "either", IMAGES),
    "prunenet": Method(
        prunenet, "Khetan and Karnin, arXiv 2005.11282", "channels", "all layers", "either", BOTH, faithful=False
    ),
    "play_and_prune": Method(
        play_and_prune, "Singh et al., arXiv 1905.04446", "channels", "all layers", "either", TRAINING, faithful=False
    ),
    "while_training": Method(
        while_training, "Roy et al., arXiv 2003.02800", "channels", "its own rule", "either", TRAINING, faithful=False
    ),
    "frs": Method(frs, "Aketi et al., arXiv 2002.09958", "channels", "all layers", "either", BOTH),
    "snapshots": Method(snapshots, "Le et al., arXiv 2006.11487", "channels", "each layer", "either", TRAINING),
    "uniform_scaling": Method(uniform_scaling, "none", "channels", "each layer", "either"),
    "channel_similarity": Method(
        channel_similarity,
        "Zhang et al., arXiv 1908.02620",
        "channels",
        "its own rule",
        "either",
        IMAGES,
        faithful=False,
    ),
    "drl": Method(drl, "Zhan et al., arXiv 1912.02254", "channels", "its own rule", "either", BOTH, faithful=False),
}
