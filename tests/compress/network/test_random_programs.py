"""The dependency graph on random programs of slices, sums, reshapes, reductions and operators without a rule."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F

from kerf.compress.network import surgery
from tests.helpers.cutting import random_keep, zero_channels
from tests.helpers.random_networks import difference, images
from tests.helpers.rotated import Rearranged, check_function_is_kept
from tests.helpers.sweeps import sweep

OTHERS = {  # of any axis, on whatever lies there
    "softmax": lambda a, axis: a.softmax(axis),
    "mean": lambda a, axis: a.mean(axis, keepdim=True),
    "largest": lambda a, axis: a - a.amax(axis, keepdim=True),
    "norm": lambda a, axis: F.normalize(a, dim=axis),
    "roll": lambda a, axis: a.roll(1, axis),
    "cumulate": lambda a, axis: a.cumsum(axis),
    "repeat": lambda a, axis: a.repeat_interleave(2, axis) if a.numel() < 4000 else a,
    "zeros": lambda a, axis: torch.cat([a, torch.zeros_like(a)], axis) if a.numel() < 4000 else a,
    "glu": lambda a, axis: F.glu(a, axis) if a.shape[axis] % 2 == 0 else a,
    "ends": lambda a, axis: torch.stack([a.unbind(axis)[0], a.unbind(axis)[-1]], axis),
    "meet": lambda a, axis: a * a.mean(axis, keepdim=True).sigmoid(),
    "multiply": lambda a, axis: (a @ a.mT).softmax(-1) @ a if a.ndim == 3 else a,
}
KINDS = ["slice", "step", "halves", "add", "join", "flatten", "split", "turn", "gate", *OTHERS]


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
            kind = draw.choice(KINDS)
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
            else:
                a = OTHERS.get(kind, lambda a, axis: a)(a, axis)
            values.append(a)
        return torch.cat([v.reshape(batch, -1) for v in values[-2:]], 1)

    return function


@pytest.mark.parametrize("first", sweep(range(0, 60, 10), quick=(0, 10, 20)))
def test_random_programs_keep_their_function(first):
    """When channels move; and when they leave it is that of the masked network, if the program still runs."""
    x, seeds = images(2, 3, 6, 6), range(first, first + 10)
    for seed in seeds:
        model = Rearranged(random_function(seed))
        graph = check_function_is_kept(model, x)
        keep = random_keep(graph)
        masked, narrow = copy.deepcopy(model), copy.deepcopy(model)
        zero_channels(masked, graph, keep)
        surgery.cut(narrow, graph, keep)
        try:
            found = narrow(x)
        except (RuntimeError, IndexError):
            continue
        assert difference(masked(x), found) < 1e-9, seed
