"""The key of a step: an edit of anything that its numbers follow from makes another key, and nothing else does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from testkit.places import environment

import mtlc
from mtlc.compress.pipeline.own_code import counts

BLOCKS = """
def act(x): return x.relu()
def loss(o, t): return (o - t).abs().mean()
def label(n, t): return t
"""
LAZY = "def scale(): return 1.0\n"
METRICS = """
from mtlc.tasks.metrics import Metric
class Error(Metric):
    higher_is_better, unit, kind = False, "m", "scalar"
    def __init__(self): self.sum, self.count = 0.0, 0
    def update(self, output, target):
        self.sum += (output - target).abs().sum().item()
        self.count += target.numel()
    def compute(self): return self.sum / self.count
"""
NET = """
import torch, blocks
from torch import nn
from mtlc.evaluation.splits import Splits
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 1, 1)
    def forward(self, x):
        import lazy
        return {"depth": self.b(blocks.act(self.a(x))) * lazy.scale()}
def make(): return Net()
def splits():
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    d = [{"image": i, "depth": blocks.label(n, i[:1].abs() + 1)} for n, i in enumerate(x)]
    return Splits(d, d, d)
"""
JOB = """
schema = 1
[model]
factory = "net:make"
[tasks.depth]
loss = "blocks:loss"
metric = "metrics:Error"
[data]
factory = "net:splits"
"""
KEYS = """
import json, sys
from pathlib import Path
if sys.argv[2] == "noise": import mtlc.workflows.run, colorsys
from mtlc.job.job import load_job
from mtlc.workflows.opened_job import open_job
from mtlc.compress.pipeline.identity import program_hash, evaluation_hash
opened = open_job(load_job(Path(sys.argv[1])))
print(json.dumps([program_hash(opened.program), evaluation_hash(opened.job.tasks, opened.splits)]))
"""


def keys(folder: Path, noise: str = "") -> list[str]:
    """The hashes of the network and of how it is evaluated, from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", KEYS, str(folder / "job.toml"), noise],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("job")
    for name, text in (("blocks", BLOCKS), ("net", NET), ("metrics", METRICS), ("lazy", LAZY)):
        (folder / f"{name}.py").write_text(text)
    (folder / "job.toml").write_text(JOB)
    return folder, keys(folder)


def test_a_fresh_process_with_other_modules_loaded_has_the_same_key(job):
    folder, before = job
    (folder / "unrelated.py").write_text("# nobody imports this\n")
    assert keys(folder, "noise") == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("blocks", "x.relu()", "x.tanh()"),
        ("blocks", "abs().mean()", "square().mean()"),
        ("blocks", "return t\n", "return t * 3 if n == 4 else t\n"),
        ("metrics", "self.sum / self.count", "2 * self.sum / self.count"),
        ("lazy", "1.0", "2.0"),
    ],
)
def test_an_edit_of_the_owners_code_makes_another_key(job, file, old, new):
    folder, before = job
    path = folder / f"{file}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        after = keys(folder)
    finally:
        path.write_text(text)
    assert after[1] != before[1] or after[0] != before[0]


def test_no_module_that_the_passes_import_is_left_out():
    graph = grimp.build_graph("mtlc", cache_dir=None)
    passes = {module for module in graph.modules if module.startswith("mtlc.compress")}
    reached = passes.union(*(graph.find_upstream_modules(module) for module in passes))
    root = Path(mtlc.__file__).parent
    for module in reached:
        path = root.joinpath(*module.split(".")[1:])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert counts(file.relative_to(root)), module
    assert not counts(Path("cli.py"))
    assert not counts(Path("report/run_report.py"))
