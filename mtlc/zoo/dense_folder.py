"""Streams a split of a data set of dense prediction from its files: decoded when asked for, never kept unless told to.

A subclass says where the files of a sample lie and how each is decoded. The size of pictures, labels that are not
there, what messages say and what tells the data from others are the same for all.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlc.errors import UserError, nearest
from mtlc.zoo.checked_files import missing, open_rgb
from mtlc.zoo.dense import MEAN, OF_WHOLE, DenseTasks, Kinds
from mtlc.zoo.label_files import resize_label

_MOST_WORKERS = 256
NOTHING: dict[str, float] = {
    "semseg": 255, "human_parts": 255, "edge": 255, "sal": 255, "depth": 0.0, "disparity": np.nan, "normals": 0.0,
}  # fmt: skip
"""By task, the label of a pixel that has none: losses and metrics leave it out."""
_TYPES = dict.fromkeys(("depth", "disparity", "normals"), np.float32)


class HowToRead(NamedTuple):
    """What a job says of pictures and of reading them, checked.

    `size` (H, W) is that of every picture, None: their own. With `pad` pictures keep their proportions. The others are
    those of `DenseTasks`.
    """

    size: tuple[int, int] | None = None
    pad: bool = False
    crop: tuple[int, int] | None = None
    zoom: float = 1.0
    workers: int = 0
    cache_bytes: int = 0

    def of_validation(self) -> HowToRead:
        """The same without what is for training only."""
        return self._replace(crop=None, zoom=1.0)


def how_to_read(
    size: Sequence[int] | None = None,
    pad: bool = False,
    crop: Sequence[int] | None = None,
    zoom: float = 1.0,
    workers: int = 0,
    cache_bytes: int = 0,
) -> HowToRead:
    """What ``[data.args]`` says. Raises `UserError` naming the key whose value cannot be."""
    shape, window = _pixels("size", size), _pixels("crop", crop)
    if not isinstance(pad, bool) or (pad and shape is None):
        raise UserError(f"[data] pad = {pad!r}: true or false, and with size = [height, width]")
    if window is not None and shape is not None and (window[0] > shape[0] or window[1] > shape[1]):
        raise UserError(f"[data] crop = {list(window)}: larger than size = {list(shape)}")
    if isinstance(zoom, bool) or not isinstance(zoom, int | float) or not 1 <= zoom <= 16:
        raise UserError(f"[data] zoom = {zoom!r}: give a factor from 1 (none) to 16")
    for name, value, most in (("workers", workers, _MOST_WORKERS), ("cache_bytes", cache_bytes, 1 << 50)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise UserError(f"[data] {name} = {value!r}: give a whole number from 0 to {most}")
    return HowToRead(shape, pad, window, float(zoom), workers, cache_bytes)


def chosen_tasks(tasks: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The tasks that a job asks for, of those `known`; all of them without. Raises `UserError` for others."""
    if tasks is None:
        return tuple(known)
    if isinstance(tasks, str) or not tasks:
        raise UserError(f"[data] tasks = {tasks!r}: give a list of {', '.join(known)}")
    for task in tasks:
        if task not in known:
            raise UserError(f"[data] tasks: unknown task {task!r}{nearest(str(task), known)}")
    return tuple(dict.fromkeys(tasks))


