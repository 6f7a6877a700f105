"""Lowers a `Program` to one ONNX graph with named inputs and one named output per task.

The dynamo exporter is the only one used: it refuses data-dependent control flow instead of dropping a branch. It names
outputs by position, so the names set here are a claim that `mtlc.export.bundle.verify` checks with numbers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

import mtlc
from mtlc.errors import MtlcError, UserError, one_line
from mtlc.export.graph import batch_norms
from mtlc.export.graph.expert_operators import translations
from mtlc.export.graph.onnx_names import NO_MODULE, SCOPES, WRAPPER, module_path
from mtlc.program.plain_state import copied
from mtlc.program.program import Program
from mtlc.program.task_modules import TaskConditioned, TaskOutputs, is_task_conditioned

OPSET = 20
BATCH = "batch"
SELECTOR = "task"
"""The input of a task-conditioned trunk: the place of the task among the network's tasks, int64 (1,)."""


@dataclass(frozen=True)
class Lowered:
    """An ONNX model, the names of its inputs, and the output tensor of each task.

    With a `selector`, an input beside `inputs`, an output is the task's only where the selector says so. Expert layers
    are nodes of `mtlc.export.graph.expert_operators` still.
    """

    model: ModelProto
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    selector: str | None = None


def inference_copy(program: Program) -> Program:
    """The program on the CPU in eval mode, to compute with; the caller's module keeps its mode and device.

    Parameters that are on the CPU are the caller's own: they must not be changed.
    """
    return replace(program, module=copied(program.module, share_parameters=True).cpu().eval())


def lower(program: Program, together: bool = False, fold_norms: bool = True) -> Lowered:
    """Export the program in eval mode, opset 20, with the batch as the one free dimension.

    A task-conditioned network gets its task as an input, unless its tasks always run `together`. Batch norms are folded
    into the weights before them, and weights that a parametrization computes are stored computed; without `fold_norms`
    both stay operators, and every weight is the network's own.

    Node names are ``<module path>/<operator>``, so that a profile can be joined to the module. Raises `UserError` that
    names the exporter's reason and, where it is known, the layer.
    """
    program = inference_copy(program)
    if fold_norms:
        _compute_weights(program.module)
    selected = is_task_conditioned(program) and not together
    wrapped = (TaskConditioned if selected else TaskOutputs)(program).eval()
    batched: tuple[Any, ...] = ({0: torch.export.Dim(BATCH)},) * len(program.example)
    # The selector keeps its size of 1: it is one task for the whole batch.
    dynamic = (*batched, None) if selected else batched
    example = (*_example(program), torch.zeros(1, dtype=torch.int64)) if selected else _example(program)
    where = f"[export] {type(program.module).__name__} cannot be exported"
    table = translations() if fold_norms else translations() | batch_norms.translations()
    with _quiet():
        try:
            with torch.no_grad():
                exported = torch.export.export(wrapped, example, dynamic_shapes=(dynamic,), strict=False)
        except MtlcError:
            raise
        except Exception as error:
            raise UserError(f"{where}: {_reason(error)}{_layer_of_traceback(program, error)}") from error
        try:
            # Without gradients here too: with them, attention decomposes to another layout of its result than it was
            # exported with, and a view of that is refused.
            with torch.no_grad():
                onnx_program = torch.onnx.export(
                    exported, (), dynamo=True, opset_version=OPSET, verbose=False, custom_translation_table=table
                )
            if onnx_program is None:
                raise RuntimeError("the exporter returned nothing")
            model = onnx_program.model_proto
            del onnx_program, exported  # they hold what large networks have no room for twice
        except Exception as error:
            raise UserError(f"{where}: {_reason(error)}{_layer_of_node(error)}") from error
    batch_norms.restore(model)
    return _named(model, program, selected)


def _compute_weights(module: torch.nn.Module) -> None:
    """Store what parametrizations (weight_norm, spectral_norm, orthogonal, …) compute in every call, in place.

    `module` is a copy. torch's own `remove_parametrizations` would take the weight from the original as well: the two
    share a class that has it as a property.
    """
    for layer in [layer for layer in module.modules() if is_parametrized(layer)]:
        with torch.no_grad():
            weights = {name: getattr(layer, name).detach().clone() for name in _parametrized(layer)}
        layer.__class__ = type_before_parametrizations(layer)
        del layer.parametrizations
        for name, weight in weights.items():
            layer.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))


def _parametrized(layer: torch.nn.Module) -> list[str]:
    """The names of the layer's tensors that a parametrization computes."""
    return [name for name, _ in layer.get_submodule("parametrizations").named_children()]


def _example(program: Program) -> tuple[Tensor, ...]:
    """Each input at batch 2: torch.export takes a size of 0 or 1 for a constant."""
    rows = []
    for name, tensor in program.example.items():
        if tensor.ndim == 0 or len(tensor) == 0:
            shape = tuple(tensor.shape)
            raise UserError(f"input {name!r}: the example has no batch dimension to export with, its shape is {shape}")
        rows.append(tensor[:1].detach().cpu().repeat(2, *(1,) * (tensor.ndim - 1)))
    return tuple(rows)


