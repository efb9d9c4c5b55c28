#!/usr/bin/env python3
"""Convert, tune, build, verify and race an .onnx network: see tune/cli.py, or run with --help."""

from kerf.tune.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
