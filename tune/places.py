"""Where candidates run: this machine or its GPU here, and the devices of a tracker in kerf.tune.remote."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import tvm
from tvm import rpc
from tvm.target import Target

from kerf.deploy.measure import bench
from kerf.deploy.measure.environment import provenance
from kerf.deploy.measure.rivals import MakeEngine
from kerf.deploy.runtime import gpu
from kerf.deploy.runtime.callers import use_threads
from kerf.kernels.cpu import fma_peak
from kerf.kernels.cpu.int8 import dot_peak
from kerf.kernels.cpu.layout import from_planes, to_planes
from kerf.kernels.cuda.layout import from_rows, to_rows
from kerf.kernels.precision import PRECISIONS, types_of
from kerf.kernels.version import code_version


class Place(Protocol):
    """Pickled to the workers, which open sessions."""

    @property
    def patience(self) -> int:
        """Seconds that opening a session may take."""

    def devices(self) -> int:
        """How many races can run at once; 0 when there is nothing left to run on."""

    def provenance(self) -> dict[str, str]:
        """What records of this place are valid for, besides problem and target."""

    def session(self, threads: int) -> AbstractContextManager[rpc.RPCSession | None]:
        """A session whose kernels run on ``threads`` threads."""

    def device(self, session: rpc.RPCSession | None) -> tvm.runtime.Device:
        """Where arrays of the session live."""

    def load(self, session: rpc.RPCSession | None, path: str) -> tvm.runtime.Module:
        """The module of a shared library that lies on this machine."""

    @property
    def tolerance(self) -> float:
        """Of the largest output, for what a kernel computes."""

    @property
    def dense_engines(self) -> Mapping[str, MakeEngine]:
        """Those that can be raced there."""

    @property
    def races_networks(self) -> bool:
        """Whether whole networks run in this process: tuned against untuned, and layer by layer."""

    def peak(self, target: Target, threads: int, integers: bool = False) -> float | None:
        """Multiply-accumulates of f32, or of bytes, that it can do in a microsecond; None where that is not known."""

    def pack(self, image: np.ndarray) -> np.ndarray:
        """Images (n, c, h, w) as the kernels take them."""

    def unpack(self, image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Back to (n, c, h, w)."""


class OnPlanes:
    """What kernels for CPUs take and give."""

    tolerance: ClassVar[float] = PRECISIONS["f32"].kernel

    def pack(self, image: np.ndarray) -> np.ndarray:
        return to_planes(image)

    def unpack(self, image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return from_planes(image, shape)


@dataclass(frozen=True)
class Here(OnPlanes):
    """This machine, in the worker process itself."""

    patience: ClassVar[int] = 0
    dense_engines: ClassVar[Mapping[str, MakeEngine]] = bench.ENGINES
    races_networks: ClassVar[bool] = True

    def devices(self) -> int:
        return 1

    def peak(self, target: Target, threads: int, integers: bool = False) -> float | None:
        return threads * (dot_peak if integers else fma_peak).macs_per_us(target)

    def provenance(self) -> dict[str, str]:
        return provenance()

    @contextmanager
    def session(self, threads: int) -> Iterator[None]:
        # one core for all samples of a race, where the system lets itself be told; several threads are its to place
        if threads == 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        use_threads(threads)
        yield None

    def device(self, session: rpc.RPCSession | None) -> tvm.runtime.Device:
        return tvm.cpu()

    def load(self, session: rpc.RPCSession | None, path: str) -> tvm.runtime.Module:
        return tvm.runtime.load_module(path)


@dataclass(frozen=True)
class Gpu:
    """This machine's GPU. Records name it where they would name the CPU."""

    precision: str
    patience: ClassVar[int] = 0
    dense_engines: ClassVar[Mapping[str, MakeEngine]] = {
        "onnxruntime": partial(bench.onnxruntime_engine, provider="CUDAExecutionProvider")
    }
    races_networks: ClassVar[bool] = False

    @property
    def tolerance(self) -> float:
        return PRECISIONS[self.precision].kernel

    def devices(self) -> int:
        return 1

    def peak(self, target: Target, threads: int, integers: bool = False) -> float | None:
        return None

    def provenance(self) -> dict[str, str]:
        return {**provenance(), "kernels": code_version("cuda"), "cpu": tvm.cuda().device_name}

    @contextmanager
    def session(self, threads: int) -> Iterator[None]:
        yield None

    def device(self, session: None) -> tvm.runtime.Device:
        return tvm.cuda()

    def load(self, session: None, path: str) -> tvm.runtime.Module:
        gpu.provide(Path(f"{path}.key").read_text(), Path(f"{path}.cubin").read_bytes())
        return tvm.runtime.load_module(path)

    def pack(self, image: np.ndarray) -> np.ndarray:
        return to_rows(image.astype(types_of(self.precision)["x"].numpy))

    def unpack(self, image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        n, c, h, w = shape
        return from_rows(image, (n, c, h, w)).astype(np.float32)