def _named(model: ModelProto, program: Program, selected: bool) -> Lowered:
    """Give inputs, outputs, the batch dimension and nodes their names, and drop what only debugging needs."""
    graph = model.graph
    inputs = program.inputs
    if selected:
        taken = {*inputs, *program.task_names}
        inputs = (*inputs, next(name for name in (SELECTOR, f"{SELECTOR}_index", f"{SELECTOR}.0") if name not in taken))
    if len(graph.input) != len(inputs) or len(graph.output) != len(program.tasks):
        raise UserError(
            f"[export] {type(program.module).__name__}: the exporter gave {len(graph.input)} inputs and "
            f"{len(graph.output)} outputs for {len(inputs)} inputs and {len(program.tasks)} tasks"
        )
    # Names are claimed in an order: inputs keep the program's, outputs give way to them, inner tensors to both.
    outputs = {task: task if task not in inputs else f"{task}_output" for task in program.task_names}
    # Before anything is renamed: two outputs that are one tensor could only get one name.
    _detach_outputs(graph)
    renames = dict(zip((i.name for i in graph.input), inputs, strict=True))
    renames.update(zip((o.name for o in graph.output), outputs.values(), strict=True))
    taken = set(renames.values())
    for name in tensor_names(graph) - set(renames):
        if name in taken:
            renames[name] = f"{name}.inner"
    rename_tensors(graph, renames)
    symbols = {i.type.tensor_type.shape.dim[0].dim_param for i in graph.input} - {""}
    values = [*graph.input, *graph.output, *graph.value_info]
    for value in values:
        for dimension in value.type.tensor_type.shape.dim:
            for symbol in symbols if dimension.HasField("dim_param") else ():
                # Whole words only: a symbol may be part of an expression (65*s0), or of a longer symbol's name.
                dimension.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", BATCH, dimension.dim_param)
    for item in (*values, *graph.initializer):
        del item.metadata_props[:]
    _name_nodes(graph)
    _quicken_resizes(graph)
    # The exporter's metadata holds stack traces with paths of the exporting machine.
    del model.metadata_props[:]
    del graph.metadata_props[:]
    graph.doc_string = model.doc_string = ""
    graph.name = type(program.module).__name__
    model.producer_name, model.producer_version = "mtlc", mtlc.__version__
    return Lowered(model, program.inputs, outputs, inputs[-1] if selected else None)


def _detach_outputs(graph: GraphProto) -> None:
    """Give every output a node of its own where it is an input, a weight, or the same tensor as another output."""
    taken = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    for index, output in enumerate(graph.output):
        if output.name in taken:
            name = f"{output.name}.output_{index}"
            graph.node.append(onnx.helper.make_node("Identity", [output.name], [name], name=name))
            output.name = name
        taken.add(output.name)


def _quicken_resizes(graph: GraphProto) -> None:
    """Write ``half_pixel`` resizes as ``pytorch_half_pixel``, for which onnxruntime has a faster kernel.

    The two differ only where an output side is one pixel long (ONNX, operator Resize); those are left as they are.
    """
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.output)}
    for node in graph.node:
        sides = [dimension.dim_value for dimension in shapes.get(node.output[0], ())][2:]
        if node.op_type != "Resize" or not sides or min(sides) <= 1:
            continue
        for attribute in node.attribute:
            if attribute.name == "coordinate_transformation_mode" and attribute.s == b"half_pixel":
                attribute.s = b"pytorch_half_pixel"


def _name_nodes(graph: GraphProto) -> None:
    for index, node in enumerate(graph.node):
        path = module_path(node) or ""
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
        del node.metadata_props[:]
        if scopes is not None and NO_MODULE not in scopes:
            node.metadata_props.add(key=SCOPES, value=scopes)
        node.name = f"{path}/{node.op_type}_{index}"
        node.doc_string = ""


def tensor_names(graph: GraphProto) -> set[str]:
    """The tensors of a graph and of the graphs inside it."""
    names = {name for node in graph.node for name in (*node.input, *node.output)} | {i.name for i in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                names |= tensor_names(inner)
    return names - {""}


def rename_tensors(graph: GraphProto, renames: Mapping[str, str]) -> None:
    """Give tensors other names, in place, in a graph and in the graphs inside it."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renames.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [renames.get(name, name) for name in node.input]
        node.output[:] = [renames.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                rename_tensors(inner, renames)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports through prints, warnings and loggers; what matters arrives as exceptions."""
    # Of all loggers at once: the exporter reports through many.
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _reason(error: BaseException) -> str:
    """The exporter's reason in one line of our words where it is a known one."""
    text = str(error)
    if "GuardOnDataDependent" in type(error).__name__ or "data-dependent" in text.split("\n", 1)[0]:
        return "its control flow depends on the data; write it without branches (torch.where, masks)"
    if "Constraints violated" in text:
        return "its code fixes the batch size: take it from x.shape[0], without an operation that fits one size only"
    cause: BaseException | None = error
    while cause is not None:
        match = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(cause))
        if match:
            return f"the operator {match.group(1)} has no ONNX form"
        if cause.__cause__ is None:
            break
        cause = cause.__cause__
    return one_line(cause or error)


def _layer_of_traceback(program: Program, error: BaseException) -> str:
    """`` (layer 'a.b', Linear)`` for the innermost module that was running when the error was raised."""
    names = {id(module): name for name, module in program.module.named_modules()}
    found, trace = None, error.__traceback__
    while trace is not None:
        module: Any = trace.tb_frame.f_locals.get("self")
        if id(module) in names:
            found = module
        trace = trace.tb_next
    return _layer(names[id(found)], type(found).__name__) if found is not None else ""


def _layer_of_node(error: BaseException) -> str:
    """The same for the graph node that was being translated when the error was raised."""
    cause: BaseException | None = error
    while cause is not None:
        trace = cause.__traceback__
        while trace is not None:
            node = trace.tb_frame.f_locals.get("node")
            stack = node.meta.get("nn_module_stack") if isinstance(node, torch.fx.Node) else None
            if stack:
                path, kind = list(stack.values())[-1]
                return _layer(path.removeprefix(WRAPPER).removeprefix("."), str(kind).rsplit(".", 1)[-1])
            trace = trace.tb_next
        cause = cause.__cause__
    return ""


def _layer(path: str, kind: str) -> str:
    return f" (layer {path!r}, {kind})" if path else f" (in the forward of {kind})"
