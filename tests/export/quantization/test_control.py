"""The arithmetic of limits, and which tensors go over in 8 bits."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtlc.export.quantization.bounds import SHARE, Bound, Reached
from mtlc.export.quantization.execution import needed, session
from mtlc.export.quantization.int8_edges import round_edges_in_maker
from mtlc.export.quantization.nncf_ranges import quantize_graph
from mtlc.export.quantization.operators import QuantizedGraph, compute_operators, deciders, unrounded
from mtlc.export.quantization.samples import stale_tensors
from mtlc.export.quantization.targets import TARGETS
from mtlc.runtime.bundle.manifest import Manifest, ProgramInfo, TaskInfo
from mtlc.tasks.task import Limit


def kept(bound: Bound, metric: float) -> bool:
    return bound.kept(Reached(metric))


def test_what_a_task_used_up():
    error = Bound(Limit(0.1, relative=True), 2.0, 2.0, higher_is_better=False)
    assert error.used(2.1) == pytest.approx(0.5)
    assert error.used(1.9) == pytest.approx(-0.5)
    assert (error.allows(2.2), error.allows(2.21)) == (True, False)
    assert (kept(error, 2.0 + 0.2 * SHARE - 1e-9), kept(error, 2.0 + 0.2 * SHARE + 1e-6)) == (True, False)
    score = Bound(Limit(4.0, relative=False), 80.0, 80.0, higher_is_better=True)
    assert score.used(78.0) == pytest.approx(0.5)
    assert score.used(math.nan) == math.inf
    assert not kept(score, math.nan)


def test_what_floating_point_used_up_already_is_not_asked_back():
    bound = Bound(Limit(10.0, relative=False), 100.0, 92.0, higher_is_better=True)  # 8 of 10 are gone
    assert bound.used(92.0) == pytest.approx(0.8)
    assert kept(bound, 92.0 - 2 * SHARE + 1e-6)
    assert not kept(bound, 92.0 - 2 * SHARE - 1e-6)


def test_a_limit_of_nothing():
    bound = Bound(Limit(0.0, relative=False), 5.0, 5.0, higher_is_better=True)
    assert kept(bound, 5.0)
    assert kept(bound, 5.5)
    assert not kept(bound, 4.99)


def test_a_choice_is_followed_back_to_the_products_before_it():
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="body"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], name="router"),
        helper.make_node("Add", ["b", "c"], ["d"], name="bias"),
        helper.make_node("TopK", ["d", "k"], ["v", "i"], name="choice"),
        helper.make_node("MatMul", ["a", "w2"], ["e"], name="expert"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert deciders(model) == {"router", "bias"}


def test_what_follows_a_results_last_product_is_not_rounded():
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Add", ["a", "x"], ["b"], name="residual"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="last"),
        helper.make_node("Resize", ["c", "", "s"], ["y"], name="upsample"),
        helper.make_node("Resize", ["a", "", "s"], ["f"], name="features"),
    ]
    edges = [helper.make_empty_tensor_value_info(name) for name in ("y", "f")]
    model = helper.make_model(helper.make_graph(nodes, "g", [], edges))
    assert unrounded(model, {"y"}) == {"upsample"}
    assert unrounded(model, {"y", "f"}) == {"upsample", "features"}
    nodes.insert(0, helper.make_node("LayerNormalization", ["z"], ["x"], name="norm"))
    transformer = helper.make_model(helper.make_graph(nodes, "g", [], edges))
    assert unrounded(transformer, {"y"}) == {"upsample", "residual"}


def test_an_operator_that_reads_a_shape_does_not_compute_in_int8():
    """image ── Conv ── result, and the batch size out of the rounded image, as a transformer's class token needs it."""
    generator = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(generator.standard_normal((4, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(generator.standard_normal((1, 5)).astype(np.float32), "token"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], name="/Shape_0", start=0, end=1),
        helper.make_node("Concat", ["n", "one"], ["size"], name="size", axis=0),
        helper.make_node("Expand", ["token", "size"], ["tokens"], name="tokens"),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6]),
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["n", 5]),
        ],
        stored,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    samples = [{"x": generator.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    graph = QuantizedGraph(model, quantize_graph(copy, "g", samples, TARGETS["x86"], ()))
    assert graph.operators == ("conv",) == compute_operators(graph.quantized)
    reads = {node.name: node.input[0] for node in graph.quantized.graph.node}
    assert reads["/Shape_0"] != "x"  # NNCF lets it read the rounded image
    assert [node.op_type for node in graph.restored({"conv"}).graph.node] == ["Shape", "Concat", "Expand", "Conv"]


PROGRAMS = (
    ProgramInfo("trunk", "t.onnx", ("x",), ("f",), ("one", "two")),
    ProgramInfo("head-one", "1.onnx", ("f",), ("y1",), ("one",)),
    ProgramInfo("head-two", "2.onnx", ("f",), ("y2",), ("two",)),
)


def manifest() -> Manifest:
    tasks = {name: TaskInfo(name, f"y{i}", ("batch", 4), "float32") for i, name in enumerate(("one", "two"), 1)}
    return Manifest(tasks, (), PROGRAMS, {})


def test_only_what_a_change_touches_is_computed_again():
    assert stale_tensors(PROGRAMS, ["1.onnx"]) == {"y1"}
    assert stale_tensors(PROGRAMS, ["t.onnx"]) == {"f", "y1", "y2"}
    assert [p.name for p in needed(PROGRAMS, ["y1"], ["x", "f", "y2"])] == ["head-one"]
    assert [p.name for p in needed(PROGRAMS, ["y1", "y2"], ["x"])] == ["trunk", "head-one", "head-two"]
    assert needed(PROGRAMS, ["y1"], ["x", "y1"]) == []


def graph(nodes: list[onnx.NodeProto], source: str, target: str, scale: float) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.float32(scale), "s"), numpy_helper.from_array(np.uint8(3), "z")]
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in (source, target)]
    made = helper.make_graph(nodes, "g", edges[:1], edges[1:], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def head(target: str, scale: float) -> onnx.ModelProto:
    return graph(
        [
            helper.make_node("QuantizeLinear", ["f", "s", "z"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
            helper.make_node("Neg", ["d"], [target], name="neg"),
        ],
        "f", target, scale,
    )  # fmt: skip


@pytest.mark.parametrize(("scales", "handed"), [((0.02, 0.02), ["f"]), ((0.02, 0.03), [])])
def test_a_tensor_goes_over_in_eight_bits_where_all_readers_round_it_alike(scales, handed):
    trunk = graph([helper.make_node("Relu", ["x"], ["f"], name="relu")], "x", "f", 1.0)
    models = {"t.onnx": trunk, "1.onnx": head("y1", scales[0]), "2.onnx": head("y2", scales[1])}
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)

    def run() -> list[np.ndarray]:
        (features,) = session(models["t.onnx"], "t").run(None, {"x": x})
        return [features, *(session(models[f], f).run(None, {"f": features})[0] for f in ("1.onnx", "2.onnx"))]

    before = run()
    assert round_edges_in_maker(manifest(), models) == handed
    after = run()
    assert after[0].dtype == (np.uint8 if handed else np.float32)
    for one, other in zip(before[1:], after[1:], strict=True):
        np.testing.assert_array_equal(one, other)
