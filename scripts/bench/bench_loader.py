"""Images per second of the loaders: torchvision's reference transforms, ours with PIL, ours with DALI.

Launch:    python scripts/bench/bench_loader.py --data_path DIR [--workers 2] [--batch 100] [--rounds 9]
           DIR holds val/<wnid>/*.JPEG.
Hardware:  as many CPU cores as --workers; 1 to 2 minutes for 1,000 photographs. --device cuda: DALI there, too.
Expected:  ours with PIL faster than torchvision, ours with DALI at least 1.5 times as fast as torchvision.

First the outputs are compared: evaluation images of all loaders, training crops of PIL and DALI for the same seed.
Then every loader makes a whole epoch of normalised float batches in every round, one loader after the other, so that
what else the machine does meets them alike; the first round only warms caches. Figures are medians over rounds; a ratio
is one of two neighbours in a round. CPU time, of all processes of a loader, is what remains when other programs run.
torchvision's worker processes live on between epochs, ours are started for each. Threads of torch: one per process.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import PIL
import psutil
import torch
import torchvision
from torch import Tensor
from torchvision import datasets, transforms

from kerf.compress.data.batches import MEAN, STD, Batches
from kerf.compress.data.folders import Listing, list_folder
from kerf.compress.data.photographs import Folder

try:
    import nvidia.dali

    from kerf.compress.data.dali import Dali
except ImportError as error:
    WITHOUT = str(error)
else:
    WITHOUT = ""

REFERENCE, OURS = "torchvision's reference transforms", "kerf, PIL"


class Reference:
    """RandomResizedCrop, flip, ToTensor, Normalize in a DataLoader over an ImageFolder."""

    def __init__(self, root: Path, size: int, batch: int, workers: int, training: bool) -> None:
        if training:
            cut = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        else:
            cut = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
        steps = transforms.Compose([*cut, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        self.loader = torch.utils.data.DataLoader(
            datasets.ImageFolder(root / "val", steps),
            batch,
            shuffle=training,
            drop_last=training,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def epoch(self, epoch: int = 0, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.loader)


def cpu_seconds() -> float:
    """Of this process and its workers, those that have ended and those that live on."""
    used = psutil.Process().cpu_times()
    alive = [child.cpu_times() for child in psutil.Process().children()]
    return sum(t.user + t.system for t in [used, *alive]) + used.children_user + used.children_system


def measure(loader: Batches | Reference, epoch: int) -> tuple[float, float]:
    """Images per second, and milliseconds of CPU time per image."""
    began, used, images = time.perf_counter(), cpu_seconds(), 0
    for _, labels in loader.epoch(epoch, 0):
        images += len(labels)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return images / (time.perf_counter() - began), 1000 * (cpu_seconds() - used) / images


def compare(name: str, one: Batches | Reference, other: Batches | Reference) -> str:
    """A row of |difference| in steps of 1/255. Raises ValueError where labels differ or pixels are far apart."""
    step = torch.tensor(STD).view(3, 1, 1) * 255
    means, over, worst, pixels = [], 0, 0.0, 0
    for (x, y), (other_x, other_y) in zip(one.epoch(1, 3), other.epoch(1, 3), strict=True):
        if not torch.equal(y, other_y):
            raise ValueError(f"{name}: other images, or in another order")
        apart = ((x.cpu() - other_x.cpu()) * step).abs()
        means.append(apart.flatten(1).mean(1))
        over += int((apart > 4.5).sum())
        worst = max(worst, float(apart.max()))
        pixels += apart.numel()
    per_image = torch.cat(means)
    if per_image.max() > 6:
        raise ValueError(f"{name}: pixels of an image differ by {per_image.max():.1f} / 255 on average")
    return f"| {name} | {per_image.mean():.3f} | {per_image.max():.3f} | {over / pixels:.3%} | {worst:.0f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", help="cuda: DALI on the GPU as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    listing = list_folder(args.data_path, "val")
    versions = f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}"
    if WITHOUT:
        print(f"without DALI: {WITHOUT}")
    else:
        versions += f", nvidia-dali {nvidia.dali.__version__}"
    print(f"{len(listing.names)} images, {args.size}x{args.size}, {args.workers} workers, batches of {args.batch}")
    print(f"{versions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before\n")
    print("| against kerf, PIL | mean difference, in 1/255 | of the worst image | values over 4 apart | worst value |")
    print("|-|-|-|-|-|")
    for training in (False, True):
        print_differences(loaders(listing, args, training), training)
    print("\n| transforms | loader | images/s | least–most | to torchvision's | least–most | CPU ms an image |")
    print("|-|-|-|-|-|-|-|")
    for training in (True, False):
        print_speeds(loaders(listing, args, training), args.rounds, "training" if training else "evaluation")
    print(f"\nload {os.getloadavg()[0]:.1f} after, {args.workers} of it this")
    return 0


def loaders(listing: Listing, args: argparse.Namespace, training: bool) -> dict[str, Batches | Reference]:
    common = (listing, args.size, args.batch, args.workers, training)
    found: dict[str, Batches | Reference] = {
        REFERENCE: Reference(args.data_path, args.size, args.batch, args.workers, training),
        OURS: Folder(*common),
    }
    if not WITHOUT:
        found["kerf, DALI"] = Dali(*common)
        found["kerf, DALI, its own resizing"] = Dali(*common, own_resizing=True)
        if args.device != "cpu":
            found[f"kerf, DALI on {args.device}"] = Dali(*common, device=args.device, own_resizing=True)
    return found


def print_differences(ready: dict[str, Batches | Reference], training: bool) -> None:
    for name, loader in ready.items():
        if name != OURS and not (training and name == REFERENCE):  # its crops are drawn by other code
            kind = "training" if training else "evaluation"
            print(compare(f"{kind}: {name}", ready[OURS], loader), flush=True)


def print_speeds(ready: dict[str, Batches | Reference], rounds: int, kind: str) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in ready}
    cpu: dict[str, list[float]] = {name: [] for name in ready}
    for round_ in range(rounds + 1):
        for name, loader in ready.items():
            speed, spent = measure(loader, round_)
            if round_:
                speeds[name].append(speed)
                cpu[name].append(spent)
    for name, values in speeds.items():
        ratios = [value / base for value, base in zip(values, speeds[REFERENCE])]
        print(
            f"| {kind} | {name} | {statistics.median(values):.0f} | {min(values):.0f}–{max(values):.0f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f}–{max(ratios):.2f} "
            f"| {statistics.median(cpu[name]):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("bench_loader", main))
