"""Names the parts of a sample that somebody's data set gives, and makes tensors of them as networks take them.

| a sample | becomes |
|---|---|
| ``{"image": x, "depth": y}``, a dataclass or a named tuple of these names | itself |
| ``(x, {"depth": y})`` | the dict, and x as the network's input |
| ``(x, y)``, ``(x, (y1, y2))``, ``(x, y1, y2)`` | the labels in the order of the tasks |

An input in float64 or float16 becomes float32. An array, a PIL picture or a tensor of uint8 with channels last (a last
axis of 1, 3 or 4, and a first one that is none of these) gets them first. A uint8 input of two or three axes is a
picture: it goes through ``preprocessing``, as on the device, and is divided by 255 without one. Labels in float64
become float32, unsigned integers of more than eight bits int64, truth values uint8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlc.errors import UserError, nearest
from mtlc.runtime.bundle.manifest import Preprocessing

_CHANNELS = (1, 3, 4)
_FLOATS = (torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Names:
    """What the parts of a sample are called: the network's inputs in their order, and the labels in that of the tasks.

    Without `inputs` they are what a sample has besides labels, or ``"image"``.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...]

    def of_sample(self, sample: Any) -> Names:
        """These names, with `inputs` found in a sample where there are none. Raises `UserError` where that is open."""
        if self.inputs:
            return self
        fields = fields_of(sample)
        if fields is None:
            count = len(sample) - len(self.targets) if _is_flat(sample, self.targets) else 1
            return Names(("image",) if count == 1 else tuple(f"input{n}" for n in range(count)), self.targets)
        if "image" in fields:
            return Names(("image",), self.targets)
        left = [name for name, value in fields.items() if name not in self.targets and _is_numeric(value)]
        if len(left) == 1:
            return Names((left[0],), self.targets)
        raise UserError(
            f"inputs: a sample has {', '.join(map(repr, fields))}, and {' and '.join(map(repr, left)) or 'none'} of "
            'these could be what the network takes: say which, such as inputs=["image"]'
        )

    def shown(self) -> str:
        """How a sample may be written, for messages."""
        first = ", ".join(self.inputs or ("image",))
        return f"({first}, {', '.join(self.targets)}) or {{{', '.join(map(repr, (*self.inputs, *self.targets)))}}}"


def named(sample: Any, names: Names, where: str) -> dict[str, Any]:
    """The parts of a sample, or of a batch, by name. Raises `UserError` that begins with `where`."""
    fields = fields_of(sample)
    if fields is not None:
        return _with_inputs(fields, names, where)
    if not isinstance(sample, tuple | list) or len(sample) < 2:
        count = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
        raise UserError(f"{where}: is a {type(sample).__name__}{count}; give {names.shown()}")
    inputs = names.inputs or ("image",)
    if len(sample) == 2:
        given, labels = sample
        parts = given if len(inputs) > 1 and isinstance(given, tuple | list | Mapping) else (given,)
    else:
        parts, labels = sample[: len(inputs)], tuple(sample[len(inputs) :])
    if isinstance(parts, Mapping):
        found = dict(parts)
    else:
        _fits(len(parts), len(inputs), "input", inputs, sample, names, where)
        found = dict(zip(inputs, parts, strict=True))
    if isinstance(labels, Mapping):
        return _with_inputs({**found, **labels}, names, where)
    one = len(sample) == 2 and len(names.targets) == 1 and not _holds_tensors(labels)
    if one or not isinstance(labels, tuple | list):
        labels = (labels,)
    _fits(len(labels), len(names.targets), "label", names.targets, sample, names, where)
    return {**found, **dict(zip(names.targets, labels, strict=True))}


def _fits(
    count: int, wanted: int, what: str, called: Sequence[str], sample: Sequence[Any], names: Names, where: str
) -> None:
    if count != wanted:
        some = f"{count} {what}{'' if count == 1 else 's'}"
        raise UserError(
            f"{where}: a {type(sample).__name__} of {len(sample)} with {some}, where {', '.join(called)} "
            f"{'is' if wanted == 1 else 'are'} wanted: give {names.shown()}"
        )


def _with_inputs(fields: dict[str, Any], names: Names, where: str) -> dict[str, Any]:
    for name in names.inputs:
        if name not in fields:
            raise UserError(f"{where}: has no {name!r}, which the network takes{nearest(name, fields)}")
    return fields


def fields_of(sample: Any) -> dict[str, Any] | None:
    """The parts of a sample that have names; None for one whose parts have none."""
    if isinstance(sample, Mapping):
        return dict(sample)
    if dataclasses.is_dataclass(sample) and not isinstance(sample, type):
        return {one.name: getattr(sample, one.name) for one in dataclasses.fields(sample)}
    if isinstance(sample, tuple) and hasattr(sample, "_fields"):
        return dict(zip(sample._fields, sample, strict=True))
    return None


def _is_flat(sample: Any, targets: Sequence[str]) -> bool:
    """Whether a tuple has an entry for each label, and not all labels in one."""
    return isinstance(sample, tuple | list) and len(sample) > 2 and len(sample) > len(targets)


def _holds_tensors(labels: Any) -> bool:
    return isinstance(labels, tuple | list) and any(isinstance(one, Tensor | np.ndarray) for one in labels)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) or hasattr(value, "__array_interface__")


def as_input(value: Any, preprocessing: Preprocessing | None, batched: bool, where: str) -> Any:
    """An input as the network takes it, see the top. `batched` where its first axis counts samples."""
    from_array = not isinstance(value, Tensor)
    tensor = _tensor(value, where)
    shape = tensor.shape[1:] if batched else tensor.shape
    if len(shape) == 3 and (from_array or tensor.dtype == torch.uint8) and _channels_last(shape):
        tensor = tensor.movedim(-1, -3)
        shape = tensor.shape[1:] if batched else tensor.shape
    if tensor.dtype in _FLOATS:
        return tensor.float()
    if tensor.dtype != torch.uint8:
        return _wide(tensor)
    if len(shape) == 2:
        tensor = tensor.unsqueeze(-3)
    elif len(shape) != 3:
        return tensor.float()
    return _pixels(tensor.float(), preprocessing)


def is_picture(value: Any) -> bool:
    """Whether an input, of one sample, is a picture whose pixels are uint8."""
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    return tensor.dtype == torch.uint8 and tensor.ndim in (2, 3)


def as_label(value: Any, where: str) -> Any:
    """A label as losses and metrics take it, see the top; None, which is no label, as it is."""
    if value is None or isinstance(value, str | bytes):
        return value
    tensor = _tensor(value, where)
    if tensor.dtype in _FLOATS:
        return tensor.float()
    return tensor.to(torch.uint8) if tensor.dtype == torch.bool else _wide(tensor)


def _tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            array = array.astype(np.int64)  # torch computes with none of these
        return torch.from_numpy(np.ascontiguousarray(array) if array.ndim else array.copy())
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{where}: is a {type(value).__name__}; give a tensor, an array or a number") from None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.long() if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor


def _channels_last(shape: Sequence[int]) -> bool:
    return shape[-1] in _CHANNELS and shape[0] not in _CHANNELS


def _pixels(pixels: Tensor, how: Preprocessing | None) -> Tensor:
    """(pixel · scale − mean) / std, as the runtime does; (…, C, H, W)."""
    if how is None:
        return pixels / 255
    if how.color == "BGR":
        pixels = pixels.flip(-3)
    mean, std = (torch.tensor(one, dtype=torch.float32).reshape(-1, 1, 1) for one in (how.mean, how.std))
    return (pixels * how.scale - mean) / std
