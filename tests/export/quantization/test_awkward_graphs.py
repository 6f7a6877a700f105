"""Graphs that NNCF or onnxruntime stumble over are quantised all the same, or stay in floating point and say why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from testkit.tiny_networks import Samples
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.export import export_bundle
from mtlc.export.graph.lower import lower
from mtlc.export.quantization import quantize, quantize_bundle
from mtlc.export.quantization.computed_weights import fold_computed_weights
from mtlc.export.quantization.execution import Execution, session
from mtlc.export.quantization.operators import MULTIPLIERS, QUANTIZE
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session, open_bundle
from mtlc.tasks.task import TaskSpec

SIZE = 8


def program(module: nn.Module) -> Program:
    tasks = (TaskSpec("depth", "mse", "mse"),)
    return Program(module.eval(), tasks, {"image": torch.zeros(2, 3, SIZE, SIZE)}, ModelSource("test:make", {}))


class Net(nn.Module):
    """The `layers` one after the other, for the task depth."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"depth": self.layers(image)}


class Standardised(nn.Conv2d):
    """Its weight is standardised in every call, as ResNetV2 and NFNet do."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (f(self.weight, (1, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
        return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, padding=1)


class Channelwise(nn.Module):
    """A linear layer over channels whose weight is normalised by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) @ F.normalize(self.weight, dim=0)).permute(0, 3, 1, 2)


def depthwise(channels: int = 16, size: int = 3) -> nn.Module:
    return nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)


DEPTHWISE = {
    "conv": lambda: [nn.Conv2d(3, 16, 1), depthwise()],
    "relu": lambda: [nn.Conv2d(3, 16, 1), nn.ReLU(), depthwise()],
    "hardswish": lambda: [nn.Conv2d(3, 16, 1), nn.Hardswish(), depthwise()],
    "batch norm": lambda: [nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), depthwise()],
    "max pool": lambda: [nn.Conv2d(3, 16, 1), nn.MaxPool2d(2), depthwise()],
    "depthwise": lambda: [nn.Conv2d(3, 16, 1), depthwise(), depthwise(size=5)],
    "input": lambda: [depthwise(3), nn.Conv2d(3, 16, 1)],
    "transposed": lambda: [nn.Conv2d(3, 16, 1), nn.ConvTranspose2d(16, 16, 2, 2, groups=16)],
    "multiplier": lambda: [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, padding=1, groups=8)],
}
COMPUTED = {
    "weight norm": lambda: weight_norm(nn.Conv2d(16, 16, 3, padding=1)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Conv2d(16, 16, 3, padding=1)),
    "spectral norm": lambda: spectral_norm(nn.Conv2d(16, 16, 3, padding=1)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2d(16, 16, 3, padding=1)),
    "orthogonal": lambda: orthogonal(nn.Conv2d(16, 16, 3, padding=1)),
    "transposed": lambda: spectral_norm(nn.ConvTranspose2d(16, 16, 2, 2)),
    "depthwise": lambda: weight_norm(depthwise()),
    "standardised": lambda: Standardised(16, 16, 3),
    "product": Channelwise,
}


