"""kill -9 at random moments: what was lost, which processes live on, what is left in the temporary folder.

Launch:    python scripts/maintain/kills.py tuning --kills 100
           python scripts/maintain/kills.py training --kills 100
Hardware:  2 cores; some seconds a kill.
Expected:  JSON with lost, different, orphans 0 and nothing left in the temporary folder: a tuner keeps every record,
           a bundle is whole or not there, and a training run ends with the losses of one that nobody killed.

Moments are drawn over what a run does, not over the clock: by its processor time, and in a search by the records that
it has written, so that on a busy machine it is not killed at its start each time. Runs are forked from a process that
has imported everything, and cost no imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "KERF_KILLS"
PATIENCE = 5.0  # seconds in which orphans have to be gone
LOOK = 0.01  # seconds between two looks at a run
TRAINING = ["--data_set=synthetic", "--arch=resnet20", "--subset=32", "--train_batch_size=8", "--device=cpu", "--quiet"]
TRAINING += ["--method=l1", "--pr_target=0.5", "--num_epochs=3", "--finetune_epochs=3", "--workers=0"]
# Made by torch when a network is traced, once for each user, and empty: kerf compiles nothing with torch.
FOREIGN = "torchinductor_"

Moment = Callable[[int], bool]  # whether the process of this number is to be killed now


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("tuning", "training"))
    p.add_argument("--kills", type=int, default=100)
    p.add_argument("--minutes", type=float, default=1e9, help="or for so long, if that is less")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    if MARK not in os.environ:  # the mark is read in /proc, which shows the environment that a process began with
        os.environ |= {MARK: uuid.uuid4().hex, "PYTHONPATH": str(ROOT)}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        killed = Killed(Path(name), a)
        found = {"tuning": tuning, "training": training}[a.what](killed)
    told = {"what": a.what, "kills": killed.kills, "by_phase": killed.phases, "orphans": killed.orphans, **found}
    print(json.dumps(told, indent=1))
    return int(any(told[key] for key in ("lost", "orphans", "left_in_tmpdir", "different")))


class Killed:
    """Runs of kerf's command, killed; counts of what outlived them."""

    def __init__(self, folder: Path, a: argparse.Namespace):
        self.folder, self.random, self.most_kills = folder, random.Random(a.seed), a.kills
        self.orphans, self.kills, self.phases = 0, 0, Counter[str]()
        self.end = time.monotonic() + 60 * a.minutes
        (folder / "tmp").mkdir()

    @property
    def done(self) -> bool:
        return self.kills >= self.most_kills or time.monotonic() > self.end

    def run(self, words: list[str], moment: Moment, phase: str) -> bool:
        """Whether it ended by itself before its moment came. Raises SystemExit where that was an error."""
        pid = self._start(words)
        while not moment(pid):
            if self._ended(pid, words):
                return True
            time.sleep(LOOK)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.kills += 1
        self.phases[phase] += 1
        print(f"{time.strftime('%T')} kill {self.kills}: {phase}", file=sys.stderr, flush=True)
        until = time.monotonic() + PATIENCE
        while self.living() and time.monotonic() < until:
            time.sleep(0.05)
        self.orphans += len(self.living())
        return False

    def through(self, words: list[str]) -> float:
        """The same command, to its end; seconds of processor time that it took."""
        pid, took = self._start(words), 0.0
        while not self._ended(pid, words):
            took = max(took, processor_seconds(pid))
            time.sleep(LOOK)
        return took

    def _start(self, words: list[str]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.chdir(self.folder)
            os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder / "tmp")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            from kerf import cli

            code = cli.main(words)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _ended(self, pid: int, words: list[str]) -> bool:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done and status:
            raise SystemExit(f"kerf {' '.join(words)}: ended with {os.waitstatus_to_exitcode(status)}")
        return bool(done)

    def living(self) -> list[int]:
        """Processes with this program's mark in their environment, this one and zombies apart."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={os.environ[MARK]}".encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                    found.append(int(path.parent.name))
            except OSError:  # another's, or gone
                continue
        return found

    def left(self) -> list[str]:
        names = (path.name for path in (self.folder / "tmp").iterdir())
        return sorted(name for name in names if not name.startswith(FOREIGN))


def processor_seconds(pid: int) -> float:
    """Of the process alone, so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def after(seconds: float) -> Moment:
    """Of processor time."""
    return lambda pid: processor_seconds(pid) >= seconds


