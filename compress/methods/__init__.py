"""The table of methods: name -> function from Settings to a Recipe. To add one, write its file and its row."""

from collections.abc import Callable

from compress.methods.dense import dense
from compress.methods.filter import filters
from compress.methods.one_by_n import one_by_n
from compress.methods.random_block import random_block
from compress.methods.weight import weight
from compress.recipe import Recipe, Settings

METHODS: dict[str, Callable[[Settings], Recipe]] = {
    "dense": dense,
    "one_by_n": one_by_n,
    "random_block": random_block,
    "weight": weight,
    "filter": filters,
}
