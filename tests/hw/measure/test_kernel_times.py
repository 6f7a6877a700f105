"""Names of backends' kernels joined to the nodes that were exported, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from mtlc.errors import Unavailable, UserError
from mtlc.hw.measure.kernel_times import ExportedNodes, KernelTime, onnxruntime_times, openvino_times, read_kernel_times
from mtlc.hw.measure.layer_profile import summed


def node(operator: str, name: str, inputs: list[str], output: str, path: str) -> onnx.NodeProto:
    made = helper.make_node(operator, inputs, [output], name=name)
    made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(["", path, name]))
    return made


# x ──► fc/MatMul ──► fc/Add ──► relu ──► y       the Linear `fc` and the root's ReLU
NODES = [
    node("MatMul", "fc/MatMul_0", ["x", "w"], "m", "fc"),
    node("Add", "fc/Add_1", ["m", "b"], "a", "fc.bias"),
    node("Relu", "Relu_2", ["a"], "y", "network"),
]


@pytest.fixture
def nodes() -> ExportedNodes:
    return ExportedNodes(helper.make_model(helper.make_graph(NODES, "g", [], [])))


@pytest.mark.parametrize(
    ("names", "operator", "found"),
    [
        (["fc/MatMul_0"], "MatMul", ("fc", "MatMul")),
        (["fc/MatMul_0/MatMulAddFusion"], "FusedGemm", ("fc", "MatMul")),
        (["a"], "Add", ("fc.bias", "Add")),
        (["fc/Add_1"], "FullyConnected", ("fc", "MatMul")),
        (["Relu_2"], "FullyConnected", ("fc", "MatMul")),
        (["Relu_2", "fc/MatMul_0"], "Subgraph", ("fc", "MatMul")),
        (["Relu_2"], "Relu", ("", "Relu")),
        (["x_abcd_acdb"], "Reorder", (None, "Reorder")),
    ],
)
def test_the_node_behind_a_kernel(nodes: ExportedNodes, names: list[str], operator: str, found: tuple) -> None:
    assert nodes.find(names, operator) == found


RECORDED = {
    "calls": [
        [["fc/Add_1", "FullyConnected", "gemm_f32", 999.0]],  # the warm-up
        [["fc/Add_1", "FullyConnected", "gemm_f32", 30.0], ["x_reordered_fc/Add_1", "Reorder", "jit_f32", 10.0]],
        [["fc/Add_1", "FullyConnected", "gemm_f32", 50.0], ["x_reordered_fc/Add_1", "Reorder", "jit_f32", 10.0]],
    ],
    "layers": {"fc/Add_1": "fc/Add_1,fc/MatMul_0", "x_reordered_fc/Add_1": ""},
}


def test_openvino_by_hand(nodes: ExportedNodes) -> None:
    times = list(openvino_times(RECORDED, nodes, runs=2, warmup=1))
    assert times[:2] == [
        KernelTime(0, "fc", "MatMul", "gemm_f32", pytest.approx(0.03)),
        KernelTime(0, None, "Reorder", "jit_f32", pytest.approx(0.01)),
    ]
    found = summed(times, rounds=2)
    assert found["total_ms"] == pytest.approx(0.05)
    assert found["attributed"] == pytest.approx(0.8)
    assert [(one["name"], one["kernel"]) for one in found["layers"]] == [("fc", "gemm_f32"), ("(runtime)", "jit_f32")]
    assert [(o["kind"], o["ms"], o["count"]) for o in found["operators"]] == [
        ("MatMul", pytest.approx(0.04), 1.0),
        ("Reorder", pytest.approx(0.01), 1.0),
    ]


def test_calls_that_do_not_divide_are_refused(nodes: ExportedNodes) -> None:
    with pytest.raises(UserError, match="called 3 times in 2 runs"):
        list(openvino_times(RECORDED, nodes, runs=1, warmup=1))
    with pytest.raises(UserError, match="called 0 times"):
        list(onnxruntime_times([], nodes, runs=1, warmup=0))


def test_a_backend_whose_profiles_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="'mine': its profiles cannot be read; known: onnxruntime, openvino"):
        read_kernel_times("mine", tmp_path / "p", tmp_path / "g", 1, 0)
