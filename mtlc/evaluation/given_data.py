"""Makes a data set that mtlc reads of what somebody has: a `DataLoader`, a data set, arrays, an iterable.

| given | what is taken of it |
|---|---|
| a `DataLoader` | its data set, its ``collate_fn``, its sampler and its workers; the batch size is the passes' own |
| a map-style data set, a list of samples | itself |
| an iterable data set, a generator | what it gives, read once and kept (`mtlc.evaluation.kept_samples`) |
| tensors or arrays ``(x, y)``, ``{"image": x, "depth": y}`` | their first axis counts samples |
| a function without arguments | what it returns |

Shuffling is the training's own. A sampler that draws is asked once, with a fixed seed: an epoch is what it drew, in an
order of the training's. See `mtlc.evaluation.sample_forms` for samples.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from mtlc.errors import MtlcError, UserError, one_line
from mtlc.evaluation.child_signals import child_handler_kept
from mtlc.evaluation.kept_samples import KeptSamples
from mtlc.evaluation.loading_workers import Workers
from mtlc.evaluation.sample_forms import Names, as_input, as_label, is_picture, named
from mtlc.log import Log, silent
from mtlc.runtime.bundle.manifest import Preprocessing

FORMS = "a DataLoader, a data set with __len__ and __getitem__, arrays (x, y), an iterable of samples"
_MOST = 1_000_000
"""Samples of an iterable that are kept; one that gives more may never end."""


class GivenData:
    """A map-style data set of named samples over one of another kind.

    `made_of` are the objects whose code its samples follow from. `pictures` is whether inputs are uint8 pictures.
    """

    _batched = False
    """Whether `_raw` gives a batch of one."""

    def __init__(self, data: Any, names: Names, split: str, indices: Sequence[int] | None = None) -> None:
        self.data, self.split, self.indices = data, split, indices
        self.made_of: tuple[Any, ...] = (data,)
        self.preprocessing: Preprocessing | None = None
        self._workers: Workers | None = None
        self.names = names if len(self) == 0 else names.of_sample(self._raw(0))
        first = {} if len(self) == 0 else named(self._raw(0), self.names, self._where(0))
        inputs = [first[name] for name in self.names.inputs if name in first]
        self.pictures = any(is_picture(value[0] if self._batched else value) for value in inputs)

    def __len__(self) -> int:
        return len(self.data) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._named(self._raw(index), self._where(index), batched=False)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several samples: by the workers of a `DataLoader`, where there are any."""
        if self._workers is None:
            return [self[index] for index in indices]
        raw = self._workers.samples([self._place(index) for index in indices])
        return [self._named(one, self._where(index), False) for one, index in zip(raw, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        # What mtlc asks of a data set that knows more of itself; not `files`, which means anything in data of others.
        if "data" in self.__dict__ and (
            (name == "augment" and _augments(self.data)) or (name == "identity" and self.indices is None)
        ):
            return getattr(self.data, name)
        raise AttributeError(name)

    def with_workers(self, loader: DataLoader[Any]) -> GivenData:
        """The same, its samples read in as many processes as those of `loader`."""
        if loader.num_workers > 0:
            self._workers = Workers(self.data, loader.num_workers, loader.worker_init_fn)
        return self

    def _place(self, index: int) -> int:
        return index if self.indices is None else int(self.indices[index])

    def _where(self, index: int) -> str:
        return f"[data] {self.split} sample {self._place(index)}"

    def _raw(self, index: int) -> Any:
        with _told(self._where(index)):
            return self.data[self._place(index)]

    def _named(self, sample: Any, where: str, batched: bool) -> dict[str, Any]:
        found = named(sample, self.names, where)
        for name in self.names.inputs:
            found[name] = as_input(found[name], self.preprocessing, batched, f"{where}: {name}")
        for name in self.names.targets:
            if name in found:
                found[name] = as_label(found[name], f"{where}: {name}")
        return found


class GivenBatches(GivenData):
    """The same, its batches made by a ``collate_fn`` of its owner's."""

    _batched = True

    def __init__(
        self, data: Any, names: Names, split: str, indices: Sequence[int] | None, collate: Callable[[list[Any]], Any]
    ) -> None:
        self._collate = collate
        super().__init__(data, names, split, indices)
        self.made_of = (data, collate)

    def _raw(self, index: int) -> Any:
        """A batch of one sample: what the collation makes of it is what counts."""
        with _told(f"{self._where(index)} (collate_fn)"):
            return self._collate([self.data[self._place(index)]])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: value[0] for name, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Samples as the collation stacks them, named."""
        places = [self._place(index) for index in indices]
        where = f"[data] {self.split} samples {places[:8]}{'…' if len(places) > 8 else ''} (collate_fn)"
        with _told(where):
            raw = [self.data[place] for place in places] if self._workers is None else self._workers.samples(places)
            made = self._collate(raw)
        found = self._named(made, where, batched=True)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


class _Rows:
    """Samples of tensors or arrays, in the form in which they were given."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(_leaves(self.parts)[0])

    def __getitem__(self, index: int) -> Any:
        return _row(self.parts, index)


def given_data(given: Any, names: Names, split: str, log: Log = silent) -> Any:
    """A map-style data set of `given`, whose samples and batches are named; `given` itself where it is one already.

    Raises `UserError` that names the `split`, and the sample where it is one that does not fit.
    """
    if isinstance(given, GivenData):
        return given
    if isinstance(given, type):
        raise UserError(f"[data] {split}: is the class {given.__name__}: give an object of it: {given.__name__}(…)")
    if callable(given) and not hasattr(given, "__getitem__") and not hasattr(given, "__iter__"):
        with _told(f"[data] {split}: {getattr(given, '__name__', type(given).__name__)}()"):
            given = given()
        if callable(given) and not hasattr(given, "__getitem__") and not hasattr(given, "__iter__"):
            raise _refused(given, split)
    if isinstance(given, DataLoader):
        return _of_loader(given, names, split, log)
    if _is_rows(given, split):
        return GivenData(_Rows(given), names, split)
    if hasattr(given, "__getitem__") and not isinstance(given, Mapping | IterableDataset | str):
        if not hasattr(given, "__len__"):
            raise UserError(f"[data] {split}: a {type(given).__name__} without __len__: say how many samples it has")
        return given if len(given) == 0 or _is_named(given, names, split) else GivenData(given, names, split)
    if hasattr(given, "__iter__") and not isinstance(given, Mapping | str):
        return GivenData(_kept(given, split, log), names, split)
    raise _refused(given, split)


def first_sample(given: Any, split: str) -> tuple[Any, bool]:
    """The first sample as its owner gives it, nothing named yet; and whether it is a batch of one.

    What can be read only once is then read. Raises `UserError` that names the `split`.
    """
    if callable(given) and not hasattr(given, "__getitem__") and not hasattr(given, "__iter__"):
        with _told(f"[data] {split}: {getattr(given, '__name__', type(given).__name__)}()"):
            given = given()
    with _told(f"[data] {split} sample 0"):
        if isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset):
            own = given.collate_fn not in (default_collate, default_convert)
            return (given.collate_fn([given.dataset[0]]), True) if own else (given.dataset[0], False)
        if isinstance(given, DataLoader):
            return next(_unbatched(given, split)), False
        if _is_rows(given, split):
            return _row(given, 0), False
        if hasattr(given, "__getitem__") and not isinstance(given, Mapping | IterableDataset | str):
            return given[0], False
        if hasattr(given, "__iter__") and not isinstance(given, Mapping | str):
            return next(iter(given)), False
    raise _refused(given, split)


def _refused(given: Any, split: str) -> UserError:
    keys = f" of {', '.join(map(repr, list(given)[:8]))}" if isinstance(given, Mapping) else ""
    return UserError(f"[data] {split}: is a {type(given).__name__}{keys}; give {FORMS}")


def _augments(data: Any) -> bool:
    """Whether a data set has the method ``augment(batch, generator)``, and no setting of that name."""
    method = getattr(data, "augment", None)
    return inspect.ismethod(method) and len(inspect.signature(method).parameters) == 2


def _says_otherwise(data: Any) -> bool:
    """Whether a data set has something else under a name that mtlc asks for."""
    files = getattr(data, "files", None)
    paths = isinstance(files, list | tuple) and all(isinstance(one, str | os.PathLike) for one in files)
    other = files is not None and not callable(files) and not (paths and all(map(os.path.exists, files[:1])))
    return other or (hasattr(data, "augment") and not callable(data.augment))


def _is_named(data: Any, names: Names, split: str) -> bool:
    """Whether samples, or the batches that a data set makes itself, already are what networks and losses take."""
    if hasattr(data, "batch"):
        return True  # who stacks batches for mtlc knows what it takes
    if _says_otherwise(data):
        return False
    with _told(f"[data] {split} sample 0"):
        sample = data[0]
    if isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[1], Mapping):
        sample = {"image": sample[0], **sample[1]}
    if not isinstance(sample, Mapping):
        return False
    names = names.of_sample(sample)
    if not all(name in sample for name in names.inputs):
        return False
    where = f"[data] {split} sample 0"
    inputs = [(sample[name], as_input(sample[name], None, False, where)) for name in names.inputs]
    labels = [(sample[name], as_label(sample[name], where)) for name in names.targets if name in sample]
    return all(made is value for value, made in inputs) and all(
        made is value or type(value) is int or (isinstance(value, np.ndarray) and _same_type(value, made))
        for value, made in labels
    )


