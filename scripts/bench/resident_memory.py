"""Resident memory of a process that runs a bundle, beside one that runs the same network in ONNX Runtime.

Launch:    python scripts/bench/resident_memory.py NETWORK.onnx BUNDLE.kerf
Hardware:  any; seconds.
Expected:  kerf at most ONNX Runtime: the runtime loads neither TVM's compiler nor zero blocks.

As on a deployment machine: each in a process of its own, torch hidden (TVM's bindings import it where they find it).
"""

import argparse
import subprocess
import sys

CODE = """
import sys
sys.modules["torch"] = None
import numpy as np
if {kerf}:
    import kerf
    session = kerf.load({path!r})
    run, shape = session.run, session.input_shape
else:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession({path!r}, options)
    (source,) = session.get_inputs()
    run, shape = lambda x: session.run(None, {{source.name: x}}), source.shape
x = np.zeros(shape, np.float32)
for _ in range(5):
    run(x)
import psutil
print(psutil.Process().memory_info().rss)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", metavar="NETWORK.onnx")
    parser.add_argument("bundle", metavar="BUNDLE.kerf")
    args = parser.parse_args()
    for name, path in (("ONNX Runtime", args.network), ("kerf", args.bundle)):
        code = CODE.format(kerf=name == "kerf", path=path)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(f"{name}: {int(done.stdout) / 2**20:.0f} MiB resident")
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("resident_memory", main))
