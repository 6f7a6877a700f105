"""Data as mtlc sees it: three splits of samples that are dicts, and batches of them.

A sample is a dict with ``"image"`` (C, H, W), or several inputs under the names that the job gives, and one entry per
task. A data set is any map-style ``torch.utils.data.Dataset``; two optional methods make it fast:
``batch(indices) -> dict of stacked tensors`` and ``augment(batch, generator) -> batch`` (training only).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import default_collate

from mtlc.errors import BundleError, MtlcError, UserError, one_line
from mtlc.references import call
from mtlc.runtime.bundle.manifest import Preprocessing
from mtlc.runtime.bundle.manifest_reader import preprocessing

Batch = dict[str, torch.Tensor]


@dataclass
class Splits:
    """The three splits of a data set; `calibration` is held out of `train`, `validation` is what a report quotes.

    `preprocessing` says how a picture becomes the network's input (scale, mean, std, colour order, layout): the
    bundle carries it to the device.
    """

    train: Any
    calibration: Any
    validation: Any
    preprocessing: Mapping[str, Any] | None = None
    identity: str = field(default="")

    def __post_init__(self) -> None:
        for name in ("train", "calibration", "validation"):
            split = getattr(self, name)
            if not hasattr(split, "__len__") or not hasattr(split, "__getitem__"):
                raise UserError(
                    f"[data] {name}: the data factory must give a map-style data set (__len__, __getitem__)"
                )
            if name != "train" and len(split) == 0:
                raise UserError(f"[data] the {name} split is empty: give it at least one sample")
        read_preprocessing(self.preprocessing)
        if not self.identity:
            self.identity = _identity(self)


def read_preprocessing(given: Mapping[str, Any] | None) -> Preprocessing | None:
    """`given` as the bundle will hold it. Raises `UserError` naming the key that is wrong."""
    if given is None:
        return None
    try:
        return preprocessing(given)
    except BundleError as error:
        raise UserError(f"[data] {str(error).removeprefix('manifest.json: ')}") from None


def load_splits(factory: str, **kwargs: Any) -> Splits:
    """Call a data factory and accept `Splits`, or a dict or tuple of its three splits."""
    result = call(factory, "[data] factory", **kwargs)
    if isinstance(result, Splits):
        return result
    if isinstance(result, Mapping):
        missing = {"train", "calibration", "validation"} - set(result)
        if missing:
            raise UserError(
                f"[data] factory {factory!r}: the split {sorted(missing)[0]!r} is missing from what it returned"
            )
        return Splits(
            **{key: result[key] for key in ("train", "calibration", "validation")},
            preprocessing=result.get("preprocessing"),
        )
    if isinstance(result, tuple) and len(result) == 3:
        return Splits(*result)
    raise UserError(
        f"[data] factory {factory!r} returned {type(result).__name__}: return mtlc.evaluation.splits.Splits(train, calibration, validation)"
    )


def batches(dataset: Any, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """The split in its order, `batch_size` samples at a time, at most `limit` samples."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    for start in range(0, count, batch_size):
        yield fetch(dataset, range(start, min(start + batch_size, count)))


def fetch(dataset: Any, indices: Sequence[int]) -> Batch:
    """The samples at `indices`, stacked; `torch.utils.data`'s collation unless the data set has ``batch``.

    What collates to no tensor, such as a file name, belongs to no task and is left out. Whatever the data set raises
    is a `UserError`.
    """
    name = type(dataset).__name__
    if hasattr(dataset, "batch"):
        with _users_code(f"[data] {name}.batch"):
            made = dataset.batch(indices)
        if not isinstance(made, Mapping) or not all(isinstance(value, torch.Tensor) for value in made.values()):
            raise UserError(f"[data] {name}.batch must return a dict of tensors")
        return dict(made)
    samples = []
    for index in indices:
        with _users_code(f"[data] sample {index} of {name}"):
            samples.append(_as_dict(dataset[index]))
    with _users_code(f"[data] samples of {name} do not stack"):
        stacked = default_collate(samples)
    return {key: value for key, value in stacked.items() if isinstance(value, torch.Tensor)}


@contextmanager
def _users_code(what: str) -> Iterator[None]:
    try:
        yield
    except MtlcError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {one_line(error)}") from error


def _as_dict(sample: Any) -> dict[str, Any]:
    if isinstance(sample, Mapping):
        return dict(sample)
    if isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[1], Mapping):
        return {"image": sample[0], **sample[1]}
    raise UserError(f"[data] a sample is a {type(sample).__name__}: give a dict with 'image' and one entry per task")


def _identity(splits: Splits) -> str:
    """A hash of what the splits hold: their own `identity` if they have one, else lengths and a few samples."""
    digest = hashlib.sha256()
    for split in (splits.train, splits.calibration, splits.validation):
        own = getattr(split, "identity", None)
        if own is not None:
            digest.update(str(own).encode())
            continue
        digest.update(f"{type(split).__qualname__}:{len(split)}".encode())
        for index in sorted({0, len(split) // 2, len(split) - 1} if len(split) else ()):
            for key, value in sorted(fetch(split, [index]).items()):
                digest.update(key.encode())
                digest.update(torch.as_tensor(value).contiguous().numpy().tobytes())
    digest.update(json.dumps(splits.preprocessing, sort_keys=True, default=str).encode())
    return digest.hexdigest()
