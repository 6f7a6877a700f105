"""Runs a bundle's graphs from memory, program by program, with every tensor between them at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Protocol

import numpy as np
from onnx import ModelProto, NodeProto, helper

from mtlc.errors import UserError, nearest, reason
from mtlc.export.quantization.operators import MULTIPLIERS
from mtlc.runtime.backends.onnxruntime_backend import onnxruntime
from mtlc.runtime.bundle.manifest import Manifest, ProgramInfo

Values = dict[str, np.ndarray]


ONNXRUNTIME, OPENVINO = BACKENDS = ("onnxruntime", "openvino")


def check_backend(name: str) -> None:
    """Raises `UserError` for a `name` that is none of `BACKENDS`, `Unavailable` for one that is not installed."""
    if name not in BACKENDS:
        raise UserError(f"backend = {name!r}: must be one of {', '.join(BACKENDS)}{nearest(name, BACKENDS)}")
    if name == OPENVINO:
        import mtlc.runtime.backends.openvino_backend  # noqa: F401  says what is missing


class Runs(Protocol):
    """A loaded graph: the `outputs` by name, of what it is fed with by name."""

    def run(self, outputs: Sequence[str], feeds: Values, /) -> list[np.ndarray]: ...


class Execution:
    """Runs programs of a manifest whose files are `models`, in one of `BACKENDS` with one thread.

    Without `kernels`, which is for onnxruntime, quantised operators are computed as the graph says, in floating point
    between rounding, and not with the INT8 kernels of this processor.
    """

    def __init__(
        self, manifest: Manifest, models: Mapping[str, ModelProto], kernels: bool = True, backend: str = ONNXRUNTIME
    ) -> None:
        self.manifest = manifest
        self._kernels, self._backend = kernels, backend
        self._models = dict(models)
        self._sessions: dict[str, Runs] = {}

    def replace(self, file: str, model: ModelProto) -> None:
        """Take another graph for `file`."""
        self._models[file] = model
        self._sessions.pop(file, None)

    def graph(self, file: str) -> ModelProto:
        return self._models[file]

    def run(self, program: ProgramInfo, values: Mapping[str, np.ndarray]) -> Values:
        """The outputs of one program on tensors of `values`, by their names in the bundle."""
        return self.run_with(program, values, ())[0]

    def run_with(
        self, program: ProgramInfo, values: Mapping[str, np.ndarray], further: Sequence[str]
    ) -> tuple[Values, list[np.ndarray]]:
        """`run`, and with it the `further` outputs of the program's graph, by the graph's names."""
        outputs = [program.names.get(name, name) for name in program.outputs]
        arrays = self.run_file(program.file, [*outputs, *further], feeds(program, values))
        return dict(zip(program.outputs, arrays, strict=False)), arrays[len(outputs) :]

    def run_file(self, file: str, outputs: Sequence[str], inputs: Values) -> list[np.ndarray]:
        """The `outputs` of a graph for its `inputs`, both by the graph's own names.

        Raises `UserError` naming the file that the backend cannot load or run.
        """
        loaded = self._session(file)
        try:
            return loaded.run(outputs, inputs)
        except Exception as error:
            raise UserError(f"{file}: {self._backend} cannot run it: {reason(error)}") from error

    def run_all(self, programs: Iterable[ProgramInfo], values: Mapping[str, np.ndarray]) -> Values:
        """What `programs`, in their order, make of `values`: all their outputs."""
        known = dict(values)
        made: Values = {}
        for program in programs:
            outputs = self.run(program, known)
            known |= outputs
            made |= outputs
        return made

    def _session(self, file: str) -> Runs:
        if file not in self._sessions:
            if self._backend == OPENVINO:
                self._sessions[file] = _compiled(self._models[file], file)
            else:
                self._sessions[file] = session(self._models[file], file, self._kernels)
        return self._sessions[file]


def session(model: ModelProto, what: str, kernels: bool = True) -> onnxruntime.InferenceSession:
    """An onnxruntime session of a graph in memory. Raises `UserError` naming `what` it cannot load."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not kernels:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{what}: onnxruntime cannot load it: {reason(error)}") from error


def _compiled(model: ModelProto, what: str) -> Runs:
    """What the runtime's OpenVINO backend makes of a graph in memory.

    Raises `UserError` naming `what` it cannot load.
    """
    from mtlc.runtime.backends.openvino_backend import OpenVINO

    try:
        return OpenVINO().compile(model.SerializeToString(), threads=1)
    except Exception as error:
        raise UserError(f"{what}: OpenVINO cannot load it: {reason(error)}") from error


def feeds(program: ProgramInfo, values: Mapping[str, np.ndarray]) -> Values:
    """What the program's file takes, by its own names."""
    constants = {name: np.array([value], np.int64) for name, value in program.constants.items()}
    return {program.names.get(name, name): values[name] for name in program.inputs} | constants


def results(manifest: Manifest, file: str) -> set[str]:
    """The outputs of `file` that are a task's result, by the file's own names."""
    wanted = {task.output for task in manifest.tasks.values()}
    return {
        program.names.get(name, name)
        for program in manifest.programs
        if program.file == file
        for name in program.outputs
        if name in wanted
    }


def needed(programs: Sequence[ProgramInfo], wanted: Iterable[str], known: Iterable[str]) -> list[ProgramInfo]:
    """Those of `programs` that make the tensors `wanted` out of those that are `known`, in their order."""
    have, front, chosen = set(known), set(wanted), set()
    for program in reversed(programs):
        if any(name in front and name not in have for name in program.outputs):
            chosen.add(program.name)
            front |= set(program.inputs)
    return [program for program in programs if program.name in chosen]


def multiplications(execution: Execution, file: str, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Multiply-accumulates of each Conv, ConvTranspose, Gemm and MatMul of the file's main graph, by node name.

    Shapes are those of a run on `inputs`, so what a router decides counts as it was decided.
    """
    original = execution.graph(file)
    nodes = [node for node in original.graph.node if node.op_type in MULTIPLIERS]
    stored = {tensor.name: tuple(tensor.dims) for tensor in original.graph.initializer}
    wanted = {name for node in nodes for name in (*node.input[:2], node.output[0])} - set(stored)
    model = ModelProto()
    model.CopyFrom(original)
    outputs = {value.name for value in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    for name in sorted((wanted & made) - outputs):
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    arrays = session(model, file, kernels=False).run(sorted(wanted & made), dict(inputs))
    shapes = dict(zip(sorted(wanted & made), (array.shape for array in arrays), strict=True))
    shapes |= {name: array.shape for name, array in inputs.items()} | stored
    return {node.name: _macs(node, shapes) for node in nodes}


def _macs(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    first, second, output = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":  # weight (C_out, C_in / groups, …)
        return prod(output) * prod(second[1:])
    if node.op_type == "ConvTranspose":  # weight (C_in, C_out / groups, …)
        return prod(first) * prod(second[1:])
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return prod(output) * first[0 if transposed else 1]
    return prod(output) * first[-1]
