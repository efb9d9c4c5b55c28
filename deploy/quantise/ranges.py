"""The range of every tensor that becomes integers: all that was seen, or what leaves the least error.

Given: a model and samples. Result: (least, most) for each tensor, zero within, so that zero is exact.

minmax: all that was seen. percentile: all but one number in ten thousand on either side. mse: of ranges that are shares
of minmax, the one whose squared rounding and clipping error over all numbers is least, as in Banner et al., NeurIPS
2019, arXiv 1810.05723 (searched, not in closed form). The last two count numbers in BINS equal parts of minmax, in a
second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime

from kerf.deploy.quantise.samples import Feed
from kerf.errors import BadInput

BINS = 2048
TAIL = 1e-4  # of the numbers, on either side
SHARES = np.linspace(1.0, 0.3, 71)  # of minmax that "mse" tries
LEVELS = 255
ENOUGH = 2**16  # numbers of a tensor that are counted for one sample, at equal distances

Range = tuple[float, float]


@dataclass
class Seen:
    """Of a tensor, over all samples: least and most, and the mean of each channel (its second axis)."""

    least: float = 0.0
    most: float = 0.0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(1))
    count: int = 0

    def add(self, array: np.ndarray) -> None:
        self.least, self.most = min(self.least, float(array.min())), max(self.most, float(array.max()))
        if array.ndim > 1:
            rest = tuple(i for i in range(array.ndim) if i != 1)
            self.sums = self.sums + array.sum(axis=rest, dtype=np.float64)
            self.count += array.size // array.shape[1]

    @property
    def mean(self) -> np.ndarray:
        return self.sums / max(self.count, 1)


def observed(model: onnx.ModelProto, tensors: Sequence[str], samples: Iterable[Feed]) -> dict[str, Seen]:
    """Raises BadInput where the network gives NaN or infinity for a sample."""
    seen = {name: Seen() for name in tensors}

    def see(name: str, array: np.ndarray) -> None:
        if not np.isfinite(array).all():
            raise BadInput(f"tensor {name!r} is NaN or infinite for a calibration sample; give samples that are in use")
        seen[name].add(array)

    _watch(model, tensors, samples, see)
    return seen


def of(method: str, model: onnx.ModelProto, seen: Mapping[str, Seen], samples: Iterable[Feed]) -> dict[str, Range]:
    """By ``method``, one of METHODS; ``seen`` is what was observed of these samples."""
    whole = {name: (s.least, s.most) for name, s in seen.items()}
    if method == "minmax":
        return whole
    counts = {name: np.zeros(BINS, np.int64) for name in seen}

    def count(name: str, array: np.ndarray) -> None:
        least, most = whole[name]
        if least < most:
            some = array.reshape(-1)[:: array.size // ENOUGH + 1].astype(np.float64)
            places = ((some - least) * (BINS / (most - least))).astype(np.int64)
            counts[name] += np.bincount(places.clip(0, BINS - 1), minlength=BINS)

    _watch(model, list(seen), samples, count)
    chosen = METHODS[method]
    return {name: chosen(counts[name], *whole[name]) if counts[name].any() else whole[name] for name in seen}


def percentile(counts: np.ndarray, least: float, most: float) -> Range:
    edges = np.linspace(least, most, BINS + 1)
    below = np.cumsum(counts) / counts.sum()
    low, high = np.searchsorted(below, TAIL, "right"), np.searchsorted(below, 1 - TAIL)
    return min(0.0, float(edges[low])), max(0.0, float(edges[high + 1]))


def mse(counts: np.ndarray, least: float, most: float) -> Range:
    width = (most - least) / BINS
    middles = least + width * (np.arange(BINS) + 0.5)
    errors = [float(counts @ (_rounded(middles, s * least, s * most) - middles) ** 2) for s in SHARES]
    share = SHARES[int(np.argmin(errors))]
    return share * least, share * most


def _rounded(x: np.ndarray, least: float, most: float) -> np.ndarray:
    scale = (most - least) / LEVELS
    zero = np.rint(-least / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, LEVELS) - zero) * scale


METHODS: dict[str, Callable[[np.ndarray, float, float], Range]] = {
    "minmax": lambda _, least, most: (least, most),
    "percentile": percentile,
    "mse": mse,
}


def _watch(
    model: onnx.ModelProto, tensors: Sequence[str], samples: Iterable[Feed], see: Callable[[str, np.ndarray], None]
) -> None:
    """``see`` gets every tensor that holds anything, sample by sample."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in inputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it refuses is raised, too
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for feed in samples:
        try:
            values = dict(zip(names, session.run(names, dict(feed))))
        except Exception as error:  # its errors derive from Exception directly
            said = " ".join(str(error).split())
            raise BadInput(f"ONNX Runtime cannot run the network on a calibration sample ({said})") from error
        for name, array in {**values, **feed}.items():
            if name in tensors and array.size:
                see(name, array)
