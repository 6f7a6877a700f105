"""However many samples there are, only a few batches of them are alive at once, whatever is done with them.

`benchmarks/scale/streamed_memory.py` measures the same in megabytes, on thousands of pictures.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from testkit.dense_samples import write_pascal
from torch import Tensor, nn

from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.evaluation.constant_predictor import constant_metrics
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.label_check import LabelCheck
from mtlc.evaluation.splits import Splits, fetch
from mtlc.export.quantization import calibration
from mtlc.export.quantization.calibration import CheckedBatches
from mtlc.program.program import ModelSource, Program
from mtlc.runtime.bundle.manifest import Manifest, TensorInfo
from mtlc.tasks.task import TaskSpec
from mtlc.zoo import pascal_context

SIDE, COUNT = 8, 400
FEW = 60
"""Samples that may be alive at once: some batches of 8, or of the 32 that labels are checked in."""
TASKS = (
    TaskSpec("semseg", "cross_entropy", "miou"),
    TaskSpec("depth", "l1", "rmse"),
    TaskSpec("normals", "normals_l1", "mean_angle"),
    TaskSpec("edge", "edge_bce", "odsf"),
    TaskSpec("sal", "balanced_bce", "max_jaccard"),
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        channels = {"semseg": 3, "depth": 1, "normals": 3, "edge": 1, "sal": 1}
        self.heads = nn.ModuleDict({name: nn.Conv2d(4, count, 1) for name, count in channels.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.body(image)
        return {name: head(found) for name, head in self.heads.items()}


class Streamed:
    """Samples that are made when they are asked for; `most` is how many were alive at once."""

    def __init__(self, count: int = COUNT) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        places = torch.as_tensor(list(indices)).view(-1, 1, 1, 1)
        pixels = ((places * 7919 + torch.arange(SIDE * SIDE).view(1, 1, SIDE, SIDE)) % 13).float() / 13
        found = {
            "image": pixels.expand(-1, 3, -1, -1).clone(),
            "semseg": (pixels[:, 0] * 3).long(),
            "depth": 1 + pixels,
            "normals": torch.cat([torch.ones_like(pixels), 0 * pixels, 0 * pixels], 1),
            "edge": (pixels > 0.8).float(),
            "sal": (pixels > 0.5).float(),
        }
        for value in found.values():  # a slice that is kept keeps the whole
            self.alive += len(indices)
            self.most = max(self.most, self.alive)
            weakref.finalize(value.untyped_storage(), self._gone, len(indices))
        return found

    def _gone(self, count: int) -> None:
        self.alive -= count


def program() -> Program:
    return Program(Net().eval(), TASKS, {"image": torch.zeros(2, 3, SIDE, SIDE)}, ModelSource("none:none"))


def checked(splits: Splits) -> None:
    LabelCheck(program(), Criteria(TASKS), splits).rest()


def evaluated(splits: Splits) -> None:
    found = evaluate(program(), Criteria(TASKS), splits.validation, 8, keep=True)
    assert found.labelled["depth"] == COUNT


def guessed(splits: Splits) -> None:
    found = constant_metrics(Criteria(TASKS), splits.calibration, splits.validation, 8, {"semseg": 3})
    assert all(value is not None for value in found.values())


def identified(splits: Splits) -> None:
    assert len(splits.identify()) == 64


def normed(splits: Splits) -> None:
    recalibrate_batchnorm(program(), splits, COUNT, 8)


def taught(splits: Splits) -> None:
    """With a teacher that would be asked once of every sample, if what it says had room."""
    config = TrainConfig(epochs=2, batch_size=8, distill=0.5, augment=False)
    train(program(), splits, Criteria(TASKS), config, teacher=program())


def quantised(splits: Splits) -> None:
    info = TensorInfo("image", ("batch", 3, SIDE, SIDE), "float32")
    batches = CheckedBatches(Manifest({}, (info,), (), {}), splits.validation, 8, COUNT, "data")
    for _ in range(2):
        assert sum(len(inputs["image"]) for _, inputs in batches) == COUNT == batches.samples


PHASES = (checked, evaluated, guessed, identified, normed, taught, quantised)


@pytest.mark.parametrize("phase", PHASES)
def test_a_few_samples_are_alive_at_once(phase: Callable[[Splits], None], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mtlc.compress.training.lessons._MEGABYTES", 0)
    monkeypatch.setattr(calibration, "KEPT_BYTES", 20_000)
    data = [Streamed() for _ in range(3)]
    phase(Splits(*data))
    gc.collect()
    assert max(one.most for one in data) > 0
    # Six tensors a sample.
    assert max(one.most for one in data) <= 6 * FEW
    assert sum(one.alive for one in data) == 0


def test_that_a_list_of_batches_would_be_seen():
    data = Streamed()
    kept = [fetch(data, range(start, start + 8)) for start in range(0, COUNT, 8)]
    assert data.alive == 6 * COUNT > 6 * FEW
    kept.clear()
    gc.collect()
    assert data.alive == 0


def test_batches_that_fit_are_read_once(monkeypatch: pytest.MonkeyPatch):
    info = TensorInfo("image", ("batch", 3, SIDE, SIDE), "float32")
    data = Streamed(20)
    batches = CheckedBatches(Manifest({}, (info,), (), {}), data, 8, 30, "data")
    assert (len(batches), batches.samples) == (3, 20)
    monkeypatch.setattr(Streamed, "batch", lambda self, indices: pytest.fail("read again"))
    assert [len(inputs["image"]) for _, inputs in batches] == [8, 8, 4]
    assert len(batches[-1][1]["image"]) == 4
    assert len(batches[:1]) == 1
    with pytest.raises(IndexError):
        batches[3]


def test_reading_files_keeps_nothing(tmp_path: Path):
    """Arrays of numpy, and what Python keeps: as much after 80 pictures as after 20, to a few interned objects."""
    names = tuple(f"2008_{number:06d}" for number in range(22))
    data = pascal_context(write_pascal(tmp_path / "p", names), size=[64, 64]).train
    sample = 64 * 64 * (3 + 1 + 1 + 12 + 1 + 1)
    held = []

    def once() -> None:
        for start in range(0, len(data), 8):
            data.batch(range(start, min(start + 8, len(data))))

    tracemalloc.start()
    try:
        for _ in range(4):
            tracemalloc.reset_peak()
            once()
            gc.collect()
            held.append(tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert held[3][0] - held[1][0] < sample  # 40 were read in between
    assert max(peak - kept for kept, peak in held) < 4 * 8 * sample
