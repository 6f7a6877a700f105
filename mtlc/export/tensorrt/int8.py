"""Rewrites a quantised ONNX graph (Q/DQ) as TensorRT takes one: zero point 0 everywhere, biases in floating point.

======================================  =====================================  =======================================
what is there                           what becomes of it                     effect on the numbers
======================================  =====================================  =======================================
int8, zero point 0                      stays                                  none
uint8, zero point 128                   int8, same scale                       none
uint8 activations, zero point 0         int8, scale · 255 / 127, behind a      the same range 0 … 255·s in 127 steps
(after a ReLU)                          Relu, as uint8 cuts off what is below  instead of 255: error s/2 to 1.004·s
int32 biases behind DequantizeLinear    float32 initializers                   none
anything else                           refused by name
======================================  =====================================  =======================================

Scales per channel keep their axis. Weights that are float32 initializers between Q and DQ stay so: TensorRT folds them.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mtlc.errors import UserError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_NOT_NEGATIVE = {"Relu", "Sigmoid", "Softmax"}
_ADVICE = "quantise symmetrically, in 8 bits"


def is_quantised(model: ModelProto) -> bool:
    """Whether the graph has Q or DQ nodes."""
    return any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph.node)


def to_symmetric(model: ModelProto) -> ModelProto:
    """`model`, whose weights are loaded, with symmetric int8 Q/DQ only; it is not changed.

    Raises `UserError` naming the node for a zero point, a type or a form that int8 with zero point 0 cannot stand for.
    """
    made = ModelProto()
    made.CopyFrom(model)
    _Symmetric(made).run()
    return made


class _Symmetric:
    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.tensors[node.output[0]] = node.attribute[0].t
        self.written: dict[str, TensorProto] = {}
        self.kinds: dict[str, np.dtype] = {}  # of what Q nodes gave out before they were converted
        self.makers = {name: node.op_type for node in self.graph.node for name in node.output}

    def run(self) -> None:
        nodes = []
        for node in self.graph.node:
            if node.op_type not in (QUANTIZE, DEQUANTIZE):
                nodes.append(node)
            elif node.domain not in ("", "ai.onnx"):
                raise UserError(
                    f"{node.name}: {node.op_type} is {node.domain}'s, TensorRT takes ONNX's own: "
                    "quantise without contrib operators"
                )
            elif node.op_type == DEQUANTIZE and self._is_bias(node):
                self._put(numpy_helper.from_array(self._bias(node), node.output[0]))
            else:
                if self._convert(node) and self.makers.get(node.input[0]) not in _NOT_NEGATIVE:
                    nodes.append(self._relu(node))
                nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._replace_initializers()
        inner = {name for node in nodes if node.op_type == QUANTIZE for name in node.output}
        kept = [value for value in self.graph.value_info if value.name not in inner]  # their types are other ones
        del self.graph.value_info[:]
        self.graph.value_info.extend(kept)

    def _is_bias(self, node: NodeProto) -> bool:
        tensor = self.tensors.get(node.input[0])
        return tensor is not None and tensor.data_type == TensorProto.INT32

    def _bias(self, node: NodeProto) -> np.ndarray:
        """The int32 tensor times its scale: one for all, or one along the axis."""
        whole = numpy_helper.to_array(self.tensors[node.input[0]]).astype(np.float64)
        zero = self._array(node, 2)
        if zero is not None and zero.any():
            raise UserError(f"{node.name}: an int32 bias with a zero point: {_ADVICE}")
        scale = self._scale(node).astype(np.float64)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if scale.size > 1:
            shape = [1] * whole.ndim
            shape[axis if whole.ndim > 1 else 0] = scale.size
            scale = scale.reshape(shape)
        return (whole * scale).astype(np.float32)

    def _convert(self, node: NodeProto) -> bool:
        """Make the node int8 with zero point 0; whether it was a Q that cut off what is below zero."""
        weight = self.tensors.get(node.input[0]) if node.op_type == DEQUANTIZE else None
        zero = self._array(node, 2)
        kind = self._type(node, zero, weight)
        self.kinds[node.output[0]] = kind
        values = np.zeros(1, np.int64) if zero is None else zero.astype(np.int64)
        scale = self._scale(node)
        if kind == np.int8 and not values.any():
            new_scale = scale
        elif kind == np.uint8 and (values == 128).all():
            new_scale = scale
            if weight is not None:
                moved = numpy_helper.to_array(weight).astype(np.int16) - 128
                self._name(node, 0, moved.astype(np.int8))
        elif kind == np.uint8 and not values.any() and weight is None:
            new_scale = scale * np.float32(255 / 127)
        else:
            what = f"{np.dtype(kind).name} with zero point {', '.join(str(v) for v in np.unique(values)[:4])}"
            raise UserError(f"{node.name}: {what} is not symmetric int8, which TensorRT takes alone: {_ADVICE}")
        if kind == np.int8 and zero is not None:
            return False
        if new_scale is not scale:
            self._name(node, 1, new_scale)
        self._name(node, 2, np.zeros(scale.shape, np.int8))
        return new_scale is not scale and node.op_type == QUANTIZE

    def _relu(self, node: NodeProto) -> NodeProto:
        """A Relu before the Q `node`, which reads it."""
        relu = helper.make_node("Relu", [node.input[0]], [f"{node.output[0]}.relu"], name=f"{node.name}/Relu")
        relu.metadata_props.extend(node.metadata_props)
        node.input[0] = relu.output[0]
        return relu

    def _type(self, node: NodeProto, zero: np.ndarray | None, weight: TensorProto | None) -> np.dtype:
        if zero is not None:
            return zero.dtype
        if weight is not None:
            return helper.tensor_dtype_to_np_dtype(weight.data_type)
        if node.op_type == DEQUANTIZE:
            if node.input[0] not in self.kinds:
                raise UserError(f"{node.name}: no zero point says which type it reads: {_ADVICE}")
            return self.kinds[node.input[0]]
        wanted = (
            next((a.i for a in node.attribute if a.name == "output_dtype"), 0) or TensorProto.UINT8
        )  # ONNX's default
        return helper.tensor_dtype_to_np_dtype(wanted)

    def _array(self, node: NodeProto, slot: int) -> np.ndarray | None:
        if len(node.input) <= slot or not node.input[slot]:
            return None
        if node.input[slot] not in self.tensors:
            raise UserError(f"{node.name}: its {('input', 'scale', 'zero point')[slot]} is not a constant: {_ADVICE}")
        return numpy_helper.to_array(self.tensors[node.input[slot]])

    def _scale(self, node: NodeProto) -> np.ndarray:
        scale = self._array(node, 1)
        assert scale is not None
        return scale

    def _name(self, node: NodeProto, slot: int, array: np.ndarray) -> None:
        """Feed `array` to the node's input in a tensor of its own name: others may read the old one."""
        old = node.input[slot] if len(node.input) > slot and node.input[slot] else f"{node.input[1]}.zero_point"
        name = f"{old}.symmetric{'' if slot != 2 else f'.{array.size}' if array.ndim else ''}"
        if len(node.input) <= slot:
            node.input.extend([""] * (slot + 1 - len(node.input)))
        node.input[slot] = name
        self._put(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))

    def _put(self, tensor: TensorProto) -> None:
        self.written[tensor.name] = tensor

    def _replace_initializers(self) -> None:
        used = {name for node in self.graph.node for name in node.input} | {o.name for o in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used and tensor.name not in self.written]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        self.graph.initializer.extend(tensor for name, tensor in self.written.items() if name in used)
