"""Defines the bundle's manifest: its schema as dataclasses. The format is described in ``docs/bundle.md``.

`mtlc.runtime.bundle.manifest_reader` reads one that comes from a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mtlc.detection import Detection

SCHEMA = 1
KINDS = ("labels", "scalar", "normals", "probability", "boxes", "unknown")
DTYPES = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
COLORS = ("RGB", "BGR", "L")
LAYOUTS = ("NCHW",)
RESIZES = ("stretch", "pad", "pad_end")
PRECISIONS = ("fp32", "fp16", "int8")
ENGINE_MODULES = ("tensorrt", "tensorrt_rtx")
WEIGHT_RANGES = ("full", "reduced")

Dimension = int | str


@dataclass(frozen=True)
class TensorInfo:
    """A tensor at the edge of the bundle. A dimension is a size, or a name such as ``"batch"`` that any size fits."""

    name: str
    shape: tuple[Dimension, ...]
    dtype: str


@dataclass(frozen=True)
class TaskInfo:
    """A task: the tensor `output` that holds its result, and what the numbers mean.

    `kind` is ``labels`` (one score per class), ``scalar``, ``normals``, ``probability``, ``boxes`` or ``unknown``;
    `metric` and `unit` say how it was measured; `classes` names the classes of ``labels``. `postprocess` says how the
    output becomes boxes, and `decoder` is the file of an ONNX program that does the same: it reads the tensor `output`
    and makes ``detections``.
    """

    name: str
    output: str
    shape: tuple[Dimension, ...]
    dtype: str
    kind: str = "unknown"
    metric: str = ""
    unit: str = ""
    classes: tuple[str, ...] | None = None
    postprocess: Detection | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class Preprocessing:
    """How a picture (uint8, H×W×C) becomes the input: ``(pixel · scale − mean) / std`` per channel, in `color`.

    A picture of another size is fitted as `resize` says (`mtlc.runtime.picture_fit`), with pixels of the value `fill`
    beside it.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: str = "RGB"
    layout: str = "NCHW"
    resize: str = "stretch"
    fill: float = 114.0


@dataclass(frozen=True)
class ExpertLayer:
    """Where the experts of a layer lie: expert i is at ``offset + i · stride`` of `file`, float32, as fc1 weight
    (hidden, width), fc1 bias, fc2 weight (width, hidden), fc2 bias.

    The program's inputs are the tokens (n, width), the chosen experts (n, K) and their scores (n, K), its output (n,
    width).
    """

    file: str
    offset: int
    stride: int
    count: int
    width: int
    hidden: int

    @property
    def bytes(self) -> int:
        """Bytes of one expert."""
        return 4 * (2 * self.width * self.hidden + self.width + self.hidden)


@dataclass(frozen=True)
class ProgramInfo:
    """One program: its file, the tensors it reads and writes, and the tasks that need it.

    Programs may share a file: `constants` are what this one feeds to inputs of the file, int64 (1,), and `names` says
    how the file calls a tensor where that is not the tensor's name in the bundle. So a trunk that takes the task as an
    input serves every task from one file. With `experts` the program is an expert layer whose weights lie outside the
    graph, and `file` computes one expert. `macs` are the multiply-accumulates of the program for one sample.
    """

    name: str
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tasks: tuple[str, ...]
    constants: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    experts: ExpertLayer | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Sizes:
    """What a named dimension is at least, usually and at most."""

    smallest: int
    usual: int
    largest: int

    def to_list(self) -> list[int]:
        """The three as JSON values."""
        return [self.smallest, self.usual, self.largest]


@dataclass(frozen=True)
class EngineInfo:
    """A TensorRT engine of one program's file: where it is, and what it was built by, for which GPUs and sizes.

    `module` is the Python module that built it, ``tensorrt`` or ``tensorrt_rtx``, and `version` that module's. `gpu` is
    the one GPU that it fits, by name, or None where it fits all GPUs of its `compute_capabilities` (``"8.6"``).
    `dimensions` are the sizes of the named dimensions that it takes.
    """

    file: str
    precision: str
    module: str
    version: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    dimensions: Mapping[str, Sizes] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The engine as JSON values."""
        return {
            "file": self.file,
            "precision": self.precision,
            "module": self.module,
            "version": self.version,
            "gpu": self.gpu,
            "compute_capabilities": list(self.compute_capabilities),
            "dimensions": {name: sizes.to_list() for name, sizes in self.dimensions.items()},
        }


@dataclass(frozen=True)
class OpenVinoInfo:
    """OpenVINO IR of programs: `files` by program file, all of which read their constants from the file `weights`.

    Its first `shared_bytes` are those of the ONNX files, the rest is read by IR alone. With `half` the constants are
    stored in float16. `version` is that of the OpenVINO that converted them.
    """

    files: Mapping[str, str]
    weights: str
    shared_bytes: int
    half: bool
    version: str


@dataclass(frozen=True)
class Configuration:
    """A way to run the bundle: its name and the names of its programs, in the order they run.

    In a bundle with `Widths`, `encoder` may name the encoder and `decoders` the width of every task's decoder that
    these programs are.
    """

    name: str
    programs: tuple[str, ...]
    encoder: str | None = None
    decoders: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderPoint:
    """A task's decoder at one width behind one encoder: its programs in the order they run, and the task's metric on
    held-out data with the two.
    """

    width: float
    programs: tuple[str, ...]
    metric: float


@dataclass(frozen=True)
class EncoderPoint:
    """The encoder at one width per stage: its programs in running order, and each task's decoders, narrow to wide."""

    name: str
    widths: tuple[float, ...]
    programs: tuple[str, ...]
    decoders: Mapping[str, tuple[DecoderPoint, ...]]


