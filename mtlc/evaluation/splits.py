"""Holds data as three splits of samples, which are dicts, and makes batches of them.

A sample is a dict with ``"image"`` (C, H, W), or several inputs under the names that the job gives, and one entry per
task that it has a label of. A data set is any map-style ``torch.utils.data.Dataset``; two optional methods make it
fast: ``batch(indices) -> dict of stacked tensors`` and ``augment(batch, generator) -> batch`` (training only). Two
more tell it from others without reading all of it: ``identity`` and ``files`` (`mtlc.evaluation.data_identity`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch.utils.data import Subset

from mtlc.errors import BundleError, MtlcError, UserError, nearest, one_line
from mtlc.evaluation.collation import collate
from mtlc.evaluation.data_identity import data_identity
from mtlc.evaluation.given_data import GivenData, given_data
from mtlc.evaluation.sample_forms import Names
from mtlc.log import Log, bar, silent
from mtlc.references import call
from mtlc.runtime.bundle.manifest import Preprocessing
from mtlc.runtime.bundle.manifest_reader import preprocessing

Batch = dict[str, torch.Tensor]
Watch = Callable[[Any, list[int], Batch], None]

SPLITS = ("train", "calibration", "validation")
_SHARE, _MOST_CALIBRATION = 10, 512
"""A calibration split that nobody gives is one in so many training samples, and at most so many."""


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
    given. `factory` and `arguments` say what made the splits, where a job's data factory did; of its arguments those in
    `only_reading` change how samples are read and none of them, so they do not count. `labelled` is how many samples
    have a label of each task, by split; `mtlc.evaluation.label_check` counts them.
    """

    train: Any
    calibration: Any
    validation: Any
    preprocessing: Mapping[str, Any] | None = None
    identity: _Identity = _Identity()
    factory: str | None = None
    arguments: Mapping[str, Any] | None = None
    only_reading: Sequence[str] = ()
    labelled: Mapping[str, Mapping[str, int]] | None = None

    def __post_init__(self) -> None:
        for name in SPLITS:
            split = getattr(self, name)
            if not hasattr(split, "__len__") or not hasattr(split, "__getitem__"):
                raise _not_map_style(name)
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


def _not_map_style(name: str) -> UserError:
    return UserError(f"[data] {name}: the data factory must give a map-style data set (__len__, __getitem__)")


def read_preprocessing(given: Mapping[str, Any] | None) -> Preprocessing | None:
    """`given` as the bundle will hold it. Raises `UserError` naming the key that is wrong."""
    if given is None:
        return None
    try:
        return preprocessing(given)
    except BundleError as error:
        raise UserError(f"[data] {str(error).removeprefix('manifest.json: ')}") from None


def load_splits(factory: str, names: Names | None = None, log: Log = silent, /, **kwargs: Any) -> Splits:
    """Call a data factory and accept what `as_splits` does.

    With `names`, the splits may be of any kind that `mtlc.evaluation.given_data` knows.
    """
    made = call(factory, "[data] factory", **kwargs)
    splits = as_splits(made, names, f"[data] factory {factory!r} returned", log)
    splits.factory = factory
    # Where a folder lies does not say what is in it: the same data may be reached by another path.
    splits.arguments = {name: value for name, value in kwargs.items() if name not in ("root", *splits.only_reading)}
    return splits


def as_splits(given: Any, names: Names | None, what: str, log: Log = silent) -> Splits:
    """`Splits`, or a dict, a tuple or a list of the three splits, or of two: train and validation.

    Of two, the calibration split is taken from train: `log` is told. With `names` the splits may be of any kind.
    Raises `UserError` that begins with `what`, or names the split.
    """
    parts, how = parts_of(given, what)
    if isinstance(given, Splits) and (names is None or all(given_data(parts[n], names, n) is parts[n] for n in parts)):
        return given
    if names is not None:
        parts = {name: given_data(data, names, name, log) for name, data in parts.items()}
    if parts.get("calibration") is None:
        parts = _with_calibration(parts, log)
    if names is not None:
        how = _with_pixels(parts, how, log)
    return Splits(**parts, preprocessing=how)


