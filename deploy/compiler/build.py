"""Network + target + records -> compiled library, packed weights and the table of what computes each layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from kerf.deploy.compiler import pretuned
from kerf.deploy.compiler.choice import Choice, ways
from kerf.deploy.compiler.lower import lower
from kerf.deploy.compiler.pairs import join
from kerf.deploy.compiler.static_buffers import keep_buffers
from kerf.deploy.compiler.targets import describe, linking, triple
from kerf.deploy.frontend.network import Network
from kerf.deploy.measure.environment import provenance
from kerf.deploy.measure.record import Record, RecordBook
from kerf.errors import BadInput
from kerf.kernels.backends import BY_NAME, backend_of
from kerf.kernels.kernel import dense_twin, pick
from kerf.kernels.lowering import pass_context
from kerf.kernels.problem import Problem


@dataclass(frozen=True)
class Built:
    """A compiled network: ``executable`` runs main(x, *packed)."""

    executable: tvm.runtime.Executable
    packed: dict[str, np.ndarray]
    choices: dict[str, Choice]
    pairs: dict[str, str]  # layers computed together with the one behind them
    target: Target
    source: str = ""  # what runs on a device besides the CPU, and its machine code
    code: bytes = b""

    def export(self, path: Path) -> None:
        """Write the shared library; a foreign target is linked with the cross compiler of its triple."""
        self.executable.export_library(str(path), **linking(triple(self.target)))


def record(p: Problem, target: Target, book: RecordBook, versions: dict[str, str] | None = None) -> Record | None:
    """The best measurement of exactly ``p`` on this target by ``versions``, by default this machine's."""
    return book.best(p.to_json(), describe(target), versions or provenance())


def choose(p: Problem, target: Target, book: RecordBook, versions: dict[str, str] | None = None) -> Choice:
    """The fastest measured way to compute ``p``, dense kernels included; unmeasured, what the zoo's networks were tuned
    to on such a target; else the first kernel's default.
    """
    versions = versions or provenance()
    measured = [r for q in (p, dense_twin(p)) if (r := record(q, target, book, versions)) and r.kernel in BY_NAME]
    if measured:
        best = min(measured, key=lambda r: r.us)
        return Choice(Problem.from_json(best.problem), best.kernel, best.config)
    pick(backend_of(target).kernels, p, target)  # raises with every kernel's reason if there is none
    problems = {problem.to_json() for problem in (p, dense_twin(p))}
    failed = {(q, r.what) for q in problems for r in book.of(q, describe(target), versions) if r.error}
    known = pretuned.known(p, target)
    likely = chain([known] if known else [], *ways(p, target))
    good = next((c for c in likely if (c.key[0], c.key[1:]) not in failed), None)
    if good is None:
        raise BadInput(f"{p.describe()}: every kernel failed when it was measured; see the records")
    return good


@dataclass(frozen=True)
class Plan:
    """What is to compute each layer, by name; ``pairs``: layers computed together with the one behind them."""

    choices: dict[str, Choice]
    pairs: dict[str, str]


def plan(network: Network, target: Target, book: RecordBook, versions: dict[str, str] | None = None) -> Plan:
    choices = {name: choose(layer.problem, target, book, versions) for name, layer in network.layers.items()}
    return Plan(*join(network, choices, target))


def build(network: Network, target: Target, book: RecordBook, versions: dict[str, str] | None = None) -> Built:
    return compiled(network, target, plan(network, target, book, versions))


def compiled(network: Network, target: Target, plan: Plan) -> Built:
    module, packed = lower(network, plan.choices, plan.pairs, target)
    backend = backend_of(target)
    own = [trust_weights(len(network.inputs)), keep_buffers]
    pipeline = [*backend.schedule(target), relax.get_pipeline("default_build"), *own]
    with pass_context():
        executable = tvm.compile(module, target=target, relax_pipeline=tvm.transform.Sequential(pipeline))
    return Built(executable, packed, plan.choices, plan.pairs, target, *backend.device_code(executable.mod, target))


def trust_weights(inputs: int) -> tvm.transform.Pass:
    """Drop the checks of type and shape that "main" makes of its weights, which follow its ``inputs``, on every call:
    some 0.1 ms for MobileNet-V2.

    A bundle's hashes vouch for its weights; images are still checked.
    """

    @tvm.transform.module_pass(opt_level=0)
    def _trust(module: tvm.IRModule, _context) -> tvm.IRModule:
        main = module["main"]
        weights = set(main.params[inputs:])

        def needed(binding: relax.Binding) -> bool:
            call: Any = getattr(binding, "value", None)
            name = call.op.global_symbol if isinstance(getattr(call, "op", None), relax.ExternFunc) else ""
            return name not in ("vm.builtin.check_tensor_info", "vm.builtin.match_shape") or call.args[0] not in weights

        blocks = [relax.BindingBlock([b for b in block.bindings if needed(b)]) for block in main.body.blocks]
        body = relax.SeqExpr(blocks, main.body.body)
        module["main"] = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
        return module

    return _trust
