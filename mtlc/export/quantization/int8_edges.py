"""Passes tensors from program to program as 8-bit numbers, rounded once by the program that makes them.

Exact: where every reader begins by rounding the tensor in the same way, that rounding moves to the maker. The tensor
takes a quarter of the memory on its way, and is rounded once, not once by each reader::

    before   trunk --(float32)--+--> Q --> DQ --> head-a        Q: QuantizeLinear, DQ: DequantizeLinear
                                +--> Q --> DQ --> head-b

    after    trunk --> Q --(int8)--+--> DQ --> head-a
                                   +--> DQ --> head-b

Tensors that are a task's result stay as they are, and so do those that some reader rounds otherwise or reads in full.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mtlc.export.quantization.operators import QUANTIZE
from mtlc.runtime.bundle.manifest import Manifest

Place = tuple[str, str]
"""A file, and a tensor by the file's name for it."""
Rounding = tuple[bytes, bytes, int]
"""Scale and zero point, and the type of the rounded numbers."""


def round_edges_in_maker(manifest: Manifest, models: Mapping[str, ModelProto]) -> list[str]:
    """Move the rounding of tensors between programs from their readers to their maker, in `models`, by file, in place.

    Returns the tensors that programs now pass on in 8 bits, by the maker's names.
    """
    changed = []
    for maker, readers in _edges(manifest).items():
        roundings = {_rounding(models[file], name) for file, name in readers}
        only = roundings.pop() if len(roundings) == 1 else None
        if only is None or maker[0] in {file for file, _ in readers}:
            continue
        _make(models[maker[0]], maker[1], readers, models)
        for file, name in readers:
            _read(models[file], name, only[2])
        changed.append(maker[1])
    return changed


def _edges(manifest: Manifest) -> dict[Place, set[Place]]:
    """Who reads a tensor of a file, for those that nothing else makes and that are no task's result."""
    makers: dict[str, Place] = {}
    for program in manifest.programs:
        makers |= {name: (program.file, program.names.get(name, name)) for name in program.outputs}
    found: dict[Place, set[Place]] = {}
    fed: dict[Place, set[Place | None]] = {}
    for program in manifest.programs:
        for name in program.inputs:
            reader = (program.file, program.names.get(name, name))
            fed.setdefault(reader, set()).add(makers.get(name))
            if name in makers:
                found.setdefault(makers[name], set()).add(reader)
    results = {makers[task.output] for task in manifest.tasks.values()}
    return {
        maker: readers
        for maker, readers in found.items()
        if maker not in results and all(fed[reader] == {maker} for reader in readers)
    }


def _rounders(model: ModelProto, name: str) -> list[NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def _rounding(model: ModelProto, name: str) -> Rounding | None:
    """How the graph rounds its input `name`; None if it reads it in another way too, or in two."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found: set[Rounding] = set()
    for node in _rounders(model, name):
        if node.op_type != QUANTIZE or len(node.input) != 3 or any(part not in stored for part in node.input[1:]):
            return None
        scale, zero = stored[node.input[1]], stored[node.input[2]]
        if scale.dims and list(scale.dims) != [1]:
            return None
        found.add((numpy_helper.to_array(scale).tobytes(), numpy_helper.to_array(zero).tobytes(), zero.data_type))
    return found.pop() if len(found) == 1 else None


def _make(model: ModelProto, name: str, readers: set[Place], models: Mapping[str, ModelProto]) -> None:
    """Let the graph round its output `name` as a reader does."""
    file, wanted = next(iter(sorted(readers)))
    rounder = _rounders(models[file], wanted)[0]
    inner = f"{name}.float"
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, part in enumerate(names):
                if part == name:
                    names[index] = inner
    parts = []
    for part in rounder.input[1:]:
        tensor = next(tensor for tensor in models[file].graph.initializer if tensor.name == part)
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = f"{name}.{part}"
        model.graph.initializer.append(copy)
        parts.append(copy)
    model.graph.node.append(
        helper.make_node(QUANTIZE, [inner, *(part.name for part in parts)], [name], name=f"{QUANTIZE}_{name}")
    )
    for output in model.graph.output:
        if output.name == name:
            output.type.tensor_type.elem_type = parts[1].data_type
    for value in [value for value in model.graph.value_info if value.name == name]:
        model.graph.value_info.remove(value)


def _read(model: ModelProto, name: str, data_type: int) -> None:
    """Let the graph take its input `name` rounded."""
    for rounder in _rounders(model, name):
        made = rounder.output[0]
        for node in model.graph.node:
            for index, part in enumerate(node.input):
                if part == made:
                    node.input[index] = name
        model.graph.node.remove(rounder)
    for value in model.graph.input:
        if value.name == name:
            value.type.tensor_type.elem_type = data_type
