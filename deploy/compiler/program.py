"""What a compiled piece does, as a list: which functions of its library it calls, on which tensors, lying where.

TVM's virtual machine reads the same from bytecode. With the list no virtual machine is needed: libkerf, in C, lays the
tensors out once and then calls the functions one after the other (kerf.deploy.runtime.program_file).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from kerf.deploy.compiler import merge
from kerf.deploy.compiler.static_buffers import KILL, STORAGE, TENSOR
from kerf.deploy.runtime.program_file import Call, Lying, Program, Root
from kerf.errors import Unsupported

CHECKS = ("vm.builtin.check_tensor_info", "vm.builtin.match_shape")  # libkerf lays out what these look at
NULL = tvm.ir.Op.get("relax.null_value")
SYMBOL = "__tvm_ffi_"  # what TVM puts before a function's name in a library


def programs(inputs: Sequence[int], into: list[Program]) -> tvm.transform.Pass:
    """Notes every piece's "main" in ``into``, in their order, once memory is planned; changes nothing.

    ``inputs``: of each piece, how many of its parameters are tensors that the caller gives; weights follow.
    """

    @tvm.transform.module_pass(opt_level=0)
    def _note(module: tvm.IRModule, _context) -> tvm.IRModule:
        into.extend(_Reader(count).read(module[merge.name(i)]) for i, count in enumerate(inputs))
        return module

    return _note


class _Reader:
    """Of one function: variables to the numbers of what they stand for."""

    def __init__(self, inputs: int):
        self._inputs = inputs
        self.tensors: list[Lying] = []
        self.storages: list[int] = []
        self.constants: list[bytes] = []
        self.calls: list[Call] = []
        self._number: dict[relax.Var, int] = {}  # of a tensor
        self._storage: dict[relax.Var, int] = {}
        self._tuple: dict[relax.Var, list[relax.Expr]] = {}

    def read(self, main: relax.Function) -> Program:
        """What a function does that only TVM can run is said in the result's ``refusal``."""
        try:
            for i, param in enumerate(main.params):
                root = Root.WEIGHT if i >= self._inputs else Root.INPUT
                self._add(param, root, i - self._inputs if root is Root.WEIGHT else i, 0, param.ty)
            for block in main.body.blocks:
                for binding in block.bindings:
                    self._bind(binding)
            results = self._flat(main.body.body)
        except Unsupported as error:
            return Program(refusal=str(error))
        return Program(self.storages, self.constants, self.tensors, self.calls, results)

    def _add(self, var: relax.Var | None, root: Root, index: int, offset: int, type_: Any) -> int:
        shape = _sizes(getattr(type_, "shape", None))
        self.tensors.append(Lying(root, index, offset, str(type_.dtype), shape))
        if var is not None:
            self._number[var] = len(self.tensors) - 1
        return len(self.tensors) - 1

    def _bind(self, binding: Any) -> None:
        var, value = binding.var, binding.value
        if isinstance(value, relax.Var):
            for known in (self._number, self._storage, self._tuple):
                if value in known:
                    known[var] = known[value]  # type: ignore[assignment]
        elif isinstance(value, relax.Tuple):
            self._tuple[var] = list(value.fields)
        elif isinstance(value, relax.TupleGetItem):
            self._number[var] = self._tensor(self._known(self._tuple, value.tuple_value)[value.index])
        elif isinstance(value, tvm.ir.GenericConst):
            self._number[var] = self._tensor(value)
        elif isinstance(value, relax.Call):
            self._call(var, value)
        else:
            raise Unsupported(f"{type(value).__name__} is nothing that libkerf does")

    def _call(self, var: relax.Var, call: Any) -> None:
        op, args = call.op, call.args
        if op == STORAGE:
            (size,) = _sizes(args[0])
            self._storage[var] = len(self.storages)
            self.storages.append(size)
        elif op == TENSOR:
            self._add(var, Root.STORAGE, self._known(self._storage, args[0]), int(args[1].value), var.ty)
        elif isinstance(op, tvm.ir.GlobalVar):
            self.calls.append(Call(SYMBOL + op.name_hint, [self._argument(a) for a in args]))
        elif isinstance(op, relax.ExternFunc) and op.global_symbol == "vm.builtin.reshape":
            seen = self.tensors[self._tensor(args[0])]
            self._add(var, seen.root, seen.index, seen.offset, var.ty)
        elif isinstance(op, relax.ExternFunc):
            if op.global_symbol not in CHECKS:
                raise Unsupported(f"{op.global_symbol} is a function of TVM's runtime")
        elif op not in (KILL, NULL):
            raise Unsupported(f"{getattr(op, 'name', type(op).__name__)} is nothing that libkerf does")

    def _tensor(self, value: relax.Expr) -> int:
        if isinstance(value, tvm.ir.GenericConst):
            array = value.value.numpy()
            self.constants.append(array.tobytes())
            return self._add(None, Root.CONSTANT, len(self.constants) - 1, 0, value.ty)
        return self._known(self._number, value)

    @staticmethod
    def _known(which: dict[relax.Var, Any], value: relax.Expr) -> Any:
        if not isinstance(value, relax.Var) or value not in which:
            raise Unsupported("a value that is no tensor")
        return which[value]

    def _argument(self, value: Any) -> tuple[str, int | float]:
        if isinstance(value, relax.Var | tvm.ir.GenericConst):
            return "tensor", self._tensor(value)
        number = getattr(value, "value", None)
        if isinstance(number, int | float):
            return "float" if isinstance(number, float) else "int", number
        raise Unsupported(f"an argument that is a {type(value).__name__}")

    def _flat(self, body: relax.Expr) -> list[int]:
        fields = list(body.fields) if isinstance(body, relax.Tuple) else self._tuple.get(body, [body])
        return [self._tensor(field) for field in fields]


def _sizes(shape: Any) -> tuple[int, ...]:
    """Of a shape whose sizes are all numbers."""
    sizes = getattr(shape, "values", None)
    found = [size.value for size in sizes or () if isinstance(getattr(size, "value", None), int)]
    if sizes is None or len(found) < len(sizes):
        raise Unsupported("a tensor's sizes are known only when it runs")
    return tuple(found)
