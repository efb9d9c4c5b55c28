"""A whole network as one piece of a dense engine."""

from __future__ import annotations

from dataclasses import replace

from kerf.deploy.frontend import clean, qdq
from kerf.deploy.frontend.network import Network, Piece


def plain(network: Network, engine: str) -> Network:
    """The same network, run by ``engine`` alone. A quantised one as its file has it, but cleaned: engines look for Q/DQ
    around their operators, where kerf moves and folds them for its own. So is one with transposed convolutions.
    """
    graph = network.graph
    if qdq.is_quantised(graph.original) or graph.is_rewritten:
        known = {v.name: [size for size in v.shape if size is not None] for v in network.inputs if v.shape}
        shapes = {v.name: known[v.name] for v in network.inputs if v.shape and None not in v.shape}
        batch = next((v.shape[0] for v in network.inputs if v.shape), None)
        graph = clean.read_graph(network.path, shapes, batch)
    return in_one_piece(replace(network, graph=graph), engine)


def in_one_piece(network: Network, engine: str) -> Network:
    """All of its nodes, as kerf's passes left them, run by ``engine``."""
    ends = [tuple(v.name for v in values) for values in (network.inputs, network.outputs)]
    return replace(network, pieces=(Piece(engine, tuple(network.graph.nodes), *ends),))
