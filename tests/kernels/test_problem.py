"""Problem: the text that records, pretuned choices and the custom operator know it by."""

import pytest

from kerf.kernels.problem import Problem

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
    ): Problem(64, 64, 56, 56, 64, n=32, nnzb=13, activation="silu", precision="f16"),
    (
        '{"activation":"none","batch":8,"block":0,"dilation":[1,1],"groups":1,"height":1,"in_channels":512,'
        '"kernel":[1,1],"nnzb":0,"out_channels":1000,"padding":[0,0,0,0],"precision":"tf32","residual":false,'
        '"stride":[1,1],"width":1}'
    ): Problem(8, 512, 1, 1, 1000, precision="tf32"),
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_stay_what_they_are(key):
    assert KEYS[key].to_json() == key
    assert Problem.from_json(key) == KEYS[key]
