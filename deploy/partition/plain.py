"""A whole network as one piece of a dense engine."""

from __future__ import annotations

from dataclasses import replace

from kerf.deploy.frontend.network import Network, Piece


def plain(network: Network, engine: str) -> Network:
    """The same network, run by ``engine`` alone."""
    ends = [tuple(v.name for v in values) for values in (network.inputs, network.outputs)]
    return replace(network, pieces=(Piece(engine, tuple(network.graph.nodes), *ends),))
