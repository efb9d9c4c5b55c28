"""What a manifest and a report say of a network: its layers, their blocks, and the run of imagenet.py that made it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tvm.target import Target

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import Built, record
from kerf.deploy.frontend.network import KERF, Network
from kerf.deploy.measure.environment import environment
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.plans import steps
from kerf.deploy.plans.fallback import FILE, Whole
from kerf.deploy.plans.pieces import Weighed
from kerf.deploy.plans.steps import Steps
from kerf.deploy.quantise.quantise import Quantised
from kerf.deploy.report import block_pattern, compare
from kerf.deploy.report.block_pattern import Pattern
from kerf.deploy.report.schema import SCHEMA, LayerReport, PieceReport, QuantisedReport, Report
from kerf.deploy.runtime import bundle, gpu
from kerf.deploy.runtime.manifest import GpuContents, LayerKernel
from kerf.kernels.bsr import kept_blocks
from kerf.kernels.kernel import dense_twin
from kerf.tune.proof import Proof
from kerf.tune.request import Request

SHOWN = 128, 64  # block rows and input channels drawn of the largest layer, and of the others


def layers(
    network: Network,
    built: Built,
    book: RecordBook,
    versions: dict[str, str],
    peak: Callable[[bool], float | None],
    least: int,
) -> list[LayerReport]:
    """A row per layer: what computes it, and how long that and the dense kernel took when they were measured.

    ``peak``: multiply-accumulates a microsecond, of floats or, asked with True, of bytes.

    Zero blocks are counted in blocks of those that were found in the layer, else of `least` output kernels.
    """
    rows: list[LayerReport] = []
    most = cache(peak)
    for name in (name for piece in network.run_by if piece.engine == KERF for name in piece.layers):
        layer, choice = network.layers[name], built.choices[name]
        p = layer.problem
        chosen = choice.problem
        dense = record(dense_twin(p), built.target, book, versions)
        # not the best record of the problem: the untuned network may have won, and runs another configuration
        timed = book.of(chosen.to_json(), targets.describe(built.target), versions)
        own = next((r for r in reversed(timed) if r.what == choice.key[1:] and not r.error), None)
        kept = kept_blocks(layer.weight, p.n or least) if p.holds_blocks(p.n or least) else None
        best = most(choice.numbers == "int8") if own else None
        rows.append(
            {
                "name": name,
                "op": "depthwise" if p.depthwise else layer.op,
                "shape": p.describe(),
                "numbers": choice.numbers,
                "n": chosen.n or None,
                "block": f"{chosen.n}x1" if chosen.n else None,
                "density": 1.0 if kept is None or not chosen.n else chosen.nnzb / kept.size,
                "weights": layer.weight.size,
                "zeros": 1 - np.count_nonzero(layer.weight) / layer.weight.size,
                "zero_blocks": None if kept is None else 1 - float(kept.mean()),
                "macs": chosen.macs,
                "macs_dense": dense_twin(p).macs,
                "kernel": choice.kernel,
                "together_with": built.pairs.get(name),
                "config": dict(choice.config),
                "kerf_us": own.us if own else None,
                "dense_us": dense.us if dense else None,
                "peak_share": chosen.macs / (own.us * best) if own and best else None,
            }
        )
    return rows


def manifest(
    network: Network,
    request: Request,
    target: Target,
    built: Built | None,
    made: Steps,
    layers: list[LayerReport],
    whole: Whole | None,
) -> GpuContents:
    """``built``: None where no piece is kerf's; ``whole``: what runs inputs of other sizes."""
    versions = environment()["versions"]
    inputs, outputs = steps.ends(network.inputs), steps.ends(network.outputs)
    sizes = made.entries[0]["inputs"]
    contents: GpuContents = {
        "model": request.path.name,
        "model_sha256": bundle.sha256(request.path),
        "inputs": whole.opened(inputs) if whole else inputs,
        "outputs": whole.unsized(outputs) if whole else outputs,
        "input": next(iter(sizes.values())) if len(inputs) == len(sizes) == 1 else None,
        "plans": made.entries,
        "fallback": FILE if whole else None,
        "engine": network.engine,
        "target": targets.describe(target),
        "needs": targets.needs(target),
        "threads": request.threads,
        "tvm": versions["apache-tvm"],
        "versions": versions,
        "layers": [kernel(row) for row in layers],
    }
    if built and built.source:
        contents |= {"precision": request.precision, "cuda_source": gpu.key(built.source)}
    return contents