def _same_type(value: np.ndarray[Any, Any], made: Tensor) -> bool:
    return str(made.dtype).removeprefix("torch.") == str(value.dtype)


def _of_loader(loader: DataLoader[Any], names: Names, split: str, log: Log) -> GivenData:
    if isinstance(loader.dataset, IterableDataset):
        return GivenData(_kept(_unbatched(loader, split), split, log), names, split)
    own = loader.collate_fn not in (default_collate, default_convert)
    indices = _drawn(loader, split, log)
    if own:
        return GivenBatches(loader.dataset, names, split, indices, loader.collate_fn).with_workers(loader)
    return GivenData(loader.dataset, names, split, indices).with_workers(loader)


def _drawn(loader: DataLoader[Any], split: str, log: Log) -> list[int] | None:
    """The samples of an epoch; None where they are all, each once."""
    batches: Any = loader.batch_sampler
    sampler: Any = loader.sampler if batches is None else batches
    if type(batches) is BatchSampler:
        sampler = batches.sampler
    if type(sampler) is SequentialSampler:
        return None
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset):  # type: ignore[arg-type]
        return None
    with _seeded(sampler), _told(f"[data] {split}: {type(sampler).__name__}"):
        drawn = list(sampler)
    indices = [int(i) for one in drawn for i in (one if isinstance(one, list | tuple) else [one])]
    log(f"[data] {split}: {len(indices)} samples an epoch, as {type(sampler).__name__} drew them once")
    return indices


