"""How many instructions ARM executes for an image: kerf's code and ONNX Runtime's, counted by an emulator.

Launch:    python scripts/maintain/arm_instructions.py --onnxruntime LIBRARY NETWORK.onnx [...] [--target rpi5]
Hardware:  any with qemu-user and g++-aarch64-linux-gnu; a minute a network. LIBRARY: libonnxruntime.so.* for aarch64,
           which scripts/maintain/aarch64.sh leaves in runs/aarch64.
Expected:  fewer of kerf's than of ONNX Runtime's where half of the blocks are zero.

One thread, the difference between three images and one, so that loading does not count. Instructions are no time: how
many a CPU does at once, and what it waits for, is not in them.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import _emulated
import numpy as np

import kerf
from kerf.deploy.frontend.convert import convert
from kerf.deploy.partition.plain import plain
from kerf.deploy.plans import steps
from kerf.deploy.runtime import bundle

PLUGIN = Path(__file__).parent / "count_instructions.c"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=Path, metavar="NETWORK.onnx")
    parser.add_argument("--onnxruntime", type=Path, required=True, metavar="LIBRARY")
    parser.add_argument("--target", default="rpi5")
    args = parser.parse_args()
    if reason := _emulated.missing():
        parser.error(reason)
    print("| network | target | kerf, million instructions | ONNX Runtime | ratio |\n|-|-|-|-|-|")
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", room / "count.so", PLUGIN], check=True)
        runtime = _emulated.library(room / "runtime")
        for i, path in enumerate(args.networks):
            out, dense, x = room / f"{i}.kerf", room / f"{i}-dense.kerf", room / "x.npy"
            manifest = kerf.compile(path, out, trials=0, target=args.target, against=()).manifest
            ((_, sizes),) = manifest["plans"][0]["inputs"].items()
            np.save(x, np.random.default_rng(0).standard_normal(sizes).astype(np.float32))
            in_onnxruntime(path, manifest, dense)
            own, other = (each(runtime, args, room, of, x) for of in (out, dense))
            name = f"{path.parent.name}/{path.stem}"
            print(f"| {name} | {args.target} | {own / 1e6:.1f} | {other / 1e6:.1f} | {other / own:.2f} |", flush=True)
    return 0


def in_onnxruntime(path: Path, like: Any, out: Path) -> None:
    """A bundle like another, whose only step is ONNX Runtime's."""
    made = steps.steps(plain(convert(path), "onnxruntime"), None)
    contents: Any = {k: v for k, v in like.items() if k not in ("format", "weights", "sha256")}
    out.mkdir()
    bundle.write(out, {**contents, "plans": made.entries}, {}, made.weights, made.models, "", programs=[()])


def each(runtime: Path, args: argparse.Namespace, room: Path, folder: Path, x: Path) -> float:
    """Instructions for one image."""
    counts = []
    for runs in ("1", "3"):
        command = _emulated.command(runtime, args.target, folder, KERF_ONNXRUNTIME=str(args.onnxruntime))
        command[1:1] = ["-plugin", str(room / "count.so")]
        done = subprocess.run([*command, x, "--runs", runs], capture_output=True, text=True)
        found = re.search(r"executed (\d+)", done.stderr)
        if done.returncode or not found:
            raise SystemExit(f"{folder}: {done.stderr}")
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / 2


if __name__ == "__main__":
    raise SystemExit(main())
