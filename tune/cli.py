"""kerf-tune (model_tune.py): .onnx -> convert -> search -> build -> verify -> race -> bundle with its report."""

from __future__ import annotations

import math
import shlex
import sys
from typing import TYPE_CHECKING, Any

from kerf import console
from kerf.deploy.compiler import preflight

if TYPE_CHECKING:
    from kerf.tune.pipeline import Bundle
    from kerf.tune.request import Request
    from kerf.tune.search import Summary

INTERRUPTED = "interrupted; measurements so far are kept, the same command goes on"
RECORDS_COMMANDS = ("show", "export-records", "import-records")  # of kerf.tune.records_cli


def main(argv: list[str] | None = None, program: str = "kerf-tune") -> int:
    """The command's exit code; ``program`` is what it is called in its lines."""
    words = sys.argv[1:] if argv is None else argv
    return console.guarded(program, lambda: run(words, program), INTERRUPTED)


def run(words: list[str], program: str) -> None:
    """What is imported here needs TVM: without it, or with another version, that is one line as well."""
    preflight.refuse_tvm()
    if words and words[0] in RECORDS_COMMANDS:
        from kerf.tune import records_cli

        records_cli.run(words, program)
    else:
        compile_network(words, program)


def compile_network(words: list[str], program: str) -> None:
    from rich.console import Console

    from kerf.tune.flags import parse
    from kerf.tune.pipeline import carry_out
    from kerf.tune.progress import Progress

    flags = parse(words, __doc__, program)
    with console.speaking(flags.quiet, flags.json):
        progress = Progress(print, Console(file=sys.stdout, soft_wrap=True, highlight=False))
        bundle = carry_out(flags.request, command(flags.request, words), print, progress)
        print(summary(bundle))
    if flags.json:
        console.answer(answer(bundle, flags.request))


def summary(bundle: Bundle) -> str:
    """The last lines: what came out, and where it lies."""
    from kerf.deploy.report import report

    if bundle.report is None:
        return f"bundle: {bundle.path}, not verified: this machine cannot run it"
    return f"{report.table(bundle.report)}\nbundle: {bundle.path}\nreport: {bundle.path / 'report.html'}"


def answer(bundle: Bundle, request: Request) -> dict[str, Any]:
    """What --json says of a compilation: the figures of the table, without samples and layers."""
    from kerf.deploy.report import claims

    report, manifest = bundle.report, bundle.manifest
    if report is None:
        described = {"model": manifest["model"], "target": manifest["target"], "threads": manifest["threads"]}
        return described | {"verified": False, "reason": bundle.unverified, "files": [str(bundle.path)]}
    latency = {
        engine: {key: found[key] for key in ("median", "p10", "p90")} for engine, found in report["latency_ms"].items()
    }
    same = {"model", "target", "cpu", "threads", "batch", "verified", "max_abs_error", "speedup", "bytes"}
    accuracy = report.get("accuracy") or {}
    return {
        **{key: value for key, value in report.items() if key in same},
        "latency_ms": latency,
        "verdict": ": ".join(claims.verdict(report)),
        "notes": claims.notes(report),
        "accuracy": {key: accuracy.get(key) for key in ("top1_dense", "top1_pruned", "top1")},
        "layers": len(report["layers"]),
        "layers_sparse": sum(row["block"] is not None for row in report["layers"]),
        "tuning": tuning(bundle.search) if bundle.search else None,
        "files": [str(bundle.path), *(str(bundle.path / f"report.{name}") for name in ("html", "json"))]
        + ([str(path) for path in sorted(bundle.path.glob("libkerf_ops.*"))] if request.format == "ort" else [])
        + ([str(request.records)] if request.trials else []),
    }


def tuning(s: Summary) -> dict[str, Any]:
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
