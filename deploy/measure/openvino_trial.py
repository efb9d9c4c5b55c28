"""Whether OpenVINO survives a file: on some quantised networks (a GhostNet-V2) it ends its process.

python -m kerf.deploy.measure.openvino_trial FILE.onnx THREADS     one run, on ones
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from kerf.deploy.runtime import dense_engine
from kerf.errors import Unsupported
from kerf.failures import one_line

SECONDS = 300.0


def survived(path: Path, threads: int) -> None:
    """Runs the file of fixed sizes once in a process of its own.

    Raises Unsupported where that fails or takes longer than SECONDS.
    """
    command = [sys.executable, "-m", __name__, str(path), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, env=_environment())
    except subprocess.TimeoutExpired as error:
        raise Unsupported(f"OpenVINO took more than {SECONDS:g} s for one run of {path.name}") from error
    if done.returncode < 0:
        raise Unsupported(f"OpenVINO ends its process on {path.name} (signal {-done.returncode})")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unsupported(f"OpenVINO: {one_line(RuntimeError(lines[-1]))}")


def _environment() -> dict[str, str]:
    """With what this process finds modules by."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def main(path: str, threads: str) -> None:
    compiled = dense_engine.openvino_model(Path(path), int(threads))
    inputs = [np.ones(tuple(x.shape), x.get_element_type().to_dtype()) for x in compiled.inputs]
    compiled.create_infer_request().infer(inputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