@contextmanager
def _seeded(sampler: Any) -> Iterator[None]:
    """Let a sampler draw the same each time, and leave torch's generator and its own as they were."""
    own = getattr(sampler, "generator", None)
    own = own if isinstance(own, torch.Generator) else None
    kept = None if own is None else own.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if own is not None:
            own.manual_seed(0)
        try:
            yield
        finally:
            if own is not None and kept is not None:
                own.set_state(kept)


def _unbatched(loader: DataLoader[Any], split: str) -> Iterator[Any]:
    """The samples of a loader over an iterable data set, one by one, as its workers and its collation give them."""
    for batch in loader:
        if loader.batch_size is None:
            yield batch
            continue
        leaves = _leaves(batch)
        if not leaves or not all(isinstance(one, Tensor) and one.ndim for one in leaves):
            raise UserError(f"[data] {split}: a batch of the DataLoader holds other things than tensors of samples")
        for row in range(len(leaves[0])):
            yield _row(batch, row)


def _kept(given: Any, split: str, log: Log) -> KeptSamples:
    """The samples of an iterable, read once."""
    log(f"[data] {split}: reading an iterable once, its samples are kept")
    samples = KeptSamples()
    with child_handler_kept(), _told(f"[data] {split}: after {{}} samples", samples):
        for sample in given:
            samples.append(sample)
            if len(samples) > _MOST:
                raise UserError(f"[data] {split}: gives more than {_MOST:,} samples: give a map-style data set")
    if not samples:
        raise UserError(f"[data] {split}: gave no sample; an iterator can be read only once")
    if samples.spilled:
        log(f"[data] {split}: {samples.spilled} of {len(samples)} samples did not fit in memory, and are in a file")
    return samples


def _is_rows(given: Any, split: str) -> bool:
    """Whether these are tensors or arrays, in a tuple or by name, whose first axis counts samples."""
    if not isinstance(given, tuple | Mapping) or (isinstance(given, tuple) and hasattr(given, "_fields")):
        return False
    leaves = _leaves(given)
    if len(leaves) < 2 or not all(isinstance(one, Tensor | np.ndarray) and one.ndim for one in leaves):
        return False
    if len({len(one) for one in leaves}) > 1:
        shapes = ", ".join(str(tuple(one.shape)) for one in leaves)
        raise UserError(f"[data] {split}: arrays that differ in the number of samples, their first axis: {shapes}")
    return True


def _leaves(parts: Any) -> list[Any]:
    if isinstance(parts, Mapping):
        return [leaf for one in parts.values() for leaf in _leaves(one)]
    return [leaf for one in parts for leaf in _leaves(one)] if isinstance(parts, tuple | list) else [parts]


def _row(parts: Any, index: int) -> Any:
    if isinstance(parts, Mapping):
        return {name: _row(one, index) for name, one in parts.items()}
    return tuple(_row(one, index) for one in parts) if isinstance(parts, tuple | list) else parts[index]


@contextmanager
def _told(where: str, samples: Sequence[Any] = ()) -> Iterator[None]:
    """What a user's code raises in the block becomes one line that begins with `where`."""
    try:
        yield
    except MtlcError:
        raise
    except Exception as error:
        raise UserError(f"{where.format(len(samples))}: {one_line(error)}") from error
