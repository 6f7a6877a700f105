"""The page of the Python interface and the README's example: what they show runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from testkit.places import DOCS, ROOT
from testkit.toy_job import Pictures, Toy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler
from transformers.utils import ModelOutput

import mtlc

PAGE = (DOCS / "python.md").read_text()
TASKS = {"semseg": mtlc.Task("cross_entropy", "miou", max_drop="1%"), "depth": mtlc.Task("l1", "rmse", max_drop=0.02)}
SAMPLES = Pictures(20, 0)
WHOLE = SAMPLES.batch(range(20))


def rows() -> list[tuple[str, str]]:
    """The table of what one has and what one writes."""
    table = PAGE.split("## What I have, what I write")[1].split("\n## ")[0]
    return re.findall(r"^\| ([^|`]*(?:`[^`]*`[^|`]*)*) \| `(mtlc[^|]*)` \|$", table, re.MULTILINE)


class InATuple(Toy):
    def forward(self, image: Tensor):
        found = super().forward(image)
        return found["semseg"], found["depth"]


class WithExtras(Toy):
    def forward(self, image: Tensor):
        found = super().forward(image)
        return {**found, "extras": {"edges": found["depth"] * 2, "more": found["depth"] * 3}}


@dataclass
class Answer(ModelOutput):
    logits: Tensor | None = None


@dataclass
class Dense:
    semseg: Tensor


class Both(NamedTuple):
    depth: Tensor
    dense: Dense


class OwnTypes(Toy):
    def forward(self, image: Tensor) -> Both:
        found = super().forward(image)
        return Both(found["depth"], Dense(found["semseg"]))


class Hub(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 1)

    def forward(self, pixel_values: Tensor) -> Answer:
        return Answer(logits=self.head(self.body(pixel_values).mean((2, 3))))


class Stereo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(6, 16, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.body(torch.cat([left, right], 1)).relu())


class Stream(IterableDataset):
    def __iter__(self):
        return (SAMPLES[index] for index in range(20))


class MyMetric:
    higher_is_better = False

    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.values += (preds - target).abs().flatten(1).mean(1).tolist()

    def compute(self) -> Tensor:
        return torch.tensor(self.values).mean()


def my_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.smooth_l1_loss(output, target)


class AsDicts(list):
    """Samples as any map-style data set has them."""


def stack(samples):
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def open_splits():
    return Pictures(20, 0), Pictures(6, 1), Pictures(6, 2)


def plain() -> AsDicts:
    return AsDicts(SAMPLES[index] for index in range(20))


def scope(verbs: Any) -> dict[str, Any]:
    """What the page takes for granted, by name."""
    torch.manual_seed(0)
    features = torch.rand(20, 8)
    pairs = [(one["image"], (one["semseg"], one["depth"])) for one in plain()]
    stereo = [{"left": one["image"], "right": one["image"], "depth": one["depth"]} for one in plain()]
    hub = [{"pixel_values": one["image"], "labels": one["depth"].mean((1, 2))} for one in plain()]
    return {
        "mtlc": verbs, "torch": torch, "tasks": TASKS,
        "model": Toy(16), "tuple_model": InATuple(16), "with_extras": WithExtras(16), "hub_model": Hub(),
        "own_types": OwnTypes(16),
        "stereo": Stereo(), "regressor": nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)),
        "train_loader": DataLoader(plain(), batch_size=4, shuffle=True), "val_loader": DataLoader(plain()),
        "pairs": pairs, "val_pairs": pairs,
        "tensors": TensorDataset(features, features[:, :1]), "val_tensors": TensorDataset(features, features[:, :1]),
        "pictures": (WHOLE["image"] * 255).byte().permute(0, 2, 3, 1).numpy(), "x": WHOLE["image"].double().numpy(),
        "depth": WHOLE["depth"].double().numpy(), "classes": WHOLE["semseg"].numpy(),
        "stream": Stream(), "hub_data": hub, "stereo_data": stereo, "my_loss": my_loss, "MyMetric": MyMetric,
        "open_splits": open_splits,
        "own_loader": DataLoader(
            plain(), sampler=WeightedRandomSampler([1.0] * 20, 30), collate_fn=stack, num_workers=1
        ),
        "my_training_loop": lambda module: module.train(),
    }  # fmt: skip


def planned(*arguments: Any, out: str, **options: Any):
    """`mtlc.plan` in the place of `mtlc.compress`: all that it tries first, and nothing of what takes long."""
    return mtlc.plan(*arguments, log=mtlc.silent, **options)


def test_there_are_ten_kinds_and_more():
    assert len(rows()) >= 10
    assert len(rows()) == PAGE.split("## What I have")[1].split("\n## ")[0].count("\n| ") - 1


@pytest.mark.parametrize(("have", "write"), [pytest.param(*row, id=row[0]) for row in rows()])
def test_what_the_page_says_to_write_is_accepted(have, write):
    names = scope(SimpleNamespace(compress=planned, Task=mtlc.Task, Splits=mtlc.Splits))
    plan = eval(write, names)
    assert plan.budget.reachable
    assert plan.budget.target == pytest.approx(0.6 * plan.cost.macs)
    samples = {"three splits, opened by a function": (20, 6), "a `collate_fn`, a sampler and workers": (27, 3)}
    assert (plan.data.train, plan.data.calibration) == samples.get(have, (18, 2))
    assert all(task.original is not None for task in plan.tasks)


def example(page: str, word: str) -> str:
    """The one block of Python that has `word` in it."""
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if word in block]
    return found


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names = scope(mtlc)
    exec(compile(code, "example", "exec"), names)
    return names


def test_the_readmes_ten_lines_run(tmp_path, monkeypatch):
    names = run(example((ROOT / "README.md").read_text(), "mtlc.compress("), tmp_path, monkeypatch)
    result = names["result"]
    assert Path("runs/mine/bundle/manifest.json").is_file()
    assert result.report().is_file()
    assert set(result.metrics) == {"semseg", "depth"}
    assert result.results.cost.after.macs < result.results.cost.before.macs


def test_passes_by_hand_run(tmp_path, monkeypatch):
    names = run(example(PAGE, "mtlc.from_model("), tmp_path, monkeypatch)
    assert [entry.name for entry in names["program"].history] == ["prune", "calibrate"]
    assert Path("runs/mine/bundle/manifest.json").is_file()
    assert mtlc.load("runs/mine/program", Toy(16)).task_names == ("semseg", "depth")


def test_the_pages_first_example_is_the_readmes():
    assert example(PAGE, "mtlc.compress(") == example((ROOT / "README.md").read_text(), "mtlc.compress(")


def test_the_reference_is_that_of_the_docstrings():
    script = ROOT / "scripts" / "write_python_page.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
