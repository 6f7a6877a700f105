"""Describes what ``mtlc build`` made: TensorRT engines, or OpenVINO IR."""

from __future__ import annotations

from mtlc.results.base import Result


class NodeInFloat32(Result):
    """A node that stayed in float32 in an engine of float16."""

    node: str
    """Its name in the ONNX file."""
    operator: str
    """Its ONNX operator."""
    reason: str
    """Why it stayed."""


class BuiltEngine(Result):
    """The engine of one program file."""

    program: str
    """The ONNX file."""
    file: str
    """The engine's file in the bundle."""
    bytes: int
    """Its size, in bytes."""
    layers: int
    """Layers that TensorRT made of the nodes."""
    parse_seconds: float
    """Time to read the ONNX file, in s."""
    build_seconds: float
    """Time to build the engine, in s."""
    in_float32: list[NodeInFloat32]
    """The nodes that stayed in float32; none are listed where no precision but float32 or INT8 was asked for."""


class EnginesResult(Result):
    """A bundle with TensorRT engines."""

    bundle: str
    """The bundle that they were built of."""
    out: str
    """The bundle that holds them."""
    kind: str
    """How far they were tried: ``built and compared`` or, where no GPU here can run them, ``built, not run``."""
    from_onnxruntime: dict[str, float] | None = None
    """By task, the largest difference of a program on its way from the ONNX in onnxruntime: of a value in float32, else
    of the root mean square; None where they were not run."""
    precision: str
    """``fp32``, ``fp16`` or ``int8``."""
    module: str
    """The Python module of the TensorRT that built them."""
    version: str
    """Its version."""
    gpu: str | None
    """The GPU that they were built for; None where they are for compute capabilities."""
    compute_capabilities: list[str]
    """Compute capabilities of the GPUs that they run on, such as ``8.7``."""
    dimensions: dict[str, list[int]]
    """Sizes of each named dimension: smallest, usual, largest."""
    engines: list[BuiltEngine]
    """The engines, in the order of the programs."""


class ConvertedProgram(Result):
    """The IR of one program file."""

    program: str
    """The ONNX file."""
    file: str
    """The IR's file of XML in the bundle."""
    bytes: int
    """Its size, in bytes, without weights."""


class IrResult(Result):
    """A bundle with OpenVINO IR."""

    bundle: str
    """The bundle that was converted."""
    out: str
    """The bundle that holds the IR."""
    programs: list[ConvertedProgram]
    """The IR, in the order of the programs."""
    half: bool
    """Whether constants are stored in float16."""
    shared_bytes: int
    """Weights that the ONNX files read too, in bytes."""
    own_bytes: int
    """Weights that only the IR reads, in bytes."""
    bytes: int
    """Size of the bundle, in bytes."""
    differences: dict[str, float]
    """By task, the largest difference from the ONNX, relative to the output's largest value, on random inputs."""
    from_onnxruntime: dict[str, float]
    """By task, the largest difference of a program on its way from the ONNX in onnxruntime: of a value, relative to the
    tensor's largest one; with INT8 or constants in float16, of the root mean square."""
    version: str
    """Version of OpenVINO."""
