"""Sorts kernels into families, the keys of a latency table: kernels that differ in their channel counts only.

A *family* is what kernels have in common that differ in channel counts only: operator, attributes, spatial sizes,
operands. The *sizes* of a kernel place it in its family: (in, out) of a convolution, (groups,) of a grouped one, (K, N)
or (rows, K, N) of a product with constant weights, the channels of an element-wise kernel; where no axis can be told to
be the channels', the number of elements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from mtlc.hw.latency_table.kernels import CONVOLUTIONS, PRODUCTS, Kernel, Operand, Shape

Form = Literal["convolution", "grouped", "product", "channels", "elements"]
_BLOCKED = "com.microsoft.nchwc:"
_MANY = (
    3  # activations that a kernel may read to be resized by its channels: the parts of a Concat have sizes of their own
)


@dataclass(frozen=True)
class Family:
    """`key` names it in a table; `form` says what its sizes are; `block` is the step of sizes, 1 for a smooth one."""

    key: str
    form: Form
    block: int = 1


def placed(kernel: Kernel, block: int) -> tuple[Family, tuple[int, ...]]:
    """The family of a kernel and its sizes. onnxruntime computes `block` channels together (`blocked_by`)."""
    step = block if kernel.operator.startswith(_BLOCKED) else 1
    attributes = json.loads(kernel.attributes)
    head: dict[str, Any] = {"operator": kernel.operator}
    if kernel.name in CONVOLUTIONS and _weight(kernel) is not None:
        weight, image = kernel.inputs[1], kernel.inputs[0]
        assert weight is not None
        assert image is not None
        groups = attributes.pop("group", 1)
        optional = [(o is not None and "weight" * o.weight) or bool(o) for o in kernel.inputs[2:]]
        head |= {"attributes": attributes, "in": [image.shape[0], *image.shape[2:]], "optional": optional}
        head["out"] = list(kernel.outputs[0].shape[2:])
        # A grouped convolution loses whole groups, so what one group reads and makes belongs to the family.
        if groups > 1:
            head["each"] = [weight.shape[1], weight.shape[0] // groups]
            return Family(_json(head), "grouped", step), (groups,)
        return Family(_json(head), "convolution", step), (image.shape[1], weight.shape[0])
    # Some kernels repeat their channels as an attribute: that would make a family of every count.
    head["attributes"] = {k: v for k, v in attributes.items() if k != "channels"}
    weight = _weight(kernel)
    if kernel.name in PRODUCTS and weight is not None and len(weight.shape) == 2 and kernel.inputs[0] is not None:
        rows = kernel.inputs[0].shape[:-1]
        inner, outer = weight.shape[:: -1 if attributes.get("transB") else 1]
        head["optional"] = [o is not None for o in kernel.inputs[2:]]
        if len(rows) == 1:
            return Family(_json(head), "product"), (rows[0], inner, outer)
        return Family(_json(head | {"rows": list(rows)}), "product"), (inner, outer)
    out = kernel.outputs[0].shape if kernel.outputs else ()
    activations = [o for o in kernel.inputs if o is not None and not o.weight]
    if (
        not 2 <= len(out) <= 4
        or len(activations) > _MANY
        or len(kernel.outputs) > 1
        or kernel.operator.startswith("inner:")
    ):
        return Family(_json(head | {"operands": min(len(activations), _MANY + 1)}), "elements"), (kernel.elements,)
    # What the channels' axis shares with the output becomes the symbol "c", in the key of the family and when it is
    # resized: a second operand of shape (1, C, 1, 1) grows along, one of (1, 1, H, W) stays.
    axis = _axis(out)
    channels = out[axis]
    shapes = [None if o is None else _symbolic(o, out, axis) for o in kernel.inputs]
    head |= {"inputs": shapes, "out": _symbolic(kernel.outputs[0], out, axis)}
    if len(out) == 2:
        return Family(_json(head), "channels", step), (out[0], channels)
    return Family(_json(head), "channels", step), (channels,)


def resized(kernel: Kernel, family: Family, sizes: Sequence[int]) -> Kernel:
    """The kernel of the same family with other sizes. One that is placed by its elements cannot be resized."""
    if family.form == "elements":
        return kernel
    if family.form == "product":
        return _resized_product(kernel, sizes)
    if family.form == "channels":
        return _resized_channels(kernel, sizes)
    return _resized_convolution(kernel, family.form == "grouped", sizes)


def _resized_convolution(kernel: Kernel, grouped: bool, sizes: Sequence[int]) -> Kernel:
    image, weight, *others = kernel.inputs
    assert image is not None
    assert weight is not None
    attributes = json.loads(kernel.attributes)
    if grouped:
        # Every group stays what it is, so that the weight only gets more or fewer of them.
        groups = attributes["group"]
        into, out = (size // groups * sizes[0] for size in (image.shape[1], weight.shape[0]))
        attributes["group"] = sizes[0]
    else:
        into, out = sizes
        weight = _at(weight, 1, into)
    # A bias has the output's channels and nothing else; a tensor to be added has them where images have them.
    rest = (None if one is None else _at(one, 0 if len(one.shape) == 1 else 1, out) for one in others)
    inputs = (_at(image, 1, into), _at(weight, 0, out), *rest)
    return _with(kernel, inputs, _at(kernel.outputs[0], 1, out), attributes)


def _resized_product(kernel: Kernel, sizes: Sequence[int]) -> Kernel:
    *rows, inner, outer = sizes
    left, weight, *others = kernel.inputs
    assert left is not None
    assert weight is not None
    attributes = json.loads(kernel.attributes)
    left, made = _at(left, -1, inner), _at(kernel.outputs[0], -1, outer)
    if rows:
        left, made = _at(left, 0, rows[0]), _at(made, 0, rows[0])
    weight = replace(weight, shape=(outer, inner) if attributes.get("transB") else (inner, outer))
    rest = (None if one is None else _at(one, -1, outer) for one in others)
    return _with(kernel, (left, weight, *rest), made, attributes)


def _resized_channels(kernel: Kernel, sizes: Sequence[int]) -> Kernel:
    *rows, channels = sizes
    out = kernel.outputs[0].shape
    axis = _axis(out)
    new = {"c": channels, **({"n": rows[0]} if rows else {})}

    # The shapes in symbols say where channels and rows stand; the new sizes go there and nowhere else.
    def moved(operand: Operand) -> Operand:
        return replace(operand, shape=tuple(new.get(size, size) for size in _symbolic(operand, out, axis)))

    attributes = json.loads(kernel.attributes)
    if "channels" in attributes:
        attributes["channels"] = channels
    inputs = tuple(None if operand is None else moved(operand) for operand in kernel.inputs)
    return _with(kernel, inputs, moved(kernel.outputs[0]), attributes)


def _with(kernel: Kernel, inputs: tuple[Operand | None, ...], first: Operand, attributes: dict[str, Any]) -> Kernel:
    """The kernel with other inputs and another first output."""
    outputs = (first, *kernel.outputs[1:])
    return replace(kernel, inputs=inputs, outputs=outputs, attributes=json.dumps(attributes, sort_keys=True))


def corners(family: Family, sizes: Sequence[int]) -> list[tuple[tuple[int, ...], float]]:
    """The grid points around `sizes` with their weights in multilinear interpolation, those of weight 0 left out.

    A blocked family is padded up to whole blocks, as onnxruntime pads it; but for fewer input channels of a convolution
    than a block has, which it reads as they are.
    """
    axes = []
    for place, size in enumerate(sizes):
        if family.block > 1:
            few = family.form == "convolution" and place == 0 and size < family.block
            axes.append([(size if few else -(-size // family.block) * family.block, 1.0)])
            continue
        # The grid keeps a size's three leading bits: four points to each doubling, 64, 80, 96, 112, 128, 160, … So a
        # table of any range stays small, and neighbours lie within a quarter of each other.
        step = 2 ** max(0, size.bit_length() - 3)
        low = size // step * step
        share = (size - low) / step
        axes.append([(low, 1 - share), (low + step, share)] if share else [(low, 1.0)])
    return [(tuple(p for p, _ in point), math.prod(w for _, w in point)) for point in product(*axes)]


def _weight(kernel: Kernel) -> Operand | None:
    operand = kernel.inputs[1] if len(kernel.inputs) > 1 else None
    return operand if operand is not None and operand.weight else None


def _axis(shape: Shape) -> int:
    return 1 if len(shape) == 4 else len(shape) - 1


def _symbolic(operand: Operand, out: Shape, axis: int) -> list[Any]:
    """The operand's shape with "c" where the channels of the output stand, and "n" for the rows of a matrix."""
    dims: list[Any] = list(operand.shape)
    if len(dims) == len(out):
        if dims[axis] == out[axis]:
            dims[axis] = "c"
        if len(out) == 2 and dims[0] == out[0] and not operand.weight:
            dims[0] = "n"
    elif len(dims) == 1 and operand.weight and dims[0] == out[axis] and operand.type == "float":
        dims[0] = "c"
    return dims


def _at(operand: Operand, axis: int, size: int) -> Operand:
    """The operand with another size along an axis."""
    shape = list(operand.shape)
    shape[axis] = size
    return replace(operand, shape=tuple(shape))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
