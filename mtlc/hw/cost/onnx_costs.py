"""Counts the multiply–accumulates of each ONNX operator, and tells what kind of operator it is."""

from __future__ import annotations

from math import prod
from typing import Any

import onnx

from mtlc.errors import UserError
from mtlc.hw.cost.workload import Shape

_OPERATORS: dict[str, str] = {
    "conv": """
        Conv ConvTranspose ConvInteger QLinearConv DeformConv
        """,
    "matmul": """
        MatMul Gemm MatMulInteger QLinearMatMul Einsum
        """,
    "attention": """
        Attention
        """,
    "recurrent": """
        LSTM GRU RNN
        """,
    "norm": """
        BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization
        LpNormalization MeanVarianceNormalization LRN
        """,
    "activation": """
        Relu LeakyRelu PRelu Sigmoid Tanh Gelu Elu Celu Selu Softmax LogSoftmax Softplus Softsign HardSigmoid
        HardSwish Mish Swish ThresholdedRelu Clip Hardmax
        """,
    "pool": """
        MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool
        """,
    "resize": """
        Resize DepthToSpace SpaceToDepth GridSample Upsample
        """,
    "reduction": """
        ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare ArgMax
        ArgMin TopK CumSum
        """,
    "gather": """
        Gather GatherElements GatherND Scatter ScatterElements ScatterND OneHot NonZero
        """,
    "elementwise": """
        Add Sub Mul Div Pow Sqrt Exp Log Erf Abs Neg Min Max Mean Sum Floor Ceil Round Sign Sin Cos Tan Atan
        Reciprocal Mod And Or Xor Not Equal Less LessOrEqual Greater GreaterOrEqual Where IsNaN IsInf Asin Acos Sinh
        Cosh Dropout QuantizeLinear DequantizeLinear DynamicQuantizeLinear BitShift BitwiseAnd
        """,
    "copy": """
        Concat Split Slice Transpose Pad Expand Tile Cast CastLike Trilu ReverseSequence Range
        """,
}
KINDS = {name: kind for kind, names in _OPERATORS.items() for name in names.split()}
IN_PLACE_KINDS = frozenset({"norm", "activation", "elementwise"})
# Known before the run once the input shapes are: any runtime folds them.
STATIC = frozenset({"Shape", "Size", "Constant", "ConstantOfShape"})
ALIASES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
# The sizes of what they make are in the data: what a file declares of them is not believed.
DATA_DEPENDENT = frozenset({"NonZero"})
# Inputs that are settings or buffers, not parameters: resize scales, running statistics, quantiser scales.
CONSTANT_SLOTS: dict[str, tuple[int, ...]] = {
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "OneHot": (1, 2),
    "Pow": (1,),
}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def macs(node: onnx.NodeProto, shapes: list[Shape], output: Shape, label: str) -> int:
    """Multiply–accumulates of one node with inputs of `shapes`; `label` opens the message of a `UserError`."""
    operator = node.op_type
    if operator in ("Conv", "ConvInteger", "DeformConv"):
        return prod(shapes[1]) * output[0] * prod(output[2:])
    # Its inputs come with scales and zero points between them: x, s, z, then the weight in slot 3.
    if operator == "QLinearConv":
        return prod(shapes[3]) * output[0] * prod(output[2:])
    # Weight (C_in, C_out / groups, k…): each element meets each position of the input.
    if operator == "ConvTranspose":
        return prod(shapes[1]) * shapes[0][0] * prod(shapes[0][2:])
    if operator in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return prod(output) * shapes[0][-1]
    if operator == "Gemm":
        return prod(output) * shapes[0][0 if _attribute(node, "transA", 0) else 1]
    if operator == "Einsum":
        return _einsum(node, shapes, label)
    if operator == "Attention":
        return _attention(node, shapes, label)
    if operator in _GATES:
        # X (T, N, I), W (directions, gates·H, I), R (directions, gates·H, H): both meet every step of every sample.
        return shapes[0][0] * shapes[0][1] * (prod(shapes[1]) + prod(shapes[2]))
    return 0


def _einsum(node: onnx.NodeProto, shapes: list[Shape], label: str) -> int:
    equation = str(_attribute(node, "equation", b"").decode()).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if "." in equation or len(terms) != 2:
        raise UserError(f"{label}: only products of two tensors are costed, without an ellipsis; this is {equation!r}")
    extent: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            extent[letter] = max(size, extent.get(letter, 1))  # an extent of 1 is broadcast
    return prod(extent.values())


def _attention(node: onnx.NodeProto, shapes: list[Shape], label: str) -> int:
    query, key, value = shapes[:3]
    if len(shapes) > 4 and shapes[4]:
        raise UserError(f"{label}: attention with a past key is not costed")
    if len(query) == 4:  # (N, heads, T, D)
        return prod(query[:3]) * key[2] * (query[3] + value[3])
    # (N, T, heads · D): several query heads may share a value head, and each multiplies it.
    heads, kv_heads = _attribute(node, "q_num_heads", 1), _attribute(node, "kv_num_heads", 1)
    result: int = query[0] * query[1] * key[1] * (query[2] + heads * value[2] // kv_heads)
    return result


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default
