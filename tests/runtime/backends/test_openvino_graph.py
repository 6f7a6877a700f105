from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from testkit import tiny_networks

from mtlc.export import export_bundle

openvino = pytest.importorskip("openvino")

from mtlc.runtime.backends.openvino_backend import OpenVINO  # noqa: E402
from mtlc.runtime.backends.openvino_graph import WORTH, interpolation, resizes_to_products  # noqa: E402

COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


def resize(
    channels: int, size: int, wanted: int, coordinates: str = "half_pixel", **options: object
) -> onnx.ModelProto:
    """A graph that resizes a map of `channels` and any batch, linearly unless `options` say otherwise."""
    sizes = numpy_helper.from_array(np.array([wanted, wanted], np.int64), "sizes")
    attributes = {"mode": "linear", "coordinate_transformation_mode": coordinates, "axes": [2, 3], **options}
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], name="up", **attributes)
    inner = helper.make_node("Relu", ["y"], ["z"], name="after")
    graph = helper.make_graph(
        [node, inner],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, size, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")],
        [sizes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def by_scales(channels: int, size: int, factor: float) -> onnx.ModelProto:
    """The same for all four axes by their scales, as torch exports it."""
    model = resize(channels, size, int(size * factor))
    node, scales = model.graph.node[0], np.array([1, 1, factor, factor], np.float32)
    del node.attribute[[attribute.name for attribute in node.attribute].index("axes")]
    node.input[2:] = ["scales"]
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(scales, "scales"))
    return model


def read(model: onnx.ModelProto) -> openvino.Model:
    return openvino.Core().read_model(model.SerializeToString())


def run(model: openvino.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(x)
    return {port.any_name: found[port] for port in compiled.outputs}


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize(("size", "wanted"), [(6, 12), (5, 13), (9, 3), (4, 1), (1, 7)])
def test_the_products_are_the_resize_under_its_names(coordinates: str, size: int, wanted: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    model, plain = (read(resize(3, size, wanted, coordinates)) for _ in range(2))
    assert resizes_to_products(model) == 1
    assert not any(node.get_type_name() == "Interpolate" for node in model.get_ops())
    found, expected = run(model, x), run(plain, x)
    assert set(found) == {"y", "z"}
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=2e-6)


@pytest.mark.parametrize(("size", "factor"), [(6, 2), (5, 1.5), (8, 0.5)])
def test_a_resize_by_scales(size: int, factor: float) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    model, plain = (read(by_scales(3, size, factor)) for _ in range(2))
    assert resizes_to_products(model) == 1
    np.testing.assert_allclose(run(model, x)["y"], run(plain, x)["y"], atol=2e-6)


def test_a_resize_of_the_batch_stays() -> None:
    model = by_scales(3, 8, 2)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([2, 1, 2, 2], np.float32), "scales"))
    assert resizes_to_products(read(model)) == 0


@given(size=st.integers(1, 20), wanted=st.integers(1, 40), coordinates=st.sampled_from(COORDINATES))
@settings(max_examples=100, deadline=None)
def test_every_pixel_is_a_mean_of_two_neighbours(size: int, wanted: int, coordinates: str) -> None:
    matrix = interpolation(size, wanted, wanted / size, coordinates)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert (matrix >= 0).all()
    for row in matrix:
        used = np.flatnonzero(row)
        assert used.max() - used.min() <= 1


@given(size=st.integers(1, 20), wanted=st.integers(2, 40), aligned=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_matrix_is_what_torch_interpolates_by(size: int, wanted: int, aligned: bool) -> None:
    lines = torch.eye(size)[None]
    expected = torch.nn.functional.interpolate(lines, wanted, mode="linear", align_corners=aligned)[0].T
    found = interpolation(size, wanted, wanted / size, "align_corners" if aligned else "pytorch_half_pixel")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_maps_of_many_pixels_and_channels_stay_resizes() -> None:
    size = 2 * WORTH // 3  # of the input, for a factor of 2 and one channel
    assert resizes_to_products(read(resize(1, size, 2 * size))) == 1
    assert resizes_to_products(read(resize(1, size + 2, 2 * size + 4))) == 0
    assert resizes_to_products(read(resize(2, size, 2 * size))) == 0


@pytest.mark.parametrize("options", [{"mode": "nearest"}, {"mode": "cubic"}, {"antialias": 1}])
def test_other_resizes_stay(options: dict[str, object]) -> None:
    assert resizes_to_products(read(resize(1, 8, 4, **options))) == 0


def test_a_map_that_comes_out_of_int8_stays() -> None:
    model = resize(1, 8, 16)
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(3), "zero")]
    )
    model.graph.node[0].input[0] = "dequantized"
    for index, (kind, read_from, made) in enumerate(
        [("QuantizeLinear", "x", "quantized"), ("DequantizeLinear", "quantized", "dequantized")]
    ):
        model.graph.node.insert(index, helper.make_node(kind, [read_from, "scale", "zero"], [made]))
    assert resizes_to_products(read(model)) == 0


def test_the_backend_loads_products(tmp_path: Path) -> None:
    onnx.save(resize(1, 8, 16), tmp_path / "up.onnx")
    loaded = OpenVINO().load(tmp_path / "up.onnx", 1, None)
    kinds = {node.get_rt_info()["layerType"].astype(str) for node in loaded._compiled.get_runtime_model().get_ops()}
    assert "Interpolate" not in kinds


def test_what_torch_exports_becomes_products(tmp_path: Path) -> None:
    network = tiny_networks.resnet_program()
    samples = {name: tensor.repeat(2, 1, 1, 1) for name, tensor in network.example.items()}
    export_bundle(network, tmp_path / "bundle", samples=samples, fuse=True)
    model = openvino.Core().read_model(next((tmp_path / "bundle").glob("*.onnx")))
    assert resizes_to_products(model) == len(network.task_names)


def test_a_fixed_batch_is_compiled_for_and_other_shapes_still_run(tmp_path: Path) -> None:
    onnx.save(resize(1, 8, 16), tmp_path / "up.onnx")
    backend = OpenVINO()
    backend.batch = 2
    loaded = backend.load(tmp_path / "up.onnx", 1, None)
    shapes, compiled = loaded._fixed
    assert shapes == {"x": (2, 1, 8, 8)}
    assert compiled._compiled.inputs[0].partial_shape.is_static
    for batch in (2, 3, 4, 2):
        x = np.full((batch, 1, 8, 8), batch, np.float32)
        np.testing.assert_allclose(loaded.run(["y"], {"x": x})[0], np.full((batch, 1, 16, 16), batch, np.float32))
    assert loaded._any._compiled.inputs[0].partial_shape.is_dynamic
