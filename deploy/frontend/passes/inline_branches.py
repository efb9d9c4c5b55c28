"""The branch that always runs.

Given: If with a constant condition.
Result: the nodes of that branch, with names that nothing else has.
"""

from __future__ import annotations

import onnx
from onnx import helper

from kerf.deploy.frontend.onnx_graph import STANDARD, Graph, array_of, attributes
from kerf.deploy.frontend.passes.drop_identities import rename


def inline_branches(graph: Graph) -> bool:
    """In place; whether there was one. A branch inside a branch is found when it is called again."""
    taken = {name for node in graph.nodes for name in node.output} | set(graph.constants)
    taken |= {value.name for value in graph.inputs}
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in graph.nodes:
        condition = graph.constants.get(node.input[0]) if node.op_type == "If" and node.domain in STANDARD else None
        if condition is None:
            nodes.append(node)
            continue
        branch = attributes(node)["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
        nodes += _inlined(graph, node, branch, taken)
        found = True
    if found:
        graph.set_nodes(nodes)
    return found


def _inlined(graph: Graph, node: onnx.NodeProto, branch: onnx.GraphProto, taken: set[str]) -> list[onnx.NodeProto]:
    inside = [t.name for t in branch.initializer] + [name for n in branch.node for name in n.output if name]
    names = {}
    for name in inside:
        new = name
        while new in taken:
            new = f"{node.output[0]}/{new}"
        names[name] = new
        taken.add(new)
    for tensor in branch.initializer:
        graph.note(names[tensor.name], array_of(tensor))
    nodes = []
    for within in branch.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(within)
        rename(copy, names)
        nodes.append(copy)
    for result, value in zip(node.output, branch.output):
        if result:
            nodes.append(helper.make_node("Identity", [names.get(value.name, value.name)], [result]))
    return nodes
