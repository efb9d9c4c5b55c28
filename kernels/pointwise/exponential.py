"""exp, expm1 and erf on vectors of TIR, as polynomials: LLVM makes a call of the C library for each lane of its own.

The argument of an exponential is n ln 2 + r, |r| <= ln 2 / 2; 2^n is made of the exponent's bits, e^r of Cephes' expf.
The largest errors, over all float32, are in tests/kernels/test_epilogue.py.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from kerf.kernels.vector import splat

LOG2_E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # the first has so few bits that its products with n are exact
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
ROUND, ROUND_BITS = 1.5 * 2**23, 0x4B400000  # a float this large has its integer in its last bits
LEAST, MOST = -87.3, 88.3  # of arguments whose exponential and 2^n are normal numbers
# erf(x) = x P(x^2) / Q(x^2) for |x| <= ERF_MOST, where it is 1 in float32
ERF_MOST = 3.7439211627767994
ERF_P = (0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145, 1.128379143519084)
ERF_Q = (
    *(-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667),
    *(0.11098505178285362, 0.49746925110067538, 1.0),
)


def clip(v, low: float, high: float, lanes: int):
    """NaN stays NaN: of a comparison that fails the second operand is taken."""
    return T.min(splat(high, lanes), T.max(splat(low, lanes), v))


def polynomial(x, coefficients: tuple[float, ...], lanes: int):
    """Coefficients from the highest power's on."""
    value = splat(coefficients[0], lanes)
    for c in coefficients[1:]:
        value = value * x + splat(c, lanes)
    return value


def exp(x, lanes: int):
    """e^x for LEAST <= x <= MOST; of other x that of the nearer end."""
    power, q = _reduced(x, lanes)
    return power * (q + splat(1, lanes))


def expm1(x, lanes: int):
    """e^x - 1, exact near 0, for LEAST <= x <= MOST; of other x that of the nearer end."""
    power, q = _reduced(x, lanes)
    return power * q + (power - splat(1, lanes))


def erf(x, lanes: int):
    x = T.Bind(clip(x, -ERF_MOST, ERF_MOST, lanes))
    square = T.Bind(x * x)
    return x * polynomial(square, ERF_P, lanes) / polynomial(square, ERF_Q, lanes)


def _reduced(x, lanes: int) -> tuple:
    """(2^n, e^r - 1)"""
    x = T.Bind(clip(x, LEAST, MOST, lanes))
    shifted = T.Bind(x * splat(LOG2_E, lanes) + splat(ROUND, lanes))
    # by integers: LLVM may add numbers in another order, and would find that shifted - ROUND is x LOG2_E
    exponent = T.Bind(_as("int32", shifted, lanes) - _integers(ROUND_BITS, lanes))
    n = T.Bind(T.cast(exponent, "float32" if lanes == 1 else f"float32x{lanes}"))
    r = T.Bind(x - n * splat(LN2_HIGH, lanes) - n * splat(LN2_LOW, lanes))
    power = _as("float32", (exponent + _integers(127, lanes)) << _integers(23, lanes), lanes)
    return T.Bind(power), T.Bind(r * r * polynomial(r, EXP, lanes) + r)


def _as(dtype: str, value, lanes: int):
    """The same bits."""
    return tirx.reinterpret(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def _integers(value: int, lanes: int):
    return T.broadcast(T.int32(value), lanes) if lanes > 1 else T.int32(value)