def kernel(row: LayerReport) -> LayerKernel:
    """What a manifest says of a layer."""
    return {
        "name": row["name"],
        "shape": row["shape"],
        "numbers": row["numbers"],
        "n": row["n"],
        "block": row["block"],
        "density": row["density"],
        "kernel": row["kernel"],
        "config": row["config"],
        "together_with": row["together_with"],
    }


def report(
    request: Request,
    network: Network,
    target: Target,
    rows: list[LayerReport],
    pieces: list[PieceReport],
    proven: Proof,
    cpu: str,
    size: int,
    command: str,
) -> Report:
    """report.json of a bundle of ``size`` bytes that ran on ``cpu``. ``command``: what makes the same bundle again."""
    where = environment()
    batches = [v.shape[0] for v in network.inputs if v.shape and v.shape[0]]
    made: Report = {
        "schema": SCHEMA,
        "model": request.path.name,
        "target": targets.describe(target),
        "threads": request.threads,
        "batch": batches[0] if batches else 1,
        "bsr": list(request.n),
        "engine": network.engine,
        **proven,
        "bytes": {"dense": network.weights_bytes, "bundle": size},
        "layers": rows,
        "pieces": pieces,
        "cpu": cpu,
        "date": where["date"],
        "machine": where["machine"],
        "versions": where["versions"],
    }
    add_job(made, request.path, command)
    made["block_patterns"] = patterns(network, rows)
    return made


def calibrated(made: Quantised, request: Request) -> QuantisedReport:
    """What a report says of the samples."""
    return {"calibration": str(request.calibration), "samples": made.samples, "method": made.method}


def pieces(network: Network, weighed: Sequence[Weighed]) -> list[PieceReport]:
    """A row per piece: what runs it, and the microseconds that it took on each engine where that was measured."""
    us = {w.piece.key: w.us for w in weighed}
    return [
        {
            "engine": piece.engine,
            "layers": len(piece.layers),
            "operators": dict(Counter(node.op_type for node in piece.nodes).most_common()),
            "us": us.get(piece.key, {}).get(piece.engine),
        }
        for piece in network.run_by
    ]


def used(book: RecordBook, networks: Sequence[Network]) -> str:
    """The records of these networks' problems, as lines."""
    problems = [layer.problem for network in networks for layer in network.layers.values()]
    wanted = {q.to_json() for problem in problems for q in (problem, dense_twin(problem))}
    return "".join(r.to_json() + "\n" for r in book.records if r.problem in wanted)


def patterns(network: Network, layers: list[LayerReport]) -> list[Pattern]:
    """The block pattern of every layer that runs sparse, the largest first."""
    ordered = sorted(layers, key=lambda row: -row["weights"])
    sparse = [(network.layers[row["name"]].weight, row["name"], row["n"]) for row in ordered]
    drawn = [(name, weight, n) for weight, name, n in sparse if n]
    return [block_pattern.of(*layer, SHOWN[0] if first == 0 else SHOWN[1]) for first, layer in enumerate(drawn)]


def add_job(report: Report, onnx_path: Path, command: str) -> None:
    """What the folder of imagenet.py's run adds to a report: accuracy, training, other runs; and all commands."""
    folder, report["commands"] = onnx_path.parent, [command]
    if onnx_path.name != "model.onnx" or not (folder / "summary.json").exists():
        return
    summary = strict_json((folder / "summary.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    report["training"] = [row for row in map(strict_json, lines) if row is not None]
    if summary is not None:
        report["accuracy"] = summary
        report["commands"] = [*([summary["command"]] if summary.get("command") else []), command]
        report["runs"] = compare.others(folder, summary, report)


def strict_json(text: str) -> dict[str, Any] | None:
    """None for a torn line, a row with NaN or no object: decoration of the report is no reason to fail."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
