"""Sizes of a network's inputs that its file leaves open: fixed by --shape and --batch, or told apart in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from kerf.deploy.frontend.onnx_graph import dims, subgraphs
from kerf.errors import BadInput

EXAMPLE = "--shape NAME=1x3x640x640"


def shapes_of(given: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """``["x=1x3x640x640"]`` -> ``{"x": (1, 3, 640, 640)}``. Raises BadInput for anything else."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in given:
        name, equals, sizes = text.rpartition("=")
        numbers = sizes.split("x")
        if not (name and equals) or not all(n.isdecimal() and n.isascii() and int(n) > 0 for n in numbers):
            raise BadInput(f"--shape {text}: expected the input's name and sizes of at least 1, as in {EXAMPLE}")
        if name in shapes:
            raise BadInput(f"--shape {text}: input {name!r} has two shapes; give one")
        shapes[name] = tuple(map(int, numbers))
    return shapes


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What the network takes: old files list their weights as inputs, too."""
    stored = {t.name for t in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def fix(path: Path, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], batch: int | None) -> None:
    """In place: inputs get ``shapes``, their free first sizes ``batch`` (1 when None). A word for a size stands for
    the same number wherever the file uses it.

    Raises BadInput for a shape that no input can have, or a batch where all inputs have another one.
    """
    inputs = {value.name: value for value in inputs_of(model)}
    meant: dict[str, int] = {}  # what words for sizes stand for
    for name, shape in shapes.items():
        if name not in inputs:
            raise BadInput(f"{path}: no input {name!r}; its inputs are {listed(inputs.values())}")
        free = dims(inputs[name]) and not _number(inputs[name].type.tensor_type.shape.dim[0])
        if free and shape and batch is not None and shape[0] != batch:
            said = f"--shape makes the first size of {name!r} {shape[0]}, --batch {batch}"
            raise BadInput(f"{path}: {said}; give one of them")
        _set(path, inputs[name], tuple(shape), meant)
    first = [v.type.tensor_type.shape.dim[0] for v in _with_axes(inputs.values()) if v.name not in shapes]
    open_first = [size for size in first if not _number(size)]
    if batch is not None and first and not open_first and all(size.dim_value != batch for size in first):
        value = next(v for v in _with_axes(inputs.values()) if v.name not in shapes)
        raise BadInput(f"{path}: input {value.name!r} has batch {first[0].dim_value} fixed; asked for {batch}")
    for size in open_first:
        number = meant.setdefault(_word(size), batch or 1) if _word(size) else batch or 1
        size.dim_value = number
    _substitute(model.graph, meant)


def _set(path: Path, value: onnx.ValueInfoProto, shape: tuple[int, ...], meant: dict[str, int]) -> None:
    said = dims(value)
    text = "x".join(map(str, shape))
    if value.type.WhichOneof("value") != "tensor_type":
        raise BadInput(f"{path}: input {value.name!r} is no tensor and has no shape; leave --shape {value.name} out")
    if said is not None and len(said) != len(shape):
        raise BadInput(f"{path}: input {value.name!r} is {words(value)}, {len(said)} sizes; --shape gives {text}")
    if any(number < 1 and (said is None or said[i] != 0) for i, number in enumerate(shape)):
        raise BadInput(f"{path}: --shape {value.name}={text}: expected sizes of at least 1")
    sizes = value.type.tensor_type.shape.dim
    value.type.tensor_type.shape.SetInParent()
    if said is None:
        sizes.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
    for size, number in zip(sizes, shape):
        word = _word(size)
        fixed = _number(size) or (meant.setdefault(word, number) if word else number)
        if fixed != number:
            why = f"its {word!r} is {fixed} elsewhere" if word else f"it is {words(value)}"
            raise BadInput(f"{path}: input {value.name!r} cannot be {text}: {why}; leave that size as it is")
    for size, number in zip(sizes, shape):
        size.dim_value = number


def _with_axes(values: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    """Those whose first size may be free."""
    return [v for v in values if dims(v) and not _nothing(v)]


def _nothing(value: onnx.ValueInfoProto) -> bool:
    """Whether it is a list of no numbers, axes say; a 0 among other sizes is how some exporters write a free batch."""
    return dims(value) == (0,)


def _number(size: onnx.TensorShapeProto.Dimension) -> int:
    """0 for a free size: a word, nothing, and the -1 and 0 of some exporters."""
    return max(size.dim_value, 0) if size.HasField("dim_value") else 0


def _word(size: onnx.TensorShapeProto.Dimension) -> str:
    """What a free size shares with others of that name; nothing for the "?" by which Paddle's exporter means any."""
    return size.dim_param if size.dim_param.strip("?") else ""


def _substitute(graph: onnx.GraphProto, meant: Mapping[str, int]) -> None:
    """Numbers for words, in what the file says of its tensors."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim if dims(value) else ():
            if size.dim_param in meant:
                size.dim_value = meant[size.dim_param]
    for node in graph.node:
        for inner in subgraphs(node):
            _substitute(inner, meant)


def free_sizes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...] | None]:
    """Inputs with a size that nothing fixes -> their sizes, free ones as the file writes them ("?" for nothing, -1, 0,
    a word); None for a tensor of unknown rank.
    """
    found = {}
    for value in inputs_of(model):
        if value.type.WhichOneof("value") in ("tensor_type", None):
            sizes = dims(value)
            if sizes is None or (any(isinstance(d, str) or d < 1 for d in sizes) and not _nothing(value)):
                found[value.name] = sizes
    return found


def refuse_free(path: Path, model: onnx.ModelProto) -> None:
    """Raises BadInput, which names every free size and the flag that fixes it."""
    free = free_sizes(model)
    if not free:
        return
    values = [value for value in inputs_of(model) if value.name in free]
    example = "x".join(map(str, _example(free[values[0].name])))
    raise BadInput(f"{path}: sizes are free in {listed(values)}; fix them, e.g. --shape {values[0].name}={example}")


def _example(sizes: tuple[int | str, ...] | None) -> Iterator[int]:
    """Numbers of an image where a size is free."""
    usual = (1, 3, 224, 224)
    for place, size in enumerate(usual if sizes is None else sizes):
        yield size if isinstance(size, int) and size > 0 else (usual[place] if len(sizes or usual) == 4 else 128)


def listed(values: Iterable[onnx.ValueInfoProto]) -> str:
    return ", ".join(f"{value.name!r} ({words(value)})" for value in values) or "none"


def words(value: onnx.ValueInfoProto) -> str:
    """The shape as a person may read it: 1x3x'height'x-1, "?" for a size of which nothing is said."""
    if value.type.WhichOneof("value") not in ("tensor_type", None):
        return "no tensor"
    sizes = dims(value)
    if sizes is None:
        return "unknown rank"
    return "x".join(repr(d) if isinstance(d, str) and d != "?" else str(d) for d in sizes) or "a scalar"
