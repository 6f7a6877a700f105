"""An ONNX file costs what the network that it came from costs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from testkit.costed_networks import MLP, VIT_MACS, ViT, program, randomized
from torch import nn

from mtlc.errors import UserError
from mtlc.export.graph.lower import lower
from mtlc.hw.cost.count import onnx_workload, workload
from mtlc.program.program import Program
from mtlc.zoo.resnet import mtl_resnet


def networks() -> dict[str, Program]:
    return {
        "mlp": program(randomized(MLP()), torch.randn(2, 6)),
        "vit": program(randomized(ViT()), torch.randn(2, 3, 32, 32), outputs=("label", "angle")),
        "resnet": program(
            randomized(mtl_resnet(["depth", "edge"], widths=(8, 16, 24), depths=(1, 1, 1), decoder_width=8)),
            torch.randn(2, 3, 32, 32), outputs=("depth", "edge"),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mlp", "vit", "resnet"])
def test_the_exported_file_costs_the_same(name: str, tmp_path: Path) -> None:
    made = networks()[name]
    path = tmp_path / "model.onnx"
    onnx.save(lower(made).model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    torch_cost, onnx_cost = workload(made), onnx_workload(path)
    assert onnx_cost.macs == torch_cost.macs > 0
    assert onnx_cost.peak_activation_bytes == torch_cost.peak_activation_bytes
    layers = {path: layer.macs for path, layer in torch_cost.by_layer().items() if layer.macs}
    assert {path: layer.macs for path, layer in onnx_cost.by_layer().items() if layer.macs} == layers
    # Folding turns the scale and the shift of a batch norm into the bias of the convolution before it.
    folded = sum(module.num_features for module in made.module.modules() if isinstance(module, nn.BatchNorm2d))
    assert onnx_cost.parameters == torch_cost.parameters - folded
    assert onnx_cost.parameter_bytes == 4 * onnx_cost.parameters
    if name == "vit":
        assert onnx_cost.macs == VIT_MACS


def test_batch_is_what_is_asked_for() -> None:
    model = lower(networks()["mlp"]).model
    assert onnx_workload(model, batch=4).macs == 4 * onnx_workload(model).macs == 4 * (6 * 16 + 16 * 3)


def graph(
    nodes: list[onnx.NodeProto], inputs: dict[str, list], outputs: dict[str, list], weights: dict[str, list]
) -> onnx.ModelProto:
    def info(shapes: dict[str, list]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    initializers = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, [0.5] * int(torch.Size(shape).numel()))
        for name, shape in weights.items()
    ]
    made = helper.make_graph(nodes, "g", info(inputs), info(outputs), initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize(
    ("node", "x", "y", "weights", "expected"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"], group=4), [1, 8, 6, 6], [1, 12, 4, 4],
         {"w": [12, 2, 3, 3]}, 12 * 2 * 9 * 16),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]), [1, 8, 5, 5], [1, 6, 10, 10],
         {"w": [8, 6, 2, 2]}, 48 * 4 * 25),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), [3, 5], [3, 7], {"w": [7, 5]}, 3 * 5 * 7),
        (helper.make_node("Einsum", ["x", "w"], ["y"], equation="nth,hd->ntd"), [1, 5, 6], [1, 5, 4],
         {"w": [6, 4]}, 5 * 6 * 4),
    ],
    ids=["grouped", "transposed", "gemm", "einsum"],
)  # fmt: skip
def test_one_node_by_hand(node: onnx.NodeProto, x: list, y: list, weights: dict[str, list], expected: int) -> None:
    cost = onnx_workload(graph([node], {"x": x}, {"y": y}, weights))
    assert (cost.macs, cost.parameters) == (expected, torch.Size(weights["w"]).numel())
    assert cost.peak_activation_bytes == 4 * (torch.Size(x).numel() + torch.Size(y).numel())


def test_a_deformable_convolution_multiplies_as_any_other() -> None:
    node = helper.make_node("DeformConv", ["x", "w", "o"], ["y"], name="odd", kernel_shape=[3, 3])
    model = graph([node], {"x": [1, 4, 5, 5], "o": [1, 18, 3, 3]}, {"y": [1, 4, 3, 3]}, {"w": [4, 4, 3, 3]})
    assert onnx_workload(model).macs == 4 * 4 * 9 * 9


def test_a_standard_operator_without_a_rule_is_assumed_by_name() -> None:
    node = helper.make_node("DFT", ["x"], ["y"], name="odd", onesided=0)
    cost = onnx_workload(graph([node], {"x": [1, 8, 1]}, {"y": [1, 8, 2]}, {}))
    assert cost.macs == 0
    assert cost.assumed() == {("DFT", "copy"): ("odd",)}
    known = helper.make_node("Relu", ["x"], ["y"])
    assert onnx_workload(graph([known], {"x": [1, 8]}, {"y": [1, 8]}, {})).assumed() == {}


def test_a_foreign_domain_is_not_taken_for_the_standard_operator() -> None:
    model = graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="theirs", domain="acme")],
        {"x": [1, 4]},
        {"y": [1, 4]},
        {"w": [4, 4]},
    )
    model.opset_import.append(helper.make_opsetid("acme", 1))
    with pytest.raises(UserError, match=r"node 'theirs' \(Conv\): no cost rule for this operator of domain 'acme'"):
        onnx_workload(model)


def test_free_dimensions_other_than_the_batch_are_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(UserError, match="'x' has a free dimension 'width'"):
        onnx_workload(graph([node], {"x": ["batch", 3, 4, "width"]}, {"y": ["batch", 3, 4, "width"]}, {}))


def test_a_file_that_is_not_there_or_not_onnx(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        onnx_workload(tmp_path / "none.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="not a readable ONNX model"):
        onnx_workload(tmp_path / "noise.onnx")
