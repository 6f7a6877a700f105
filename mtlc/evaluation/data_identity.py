"""Works out what tells a data set from any other: its own `identity`, its files, or every sample of it.

In this order:

1. `identity`, an attribute or a method: a string that changes whenever any sample does. The data set's word is taken.
2. `files`, an attribute or a method: the paths that the samples are read from. Their names, sizes and times of change
   are hashed with three samples, and nothing else is read. It is for samples that follow from these files, the code
   and the arguments of the data factory alone.
3. Neither: every sample is read and hashed, in order, each time that it is asked for.

A subset and a concatenation of torch's are told by their parts, and so is a `mtlc.evaluation.mixed.Mixed`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from mtlc.errors import UserError
from mtlc.log import Log, silent, tracked

Fetch = Callable[[Any, list[int]], Mapping[str, Tensor]]

_AT_ONCE = 32
_PATIENCE = 5.0  # seconds of reading after which a line says how it goes


def data_identity(data: Any, fetch: Fetch, name: str, log: Log = silent) -> str:
    """SHA-256 of what a data set holds; `fetch(data, indices)` gives its samples, `name` is what messages call it.

    Where two reads of a sample differ, each call gives another identity, and a line says what to do: what follows from
    such data cannot be kept. Raises `UserError` for an `identity` or `files` of another type, and for a file that is
    not there.
    """
    own = _asked(data, "identity")
    if own is not None:
        if not isinstance(own, str) or not own:
            raise UserError(f"[data] {name}: identity is {own!r}; give a string that changes with the samples")
        return _hash("identity", own)
    if type(data) is Subset:
        indices = json.dumps([int(index) for index in data.indices])
        return _hash("subset", data_identity(data.dataset, fetch, name, log), indices)
    parts = _asked(data, "mixed_of")
    if parts is not None:  # a data set of several whose order follows from their lengths
        return _hash("made of", *(data_identity(part, fetch, name, log) for part in parts))
    if type(data) is ConcatDataset:
        return _hash("parts", *(data_identity(part, fetch, name, log) for part in data.datasets))
    picked = sorted({0, len(data) // 2, len(data) - 1} if len(data) else ())
    if any(_content(fetch(data, [i])) != _content(fetch(data, [i])) for i in picked):
        log(
            f"[data] {name}: two reads of one sample differ, so finished steps are not kept; "
            "move what is random to augment(batch, generator), or give the data set an identity"
        )
        return _hash("random", uuid.uuid4().hex)
    files = _asked(data, "files")
    if files is not None:
        some = [_content(fetch(data, [index])) for index in picked]
        return _hash("files", type(data).__qualname__, str(len(data)), *_stamps(files, name), *some)
    return _hash("samples", *_whole(data, fetch, name, log))


def _whole(data: Any, fetch: Fetch, name: str, log: Log) -> list[str]:
    """A hash of every sample, one batch in memory at a time."""
    count, digest = len(data), hashlib.sha256()
    # Samples without a `batch` of the data set's own need not stack.
    size = _AT_ONCE if hasattr(data, "batch") else 1
    log(f"[data] {name}: reading all {count} samples, as it has no identity of its own")
    said = time.monotonic()
    for start in tracked(range(0, count, size), f"reading {name}"):
        digest.update(_content(fetch(data, list(range(start, min(start + size, count))))).encode())
        if time.monotonic() - said > _PATIENCE:
            log(f"[data] {name}: {min(start + size, count)} of {count} samples read")
            said = time.monotonic()
    return [str(count), digest.hexdigest()]


def _content(batch: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of a batch."""
    digest = hashlib.sha256()
    for key, value in sorted(batch.items()):
        digest.update(f"{key}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stamps(files: Any, name: str) -> list[str]:
    """The path, size and time of change of each file, in order; paths from where they all lie, as a folder may move."""
    if isinstance(files, (str, os.PathLike)) or not isinstance(files, Iterable):
        raise UserError(f"[data] {name}: files is {files!r}; give a list of paths")
    paths = [Path(os.path.abspath(path)) for path in files]
    above = os.path.commonpath([path.parent for path in paths]) if paths else ""
    lines = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            raise UserError(f"[data] {name}: {path} is among its files, and is not there") from None
        lines.append(f"{path.relative_to(above).as_posix()}:{status.st_size}:{status.st_mtime_ns}")
    return lines


def _asked(data: Any, what: str) -> Any:
    """An optional attribute of a data set, or what its method of that name returns."""
    value = getattr(data, what, None)
    return value() if callable(value) else value


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part};".encode())
    return digest.hexdigest()
