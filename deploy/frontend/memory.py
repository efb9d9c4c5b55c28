"""What a network needs at least, and what this process may have: told before anything of it is allocated."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import psutil
from onnx import helper

from kerf.deploy.frontend.onnx_graph import Graph, called, reads
from kerf.errors import BadInput
from kerf.failures import printable

GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def refuse(path: Path, graph: Graph) -> None:
    """Raises BadInput for a network one of whose nodes needs more memory for what it reads and makes than there is."""
    room, most, name = available(), 0, ""
    for node in graph.nodes:
        needed = sum(_bytes(graph, tensor) for tensor in {*reads(node), *(n for n in node.output if n)})
        if needed > most:
            most, name = needed, f"{node.op_type} {printable(called(node))!r}"
    if most > room:
        raise BadInput(
            f"{path}: {name} needs {_said(most)} for what it reads and makes, this process may have {_said(room)}; "
            "give smaller sizes"
        )


def available() -> int:
    """Bytes: of the machine, the control group and the limits of this process, the least."""
    found = [psutil.virtual_memory().total]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(max(soft - psutil.Process().memory_info().vms, 0))
    for group in GROUPS:
        try:
            found.append(int(Path(group).read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(found)


def _bytes(graph: Graph, tensor: str) -> int:
    """0 where sizes are not known."""
    shape = graph.fixed_shape(tensor)
    if shape is None:
        return 0
    try:
        size = helper.tensor_dtype_to_np_dtype(graph.types.get(tensor, 0)).itemsize
    except (KeyError, TypeError):
        size = 1
    return math.prod(shape) * size


def _said(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