@dataclass(frozen=True)
class Widths:
    """The widths that a slimmable network can run at. Any encoder goes with any width of each of its decoders.

    `widths` is the set that the network was trained for, `stages` names the encoder's stages, `reference` is each
    task's metric with the widest network, which a change is measured against.
    """

    widths: tuple[float, ...]
    stages: tuple[str, ...]
    reference: Mapping[str, float]
    higher_is_better: Mapping[str, bool]
    encoders: tuple[EncoderPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """The section as JSON values."""
        return {
            "widths": list(self.widths),
            "stages": list(self.stages),
            "reference": dict(self.reference),
            "higher_is_better": dict(self.higher_is_better),
            "encoders": [
                {
                    "name": encoder.name,
                    "widths": list(encoder.widths),
                    "programs": list(encoder.programs),
                    "decoders": {
                        task: [{"width": p.width, "programs": list(p.programs), "metric": p.metric} for p in points]
                        for task, points in encoder.decoders.items()
                    },
                }
                for encoder in self.encoders
            ],
        }


@dataclass(frozen=True)
class Quantization:
    """The precision of operators that are not in floating point, and the target that it was chosen for.

    `weights` is the range of weights: ``"full"`` (8 bits), which an x86 processor without VNNI computes wrongly, or
    ``"reduced"`` (7 bits), which is right everywhere.
    """

    precision: str
    target: str
    weights: str


@dataclass(frozen=True)
class FileInfo:
    """What a payload must be: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says of itself. `programs` is in topological order.

    With `widths`, programs of different configurations may make tensors of one name; within what one configuration
    runs, each is made once. `dimensions` are the sizes that named dimensions are meant for, and `engines` the TensorRT
    engines of program files, by file.
    """

    tasks: Mapping[str, TaskInfo]
    inputs: tuple[TensorInfo, ...]
    programs: tuple[ProgramInfo, ...]
    files: Mapping[str, FileInfo]
    preprocessing: Preprocessing | None = None
    configurations: tuple[Configuration, ...] = ()
    device: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    widths: Widths | None = None
    dimensions: Mapping[str, Sizes] = field(default_factory=dict)
    engines: Mapping[str, EngineInfo] = field(default_factory=dict)
    quantization: Quantization | None = None
    openvino: OpenVinoInfo | None = None

    def precision(self, backend: str) -> str:
        """What the backend called so computes in: TensorRT in that of the engines, others in that of the files."""
        if backend == "tensorrt" and self.engines:
            return " and ".join(sorted({engine.precision for engine in self.engines.values()}))
        return "fp32" if self.quantization is None else self.quantization.precision

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON values, as `read_manifest` takes them."""
        tasks = {}
        for name, task in self.tasks.items():
            tasks[name] = {
                "output": task.output,
                "shape": list(task.shape),
                "dtype": task.dtype,
                "kind": task.kind,
                "metric": task.metric,
                "unit": task.unit,
                **({"classes": list(task.classes)} if task.classes is not None else {}),
                **({"postprocess": task.postprocess.to_dict()} if task.postprocess is not None else {}),
                **({"decoder": task.decoder} if task.decoder is not None else {}),
            }
        return {
            "schema": self.schema,
            "tasks": tasks,
            "inputs": [{"name": i.name, "shape": list(i.shape), "dtype": i.dtype} for i in self.inputs],
            "preprocessing": None
            if self.preprocessing is None
            else {
                "scale": self.preprocessing.scale,
                "mean": list(self.preprocessing.mean),
                "std": list(self.preprocessing.std),
                "color": self.preprocessing.color,
                "layout": self.preprocessing.layout,
                # Only where it says something: an older runtime knows neither.
                **(
                    {"resize": self.preprocessing.resize, "fill": self.preprocessing.fill}
                    if self.preprocessing.resize != "stretch"
                    else {}
                ),
            },
            "programs": [
                {
                    "name": p.name,
                    "file": p.file,
                    "inputs": list(p.inputs),
                    "outputs": list(p.outputs),
                    "tasks": list(p.tasks),
                    **({"constants": dict(p.constants)} if p.constants else {}),
                    **({"names": dict(p.names)} if p.names else {}),
                    **({"experts": asdict(p.experts)} if p.experts is not None else {}),
                    **({"macs": p.macs} if p.macs is not None else {}),
                }
                for p in self.programs
            ],
            "configurations": [
                {
                    "name": c.name,
                    "programs": list(c.programs),
                    **({"encoder": c.encoder, "decoders": dict(c.decoders)} if c.encoder is not None else {}),
                }
                for c in self.configurations
            ],
            **({"widths": self.widths.to_dict()} if self.widths is not None else {}),
            **(
                {"dimensions": {name: sizes.to_list() for name, sizes in self.dimensions.items()}}
                if self.dimensions
                else {}
            ),
            **({"engines": {file: e.to_dict() for file, e in self.engines.items()}} if self.engines else {}),
            **({"quantization": asdict(self.quantization)} if self.quantization is not None else {}),
            **({"openvino": asdict(self.openvino)} if self.openvino is not None else {}),
            "device": self.device,
            "provenance": dict(self.provenance),
            "files": {path: {"sha256": f.sha256, "bytes": f.bytes} for path, f in self.files.items()},
        }
