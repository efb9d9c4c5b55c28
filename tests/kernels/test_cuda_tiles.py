"""What the GPU kernels do, executed in numpy from their own packed arrays: index maps, fragments and tiles."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from tvm.target import Target

from kernels import reference
from kernels.bsr import BSR
from kernels.cuda import (
    conv2d_chwn_bsr_halo,
    conv2d_chwn_bsr_mma,
    conv2d_chwn_bsr_panels,
    conv2d_chwn_dense_mma,
    fragments,
    gather,
)
from kernels.cuda.halo import Halo
from kernels.cuda.layout import from_rows, in_rows, out_rows, to_rows
from kernels.cuda.panel import Panel
from kernels.cuda.tile import Tile, room
from kernels.problem import Problem

HOPPER = Target({"kind": "cuda", "arch": "sm_90"}, host={"kind": "llvm"})
SAME = (1, 1, 1, 1)

SPARSE = {
    "1x1": Problem(3, 21, 7, 9, 40, block=16, residual=True, activation="relu"),
    "3x3": Problem(8, 12, 9, 7, 64, (3, 3), padding=SAME, block=32),
    "one image": Problem(1, 12, 9, 7, 70, (3, 3), (2, 2), SAME, block=64, activation="relu6"),
    "uneven": Problem(2, 5, 11, 8, 33, (2, 5), (2, 1), (0, 2, 1, 3), (1, 2), block=32),
}
DENSE = {
    "stem": Problem(8, 3, 17, 15, 24, (7, 7), (2, 2), (3, 3, 3, 3), activation="relu"),
    "groups": Problem(4, 12, 6, 6, 64, (3, 3), padding=SAME, groups=4),
    "classifier": Problem(5, 37, 1, 1, 20),
}


def rounded(p: Problem, x: np.ndarray) -> np.ndarray:
    """As the tensor cores see it."""
    return x.astype(np.float16).astype(np.float32) if p.precision == "f16" else fragments.round_to_tf32(x)


def execute(p: Problem, tile: Tile, arrays: dict, x: np.ndarray) -> np.ndarray:
    """The sums of every CTA, instruction by instruction: (filters, pixels) without bias."""
    op, flat = tile.op, to_rows(x).reshape(-1)
    block_rows, width = -(-p.out_channels // tile.rows), out_rows(p)[1]
    tiles = -(-width // tile.pixels)
    y = np.zeros((block_rows * tile.rows, tiles * tile.pixels))
    lane = np.arange(32)
    for block in range(block_rows):
        for at in range(tiles):
            pixels = at * tile.pixels + np.arange(tile.pixels)
            sums = np.zeros((tile.rows, tile.pixels))
            for chunk in range(arrays["starts"][block], arrays["starts"][block + 1]):
                image = fetched(p, tile, arrays, flat, chunk, pixels)
                words = arrays["data"][chunk].reshape(tile.chunk // op.depth, tile.rows // 16, 32, -1)
                for step in range(tile.chunk // op.depth):
                    depth = image[step * op.depth : (step + 1) * op.depth]
                    for m in range(tile.rows // 16):
                        a = matrix_a(op, words[step, m], lane)
                        for n in range(0, tile.pixels, 8):
                            b = matrix_b(op, depth[:, n : n + 8], lane)
                            sums[16 * m : 16 * m + 16, n : n + 8] += a @ b
            y[block * tile.rows : (block + 1) * tile.rows, pixels] = sums
    return y[: p.out_channels, :width]


def execute_panels(p: Problem, panel: Panel, arrays: dict, x: np.ndarray) -> np.ndarray:
    """The same for the kernel that gathers from panels in shared memory."""
    inner, flat, pitch = panel.plane, to_rows(x).reshape(-1), in_rows(p)[1]
    y = np.zeros(((len(arrays["starts"]) - 1) // panel.panels * p.block, out_rows(p)[1]))
    origins = [range(0, n, step) for n, step in zip((*inner.out, inner.batch), (panel.tall, panel.wide, panel.images))]
    for origin in product(*origins):
        for number in range(panel.panels):
            numbers = range(number * panel.channels, (number + 1) * panel.channels)
            image = copied(p, panel, flat, origin, [n * pitch if n < p.in_channels else None for n in numbers])
            for block in range(len(y) // p.block):
                begin, end = arrays["starts"][block * panel.panels + number :][:2]
                for n, step in product(range(0, panel.pixels, 8), range(begin, end)):
                    position, rest = divmod(n, panel.images)
                    row, column = divmod(position, panel.wide)
                    place = panel.place(row, column) + rest + arrays["offsets"][16 * step : 16 * step + 16]
                    out_y, out_x, first = origin[0] + row, origin[1] + column, origin[2] + rest
                    if out_y >= inner.out[0] or out_x >= inner.out[1] or first >= inner.batch:
                        continue
                    pixel = (out_y * inner.out[1] + out_x) * inner.batch + first
                    depth = np.stack([image[at : at + 8] for at in place])
                    words = arrays["data"][step].reshape(p.block // 16, 32, 8)
                    for m in range(p.block // 16):
                        filters = slice(block * p.block + 16 * m, block * p.block + 16 * m + 16)
                        y[filters, pixel : pixel + 8] += matrix_a(fragments.F16, words[m], np.arange(32)) @ depth
    return y[: p.out_channels]


def execute_halo(p: Problem, tile: Halo, arrays: dict, x: np.ndarray) -> np.ndarray:
    """The same for the kernel that gathers channels with their borders."""
    inner, flat = tile.plane, to_rows(x).reshape(-1)
    y = np.zeros(((len(arrays["starts"]) - 1) * p.block, out_rows(p)[1]))
    origins = [range(0, n, step) for n, step in zip((*inner.out, inner.batch), (tile.tall, tile.wide, tile.images))]
    for block, origin in product(range(len(y) // p.block), product(*origins)):
        for chunk in range(arrays["starts"][block], arrays["starts"][block + 1]):
            image = copied(p, tile, flat, origin, arrays["channels"][16 * chunk : 16 * chunk + 16])
            words = arrays["data"][chunk].reshape(p.taps, p.block // 16, 32, 8)
            for n, tap in product(range(0, tile.pixels, 8), range(p.taps)):
                position, rest = divmod(n, tile.images)
                row, column = divmod(position, tile.wide)
                place = tile.place(row, column) + rest + tile.tap(tap) + np.arange(16) * tile.row
                out_y, out_x, first = origin[0] + row, origin[1] + column, origin[2] + rest
                if out_y >= inner.out[0] or out_x >= inner.out[1] or first >= inner.batch:
                    continue
                pixel = (out_y * inner.out[1] + out_x) * inner.batch + first
                depth = np.stack([image[at : at + 8] for at in place])
                for m in range(p.block // 16):
                    filters = slice(block * p.block + 16 * m, block * p.block + 16 * m + 16)
                    a = matrix_a(fragments.F16, words[tap, m], np.arange(32))
                    y[filters, pixel : pixel + 8] += a @ depth
    return y[: p.out_channels]


def copied(p, panel, flat, origin, places):
    """A stage of the channels that begin at ``places``, None for one that there is not: NaN where nothing is copied to,
    so that nothing of it may be read.
    """
    inner, image = panel.plane, np.full(panel.stage, np.nan, np.float32)
    for (channel, place), vector in product(enumerate(places), range(panel.vectors)):
        position, rest = divmod(vector, panel.images // 8)
        row, column = divmod(position, panel.copied[1])
        y = origin[0] * inner.stride[0] - inner.padding[0] + row * panel.source_steps[0]
        x = origin[1] * inner.stride[1] - inner.padding[1] + column * panel.source_steps[1]
        first = origin[2] + 8 * rest
        inside = 0 <= y < inner.size[0] and 0 <= x < inner.size[1] and first < inner.batch and place is not None
        begin = (place or 0) + (y * inner.size[1] + x) * inner.batch + first
        to = channel * panel.row + vector * 8
        image[to : to + 8] = flat[begin : begin + 8] if inside else 0
    return image


def fetched(p, tile, arrays, flat, chunk, pixels):
    """Image of a stage: each copy is a run of ``tile.copy`` numbers, whole or zero."""
    image = np.zeros((tile.chunk, tile.pixels), np.float32)
    for column in range(0, tile.pixels, tile.copy):
        pixel = pixels[column]
        for row in range(tile.chunk):
            entry = chunk * tile.chunk + row
            if gather.pointwise(p):
                inside, base = pixel < in_rows(p)[1], pixel
            else:
                place, number = divmod(pixel, p.batch)
                y = place // p.out_width * p.stride[0] - p.padding[0]
                x = place % p.out_width * p.stride[1] - p.padding[1]
                base = (y * p.width + x) * p.batch + number
                dy, dx = gather.shift(p, int(arrays["taps"][entry])) if gather.bounded(p) else (0, 0)
                inside = place < p.out_height * p.out_width
                inside &= not gather.bounded(p) or (0 <= y + dy < p.height and 0 <= x + dx < p.width)
            if inside:
                first = base + arrays["offsets"][entry]
                assert 0 <= first <= flat.size - tile.copy, "no copy leaves the image"
                assert first % tile.copy == 0, "copies are aligned"
                image[row, column : column + tile.copy] = flat[first : first + tile.copy]
    return image


def matrix_a(op, words, lane):
    """(16, depth) from the registers of 32 lanes, by PTX's tables for the first operand."""
    a, g, t = np.zeros((16, op.depth), np.float32), lane // 4, lane % 4
    if op is fragments.F16:
        for i in range(8):
            a[g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)] = words[lane, i]
    else:
        for i in range(4):
            a[g + 8 * (i % 2), t + 4 * (i // 2)] = words[lane, i]
    return a


def matrix_b(op, image, lane):
    """(depth, 8) from the registers that ldmatrix.trans, or plain loads, leave in 32 lanes."""
    b, g, t = np.zeros((op.depth, 8), np.float32), lane // 4, lane % 4
    if op is fragments.F16:
        for i in range(4):  # of a transposed matrix lane l receives column l / 4 of rows 2 (l % 4) and the next
            eight = image[8 * (i // 2) : 8 * (i // 2) + 8]
            b[2 * t + i % 2 + 8 * (i // 2), g] = eight[2 * t + i % 2, g]
    else:
        for i in range(2):
            b[t + 4 * i, g] = image[t + 4 * i, g]
    return b


def sample(p: Problem, density: float):
    rng = np.random.default_rng(0)
    w = rng.standard_normal(p.weight_shape).astype(np.float32)
    if p.block:
        rows = -(-p.out_channels // p.block)
        kept = rng.permutation(rows * p.in_channels) < round(density * rows * p.in_channels)
        kept.reshape(rows, -1)[0] &= density == 1  # a row without blocks
        w *= np.repeat(kept.reshape(rows, -1), p.block, axis=0)[: p.out_channels, :, None, None]
        p = replace(p, nnzb=BSR.from_conv(w, p.block).nnzb)
    return p, w, rng.standard_normal(p.in_shape).astype(np.float32)


@pytest.mark.parametrize("precision", ["f16", "tf32"])
@pytest.mark.parametrize("key", [*SPARSE, *DENSE])
def test_tile_program_in_numpy_equals_the_reference(key, precision):
    shape = replace({**SPARSE, **DENSE}[key], precision=precision)
    kernel = conv2d_chwn_bsr_mma if shape.block else conv2d_chwn_dense_mma
    p, w, x = sample(shape, 0.4)
    found = kernel.configs(p, HOPPER)
    for c in (found[0], found[len(found) // 2]):
        rows = p.block or c["rows"]
        tile = Tile.of(p, c, rows)
        arrays = kernel.pack(p, BSR.from_conv(w, p.block) if p.block else w, c)
        assert len(arrays["data"]) == room(p, tile.chunk, rows)
        plain = replace(p, activation="none", residual=False)
        y = execute(plain, tile, arrays, rounded(p, x))
        truth = reference.conv2d(plain, rounded(p, x), rounded(p, w), np.zeros(p.out_channels))
        np.testing.assert_allclose(from_rows(y, p.out_shape), truth, atol=1e-4)


PANELS = {
    "1x1": Problem(3, 37, 7, 9, 40, block=16),
    "3x3": Problem(8, 12, 5, 7, 64, (3, 3), padding=SAME, block=32),
    "1x1, stride 2": Problem(16, 20, 7, 5, 70, (1, 1), (2, 2), block=32),
    "3x3, stride 2": Problem(16, 20, 7, 8, 130, (3, 3), (2, 2), SAME, block=64),
    "uneven": Problem(8, 5, 11, 8, 33, (2, 3), (2, 1), (0, 2, 1, 3), (1, 2), block=32),
}


@pytest.mark.parametrize("key", PANELS)
def test_panel_program_in_numpy_equals_the_reference(key):
    p, w, x = sample(replace(PANELS[key], precision="f16"), 0.4)
    found = conv2d_chwn_bsr_panels.configs(p, HOPPER)
    for c in (found[0], found[len(found) // 2], found[-1]):
        panel = Panel.of(p, c)
        arrays = conv2d_chwn_bsr_panels.pack(p, BSR.from_conv(w, p.block), c)
        y = execute_panels(p, panel, arrays, rounded(p, x))
        truth = reference.conv2d(p, rounded(p, x), rounded(p, w), np.zeros(p.out_channels))
        np.testing.assert_allclose(from_rows(y, p.out_shape), truth, atol=1e-4, err_msg=str(c))


@pytest.mark.parametrize("key", [key for key, p in PANELS.items() if p.taps > 1])
def test_halo_program_in_numpy_equals_the_reference(key):
    p, w, x = sample(replace(PANELS[key], precision="f16"), 0.4)
    found = conv2d_chwn_bsr_halo.configs(p, HOPPER)
    for c in (found[0], found[len(found) // 2], found[-1]):
        arrays = conv2d_chwn_bsr_halo.pack(p, BSR.from_conv(w, p.block), c)
        y = execute_halo(p, Halo.of(p, c), arrays, rounded(p, x))
        truth = reference.conv2d(p, rounded(p, x), rounded(p, w), np.zeros(p.out_channels))
        np.testing.assert_allclose(from_rows(y, p.out_shape), truth, atol=1e-4, err_msg=str(c))


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [16, 32, 64])
def test_lists_hold_every_block_once_and_fill_up_with_zeros(n, density):
    _, w, _ = sample(Problem(2, 19, 5, 5, 100, (3, 3), padding=SAME, block=n, precision="f16"), density)
    lists = gather.Lists.of(BSR.from_conv(w, n), 32)
    rebuilt = np.zeros((len(lists.starts) - 1, n, 19, 9), np.float32)
    for row, (first, last) in enumerate(zip(lists.starts, lists.starts[1:], strict=False)):
        for entry in range(first * 32, last * 32):
            rebuilt[row, :, lists.channels[entry], lists.taps[entry]] += lists.weights[entry]
    np.testing.assert_array_equal(rebuilt.reshape(-1, 19, 3, 3)[:100], w)


def test_eight_rows_of_a_matrix_lie_in_different_banks_where_they_can():
    p, w, _ = sample(Problem(16, 128, 5, 5, 32, (3, 3), padding=SAME, block=32, precision="f16"), 1.0)
    c = {"down": 1, "across": 4, "warp_pixels": 32, "images": 16, "wide": 2, "channels": 128, "stages": 2}
    offsets = conv2d_chwn_bsr_panels.pack(p, BSR.from_conv(w, 32), c)["offsets"]
    banks = offsets[: 128 * 9].reshape(-1, 8) // 8 % 8
    assert np.mean([len(set(row)) for row in banks]) > 7.9
    assert len(set(offsets)) == 128 * 9, "every entry once"


def test_rows_and_back():
    x = np.random.default_rng(0).standard_normal((3, 5, 7, 2)).astype(np.float32)
    rows = to_rows(x)
    assert rows.shape == (5, 48)
    assert rows[2, (4 * 2 + 1) * 3 + 2] == x[2, 2, 4, 1]
    np.testing.assert_array_equal(from_rows(rows, x.shape), x)


def test_rounding_to_tf32_is_to_the_nearest():
    x = np.float32([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11])
    np.testing.assert_array_equal(fragments.round_to_tf32(x), np.float32([1, 1 + 2**-10, 1 + 2**-10, 1, -1 - 2**-10]))


def test_weights_that_float16_cannot_hold_are_refused():
    weights = np.zeros((16, 16), np.float32)
    weights[3, 4] = -7e4
    with pytest.raises(ValueError, match="70000 is more than float16 holds; use --precision tf32"):
        fragments.pack_weights(fragments.F16, weights)
    assert fragments.pack_weights(fragments.TF32, weights).min() == fragments.round_to_tf32(weights).min()
