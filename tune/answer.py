"""What kerf-tune says with --json."""

from __future__ import annotations

import math

from kerf.deploy.report import claims
from kerf.tune.pipeline import Bundle
from kerf.tune.request import Request
from kerf.tune.search import Summary


def answer(bundle: Bundle, request: Request) -> dict:
    """What --json says of a compilation: the figures of the table, without samples and layers."""
    report = bundle.report
    if report is None:
        described = {key: bundle.manifest[key] for key in ("model", "target", "threads")}
        return described | {"verified": False, "reason": bundle.unverified, "files": [str(bundle.path)]}
    latency = {
        engine: {key: found[key] for key in ("median", "p10", "p90")} for engine, found in report["latency_ms"].items()
    }
    same = ("model", "target", "cpu", "threads", "batch", "verified", "max_abs_error", "speedup", "bytes")
    accuracy = report.get("accuracy") or {}
    return {
        **{key: report[key] for key in same},
        "latency_ms": latency,
        "verdict": ": ".join(claims.verdict(report)),
        "notes": claims.notes(report),
        "accuracy": {key: accuracy.get(key) for key in ("top1_dense", "top1_pruned", "top1")},
        "layers": len(report["layers"]),
        "layers_sparse": sum(row["block"] is not None for row in report["layers"]),
        "tuning": tuning(bundle.search) if bundle.search else None,
        "files": [str(bundle.path), *(str(bundle.path / f"report.{name}") for name in ("html", "json"))]
        + ([str(request.records)] if request.trials else []),
    }


def tuning(s: Summary) -> dict:
    """A search as plain values; times None where they were not measured."""
    times = {"untuned_us": s.before_us, "tuned_us": s.after_us}
    return {
        **{key: getattr(s, key) for key in ("problems", "measured", "reused", "failed", "stopped")},
        "seconds": s.seconds["total"],
        **{key: value if math.isfinite(value) else None for key, value in times.items()},
    }
