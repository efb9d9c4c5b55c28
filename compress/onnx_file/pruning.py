"""`kerf.prune_onnx`: an .onnx file and some images -> the file with 1×N blocks gone, weights and biases fitted anew.

No code of the network, no labels, no training. Layers are pruned in the order of computation, each by what it reads in
the network as it has become (kerf.compress.second_order).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from torch import Tensor

from kerf import files, temporary
from kerf.compress.onnx_file.program import DEVICE, Sessions
from kerf.compress.onnx_file.rearranging import rearrange as rearranged
from kerf.compress.onnx_file.timed import Weights, by_speed, least_sparse, prices
from kerf.compress.pruning.allocation import Allocation
from kerf.compress.second_order.compensation import cheapest, compensate
from kerf.compress.second_order.layer import Layer
from kerf.compress.second_order.refit import Fit
from kerf.deploy.frontend.soundness import explained
from kerf.deploy.frontend.zero_blocks import LINEAR, prunable
from kerf.deploy.quantise.calibration import Calibration
from kerf.deploy.quantise.quantise import plain, quantise, sized
from kerf.deploy.quantise.samples import Feed, Samples, read
from kerf.errors import BadInput

BATCH = 16  # samples computed together, where the file leaves their number open
HELD_BACK = 5  # of so many samples one is not pruned by, but compared on
DAMPING = 0.01  # of the mean of the diagonal of second moments


@dataclass(frozen=True)
class PrunedFile:
    """The file that was written, and what was lost. ``errors``: pruned layer's weight -> Var[t − y] / Var[t] of its
    answers y and what they should be, t, over all channels; ``relative_error``: ‖y − ŷ‖ / ‖y‖ of the network's outputs
    on the samples held back; ``agreement``: the share of those on which the largest output is the same; None where
    there is no such output, or no such sample. ``allocation``: shares by layer, where a time was asked for; then
    ``sparsity`` is the share of these layers' multiply-accumulates that went.
    """

    path: Path
    n: int
    sparsity: float
    errors: dict[str, float]
    samples: int
    held_back: int
    relative_error: float | None
    agreement: float | None
    note: str
    allocation: Allocation | None = None

    @property
    def command(self) -> str:
        """What compiles it."""
        least = least_sparse() if self.allocation else self.sparsity
        return f"kerf tune --onnx_path {self.path} --bsr {self.n} --sparsity {least:g}"

    def __str__(self) -> str:
        width = max(map(len, self.errors))
        lines = [f"{'layer':{width}}  relative error", *(f"{n:{width}}  {e:.3f}" for n, e in self.errors.items())]
        blocks = f"1x{self.n} blocks of {len(self.errors)} layers"
        if made := self.allocation:
            lines.append(f"{self.path}: {blocks} with {made.removed:.0%} of these layers' MACs are zero")
            lines.append(
                f"built: {made.latency_ms:.3f} ms, asked for {made.target_ms:.3f}; dense in {made.dense_engine} "
                f"{made.dense_ms:.3f} ms"
            )
        else:
            lines.append(f"{self.path}: {self.sparsity:.0%} of the {blocks} are zero")
        if self.relative_error is not None:
            same = "" if self.agreement is None else f"; the same answer to {self.agreement:.1%}"
            lines.append(
                f"on {self.held_back} samples held back: relative error of outputs {self.relative_error:.3f}{same}"
            )
        return "\n".join(filter(None, [*lines, self.note, f"to compile it: {self.command}"]))


def prune_onnx(
    path: str | Path,
    to: str | Path,
    calibration: str | Path | Calibration,
    *,
    sparsity: float | None = None,
    speedup_target: float | None = None,
    n: int = 4,
    full: bool = False,
    row_multiple: int = 0,
    rearrange: bool = False,
    int8: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 0,
    say: Callable[[str], None] | None = None,
) -> PrunedFile:
    """Writes the network at ``path`` to ``to``, with the share ``sparsity`` of the 1×n blocks of each layer zero.

    That is half where nothing is said. speedup_target: in its place, layers get shares with which the compiled network
    is so many times as fast as the fastest dense engine on this machine, on ``threads`` threads (1 where that is 0),
    with as little lost as the prices of all layers and their times allow.

    calibration: a folder of images, an .npz of arrays by input name (.npy for an only input), or a Calibration, which
    also says how images become numbers; one sample of five is held back and compared on. full: Gemm and MatMul too, but
    for the classifier. row_multiple: if not 0, all block rows of a layer keep equally many blocks, a multiple of
    it (or all), so that fewer than asked for may go. rearrange: filters that need the same inputs are put side by side
    first, so that blocks lose less; the network computes the same. Channels that are not followed stay, and the note
    says so. int8: quantise the pruned network, too, with the same samples, as
    kerf.quantise does; not with a speedup_target, whose times are those of f32. shapes: sizes of inputs that the file
    leaves open. threads: of ONNX Runtime, 0: all. say: gets lines on the times that are tried.

    Batch norms are folded; convolutions may get a bias. Raises FileNotFoundError, ImportError where images need Pillow,
    and BadInput for a file without such layers and for samples that do not fit; then nothing is written.
    """
    path, to = Path(path), Path(to)
    share = 0.5 if sparsity is None else sparsity
    if not 0 < share < 1 or n < 1 or row_multiple < 0:
        given = f"sparsity {share:g}, n {n}, row_multiple {row_multiple}"
        raise BadInput(f"{given}: expected a share above 0 and below 1, at least 1, and 0 or more")
    if speedup_target is not None:
        if sparsity is not None:
            raise BadInput("sparsity and speedup_target each say how much goes: give one")
        if not 0 < speedup_target < math.inf:
            raise BadInput(f"speedup_target {speedup_target:g}: expected a number above 0")
        if int8:
            raise BadInput("speedup_target is a time of f32 kernels: leave int8 out, or give sparsity")
    asked = calibration if isinstance(calibration, Calibration) else Calibration(Path(calibration), images=1024)
    with explained(path):
        return _pruned(
            path, to, asked, share, speedup_target, n, full, row_multiple, rearrange, int8, shapes or {},
            threads, say,
        )  # fmt: skip


def _pruned(
    path: Path, to: Path, asked: Calibration, sparsity: float, speedup: float | None, n: int, full: bool,
    row_multiple: int, rearrange: bool, int8: bool, shapes: Mapping[str, Sequence[int]], threads: int,
    say: Callable[[str], None] | None,
) -> PrunedFile:  # fmt: skip
    graph = plain(path)
    inputs = sized(path, graph, shapes)
    samples = read(asked, inputs)
    original = graph.model()
    program = Sessions(graph, threads)
    fitted = {layer.name for layer in program.layers}
    able = prunable(original.graph, n, ("Conv", *LINEAR) if full else ("Conv",))
    blocks = {tensor.name: transposed for tensor, transposed in able if tensor.name in fitted}
    if not blocks:
        more = "" if full else "; full=True (--full) takes Gemm and MatMul, too"
        raise BadInput(
            f"{path}: no layer to prune (not depthwise, constant f32 weight, read once, behind the first){more}"
        )
    used, held = _parted(samples)
    declared = [graph.described(value.name).shape for value in inputs]
    batched = all(shape and shape[0] is None for shape in declared)
    batches = list(_batches(used, BATCH if batched else 1))
    moved = ""
    if rearrange:
        moved = rearranged(graph, batches, blocks, n, sparsity, DAMPING, threads)
        program = Sessions(graph, threads)  # of the weights as they lie now
    made_of = dict.fromkeys(blocks, sparsity)
    allotted = None
    if speedup is not None:
        harm = prices(program, batches, blocks, n, DAMPING)
        networks = Weights(path, graph, blocks, n, shapes)
        allotted = by_speed(networks, harm, speedup, threads or 1, say or (lambda _: None))
        made_of, sparsity = {name: share for name, share in allotted.shares.items() if share}, allotted.removed

    def keep(layer: Layer, fit: Fit) -> Tensor | None:
        share = made_of.get(layer.name)
        return None if share is None else cheapest(layer, fit, n, share, DAMPING, row_multiple)

    made = compensate(program, batches, len(used), keep, DAMPING)
    if not made.lost:
        multiple = f" and rows that keep multiples of {row_multiple}" if row_multiple else ""
        raise BadInput(f"{path}: with sparsity {sparsity:g}, blocks of {n}{multiple} no layer loses a block")
    pruned = _quantised(graph.model(), asked, shapes) if int8 else graph.model()
    error, same = _compared(original, pruned, held)
    files.write(to, pruned.SerializeToString())
    note = "\n".join(filter(None, [moved, made.note]))
    return PrunedFile(to, n, sparsity, made.lost, len(used), len(held), error, same, note, allotted)


def _quantised(pruned: onnx.ModelProto, asked: Calibration, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    with temporary.folder("prune") as folder:
        files.write(folder / "pruned.onnx", pruned.SerializeToString())
        return onnx.load(quantise(folder / "pruned.onnx", folder / "quantised.onnx", asked, shapes=shapes).path)


def _parted(samples: Samples) -> tuple[list[Feed], list[Feed]]:
    """Those that are pruned by, and those held back."""
    feeds = list(samples)
    if len(feeds) < HELD_BACK:
        return feeds, []
    return [f for i, f in enumerate(feeds) if i % HELD_BACK], feeds[::HELD_BACK]


def _batches(feeds: Sequence[Feed], size: int) -> Iterator[Feed]:
    for start in range(0, len(feeds), size):
        part = feeds[start : start + size]
        yield {name: np.concatenate([feed[name] for feed in part]) for name in part[0]}


def _compared(
    original: onnx.ModelProto, pruned: onnx.ModelProto, feeds: Sequence[Feed]
) -> tuple[float | None, float | None]:
    """(‖y − ŷ‖ / ‖y‖ over all f32 outputs, share of samples whose first output of two axes has its largest number at
    the same place).
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    before, now = (onnxruntime.InferenceSession(m.SerializeToString(), options, DEVICE) for m in (original, pruned))
    apart = whole = 0.0
    same: list[bool] = []
    for feed in feeds:
        pairs = [
            (y, z)
            for y, z in zip(before.run(None, dict(feed)), now.run(None, dict(feed)))
            if isinstance(y, np.ndarray) and y.dtype.kind == "f" and y.shape == z.shape
        ]
        apart += sum(float(np.square(y - z, dtype=np.float64).sum()) for y, z in pairs)
        whole += sum(float(np.square(y, dtype=np.float64).sum()) for y, _ in pairs)
        classes = next(((y, z) for y, z in pairs if y.ndim == 2 and y.shape[1] > 1), None)
        if classes:
            same += (classes[0].argmax(1) == classes[1].argmax(1)).tolist()
    error = (apart / whole) ** 0.5 if whole else None
    return error, float(np.mean(same)) if same else None