def parts_of(given: Any, what: str) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The splits by name, and how a picture becomes the input."""
    if isinstance(given, Splits):
        return {name: getattr(given, name) for name in SPLITS}, given.preprocessing
    if isinstance(given, Mapping):
        for name in given:
            if name not in (*SPLITS, "preprocessing"):
                raise UserError(f"{what} a dict with {name!r}{nearest(str(name), (*SPLITS, 'preprocessing'))}")
        missing = {name for name in ("train", "validation") if given.get(name) is None}
        if missing:
            raise UserError(f"{what} a dict: the split {sorted(missing)[0]!r} is missing from it")
        return {name: given[name] for name in SPLITS if given.get(name) is not None}, given.get("preprocessing")
    few = isinstance(given, tuple | list) and len(given) in (2, 3)
    samples = isinstance(given, list) and any(isinstance(one, Mapping) for one in given)
    if few and not samples and not any(isinstance(one, np.ndarray | torch.Tensor) for one in given):
        return dict(zip(SPLITS if len(given) == 3 else ("train", "validation"), given, strict=True)), None
    raise UserError(
        f"{what} {type(given).__name__}: return mtlc.evaluation.splits.Splits(train, calibration, validation), or a "
        "dict or a tuple of these, calibration left out where there is none"
    )


def _with_calibration(parts: Mapping[str, Any], log: Log) -> dict[str, Any]:
    """The splits with a calibration split out of train: every tenth sample, at most `_MOST_CALIBRATION`."""
    train = parts["train"]
    for name in ("train", "validation"):
        if not hasattr(parts[name], "__len__") or not hasattr(parts[name], "__getitem__"):
            raise _not_map_style(name)
    count = len(train)
    if count < 2:
        raise UserError(f"[data] train has {count} sample{'s' * (count != 1)}: too few to take a calibration split of")
    step = max(_SHARE, -(-count // _MOST_CALIBRATION))
    chosen = list(range(0, count, step))
    left = sorted(set(range(count)) - set(chosen))
    log(
        f"[data] no calibration split: {len(chosen)} of the {count} training samples are it, every {step}th, and are "
        "not trained on"
    )
    return {
        "train": PartOfTrain(train, left),
        "calibration": PartOfTrain(train, chosen),
        "validation": parts["validation"],
    }


class PartOfTrain(Subset[Any]):
    """Some samples of a training split, with what the split has besides samples."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        super().__init__(dataset, indices)
        self.made_of = (dataset,)

    def __getattr__(self, name: str) -> Any:
        if name in ("batch", "augment", "identity", "files") and "dataset" in self.__dict__:
            value = getattr(self.dataset, name)  # raises where the split has none
            if name == "batch":
                return lambda indices: value([self.indices[index] for index in indices])
            return value if name in ("augment", "files") else f"{value() if callable(value) else value}:{self.indices}"
        raise AttributeError(name)

    def place(self, index: int) -> str:
        """What a sample is called in the split that it is taken from."""
        return f"train sample {self.indices[index]}"

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several samples, as the split gives them."""
        places = [self.indices[index] for index in indices]
        several = getattr(self.dataset, "__getitems__", None)
        return [self.dataset[place] for place in places] if several is None else list(several(places))


def _with_pixels(parts: Mapping[str, Any], how: Mapping[str, Any] | None, log: Log) -> Mapping[str, Any] | None:
    """How a picture becomes the input, told to the data sets; pictures that are bytes by 1/255 where nobody says."""
    both = [data for split in parts.values() for data in (split, getattr(split, "dataset", None))]
    given = [data for data in both if isinstance(data, GivenData)]
    bytewise = [data for data in given if data.pictures and len(data.names.inputs) == 1]
    if how is None and bytewise:
        gray = bytewise[0][0][bytewise[0].names.inputs[0]].shape[0] == 1
        how = {"scale": 1 / 255, "mean": [0.0], "std": [1.0], "color": "L" if gray else "RGB", "layout": "NCHW"}
        log(
            "[data] pictures are bytes, and are divided by 255; for a network that does so itself, or is used to "
            'another range, say it: preprocessing = {"scale": 1}'
        )
    told = read_preprocessing(how)
    for data in given:
        data.preprocessing = told
    return how


def batches(dataset: Any, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """The split in its order, `batch_size` samples at a time, at most `limit` samples."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    with bar("samples", count) as done:
        for start in range(0, count, batch_size):
            end = min(start + batch_size, count)
            yield fetch(dataset, range(start, end))
            done(end - start)


def fetch(dataset: Any, indices: Sequence[int], begun: Callable[[int], None] | None = None) -> Batch:
    """The samples at `indices`, stacked; by `mtlc.evaluation.collation` unless the data set has ``batch``. A label that
    some of them lack has zeros in their rows, and which rows are real stands beside it.

    What collates to no tensor, such as a file name, belongs to no task and is left out. Whatever the data set raises
    is a `UserError`. `begun` is told the index of each sample before it is read, of the first where ``batch`` reads
    them together.
    """
    name = type(dataset).__name__
    if hasattr(dataset, "batch"):
        if begun is not None and len(indices):
            begun(indices[0])
        with _users_code(f"[data] {name}.batch"):
            made = dataset.batch(indices)
        known = {key: value for key, value in made.items() if value is not None} if isinstance(made, Mapping) else None
        if known is None or not all(isinstance(value, torch.Tensor) for value in known.values()):
            raise UserError(f"[data] {name}.batch must return a dict of tensors")
        return known
    samples = None if begun is not None else _several(dataset, indices)
    if samples is None:
        samples = []
        for index in indices:
            if begun is not None:
                begun(index)
            with _users_code(f"[data] sample {index} of {name}"):
                samples.append(_as_dict(dataset[index]))
    with _users_code(f"[data] samples of {name} do not stack"):
        return collate(samples)


def _several(dataset: Any, indices: Sequence[int]) -> list[dict[str, Any]] | None:
    """The samples by ``__getitems__``, torch's way to ask for several at once; None where there is none, or it fails:
    asked one by one, the sample that is wrong shows.
    """
    if not hasattr(dataset, "__getitems__"):
        return None
    try:
        return [_as_dict(sample) for sample in dataset.__getitems__(list(indices))]
    except Exception:  # the data set is the user's: asked one by one it raises again, and the sample is known
        return None


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