class DenseFolder(DenseTasks):
    """One split of a folder of pictures and labels. `names` are its samples, `tasks` the labels that are read."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        tasks: Sequence[str],
        classes: Sequence[str],
        how: HowToRead,
    ) -> None:
        self.root, self.names, self.tasks = root, list(names), tuple(tasks)
        self.size, self.pad = how.size, how.pad
        super().__init__(len(self.names), classes, how.cache_bytes, how.zoom, how.crop, how.workers)

    @abstractmethod
    def path(self, key: str, index: int) -> Path | None:
        """The file of ``"image"`` or of a task's label of a sample; None where a sample needs none of a task."""

    @abstractmethod
    def label(self, task: str, index: int) -> NDArray[Any] | None:
        """A label as `DenseTasks.read` gives it, of any size; None for a sample that has none."""

    def encoding_name(self) -> str:
        """What tells this way of reading the files from others."""
        return type(self).__name__

    @property
    def identity(self) -> str:
        """A hash of the names, sizes and times of the split's files and of how they are read."""
        read = [self.encoding_name(), self.size, self.tasks, self.classes, self.zoom]
        # Left out where they are not used, as finished steps of earlier versions are found by this.
        read += [x for x in (self.pad or None, self.crop) if x is not None]
        digest = hashlib.sha256(json.dumps(read).encode())
        for key in ("image", *self.tasks):
            for index in range(len(self)):
                path = self.path(key, index)
                if path is None:
                    continue
                try:
                    status = path.stat()
                except OSError:
                    raise _of_task(key, missing(path)) from None
                digest.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns}".encode())
        return digest.hexdigest()[:16]

    def read(self, index: int) -> dict[str, NDArray[Any]]:
        """One sample from its files; see `DenseTasks.read`. Raises `UserError` naming the file and the task."""
        path = self.path("image", index)
        assert path is not None
        image = open_rgb(path)
        labels: dict[str, NDArray[Any]] = {}
        for task in self.tasks:
            try:
                label = self.label(task, index)
            except UserError as error:
                raise _of_task(task, error) from error
            if label is None:
                label = nothing(task, image.shape[:2])
            elif task != "detection" and label.shape[:2] != image.shape[:2]:
                where = self.path(task, index)
                raise _of_task(
                    task, UserError(f"{where}: {label.shape[:2]} pixels, but its image has {image.shape[:2]}")
                )
            labels[task] = label
        if self.size is None:
            return {"image": image, **labels}
        return fitted(image, labels, self.size, self.pad)


def _of_task(task: str, error: UserError) -> UserError:
    """An error about a file, that says of which task it is."""
    return error if task == "image" else UserError(f"[data] {task}: {error}")


def nothing(task: str, size: tuple[int, ...]) -> NDArray[Any]:
    """A label of `size` (H, W) of which no pixel counts."""
    shape = (*size[:2], 3) if task == "normals" else size[:2]
    return np.full(shape, NOTHING[task], _TYPES.get(task, np.uint8))


def fitted(
    image: NDArray[Any],
    labels: Mapping[str, NDArray[Any]],
    size: tuple[int, int],
    pad: bool = False,
    kinds: Kinds | None = None,
) -> dict[str, NDArray[Any]]:
    """A picture and its labels at a size (H, W): interpolated and by the nearest pixel, see `resize_label`.

    With `pad` they keep their proportions: what is larger is made smaller, and what is missing at the right and the
    bottom is the mean colour, without labels.
    """
    was, like = image.shape[:2], {task: (kinds or {}).get(task, task) for task in labels}
    within = size
    if pad:
        share = min(1.0, size[0] / was[0], size[1] / was[1])
        within = (max(1, round(was[0] * share)), max(1, round(was[1] * share)))
    if within != was:
        picture = Image.fromarray(image).resize((within[1], within[0]), Image.Resampling.BILINEAR)
        image = np.asarray(picture)
        labels = {
            task: label if like[task] in OF_WHOLE else resize_label(like[task], label, within, was)
            for task, label in labels.items()
        }
    if within == size:
        return {"image": image, **labels}
    whole = np.empty((*size, 3), np.uint8)
    whole[:] = np.rint(np.array(MEAN) * 255)
    whole[: within[0], : within[1]] = image
    found = {"image": whole}
    for task, label in labels.items():
        found[task] = label
        if like[task] not in (*OF_WHOLE, "detection"):
            found[task] = np.full((*size, *label.shape[2:]), NOTHING.get(like[task], 255), label.dtype)
            found[task][: within[0], : within[1]] = label
    return found


def _pixels(name: str, given: Sequence[int] | None) -> tuple[int, int] | None:
    if given is None:
        return None
    whole = isinstance(given, list | tuple) and all(isinstance(x, int) and not isinstance(x, bool) for x in given)
    if not whole or len(given) != 2 or min(given) < 1:
        shown = list(given) if isinstance(given, tuple) else given
        raise UserError(f"[data] {name} = {shown}: give a height and a width in pixels")
    return int(given[0]), int(given[1])
