"""Spoiled .onnx files, and the commands that read them."""

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from kerf.deploy.frontend.soundness import BEYOND
from tests.fuzz import mutate, mutate_onnx
from tests.fuzz.pool import ACCEPTED, REFUSED, Case, command
from tests.fuzz.seeds import NETWORKS

Random = random.Random
JUDGE_SECONDS = 20
SMALL = ("mobile", "tiny", "pieces", "integers")  # beside the random ones


def compared_with_onnxruntime(path: str, *words: str) -> Callable[[], int]:
    """The command, and what ONNX Runtime says of the same file: kerf refuses no file that runs there, but for limits of
    its own, and accepts none that it does not load.
    """
    run = command(*words)

    def work() -> int:
        code = run()
        if Path(path).is_file() and Path(path).stat().st_size < 10**7 and code in (0, 2):
            said = Path(".stderr").read_text(errors="replace")
            if code == 2 and not any(word in said for word in OWN_LIMITS) and _in_time(_runs, path):
                print(REFUSED)
            if code == 0 and _in_time(_loads, path) is False:
                print(ACCEPTED)
        return code

    return work


# What kerf says of valid files that it does not take: each is written down in docs/tuning.md or docs/reliability.md.
OWN_LIMITS = (
    "sizes are free",
    "training mode",
    "NaN or infinity",
    "needs ",
    "of kerf's own",
    "pixels",
    "--shape",
    "2,147,483,647",
)


def _in_time(asked: Callable[[str], bool], path: str) -> bool | None:
    """ONNX Runtime's answer; None where it gives none: deep branches keep it busy for long, bombs end its process."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # whatever the parent does at its own alarms
        signal.alarm(JUDGE_SECONDS)
        nowhere = os.open(os.devnull, os.O_WRONLY)  # for what it logs of a file: what kerf said was said before
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os._exit(0 if asked(path) else 1)
    return {0: True, 1: False}.get(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _session(path: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _loads(path: str) -> bool:
    try:
        _session(path)
    except Exception as error:
        return type(error).__name__ == "NotImplemented" or any(word in str(error) for word in BEYOND)
    return True


def _runs(path: str) -> bool:
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}
    try:
        session = _session(path)
        feeds = {}
        for value in session.get_inputs():
            shape = [size if isinstance(size, int) and size > 0 else 1 for size in value.shape]
            if np.prod(shape) > 10**7:
                return False
            feeds[value.name] = np.ones(shape, kinds[value.type])
        session.run(None, feeds)
    except Exception:
        return False
    return True


def _model(seeds: Path, r: Random, name: str = "") -> onnx.ModelProto:
    return onnx.load(
        str(seeds / (name or r.choice([*SMALL, *SMALL, *(f"random{i}" for i in range(NETWORKS))]))) + ".onnx"
    )


def _onnx_file(seeds: Path, folder: Path, r: Random, name: str = "") -> Path:
    path = folder / "model.onnx"
    model, what = _model(seeds, r, name), r.random()
    if what < 0.75:
        path.write_bytes(mutate_onnx.spoiled(model, r).SerializeToString())
    elif what < 0.96:
        path.write_bytes(mutate.spoiled(model.SerializeToString(), r))
    else:
        mutate.special(path, r.choice(mutate.SPECIAL))
    if r.random() < 0.1:
        os.mkfifo(folder / "fifo")
    return path


def inspected(seeds: Path, folder: Path, r: Random) -> Case:
    path = _onnx_file(seeds, folder, r)
    work = compared_with_onnxruntime(path.name, "inspect", path.name, *r.choice([[], ["--json"]]))
    return Case("onnx: inspect", "", work, folder)


def tuned(seeds: Path, folder: Path, r: Random) -> Case:
    path = _onnx_file(
        seeds, folder, r, r.choice(["tiny", "tiny", "random1", "random2", "random5", "pieces", "integers"])
    )
    flags = ["--trials=0", "--seconds=0.02", "--against=onnxruntime", "--quiet", "--out=out.kerf"]
    flags += r.choice([[], ["--engine=kerf"], ["--engine=kerf"], ["--format=ort"]])
    return Case("onnx: tune", "", command("tune", f"--onnx_path={path.name}", *flags), folder, absent=("out.kerf",))


def quantised(seeds: Path, folder: Path, r: Random) -> Case:
    path = _onnx_file(seeds, folder, r, r.choice(["tiny", "tiny", "integers"]))
    words = ["quantise", path.name, f"--calibration={_calibration(seeds, folder, r)}", "--out=q.onnx"]
    return Case("onnx: quantise", "", command(*words), folder, absent=("q.onnx",))


def pruned(seeds: Path, folder: Path, r: Random) -> Case:
    path = _onnx_file(seeds, folder, r, "tiny")
    words = ["prune", path.name, f"--calibration={_calibration(seeds, folder, r)}", "--sparsity=0.5", "--out=p.onnx"]
    return Case("onnx: prune", "", command(*words), folder, absent=("p.onnx",))


def _calibration(seeds: Path, folder: Path, r: Random) -> str:
    path = folder / "c.npz"
    content = (seeds / "tiny.npz").read_bytes()
    if r.random() < 0.3:
        content = mutate.npz(content, r)
    path.write_bytes(content)
    return path.name
