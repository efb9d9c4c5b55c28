"""Activations as kernels compute them, over all of float32, against float64."""

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu
from tvm.tirx.script.builder import ir as T

from kerf.errors import BadInput
from kerf.kernels import reference
from kerf.kernels.epilogue import activate
from kerf.kernels.lowering import compile_func
from kerf.kernels.pointwise.activation import ACTIVATIONS, Activation
from kerf.kernels.pointwise.exponential import LEAST, MOST, exp, expm1
from kerf.kernels.vector import run

pytestmark = pytest.mark.quick

NUMBERS = {"clip": (-1.5, 2.0), "leakyrelu": (0.01, 0.0), "elu": (0.7, 0.0)}
CASES = [Activation(name, *NUMBERS.get(name, (0.0, 0.0))) for name in ACTIVATIONS]
CASES += [Activation("leakyrelu", 1.5), Activation("leakyrelu", -0.25)]
ULP = 2.0**-23
EVERY = np.random.default_rng(0).integers(0, 2**32, 2**15, np.uint64).astype(np.uint32).view(np.float32)
EVERY = EVERY[np.isfinite(EVERY)]  # every exponent, denormals too
NEAR = np.linspace(-20, 20, 2**14, dtype=np.float32)
EDGES = np.array([0, -0.0, 1e-45, -1e-45, 88, -88, 2e38, -2e38], np.float32)


def computed(function, x: np.ndarray, lanes: int, **target) -> np.ndarray:
    size = -(-len(x) // lanes) * lanes
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        source, y = (T.arg(name, T.buffer((size,), "float32")) for name in "xy")
        with T.serial(0, size // lanes) as i:
            at = run(i * lanes, lanes)
            T.buffer_store(y, function(source[at], lanes), [at])
    compiled = compile_func(builder.get(), Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), **target}))
    assert "callq\texp" not in compiled.inspect_source("asm")
    out = tvm.runtime.tensor(np.full(size, np.nan, np.float32))
    compiled["main"](tvm.runtime.tensor(np.pad(x, (0, size - len(x)))), out)
    return out.numpy()[: len(x)]


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize(("function", "truth"), [(exp, np.exp), (expm1, np.expm1)])
def test_exponentials_within_two_units_in_the_last_place(function, truth, lanes):
    x = np.concatenate([np.linspace(LEAST, MOST, 2**14, dtype=np.float32), np.linspace(-1e-3, 1e-3, 999, dtype="f4")])
    y = computed(function, x, lanes)
    np.testing.assert_allclose(y, truth(x.astype(np.float64)), rtol=2 * ULP)


@pytest.mark.parametrize("a", CASES, ids=str)
def test_activation_over_all_of_float32(a):
    x = np.concatenate([EVERY, NEAR, EDGES])
    y, truth = computed(lambda v, lanes: activate(a, v, lanes), x, 8), reference.activate(a, x)
    with np.errstate(over="ignore"):  # slopes above 1 of the largest numbers
        np.testing.assert_allclose(y, truth.astype(np.float32), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("a", CASES, ids=str)
def test_activation_of_infinities_and_of_no_number(a):
    high, none = computed(lambda v, lanes: activate(a, v, lanes), np.array([np.inf, np.nan], np.float32), 2)
    np.testing.assert_allclose(high, reference.activate(a, np.array([np.inf]))[0], rtol=1e-6)
    assert np.isnan(none) or a.name == "relu"  # as everywhere: of NaN the larger is 0


def test_activation_on_the_plainest_cpu():
    a, x = Activation("gelu"), NEAR
    y = computed(lambda v, lanes: activate(a, v, lanes), x, 4, mcpu="x86-64")
    np.testing.assert_allclose(y, reference.activate(a, x), rtol=1e-6, atol=1e-6)


def test_numbers_that_an_activation_does_not_take_are_refused():
    for wrong in (Activation("swash"), Activation("relu", 1.0), Activation("elu", 1.0, 2.0), Activation("elu", np.nan)):
        with pytest.raises(BadInput, match=r"^activation '"):
            wrong.check()
