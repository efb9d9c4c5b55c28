"""What a caller may give a network, and what is refused in one line."""

import numpy as np
import pytest

from kerf.deploy.runtime.feed import feed
from kerf.errors import BadInput

pytestmark = pytest.mark.quick

IMAGE = {"dtype": "float32", "shape": [1, 3, None, None]}
LENGTH = {"dtype": "int64", "shape": [1]}
x, n = np.zeros((1, 3, 8, 9), np.float32), np.ones(1, np.int64)


def test_an_only_input_needs_no_name():
    assert feed(x, {"x": IMAGE})["x"] is x
    assert feed({"x": x}, {"x": IMAGE})["x"] is x
    assert feed([x], {"x": IMAGE})["x"] is x


def test_several_come_by_name_or_in_order():
    both = {"x": IMAGE, "n": LENGTH}
    assert list(feed({"n": n, "x": x}, both)) == ["x", "n"]
    assert feed((x, n), both) == feed({"x": x, "n": n}, both)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (x, r"one array given; this bundle takes 'x' float32 \(1, 3, \?, \?\), 'n' int64 \(1,\): run"),
        ([x], "1 arrays given"),
        ({"x": x}, "no 'n'; the inputs of this bundle are 'x'"),
        ({"x": x, "n": n, "m": n}, "'m' given; the inputs"),
        ({"x": x.astype(np.float64), "n": n}, "input 'x' is float64 .1, 3, 8, 9.; this bundle takes"),
        ({"x": x[:, :2], "n": n}, r"input 'x' is float32 .1, 2, 8, 9.; this bundle takes a numpy array float32 \(1, 3"),
        ({"x": x[0], "n": n}, "input 'x' is float32 .3, 8, 9."),
        ({"x": x.tolist(), "n": n}, "input 'x' is list; this bundle takes"),
    ],
)
def test_anything_else_is_named(given, words):
    with pytest.raises(BadInput, match=words):
        feed(given, {"x": IMAGE, "n": LENGTH})


def test_strings_are_strings_of_any_kind():
    words = {"s": {"dtype": "object", "shape": None}}
    assert feed(np.array(["a", "b"]), words)["s"].shape == (2,)
    with pytest.raises(BadInput, match="numpy array of strings"):
        feed(x, words)


def test_sequences_and_what_is_optional_go_by_name():
    given = {"s": [x, x[:, :1]], "o": None}
    assert feed(given, {key: {"dtype": "object", "shape": None} for key in "so"}) == given
