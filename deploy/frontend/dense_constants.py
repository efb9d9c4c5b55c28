"""Sparse constants and Constant nodes as the dense constants of a graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kerf.deploy.frontend.onnx_graph import STANDARD


def densify(graph: onnx.GraphProto) -> None:
    """In place: sparse constants as dense ones, Constant nodes of the graph as its constants."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(dense(sparse, sparse.values.name))
    del graph.sparse_initializer[:]
    if not any(node.op_type == "Constant" for node in graph.node):
        return
    others = onnx.GraphProto()  # the nodes are the graph's own: this holds copies while it is emptied
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD:
            graph.initializer.append(constant(node))
        else:
            others.node.append(node)
    del graph.node[:]
    graph.node.extend(others.node)


def dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """Indices are places in the flattened tensor, or a row of coordinates for each value."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    places = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), array.shape)
    array.reshape(-1)[places] = values
    return numpy_helper.from_array(array, name)


def constant(node: onnx.NodeProto) -> onnx.TensorProto:
    """The tensor of a Constant node, in any of its forms."""
    (attribute,), name = node.attribute, node.output[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "sparse_value":
        return dense(value, name)
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = name
        return tensor
    if attribute.name.startswith("value_string"):
        strings, shape = ([value], []) if isinstance(value, bytes) else (list(value), [len(value)])
        return helper.make_tensor(name, onnx.TensorProto.STRING, shape, strings)
    return numpy_helper.from_array(np.asarray(value, np.float32 if "float" in attribute.name else np.int64), name)
