"""Every dense engine installed, raced by the benchmarks.

ONNX Runtime and OpenVINO read the .onnx file; torch gets a module with the same weights, traced, frozen and optimised
for inference, which is how its oneDNN kernels run with packed weights.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from kerf.deploy.measure import bench

NAMES = ("onnxruntime", "openvino", "onednn")


def engines(path: Path, module, example: np.ndarray, threads: int) -> list[bench.Engine]:
    return of_file(path, threads) + installed({"onednn": lambda: onednn(module, example, threads)})


def of_file(path: Path, threads: int) -> list[bench.Engine]:
    """Those that read the .onnx file."""
    return installed({name: partial(make, path, threads) for name, make in bench.ENGINES.items()})


def installed(makers: Mapping[str, Callable[[], bench.Engine]]) -> list[bench.Engine]:
    """What is not installed is said, and left out."""
    found = []
    for name, make in makers.items():
        try:
            found.append(make())
        except ImportError:
            print(f"{name} is not installed; raced without it (pip install '.[peers]')")
    return found


def onednn(module, example: np.ndarray, threads: int) -> bench.Engine:
    import torch

    torch.set_num_threads(threads)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module.eval(), torch.from_numpy(example))
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(traced))

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return frozen(torch.from_numpy(x)).numpy()

    return bench.Engine("onednn", run)


def cells(measured: list[bench.Measurement], unit: float = 1.0, digits: int = 2) -> list[str]:
    """kerf's median and spread, then the medians of the others, in milliseconds times ``unit``."""
    by = {m.engine: m for m in measured}
    kerf = by["kerf"]
    own = f"{unit * kerf.median:.{digits}f} ({unit * kerf.p10:.{digits}f}–{unit * kerf.p90:.{digits}f})"
    return [own, *(f"{unit * by[n].median:.{digits}f}" if n in by else "–" for n in NAMES)]


def ratio(measured: list[bench.Measurement]) -> bench.Speedup:
    """kerf against the faster of ONNX Runtime and OpenVINO; torch is shown, but not the yardstick."""
    return bench.speedup(measured[0], [m for m in measured[1:] if m.engine in NAMES[:2]])


def summary(measured: list[bench.Measurement], macs: float, peak: float) -> dict:
    """What is stored of a race: medians, spread, ratio, and how much of the core's multiply-add peak was used."""
    rate = macs / (1e3 * measured[0].median)  # multiply-adds of stored weights per microsecond
    times = {m.engine: {"median": m.median, "p10": m.p10, "p90": m.p90} for m in measured}
    return {"ms": times, "speedup": ratio(measured), "gflops": 2e-3 * rate, "of_peak": rate / peak}


def text(r: bench.Speedup) -> str:
    """Ratio with its interval."""
    low, high = r["ci95"]
    return f"{r['median']:.2f} | {low:.2f}–{high:.2f}"
