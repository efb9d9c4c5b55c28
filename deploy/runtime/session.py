"""kerf.load(bundle).run(x): numpy in, numpy out. Needs TVM's runtime library and numpy; no torch, onnx or compiler.

``import tvm`` would load the compiler, 170 MB of resident memory; the runtime alone is a library of 3 MB.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from kerf.deploy.runtime import bundle, dense_engine, gpu, machine
from kerf.deploy.runtime.dense_engine import Model
from kerf.deploy.runtime.feed import Given, feed
from kerf.deploy.runtime.gpu_session import GpuSession
from kerf.deploy.runtime.manifest import Manifest, PlanEntry, Tensor, needs_of
from kerf.deploy.runtime.own_piece import aligned
from kerf.deploy.runtime.plan import Plan
from kerf.errors import BadInput, KerfError
from kerf.failures import one_line


def load(
    folder: str | Path,
    threads: int | None = None,
    target: str | None = None,
    trusted_key: str | Path | bytes | None = None,
) -> Session | GpuSession:
    """A bundle's network, ready to run: its files' hashes, its version of TVM and this machine are checked first.

        y = kerf.load("model.kerf").run(x)

    x: the array of a network's only input, or arrays by name, or in the file's order, of the types and sizes that
    ``session.inputs`` says; y: a new array of its only output, or such arrays by name in the file's order. threads:
    workers, by default as many as it was built for; code built for one thread runs on one only. target: of a bundle for
    several, the one whose code runs, as its manifest spells it; by default the one that asks most of what this CPU has.
    Threads may share a session: their calls wait for one another; to run at once, load one for each. trusted_key: a
    public key (a file of PEM, or 32 bytes) that the bundle must be signed with (kerf bundle sign): a bundle is code,
    and its hashes show damage, not intent.

    Raises FileNotFoundError where there is no bundle, BundleError (a BadInput) with the reason why it must not run here
    or so, Unsupported where an engine that runs pieces of it is missing, ImportError where TVM's runtime, or a GPU's
    driver, is not installed.
    """
    folder = Path(folder)
    manifest = bundle.read_manifest(folder, trusted_key)
    installed = tvm_version()
    if manifest["tvm"] != installed:
        raise bundle.BundleError(
            f"{folder}: built with TVM {manifest['tvm']}, installed is {installed}; build it again, or pip install "
            f"apache-tvm=={manifest['tvm']}"
        )
    on_gpu = "cuda" in manifest["needs"]
    plans, reason = _runnable(manifest, target)
    if reason:
        remedy = "run it on such a GPU" if on_gpu else "build it with --target native on this machine"
        raise bundle.BundleError(f"{folder}: {reason}; {remedy}")
    if threads and threads > 1 and manifest["threads"] == 1:
        raise bundle.BundleError(
            f"{folder}: built for one thread, which {threads} cannot share; build it again with --threads {threads}"
        )
    load_runtime(on_gpu)
    weights = bundle.read_weights(folder, manifest)
    if on_gpu:
        gpu.provide(manifest["cuda_source"], (folder / bundle.MACHINE_CODE).read_bytes())
        (plan,) = manifest["plans"]
        (shape,) = plan["inputs"].values()
        return GpuSession(_library(folder, "library.so"), weights, shape)
    names = {plan["library"] for plan in plans}
    libraries = {name: _library(folder, name) for name in names if name}
    models = {name: folder / name for name in bundle.parts(manifest) if name.endswith(".onnx")}
    try:
        return Session({**manifest, "plans": plans}, libraries, weights, models, threads or manifest["threads"])
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # TVM's, where its code was made for others
        if isinstance(error, KerfError):
            raise
        said = f"its code does not fit its manifest or weights ({one_line(error)}); build the bundle again"
        raise bundle.BundleError(f"{folder}: {said}") from error


def _runnable(manifest: Manifest, target: str | None) -> tuple[list[PlanEntry], str | None]:
    """The plans that this machine can run, those that ask most first, and where there is none why.

    Raises BadInput for a target that the bundle has no code for.
    """
    has = {plan.get("target", manifest["target"]) for plan in manifest["plans"]}
    if target and target not in has:
        raise BadInput(f"target {target!r}: this bundle has code for {' and '.join(sorted(has))}")
    plans = [p for p in manifest["plans"] if target in (None, p.get("target", manifest["target"]))]
    reasons = [machine.missing(needs_of(plan, manifest)) for plan in plans]
    found = [plan for plan, reason in zip(plans, reasons) if not reason]
    found.sort(key=lambda plan: -len(needs_of(plan, manifest)["features"]))
    return found, None if found else next(iter(reasons), machine.missing(manifest["needs"]))


def _library(folder: Path, name: str) -> tvm_ffi.Module:
    """Its code. Raises BundleError where the system does not load it, from a file system without execution, say."""
    try:
        found = (folder / name).stat()
        return _module(folder / name, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rpartition(name)[2].strip(": ")
        raise bundle.BundleError(
            f"{folder}: its library cannot be loaded ({reason}); is it on a file system mounted noexec?"
        ) from error


@lru_cache(maxsize=16)
def _module(path: Path, file: tuple[int, ...]) -> tvm_ffi.Module:
    """One for all sessions of a ``file``, which is told by more than its name: TVM keeps 9 KiB of every module that it
    loads, also of those that are gone. The system's loader goes by names: a file in the place of one that a session
    still uses has another way to it.
    """
    known = _files.setdefault(path, [])
    if file not in known:
        known.append(file)
    return tvm_ffi.load_module(str(path.parent) + "/" + "./" * known.index(file) + path.name)


def tvm_version() -> str:
    """Raises ImportError where TVM is not installed."""
    try:
        return version("apache-tvm")
    except PackageNotFoundError as error:
        raise ImportError("apache-tvm is not installed; pip install kerf") from error


def load_runtime(cuda: bool = False) -> None:
    """TVM's runtime library into the process, without importing TVM; with ``cuda`` that of GPUs, too.

    Raises ImportError where it, or what it needs, is not installed.
    """
    package = importlib.util.find_spec("tvm")
    if package is None or package.origin is None:
        raise ImportError("apache-tvm is not installed; pip install kerf")
    name = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}.get(sys.platform, "libtvm_runtime.so")
    folder = Path(package.origin).parent / "lib"
    ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    extra = folder / name.replace("runtime", "runtime_extra")  # what TopK and other sorting operators call
    if extra.is_file():
        ctypes.CDLL(str(extra), mode=ctypes.RTLD_GLOBAL)
    if cuda:
        gpu.load_runtime(folder)


_files: dict[Path, list[tuple[int, ...]]] = {}  # that were libraries of this name, one after the other
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_left: list[Any] = []  # of sessions, in a process that was forked


def _forked() -> None:
    for session in list(_sessions):
        session.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_forked)


class Session:
    """One network ready to run. Calls from several threads wait for one another. In a child process that was forked
    from this one it runs, too.
    """

    def __init__(
        self,
        contents: Manifest | Mapping[str, Any],
        libraries: Mapping[str, tvm_ffi.Module],
        weights: Sequence[np.ndarray],
        models: Mapping[str, Model],
        threads: int,
    ):
        """``contents``: its manifest, of which the inputs, outputs and plans count; ``libraries``, ``models``: what the
        plans name, by file.
        """
        self.threads, self._shared = threads, contents["threads"] > 1
        self.inputs: dict[str, Tensor] = dict(contents["inputs"])
        self.outputs: dict[str, Tensor] = dict(contents["outputs"])
        self._entries: list[PlanEntry] = contents["plans"]
        self._libraries, self._models = libraries, models
        self._weights = [tvm_ffi.from_dlpack(aligned(w)) for w in weights]
        self._plans: dict[int, Plan] = {}
        self._busy = threading.Lock()  # images lie between pieces in one place
        self._whole: str | None = contents.get("fallback")
        self._fallback: dense_engine.Call | None = None
        self._usual: tuple[str, np.dtype, tuple[int, ...]] | None = None  # the only input of the first plan
        _sessions.add(self)
        if self._entries:
            self.plan(0)
            if len(self.inputs) == len(sizes := self._entries[0]["inputs"]) == 1:
                ((name, shape),) = sizes.items()
                self._usual = name, np.dtype(self.inputs[name]["dtype"]), tuple(shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the only input, in the first plan. Raises BadInput where there are several inputs."""
        if len(self.inputs) != 1:
            raise BadInput(f"this bundle has {len(self.inputs)} inputs: {', '.join(self.inputs)}; see session.inputs")
        (shape,) = self._entries[0]["inputs"].values()
        return tuple(shape)

    def plan(self, i: int) -> Plan:
        """The i-th plan of the bundle, made when it is first asked for."""
        if i not in self._plans:
            entry = self._entries[i]
            library = self._libraries[entry["library"]] if entry["library"] else None
            ends = list(self.outputs)
            self._plans[i] = Plan(
                entry["steps"], entry["values"], ends, library, self._weights, self._models, self.threads, self._shared
            )
        return self._plans[i]

    def run(self, x: Given) -> Any:
        """Output of the network for ``x`` (see kerf.load). Inputs of sizes that no plan is for run in ONNX Runtime,
        with a warning; raises BadInput where the bundle is for other sizes only, and for other inputs.
        """
        usual = self._usual  # small networks take less time than all the questions below
        with self._busy:
            if usual and type(x) is np.ndarray and x.shape == usual[2] and x.dtype == usual[1]:
                found = self.plan(0).run({usual[0]: x})
            else:
                found = self._run(feed(x, self.inputs))
        return found.popitem()[1] if len(found) == 1 else found

    def _run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for i, entry in enumerate(self._entries):
            if all(list(arrays[name].shape) == shape for name, shape in entry["inputs"].items()):
                return self.plan(i).run(arrays)
        if self._whole is None:
            raise BadInput(f"inputs are {_sizes(arrays)}; this bundle takes {self._known()}")
        if self._fallback is None:
            warnings.warn(
                f"inputs are {_sizes(arrays)}, for which nothing was compiled: ONNX Runtime runs the network. Compiled "
                f"is {self._known()}; add others with --shape",
                stacklevel=3,
            )
            self._fallback = dense_engine.open_network("onnxruntime", self._models[self._whole], self.threads)
        found = self._fallback(arrays, {})
        return {name: found[name] for name in self.outputs}

    def forked(self) -> None:
        """In a child process, where neither the threads of dense engines are, nor any that waited for another here."""
        self._busy = threading.Lock()
        if self.threads > 1:
            _left.append((self._plans, self._fallback))  # their ends would wait for threads that are not there
            self._plans, self._fallback = {}, None

    def _known(self) -> str:
        return " or ".join(_sizes({n: np.empty(s, bool) for n, s in e["inputs"].items()}) for e in self._entries)


def _sizes(arrays: Mapping[str, np.ndarray]) -> str:
    return " ".join(f"{name}={'x'.join(map(str, array.shape))}" for name, array in arrays.items())
