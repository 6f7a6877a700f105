"""Finds the samples of tar shards in the form of WebDataset, and reads members by their places, without unpacking.

A sample is a run of members whose names are the same up to the first dot: ``000017.jpg``, ``000017.seg.png``. The names
of a shard are read once; of a member its place and its size are kept, 16 bytes. So any sample is read at once, in any
order, by any process. Nothing of a name becomes a path.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mtlc.errors import UserError, reason
from mtlc.extras import missing_extra
from mtlc.files import check_plain
from mtlc.zoo.checked_files import Member

MOST_BYTES = 1 << 30
"""The largest member that is read."""
_BLOCK = 512
_NONE = -1


@dataclass(frozen=True)
class Shard:
    """A shard: of each sample its key, and the place and the size of each of its `members` (n, members), in bytes.

    Both are -1 for a member that a sample has not.
    """

    path: Path
    members: tuple[str, ...]
    keys: NDArray[np.bytes_]
    places: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return bytes(self.keys[index]).decode(errors="replace")

    def read(self, index: int, wanted: Sequence[str]) -> dict[str, Member | None]:
        """Some members of a sample, None for one that it has not. Raises `UserError` naming shard and key."""
        found: dict[str, Member | None] = {}
        try:
            with self.path.open("rb") as file:
                for member in wanted:
                    column = self.members.index(member)
                    place, size = int(self.places[index, column]), int(self.sizes[index, column])
                    name = f"{self.path}: sample {self.key(index)!r}: {member}"
                    if place == _NONE:
                        found[member] = None
                        continue
                    file.seek(place)
                    content = file.read(size)
                    if len(content) < size:
                        raise UserError(f"{name}: truncated since it was opened; get the shard again")
                    found[member] = Member(name, content)
        except OSError as error:
            raise UserError(f"{self.path}: sample {self.key(index)!r}: cannot be read ({reason(error)})") from None
        return found


def shard_paths(root: Path, name: str, given: object) -> list[Path]:
    """The shards that ``"train-{000..009}.tar"``, ``"train-*.tar"`` or a list of these names under the root.

    `name` is the key of the job. Raises `UserError` for what is no file under the root.
    """
    patterns = [given] if isinstance(given, str) else given
    if not isinstance(patterns, list | tuple) or not patterns or not all(isinstance(one, str) for one in patterns):
        raise UserError(
            f'[data] {name} = {given!r}: give the shards, such as "train-{{000..009}}.tar", or a list of them'
        )
    paths: list[Path] = []
    for pattern in patterns:
        if "://" in pattern or pattern.startswith("pipe:"):
            raise UserError(f"[data] {name} = {pattern!r}: only files are read; copy the shards under root")
        for one in _expanded(pattern, name):
            if Path(one).is_absolute() or ".." in Path(one).parts or not one:
                raise UserError(f"[data] {name} = {one!r}: leads out of root = {root}; name shards that lie under it")
            found = sorted(root.glob(one)) if any(mark in one for mark in "*?[") else [root / one]
            if not found:
                raise UserError(f"[data] {name} = {one!r}: no such file under {root}")
            paths += found
    for path in paths:
        if not path.is_file():
            raise UserError(f"[data] {name}: {path}: no such file")
    if len(set(paths)) < len(paths):
        double = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"[data] {name}: {double} is named twice; each sample must be there once")
    return paths


def open_shard(path: Path, members: Sequence[str], needed: Sequence[str]) -> Shard:
    """Finds the samples of a shard; those that have none of the `members` are left out.

    Raises `UserError` naming the shard, and the key of a sample that lacks one of those `needed`, or has one twice.
    """
    check_plain(path)
    columns = {member: column for column, member in enumerate(members)}
    keys: list[bytes] = []
    places: list[int] = []
    sizes: list[int] = []
    last = ""

    def end_of(start: int) -> None:
        """Check the sample whose places begin at `start`."""
        for member in needed:
            if places[start + columns[member]] == _NONE:
                there = [one for one, column in columns.items() if places[start + column] != _NONE]
                raise UserError(
                    f"{path}: sample {last!r} has no member {member!r}; it has {', '.join(map(repr, there))}"
                )

    for key, suffix, place, size in _members(path):
        if suffix not in columns:
            continue
        if key != last or not keys:
            if keys:
                end_of(len(places) - len(columns))
            keys.append(key.encode("utf-8", "surrogateescape"))
            places += [_NONE] * len(columns)
            sizes += [_NONE] * len(columns)
            last = key
        at = len(places) - len(columns) + columns[suffix]
        if places[at] != _NONE:
            raise UserError(f"{path}: sample {key!r} has the member {suffix!r} twice")
        if size > MOST_BYTES:
            raise UserError(
                f"{path}: sample {key!r}: {suffix} has {size >> 20} MB; at most {MOST_BYTES >> 20} are read"
            )
        places[at], sizes[at] = place, size
    if not keys:
        raise UserError(f"{path}: no sample has a member {' or '.join(map(repr, members))}; look at it with: tar tf")
    end_of(len(places) - len(columns))
    shape = (len(keys), len(columns))
    return Shard(
        path, tuple(members), np.array(keys), np.array(places, np.int64).reshape(shape),
        np.array(sizes, np.int64).reshape(shape),
    )  # fmt: skip


def _members(path: Path) -> Iterator[tuple[str, str, int, int]]:
    """Key, suffix, place and size of each file in a shard. Raises `UserError` where it is damaged or cut off."""
    split = _library().tariterators.base_plus_ext
    key = ""

    def damaged(what: str) -> UserError:
        after = f" after sample {key!r}" if key else ""
        return UserError(f"{path}: truncated or damaged{after} ({what}); get the shard again")

    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size, reached = os.fstat(file.fileno()).st_size, -1
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
                if member.size < 0 or member.offset <= reached:
                    raise damaged("a member leads back")
                reached = member.offset
                found, suffix = split(member.name)
                if not member.isreg() or found is None or member.name.startswith("__"):
                    continue
                key = found
                if member.issparse() or member.offset_data + member.size > size:
                    raise damaged("a member goes beyond its end")
                yield key, suffix.lower(), member.offset_data, member.size
            # Where a header is damaged tarfile ends as if there were no more.
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise damaged("the mark of its end is missing")
    except (OSError, tarfile.TarError, ValueError) as error:
        if path.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
            raise UserError(f"{path}: is compressed, so no sample can be read alone; unpack it to a .tar") from None
        raise damaged(reason(error)) from None


def _expanded(pattern: str, name: str) -> list[str]:
    """The names that a pattern with braces stands for, as WebDataset reads it."""
    try:
        return list(_library().shardlists.expand_urls(pattern))
    except Exception as error:  # braceexpand's own, and AssertionError for a variable that is not set
        raise UserError(f"[data] {name} = {pattern!r}: {reason(error)}") from None


def _library() -> ModuleType:
    try:
        import webdataset
        import webdataset.shardlists
        import webdataset.tariterators
    except ImportError:
        raise missing_extra("webdataset") from None
    library: ModuleType = webdataset
    return library
