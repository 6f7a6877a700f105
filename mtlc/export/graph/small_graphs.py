"""Shrinks an ONNX graph to what running it needs: short names, no metadata, no type that follows from others.

A bundle of many widths has hundreds of programs over the same weights. The weights are stored once, so that the bundle
is as large as the graphs make it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count, product
from string import ascii_letters

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from mtlc.export.graph.lower import rename_tensors, tensor_names
from mtlc.export.graph.weights_file import INLINE_BYTES


def shrink_graph(model: ModelProto, edges: Mapping[str, str]) -> None:
    """Take out of `model`, in place, what running it does not need, and rename its inputs and outputs by `edges`.

    What goes: types of inner tensors that shape inference finds again, metadata, small constants that are there twice,
    and attributes that have their default value. Inner tensors get short names. A node with a name keeps the path of
    its module, ``<path>/<operator>_<i>``, with the node's place in this model, so that equal programs are equal files.
    """
    graph = model.graph
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    _merge_constants(graph)
    types = _needed_types(model)
    del graph.value_info[:]
    graph.value_info.extend(types)
    for index, node in enumerate(graph.node):
        path, slash, _ = node.name.rpartition("/")
        node.name = f"{path}/{node.op_type}_{index}" if slash else ""
        del node.metadata_props[:]
        _drop_defaults(node, opset)
    edge = {value.name for value in (*graph.input, *graph.output)}
    taken = {edges.get(name, name) for name in edge}
    short = (name for name in _short_names() if name not in taken)
    inner = [name for node in graph.node for name in (*node.input, *node.output)]
    inner += sorted(tensor_names(graph))
    renames = {name: edges.get(name, name) for name in edge}
    for name in inner:
        if name and name not in renames:
            renames[name] = next(short)
    rename_tensors(graph, renames)


def _needed_types(model: ModelProto) -> list[ValueInfoProto]:
    """The types of inner tensors that shape inference does not find from the types of what their node reads.

    A backend plans better with them. A Resize by constant scales, for one, loses the name of the batch; what follows it
    is then not known to have the shape of what it is added to.
    """
    bare = ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.graph.CopyFrom(GraphProto(name="types", node=model.graph.node, value_info=model.graph.value_info))
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    constants = {tensor.name: _header(tensor) for tensor in model.graph.initializer}
    bare.graph.initializer.extend(constants.values())
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    known = {value.name: value for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    kept = []
    recorded = {value.name: value for value in model.graph.value_info}
    for node in model.graph.node:
        asked = [recorded[name] for name in node.output if name in recorded]
        if not asked:
            continue
        reads = dict.fromkeys(name for name in node.input if name)
        one = onnx.helper.make_graph(
            [node],
            "node",
            [known[name] for name in reads if name in known and name not in constants],
            [onnx.helper.make_empty_tensor_value_info(value.name) for value in asked],
            [constants[name] for name in reads if name in constants],
        )
        alone = onnx.helper.make_model(one, opset_imports=model.opset_import, ir_version=model.ir_version)
        found = {value.name: value for value in onnx.shape_inference.infer_shapes(alone, data_prop=True).graph.output}
        kept += [value for value in asked if _sizes(found[value.name]) != _sizes(value)]
    return kept


def _sizes(value: ValueInfoProto) -> list[int | str] | None:
    tensor = value.type.tensor_type
    return [d.dim_param or d.dim_value for d in tensor.shape.dim] if tensor.HasField("shape") else None


def _header(tensor: TensorProto) -> TensorProto:
    """A large tensor without its content; inference reads that of small ones only."""
    if tensor.ByteSize() < INLINE_BYTES:
        return tensor
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)


def _short_names() -> Iterator[str]:
    for length in count(1):
        for letters in product(ascii_letters, repeat=length):
            yield "".join(letters)


def _merge_constants(graph: GraphProto) -> None:
    """Equal small tensors of the main graph become one."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renames: dict[str, str] = {}
    kept: list[TensorProto] = []
    for tensor in graph.initializer:
        if tensor.HasField("raw_data") and len(tensor.raw_data) < INLINE_BYTES:
            key = (tensor.data_type, tuple(tensor.dims), tensor.raw_data)
            if first.setdefault(key, tensor.name) != tensor.name:
                renames[tensor.name] = first[key]
                continue
        kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    rename_tensors(graph, renames)


def _drop_defaults(node: NodeProto, opset: int) -> None:
    """Drop the node's attributes that have their default value, as the operator's schema states it."""
    if node.domain not in ("", "ai.onnx"):
        return
    schema = onnx.defs.get_schema(node.op_type, opset)
    kept = [
        attribute
        for attribute in node.attribute
        if not _same(attribute, schema.attributes[attribute.name].default_value) and not _unit(node, attribute)
    ]
    del node.attribute[:]
    node.attribute.extend(kept)


def _same(one: AttributeProto, two: AttributeProto) -> bool:
    if one.type != two.type:
        return False
    value, default = onnx.helper.get_attribute_value(one), onnx.helper.get_attribute_value(two)
    return bool(value == default)


def _unit(node: NodeProto, attribute: AttributeProto) -> bool:
    """A stride or a dilation of 1, or a pad of 0, along every axis: the default that the schema of convolutions tells
    in words only.
    """
    expected = {"strides": 1, "dilations": 1, "pads": 0}.get(attribute.name)
    return node.op_type in ("Conv", "ConvTranspose") and bool(attribute.ints) and set(attribute.ints) == {expected}
