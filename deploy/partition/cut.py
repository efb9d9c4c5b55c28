"""A graph -> pieces that run one after the other, kerf's and another engine's by turns.

Given: which nodes kerf has functions for. Result: as few pieces as the order of execution allows: all nodes of one
engine that are ready are taken before the other engine's turn comes (list scheduling with two kinds of nodes). A piece
of kerf's has a layer at least: a lone pooling between two pieces of ONNX Runtime would be two changes of engine for
nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import onnx

from kerf.deploy.frontend.network import DOMAIN, KERF, OP, Piece
from kerf.deploy.frontend.onnx_graph import Graph, reads

Takes = Callable[[onnx.NodeProto], bool]


def cut(graph: Graph, takes: Takes, other: str) -> tuple[Piece, ...]:
    """Pieces in order of execution. ``takes``: whether kerf has a function for a node; ``other``: who runs the rest."""
    ours = with_layers(graph, takes)
    while True:
        order = min((schedule(graph, ours, first) for first in (True, False)), key=len)
        found = pieces(graph, order, other)
        bare = {id(n) for p in found if p.engine == KERF and not any(map(is_layer, p.nodes)) for n in p.nodes}
        if not bare:
            return found
        ours = {i for i in ours if id(graph.nodes[i]) not in bare}


def with_layers(graph: Graph, takes: Takes) -> set[int]:
    """Numbers of nodes that kerf is to run: those it takes and that are connected with a layer through such nodes."""
    taken = [takes(node) for node in graph.nodes]
    root = list(range(len(graph.nodes)))  # disjoint sets of connected nodes

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    made = {t: i for i, node in enumerate(graph.nodes) for t in node.output}
    for i, node in enumerate(graph.nodes):
        for source in {made[t] for t in reads(node) if t in made}:
            if taken[i] and taken[source]:
                root[find(i)] = find(source)
    layered = {find(i) for i, node in enumerate(graph.nodes) if taken[i] and is_layer(node)}
    return {i for i in range(len(graph.nodes)) if taken[i] and find(i) in layered}


def is_layer(node: onnx.NodeProto) -> bool:
    return node.domain == DOMAIN and node.op_type == OP


def schedule(graph: Graph, ours: set[int], mine: bool) -> list[tuple[bool, list[int]]]:
    """(whether kerf's, numbers of nodes) per piece; the first, if it has any nodes, is kerf's if ``mine``."""
    made = {t: i for i, node in enumerate(graph.nodes) for t in node.output if t}
    waits = [{made[t] for t in reads(node) if t in made} for node in graph.nodes]
    readers: dict[int, list[int]] = defaultdict(list)
    for i, sources in enumerate(waits):
        for source in sources:
            readers[source].append(i)
    left = [len(sources) for sources in waits]
    ready = {kind: [i for i in range(len(left)) if not left[i] and (i in ours) == kind] for kind in (True, False)}
    found: list[tuple[bool, list[int]]] = []
    while ready[True] or ready[False]:
        done = []
        while ready[mine]:
            i = ready[mine].pop(0)
            done.append(i)
            for reader in readers[i]:
                left[reader] -= 1
                if not left[reader]:
                    ready[reader in ours].append(reader)
        if done:
            found.append((mine, done))
        mine = not mine
    return found


def pieces(graph: Graph, order: Iterable[tuple[bool, Sequence[int]]], other: str) -> tuple[Piece, ...]:
    """The pieces of these nodes, with the tensors that they exchange."""
    parts = [(KERF if mine else other, [graph.nodes[i] for i in numbers]) for mine, numbers in order]
    if given_out(graph) and all(engine == KERF for engine, _ in parts):
        parts.append((other, []))
    return exchanging(graph, parts)


def given_out(graph: Graph) -> set[str]:
    """Constants that are outputs: a dense engine hands them on."""
    return {o.name for o in graph.outputs if o.name in graph.constants}


def joined(graph: Graph, found: Sequence[Piece]) -> tuple[Piece, ...]:
    """Neighbours of one dense engine as one piece; kerf's pieces stay what they are, since they are compiled."""
    parts: list[tuple[str, list[onnx.NodeProto]]] = []
    for piece in found:
        if parts and parts[-1][0] == piece.engine != KERF:
            parts[-1][1].extend(piece.nodes)
        else:
            parts.append((piece.engine, list(piece.nodes)))
    return exchanging(graph, parts)


def exchanging(graph: Graph, parts: Sequence[tuple[str, Sequence[onnx.NodeProto]]]) -> tuple[Piece, ...]:
    """Pieces of these nodes, in order, each with the tensors that it has from others and those that others have from
    it.
    """
    numbers = {id(node): i for i, node in enumerate(graph.nodes)}
    wanted = {o.name for o in graph.outputs}  # by what comes later, or whoever runs the network
    constants, found = given_out(graph), []
    for engine, nodes in reversed(parts):
        nodes = sorted(nodes, key=lambda node: numbers[id(node)])  # the file's order is one of execution
        made = {t for node in nodes for t in node.output if t}
        if engine != KERF:
            made, constants = made | constants, set()
        read = set().union(*(reads(node) for node in nodes)) - made - set(graph.constants)
        found.append(Piece(engine, tuple(nodes), tuple(sorted(read)), tuple(sorted(made & wanted))))
        wanted |= read
    return tuple(reversed(found))
