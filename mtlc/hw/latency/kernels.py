"""The kernels that onnxruntime runs for a program, with the shapes that they run on.

What runs differs from what was exported: onnxruntime folds, fuses and computes convolutions in a blocked layout. So the
program is lowered as for a bundle, optimised by onnxruntime, and run a few times with its profiler on; every kernel of the
optimised graph is listed with the layer that it was exported from and its own time in that run.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from mtlc.export.expert_forms import place_experts
from mtlc.export.lower import lower
from mtlc.export.partition import Part, partition
from mtlc.hw.layer_profile import UNATTRIBUTED, NodeFinder
from mtlc.runtime.onnxruntime_backend import onnxruntime

if TYPE_CHECKING:
    from mtlc.program import Program

Shape = tuple[int, ...]
CONVOLUTIONS = ("Conv", "FusedConv")
PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
_SMALL = 4096  # elements of a constant that a probe needs the values of: axes, sizes, scales
_TURNS = 12
_TYPES = {1: "float", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "double"}  # of TensorProto, as profiles say


@dataclass(frozen=True)
class Operand:
    """An input of a kernel: its element type and shape; `weight` says that it is a constant of the graph."""

    type: str
    shape: Shape
    weight: bool = False


@dataclass(frozen=True)
class Kernel:
    """One kernel of an optimised graph. `ms` is its median time inside the network, under the profiler.

    `operator` is the ONNX operator with its domain, `attributes` its attributes as JSON, `layer` the path of the module
    it was exported from (``"(runtime)"`` for what onnxruntime added). `constants` has the values of its small constant
    inputs by place, which a probe of it needs.
    """

    layer: str
    operator: str
    attributes: str
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand, ...]
    ms: float
    constants: Mapping[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The operator without its domain."""
        return self.operator.rpartition(":")[2]

    @property
    def elements(self) -> int:
        """Elements that it reads and writes, weights and constants left out."""
        read = sum(int(np.prod(o.shape)) for o in self.inputs if o is not None and not o.weight)
        return read + sum(int(np.prod(o.shape)) for o in self.outputs)


@dataclass(frozen=True)
class Traced:
    """The kernels of a program by the calls that run them, in order; `calls` counts sessions' runs for all tasks."""

    kernels: tuple[Kernel, ...]
    calls: int


def trace_kernels(program: Program, threads: int = 1) -> Traced:
    """The kernels of one sample through all tasks. Seconds, most of them for the export. Raises what `lower` raises."""
    lowered = lower(program, together=False)
    place_experts(lowered.model, "auto", "auto")
    parts = partition(lowered)
    generator = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {}
    for name, tensor in program.example.items():
        array = tensor[:1].cpu().numpy()
        values[name] = generator.standard_normal(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
    kernels: list[Kernel] = []
    calls = 0
    with TemporaryDirectory(prefix="mtlc-kernels-") as folder:
        for part in parts:
            turns = 1
            feeds = dict(values)
            if lowered.selector is not None and part.selected:
                turns = len(part.tasks)
                feeds[lowered.selector] = np.array([0], np.int64)
            found, outputs = _kernels(part, feeds, Path(folder), threads)
            values.update(outputs)
            kernels += found * turns
            calls += turns
    return Traced(tuple(kernels), calls)


def _kernels(
    part: Part, values: Mapping[str, np.ndarray], folder: Path, threads: int
) -> tuple[list[Kernel], dict[str, np.ndarray]]:
    file, optimised = folder / f"{len(list(folder.iterdir()))}.onnx", folder / "optimised.onnx"
    onnx.save(part.model, file)
    options = session_options(threads)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(optimised)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: values[value.name] for value in session.get_inputs()}
    for _ in range(_TURNS):
        outputs = session.run(list(part.outputs), feeds)
    profile = Path(session.end_profiling())
    model = onnx.load(optimised)
    finder = NodeFinder(part.model)
    times: dict[str, list[float]] = defaultdict(list)
    first: dict[str, Mapping[str, Any]] = {}
    for event in json.loads(profile.read_text()):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            node = name.removesuffix("_kernel_time")
            times[node].append(event["dur"] / 1e3)
            first.setdefault(node, event["args"])
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    kernels = []
    for name, args in first.items():
        runs = sorted(times[name])
        each = len(runs) / _TURNS  # a kernel inside a loop or a subgraph runs several times
        ms = float(np.median(runs)) * max(each, 1.0)
        kernels.append(_kernel(nodes.get(name), args, finder.layer(name, str(args.get("op_name"))), constants, ms))
    return kernels, dict(zip(part.outputs, outputs, strict=True))


def _kernel(
    node: onnx.NodeProto | None, args: Mapping[str, Any], layer: str, constants: Mapping[str, onnx.TensorProto], ms: float
) -> Kernel:
    shapes: Iterator[tuple[str, Shape]] = _typed(args.get("input_type_shape", ()))
    outputs = tuple(Operand(*typed) for typed in _typed(args.get("output_type_shape", ())))
    if node is None:  # inside a subgraph: listed by its shapes, measured in context only
        inputs = tuple(Operand(*typed) for typed in shapes)
        return Kernel(layer, f"inner:{args.get('op_name')}", "{}", inputs, outputs, ms)
    operands: list[Operand | None] = []
    small: dict[int, np.ndarray] = {}
    listed = list(shapes)
    for place, name in enumerate(node.input):
        if not name:
            operands.append(None)
        elif name in constants:  # the profile leaves out the weights that a kernel has packed for itself
            tensor = constants[name]
            shape = tuple(tensor.dims)
            if listed and listed[0][1] == shape:
                del listed[0]
            operands.append(Operand(_TYPES.get(tensor.data_type, "other"), shape, weight=True))
            if np.prod(shape) <= _SMALL and len(shape) <= 1:
                small[place] = numpy_helper.to_array(tensor)
        else:
            operands.append(Operand(*listed.pop(0)) if listed else None)
    attributes = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    return Kernel(
        layer, f"{node.domain}:{node.op_type}", json.dumps(attributes, sort_keys=True), tuple(operands), outputs, ms, small
    )


def _typed(listed: Sequence[Mapping[str, Sequence[int]]]) -> Iterator[tuple[str, Shape]]:
    return ((kind, tuple(shape)) for entry in listed for kind, shape in entry.items())


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto | onnx.GraphProto):
        return "…"
    return [_plain(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def session_options(threads: int) -> Any:
    """What the runtime sets (`mtlc.runtime.onnxruntime_backend`), without optimisation: for graphs that are final."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.inter_op_num_threads, options.intra_op_num_threads = 1, threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options
