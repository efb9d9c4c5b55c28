"""Quantised networks whose sums are functions of their own: what those within layers must compute to the last bit."""

from contextlib import contextmanager

import pytest

from kerf.deploy.frontend import convert


@contextmanager
def sums_apart():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(convert, "integer_sums", lambda graph, layers: layers)
        yield
