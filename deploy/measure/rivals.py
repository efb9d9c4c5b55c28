"""The race of a bundle: kerf first, then dense engines on the same network, with the same fixed shapes.

A network of integers is raced against the file itself ("onnxruntime int8", "openvino int8") and against the f32 network
("onnxruntime", "openvino"; "openvino bf16" where the CPU multiplies bf16): the one it was quantised from, or where only
the quantised file is known, that without its rounding.

Engines whose outputs differ are left out, and it is said. One of f32 is compared with ONNX Runtime's f32, as tightly as
ever. What quantising itself changes is measured beside it, and an engine of integers may differ from kerf by twice
that: its roundings add up otherwise, but not to more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from kerf import files, temporary
from kerf.deploy.frontend import clean, qdq
from kerf.deploy.frontend.network import Network
from kerf.deploy.measure import bench, openvino_trial
from kerf.deploy.measure.environment import environment
from kerf.deploy.measure.samples import listed
from kerf.deploy.measure.verify import dense_error, relative_error
from kerf.deploy.partition import onnx_piece
from kerf.deploy.partition.plain import plain
from kerf.deploy.quantise.dequantised import dequantised
from kerf.errors import BadInput, Unsupported

DENSE_DIFFER = 1e-3  # relative: what dense engines differ by among themselves, and may
INTEGERS_DIFFER = 0.02  # the least that those of integers may: a step of one tensor is 1/255 of its range
BF16_DIFFERS = 0.05
BF16 = {"avx512_bf16", "amx_tile"}  # what CPUs that multiply it have

MakeEngine = Callable[[Path, int], bench.Engine]  # of an .onnx file, for so many threads


@dataclass(frozen=True)
class Raced:
    """Kerf's measurement, then those of the others. ``difference``: of integers from f32, relative to the largest
    output; None for a network of floats, and where there is no f32 form.
    """

    measured: list[bench.Measurement]
    difference: float | None = None


@dataclass(frozen=True)
class Rival:
    """An engine that may be raced, what it has to agree with, and how closely."""

    name: str
    make: Callable[[], bench.Engine]
    reference: bench.Engine
    allowed: float


def race(
    kerf: bench.Engine, starting: Starting, x: Any, network: Network, seconds: float, say: Callable[[str], object]
) -> Raced:
    """On the input ``x``. On a GPU images come from the host, and results go back to it."""
    dense = []
    with temporary.folder("race") as folder:
        rivals, difference = starting.of(network, kerf, x, folder, say)
        for rival in rivals:
            try:
                engine = replace(rival.make(), name=rival.name)
                bench.refuse_different_outputs([rival.reference, engine], x, rival.allowed)
                dense.append(engine)
            except ImportError as missing:
                say(f"{missing}; raced without {rival.name}")
            except (Unsupported, BadInput, RuntimeError) as refusal:
                say(f"{' '.join(str(refusal).split())}; raced without {rival.name}")
        return Raced(bench.interleave([kerf, *dense], x, seconds=seconds), difference)


@dataclass(frozen=True)
class Starting:
    """Which engines start, with how many threads; ``allowed``: by how much one may differ from kerf, at least; ``f32``:
    the file that a quantised network was made of, ``shapes`` and ``batch`` the sizes that it leaves open.
    """

    engines: Mapping[str, MakeEngine]
    threads: int
    allowed: float
    f32: Path | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    batch: int | None = None

    def of(
        self, network: Network, kerf: bench.Engine, x: Any, folder: Path, say: Callable[[str], object]
    ) -> tuple[list[Rival], float | None]:
        """Those of this network, whose files are written into ``folder``, and the difference of ``Raced``."""
        if not qdq.is_quantised(network.graph.original):
            path = _written(folder / "f32.onnx", onnx_piece.model(network.graph, plain(network, "").pieces[0]))
            return self._rivals(path, "", kerf, self.allowed), None
        integers = _written(folder / "int8.onnx", clean.read(network.path, self.shapes, self.batch))
        try:
            path = _written(folder / "f32.onnx", self._floats(network))
            reference = bench.onnxruntime_engine(path, self.threads)
            pairs = zip(listed(kerf.run(x)), listed(reference.run(x)), strict=True)
            numbers = [(y, truth) for y, truth in pairs if truth.dtype.kind == "f" or truth.dtype in bench.BYTES]
            difference = max((relative_error(*pair) for pair in numbers), default=0.0)  # of classes, say, there is none
        except (Unsupported, ValueError) as error:
            say(f"{error}; raced without f32")
            return self._rivals(integers, " int8", kerf, max(self.allowed, INTEGERS_DIFFER)), None
        feed = x if isinstance(x, Mapping) else {network.inputs[0].name: x}
        # without exact products of bytes ONNX Runtime's integers saturate: that much any of them may
        allowed = max(self.allowed, INTEGERS_DIFFER, 2 * difference, 2 * dense_error(network.path, feed))
        say(f"integers differ from f32 by {difference:.1%} of the largest output; their engines may by {allowed:.1%}")
        rivals = self._rivals(path, "", replace(reference, name="ONNX Runtime's f32"), DENSE_DIFFER)
        return [*rivals, *self._rivals(integers, " int8", kerf, allowed)], difference

    def _floats(self, network: Network) -> onnx.ModelProto:
        """The f32 network with the sizes of the race. Raises Unsupported where there is none."""
        if self.f32:
            return clean.read(self.f32, self.shapes, self.batch)
        return dequantised(clean.read(network.path, self.shapes, self.batch))

    def _rivals(self, path: Path, kind: str, reference: bench.Engine, allowed: float) -> list[Rival]:
        made = {
            f"{name}{kind}": partial(_made, make, path, self.threads, bool(kind)) for name, make in self.engines.items()
        }
        found = [Rival(name, make, reference, allowed) for name, make in made.items()]
        if reference.name != "kerf" and "openvino" in self.engines and multiplies_bf16():
            make = partial(bench.openvino_engine, path, self.threads, precision="bf16")
            found.append(Rival("openvino bf16", make, reference, BF16_DIFFERS))
        return found


def _made(make: MakeEngine, path: Path, threads: int, integers: bool) -> bench.Engine:
    """The engine; what would end this process ends another one first."""
    if integers and make is bench.openvino_engine:
        openvino_trial.survived(path, threads)
    return make(path, threads)


def multiplies_bf16() -> bool:
    """Whether this CPU does, so that OpenVINO would by itself."""
    return bool(BF16 & set(environment()["machine"]["vector_sets"]))


def _written(path: Path, model: onnx.ModelProto) -> Path:
    return files.write(path, model.SerializeToString())
