"""Finds out what ``mtlc infer`` was given: pictures, folders of them, arrays, videos, cameras."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mtlc.errors import UserError, reason
from mtlc.files import check_plain

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
ARRAYS = (".npy", ".npz")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".mjpeg")
Kind = Literal["picture", "array", "video", "camera"]


@dataclass(frozen=True)
class Source:
    """Something to run a bundle on. `name` is what its files are called by, no two of one call alike."""

    kind: Kind
    path: Path
    name: str


def find_sources(given: Sequence[Path]) -> list[Source]:
    """The sources that were given, a folder as the pictures, arrays and videos right in it, by name.

    A number is a camera, unless there is a file of that name. A file of an unknown ending is taken for a picture.
    Raises `UserError` for what is not there.
    """
    found: list[Source] = []
    for path in given:
        if path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if _known(one) and one.is_file()]
            if not inside:
                raise UserError(f"{path}: no picture, array or video in this folder; known are {_endings()}")
            found += [_source(one) for one in inside]
        elif path.exists():
            check_plain(path)
            found.append(_source(path))
        elif path.name.isdecimal() and str(path) == path.name:
            found.append(Source("camera", path, f"camera{int(path.name)}"))
        else:
            what = {"array": "array", "video": "video"}.get(_kind(path), "picture")
            raise UserError(f"{path}: no such {what}")
    return list(_apart(found))


def _endings() -> str:
    return ", ".join((*PICTURES, *ARRAYS, *VIDEOS))


def _known(path: Path) -> bool:
    return path.suffix.lower() in (*PICTURES, *ARRAYS, *VIDEOS)


def _kind(path: Path) -> Kind:
    suffix = path.suffix.lower()
    return "array" if suffix in ARRAYS else "video" if suffix in VIDEOS else "picture"


def _source(path: Path) -> Source:
    return Source(_kind(path), path, path.stem)


def _apart(sources: Iterable[Source]) -> Iterable[Source]:
    """Names that differ: of two files of one stem with their endings, of two folders' files with numbers."""
    sources = list(sources)
    count = Counter(one.name for one in sources)
    longer = [replace(one, name=one.path.name.replace(".", "-")) if count[one.name] > 1 else one for one in sources]
    taken: set[str] = set()
    for one in longer:
        name, number = one.name, 2
        while name in taken:
            name, number = f"{one.name}-{number}", number + 1
        taken.add(name)
        yield replace(one, name=name)


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """What a ``.npy`` holds, or the arrays of a ``.npz`` by name. Raises `UserError` for a file that is none.

    Objects in it are refused, as they could run code.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except MemoryError:
        raise UserError(f"{path}: its arrays do not fit into memory") from None
    except Exception as error:  # readers of a damaged file raise whatever their code runs into
        raise UserError(f"{path}: not arrays that can be read ({reason(error)})") from error
