"""Milliseconds of many pruned networks in one race with the dense engines. Not a script itself."""

import contextlib
import json
from pathlib import Path

import numpy as np

from kerf import files
from kerf.deploy.measure import bench, peers
from kerf.deploy.measure.environment import environment
from kerf.deploy.runtime import session
from kerf.errors import BadInput, Mismatch
from kerf.zoo import build


def race(folder: Path, blocks: dict[str, int], seconds: float) -> None:
    """`folder`/race.json: ms, speedup and its interval of every */model.onnx, each built and verified once.

    The yardstick is the faster of ONNX Runtime and OpenVINO on the untouched network's shapes, `folder`/dense.
    `blocks`: method -> rows of its zero blocks. Nothing is raced without the dense network, and no network that kerf
    does not compile (quantised ones).
    """
    if not (folder / "dense" / "model.onnx").is_file():
        print(f"{folder}: no dense network there yet, so nothing is raced (--only dense)")
        return
    networks = []
    for network in sorted(path.parent for path in folder.glob("*/model.onnx")):
        if not (network / "summary.json").is_file():
            continue
        method = json.loads((network / "summary.json").read_text())["method"]
        if not (network / "model.kerf").is_dir():
            try:
                build(network / "model.onnx", network / "model.kerf", 0.3, blocks[method])
            except (BadInput, Mismatch) as refused:
                print(f"{refused}; not raced")
                continue
        networks.append(network)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    dense = [bench.onnxruntime_engine(folder / "dense" / "model.onnx", 1)]
    with contextlib.suppress(ImportError):
        dense.append(bench.openvino_engine(folder / "dense" / "model.onnx", 1))
    engines = [bench.Engine(network.name, session.load(network / "model.kerf", 1).run) for network in networks]
    measured = {m.engine: m for m in bench.interleave([*dense, *engines], x, seconds=seconds)}
    against = [m for name, m in measured.items() if name in peers.NAMES]
    found = {}
    for network in networks:
        m = measured[network.name]
        ratio = bench.speedup(m, against)
        found[network.name] = {"ms": m.median, "speedup": ratio["median"], "ci95": ratio["ci95"]}
    yardsticks = {m.engine: {"ms": m.median, "p10": m.p10, "p90": m.p90} for m in against}
    files.write_json(folder / "race.json", {**found, "yardsticks": yardsticks, "environment": environment()})
