"""What a compilation says while it runs, and the call that asks for the same again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from kerf.deploy.frontend import refusals
from kerf.deploy.frontend.network import KERF, Network
from kerf.deploy.plans.pieces import Weighed
from kerf.deploy.report import claims
from kerf.deploy.report.schema import Speedup
from kerf.kernels.bsr import kept_blocks
from kerf.tune.request import Request, bundle_of
from kerf.tune.search import Summary

NOISY = 0.1  # of a gain, between a search's measurement and the last


def call(request: Request) -> str:
    """kerf.compile(...) with what is not its default."""
    words = [repr(str(request.path))]
    if request.out != bundle_of(request.path, request.int8):
        words.append(repr(str(request.out)))
    for field in fields(request):
        value = getattr(request, field.name)
        if field.default is not MISSING and value != field.default:
            words.append(f"{field.name}={str(value) if isinstance(value, Path) else value!r}")
    return f"kerf.compile({', '.join(words)})"


def layers(network: Network, request: Request) -> str:
    """How many there are, how many go sparse, and how near they are if none does."""
    sparse = network.sparse_layers
    text = (
        f"{request.path}: {len(network.layers)} layers, {len(sparse)} with at least {request.sparsity:.0%} "
        f"zero blocks of {' or '.join(map(str, request.n))} rows"
    )
    if not sparse:
        found = [(v, n) for v in network.layers.values() for n in request.n if v.problem.holds_blocks(n)]
        share = max((1 - float(kept_blocks(v.weight, n).mean()) for v, n in found), default=0)
        text += f"\n  nothing goes sparse: the sparsest layer has {share:.0%} zero blocks; see --bsr and --sparsity"
    return "\n  ".join((text, *refusals.in_floats(network.layers)))


def searched(s: Summary) -> str:
    """What a search did, and where its time went."""
    seconds = s.seconds["total"]
    text = (
        f"tuned: {s.problems} distinct layers, {s.measured} measured, {s.reused} reused, {s.failed} failed, "
        f"{seconds:.0f} s; ended because of: {s.stopped}"
    )
    if s.failure:
        text += f"\n  {s.failure}"
    if s.measured:
        share = {part: spent / seconds for part, spent in s.seconds.items()}
        text += f"\n  compiling {share['build']:.0%}, measuring {share['measure']:.0%} of the time"
    if s.before_us < math.inf:
        text += f"\n  layers together: untuned {s.before_us / 1e3:.3f} ms, tuned {s.after_us / 1e3:.3f} ms"
    if s.drift:
        off = sorted(abs(ratio - 1) for ratio in s.drift)
        text += f"\n  winners over their defaults, measured again: off by {off[len(off) // 2]:.1%} (median), "
        text += f"{off[-1]:.1%} at most"
        if off[len(off) // 2] > NOISY:
            text += "; other programs kept the machine busy: the same command on an idle one chooses better"
    return text


def weighed(network: Network, found: Sequence[Weighed]) -> str:
    """What pieces a network has, and where its time goes."""
    total = sum(w.us[w.piece.engine] for w in found)
    own = {piece.key for piece in network.run_by if piece.engine == KERF}
    kerf = [w for w in found if w.piece.key in own]
    text = (
        f"{len(network.run_by)} pieces, {len(kerf)} of them kerf's with "
        f"{sum(len(w.piece.layers) for w in kerf)} layers: "
        f"{sum(w.us[KERF] for w in kerf) / total:.0%} of {total / 1e3:.2f} ms"
    )
    given_up = [w for w in found if w.piece.engine == KERF and w.piece.key not in own]
    if given_up:
        text += f"; {len(given_up)} left to a dense engine, which is faster there"
    rest = max((w for w in found if w.piece.key not in own), key=lambda w: w.us[w.piece.engine], default=None)
    if rest:
        most = Counter(node.op_type for node in rest.piece.nodes).most_common(3)
        said = ", ".join(f"{count} {operator}" for operator, count in most)
        text += f"\n  the longest of the others takes {rest.us[rest.piece.engine] / total:.0%}: {said or 'constants'}"
    return text


def lost(ratio: Speedup) -> str:
    """That a dense engine takes kerf's place."""
    engine = claims.ENGINES[ratio["against"].partition(" ")[0]]
    return (
        f"{engine} is faster as a whole ({ratio['median']:.2f}x its speed in kerf's pieces): the bundle runs the "
        f"network in {engine}; --engine kerf keeps kerf's pieces"
    )
