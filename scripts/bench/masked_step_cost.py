"""What keeping pruned weights at zero adds to a training step: ResNet-56, 32x32, batch 128, 1x4 blocks at 50 %.

Launch:    python scripts/bench/masked_step_cost.py
Hardware:  2 CPU cores, half a minute.
Expected:  less than 1 % more than a dense step; the limit we hold ourselves to is 5 %.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.recipe import prune
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.train import autocast

STEPS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    step, zero = prepared()
    step(True), step(False)
    pairs = [(step(False), step(True)) for _ in range(STEPS)]  # taken in turn: both see the same machine
    dense, masked = (statistics.median(column) for column in zip(*pairs))
    began = time.perf_counter()
    for _ in range(100):
        zero()
    alone = (time.perf_counter() - began) / 100
    print(f"dense {1e3 * dense:.1f} ms, masked {1e3 * masked:.1f} ms a step: {100 * (masked / dense - 1):+.1f} %")
    print(f"surgery.zero alone {1e3 * alone:.2f} ms: {100 * alone / dense:.2f} % of a dense step")
    return 0


def prepared() -> tuple[Callable[[bool], float], Callable[[], None]]:
    """(a training step, masked or not, that returns its seconds; what the masks add to it)"""
    model = create("resnet56", 10, 32).eval()
    example = torch.zeros(1, 3, 32, 32)
    graph = DependencyGraph.trace(model, example)
    model.to(memory_format=torch.channels_last)
    masks = prune(model, METHODS["one_by_n"](Settings(n=4, rearrange=True)), graph, example, 0.5).masks
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(10, (128,))
    model.train()

    def step(masked: bool) -> float:
        began = time.perf_counter()
        with autocast("auto", x.device):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        if masked:
            surgery.zero(model, masks)
        return time.perf_counter() - began

    return step, lambda: surgery.zero(model, masks)


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("masked_step_cost", main))
