"""The dependency graph on random programs of slices, sums, concatenations and reshapes."""

import random

import pytest
import torch

from kerf.compress.network.graph import UnsupportedOperator
from tests.helpers.random_networks import images
from tests.helpers.rotated import Rearranged, check_function_is_kept
from tests.helpers.sweeps import sweep


def random_function(seed: int):
    """A few random slices, sums, concatenations and reshapes, as a function of (B, 4, 6, 6)."""
    steps = 1 + seed % 7

    def function(x):
        draw = random.Random(seed)
        batch, values = len(x), [x]
        for _ in range(steps):
            a, b = draw.choice(values), draw.choice(values)
            axis = draw.randrange(1, a.ndim)
            size = a.shape[axis]
            kind = draw.choice(["slice", "step", "halves", "add", "join", "flatten", "split", "turn", "gate"])
            if kind == "slice" and size > 2:
                start = draw.randrange(size // 2)
                a = a.transpose(1, axis)[:, start : start + size // 2].transpose(1, axis)
            elif kind == "step" and size > 2:
                a = a.transpose(1, axis)[:, draw.randrange(2) :: 2].transpose(1, axis)
            elif kind == "halves" and size % 2 == 0:
                a = sum(a.chunk(2, axis))
            elif kind == "add" and a.shape == b.shape:
                a = a + torch.tanh(b)
            elif kind == "join" and a.ndim == b.ndim and a.shape[2:] == b.shape[2:]:
                a = torch.cat([a, b], 1)
            elif kind == "flatten" and a.ndim > 2:
                a = a.flatten(max(1, axis - 1), max(2, axis))
            elif kind == "split" and a.ndim < 5:
                factor = next((n for n in (draw.choice([2, 3]), 2, 3) if size % n == 0), 1)
                a = a.reshape(*a.shape[:axis], factor, size // factor, *a.shape[axis + 1 :])
            elif kind == "turn" and a.ndim > 2:
                a = a.transpose(1, a.ndim - 1)
            elif kind == "gate" and a.ndim == 4:
                a = a * a.mean((2, 3), keepdim=True)
            values.append(a)
        return torch.cat([v.reshape(batch, -1) for v in values[-2:]], 1)

    return function


@pytest.mark.parametrize("first", sweep(range(0, 60, 10), quick=(0, 10, 20)))
def test_random_programs_keep_their_function_or_are_refused(first):
    traced, seeds = 0, range(first, first + 10)
    for seed in seeds:
        try:
            check_function_is_kept(Rearranged(random_function(seed)), images(2, 3, 6, 6))
            traced += 1
        except UnsupportedOperator:
            continue
    assert traced >= len(seeds) // 2
