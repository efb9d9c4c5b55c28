"""Commands in processes of their own, forked from a warm one: what became of each, within limits of time and memory.

The process that forks has imported everything and started no thread; so an input costs a fork, not five seconds of
imports. A child has its own session, folder and limits; what it left running is killed with it.
"""

import contextlib
import faulthandler
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from tests.fuzz.watching import Watch

MEMORY = 3 << 30  # bytes of address space beyond what the warm process has
CPU_SECONDS = 30  # of one process; of all of an input's there is a limit in watching.py


REFUSED, ACCEPTED = "(but ONNX Runtime runs it)", "(but ONNX Runtime does not load it)"  # of a child that asked it
HALF = "(but something is left beside it)"  # of one that looked


@dataclass(frozen=True)
class Case:
    """One input. ``work``: what is called in the child, in a new folder; ``allowed``: exit codes that may be right;
    ``absent``: files that must not be there unless the exit code is 0; ``hungry``: it may ask for more memory than
    there is, which is then said.
    """

    kind: str
    name: str
    work: Callable[[], int]
    folder: Path
    allowed: tuple[int, ...] = (0, 2)
    absent: tuple[str, ...] = ()
    hungry: bool = False


@dataclass
class Outcome:
    case: Case
    code: int  # negative: the signal
    out: str
    err: str
    seconds: float
    wrong: str = field(default="")  # kind of what is wrong, or ""

    def __post_init__(self) -> None:
        self.wrong = self.wrong or _wrong(self)


LOADED = (
    *("kerf.compress.cli", "kerf.compress.onnx_file.cli", "kerf.compress.onnx_file.pruning", "kerf.deploy.cli"),
    *("kerf.deploy.quantise.quantise", "kerf.deploy.report.compare", "kerf.deploy.report.inspect"),
    *("kerf.deploy.report.tables", "kerf.deploy.runtime.session", "kerf.tune.cli", "kerf.tune.pipeline"),
    *("kerf.tune.records_cli", "kerf.tune.flags", "onnxruntime", "torchvision", "PIL.PngImagePlugin"),
)


def warm() -> None:
    """Imports what commands import, so that children find it."""
    for name in LOADED:
        import_module(name)
    libraries()


def libraries() -> None:
    """TVM's runtime library, as kerf.load has it."""
    from kerf.deploy.runtime.session import load_runtime

    load_runtime()


def outcomes(cases: Iterable[Case], workers: int) -> Iterator[Outcome]:
    """Of each case, as they end; ``workers`` at a time."""
    running: dict[int, tuple[Case, float, Watch]] = {}
    waiting = iter(cases)
    left = True
    while left or running:
        while left and len(running) < workers:
            case = next(waiting, None)
            if case is None:
                left = False
            else:
                pid = _start(case)
                running[pid] = case, time.monotonic(), Watch(pid)
        for pid, (case, began, watch) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            took = time.monotonic() - began
            if not done and not watch.hangs():
                continue
            if not done:
                _ask_where(pid)
            _end_group(pid)
            if not done:
                os.waitpid(pid, 0)
            del running[pid]
            yield _outcome(case, status if done else None, took)
        time.sleep(0.002)


def command(*words: str) -> Callable[[], int]:
    def work() -> int:
        from kerf import cli

        return cli.main(list(words))

    return work


def _start(case: Case) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _limit(case.folder)
        code = case.work()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)


def _limit(folder: Path) -> None:
    os.setsid()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (open(d, "w", buffering=1, errors="backslashreplace") for d in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    temporary = folder / ".tmp"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    faulthandler.disable()  # an outcome is what is asked for, not where it came from
    faulthandler.register(signal.SIGUSR1, file=sys.stderr)  # where it hangs
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))


def _ask_where(pid: int) -> None:
    """Has a process that hangs write its stack, for which it gets a moment."""
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.2)


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _outcome(case: Case, status: int | None, took: float) -> Outcome:
    texts = []
    for name in (".stdout", ".stderr"):
        path = case.folder / name
        texts.append(path.read_text(errors="backslashreplace")[-20000:] if path.is_file() else "")
    if status is None:
        return Outcome(case, -signal.SIGKILL, texts[0], texts[1], took, "hang")
    return Outcome(case, os.waitstatus_to_exitcode(status), texts[0], texts[1], took)


def _wrong(o: Outcome) -> str:
    if o.code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "hang"
    if o.code < 0:
        return "crash"
    lines = [line for line in o.err.splitlines() if line.strip()]
    if "Traceback (most recent call last)" in o.err:
        return "traceback"
    if o.code == 70:
        return "internal error"
    if "\x1b" in o.err:
        return "escapes"
    said = [line for line in lines if ": warning: " not in line and not line.startswith("warning: ")]
    if o.code == 2 and len(said) != 1:
        return "not one line"
    if o.code == 2 and "error: " not in said[0]:
        return "not one line"
    if o.code == 2 and len(said[0]) > 1500:
        return "long line"
    if o.code == 2 and "out of memory" in said[0] and not o.case.hungry:
        return "memory"
    if o.code not in (0, 2):
        return "exit code"
    if o.code == 0 and said and any("error" in line.lower() for line in said):
        return "noise"
    if REFUSED in o.out or ACCEPTED in o.out:
        return "valid refused" if REFUSED in o.out else "invalid accepted"
    if HALF in o.out or (o.code and any((o.case.folder / name).exists() for name in o.case.absent)):
        return "half-written"
    if o.code not in o.case.allowed:
        return "accepted" if o.code == 0 else "refused"
    return ""


def clean(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
