#!/usr/bin/env python3
"""Convert, tune, build, verify and race an .onnx network: see tune/cli.py, or run with --help."""

from kerf.cli import enter

if __name__ == "__main__":
    raise SystemExit(enter("kerf.tune.cli", "kerf-tune"))
