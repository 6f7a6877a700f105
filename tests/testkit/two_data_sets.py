"""The toy job on two data sets with labels of one task each, trained together; the splits of `mixed` parts."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mtlc.evaluation.mixed import mixed
from mtlc.evaluation.splits import Splits
from testkit import toy_job
from testkit.toy_job import Pictures


class OneTask:
    """Pictures with labels of `task` alone, without a ``batch``, as most data sets are."""

    def __init__(self, count: int, seed: int, task: str) -> None:
        self.pictures, self.task = Pictures(count, seed), task
        self.identity = f"{type(self).__name__}:{task}:{count}:{seed}"

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.pictures[index]
        return {"image": sample["image"], self.task: sample[self.task]}


class Unlabelled(OneTask):
    """Pictures alone."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": super().__getitem__(index)["image"]}


def pictures(depth: int = 24, semseg: int = 16, validation: int = 12, few: int = 0, bare: int = 0) -> Splits:
    """Of `few` validation samples for depth, where that is not 0; `bare` training pictures have no label."""
    train = [OneTask(depth, 0, "depth"), OneTask(semseg, 1, "semseg")] + (
        [Unlabelled(bare, 2, "depth")] if bare else []
    )
    return Splits(
        mixed(*train),
        mixed(OneTask(8, 3, "depth"), OneTask(8, 4, "semseg")),
        mixed(OneTask(few or validation, 5, "depth"), OneTask(validation, 6, "semseg")),
        {"scale": 1 / 255, "mean": [0.0], "std": [1.0], "color": "RGB", "layout": "NCHW"},
    )


def without_train_labels() -> Splits:
    """The train split has no label of semseg."""
    splits = pictures()
    return Splits(mixed(OneTask(24, 0, "depth")), splits.calibration, splits.validation, splits.preprocessing)


def without_validation_labels() -> Splits:
    splits = pictures()
    return Splits(splits.train, splits.calibration, mixed(OneTask(8, 5, "depth")), splits.preprocessing)


JOB = toy_job.JOB.replace("testkit.toy_job:pictures", "testkit.two_data_sets:pictures")

TRAIN = """
[train]
epochs = 8
lr = 0.02
batch_size = 8
"""

PRUNE = """
[[passes]]
name = "prune"
round_to = 2
[passes.finetune]
epochs = 2
lr = 0.005
batch_size = 8
[budget]
macs = "70%"
[report]
devices = []
pictures = 2
"""


def write(folder: Path, text: str = JOB, *more: str) -> Path:
    return toy_job.write(folder, text, *more)
