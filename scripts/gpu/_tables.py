"""The table of gpu_bench.py: layers by kernels, and the sums over the network. Not a script itself."""

from __future__ import annotations

import numpy as np

from kerf.kernels.problem import Problem


def least_bytes(p: Problem) -> int:
    """Of f16 images that the layer has to read and write once. 1x1 windows read no pixel between their strides."""
    read = p.batch * p.in_channels * p.height * p.width
    if p.taps == 1:
        read = p.batch * p.in_channels * p.out_height * p.out_width
    return 2 * (read + int(np.prod(p.out_shape)))


def table(rows: list[dict], rate: float) -> str:
    """Per layer the fastest of each kind, and the sums over the network."""
    kinds = [("cudnn", "f16", 1.0), ("cudnn", "tf32", 1.0), ("cudnn fused", "f16", 1.0)]
    for row in rows:
        kind = row["kernel"], row["precision"], row["density"]
        if kind not in kinds:
            kinds.append(kind)
    best: dict[tuple, dict] = {}
    for row in rows:
        key = row["group"], (row["kernel"], row["precision"], row["density"])
        if key not in best or row["us"] < best[key]["us"]:
            best[key] = row
    head = " | ".join(f"{k.replace('conv2d_chwn_', '')} {pr} {d:g}" for k, pr, d in kinds)
    lines = [f"| layer | x | {head} |", "|-" * (len(kinds) + 2) + "|"]
    batches = sorted({row["batch"] for row in rows}, reverse=True)
    for batch in batches:
        groups = list(dict.fromkeys(row["group"] for row in rows if row["batch"] == batch))
        for group in groups:
            cells = [best.get((group, kind)) for kind in kinds]
            shown = " | ".join(f"{c['us']:.1f}" if c else "" for c in cells)
            first = next(c for c in cells if c)
            lines.append(f"| {first['layer']} | {first['count']} | {shown} |")
        sums = []
        for kind in kinds:
            cells = [best.get((g, kind)) for g in groups]
            sums.append(f"{sum(c['us'] * c['count'] for c in cells) / 1e3:.3f} ms" if all(cells) else "")
        lines.append(f"| batch {batch} together |  | {' | '.join(sums)} |")
        for density in sorted({k[2] for k in kinds if "bsr" in k[0]}, reverse=True):
            lines.append(summary(best, groups, density, batch, rate))
    return "\n".join(lines)


def summary(best: dict, groups: list, density: float, batch: int, rate: float) -> str:
    """Sums over the layers: cuDNN's faster precision against kerf's fastest kernel of any kind."""
    dense = fastest = sparse = floor = 0.0
    kept = 0
    for group in groups:
        of_group = {kind: row for (g, kind), row in best.items() if g == group}
        count = next(iter(of_group.values()))["count"]
        wall = min(of_group[k]["us"] for k in of_group if k[0].startswith("cudnn"))
        block = [of_group[k]["us"] for k in of_group if "bsr" in k[0] and k[2] == density]
        own = [of_group[k]["us"] for k in of_group if "dense" in k[0]]
        floor += count * least_bytes(Problem.from_json(group)) / rate
        dense += count * wall
        fastest += count * min([*block, *own, wall])
        sparse += count * min([*block, *(own if not block else [])])
        kept += count * bool(block and min(block) < min([*own, wall]))
    return (
        f"batch {batch}, {1 - density:.0%} zero: cuDNN's faster {dense / 1e3:.3f} ms; kerf's sparse kernels on every "
        f"sparse layer {sparse / 1e3:.3f} ms, {dense / sparse:.2f}x; with dense fallback ({kept} layers sparse) "
        f"{fastest / 1e3:.3f} ms, {dense / fastest:.2f}x; reading and writing every image once {floor / 1e3:.3f} ms"
    )
