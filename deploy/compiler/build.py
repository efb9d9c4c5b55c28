"""Network + target + records -> compiled library, packed weights and the table of what computes each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from kerf import children, temporary
from kerf.deploy.compiler import pretuned
from kerf.deploy.compiler.choice import Choice, ways
from kerf.deploy.compiler.lower import lower
from kerf.deploy.compiler.merge import merge, name
from kerf.deploy.compiler.pairs import join
from kerf.deploy.compiler.program import programs
from kerf.deploy.compiler.static_buffers import keep_buffers
from kerf.deploy.compiler.targets import describe, linking, triple
from kerf.deploy.frontend.network import KERF, Network
from kerf.deploy.measure.environment import provenance
from kerf.deploy.measure.record import Record, RecordBook
from kerf.deploy.runtime.program_file import Program
from kerf.errors import BadInput
from kerf.kernels.backends import BY_NAME, backend_of
from kerf.kernels.config import Config
from kerf.kernels.kernel import dense_twin, pick
from kerf.kernels.lowering import pass_context
from kerf.kernels.problem import Problem


@dataclass(frozen=True)
class Built:
    """A compiled network: ``executable`` runs main(*inputs, *packed[0]), main_1(*inputs, *packed[1]) ..., one function
    for each of kerf's pieces.
    """

    executable: tvm.runtime.Executable
    packed: tuple[dict[str, np.ndarray], ...]
    functions: dict[str, int]  # Piece.key -> which of them
    choices: dict[str, Choice]
    pairs: dict[str, str]  # layers computed together with the one behind them
    target: Target
    programs: tuple[Program, ...] = ()  # what these functions do; none for GPUs
    source: str = ""  # what runs on a device besides the CPU, and its machine code
    code: bytes = b""

    def runnable(self) -> tvm.runtime.Module:
        """A copy that may run in this process. What has run cannot be exported well: TVM then notes an empty memory
        scope for each of its constants, and warns of each ("Scope Loaded:") whenever the library is loaded.
        """
        module = self.executable.jit()
        if module is not self.executable.mod:  # it was linked, and is a copy already
            return module
        with temporary.folder("run") as folder:
            file = str(folder / "executable")
            module.write_to_file(file)
            copy = tvm.get_global_func("relax.ExecutableLoadFromFile")(file)
        for imported in module.imports:
            copy.import_module(imported)
        return copy

    def export(self, path: Path) -> None:
        """Write the shared library; a foreign target is linked with the cross compiler of its triple.

        Raises RuntimeError where LLVM or the linker fail, on a full disk, say: there LLVM ends its process, so that is
        another one.
        """
        with temporary.folder("link") as folder:

            def work() -> None:
                children.workspace(folder)
                how = linking(triple(self.target))
                self.executable.export_library(str(path), workspace_dir=str(folder), **how)

            children.attempt(work, f"{path.name} cannot be linked")


def record(p: Problem, target: Target, book: RecordBook, versions: dict[str, str] | None = None) -> Record | None:
    """The best measurement of exactly ``p`` on this target by ``versions``, by default this machine's."""
    return book.best(p.to_json(), describe(target), versions or provenance())


def choose(p: Problem, target: Target, book: RecordBook, versions: dict[str, str] | None = None) -> Choice:
    """The fastest measured way to compute ``p``, dense kernels included; unmeasured, what the zoo's networks were tuned
    to on such a target; else the first kernel's default.
    """
    versions = versions or provenance()
    measured = [r for q in (p, dense_twin(p)) if (r := record(q, target, book, versions)) and _fits(q, r, target)]
    if measured:
        best = min(measured, key=lambda r: r.us)
        return Choice(Problem.from_json(best.problem), best.kernel, best.config)
    options = ways(p, target)
    if not options:
        pick(backend_of(target).kernels, p, target)  # raises with every kernel's reason
    problems = {problem.to_json() for problem in (p, dense_twin(p))}
    failed = {(q, r.what) for q in problems for r in book.of(q, describe(target), versions) if r.error}
    known = pretuned.known(p, target)
    likely = chain([known] if known else [], *options)
    good = next((c for c in likely if (c.key[0], c.key[1:]) not in failed), None)
    if good is None:
        raise BadInput(f"{p.describe()}: every kernel failed when it was measured; see the records")
    return good


