"""Holds data as three splits of samples, which are dicts, and makes batches of them.

A sample is a dict with ``"image"`` (C, H, W), or several inputs under the names that the job gives, and one entry per
task. A data set is any map-style ``torch.utils.data.Dataset``; two optional methods make it fast:
``batch(indices) -> dict of stacked tensors`` and ``augment(batch, generator) -> batch`` (training only). Two more tell
it from others without reading all of it: ``identity`` and ``files`` (`mtlc.evaluation.data_identity`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch.utils.data import default_collate

from mtlc.errors import BundleError, MtlcError, UserError, one_line
from mtlc.evaluation.data_identity import data_identity
from mtlc.log import Log, silent
from mtlc.references import call
from mtlc.runtime.bundle.manifest import Preprocessing
from mtlc.runtime.bundle.manifest_reader import preprocessing

Batch = dict[str, torch.Tensor]
Watch = Callable[[Any, list[int], Batch], None]


class _Identity:
    """An attribute that is worked out when it is first read, as that may read all the data; unless one is given."""

    @overload
    def __get__(self, splits: None, owner: type) -> str: ...
    @overload
    def __get__(self, splits: Splits, owner: type) -> str: ...
    def __get__(self, splits: Splits | None, owner: type) -> str:
        if splits is None:
            return ""  # the default of the dataclass
        return splits.identify()

    def __set__(self, splits: Splits, value: str) -> None:
        splits.__dict__["identity"] = value


@dataclass
class Splits:
    """The three splits of a data set; `calibration` is held out of `train`, `validation` is what a report quotes.

    `preprocessing` says how a picture becomes the network's input (scale, mean, std, colour order, layout): the
    bundle carries it to the device. `identity` changes with any sample of any split; it is worked out where none is
    given. `factory` and `arguments` say what made the splits, where a job's data factory did.
    """

    train: Any
    calibration: Any
    validation: Any
    preprocessing: Mapping[str, Any] | None = None
    identity: _Identity = _Identity()
    factory: str | None = None
    arguments: Mapping[str, Any] | None = None

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

    def identify(self, log: Log = silent, watch: Watch | None = None) -> str:
        """The `identity`; `log` is told where that means to read every sample. Raises what `fetch` raises.

        `watch` is given every batch that is read for it, with its data set and the samples' indices, so that nobody
        needs to read them again.
        """
        if not self.__dict__["identity"]:
            self.__dict__["identity"] = _identity(self, log, watch)
        return str(self.__dict__["identity"])


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
    splits = _as_splits(factory, call(factory, "[data] factory", **kwargs))
    splits.factory = factory
    # Where a folder lies does not say what is in it: the same data may be reached by another path.
    splits.arguments = {name: value for name, value in kwargs.items() if name != "root"}
    return splits


def _as_splits(factory: str, result: Any) -> Splits:
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
        f"[data] factory {factory!r} returned {type(result).__name__}: "
        "return mtlc.evaluation.splits.Splits(train, calibration, validation)"
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


def _identity(splits: Splits, log: Log, watch: Watch | None) -> str:
    """A hash of what the splits hold and of the arguments that made them: an augmentation's are in no sample."""

    def read(data: Any, indices: list[int]) -> Batch:
        batch = fetch(data, indices)
        if watch is not None:
            watch(data, indices, batch)
        return batch

    names, found = ("train", "calibration", "validation"), dict[int, str]()
    for name in names:
        data = getattr(splits, name)
        if id(data) not in found:  # one data set may be several splits
            found[id(data)] = data_identity(data, read, name, log)
    of = [found[id(getattr(splits, name))] for name in names]
    described = json.dumps([of, splits.preprocessing, splits.arguments], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()
