"""Declares how a detector's raw outputs become boxes: what a job and a bundle say of it.

A detector's output is (N, A, D): at each of A anchor points four numbers for a box, one for objectness if there is one,
and one logit for each class. The points are those of all strides one after the other, each row by row. Encodings of a
box at a point of stride s:

- ``distances``: to the left, top, right and bottom, as exp(t) · s from the middle of the point's cell (FCOS: Tian et
  al., ICCV 2019, section 3.1).
- ``center_size``: the centre (cell + t) · s, with the cell's column and row, and the size exp(t) · s (YOLOX: Ge et al.,
  2021, section 2.1).

`mtlc.box_decoding` makes boxes of it. Nothing here needs numpy: opening a bundle reads declarations only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mtlc.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np

BOX_ENCODINGS = ("distances", "center_size")
MAX_SIDE = 1 << 14
"""The most pixels of a side of the input."""
MAX_POINTS = 1 << 20
"""The most anchor points."""
MAX_BOXES = 1 << 12
"""The most boxes that are kept of a picture."""
LEAST = 1e-4
"""The least threshold. At 0 backends do not agree: on the sigmoid of very small numbers, and on overlaps of nothing."""
MAX_NAME = 200
"""The most characters of a class's name."""
EXPONENT = 10.0
"""Exponents of sizes are cut here, so that no box is infinite; exp(10) strides are beyond any picture."""


@dataclass(frozen=True)
class Detection:
    """What a job's ``postprocess`` and a bundle's manifest say of a detector.

    `size` (H, W) is that of the input, `strides` those of the maps, in the order of the output. Boxes of a score above
    `score` take part, those that overlap a better one by more than `iou` go, and the best `most` are kept. `names` are
    those of the classes, if they are given.
    """

    size: tuple[int, int]
    strides: tuple[int, ...]
    encoding: str = "distances"
    objectness: bool = True
    score: float = 0.25
    iou: float = 0.5
    most: int = 100
    names: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, raw: Any) -> Detection:
        """Read a table with ``kind = "detection"``. Raises `UserError` naming the key that is wrong."""
        if not isinstance(raw, Mapping):
            raise UserError(f"postprocess must be a table, it is {type(raw).__name__}")
        known = ("kind", *cls.__dataclass_fields__)
        for key in raw:
            if key not in known:
                raise UserError(f"postprocess.{key} is unknown{nearest(str(key), known)}")
        for key in ("kind", "size", "strides"):
            if key not in raw:
                raise UserError(f"postprocess.{key} is missing")
        if raw["kind"] != "detection":
            raise UserError(f"postprocess.kind = {raw['kind']!r}: must be 'detection'")
        size, strides = _wholes(raw["size"], "size", MAX_SIDE), _wholes(raw["strides"], "strides", MAX_SIDE)
        if len(size) != 2:
            raise UserError(f"postprocess.size = {list(size)}: give a height and a width in pixels")
        if len(set(strides)) != len(strides):
            raise UserError(f"postprocess.strides = {list(strides)}: lists a stride twice")
        if raw.get("encoding", cls.encoding) not in BOX_ENCODINGS:
            raise UserError(f"postprocess.encoding = {raw['encoding']!r}: must be one of {', '.join(BOX_ENCODINGS)}")
        if not isinstance(raw.get("objectness", True), bool):
            raise UserError(f"postprocess.objectness = {raw['objectness']!r}: must be true or false")
        made = cls(
            (size[0], size[1]),
            strides,
            raw.get("encoding", cls.encoding),
            raw.get("objectness", cls.objectness),
            _share(raw.get("score", cls.score), "score"),
            _share(raw.get("iou", cls.iou), "iou"),
            _wholes([raw.get("most", cls.most)], "most", MAX_BOXES)[0],
            _names(raw.get("names")),
        )
        if made.anchors > MAX_POINTS:
            raise UserError(f"postprocess: size and strides give {made.anchors} points, more than {MAX_POINTS}")
        return made

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON values, as `parse` takes it."""
        values = asdict(self) | {"size": list(self.size), "strides": list(self.strides)}
        named = {} if self.names is None else {"names": list(self.names)}
        del values["names"]
        return {"kind": "detection", **values, **named}

    @property
    def anchors(self) -> int:
        """How many anchor points there are."""
        return sum(rows * columns for rows, columns in self.maps)

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """The rows and columns of the map of each stride; a stride that does not divide the size adds one."""
        return tuple((-(-self.size[0] // s), -(-self.size[1] // s)) for s in self.strides)

    @property
    def box_columns(self) -> int:
        """How many of an output's columns are not classes."""
        return 4 + self.objectness

    def classes(self, shape: Sequence[Any]) -> int:
        """The number of classes of an output of `shape` (N, A, D). Raises `UserError` where it does not fit."""
        wanted = f"(N, {self.anchors}, {self.box_columns} + classes)"
        if len(shape) != 3 or shape[1] != self.anchors or not isinstance(shape[2], int):
            raise UserError(
                f"expected an output {wanted} for size {list(self.size)} and strides {list(self.strides)}, "
                f"but it is {tuple(shape)}"
            )
        if shape[2] <= self.box_columns:
            raise UserError(f"expected an output {wanted}, but {tuple(shape)} leaves no class")
        if self.names is not None and len(self.names) != shape[2] - self.box_columns:
            raise UserError(
                f"postprocess.names has {len(self.names)} names, but the output {tuple(shape)} "
                f"has {shape[2] - self.box_columns} classes"
            )
        return int(shape[2]) - self.box_columns

    def kept(self, classes: int) -> int:
        """The rows of detections: `most`, or as many as there can be."""
        return min(self.most, self.anchors * classes)

    @cached_property
    def points(self) -> np.ndarray:
        """(A, 3) float32: where boxes are counted from, x and y in pixels, and the stride."""
        import numpy as np

        shift = 0.5 if self.encoding == "distances" else 0.0
        parts = []
        for (rows, columns), stride in zip(self.maps, self.strides, strict=True):
            y, x = np.indices((rows, columns), dtype=np.float32).reshape(2, -1)
            parts.append(np.stack([(x + shift) * stride, (y + shift) * stride, np.full_like(x, stride)], 1))
        return np.concatenate(parts).astype(np.float32)


def _wholes(raw: Any, key: str, most: int) -> tuple[int, ...]:
    shown = raw[0] if key == "most" else raw
    good = isinstance(raw, list | tuple) and raw and all(type(value) is int and 1 <= value <= most for value in raw)
    if not good:
        what = "a whole number" if key == "most" else "one or more whole numbers"
        raise UserError(f"postprocess.{key} = {shown!r}: must be {what} from 1 to {most}")
    return tuple(raw)


def _names(raw: Any) -> tuple[str, ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, list | tuple) or not all(
        isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in raw
    ):
        raise UserError(f"postprocess.names must be a list of texts of 1 to {MAX_NAME} characters")
    return tuple(raw)


def _share(raw: Any, key: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not LEAST <= raw <= 1:
        raise UserError(f"postprocess.{key} = {raw!r}: must lie between {LEAST:g} and 1")
    return float(raw)