def _fits(p: Problem, r: Record, target: Target) -> bool:
    """Whether a record is of a kernel and a configuration that there are: a file of records is anybody's."""
    kernel = BY_NAME.get(r.kernel)
    if kernel is None or kernel.refuses(p, target):
        return False
    key = p, r.kernel, describe(target)
    if key not in _configurations:  # a search asks thousands of times
        _configurations[key] = kernel.configs(p, target)
    return r.config in _configurations[key]


_configurations: dict[tuple[Problem, str, str], Sequence[Config]] = {}


@dataclass(frozen=True)
class Plan:
    """What is to compute each layer, by name; ``pairs``: layers computed together with the one behind them."""

    choices: dict[str, Choice]
    pairs: dict[str, str]


def plan(network: Network, target: Target, book: RecordBook, versions: dict[str, str] | None = None) -> Plan:
    layers = {name: layer for part in network.own for name, layer in part.layers.items()}
    choices = {name: choose(layer.problem, target, book, versions) for name, layer in layers.items()}
    return Plan(*join(network, choices, target))


def build(network: Network, target: Target, book: RecordBook, versions: dict[str, str] | None = None) -> Built:
    return compiled(network, target, plan(network, target, book, versions))


def compiled(network: Network, target: Target, plan: Plan) -> Built:
    """Of kerf's pieces; there is at least one."""
    parts, backend = network.own, backend_of(target)
    lowered = [lower(part, plan.choices, plan.pairs, target) for part in parts]
    results = {o.name for o in network.graph.outputs}
    noted: list[Program] = []
    own = [
        *([] if backend.device else [programs([len(part.inputs) for part in parts], noted)]),
        trust_weights([len(part.inputs) for part in parts]),
        keep_buffers([[o.name in results for o in part.outputs] for part in parts]),
    ]
    pipeline = [*backend.schedule(target), relax.get_pipeline("default_build"), *own]
    with pass_context():
        executable = tvm.compile(
            merge([module for module, _ in lowered]), target=target, relax_pipeline=tvm.transform.Sequential(pipeline)
        )
    packed = tuple(weights for _, weights in lowered)
    functions = {piece.key: i for i, piece in enumerate(p for p in network.run_by if p.engine == KERF)}
    source, code = backend.device_code(executable.mod, target)
    return Built(executable, packed, functions, plan.choices, plan.pairs, target, tuple(noted), source, code)


def trust_weights(inputs: Sequence[int]) -> tvm.transform.Pass:
    """Drop the checks of type and shape that the pieces' functions make of their weights, which follow so many
    ``inputs``, on every call: some 0.1 ms for MobileNet-V2.

    A bundle's hashes vouch for its weights; images are still checked.
    """

    @tvm.transform.module_pass(opt_level=0)
    def _trust(module: tvm.IRModule, _context) -> tvm.IRModule:
        for i, count in enumerate(inputs):
            main = module[name(i)]
            weights = set(main.params[count:])
            blocks = [
                relax.BindingBlock([b for b in block.bindings if not _checks(b, weights)]) for block in main.body.blocks
            ]
            body = relax.SeqExpr(blocks, main.body.body)
            module[name(i)] = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
        return module

    return _trust


def _checks(binding: relax.Binding, weights: set[relax.Var]) -> bool:
    call: Any = getattr(binding, "value", None)
    called = call.op.global_symbol if isinstance(getattr(call, "op", None), relax.ExternFunc) else ""
    return called in ("vm.builtin.check_tensor_info", "vm.builtin.match_shape") and call.args[0] in weights
