"""The float16 and the symmetric int8 form of a graph: what is changed, what stays, and the numbers, in onnxruntime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from testkit import tiny_networks
from testkit.quantised_graphs import quantise

from mtlc.errors import UserError
from mtlc.export import export_bundle
from mtlc.export.tensorrt.fp16 import HalfModel, to_half
from mtlc.export.tensorrt.int8 import is_quantised, to_symmetric


def run(model: ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    # As the graph says: fused integer kernels round otherwise, and saturate on some processors.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def graph(nodes: list[onnx.NodeProto], shape: tuple[int, ...] = (2, 4), **weights: np.ndarray) -> ModelProto:
    """A graph from x to y, float32, of nodes with these weights."""
    for place, node in enumerate(nodes):
        node.name = node.name or f"m/{node.op_type}_{place}"
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def types(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    return values | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def reasons(half: HalfModel) -> dict[str, str]:
    return {kept.operator: kept.reason for kept in half.kept}


X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)


def test_products_compute_in_float16_and_the_interface_is_float32() -> None:
    model = graph([node("MatMul", "x w", "t"), node("Relu", "t", "y")], w=W)
    before = model.SerializeToString()
    half = to_half(model)
    assert model.SerializeToString() == before
    assert half.kept == ()
    assert [n.op_type for n in half.model.graph.node] == ["Cast", "MatMul", "Relu", "Cast"]
    found = types(half.model)
    assert (found["x"], found["y"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert found["w.fp16"] == found["t.fp16"] == TensorProto.FLOAT16
    assert "w" not in found
    onnx.checker.check_model(half.model, full_check=True)
    exact = np.maximum(X.astype(np.float16) @ W.astype(np.float16), 0)
    np.testing.assert_allclose(run(half.model, x=X)[0], exact, atol=4e-3)


@pytest.mark.parametrize(
    ("operator", "weights", "reason"),
    [
        ("Softmax", {}, "exponentials and powers"),
        ("Exp", {}, "exponentials and powers"),
        ("Div", {"w": W[0]}, "a quotient or a root"),
        ("ReduceSum", {"w": np.array([1])}, "a sum"),
        ("LayerNormalization", {"w": W[0]}, "mean and variance"),
    ],
)
def test_operators_that_stay(operator: str, weights: dict[str, np.ndarray], reason: str) -> None:
    model = graph(
        [node("Relu", "x", "t"), node(operator, " ".join(["t", *weights]), "u"), node("Relu", "u", "y")], **weights
    )
    half = to_half(model)
    assert reasons(half) == {operator: reason}
    found = types(half.model)
    assert (found["t.fp16"], found["t"], found["u"]) == (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT)
    np.testing.assert_allclose(run(half.model, x=X)[0], run(model, x=X)[0], rtol=3e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("constant", "reason"),
    [
        (np.float32(-3e38), "its constant 'w' has values up to 3e+38, above 65504"),
        (np.float32(65505 * 2), "its constant 'w' has values up to 1.31e+05, above 65504"),
        (np.float32(1e-12), "its constant 'w' changes by 1e+02 % in float16"),
        (np.full(4, 3e-8, np.float32), "its constant 'w' changes by 99 % in float16"),
    ],
)
def test_constants_that_float16_cannot_hold_stay_and_so_does_what_reads_them(constant: np.ndarray, reason: str) -> None:
    model = graph([node("Max", "x w", "y")], w=constant)
    half = to_half(model)
    assert reasons(half) == {"Max": reason}
    assert types(half.model)["w"] == TensorProto.FLOAT
    np.testing.assert_array_equal(run(half.model, x=X)[0], np.maximum(X, constant))


def test_constants_that_float16_holds_go() -> None:
    assert to_half(graph([node("Max", "x w", "y")], w=np.float32(65504))).kept == ()
    assert to_half(graph([node("Add", "x w", "y")], w=np.array([1e-12, 1, 1, 1], np.float32))).kept == ()


def test_a_router_stays_from_the_product_that_makes_the_scores() -> None:
    """x ─ Relu ─ MatMul (a) ─ LayerNormalization ─ Reshape ─┬─ MatMul (router) ─ Add ─ TopK → values
    └─ MatMul (b)
    Scores that differ by 1e-4 are told apart: the token is not rounded on its way from the norm to the router.
    """
    nodes = [
        node("MatMul", "x a", "h", name="m/a"),
        node("LayerNormalization", "h scale", "n", name="m/norm"),
        node("Reshape", "n form", "r", name="m/reshape"),
        node("MatMul", "r router", "s", name="m/router"),
        node("Add", "s noise", "t", name="m/add"),
        helper.make_node("TopK", ["t", "one"], ["v", "i"], name="m/top"),
        node("MatMul", "r b", "u", name="m/b"),
        node("Add", "u v", "y", name="m/end"),
    ]
    weights = {
        "a": W, "scale": np.ones(4, np.float32), "form": np.array([2, 4]), "router": W, "noise": W[0],
        "one": np.array([1]), "b": W,
    }  # fmt: skip
    half = to_half(graph(nodes, **weights))
    assert {kept.node: kept.reason for kept in half.kept} == {
        "m/norm": "mean and variance",
        "m/reshape": "it moves what two nodes in float32 hand over",
        "m/router": "it makes the scores that 'm/top' chooses by",
        "m/add": "it makes the scores that 'm/top' chooses by",
        "m/top": "a choice",
    }
    found = types(half.model)
    assert found["r"] == found["s"] == found["t"] == TensorProto.FLOAT
    assert found["h.fp16"] == found["u.fp16"] == TensorProto.FLOAT16
    assert found["i"] == TensorProto.INT64


def test_the_scales_of_a_resize_and_indices_are_not_touched() -> None:
    nodes = [
        node("Resize", "x  scales".replace("  ", " none "), "t", mode="nearest"),
        node("Gather", "t places", "y", axis=0),
    ]
    nodes[0].input[1] = ""
    half = to_half(graph(nodes, scales=np.array([1, 2], np.float32), places=np.array([1])))
    found = types(half.model)
    assert (found["scales"], found["places"]) == (TensorProto.FLOAT, TensorProto.INT64)
    assert half.kept == ()


def test_a_tensor_that_both_read_is_there_in_both_types() -> None:
    model = graph([node("MatMul", "x w", "t"), node("Exp", "w", "e"), node("MatMul", "t e", "y")], w=W)
    half = to_half(model)
    names = {tensor.name: tensor.data_type for tensor in half.model.graph.initializer}
    assert names == {"w": TensorProto.FLOAT, "w.fp16": TensorProto.FLOAT16}
    assert error(run(half.model, x=X)[0], run(model, x=X)[0]) < 5e-3


def test_names_that_are_taken_are_not_given_twice() -> None:
    model = graph([node("Relu", "x", "x.fp16"), node("Neg", "x.fp16", "y")])
    np.testing.assert_allclose(run(to_half(model).model, x=X)[0], -np.maximum(X, 0), rtol=1e-3)


def test_graphs_that_are_refused_as_float16() -> None:
    with pytest.raises(UserError, match="m/QuantizeLinear_0: the graph is quantised already"):
        to_half(graph([node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "y")], s=np.float32(1)))
    inner = helper.make_graph([], "i", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 4))])
    branch = node("If", "c", "t", then_branch=inner, else_branch=inner)
    with pytest.raises(UserError, match="m/If_0: If has graphs inside it"):
        to_half(graph([branch, node("Add", "x t", "y")], c=np.array(True), w=W))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A CNN and a mixture of experts, each as one graph."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, program in (("cnn", tiny_networks.resnet_program()), ("moe", tiny_networks.moe_program())):
        size = program.example["image"].shape[-1]
        samples = {"image": tiny_networks.images(5, size, 0)}
        export_bundle(program, folder / name, samples=samples, fuse=True, experts="masked", batch=[1, 1, 4])
    return {name: folder / name / "00-network.onnx" for name in ("cnn", "moe")}


@pytest.mark.parametrize(("name", "size"), [("cnn", 32), ("moe", 16)])
def test_networks_in_float16_agree_within_a_percent(networks: dict[str, Path], name: str, size: int) -> None:
    model = onnx.load(networks[name])
    half = to_half(model)
    onnx.checker.check_model(half.model, full_check=True)
    assert [v.SerializeToString() for v in half.model.graph.input] == [v.SerializeToString() for v in model.graph.input]
    image = tiny_networks.images(4, size, 7).numpy()
    for found, exact in zip(run(half.model, image=image), run(model, image=image), strict=True):
        assert found.dtype == np.float32
        assert 0 < error(found, exact) < 1e-2
    halves = [t for t in half.model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert sum(np.prod(t.dims) for t in halves) > 0.9 * sum(np.prod(t.dims) for t in model.graph.initializer)
    counts = Counter(kept.operator for kept in half.kept)
    assert (counts["TopK"], counts["Softmax"]) == ((0, 0) if name == "cnn" else (2, 6))


def quantised(zero: np.ndarray | None, scale: float = 0.1, before: str = "") -> ModelProto:
    """x (─ before) ─ Q ─ DQ → y with that zero point."""
    nodes = [node(before, "x", "b")] if before else []
    tail = "s" if zero is None else "s z"
    nodes += [
        node("QuantizeLinear", f"{'b' if before else 'x'} {tail}", "q"),
        node("DequantizeLinear", f"q {tail}", "y"),
    ]
    return graph(nodes, s=np.float32(scale), **({} if zero is None else {"z": zero}))


GRID = np.linspace(-40, 40, 8001, dtype=np.float32).reshape(1, -1)


def test_symmetric_int8_stays_bit_for_bit() -> None:
    model = quantised(np.int8(0))
    np.testing.assert_array_equal(run(to_symmetric(model), x=X)[0], run(model, x=X)[0])


def test_uint8_with_128_is_int8_with_the_same_numbers() -> None:
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    model = graph(nodes, (1, 8001), s=np.float32(0.1), z=np.uint8(128))
    made = to_symmetric(model)
    assert {t.data_type for t in made.graph.initializer} == {TensorProto.FLOAT, TensorProto.INT8}
    np.testing.assert_array_equal(run(made, x=GRID)[0], run(model, x=GRID)[0])


@pytest.mark.parametrize("zero", [np.uint8(0), None])
def test_uint8_from_zero_keeps_its_range_and_halves_its_steps(zero: np.ndarray | None) -> None:
    """Within a step of s in 0 … 255·s, where uint8 was within s/2; below zero and above the range as before."""
    model = quantised(zero)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = GRID.size
    made = to_symmetric(model)
    onnx.checker.check_model(made, full_check=True)
    exact = np.clip(GRID, 0, 25.5)
    before, after = (np.abs(run(m, x=GRID)[0] - exact).max() / 0.1 for m in (model, made))
    assert before == pytest.approx(0.5, abs=0.01)
    assert 0.9 < after < 1.01
    assert [n.op_type for n in made.graph.node] == ["Relu", "QuantizeLinear", "DequantizeLinear"]
    assert run(made, x=GRID)[0].min() == 0


def test_no_second_relu_behind_a_relu() -> None:
    made = to_symmetric(quantised(np.uint8(0), before="Relu"))
    assert [n.op_type for n in made.graph.node] == ["Relu", "QuantizeLinear", "DequantizeLinear"]


def test_int32_biases_become_float_per_channel() -> None:
    bias, scale = np.array([100, -7, 3, 0], np.int32), np.array([0.5, 1.0, 2.0, 4.0], np.float32)
    model = graph(
        [node("DequantizeLinear", "b bs bz", "bias", axis=0), node("Add", "x bias", "t"),
         *(n for n in quantised(np.int8(0)).graph.node)],
        b=bias, bs=scale, bz=np.zeros(4, np.int32), s=np.float32(0.1), z=np.int8(0),
    )  # fmt: skip
    model.graph.node[2].input[0] = "t"
    made = to_symmetric(model)
    assert [n.op_type for n in made.graph.node] == ["Add", "QuantizeLinear", "DequantizeLinear"]
    folded = next(t for t in made.graph.initializer if t.name == "bias")
    np.testing.assert_array_equal(numpy_helper.to_array(folded), bias * scale)
    assert {t.name for t in made.graph.initializer} == {"bias", "s", "z"}
    np.testing.assert_array_equal(run(made, x=X)[0], run(model, x=X)[0])


def test_uint8_weights_with_128_move_to_int8() -> None:
    weight = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)
    model = graph(
        [node("DequantizeLinear", "w ws wz", "f", axis=1), node("MatMul", "x f", "y")],
        w=weight, ws=np.full(4, 0.02, np.float32), wz=np.full(4, 128, np.uint8),
    )  # fmt: skip
    made = to_symmetric(model)
    moved = next(t for t in made.graph.initializer if t.name == "w.symmetric")
    np.testing.assert_array_equal(numpy_helper.to_array(moved), weight.astype(int) - 128)
    np.testing.assert_array_equal(run(made, x=X)[0], run(model, x=X)[0])


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        (np.uint8(112), "m/QuantizeLinear_0: uint8 with zero point 112 is not symmetric int8"),
        (np.int8(-128), "m/QuantizeLinear_0: int8 with zero point -128 is not symmetric int8"),
        (np.int16(0), "m/QuantizeLinear_0: int16 with zero point 0 is not symmetric int8"),
    ],
)
def test_what_int8_cannot_stand_for_is_refused_by_name(zero: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_symmetric(quantised(zero))


def test_a_dq_without_a_zero_point_reads_what_its_q_wrote() -> None:
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s", "y")]
    model = graph(nodes, s=np.float32(0.1), z=np.int8(0))
    made = to_symmetric(model)
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(run(made, x=X)[0], run(model, x=X)[0])
    moved = [node("QuantizeLinear", "x s z", "q"), node("Identity", "q", "i"), node("DequantizeLinear", "i s", "y")]
    with pytest.raises(UserError, match="m/DequantizeLinear_2: no zero point says which type it reads"):
        to_symmetric(graph(moved, s=np.float32(0.1), z=np.int8(0)))


def test_contrib_quantisation_is_refused() -> None:
    model = quantised(np.int8(0))
    model.graph.node[0].domain = "com.microsoft"
    with pytest.raises(UserError, match=r"QuantizeLinear is com.microsoft's, TensorRT takes ONNX's own"):
        to_symmetric(model)


def test_a_scale_that_is_computed_is_refused() -> None:
    largest = node("ReduceMax", "x", "s", keepdims=0)
    model = graph([largest, node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "y")])
    with pytest.raises(UserError, match="m/QuantizeLinear_1: its scale is not a constant"):
        to_symmetric(model)


def test_a_network_quantised_symmetrically_changes_only_in_its_biases(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    feeds = [{"image": tiny_networks.images(1, 32, seed).numpy()} for seed in range(4)]
    model = quantise(networks["cnn"], tmp_path / "q.onnx", feeds)
    made = to_symmetric(model)
    onnx.checker.check_model(made, full_check=True)
    assert is_quantised(made)
    assert TensorProto.INT32 in {t.data_type for t in model.graph.initializer}
    assert TensorProto.INT32 not in {t.data_type for t in made.graph.initializer}
    image = tiny_networks.images(4, 32, 7).numpy()
    for found, exact in zip(run(made, image=image), run(model, image=image), strict=True):
        assert error(found, exact) < 1e-5


def test_a_network_whose_relus_became_uint8(networks: dict[str, Path], tmp_path: Path) -> None:
    """onnxruntime drops a Relu where uint8 cuts off below zero: the symmetric form must bring it back."""
    nncf = pytest.importorskip("nncf")
    model = onnx.load(networks["cnn"])
    data = nncf.Dataset([{"image": tiny_networks.images(1, 32, seed).numpy()} for seed in range(4)])
    quantised = nncf.quantize(model, data, fast_bias_correction=True)
    kinds = {t.data_type for t in quantised.graph.initializer}
    assert TensorProto.UINT8 in kinds
    made = to_symmetric(quantised)
    onnx.checker.check_model(made, full_check=True)
    assert TensorProto.UINT8 not in {t.data_type for t in made.graph.initializer}
    image = tiny_networks.images(4, 32, 7).numpy()
    exact = run(model, image=image)
    losses = []
    for one in (quantised, made):
        losses.append(
            [float(np.abs(a - b).mean() / np.abs(b).mean()) for a, b in zip(run(one, image=image), exact, strict=True)]
        )
    assert max(losses[1]) < 2 * max(losses[0])  # half the steps: at most twice the error
    assert torch.tensor(losses).max() < 0.2
