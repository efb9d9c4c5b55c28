"""Quotients by a number that is known: two products and a sum are what a division rounds to, in a third of its time.

Brisebarre, Muller, Raina, Accelerating Correctly Rounded Floating-Point Division When the Divisor Is Known in Advance,
IEEE Transactions on Computers 53 (8), 2004.
"""

from __future__ import annotations

import numpy as np

SIZES = 1e-16, 1e16  # of divisors, between which nothing that is computed of several of them is infinite or denormal


def reciprocal(size: float) -> tuple[np.float32, np.float32]:
    """1 / float32(size) as the sum of two float32, of which the first is the nearest to it."""
    exact = 1 / np.float64(np.float32(size))
    first = np.float32(exact)
    return first, np.float32(exact - np.float64(first))