def grown(path: Path, lines: int, later: float) -> Moment:
    """``later`` seconds after the file has so many lines."""
    reached: list[float] = []

    def moment(_: int) -> bool:
        if not reached and path.exists() and path.read_bytes().count(b"\n") >= lines:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() >= reached[0] + later

    return moment


def tuning(killed: Killed) -> dict:
    """Three phases: before the first record, among records, and from the search to the bundle."""
    from tests.fuzz.pool import warm
    from tests.helpers.onnx_networks import mobile

    warm()
    path, records = mobile(killed.folder / "m.onnx"), killed.folder / "records.jsonl"
    words = ["tune", f"--onnx_path={path}", f"--records={records}", "--seconds=0.1", "--against=onnxruntime", "--quiet"]
    delivering, endless = [*words, "--trials=1"], [*words, "--trials=100000", "--tolerance=0"]
    whole, draw = killed.through(delivering), killed.random
    kept, lost, torn = _lines(records)[0], 0, 0
    while not killed.done:
        phase = draw.choice(["start", "records", "records", "bundle"])
        if phase == "records":
            ended = killed.run(endless, grown(records, len(kept) + draw.randint(1, 8), draw.uniform(0, 0.5)), phase)
        else:
            share = draw.uniform(0, 0.5) if phase == "start" else draw.uniform(0.3, 1)
            ended = killed.run(delivering, after(share * whole), phase)
        lines, spoiled = _lines(records)
        lost += len(kept) - sum(a == b for a, b in zip(kept, lines))
        lost += not _is_whole(killed, path.with_suffix(".kerf"))
        torn, kept = max(torn, spoiled), lines
        if ended and phase == "records":  # every configuration was tried
            records.unlink()
            kept = []
    killed.through(delivering)
    return {"records": len(kept), "lost": lost, "torn_lines": torn, "different": 0, "left_in_tmpdir": killed.left()}


def _lines(path: Path) -> tuple[list[str], int]:
    """What a tuner reads of its records, and how many lines are none."""
    from kerf.deploy.measure.record import RecordBook

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        book = RecordBook(path).records if path.exists() else []
    return [r.to_json() for r in book], sum("lines are no records" in str(w.message) for w in said)


def _is_whole(killed: Killed, bundle: Path) -> bool:
    """A bundle that is there can be loaded, hashes and all; in a child, since loading runs its code."""
    if not bundle.exists():
        return True
    try:
        killed.through(["inspect", str(bundle)])
    except SystemExit:
        return False
    return True


def training(killed: Killed) -> dict:
    from tests.fuzz.pool import warm

    warm()
    start = ["prune", *TRAINING]
    took = killed.through([*start, f"--job_dir={killed.folder / 'whole'}"])
    whole, lost, different, chains = losses(killed.folder / "whole"), 0, 0, 0
    while not killed.done:
        chains += 1
        job, ended = killed.folder / f"job{chains}", False
        while not ended:
            last = job / "checkpoint" / "last.safetensors"
            kept = last.stat().st_mtime_ns if last.is_file() else 0
            words = ["prune", f"--resume={job}", "--quiet"] if kept else [*start, f"--job_dir={job}"]
            phase = f"epoch {len(losses(job))}"
            if killed.done:
                killed.through(words)
                break
            ended = killed.run(words, after(killed.random.uniform(0, 0.6 * took)), phase)
            lost += bool(kept) and not (last.is_file() and last.stat().st_mtime_ns >= kept)
        different += losses(job) != whole
    return {
        "chains": chains,
        "epochs": len(whole),
        "lost": lost,
        "different": different,
        "left_in_tmpdir": killed.left(),
    }


def losses(job: Path) -> list[tuple]:
    if not (job / "metrics.jsonl").is_file():
        return []
    rows = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
    return [tuple(row[key] for key in sorted(row) if key not in ("seconds", "images_per_second")) for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
