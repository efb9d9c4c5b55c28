"""Runs ONNX's own backend tests through kerf and writes docs/conformance.md.

Launch:    python scripts/maintain/conformance.py [--only WORD]
Hardware:  any CPU; a quarter of an hour of one core.
Expected:  a line per failure, then the score; docs/conformance.md, unchanged unless a case passes or fails anew.

Every case runs three times at most: as it is; with all inputs but the first stored in the file, as weights are; and so
behind a layer that changes nothing, so that kerf's own functions compute what they can of it.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from kerf import files
from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import build
from kerf.deploy.frontend import clean, sizes
from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.network import KERF
from kerf.deploy.frontend.onnx_graph import subgraphs
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.samples import listed
from kerf.deploy.plans import pieces, steps
from kerf.deploy.runtime.dense_engine import open_network

STORED = ("simple", "pytorch-operator", "pytorch-converted")  # kinds of cases that are files; "node" are made
FILE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
UNRELEASED = "ALLOW_RELEASED_ONNX_OPSET_ONLY"  # ONNX Runtime's variable: 0 for files of opsets to come, too
TARGET = targets.parse("native", 1)
IR, OPSET = 11, 26  # the newest that ONNX Runtime has in full: it refuses later ones, whatever is in the file
LARGEST = 2**16  # elements of an input that a layer is put in front of
HALF = 2e-3  # what float16 computed in float32 may differ by, of the largest number

Arrays = Sequence[Any]


@dataclass(frozen=True)
class Case:
    """``data``: pairs of inputs and expected outputs, in the file's order."""

    name: str
    model: onnx.ModelProto
    data: Sequence[tuple[Arrays, Arrays]]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """``reference``, ``kerf``: why ONNX Runtime and kerf fail, "" where they do not; ``own``: nodes that kerf's own
    functions computed.
    """

    name: str
    reference: str
    kerf: str = ""
    own: int = 0


def node_cases(operators: Iterable[str] = ()) -> Iterator[Case]:
    """Of these operators, as their modules in onnx.backend.test.case.node are called, or of all, which takes 20 s."""
    from onnx.backend.test.case import node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows, which the tests of casts are about
        for operator in operators:
            importlib.import_module(f"{node.__name__}.{operator}")
        found = node._NodeTestCases if operators else load_model_tests(kind="node")
    for case in {c.name: c for c in found}.values():
        data = [([numbers(x) for x in inputs], [numbers(y) for y in outputs]) for inputs, outputs in case.data_sets]
        yield Case(case.name, released(case.model), data, case.rtol, case.atol)


