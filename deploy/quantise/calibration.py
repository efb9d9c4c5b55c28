"""What is asked of a calibration, as a value, and the flags that kerf quantise and kerf tune --int8 have for it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kerf.errors import BadInput
from kerf.images import MEAN, RANGE, RANGES, STD

METHODS, METHOD = RANGES, RANGE
MOST = 256


@dataclass(frozen=True)
class Calibration:
    """Where samples come from, how many are used at most, how images become numbers (per channel, of [0, 1]), and how
    ranges are taken of what was seen. Raises BadInput for values that mean nothing.
    """

    path: Path
    method: str = METHOD
    images: int = MOST
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInput(f"--calibration_method {self.method}: expected one of {', '.join(METHODS)}")
        if self.images < 1:
            raise BadInput(f"--calibration_images {self.images}: expected at least 1")
        alike = len(self.mean) in (1, 3) and len(self.std) == len(self.mean)
        if not alike or not all(math.isfinite(m) for m in self.mean) or not all(0 < s < math.inf for s in self.std):
            given = f"--mean {' '.join(map(str, self.mean))} --std {' '.join(map(str, self.std))}"
            raise BadInput(f"{given}: expected 3 numbers each, or 1 for grey images, and deviations above 0")


def add_flags(parser: argparse._ActionsContainer, required: bool = False) -> None:
    add_samples(parser, "samples that ranges are taken from", required, MOST)
    parser.add_argument("--calibration_method", choices=METHODS, default=METHOD, help="how ranges are taken of them")


def add_samples(parser: argparse._ActionsContainer, what: str, required: bool, images: int) -> None:
    """The flags of samples, of ``images`` at most by default, without what is done with them."""
    parser.add_argument(
        "--calibration", type=Path, required=required, metavar="DIR|FILE",
        help=f"{what}: a folder of images, or .npz with arrays by input name",
    )  # fmt: skip
    parser.add_argument("--calibration_images", type=int, default=images, metavar="K", help="samples to use at most")
    said = "of images, a number for each channel: a pixel becomes (value / 255 - mean) / std"
    parser.add_argument("--mean", type=float, nargs="+", default=MEAN, metavar="M", help=said)
    parser.add_argument("--std", type=float, nargs="+", default=STD, metavar="S", help="see --mean")


def of(args: argparse.Namespace) -> Calibration:
    """What was typed."""
    return Calibration(
        args.calibration, args.calibration_method, args.calibration_images, tuple(args.mean), tuple(args.std)
    )
