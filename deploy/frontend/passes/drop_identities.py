"""What computes nothing, and what nobody reads.

Given: Identity, Dropout out of training, Cast to the type that a tensor has; nodes without a reader.
Result: the tensor itself in their place, under the name of an output of the graph where it is one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, attributes, subgraphs


def drop_identities(graph: Graph) -> bool:
    """In place; whether anything was found."""
    names: dict[str, str] = {}  # of a tensor that goes -> of the one that takes its place
    ends = {o.name for o in graph.outputs}
    gone: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if not _passes_on(graph, node, ends):
            continue
        source, result = names.get(node.input[0], node.input[0]), node.output[0]
        if result not in ends:
            names[result] = source
        elif source in graph.constants:
            graph.note(result, graph.constants[source])
        elif graph.producer(source) is not None and source not in ends:
            names = {old: result if new == source else new for old, new in names.items()} | {source: result}
        else:
            continue  # an input that is also an output, or two outputs of one value
        gone.append(node)
    if gone:
        graph.remove(gone)
        for node in graph.nodes:
            rename(node, names)
        graph.set_nodes(graph.nodes)
    return bool(gone)


def _passes_on(graph: Graph, node: onnx.NodeProto, ends: set[str]) -> bool:
    if node.domain not in STANDARD:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Cast":
        return graph.types.get(node.input[0]) == attributes(node)["to"]
    if node.op_type != "Dropout" or any(graph.consumers(mask) or mask in ends for mask in node.output[1:]):
        return False
    training = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.False_
    return training is not None and not np.any(training)


def rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """What the node reads and makes, in its branches and loop bodies too."""
    for side in (node.input, node.output):
        for place, name in enumerate(side):
            if name in names:
                side[place] = names[name]
    for inner in subgraphs(node):
        for value in inner.output:
            value.name = names.get(value.name, value.name)
        for within in inner.node:
            rename(within, names)


def drop_unread(graph: Graph) -> bool:
    """In place: nodes whose results nobody needs; whether there were some."""
    ends, found = {o.name for o in graph.outputs}, False
    for node in reversed(graph.nodes):
        if not any(name in ends or graph.is_read(name) for name in node.output):
            graph.remove([node])
            found = True
    return found
