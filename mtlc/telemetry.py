"""Switches off what packages would send about their use, before they are imported."""

from __future__ import annotations

import os
import sys


def switch_off_onnxruntime() -> None:
    """Keep onnxruntime from sending anything. It reads the variable when it is imported."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def switch_off_openvino() -> None:
    """Keep OpenVINO, and NNCF which uses it, from sending anything and from writing a client's number into the home.

    Both take a missing package for a no. Their other switch is a file in the user's home, which is not ours. An
    application that has imported ``openvino_telemetry`` itself keeps it.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def switch_off_mlflow() -> None:
    """Keep MLflow from sending anything about its use. It reads the variable when it is imported."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
