"""Rewrites a graph for OpenVINO's CPU kernels, when it is loaded.

A linear resize is a product with a constant matrix along the height and one along the width. OpenVINO computes it with
vectors over channels, 16 at a time where the processor has AVX-512, however few there are: the maps of a dense task
(one channel of depth, three of normals) leave most lanes idle. The two products do more multiply-accumulates and take
two thirds to a seventh of the time, as long as the map is small (`benchmarks/runtime/openvino_resize.py`).
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from mtlc.errors import UserError
from mtlc.telemetry import switch_off_openvino

switch_off_openvino()
import openvino  # noqa: E402
from openvino import opset13  # noqa: E402

LANES = 16
WORTH = 1000
"""Multiply-accumulates per pixel of the result and 16 channels up to which products are taken: there they were 1.5 to 7
times as fast, at 1,000 to 2,000 still 1.1 to 1.4 times, at 2,500 slower; other processors will differ."""
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


def resizes_to_products(model: openvino.Model, worth: float = WORTH) -> int:
    """Replace float32 linear resizes of small maps (N, C, H, W) by two products, in place; how many there were.

    Small is what takes up to `worth` multiply-accumulates per pixel and 16 channels. Only maps of known C, H and W, of
    any batch, and not those that come out of a dequantisation: these are resized in INT8. Names stay. The numbers
    differ by rounding.
    """
    replaced = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Interpolate" or _dequantized(node.input_value(0)):
            continue
        matrices = _matrices(node, worth)
        if matrices is None:
            continue
        rows, columns = matrices
        wide = opset13.matmul(node.input_value(0), opset13.constant(columns), False, True)
        wide.set_friendly_name(f"{node.get_friendly_name()}/columns")
        product = opset13.matmul(opset13.constant(rows), wide, False, False)
        product.set_friendly_name(node.get_friendly_name())
        result, names = product.output(0), node.output(0).get_names()
        for reader in list(node.output(0).get_target_inputs()):
            reader.replace_source_output(result)
        result.set_names(names)
        replaced += 1
    return replaced


def interpolation(size: int, wanted: int, scale: float, coordinates: str) -> np.ndarray:
    """The matrix (wanted, size) of a linear resize along one axis, as ONNX's Resize defines it, without antialiasing.

    `coordinates` is the coordinate transformation: ``half_pixel``, ``pytorch_half_pixel``, ``asymmetric`` or
    ``align_corners``.
    """
    at = np.arange(wanted, dtype=np.float64)
    if coordinates == "asymmetric":
        at = at / scale
    elif coordinates == "align_corners":
        at = at * (size - 1) / (wanted - 1) if wanted > 1 else at * 0
    elif coordinates == "pytorch_half_pixel" and wanted == 1:
        at = at * 0
    else:
        at = (at + 0.5) / scale - 0.5
    at = at.clip(0, size - 1)
    below = np.floor(at).astype(int)
    share = at - below
    matrix = np.zeros((wanted, size))
    np.add.at(matrix, (np.arange(wanted), below), 1 - share)
    np.add.at(matrix, (np.arange(wanted), (below + 1).clip(max=size - 1)), share)
    return matrix.astype(np.float32)


def _matrices(node: Any, worth: float) -> tuple[np.ndarray, np.ndarray] | None:
    """What multiplies the rows and the columns of a resize; None where it is not two products, or not faster so."""
    attributes = node.get_attributes()
    coordinates = attributes.get("coordinate_transformation_mode")
    before, after = node.get_input_partial_shape(0), node.get_output_partial_shape(0)
    if (
        attributes["mode"] not in ("linear", "linear_onnx")
        or coordinates not in _COORDINATES
        or attributes.get("antialias")
        or any(attributes.get("pads_begin", ())) or any(attributes.get("pads_end", ()))
        or node.get_output_element_type(0) != openvino.Type.f32
        or before.rank.is_dynamic or before.rank.get_length() != 4
        or any(shape[axis].is_dynamic for shape in (before, after) for axis in (1, 2, 3))
    ):  # fmt: skip
        return None
    channels, height, width = (before[axis].get_length() for axis in (1, 2, 3))
    _, tall, wide = (after[axis].get_length() for axis in (1, 2, 3))
    scales = _scales(node, (height, width), (tall, wide), attributes["shape_calculation_mode"])
    if scales is None:
        return None
    macs = channels * (height * width * wide + height * wide * tall) / (tall * wide)
    if macs > worth * ceil(channels / LANES):
        return None
    return interpolation(height, tall, scales[0], coordinates), interpolation(width, wide, scales[1], coordinates)


def refuse_antialias(model: openvino.Model) -> None:
    """Raise `UserError` for a resize with antialiasing, which OpenVINO computes without: the numbers would be wrong.

    A linear one that makes no side smaller is the same either way.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Interpolate" or not node.get_attributes().get("antialias"):
            continue
        if node.get_attributes()["mode"] not in ("linear", "linear_onnx") or _shrinks(node):
            raise UserError(
                f"layer {node.get_friendly_name()!r}: OpenVINO ignores the antialias of a resize and would compute "
                "something else: run the bundle in onnxruntime, or resize without antialias"
            )


def _shrinks(node: Any) -> bool:
    """Whether a resize may make a side smaller."""
    before, after = node.get_input_partial_shape(0), node.get_output_partial_shape(0)
    if before.rank.is_dynamic or after.rank.is_dynamic:
        return True
    for small, large in zip(after, before, strict=True):
        if small != large and (small.is_dynamic or large.is_dynamic or small.get_length() < large.get_length()):
            return True
    return False


def _scales(node: Any, before: tuple[int, int], after: tuple[int, int], given: str) -> tuple[float, float] | None:
    """The factors along height and width; None unless they are known and only these two axes are resized."""
    values = node.input_value(1).get_node()
    axes = node.input_value(2).get_node() if node.get_input_size() > 2 else None
    if axes is not None and axes.get_type_name() != "Constant":
        return None
    numbers = list(range(4)) if axes is None else [int(axis) % 4 for axis in axes.get_data().reshape(-1)]
    if given == "sizes":
        return (after[0] / before[0], after[1] / before[1]) if set(numbers) <= {2, 3} else None
    if values.get_type_name() != "Constant":
        return None
    factors = {axis: float(value) for axis, value in zip(numbers, values.get_data().reshape(-1), strict=True)}
    if factors.get(0, 1.0) != 1 or factors.get(1, 1.0) != 1:
        return None
    return factors.get(2, 1.0), factors.get(3, 1.0)


def _dequantized(source: Any) -> bool:
    """Whether a tensor is one of 8 bits, turned into float32 here."""
    node = source.get_node()
    while node.get_type_name() in ("Multiply", "Subtract", "Convert"):
        if node.get_type_name() == "Convert" and node.get_input_element_type(0) in (openvino.Type.u8, openvino.Type.i8):
            return True
        node = node.input_value(0).get_node()
    return False
