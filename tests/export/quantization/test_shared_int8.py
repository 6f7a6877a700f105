"""Numbers and scales of a part of a weight, by hand, and what backends compute with them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from testkit.int8_kernels import optimised, precisions

from mtlc.export.quantization.execution import session
from mtlc.export.quantization.shared_int8 import SharedInt8
from mtlc.export.quantization.targets import TARGETS

WHOLE = np.array([[127, -12.6], [2.54, 1.27], [0, 0], [-6.35, 0.05]], np.float32)[..., None, None]
"""(4, 2, 1, 1): scales of 1, 0.02, any and 0.05 with 8 bits."""


def selected(form: str, factors: list[float]) -> onnx.ModelProto:
    """A convolution of rows 0, 1 and 3 and column 0 of `WHOLE` times `factors`, (N, 1, 4, 4) to (N, 3, 4, 4)."""
    tensors = {"whole": WHOLE, "f": np.array(factors, np.float32).reshape(-1, 1, 1, 1), "rows": np.array([0, 1, 3])}
    if form == "gather":
        nodes = [
            helper.make_node("Gather", ["whole", "rows"], ["some"], name="m/Gather_0"),
            helper.make_node("Gather", ["some", "columns"], ["part"], name="m/Gather_1", axis=1),
        ]
        tensors["columns"] = np.array([0])
    else:
        nodes = [
            helper.make_node("Slice", ["whole", "starts", "ends", "axes"], ["some"], name="m/Slice_0"),
            helper.make_node("Gather", ["some", "rows"], ["part"], name="m/Gather_1"),
        ]
        tensors |= {"starts": np.array([0]), "ends": np.array([1]), "axes": np.array([1])}
    nodes += [
        helper.make_node("Mul", ["part", "f"], ["w"], name="m/Mul_2"),
        helper.make_node("Conv", ["x", "w"], ["y"], name="m/Conv_3"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 4, 4]) for n, c in (("x", 1), ("y", 3))]
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def paired(original: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with pairs as a quantiser leaves them; numbers and scales of the weight are none of the whole's."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    graph = model.graph
    for name, array in (
        ("s", np.float32(0.02)), ("z", np.uint8(128)), ("os", np.float32(0.1)), ("oz", np.uint8(128)),
        ("q", np.ones((3, 1, 1, 1), np.int8)), ("ws", np.ones(3, np.float32)), ("wz", np.zeros(3, np.int8)),
    ):  # fmt: skip
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    (conv,) = graph.node
    conv.input[0], conv.input[1], conv.output[0] = "xd", "wd", "c"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q0"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="d0"),
        helper.make_node("DequantizeLinear", ["q", "ws", "wz"], ["wd"], name="d1", axis=0),
        conv,
        helper.make_node("QuantizeLinear", ["c", "os", "oz"], ["cq"], name="q2"),
        helper.make_node("DequantizeLinear", ["cq", "os", "oz"], ["y"], name="d2"),
    ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return model


@pytest.mark.parametrize("form", ["gather", "slice"])
def test_the_numbers_of_a_part_are_the_wholes_and_its_scales_take_the_factors(form, tmp_path):
    """By hand; a norm may turn a channel's sign, or switch it off."""
    model = selected(form, [0.5, -2.0, 0.0])
    shared = SharedInt8(TARGETS["arm"])
    shared.fold("f", model)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    quantized = paired(model)
    shared.round("f", model, quantized)
    stored = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    pair = next(node for node in quantized.graph.node if node.name == "d1")
    np.testing.assert_array_equal(stored[pair.input[0]].reshape(-1), [127, 127, -127])
    np.testing.assert_allclose(stored[pair.input[1]], [0.5, -0.04, 5e-8], rtol=1e-5)
    x = torch.linspace(-2, 2, 32).reshape(2, 1, 4, 4).numpy()
    expected = session(quantized, "reference", kernels=False).run(None, {"x": x})[0]
    assert np.abs(expected[:, 0] - 63.5 * x[:, 0]).max() > 1  # 63.5 is more than 0.1 * 255 / 2 can say
    np.testing.assert_allclose(expected[:, 1], np.clip(-5.08 * x[:, 0], -12.8, 12.7), atol=0.11)
    assert not expected[:, 2].any()
    kinds = optimised(quantized, tmp_path / "optimised.onnx")
    assert "QLinearConv" in kinds
    assert "Conv" not in kinds
    np.testing.assert_array_equal(session(quantized, "kernels").run(None, {"x": x})[0], expected)
    openvino = pytest.importorskip("openvino")
    onnx.save(quantized, tmp_path / "g.onnx")
    found = openvino.Core().compile_model(str(tmp_path / "g.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
    np.testing.assert_allclose(found, expected, atol=0.101)  # a step of the output
    assert precisions(tmp_path / "g.onnx") == ["u8"]