def released(model: onnx.ModelProto) -> onnx.ModelProto:
    """Of versions that ONNX Runtime loads, where no operator of the case is newer."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ir_version = min(made.ir_version, IR)
    for opset in (o for o in made.opset_import if o.domain == "" and o.version > OPSET):
        known = [onnx.defs.get_schema(n.op_type, opset.version) for n in nodes(made.graph) if n.domain == ""]
        opset.version = max(OPSET, *(schema.since_version for schema in known))
    return made


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes(inner)


def file_cases() -> Iterator[Case]:
    for case in (c for kind in STORED for c in load_model_tests(kind=kind)):
        folder = Path(case.model_dir)
        model = onnx.load(str(folder / "model.onnx"))
        data = []
        for place in sorted(folder.glob("test_data_set_*")):
            ends = ("input", sizes.inputs_of(model)), ("output", model.graph.output)
            data.append([[read(place / f"{end}_{i}.pb", v) for i, v in enumerate(vs)] for end, vs in ends])
        yield Case(case.name, model, data, case.rtol, case.atol)


def read(path: Path, value: onnx.ValueInfoProto) -> Any:
    kind = value.type.WhichOneof("value")
    proto = onnx.SequenceProto() if kind == "sequence_type" else onnx.TensorProto()
    proto.ParseFromString(path.read_bytes())
    return numpy_helper.to_list(proto) if kind == "sequence_type" else numpy_helper.to_array(proto)


def numbers(x: Any) -> Any:
    """Arrays, of no axes too, for tensors; lists of them; None."""
    if isinstance(x, onnx.TensorProto):
        return numpy_helper.to_array(x)
    return np.asarray(x) if isinstance(x, np.generic) else x


def variants(case: Case) -> Iterator[Case]:
    """The case, and what can be made of it: "… stored", "… behind a layer"."""
    yield case
    if len(case.data) != 1 or not case.model.graph.input:
        return
    (inputs, outputs), names = case.data[0], [v.name for v in sizes.inputs_of(case.model)]
    if not all(isinstance(x, np.ndarray) for x in inputs) or len(inputs) != len(names):
        return
    stored = onnx.ModelProto()
    stored.CopyFrom(case.model)
    kept = [v for v in stored.graph.input if v.name == names[0]]
    constants = [numpy_helper.from_array(np.asarray(x), n) for n, x in zip(names[1:], inputs[1:])]
    del stored.graph.input[:]
    stored.graph.input.extend(kept)
    stored.graph.initializer.extend(constants)
    stored.ir_version = max(stored.ir_version, 4)  # before, constants had to be inputs, too
    data = [(inputs[:1], outputs)]
    if constants:
        yield replace(case, name=f"{case.name} stored", model=stored, data=data)
    if inputs[0].dtype == np.float32 and inputs[0].ndim in (2, 3, 4) and 0 < inputs[0].size <= LARGEST:
        yield replace(case, name=f"{case.name} behind a layer", model=behind_layer(stored, inputs[0].shape), data=data)


def behind_layer(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """With a convolution, or a product, by one in front of the input."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    name, weight = made.graph.input[0].name, np.eye(shape[1 if len(shape) == 4 else -1], dtype=np.float32)
    first = f"{name}.given"
    made.graph.input[0].name = first
    if len(shape) == 4:
        weight = weight[:, :, None, None]
    layer = helper.make_node("Conv" if len(shape) == 4 else "MatMul", [first, f"{name}.weight"], [name], "first")
    made.graph.initializer.append(numpy_helper.from_array(weight, f"{name}.weight"))
    if not any(o.domain == "" for o in made.opset_import):
        made.opset_import.append(helper.make_opsetid("", 18))
    nodes = [layer, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def outcome(case: Case, folder: Path) -> Outcome:
    """Of one case, written into ``folder``."""
    path = folder / "case.onnx"
    onnx.save(case.model, str(path))
    names = [v.name for v in sizes.inputs_of(case.model)]
    feeds = [dict(zip(names, inputs)) for inputs, _ in case.data]
    expected = [outputs for _, outputs in case.data]

    def reference() -> None:
        run = open_network("onnxruntime", path, 1)
        compare(case, [list(run(feed, {}).values()) for feed in feeds], expected)

    if reason := failure(reference):
        return Outcome(case.name, reason)
    own = 0

    def kerf() -> None:
        nonlocal own
        network = pieces.able(convert(path, shapes=shapes(case)), TARGET, lambda _: None)
        built = build(network, TARGET, RecordBook()) if network.own else None
        own = sum(len(piece.nodes) for piece in network.run_by if piece.engine == KERF)
        session = steps.session(network, built, 1)
        half = clean.is_widened(network.graph.original)
        for _ in range(2):  # what lies in fixed memory is there again
            compare(case, [listed(session.run(feed)) for feed in feeds], expected, half)

    reason = failure(kerf)
    return Outcome(case.name, "", reason, own)


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Of inputs whose sizes the file leaves open."""
    free = sizes.free_sizes(case.model)
    given = {v.name: x for v, x in zip(sizes.inputs_of(case.model), case.data[0][0])} if case.data else {}
    return {
        n: x.shape
        for n, x in given.items()
        if n in free and isinstance(x, np.ndarray) and (x.size or 0 in (free[n] or ()))
    }


def compare(case: Case, found: Sequence[Arrays], expected: Sequence[Arrays], half: bool = False) -> None:
    """As ONNX's own runner does; raises AssertionError."""
    for ys, truths in zip(found, expected):
        largest = max((float(np.abs(t[np.isfinite(t)]).max(initial=0)) for t in truths if is_half(t)), default=0.0)
        more = HALF * largest if half else 0.0
        Runner.assert_similar_outputs(truths, ys, max(case.rtol, HALF if half else 0), case.atol + more)


def is_half(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == np.float16


def failure(run: Callable[[], None]) -> str:
    """Why it fails, in one line; "" where it does not."""
    try:
        run()
    except Exception as error:  # of any of a dozen libraries: to be told, not hidden
        said = re.sub(r"\S*(case\.onnx)", r"\1", " ".join(str(error).split()))
        return f"{type(error).__name__}: {said[:300]}"
    return ""


VARIANTS = {
    "as they are": "",
    "all inputs but the first stored in the file": " stored",
    "and behind a layer that changes nothing": " behind a layer",
}
READING = """
ONNX's own backend tests (onnx.backend.test) through kerf on a CPU: its own functions, kept whatever their speed, and
ONNX Runtime for the rest. A case passes if the outputs are those that ONNX expects, within the case's tolerance;
float16, which kerf computes in float32, within 0.2 % of the largest number. A case that ONNX Runtime does not pass says
nothing of kerf. Most cases are one operator with its weights as inputs, where kerf's own functions have nothing to do;
so every case runs again with what can be stored in the file stored there, and so behind a convolution or product by
one.
"""
SHORT = (  # of ONNX Runtime's reasons, what is told
    (r".*Could not find an implementation for (\w+)\(.*", r"no \1 for these types, or of this version, for CPUs"),
    (r".*Failed to find kernel for (\w+)\(.*", r"no \1 for these types, or of this version, for CPUs"),
    (r".*Fatal error: (\S+)\(-1\) is not a registered.*", r"\1 is not known"),
    (r".*Type Error: .*|.*invalid model. In Node.*", "an operator, or types of one, that it does not know yet"),
    (r".*while running (\w+) node.*", r"\1 ends with an error"),
    (r".*TypeError: Unable to compare.*", "an output of another kind than ONNX expects"),
    (r".*Unsupported model IR.*|.*opset.*under development.*", "a version of ONNX that is not released"),
    (r".*'tensor\((\S+)\), which ONNX.*|.*is a tensor\((\S+)\), which ONNX.*", "numbers of less than a byte"),
    (r".*Numpy_type.*|.*Unable to handle object.*|.*Numpy Type.*", "a type of numbers that its Python does not take"),
    (r"AssertionError: .*", "other numbers than ONNX expects"),
    (r".*Exception during initialization: .*rnn.*", "a layout of recurrent layers that is not supported"),
    (r".*locale.*", "a language that the machine does not have"),
)


def page(found: Sequence[Outcome]) -> str:
    versions = f"onnx {onnx.__version__}, ONNX Runtime {version('onnxruntime')}"
    lines = [
        "# Conformance",
        "",
        "Written by `python scripts/maintain/conformance.py`.",
        READING,
        f"With {versions}:",
        "",
    ]
    lines += ["| cases | all | ONNX Runtime passes | kerf passes of these | with own functions |", "|-|-|-|-|-|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in score(found)]
    lines += ["", "## What kerf does not pass", ""]
    lines += [f"- `{o.name}`: {o.kerf}" for o in found if o.kerf]
    lines += ["", "## What ONNX Runtime does not pass", "", "Of the cases as they are, by reason:", ""]
    reasons: dict[str, list[str]] = {}
    for o in found:
        if o.reference and " " not in o.name:
            reasons.setdefault(short(o.reference), []).append(o.name.removeprefix("test_"))
    for reason, names in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"- {reason} ({len(names)}): {', '.join(names)}")
    return "\n".join(lines) + "\n"


def short(reason: str) -> str:
    for pattern, told in SHORT:
        if match := re.fullmatch(pattern, reason):
            return match.expand(told)
    return reason.rpartition("[ONNXRuntimeError] : ")[2][:120]


def score(found: Sequence[Outcome]) -> Iterator[tuple[str, int, int, int, int]]:
    for title, suffix in VARIANTS.items():
        ours = [o for o in found if (o.name.endswith(suffix) if suffix else " " not in o.name)]
        passed = [o for o in ours if not o.reference]
        yield title, len(ours), len(passed), sum(not o.kerf for o in passed), sum(o.own > 0 for o in passed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases with this word in their name; the page is not written")
    args = parser.parse_args()
    os.environ.setdefault(UNRELEASED, "0")
    found = []
    with tempfile.TemporaryDirectory(prefix="kerf-conformance-") as temporary:
        for case in itertools.chain(file_cases(), node_cases()):
            for variant in variants(case) if args.only in case.name else ():
                found.append(outcome(variant, Path(temporary)))
                if found[-1].kerf:
                    print(f"{variant.name}: {found[-1].kerf}", flush=True)
    for title, count, reference, kerf, own in score(found):
        print(f"{title}: {kerf} of {reference} that ONNX Runtime passes, of {count}; {own} with own functions")
    if not args.only:
        files.write(FILE, page(found))
        print(FILE)
    return 0


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("conformance", main))
