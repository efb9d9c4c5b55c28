"""Dense engines that run the pieces of a network which kerf has no functions for: ONNX Runtime, OpenVINO.

Each opens an ONNX model as a Call: arrays that stay where they are are bound once, the others on every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kerf.deploy.runtime import rare_types
from kerf.errors import Unsupported

Model = Path | bytes  # a file or its contents
Arrays = Mapping[str, np.ndarray]


class Call(Protocol):
    """A model ready to run."""

    def __call__(self, inputs: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
        """Runs with what is not bound: ``inputs``, and arrays for outputs of known sizes; the other outputs, new."""


def open_piece(
    engine: str, model: Model, fixed_in: Arrays, fixed_out: Arrays, free: Sequence[str], threads: int
) -> Call:
    """``fixed_in``, ``fixed_out``: arrays that are read and written on every call; ``free``: names of other outputs.

    Raises Unsupported where the engine is not installed or refuses the model.
    """
    made = ENGINES.get(engine)
    if made is None:
        raise Unsupported(f"pieces of this network are for {engine}; this version of kerf knows {', '.join(ENGINES)}")
    try:
        return made(model, fixed_in, fixed_out, free, threads)
    except ImportError as error:
        raise Unsupported(
            f"pieces of this network run in {engine}, which is not installed: pip install {engine}"
        ) from error


def open_network(engine: str, model: Model, threads: int) -> Call:
    """A whole network: every array is the caller's."""
    return open_piece(engine, model, {}, {}, (), threads)


class OnnxRuntime:
    def __init__(self, model: Model, fixed_in: Arrays, fixed_out: Arrays, free: Sequence[str], threads: int):
        alone = not fixed_in and not fixed_out
        self._session = onnxruntime_session(model, threads, alone)
        self._names = [o.name for o in self._session.get_outputs()]
        self._fixed_in, self._fixed_out = dict(fixed_in), dict(fixed_out)  # the binding holds their addresses
        self._by_name, self._run = alone or bool(free), rare_types.runner(self._session)
        self._binding = self._session.io_binding()
        for name, array in fixed_in.items():
            _bind(self._binding.bind_input, name, array)
        for name, array in fixed_out.items():
            _bind(self._binding.bind_output, name, array)

    def __call__(self, inputs: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
        if self._by_name:
            found = dict(zip(self._names, self._run(self._names, {**self._fixed_in, **inputs})))
            for name, array in {**self._fixed_out, **outputs}.items():
                array[...] = found.pop(name)
            return found
        inputs = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        for name, array in inputs.items():
            if array.dtype in rare_types.NUMBERS:
                _bind(self._binding.bind_input, name, array)
            else:
                self._binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            _bind(self._binding.bind_output, name, array)
        try:
            self._session.run_with_iobinding(self._binding)
        except RuntimeError as error:  # of sizes that the manifest says and the piece has not
            said = " ".join(str(error).split())[:300]
            raise Unsupported(f"ONNX Runtime cannot run a piece of the network ({said}); build it again") from error
        return {}


def _bind(bind: Callable, name: str, array: np.ndarray) -> None:
    bind(name, "cpu", 0, rare_types.element_type(array.dtype), array.shape, array.ctypes.data)


def onnxruntime_session(model: Model, threads: int, alone: bool = True, provider: str = "CPUExecutionProvider") -> Any:
    """All graph optimisations, ``threads`` workers. ``alone``: no other engine's workers wait for the same cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not alone and threads > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, options, providers=[provider])
    except Exception as error:  # its errors derive from Exception directly
        raise Unsupported(f"ONNX Runtime refuses the network: {' '.join(str(error).split())[:300]}") from error


class OpenVino:
    """Whole networks only: one stream, float32 as the others (by default it may take bf16)."""

    def __init__(self, model: Model, fixed_in: Arrays, fixed_out: Arrays, free: Sequence[str], threads: int):
        if fixed_in or fixed_out:
            raise Unsupported("OpenVINO runs whole networks, no pieces of them")
        compiled = openvino_model(model, threads)
        self._request = compiled.create_infer_request()
        self._names = [str(o.get_any_name()) for o in compiled.outputs]

    def __call__(self, inputs: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
        found = self._request.infer(dict(inputs), share_inputs=True)  # outputs are copies, the caller's own
        return dict(zip(self._names, found.to_tuple()))


RARE = ("bf16", "f8e4m3", "f8e5m2")


def openvino_model(model: Model, threads: int, precision: str = "f32") -> Any:
    """``precision``: of products of floats."""
    try:
        import openvino
    except ImportError as error:
        raise ImportError("openvino is not installed (pip install openvino)") from error

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    core = openvino.Core()
    try:
        read = core.read_model(str(model)) if isinstance(model, Path) else core.read_model(model, b"")
        compiled = core.compile_model(read, "CPU", settings)
    except RuntimeError as error:
        raise Unsupported(f"OpenVINO refuses the network: {' '.join(str(error).split())[:300]}") from error
    for end in (*compiled.inputs, *compiled.outputs):
        if (kind := end.get_element_type().get_type_name()) in RARE:
            raise Unsupported(f"OpenVINO's Python changes tensors of {kind}; cast them in the network")
    return compiled


ENGINES: dict[str, Callable[..., Call]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