def some_slow(names, *quick: str):
    """All `names` as parameters, those that are not `quick` with the mark slow: each is quantised anew."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def quantised(module: nn.Module, folder: Path, target: str = "x86", **options):
    """The reports of the export and of INT8, and the relative error of the INT8 bundle in both kinds of kernels."""
    made = program(module)
    torch.manual_seed(1)
    images = torch.randn(24, 3, SIZE, SIZE)
    with torch.no_grad():
        wanted = made.module(images)["depth"]
    data = Samples({"image": images, "depth": wanted})
    export_bundle(made, folder / "b", samples={"image": images[:4]})
    report = quantize_bundle(
        folder / "b", folder / "int8", criteria=Criteria(made.tasks), calibration=data, validation=data, target=target,
        samples=16, **options,
    )  # fmt: skip
    with Session(folder / "int8", threads=1) as opened:
        found = opened.run(images.numpy())["depth"]
    error = float(np.sqrt(np.square(found - wanted.numpy()).mean() / np.square(wanted.numpy()).mean()))
    return report, error


@pytest.mark.parametrize("before", some_slow(DEPTHWISE, "conv", "max pool", "transposed"))
def test_a_depthwise_convolution_behind_anything(before, tmp_path):
    torch.manual_seed(0)
    layers = DEPTHWISE[before]()
    report, error = quantised(Net(*layers, nn.ReLU(), nn.Conv2d(16, 1, 1)), tmp_path)
    assert report["operators"]["int8"] >= 3
    assert report["macs_int8"] == 1
    assert 0 < error < 0.1
    with open_bundle(tmp_path / "int8") as opened:
        model = onnx.load(opened.folder / opened.manifest.programs[0].file)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert all(not stored[n.input[1]].dims for n in model.graph.node if n.op_type == QUANTIZE)


@pytest.mark.parametrize("kind", some_slow(COMPUTED, "weight norm", "old spectral norm", "standardised"))
def test_a_weight_that_is_computed_is_quantised_as_a_stored_one(kind, tmp_path):
    torch.manual_seed(0)
    layer = COMPUTED[kind]()
    module = Net(nn.Conv2d(3, 16, 1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(16, 1, 1))
    report, error = quantised(module, tmp_path)
    assert report["operators"]["int8"] >= 3
    assert report["macs_int8"] == 1
    assert 0 < error < 0.1


def test_an_export_leaves_the_parametrizations_of_the_network_alone():
    layer = weight_norm(nn.Conv2d(3, 2, 1))
    made = program(Net(layer, nn.Conv2d(2, 1, 1)))
    names = {name for name, _ in made.module.named_parameters()}
    model = lower(made).model
    assert {name for name, _ in made.module.named_parameters()} == names
    assert "layers.0.parametrizations.weight.original0" in names
    assert type(layer).__name__ == "ParametrizedConv2d"
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    np.testing.assert_allclose(stored[node.input[1]], layer.weight.detach().numpy(), rtol=1e-6)


def graph(nodes, outputs, stored) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_is_folded_and_what_stays():
    """W = v · 2 is folded where a product reads it, also where it is an output; noise and what x decides are not."""
    nodes = [
        helper.make_node("Mul", ["v", "two"], ["w"], name="double"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
        helper.make_node("RandomNormal", [], ["noise"], name="random", shape=[2, 2]),
        helper.make_node("MatMul", ["y", "noise"], ["z"], name="noisy"),
        helper.make_node("Add", ["two", "two"], ["four"], name="unread"),
        helper.make_node("Add", ["y", "four"], ["sum"], name="sum"),
    ]
    v = np.array([[1, 2], [3, 4]], np.float32)
    model = graph(nodes, ["y", "z", "sum", "w"], {"v": v, "two": np.float32(2)})
    x = np.array([[1, 10]], np.float32)
    before = session(model, "g").run(["y", "sum", "w"], {"x": x})
    assert fold_computed_weights(model, "g") == ["w"]
    product = next(node for node in model.graph.node if node.name == "product")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(stored[product.input[1]], 2 * v)
    assert {node.name for node in model.graph.node} == {"double", "product", "random", "noisy", "unread", "sum"}
    for found, expected in zip(session(model, "g").run(["y", "sum", "w"], {"x": x}), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert before[0].tolist() == [[62, 84]]  # (1, 10) · ((2, 4), (6, 8))
    assert fold_computed_weights(model, "g") == []


def test_a_weight_that_only_products_read_leaves_nothing_behind():
    nodes = [
        helper.make_node("Mul", ["v", "two"], ["w"], name="double"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    model = graph(nodes, ["y"], {"v": np.eye(2, dtype=np.float32), "two": np.float32(2)})
    fold_computed_weights(model, "g")
    assert [node.name for node in model.graph.node] == ["product"]
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]
    assert {node.op_type for node in model.graph.node} <= MULTIPLIERS


@pytest.mark.parametrize("fault", ["raises", "not finite"])
def test_a_graph_that_does_not_run_in_int8_stays_in_floating_point(fault, tmp_path, monkeypatch):
    true = Execution.run_file

    def run_file(self, file, outputs, inputs):
        arrays = true(self, file, outputs, inputs)
        if not any(node.op_type == QUANTIZE for node in self.graph(file).graph.node) or "head" not in file:
            return arrays
        if fault == "raises":
            raise UserError(f"{file}: onnxruntime cannot run it: no kernel")
        return [array * np.float32(np.nan) for array in arrays]

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1), nn.Conv2d(8, 1, 3, padding=1)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            x = torch.relu(self.stem(image))
            return {"depth": self.a(x), "near": self.b(x)}

    torch.manual_seed(0)
    tasks = (TaskSpec("depth", "mse", "mse"), TaskSpec("near", "mse", "mse"))
    made = Program(Two().eval(), tasks, {"image": torch.zeros(2, 3, 8, 8)}, ModelSource("test:Two", {}))
    images = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        data = Samples({"image": images, **made.module(images)})
    export_bundle(made, tmp_path / "b", samples={"image": images[:4]})
    monkeypatch.setattr(Execution, "run_file", run_file)
    lines: list[str] = []
    report = quantize_bundle(
        tmp_path / "b", tmp_path / "int8", criteria=Criteria(tasks), calibration=data, validation=data, target="x86",
        samples=8, log=lines.append,
    )  # fmt: skip
    why = "no kernel" if fault == "raises" else "its outputs are not finite in onnxruntime"
    assert {(row["program"], row["why"].rsplit(": ")[-1]) for row in report["operators"]["excluded"]} == {
        ("head-depth", f"{why}" if fault == "raises" else f"in INT8 {why}"),
        ("head-near", f"{why}" if fault == "raises" else f"in INT8 {why}"),
    }
    assert sum("stays in floating point" in line for line in lines) == 2
    assert report["operators"]["int8"] == 1
    # The convolutions have 3·8·9, 8 and 8·9 multiply-accumulates a pixel.
    assert report["macs_int8"] == pytest.approx(216 / (216 + 8 + 72))


def test_where_nothing_runs_in_int8_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(quantize._Run, "_refused", lambda *arguments: "onnxruntime cannot run it: no kernel")
    with pytest.raises(UserError, match=r"no operator that can be quantised: .*onnxruntime cannot run it: no kernel"):
        quantised(Net(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 1, 1)), tmp_path)
    assert not (tmp_path / "int8").exists()
