"""What a report says in words, and when it may not say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kerf.deploy.report.page import percent
from kerf.deploy.report.schema import Report

ENGINES = {"kerf": "kerf", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
INT8, F32 = "int8", "f32"
FLOATS_OF_BYTES = "conv2d_nchw_bytes_direct"  # the kernel, by its name: reports are read where there is no TVM
WORTH_SAYING = 0.05  # share of the weights


def label(engine: str, report: Report) -> str:
    """An engine as it is called in words; with the numbers that it computes with where a network is quantised."""
    name, _, numbers = engine.partition(" ")
    if report.get("quantised") and not numbers:
        numbers = INT8 if name == "kerf" else F32
    return f"{ENGINES.get(name, name)} {numbers}".strip()


def verdict(report: Report) -> tuple[str, str]:
    """(headline, evidence). A ratio whose interval contains 1.0 is not called a speedup."""
    ratio, runs = report.get("speedup"), report.get("engine", "kerf")
    if runs != "kerf":
        return f"Runs in {ENGINES.get(runs, runs)}", "kerf computes none of this network, or not faster"
    if not ratio:
        return "Not compared", "no dense engine was raced"
    engine, (low, high) = label(ratio["against"], report), ratio["ci95"]
    interval = f"95 % interval {low:.2f}–{high:.2f}"
    if low <= 1.0 <= high:
        return f"No measurable difference from {engine}", f"{interval} of the ratio contains 1"
    if high < 1.0:
        return f"Slower than {engine}", f"{ratio['median']:.2f}× its speed, {interval}"
    return f"{ratio['median']:.2f}× faster than {engine}", interval


def notes(report: Report) -> list[str]:
    """What a reader of the verdict could believe wrongly: zeros that no kernel skips, and layers that ran dense."""
    rows, said = report["layers"], [*pieces(report), *quantised(report)]
    bsr = report.get("bsr", "N")  # one number in older reports
    sizes = " or ".join(map(str, bsr)) if isinstance(bsr, list) else bsr
    known = [(row, share) for row in rows if (share := row.get("zero_blocks")) is not None and row.get("weights")]
    total = sum(row["weights"] for row, _ in known)
    zeros = sum(row["zeros"] * row["weights"] for row, _ in known)
    blocks = sum(share * row["weights"] for row, share in known)
    if total and zeros > WORTH_SAYING * total and blocks < zeros / 2:
        said.append(
            f"{percent(zeros / total)} of the weights are zero, but only {percent(blocks / total)} are in whole zero "
            f"blocks of {sizes} output kernels. No kernel can skip the others: they bring no speed."
        )
    dense = [row["name"] for row, share in known if share > WORTH_SAYING and not row["block"]]
    if dense:
        layers = f"{len(dense)} layers with zero blocks" if len(dense) > 1 else "A layer with zero blocks"
        said.append(
            f"{layers} ran dense ({', '.join(dense[:3])}{', …' if len(dense) > 3 else ''}): the dense kernel was "
            "faster, or fewer blocks are zero than --sparsity asks for."
        )
    if total and zeros > WORTH_SAYING * total and not any(row["block"] for row in rows):
        said.append("No layer ran sparse: the times are those of dense kernels.")
    return said


def pieces(report: Report) -> list[str]:
    """What runs which part of the network, where that is not kerf alone."""
    found = report.get("pieces", [])
    others = [piece for piece in found if piece["engine"] != "kerf"]
    own = [piece for piece in found if piece["engine"] == "kerf"]
    if not others or not own:
        return []
    operators: Counter[str] = Counter()
    for piece in others:
        operators.update(piece["operators"])
    most = ", ".join(f"{count} {name}" for name, count in operators.most_common(4))
    times = [piece["us"] for piece in found]
    share = ""
    if all(us is not None for us in times):
        taken = sum(piece["us"] or 0 for piece in others) / sum(us or 0 for us in times)
        share = f", {percent(taken)} of the time"
    engine = ENGINES.get(others[0]["engine"], others[0]["engine"])
    layers = sum(piece["layers"] for piece in own)
    return [
        f"kerf runs {layers} layers in {len(own)} pieces; {engine} runs the other {len(others)} pieces{share}: {most}"
        f"{' and others' if len(operators) > 4 else ''}."
    ]


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def quantised(report: Report) -> list[str]:
    """What f32 engines in the race compute otherwise, and of which network an accuracy is."""
    found, said = report.get("quantised"), []
    if found and (difference := found.get("difference")) is not None:
        said.append(
            "Engines named f32 run the network before it was quantised: on a random input the largest difference is "
            f"{100 * difference:.2g}\N{NO-BREAK SPACE}% of the largest output."
        )
    layers = report["layers"]
    faster = [row["name"] for row in layers if row["kernel"] == FLOATS_OF_BYTES]
    floats = [row["name"] for row in layers if row.get("numbers", "int8") != "int8" and row["name"] not in faster]
    if found and floats:
        said.append(
            f"{len(floats)} of {len(layers)} layers are computed in floats, the others on 8-bit integers: "
            f"{_few(floats)}."
        )
    if found and faster:
        said.append(
            f"{len(faster)} of {len(layers)} layers read and write 8-bit integers and multiply in f32, which is faster "
            f"here: {_few(faster)}."
        )
    ratio = report.get("speedup")
    if found and ratio and ratio["ci95"][1] < 1 and not ratio["against"].endswith(INT8):
        said.append(
            f"Integers bring nothing here: {label(ratio['against'], report)} runs the network "
            f"{1 / ratio['median']:.2f}× as fast as this bundle."
        )
    if found and found.get("samples"):
        said.append(
            f"Quantised with {found['samples']} calibration samples ({found['method']}); an accuracy on this page is "
            "that of the f32 network."
        )
    return said


def work(report: Report) -> float | None:
    """Multiply-accumulates of an image that the kernels do, zeros that are not skipped included; None if not known."""
    counts = [row["macs"] for row in report["layers"] if "macs" in row]
    return sum(counts) / report["batch"] if counts and len(counts) == len(report["layers"]) else None
