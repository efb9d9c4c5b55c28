"""The table of backends: each row holds for all of its kernels."""

import json

import numpy as np
import pytest
from tvm.target import Target

from kerf.deploy.compiler import targets
from kerf.errors import Unsupported
from kerf.kernels.backends import BACKENDS, BY_NAME, CPU, CUDA, backend_of
from kerf.kernels.config import Config
from kerf.kernels.precision import PRECISIONS, types_of
from kerf.kernels.problem import Problem

pytestmark = pytest.mark.quick

ROWS = [
    (CPU, "x86-64-v3", "llvm -mcpu=x86-64-v3 -num-cores=2", "avx2"),
    (CPU, "x86-64-v4", "llvm -mcpu=x86-64-v4 -num-cores=2", "avx512"),
    (CPU, "llvm -mtriple=aarch64-linux-gnu -mcpu=generic -mattr=+dotprod,+i8mm",
     "llvm -mtriple=aarch64-linux-gnu -mcpu=generic -mattr=+dotprod,+i8mm -num-cores=2", "neon"),
    (CUDA, "cuda -arch=sm_90", "cuda -arch=sm_90", "sm_90"),
]  # fmt: skip
SHAPES = {
    "1x1": Problem(8, 16, 8, 8, 32),
    "1xN": Problem(8, 16, 8, 8, 32, (3, 3), padding=(1, 1, 1, 1), n=32, nnzb=8),
    "depthwise": Problem(8, 16, 8, 8, 16, (3, 3), padding=(1, 1, 1, 1), groups=16),
    "classifier": Problem(8, 16, 1, 1, 32),
}


@pytest.mark.parametrize(("row", "text", "key", "family"), ROWS, ids=[r[1] for r in ROWS])
def test_a_target_belongs_to_a_row_and_keeps_its_key(row, text, key, family):
    target = targets.parse(text, 2)
    assert backend_of(target) is row
    assert targets.describe(target) == key
    assert row.family(target) == family


def test_of_every_row_there_is_an_example():
    assert {row.name for row, *_ in ROWS} == {row.name for row in BACKENDS.values()}
    assert len(BY_NAME) == sum(len(row.kernels) for row in BACKENDS.values()), "two kernels of one name"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("row", "text"), [(row, text) for row, text, *_ in ROWS[1::2]], ids=["cpu", "cuda"])
def test_what_a_row_computes_is_what_its_kernels_take(row, text, shape, precision):
    p = Problem(**{**vars(SHAPES[shape]), **types_of(precision)})
    dense = Problem(**{**vars(p), "n": 0, "nnzb": 0})
    taken = any(kernel.refuses(q, targets.parse(text, 1)) is None for kernel in row.kernels for q in (p, dense))
    assert taken == (precision in row.precisions)


@pytest.mark.parametrize(("row", "text"), [(row, text) for row, text, *_ in ROWS[1::2]], ids=["cpu", "cuda"])
def test_images_survive_their_form(row, text):
    form = row.form(targets.parse(text, 1), "float32")
    images = np.random.default_rng(0).standard_normal((3, 5, 7, 7)).astype(np.float32)
    packed = form.pack(images)
    assert [int(d) for d in form.type(images.shape).shape] == list(packed.shape)
    np.testing.assert_array_equal(form.unpack(packed, images.shape), images)


@pytest.mark.parametrize(("row", "text"), [(row, text) for row, text, *_ in ROWS[1::2]], ids=["cpu", "cuda"])
def test_configurations_say_only_what_is_defined(row, text):
    target, seen = targets.parse(text, 2), set()
    for shape in SHAPES.values():
        p = Problem(**{**vars(shape), **types_of(row.precisions[0])})
        for kernel in row.kernels:
            for c in kernel.configs(p, target) if kernel.refuses(p, target) is None else []:
                assert set(c) <= set(Config.__annotations__)
                assert json.loads(json.dumps(c)) == c
                seen.add(kernel.name)
    assert len(seen) >= 3


def test_another_kind_of_target_is_refused():
    with pytest.raises(Unsupported, match="no kernels for targets of kind 'c'; expected llvm or cuda"):
        backend_of(Target({"kind": "c"}))
