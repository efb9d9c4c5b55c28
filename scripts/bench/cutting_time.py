"""Training time of methods that cut channels on their way, over that of the dense network: same images, same epochs.

Launch:    python scripts/bench/cutting_time.py [--arch resnet20] [--rounds 3] [--epochs 12]
Hardware:  any CPU; a minute of one core a round.
Expected:  a line per method: median seconds of training, ratio to the dense network's in the same round, MACs left.
           Rounds are interleaved in one process; validation, the final test and what is written are not counted.
"""

import argparse
import copy
import statistics

import torch

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.models import create
from kerf.compress.network import cost
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.progress import Reporter
from kerf.compress.training.train import Optim

# as large a part of these few images as its default is of CIFAR-10, and in proportion to the epochs as rarely
OWN = {"frs": {"images": 82, "events": 3}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--methods", nargs="+", default=["while_training", "frs", "dsc2"])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pr_target", type=float, default=0.5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data("synthetic", Options(train_batch=a.batch))
    model = create(a.arch, data.num_classes, data.image_size)
    example = torch.zeros(1, 3, data.image_size, data.image_size)
    seconds: dict[str, list[float]] = {name: [] for name in ("dense", *a.methods)}
    left: dict[str, float] = {}
    for number in range(a.rounds):
        for name in seconds:
            network = copy.deepcopy(model)
            chosen = METHODS[name](Settings(by_macs=False), **OWN.get(name, {}))
            outcome = run(
                network, chosen, data, Budget(a.pr_target, 0, a.epochs), number,
                graph=DependencyGraph.trace(network.eval(), example), reporter=Reporter(quiet=True),
                optim=Optim(LearningRate(0.02, warmup=0, policy="cos_step")),
            )  # fmt: skip
            seconds[name].append(sum(row["seconds"] for row in outcome.history))
            left[name] = cost.count(network, example).macs / cost.count(model, example).macs
    for name, taken in seconds.items():
        ratio = statistics.median(t / dense for t, dense in zip(taken, seconds["dense"], strict=True))
        print(f"{name:15} {statistics.median(taken):7.1f} s  {ratio:.3f} of dense  MACs left {left[name]:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
