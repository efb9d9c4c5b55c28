"""Block rows of bytes that share quads of channels: made for NEON, here with plain arithmetic for its products."""

from dataclasses import replace

import numpy as np
import pytest
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from kerf.kernels.backends import CPU
from kerf.kernels.bsr import BSR
from kerf.kernels.cpu.int8 import conv2d_nchw_bsr_bands as bands
from kerf.kernels.kernel import pick
from kerf.kernels.tensor_type import F32
from tests.kernels.cpu.test_int8 import HOST, SHARED, compare, layer, problem, run

RPI5 = Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76", "num-cores": 1})
PROBLEMS = {
    "whole": problem(1, 24, 14, 14, 32, n=4, activation="relu6"),
    "outputs left over": problem(1, 40, 12, 12, 27, n=4),
    "batch 2 to floats": problem(2, 13, 9, 9, 24, n=8, y=F32, activation="relu"),
    "residual": problem(1, 24, 7, 7, 30, n=4, residual=True),
    "rows of two": problem(1, 33, 8, 8, 14, n=2, activation="hardswish"),
    "fewer channels than a quad": problem(1, 3, 8, 8, 16, n=4),
}


@pytest.mark.parametrize("threads", [{}, {"parts": 3, "split": "rows"}, {"parts": 3, "split": "pixels"}], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_numpy(name, threads):
    """The first block row of ``layer`` is empty, and so is its last channel."""
    p, given = PROBLEMS[name], layer(PROBLEMS[name])
    for band, strip in ((2, 4), (4, 1)):
        config = {"dot": "plain", "bytes": 16, "rows": min(4, p.n), "strip": strip, "band": band, **threads}
        compare(run(bands, p, config, given, SHARED if threads else HOST), p, given)


def test_a_layer_without_a_weight_is_its_bias():
    p, given = PROBLEMS["whole"], layer(PROBLEMS["whole"])
    given["w"][:] = 0
    y = run(bands, p, {"dot": "plain", "bytes": 16, "rows": 4, "strip": 1, "band": 8}, given)
    assert (y == y[:, :, :1, :1]).all()
    assert len(np.unique(y)) > 3


def test_a_covering_names_every_channel_that_is_read_once():
    kept = np.random.default_rng(0).random((45, 3)) < 0.4
    quads = bands.covering(kept)
    named = np.concatenate(quads)
    assert sorted(named) == list(np.flatnonzero(kept.any(axis=1)))
    assert all(len(q) == 4 for q in quads[:-1])


def test_rows_that_read_the_same_share_all_and_multiply_nothing_by_zero():
    kept = np.zeros((32, 4), bool)
    kept[::4, :2] = kept[1::4, 2:] = True
    quads = bands.covering(kept)
    assert len(quads) == 4
    assert all(kept[q].any(axis=0).sum() == 2 for q in quads)


def test_packed_weights_are_all_there():
    p, given = PROBLEMS["outputs left over"], layer(PROBLEMS["outputs left over"])
    packed = bands.pack(p, BSR.from_conv(given["w"], 4), {"rows": 4, "band": 2})
    assert packed["data"].view(np.int8).astype(int).sum() == given["w"].astype(int).sum()
    assert packed["uses_indptr"][-1] == len(packed["uses"]) == len(packed["data"]) // 4
    assert packed["uses_indptr"][1] == 0  # the empty block row
    assert packed["uses"].max() < bands.TILE * max(np.diff(packed["indptr"]))


def test_it_is_what_neon_takes_and_no_one_else():
    p = replace(PROBLEMS["whole"], nnzb=96)
    assert pick(CPU.kernels, p, RPI5) is bands
    assert bands.configs(p, RPI5)[0]["band"] in bands.BANDS
    for other in ({"kind": "llvm", "mcpu": "x86-64-v3"}, {"kind": "llvm", "mcpu": llvm_get_system_cpu()}):
        assert "pays where" in bands.refuses(p, Target(other))
    assert "where they lie" in bands.refuses(replace(p, kernel=(3, 3), padding=(1, 1, 1, 1)), RPI5)
    assert "no two rows" in bands.refuses(replace(p, out_channels=4), RPI5)
    assert "dense" in bands.refuses(replace(p, n=0), RPI5)


def test_more_channels_are_shared_better():
    few, many = (bands.shared(channels, channels // 2, 4) for channels in (16, 256))
    assert few[1] / (16 / 8) > many[1] / (256 / 8) > 1  # quads that a row uses, to those it would need alone
    assert many[0] < 4 * 256 / 8  # quads of the band, to those of its rows alone
