"""Problem: the text that records, pretuned choices and the custom operator know it by."""

from dataclasses import replace

import pytest
from tvm.target import Target

from kerf.errors import BadInput
from kerf.kernels.backends import BACKENDS
from kerf.kernels.precision import PRECISIONS, types_of
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import F16, F32, TensorType

pytestmark = pytest.mark.quick

# As they stand in record files, in pretuned/*.jsonl and in graphs that were exported: none may ever change.
KEYS = {
    (
        '{"activation":"relu6","batch":1,"block":4,"dilation":[1,1],"groups":1,"height":56,"in_channels":24,'
        '"kernel":[1,1],"nnzb":432,"out_channels":144,"padding":[0,0,0,0],"residual":false,"stride":[1,1],"width":56}'
    ): Problem(1, 24, 56, 56, 144, n=4, nnzb=432, activation="relu6"),
    (
        '{"activation":"none","batch":2,"block":0,"dilation":[2,1],"groups":19,"height":14,"in_channels":19,'
        '"kernel":[3,5],"nnzb":0,"out_channels":19,"padding":[1,2,1,2],"residual":true,"stride":[2,1],"width":15}'
    ): Problem(2, 19, 14, 15, 19, (3, 5), (2, 1), (1, 2, 1, 2), (2, 1), groups=19, residual=True),
    (
        '{"activation":"silu","batch":64,"block":32,"dilation":[1,1],"groups":1,"height":56,"in_channels":64,'
        '"kernel":[1,1],"nnzb":13,"out_channels":64,"padding":[0,0,0,0],"precision":"f16","residual":false,'
        '"stride":[1,1],"width":56}'
    ): Problem(64, 64, 56, 56, 64, n=32, nnzb=13, activation="silu", **types_of("f16")),
    (
        '{"activation":"none","batch":8,"block":0,"dilation":[1,1],"groups":1,"height":1,"in_channels":512,'
        '"kernel":[1,1],"nnzb":0,"out_channels":1000,"padding":[0,0,0,0],"precision":"tf32","residual":false,'
        '"stride":[1,1],"width":1}'
    ): Problem(8, 512, 1, 1, 1000, **types_of("tf32")),
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_stay_what_they_are(key):
    assert KEYS[key].to_json() == key
    assert Problem.from_json(key) == KEYS[key]


TARGETS = {
    "cpu": Target({"kind": "llvm", "mcpu": "x86-64-v4"}),
    "cuda": Target({"kind": "cuda", "arch": "sm_90"}, host={"kind": "llvm"}),
}
U8, I8 = TensorType("u8", 1.0, 0), TensorType("i8", axis=0)
INT8 = Problem(1, 16, 8, 8, 16, n=4, nnzb=32, x=U8, w=I8, y=U8, residual=True, residual_type=F32)

INTEGER_KEY = (
    '{"activation":"none","batch":1,"block":4,"dilation":[1,1],"groups":1,"height":8,"in_channels":16,"kernel":[1,1],'
    '"nnzb":32,"out_channels":16,"padding":[0,0,0,0],"residual":true,"stride":[1,1],"types":{"residual_type":{"dtype":'
    '"f32"},"w":{"axis":0,"dtype":"i8"},"x":{"dtype":"u8","scale":1.0,"zero":0},"y":{"dtype":"u8","scale":1.0,"zero":0}'
    '},"width":8}'
)


def test_keys_of_integers_stay_and_those_of_sums_name_the_middle():
    assert INT8.to_json() == INTEGER_KEY
    assert Problem.from_json(INTEGER_KEY) == INT8
    summed = replace(INT8, middle=U8)
    middle = '"middle":{"dtype":"u8","scale":1.0,"zero":0}'
    assert summed.to_json() == INTEGER_KEY.replace('"types":{', f'"types":{{{middle},')
    assert Problem.from_json(summed.to_json()) == summed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_is_a_word_for_three_types(precision):
    p = Problem(1, 4, 4, 4, 4, **types_of(precision))
    assert p.precision == precision
    assert Problem.from_json(p.to_json()) == p


def test_types_without_a_word_stand_in_the_key():
    assert INT8.precision is None
    assert '"w":{"axis":0,"dtype":"i8"}' in INT8.to_json()
    assert Problem.from_json(INT8.to_json()) == INT8
    assert hash(Problem.from_json(INT8.to_json())) == hash(INT8)
    mixed = replace(Problem(1, 4, 4, 4, 4), y=F16)
    assert mixed.precision is None
    assert Problem.from_json(mixed.to_json()) == mixed


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"x": TensorType("u8", 0.02, 3), "w": I8}, "scales and zero points belong to a layer"),
        ({"x": U8}, "products are of integers or of floats"),
        ({"w": I8}, "products are of integers or of floats"),
        ({"x": I8, "w": I8}, "only weights have scales of an axis"),
        ({"x": U8, "w": TensorType("i8", axis=1)}, "only weights have scales of an axis"),
        ({"residual_type": F16}, "set residual=True"),
        ({"middle": U8, "residual": True}, "only integer layers that have one round there"),
        ({"middle": U8, "x": U8, "w": I8}, "only integer layers that have one round there"),
        ({"middle": F32, "x": U8, "w": I8, "residual": True}, "f32 before a residual"),
    ],
)
def test_types_that_do_not_fit_a_layer_are_refused(fields, said):
    with pytest.raises(BadInput, match=said):
        Problem(1, 4, 4, 4, 4, **fields)


def test_an_unknown_precision_is_refused():
    with pytest.raises(BadInput, match="'bf16'; expected one of f32, tf32, f16"):
        types_of("bf16")


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=lambda b: b.name)
@pytest.mark.parametrize("n", [0, 4, 32])
@pytest.mark.parametrize("middle", [None, U8], ids=str)
def test_kernels_of_cpus_alone_take_integers(backend, n, middle):
    p = replace(INT8, n=n, nnzb=32 if n else 0, middle=middle)
    target, taken = TARGETS[backend.name], backend.name == "cpu"
    for of in (p, replace(p, n=0, nnzb=0, groups=16)):
        assert any(not kernel.refuses(of, target) for kernel in backend.kernels) == taken
