"""FKW: kernels that are zero or of one of a few patterns, stored filter by filter in the order of their patterns.

Source: Niu et al., "PatDNN", ASPLOS 2020, arXiv 2001.00138 (its arrays as a public packer has them): filters with
equally many kernels stand together, and within a filter kernels of one pattern, so that a loop over them has no
branches. No kernel stores which entries it has. Nothing in kernels/ reads this: blocks that those skip are kernels that
are zero whole.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from kerf.compress.training import checkpoint
from kerf.errors import BadInput


@dataclass(frozen=True, eq=False)
class FKW:
    """A weight (O, I, kh, kw) with n kernels that are not zero, P patterns of T entries. Integers are int32."""

    shape: Tensor  # (4,)
    patterns: Tensor  # (P, T): entries of a kernel, row by row
    reorder: Tensor  # (O,): which filter is the f-th to be executed
    offset: Tensor  # (O + 1,): how many kernels the filters before the f-th have
    index: Tensor  # (n,): input channel of each kernel
    stride: Tensor  # (O, P + 1): how many kernels of the f-th filter have patterns before p
    weight: Tensor  # (n · T,): the entries of each kernel that are kept

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in astuple(self))


def supports(weight: Tensor) -> Tensor:
    """bool (P, kh·kw): which entries the kernels of (O, I, kh, kw) use, each way once; equally many in each.

    A way that is contained in another, as where a kept weight happens to be zero, is left out; one that is smaller than
    others and in none gets entries that it does not use.
    """
    used = (weight != 0).reshape(-1, weight[0, 0].numel())
    found = used[used.any(1)].int().unique(dim=0).flip(0).bool()
    inside = (found[:, None] <= found[None]).all(2).fill_diagonal_(False)
    found = found[~inside.any(1)]
    for way in found:
        way[(~way).nonzero()[: int(found.sum(1).max() - way.sum())]] = True
    return found.unique(dim=0).flip(0)


def pack(weight: Tensor, patterns: Tensor | None = None) -> FKW:
    """Of (O, I, kh, kw) and bool (P, kh·kw), by default what its kernels use, equally many entries each.

    Raises ValueError when the patterns have not, for a kernel that fits none and where no kernel is left.
    """
    filters, inputs = weight.shape[:2]
    kernels = weight.detach().cpu().reshape(filters, inputs, -1)
    patterns = supports(weight.detach().cpu()) if patterns is None else patterns.cpu()
    if not bool(kernels.any()):
        raise BadInput("every kernel is zero: there is nothing to store")
    taps = patterns.sum(1)
    if len(taps.unique()) > 1:
        raise BadInput(f"patterns of {sorted(set(taps.tolist()))} entries: expected equally many in each")
    entries = patterns.nonzero()[:, 1].view(len(patterns), -1)
    fits = ((kernels != 0)[:, :, None] <= patterns).all(3)  # (O, I, P)
    kept = (kernels != 0).any(2)
    if bool((odd := kept & ~fits.any(2)).any()):
        f, c = odd.nonzero()[0].tolist()
        raise BadInput(f"the kernel of filter {f} at input {c} fits none of {len(patterns)} patterns; prune by pconv")
    chosen = torch.where(kept, fits.int().sort(dim=2, descending=True, stable=True).indices[..., :1].sum(2), -1)
    runs = torch.stack([(chosen == p).sum(1) for p in range(len(patterns))], 1)  # (O, P)
    table, numbers = runs.tolist(), chosen.tolist()
    # fewer kernels first, then alike in their patterns; of equals the first
    order = sorted(range(filters), key=lambda f: (sum(table[f]), table[f]))
    index = [c for f in order for c in sorted(range(inputs), key=numbers[f].__getitem__) if numbers[f][c] >= 0]
    where = [f for f in order for _ in range(sum(table[f]))]
    stride = torch.nn.functional.pad(runs[order].cumsum(1), (1, 0))
    values = kernels[where, index].gather(1, entries[chosen[where, index]])
    return FKW(
        torch.tensor(weight.shape, dtype=torch.int32),
        entries.int(),
        torch.tensor(order, dtype=torch.int32),
        torch.nn.functional.pad(stride[:, -1].cumsum(0), (1, 0)).int(),
        torch.tensor(index, dtype=torch.int32),
        stride.int(),
        values.flatten(),
    )


def unpack(packed: FKW) -> Tensor:
    """The weight (O, I, kh, kw): the values that were stored, and +0 elsewhere."""
    filters, inputs, *kernel = packed.shape.tolist()
    weight = packed.weight.new_zeros(filters, inputs, kernel[0] * kernel[1])
    counts = packed.stride.long().diff(dim=1)  # (O, P)
    pattern = torch.arange(counts.shape[1]).repeat(filters).repeat_interleave(counts.flatten())
    owner = packed.reorder.long().repeat_interleave(counts.sum(1))
    entries = packed.patterns.long()[pattern]
    weight[owner[:, None], packed.index.long()[:, None], entries] = packed.weight.view(entries.shape)
    return weight.view(filters, inputs, *kernel)


def save(path: Path, layers: Mapping[str, FKW]) -> None:
    """One safetensors file, written whole or not at all."""
    checkpoint.save(path, {f"{name}.{f.name}": getattr(p, f.name) for name, p in layers.items() for f in fields(p)})


def load(path: Path) -> dict[str, FKW]:
    """Raises FileNotFoundError, or ValueError for a file that does not hold such layers whole."""
    tensors, _ = checkpoint.load(path)
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    wanted = [f.name for f in fields(FKW)]
    if missing := next((f"{n}.{w}" for n in names for w in wanted if f"{n}.{w}" not in tensors), None):
        raise BadInput(f"{path} has no {missing}: expected layers in FKW, as scripts/pack_patterns.py writes them")
    return {name: FKW(*(tensors[f"{name}.{w}"] for w in wanted)) for name in names}


def row_loads(entries: Tensor, width: int, outputs: int) -> tuple[int, int]:
    """Input rows that one kernel, used at these entries, reads for so many output rows: each anew, and each once."""
    rows = {int(e) // width for e in entries}
    return len(rows) * outputs, len({row + output for row in rows for output in range(outputs)})
