"""kerf-tune (model_tune.py): .onnx -> convert -> search -> build -> verify -> race -> bundle with its report."""

from __future__ import annotations

import math
import shlex
import sys
import warnings

from rich.console import Console

from kerf import console
from kerf.deploy.report import claims, report
from kerf.tune import records_cli
from kerf.tune.flags import parse
from kerf.tune.pipeline import Bundle, carry_out
from kerf.tune.progress import Progress
from kerf.tune.request import Request
from kerf.tune.search import Summary

INTERRUPTED = "interrupted; measurements so far are kept, the same command goes on"


def main(argv: list[str] | None = None, program: str = "kerf-tune") -> int:
    """The command's exit code; ``program`` is what it is called in its lines."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in records_cli.COMMANDS:
        return records_cli.main(words, program)
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {message}\n"
    return console.guarded(program, lambda: run(words, program), INTERRUPTED)


def run(words: list[str], program: str) -> None:
    flags = parse(words, __doc__, program)
    with console.speaking(flags.quiet, flags.json):
        bundle = carry_out(flags.request, command(flags.request, words), print, Progress(print, terminal()))
        print(summary(bundle))
    if flags.json:
        console.answer(answer(bundle, flags.request))


def terminal() -> Console:
    return Console(file=sys.stdout, soft_wrap=True, highlight=False)


def summary(bundle: Bundle) -> str:
    """The last lines: what came out, and where it lies."""
    if bundle.report is None:
        return f"bundle: {bundle.path}, not verified: this machine cannot run it"
    return f"{report.table(bundle.report)}\nbundle: {bundle.path}\nreport: {bundle.path / 'report.html'}"


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


def command(request: Request, words: list[str]) -> str:
    """What was typed, and which file was found where none was named."""
    named = any(word.startswith("--onnx") for word in words)
    return shlex.join(["python", "model_tune.py", *words, *([] if named else [f"--onnx_path={request.path}"])])


if __name__ == "__main__":
    raise SystemExit(main())
