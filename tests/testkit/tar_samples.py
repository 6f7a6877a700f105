"""Writes tar shards of tiny samples, as WebDataset's own writer and others do."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (4, 6)


def png(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def sample(number: int) -> dict[str, bytes]:
    """The members of a sample, all of whose values follow from its number."""
    picture = np.full((*SIZE, 3), number, np.uint8)
    lanes = np.full(SIZE, number % 5, np.uint16)
    lanes[0, 0] = 300
    depth = np.full(SIZE, 100 * number, np.uint16)
    normals = np.zeros((*SIZE, 3), np.float32)
    normals[..., 0] = 1
    return {
        "png": png(picture),
        "lanes.png": png(lanes),
        "depth.png": png(depth),
        "far.npy": npy(np.full(SIZE, 0.5 * number, np.float32)),
        "normals.npy": npy(normals),
        "mask.png": png(np.where(np.arange(6) < 2, 200, 0).astype(np.uint8)[None].repeat(4, 0)),
        "boxes.npy": npy(np.array([[0, 0, 2, 2, 1]] * (number % 3), np.float32).reshape(-1, 5)),
        "cls": str(number % 7).encode(),
        "wheel.json": json.dumps([0.25 * number, -1]).encode(),
    }


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """A shard of named samples, each a table of members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, content in members.items():
                add(tar, f"{key}.{suffix}", content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shards(root: Path, shards: int = 3, each: int = 4, name: str = "train") -> Path:
    """Shards of `each` samples, numbered through: NAME-000.tar and so on."""
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        write_tar(root / f"{name}-{shard:03d}.tar", {f"{number:06d}": sample(number) for number in numbers})
    return root
