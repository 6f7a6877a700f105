"""Lists the kernels that onnxruntime runs for a program, with the shapes that they run on.

What runs differs from what was exported: onnxruntime folds, fuses and computes convolutions in a blocked layout. So the
program is lowered as for a bundle, optimised by onnxruntime, and run a few times with its profiler on; every kernel of
the optimised graph is listed with the layer that it was exported from and its own time in that run.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from mtlc.errors import UserError
from mtlc.files import scratch_folder
from mtlc.hw.latency_table.sessions import session_options
from mtlc.hw.measure.kernel_times import ExportedNodes
from mtlc.hw.measure.layer_profile import UNATTRIBUTED
from mtlc.hw.measure.program_latency import exported
from mtlc.runtime.backends.onnxruntime_backend import onnxruntime
from mtlc.runtime.bundle.manifest import ProgramInfo
from mtlc.runtime.bundle.open_bundle import open_bundle

if TYPE_CHECKING:
    from mtlc.program.program import Program

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
    it was exported from (``"(runtime)"`` for what onnxruntime added). `reads` (by place, "" for constants) and `writes`
    are the names of tensors. `constants` has the values of its small constant inputs by place, which a probe of it
    needs.
    """

    layer: str
    operator: str
    attributes: str
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand, ...]
    ms: float
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
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
    """The kernels of a program in the order of their first run, with how often each runs for all tasks.

    `calls` counts the runs of sessions, as a bundle has one for its trunk and one for each head.
    """

    kernels: tuple[Kernel, ...]
    runs: tuple[int, ...]
    calls: int

    @property
    def kernel_runs(self) -> int:
        return sum(self.runs)


def trace_program(program: Program, threads: int = 1) -> Traced:
    """The kernels of one sample through all tasks. Takes seconds, mostly to export. Raises as `export_bundle` does."""
    with exported(program) as (bundle, inputs):
        return trace_bundle(bundle, inputs, threads)


def trace_bundle(bundle: Path, inputs: Mapping[str, np.ndarray], threads: int = 1) -> Traced:
    """The kernels of a bundle that run for all tasks in its default configuration."""
    kernels: dict[str, list[Kernel]] = {}
    runs: dict[str, int] = {}
    values = dict(inputs)
    sessions = {}
    with open_bundle(bundle) as opened, scratch_folder("kernels") as scratch:
        programs = {info.name: info for info in opened.manifest.programs}
        # The programs are really run, one after the other: each needs what those before it made, and routing or masks
        # decide what later kernels have to do.
        first = opened.manifest.configurations[0]
        for info in (programs[name] for name in first.programs):
            if info.experts is not None:
                raise UserError(f"{bundle}: its experts lie outside the graphs, so no table tells how long they take")
            file = opened.file(info.file)
            feeds = {info.names.get(name, name): values[name] for name in info.inputs}
            feeds |= {name: np.array([value], np.int64) for name, value in info.constants.items()}
            # Programs that share a file (a head run for several tasks) are profiled once, and count once for each run.
            if info.file not in sessions:
                found, sessions[info.file] = _profiled(file, feeds, info, Path(scratch), threads)
                kernels[info.file] = found
            runs[info.file] = runs.get(info.file, 0) + 1
            outputs = sessions[info.file].run([info.names.get(name, name) for name in info.outputs], feeds)
            values |= dict(zip(info.outputs, outputs, strict=True))
    return Traced(
        tuple(kernel for found in kernels.values() for kernel in found),
        tuple(runs[file] for file, found in kernels.items() for _ in found),
        sum(runs.values()),
    )


def _profiled(
    file: Path, feeds: Mapping[str, np.ndarray], info: ProgramInfo, scratch: Path, threads: int
) -> tuple[list[Kernel], onnxruntime.InferenceSession]:
    """The kernels of one program's file, and the session, whose profile has ended."""
    options = session_options(threads)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(scratch / "optimised.onnx")
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    # One session writes down both what it made of the graph and how long each node took: their names agree.
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for _ in range(_TURNS):
        session.run(None, dict(feeds))
    profile = Path(session.end_profiling())
    model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    exported = ExportedNodes(onnx.load(file, load_external_data=False))
    times, first = _kernel_times(profile)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    back = {inner: name for name, inner in info.names.items()}
    shared = {info.names.get(name, name) for name in (*info.inputs, *info.outputs)}

    # Tensors handed from program to program keep the bundle's name, so that sizes can be followed across the cut; what
    # stays inside a file gets the file's name before it, or tensors of two files would be taken for one.
    def whole(name: str) -> str:
        return back.get(name, name) if name in shared else f"{info.file}/{name}" if name else ""

    kernels = []
    for name, args in first.items():
        each = max(len(times[name]) / _TURNS, 1.0)  # a kernel inside a loop or a subgraph runs several times
        path, _ = exported.find((name,), str(args.get("op_name")))
        layer = UNATTRIBUTED if path is None else path
        kernel = _kernel(nodes.get(name), args, layer, constants, float(np.median(times[name])) * each)
        if (found := nodes.get(name)) is not None:
            reads = zip(found.input, kernel.inputs, strict=True)
            kernel = replace(
                kernel,
                reads=tuple("" if operand is None or operand.weight else whole(tensor) for tensor, operand in reads),
                writes=tuple(whole(tensor) for tensor in found.output),
            )
        kernels.append(kernel)
    return kernels, session


def _kernel_times(profile: Path) -> tuple[dict[str, list[float]], dict[str, Mapping[str, Any]]]:
    """By node, in the order of their first run: the ms of every run, and what the profile says of the first."""
    times: dict[str, list[float]] = defaultdict(list)
    first: dict[str, Mapping[str, Any]] = {}
    for event in json.loads(profile.read_text()):
        name = str(event.get("name", ""))
        # A node has several events; this one is the kernel alone, in µs, without what the session does around it.
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            node = name.removesuffix("_kernel_time")
            times[node].append(event["dur"] / 1e3)
            first.setdefault(node, event["args"])
    return times, first


def _kernel(
    node: onnx.NodeProto | None,
    args: Mapping[str, Any],
    layer: str,
    constants: Mapping[str, onnx.TensorProto],
    ms: float,
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
            if tensor.data_location != TensorProto.EXTERNAL and math.prod(shape) <= _SMALL and len(shape) <= 1:
                small[place] = numpy_helper.to_array(tensor)
        else:
            operands.append(Operand(*listed.pop(0)) if listed else None)
    attributes = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    return Kernel(
        layer,
        f"{node.domain}:{node.op_type}",
        json.dumps(attributes, sort_keys=True),
        tuple(operands),
        outputs,
        ms,
        constants=small,
    )


def _typed(listed: Sequence[Mapping[str, Sequence[int]]]) -> Iterator[tuple[str, Shape]]:
    return ((kind, tuple(shape)) for entry in listed for kind, shape in entry.items())


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto | onnx.GraphProto):
        return "…"
    return [_plain(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
