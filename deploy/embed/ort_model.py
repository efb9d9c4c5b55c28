"""A bundle as a model of ONNX Runtime's: kerf's pieces are custom operators over libkerf, all else is as it was.

model.onnx and libkerf_ops.so lie in the bundle's folder; SessionOptions.register_custom_ops_library takes the latter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from kerf import files, temporary
from kerf.deploy.embed.toolchain import SOURCES, Toolchain, sources
from kerf.deploy.frontend.onnx_graph import Value
from kerf.deploy.measure.verify import verify
from kerf.deploy.runtime import bundle
from kerf.deploy.runtime.manifest import Manifest, Tensor, is_own
from kerf.deploy.runtime.program_file import FILE, TYPES
from kerf.errors import Unsupported

MODEL = "model.onnx"
OPSET = 17  # of models without a node of ONNX's own


def domain(folder: Path) -> str:
    """Of a bundle's operators: no model runs with another bundle's."""
    return f"kerf.{(folder / FILE).read_bytes()[-32:][:8].hex()}"


def write(folder: Path, tools: Toolchain) -> list[Path]:
    """model.onnx and libkerf_ops into the bundle. Raises Unsupported where no piece is kerf's, or a type is rare."""
    model = of(bundle.read_manifest(folder), folder)
    library = folder / f"libkerf_ops{tools.suffix}"
    with temporary.folder("objects") as objects, files.replacing(library) as replaced:
        # libkerf's own names stay inside: a process may have several such libraries, of a bundle each
        tools.compile([*sources(), SOURCES / "src/operators.c"], objects, f"-I{SOURCES / 'include'}", "-DKERF_API=")
        made = objects / library.name
        tools.link(sorted(objects.glob("*.o")), made)
        replaced.write_bytes(made.read_bytes())
    return [files.write(folder / MODEL, model.SerializeToString()), library]


def of(manifest: Manifest, folder: Path) -> onnx.ModelProto:
    """Of the bundle's first plan."""
    plan, steps = manifest["plans"][0], manifest["plans"][0]["steps"]
    if not any(map(is_own, steps)):
        raise Unsupported(f"no piece of it is kerf's, since {manifest['engine']} is faster; --engine kerf keeps them")
    models = [onnx.load_model_from_string((folder / s["file"]).read_bytes()) for s in steps if not is_own(s)]
    parts, own = iter(models), domain(folder)
    nodes: list[onnx.NodeProto] = []
    for i, step in enumerate(steps):
        if is_own(step):
            nodes.append(helper.make_node(f"Piece{i}", step["inputs"], step["outputs"], f"kerf.Piece{i}", domain=own))
        else:
            nodes.extend(next(parts).graph.node)
    constants = {c.name: c for m in models for c in m.graph.initializer}
    given = manifest["inputs"].items()
    inputs = [_described(n, {**tensor, "shape": plan["inputs"].get(n, tensor["shape"])}) for n, tensor in given]
    outputs = [_described(name, plan["values"][name]) for name in manifest["outputs"]]
    ends = {*manifest["inputs"], *manifest["outputs"]}
    between = [_described(n, v) for n, v in plan["values"].items() if n not in ends and v["shape"] is not None]
    graph = helper.make_graph(nodes, "kerf", inputs, outputs, list(constants.values()), value_info=between)
    versions = {o.domain: o.version for m in models for o in m.opset_import} or {"": OPSET}
    opsets = [helper.make_opsetid(name, version) for name, version in {**versions, own: 1}.items()]
    functions = {(f.domain, f.name): f for m in models for f in m.functions}
    version = max((m.ir_version for m in models), default=8)
    return helper.make_model(graph, opset_imports=opsets, ir_version=version, functions=list(functions.values()))


def _described(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
    if tensor["dtype"] not in TYPES:
        raise Unsupported(f"{name!r} is a {tensor['dtype']}, which pieces in ONNX Runtime's own model are not given")
    return helper.make_tensor_value_info(name, TYPES[tensor["dtype"]], tensor["shape"])


def proven(folder: Path, tools: Toolchain, source: Path, inputs: Sequence[Value], precision: str, threads: int) -> None:
    """write(), and a comparison with the file at ``source``, whose inputs are ``inputs``, in ONNX Runtime itself.

    Raises Mismatch where outputs differ; then neither file stays.
    """
    made = write(folder, tools)
    try:
        session = opened(folder, threads)
        names = [o.name for o in session.get_outputs()]

        def run(x: Any) -> Any:
            found = session.run(names, x if isinstance(x, Mapping) else {next(iter(session.get_inputs())).name: x})
            return found[0] if len(found) == 1 else dict(zip(names, found))

        verify(run, source, inputs, precision=precision)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def opened(folder: Path, threads: int = 1) -> Any:
    """ONNX Runtime's session of such a folder. Raises Unsupported where ONNX Runtime refuses it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        options.register_custom_ops_library(str(next(folder.glob("libkerf_ops.*"))))
        return onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors derive from Exception directly
        raise Unsupported(f"{folder}: ONNX Runtime refuses it: {' '.join(str(error).split())[:300]}") from error
