"""What a tensor's type may say."""

import pytest

from kerf.errors import BadInput
from kerf.kernels.tensor_type import DTYPES, F32, INTEGERS, TensorType

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("f64",), "'f64'; expected one of f32, tf32, f16, u8, i8"),
        (("i8",), "integers need a scale"),
        (("u8", None, 3), "integers need a scale"),
        (("i8", 0.5, None, 0), "integers need a scale, or an axis"),
        (("f32", 1.0), "only integers do"),
        (("f16", None, 0), "only integers do"),
        (("tf32", None, None, 0), "only integers do"),
        (("i8", 0.0), "expected a positive number"),
        (("i8", float("nan")), "expected a positive number"),
        (("u8", 0.1, -1), "u8 holds 0 to 255"),
        (("i8", 0.1, 128), "i8 holds -128 to 127"),
    ],
)
def test_what_means_nothing_is_refused(fields, said):
    with pytest.raises(BadInput, match=said):
        TensorType(*fields)


def test_code_depends_on_no_number():
    a, b = TensorType("u8", 0.02, 3), TensorType("u8", 0.5, 128)
    assert a != b
    assert a.unit == b.unit == TensorType("u8", 1.0, 0)
    assert a.unit != TensorType("u8", 0.02).unit, "whether there is a zero point changes code"
    assert TensorType("i8", axis=0).unit == TensorType("i8", axis=0)
    assert F32.unit == F32
    assert len({a.unit, b.unit}) == 1


def test_of_every_dtype_one_is_written_down():
    assert {d for d in DTYPES if TensorType(d, *[1.0] * (d in INTEGERS)).quantised} == set(INTEGERS)
    assert str(TensorType("u8", 0.02, 3)) == "u8 (scale 0.02, zero 3)"
