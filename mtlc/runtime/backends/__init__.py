"""Runs programs: onnxruntime, OpenVINO, TensorRT, and those of installed packages."""
