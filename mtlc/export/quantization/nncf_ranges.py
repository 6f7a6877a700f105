"""Post-training quantisation of one graph by NNCF: where the pairs go, their scales, and corrected biases."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Collection, Sequence

import numpy as np
from onnx import ModelProto

from mtlc.errors import UserError, missing_extra
from mtlc.export.quantization.targets import Target
from mtlc.factory import one_line


def quantize_graph(
    model: ModelProto, what: str, samples: Sequence[dict[str, np.ndarray]], target: Target, floats: Collection[str]
) -> ModelProto:
    """A QDQ graph of `model` (opset 13 or later, weights in it) with ranges from `samples`, inputs by name at batch 1.

    The nodes named `floats` stay in floating point. Weights are stored as int8; inputs and outputs keep their names and
    types. Raises `UserError` naming `what` NNCF cannot quantise, `Unavailable` without NNCF.
    """
    # OpenVINO and NNCF take a missing package for a no; their other switch is a file in the user's home.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import nncf
        from nncf.quantization.advanced_parameters import QuantizationParameters
    except ImportError as error:
        raise missing_extra("nncf", "compress") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # The preset makes activations symmetric, but unsigned where they are never negative.
    activations = QuantizationParameters(signedness_to_force=True if target.symmetric else None)
    overflow = nncf.OverflowFix.ENABLE if target.weights == "reduced" else nncf.OverflowFix.DISABLE
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # progress bars: standard output is for results
            return nncf.quantize(
                model,
                nncf.Dataset(samples),
                preset=nncf.QuantizationPreset.PERFORMANCE if target.symmetric else nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.ANY,
                subset_size=len(samples),
                ignored_scope=nncf.IgnoredScope(names=sorted(floats)),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=overflow, activations_quantization_params=activations
                ),
            )
    except Exception as error:
        raise UserError(f"{what}: NNCF cannot quantise it: {one_line(error)}") from error
