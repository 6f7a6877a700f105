"""Makes splits of WebDataset shards: pictures, and a member for the label of each task.

| what a label is | its member | in a batch |
|---|---|---|
| ``classes`` | a picture of one channel, 8 or 16 bits or a palette; a .npy | (N, H, W) int64 |
| ``mask``, ``edges`` | a picture, above half is 1; a .npy of 0 and 1, 255 is ignored | (N, 1, H, W) |
| ``depth`` | a .npy in metres; a picture of 16 bits with ``scale`` metres a step; 0 is none | (N, 1, H, W) |
| ``normals`` | a picture, n = 2·pixel/255 − 1; a .npy of unit vectors | (N, 3, H, W) |
| ``boxes`` | a .npy (M, 5): x1, y1, x2, y2, class | (N, ``most``, 5) |
| ``class`` | a number in a .cls, .txt or .json | (N,) int64 |
| ``numbers`` | numbers in a .json or a .txt; a .npy (K,) | (N, K) |

Members that hold Python objects (.pyd, .pkl, .pth) are not read: to open them is to run what they say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError, nearest, reason
from mtlc.evaluation.splits import Splits
from mtlc.zoo.checked_files import (
    Member,
    load_npy,
    metres,
    one_channel,
    open_grey,
    open_image,
    open_numbers,
    open_rgb,
    unit_vectors,
)
from mtlc.zoo.dense import OF_WHOLE, DenseTasks, Subset, hold_out, splits_of
from mtlc.zoo.dense_folder import HowToRead, fitted, how_to_read
from mtlc.zoo.tar_shards import Shard, open_shard, shard_paths

KINDS = {
    "classes": "semseg", "mask": "sal", "edges": "edge", "depth": "depth", "normals": "normals", "boxes": "detection",
    "class": "class", "numbers": "numbers",
}  # fmt: skip
"""What a job may say that a label is, and which of the labels of `mtlc.zoo.dense` that is like."""
_USUAL = {
    "semseg": "classes", "human_parts": "classes", "depth": "depth", "normals": "normals", "edge": "edges",
    "sal": "mask", "detection": "boxes",
}  # fmt: skip
"""What labels of these tasks are where the job does not say."""
_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff")
_OBJECTS = ("pyd", "pkl", "pickle", "pth", "pt")
_SUFFIXES = {
    "classes": ("png", "npy", "bmp", "tif", "tiff"),
    "mask": (*_PICTURES, "npy"),
    "edges": (*_PICTURES, "npy"),
    "depth": ("npy", "png", "tif", "tiff"),
    "normals": (*_PICTURES, "npy"),
    "boxes": ("npy",),
    "class": ("cls", "cls2", "txt", "json", "index", "id"),
    "numbers": ("json", "txt", "npy"),
}
_DEEPEST = 100_000.0
_MOST_CLASS = 65535
_LONGEST_TEXT = 1 << 20


@dataclass(frozen=True)
class LabelMember:
    """Where the label of a task is, what it is, and how it is stored."""

    task: str
    member: str
    kind: str
    scale: float | None = None
    most: int = 64


class ShardedSamples(DenseTasks):
    """The samples of some shards, in the order of the shards; `labels` say which members are read."""

    def __init__(
        self, shards: Sequence[Shard], image: str, labels: Sequence[LabelMember], how: HowToRead, mirror: bool
    ) -> None:
        self._shards, self._image, self._labels, self._how = list(shards), image, list(labels), how
        self._starts = np.cumsum([0, *map(len, shards)])
        kinds = {label.task: KINDS[label.kind] for label in labels}
        super().__init__(
            int(self._starts[-1]), (), how.cache_bytes, how.zoom, how.crop, how.workers, mirror=mirror, kinds=kinds
        )

    @property
    def identity(self) -> str:
        """A hash of the names, sizes and times of the shards and of what is read of them."""
        read = [
            self._image,
            [list(vars(label).values()) for label in self._labels],
            list(self._how._replace(workers=0)),
            self.mirror,
        ]
        digest = hashlib.sha256(json.dumps(read).encode())
        for shard in self._shards:
            try:
                status = shard.path.stat()
            except OSError as error:
                raise UserError(f"{shard.path}: cannot be read ({reason(error)})") from None
            digest.update(f"{shard.path.name}:{status.st_size}:{status.st_mtime_ns}".encode())
        return digest.hexdigest()[:16]

    def where(self, index: int) -> tuple[Path, str]:
        """The shard and the key of a sample."""
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard = self._shards[which]
        return shard.path, shard.key(index - int(self._starts[which]))

    def read(self, index: int) -> dict[str, NDArray[Any]]:
        """One sample; see `DenseTasks.read`. Raises `UserError` naming task, shard, key and member."""
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        wanted = dict.fromkeys((self._image, *(label.member for label in self._labels)))
        members = self._shards[which].read(index - int(self._starts[which]), tuple(wanted))
        picture = members[self._image]
        assert picture is not None  # the shard was opened with it as needed
        image = open_rgb(picture)
        found: dict[str, NDArray[Any]] = {}
        for label in self._labels:
            member = members[label.member]
            if member is None:
                continue
            try:
                made = _DECODE[label.kind](member, label)
                if label.kind not in ("boxes", *OF_WHOLE) and made.shape[:2] != image.shape[:2]:
                    raise UserError(f"{member}: {made.shape[:2]} pixels, but its image has {image.shape[:2]}")
            except UserError as error:
                raise UserError(f"[data] {label.task}: {error}") from error
            found[label.task] = made
        if self._how.size is None:
            return {"image": image, **found}
        return fitted(image, found, self._how.size, self._how.pad, self.kinds)


def webdataset(
    root: str | Path,
    train: str | Sequence[str],
    validation: str | Sequence[str],
    tasks: Mapping[str, Any],
    image: str = "jpg",
    calibration: float | str | Sequence[str] = 0.1,
    partial: bool = False,
    size: Sequence[int] | None = None,
    pad: bool = False,
    crop: Sequence[int] | None = None,
    zoom: float = 1.0,
    mirror: bool | None = None,
    seed: int = 0,
    workers: int = 0,
) -> Splits:
    """The splits of WebDataset shards under `root`: ``train = "train-{000..099}.tar"``, or with ``*``, or a list.

    `tasks` names the member of each task's label: ``{semseg = "seg.png"}``, or a table with what it is:
    ``{lanes = {member = "lanes.png", as = "classes"}}`` (`KINDS`); ``scale`` is for depths in pictures, ``most`` for
    the most boxes of a picture. `image` is the member of the picture. `calibration` is a share of the training samples
    that is held out, or shards of its own. With `partial` a sample may lack labels, never the picture.

    Shards are read where they lie, a sample at a time, in the order that the training draws: it is shuffled over all
    shards, follows from the seed, and each process and each of its workers reads its own part. `size`, `pad`, `crop`,
    `zoom` and `workers` are those of the other data sets; `mirror` is whether training sees mirror images too, by
    default yes unless a label is of kind ``numbers``.

    Raises `UserError` for a damaged shard and for a sample that lacks a member, with the shard and the key.
    """
    if not isinstance(root, str | Path) or not Path(root).is_dir():
        raise UserError(f"[data] root = {str(root)!r}: no such folder; give that of the shards")
    folder, labels = Path(root), [_label(task, given) for task, given in _table(tasks).items()]
    picture = _suffix("image", image, "image", _PICTURES)
    if not isinstance(partial, bool) or not (mirror is None or isinstance(mirror, bool)):
        raise UserError(f"[data] partial = {partial!r}, mirror = {mirror!r}: true or false")
    how = how_to_read(size, pad, crop, zoom, workers)
    mirrored = all(label.kind != "numbers" for label in labels) if mirror is None else mirror
    members = tuple(dict.fromkeys((picture, *(label.member for label in labels))))
    needed = (picture,) if partial else members

    def split(name: str, given: object, read: HowToRead) -> ShardedSamples:
        shards = [open_shard(path, members, needed) for path in shard_paths(folder, name, given)]
        return ShardedSamples(shards, picture, labels, read, mirrored)

    learned, held = split("train", train, how), split("validation", validation, how.of_validation())
    if isinstance(calibration, int | float):
        return hold_out(learned, held, calibration, seed)
    own = split("calibration", calibration, how.of_validation())
    return splits_of(Subset(learned, range(len(learned))), own, held)


# --- What a job says --------------------------------------------------------------------------------------------------


def _table(tasks: object) -> Mapping[str, Any]:
    if not isinstance(tasks, Mapping) or not tasks:
        raise UserError(f'[data] tasks = {tasks!r}: give a table of members by task, such as {{semseg = "seg.png"}}')
    return tasks


def _label(task: str, given: object) -> LabelMember:
    key = f"tasks.{task}"
    if task == "image":
        raise UserError(f"[data] {key}: is the picture's name; call the task otherwise")
    table = {"member": given} if isinstance(given, str) else given
    if not isinstance(table, Mapping) or "member" not in table:
        raise UserError(f'[data] {key} = {given!r}: give a member such as "seg.png", or {{member = …, as = …}}')
    for name in table:
        if name not in ("member", "as", "scale", "most"):
            raise UserError(
                f"[data] {key}: unknown key {name!r}{nearest(str(name), ('member', 'as', 'scale', 'most'))}"
            )
    usual = _USUAL.get(task) or ("class" if str(table["member"]).endswith("cls") else None)
    kind = table.get("as", usual)
    if kind not in KINDS:
        asked = "" if kind is None else f" = {kind!r}{nearest(str(kind), KINDS)}"
        raise UserError(f"[data] {key}.as{asked}: say what the label is, one of {', '.join(KINDS)}")
    member = _suffix(key, table["member"], str(kind), _SUFFIXES[str(kind)])
    scale, most = table.get("scale"), table.get("most", 64)
    pictured = kind == "depth" and not member.endswith("npy")
    right = isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < 1000
    if pictured != (scale is not None) or (pictured and not right):
        raise UserError(f"[data] {key}.scale = {scale!r}: metres a step, for a depth in a picture and for nothing else")
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 10_000:
        raise UserError(f"[data] {key}.most = {most!r}: the most boxes of a picture, from 1 to 10000")
    return LabelMember(task, member, str(kind), None if scale is None else float(scale), most)


def _suffix(key: str, given: object, kind: str, known: Sequence[str]) -> str:
    """The member that a job names, in the small letters in which WebDataset compares them."""
    member = str(given).lower().removeprefix(".")
    last = member.rsplit(".", 1)[-1]
    if last in _OBJECTS:
        raise UserError(
            f"[data] {key} = {given!r}: such a member holds Python objects, and to open it runs what it says; write it "
            "as .npy or .json"
        )
    if not isinstance(given, str) or last not in known:
        raise UserError(f"[data] {key} = {given!r}: a {kind} is read of members that end in {', '.join(known)}")
    return member


# --- What members hold ------------------------------------------------------------------------------------------------


def _classes(member: Member, label: LabelMember) -> NDArray[Any]:
    raw = one_channel(load_npy(member), member) if member.suffix == ".npy" else open_numbers(member)
    whole = raw.dtype.kind in "biu" or (raw.dtype.kind == "f" and np.array_equal(raw, np.floor(raw)))
    if not whole or (raw.size and (raw.min() < 0 or raw.max() > _MOST_CLASS)):
        raise UserError(f"{member}: holds {raw.dtype} that are no class numbers from 0 to {_MOST_CLASS}")
    return raw.astype(np.int32)


def _mask(member: Member, label: LabelMember) -> NDArray[Any]:
    if member.suffix != ".npy":
        return (open_grey(member) > 127).astype(np.uint8)
    raw = one_channel(load_npy(member), member)
    if not np.isin(raw, (0, 1, 255)).all():
        raise UserError(f"{member}: holds other numbers than 0, 1 and 255, which is ignored")
    return raw.astype(np.uint8)


def _depth(member: Member, label: LabelMember) -> NDArray[Any]:
    if member.suffix == ".npy":
        return metres(load_npy(member), member, _DEEPEST)
    image = open_image(member)
    if not image.mode.startswith("I"):
        raise UserError(f"{member}: a picture of mode {image.mode}; depths are stored in 16 bits of one channel")
    assert label.scale is not None
    return metres(np.asarray(image).astype(np.float64) * label.scale, member, _DEEPEST)


def _normals(member: Member, label: LabelMember) -> NDArray[Any]:
    return unit_vectors(member)


def _boxes(member: Member, label: LabelMember) -> NDArray[Any]:
    raw = load_npy(member)
    if raw.ndim != 2 or raw.shape[1] != 5 or raw.dtype.kind not in "iuf":
        raise UserError(f"{member}: {raw.dtype} {raw.shape}; boxes are (M, 5), rows x1, y1, x2, y2, class")
    if len(raw) > label.most:
        raise UserError(f"{member}: {len(raw)} boxes; [data] tasks.{label.task}.most = {label.most}")
    found = np.zeros((label.most, 5), np.float32)
    found[:, 4] = -1
    found[: len(raw)] = raw
    return found


def _class(member: Member, label: LabelMember) -> NDArray[Any]:
    value = _text(member)
    number = _parsed(member, value) if member.suffix == ".json" else value
    try:
        if isinstance(number, bool | float):
            raise ValueError("a fraction or a truth value")
        found = int(number)
    except (TypeError, ValueError):
        raise UserError(f"{member}: {value[:40]!r} is no class number") from None
    if not 0 <= found <= _MOST_CLASS:
        raise UserError(f"{member}: class {found}; numbers from 0 to {_MOST_CLASS} are read")
    return np.array(found, np.int64)


def _numbers(member: Member, label: LabelMember) -> NDArray[Any]:
    if member.suffix == ".npy":
        raw = load_npy(member)
    else:
        text = _text(member)
        given = _parsed(member, text) if member.suffix == ".json" else text.replace(",", " ").split()
        try:
            raw = np.array(given, np.float64)
        except (TypeError, ValueError):
            raise UserError(f"{member}: {text[:40]!r} are no numbers") from None
    if raw.dtype.kind not in "biuf" or raw.ndim > 1:
        raise UserError(f"{member}: {raw.dtype} {raw.shape}; give numbers (K,)")
    return np.atleast_1d(raw).astype(np.float32)


_DECODE: dict[str, Callable[[Member, LabelMember], NDArray[Any]]] = {
    "classes": _classes, "mask": _mask, "edges": _mask, "depth": _depth, "normals": _normals, "boxes": _boxes,
    "class": _class, "numbers": _numbers,
}  # fmt: skip


def _text(member: Member) -> str:
    if len(member.data) > _LONGEST_TEXT:
        raise UserError(f"{member}: {len(member.data) >> 20} MB of text")
    try:
        return member.data.decode("ascii" if member.suffix != ".json" else "utf-8").strip()
    except UnicodeDecodeError:
        raise UserError(f"{member}: is no text") from None


def _parsed(member: Member, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{member}: no JSON that can be read ({reason(error)})") from None
