"""Lists the packages that mtlc uses: what each is for, and which extra of mtlc brings it."""

from __future__ import annotations

from typing import NamedTuple

from mtlc.errors import Unavailable


class Package(NamedTuple):
    """A package as it is installed. `extra` is empty for what the base install brings."""

    name: str
    module: str
    purpose: str
    extra: str = ""
    title: str = ""
    """What a person knows it as; its name if not given."""

    @property
    def install(self) -> str:
        """The command that installs it."""
        return install_extra(self.extra) if self.extra else f"pip install {self.name}"


PACKAGES = (
    Package("numpy", "numpy", "running bundles"),
    Package("onnxruntime", "onnxruntime", "running bundles"),
    Package("click", "click", "the command line"),
    Package("pydantic", "pydantic", "reading jobs"),
    Package("pillow", "PIL", "reading and writing pictures", "images", "Pillow"),
    Package("opencv-python-headless", "cv2", "reading videos and cameras", "video", "OpenCV"),
    Package("torch", "torch", "compressing and exporting", "compress"),
    Package("torch-pruning", "torch_pruning", "the prune pass", "compress"),
    Package("safetensors", "safetensors", "checkpoints", "compress"),
    Package("onnx", "onnx", "counting, calibrating, exporting", "onnx"),
    Package("onnxscript", "onnxscript", "exporting", "compress"),
    Package("scipy", "scipy", "metrics", "compress"),
    Package("pycocotools", "pycocotools", "average precision of boxes", "compress"),
    Package("jinja2", "jinja2", "the report", "compress"),
    Package("matplotlib", "matplotlib", "the report", "compress"),
    Package("tqdm", "tqdm", "progress bars", "compress"),
    Package("nncf", "nncf", "quantising", "compress"),
    Package("openvino", "openvino", "the openvino backend", "openvino"),
    Package("tensorrt-rtx", "tensorrt_rtx", "building TensorRT engines", "tensorrt", "TensorRT"),
    Package("ray", "ray", "sweeps, runs and searches on a cluster", "ray"),
    Package("mlflow-skinny", "mlflow", "tracking runs", "tracking", "MLflow"),
    Package("tensorboard", "tensorboard", "tracking runs", "tracking", "TensorBoard"),
    Package("cmake", "cmake", "building the C library, where the system has no CMake", "package", "CMake"),
    Package("pyelftools", "elftools", "packaging for a board", "package"),
    Package("ziglang", "ziglang", "compiling for other boards", "package", "Zig"),
    Package("webdataset", "webdataset", "reading shards of samples", "shards", "WebDataset"),
)
"""What `mtlc doctor` looks for, in its order."""

BY_MODULE = {package.module: package for package in PACKAGES if package.extra}
"""The optional ones by the module that fails to import."""


def install_extra(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'mtlc[{extra}]'"


def missing_extra(module: str, extra: str | None = None) -> Unavailable:
    """The error for an optional package whose `module` cannot be imported.

    `extra` is what to install for it, where another than its usual one is meant.
    """
    package = BY_MODULE[module]
    return Unavailable(f"{package.title or package.name} is not installed: {install_extra(extra or package.extra)}")
