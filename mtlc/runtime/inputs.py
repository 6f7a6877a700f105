"""Checks input arrays against a bundle's manifest, and turns pictures into such arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtlc.errors import UserError, nearest
from mtlc.runtime.bundle.manifest import Manifest, TensorInfo
from mtlc.runtime.picture_fit import Fit

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


BATCH = "batch"
"""What manifests call the dimension of samples."""


class Inputs:
    """The inputs of a manifest; `label` names the bundle in messages. With `batch` no other number of samples is taken.

    Raises `UserError` for a `batch` below 1, or for a bundle whose inputs have none.
    """

    def __init__(self, manifest: Manifest, label: str, batch: int | None = None) -> None:
        if batch is not None and (type(batch) is not int or batch < 1):
            raise UserError(f"batch = {batch!r}: must be a whole number, 1 or more")
        if batch is not None and not any(BATCH in info.shape for info in manifest.inputs):
            raise UserError(f"batch = {batch}: the inputs of {label} have fixed sizes; leave it out")
        self._batch = batch
        self._usual: tuple[tuple[int, ...], np.dtype] | None = None
        self._inputs = tuple((i, np.dtype(i.dtype), len(i.shape)) for i in manifest.inputs)
        self._preprocessing, self._label = manifest.preprocessing, label

    def check(self, x: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays by name, after their shapes and dtypes were compared with the manifest. Raises `UserError`."""
        # The usual case is one array like the last; `Session` says why that is worth a line.
        if type(x) is np.ndarray and self._usual == (x.shape, x.dtype):
            return {self._inputs[0][0].name: x}
        # To ask an array whether it is a Mapping takes long where the caches are cold.
        if isinstance(x, np.ndarray) or not isinstance(x, Mapping):
            if len(self._inputs) != 1:
                names = ", ".join(info.name for info, _, _ in self._inputs)
                raise UserError(f"the bundle has {len(self._inputs)} inputs: give a dict with {names}")
            x = {self._inputs[0][0].name: x}
        elif len(x) != len(self._inputs):
            known = [info.name for info, _, _ in self._inputs]
            for name in x:
                if name not in known:
                    raise UserError(f"the bundle has no input {name!r}{nearest(str(name), known)}")
        values: dict[str, np.ndarray] = {}
        sizes: dict[str, int] = {} if self._batch is None else {BATCH: self._batch}
        for info, dtype, rank in self._inputs:
            array = x.get(info.name)
            if not isinstance(array, np.ndarray):
                what = "is missing" if array is None else f"must be a numpy array, not {type(array).__name__}"
                raise UserError(f"input {info.name!r} {what}")
            if array.dtype != dtype:
                raise UserError(
                    f"input {info.name!r} is {array.dtype}, the bundle takes {dtype}: use .astype(np.{dtype})"
                )
            if array.ndim != rank:
                raise UserError(f"input {info.name!r} has shape {array.shape}, the bundle takes {_shape(info)}")
            if self._batch is not None:
                self._check_batch(info, array.shape, self._batch)
            _check_shape(info, array.shape, sizes)
            values[info.name] = array
            if len(self._inputs) == 1:
                self._usual = array.shape, array.dtype
        return values

    @staticmethod
    def _check_batch(info: TensorInfo, shape: tuple[int, ...], batch: int) -> None:
        """Compare the number of samples, wherever it stands in the shape; an input may have no dimensions at all."""
        for size, expected in zip(shape, info.shape, strict=True):
            if expected == BATCH and size != batch:
                raise UserError(f"input {info.name!r} has {size} samples, the session was opened with batch = {batch}")

    @property
    def picture_size(self) -> tuple[int, int] | None:
        """Height and width of the one input; None where it has other axes, or takes any size."""
        shape = self._inputs[0][0].shape
        if len(self._inputs) != 1 or len(shape) != 4:
            return None
        height, width = shape[-2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def fit(self, size: tuple[int, int]) -> Fit:
        """How `preprocess` fits a picture of a `size` (H, W); one into an input of any size lies there as it is."""
        if len(size) != 2 or not all(isinstance(one, int | np.integer) and one > 0 for one in size):
            raise UserError(f"size = {size!r}: give height and width of the picture, two whole numbers above zero")
        size = int(size[0]), int(size[1])
        how = "stretch" if self._preprocessing is None else self._preprocessing.resize
        return Fit.of(size, self.picture_size or size, how)

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """A picture as the one input, (1, C, H, W); see `Session.preprocess`."""
        how, (info, dtype, _) = self._preprocessing, self._inputs[0]
        if how is None:
            raise UserError(f"{self._label}: the bundle has no preprocessing: feed arrays as the network takes them")
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"preprocess takes a uint8 array (H, W, C), not {kind}")
        if how.color == "L":
            image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
            pixels = image @ _LUMA if image.ndim == 3 and image.shape[-1] == 3 else image.astype(np.float32)
            pixels = pixels[..., None]
        else:
            pixels = image[..., ::-1] if how.color == "BGR" else image
        if pixels.ndim != 3 or pixels.size == 0 or pixels.shape[-1] != (1 if how.color == "L" else 3):
            raise UserError(f"preprocess takes a picture (H, W, {1 if how.color == 'L' else 3}), not {image.shape}")
        size = self.picture_size
        if size is not None and pixels.shape[:2] != size:
            # Pictures of floats only where grey was made of colours: rounded first, as if the picture had been grey.
            fit = Fit.of((pixels.shape[0], pixels.shape[1]), size, how.resize)
            pixels = fit.apply(np.rint(pixels).astype(np.uint8), how.fill)
        std = np.asarray(how.std, np.float32)
        x = pixels * (np.float32(how.scale) / std) - np.asarray(how.mean, np.float32) / std
        x = np.ascontiguousarray(x.transpose(2, 0, 1)[None], dtype)
        _check_shape(info, x.shape, {})
        return x


def _check_shape(info: TensorInfo, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Compare sizes; a named dimension has any size above zero, the same one wherever its name is used."""
    for size, expected in zip(shape, info.shape, strict=True):
        if size != (sizes.setdefault(expected, size) if isinstance(expected, str) else expected) or size == 0:
            raise UserError(f"input {info.name!r} has shape {shape}, the bundle takes {_shape(info)}")


def _shape(info: TensorInfo) -> str:
    return f"({', '.join(str(size) for size in info.shape)})"
