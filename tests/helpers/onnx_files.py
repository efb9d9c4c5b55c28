"""Files written node by node, and the comparison of what ONNX Runtime computes of them before and after cleaning."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from kerf.deploy.frontend import clean

F = TensorProto.FLOAT
IMAGE = ("batch", 3, 16, 16)


def node(op, inputs, output, **attributes):
    outputs = output.split()
    return helper.make_node(op, inputs.split(" ") if inputs else [], outputs, f"{outputs[0]}.node", **attributes)


def file(path, nodes, constants, opset=17, shape=IMAGE, kind=F, outputs=("y",), **more):
    """A checked file with the input x; outputs have the types that inference finds, and no shapes."""
    stored = [
        a if isinstance(a, TensorProto) else numpy_helper.from_array(np.asarray(a), k) for k, a in constants.items()
    ]
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    ends = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, ends, stored, sparse_initializer=more.pop("sparse", None))
    more.setdefault("opset_imports", [helper.make_opsetid("", opset)])
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, ir_version=8, **more))
    del model.graph.value_info[:]
    for value in model.graph.output:
        kind = value.type.tensor_type.elem_type or F
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, None))
    onnx.save(model, str(path))
    return path


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def same(path, tolerance=1e-5, **sizes):
    """The cleaned model, after it was compared with the file."""
    model = clean.read(path, **sizes)
    if all(v.type.tensor_type.HasField("shape") for v in model.graph.output):  # else the checker refuses any file
        onnx.checker.check_model(model, full_check=True)
    before, after = session(str(path)), session(model)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
    assert [(i.name, i.type) for i in before.get_inputs()] == [(i.name, i.type) for i in after.get_inputs()]
    feeds = {
        i.name: (np.random.default_rng(1).standard_normal(i.shape) * 2).astype(kinds.get(i.type, np.int64))
        for i in after.get_inputs()
    }
    names = [o.name for o in before.get_outputs()]
    assert names == [o.name for o in after.get_outputs()]
    for name, a, b in zip(names, before.run(names, feeds), after.run(names, feeds)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), tolerance, tolerance, err_msg=name)
    return model


def ints(**values):
    return {k: np.array(v, np.int64) for k, v in values.items()}
