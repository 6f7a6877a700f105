"""Quantises one graph after training by NNCF: places the pairs of Q and DQ and finds their scales."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from mtlc.errors import UserError, one_line
from mtlc.export.quantization.operators import DEQUANTIZE, QUANTIZE
from mtlc.export.quantization.targets import Target
from mtlc.extras import missing_extra
from mtlc.telemetry import switch_off_openvino


def quantize_graph(
    model: ModelProto, what: str, samples: Sequence[dict[str, np.ndarray]], target: Target, floats: Collection[str]
) -> ModelProto:
    """A QDQ graph of `model` (opset 13 or later, weights in it) with ranges from `samples`, inputs by name at batch 1.

    The nodes named `floats` stay in floating point. Weights are stored as int8; inputs and outputs keep their names and
    types. Raises `UserError` naming `what` NNCF cannot quantise, `Unavailable` without NNCF.
    """
    switch_off_openvino()
    try:
        import nncf
        from nncf.quantization.advanced_parameters import QuantizationParameters
    except ImportError as error:
        raise missing_extra("nncf") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    overflow = nncf.OverflowFix.ENABLE if target.weights == "reduced" else nncf.OverflowFix.DISABLE
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # progress bars: standard output is for results
            quantized = nncf.quantize(
                model,
                nncf.Dataset(samples),
                preset=nncf.QuantizationPreset.PERFORMANCE if target.symmetric else nncf.QuantizationPreset.MIXED,
                subset_size=len(samples),
                ignored_scope=nncf.IgnoredScope(names=sorted(floats)),
                # Its fast bias correction made the error of every head larger, up to 170 times: docs/quantize.md.
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=overflow,
                    disable_bias_correction=True,
                    # Before a depth-wise convolution it would take a scale a channel, which onnxruntime cannot run.
                    activations_quantization_params=QuantizationParameters(per_channel=False),
                ),
            )
        _one_type(quantized, np.dtype(np.int8 if target.symmetric else np.uint8))
    except Exception as error:
        raise UserError(f"{what}: NNCF cannot quantise it: {one_line(error)}") from error
    result: ModelProto = quantized
    return result


def _one_type(model: ModelProto, wanted: np.dtype) -> None:
    """Round all activations to numbers of one type, in place: NNCF mixes int8 and uint8.

    To uint8 is exact, as zero point and numbers move by 128: signed pairs before a Concat are computed wrongly by
    OpenVINO, and x86 multiplies unsigned by signed. To int8 with zero point 0 costs the bit that uint8 had for the same
    range.
    """
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in [node for node in model.graph.node if node.op_type == QUANTIZE]:
        scale, zero = stored[node.input[1]], stored[node.input[2]]
        if zero.dtype == wanted:
            continue
        if wanted == np.uint8:
            zero = (zero.astype(np.int16) + 128).astype(np.uint8)
        else:
            if zero.any():
                raise ValueError(f"{node.name}: its zero point is {zero}, a symmetric one is 0")
            scale, zero = (scale * (255 / 127)).astype(scale.dtype), zero.astype(np.int8)
        pair = [node, *(reader for reader in readers.get(node.output[0], ()) if reader.op_type == DEQUANTIZE)]
        for index, array in ((1, scale), (2, zero)):
            name = f"{node.output[0]}.{'scale' if index == 1 else 'zero_point'}"
            model.graph.initializer.append(numpy_helper.from_array(array, name))
            for member in pair:
                member.input[index] = name
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    # Inference wrote down the types that the pairs had.
    rounded = {node.output[0] for node in model.graph.node if node.op_type == QUANTIZE}
    for value in [value for value in model.graph.value_info if value.name in rounded]:
        model.graph.value_info.remove(value)
