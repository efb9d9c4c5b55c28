"""Sweeps over the architectures of the zoo."""

from typing import Any

from kerf.compress.models import MODELS
from tests.helpers.sweeps import sweep

# the smallest of each way in which channels meet: sums with padded shortcuts and with projections, depthwise filters
# with gates, a plain chain, concatenations
SMALLEST = ("resnet20", "resnet20_projection", "mobilenet_v3_small", "vgg16", "densenet40")


def archs(*without: str) -> list[Any]:
    """For parametrize: all architectures but those that a method refuses, the larger ones marked slow."""
    return sweep([name for name in MODELS if name not in without], [name for name in SMALLEST if name not in without])
