"""The verbs from Python with live objects: the pipeline, the results and the errors of the command line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from testkit.tiny_networks import moe, moe_program, same_state, taught_splits
from testkit.toy_job import Pictures, Toy, write
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mtlc
from mtlc.errors import UserError

TRAIN, CALIBRATION, VALIDATION = Pictures(32, 0), Pictures(8, 1), Pictures(8, 2)
TASKS = {"depth": mtlc.Task("l1", "rmse", max_drop="90%"), "semseg": mtlc.Task("cross_entropy", "miou")}
QUICK = {"round_to": 4, "finetune": {"epochs": 1, "lr": 1e-3, "batch_size": 8}, "sensitivity": ()}
NO_TIMES = {"devices": [], "pictures": 1}
JOB = """\
schema = 1
[model]
factory = "testkit.toy_job:net"
args = { width = 16 }
[tasks.depth]
loss = "l1"
metric = "rmse"
max_drop = "90%"
[tasks.semseg]
loss = "cross_entropy"
metric = "miou"
[data]
factory = "test_python_verbs_data:splits"
[budget]
macs = "60%"
[[passes]]
name = "prune"
round_to = 4
sensitivity = []
finetune = { epochs = 1, lr = 1e-3, batch_size = 8 }
[report]
devices = []
pictures = 1
"""


def toy() -> nn.Module:
    torch.manual_seed(0)
    return Toy(16)


def compress(out: Path, model: nn.Module | None = None, **changed):
    arguments = {
        "tasks": TASKS, "train": TRAIN, "validation": VALIDATION, "calibration": CALIBRATION, "budget": "60% MACs",
        "passes": [mtlc.Prune(**QUICK)], "report": NO_TIMES, "log": mtlc.silent, **changed,
    }  # fmt: skip
    return mtlc.compress(toy() if model is None else model, out=out, **arguments)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    return compress(tmp_path_factory.mktemp("python") / "out")


def test_it_is_what_the_command_line_makes(compressed, tmp_path, monkeypatch):
    """Bit for bit: the weights, and every number of the results."""
    (tmp_path / "test_python_verbs_data.py").write_text(
        "from testkit.toy_job import Pictures\ndef splits(): return Pictures(32, 0), Pictures(8, 1), Pictures(8, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    told = mtlc.run_job(mtlc.load_job(write(tmp_path, JOB)), tmp_path / "out")
    mine = compressed.results
    assert mine.tasks == told.tasks
    assert mine.cost.after.macs == told.cost.after.macs < 0.6 * mine.cost.before.macs
    assert (mine.delta_m, mine.missed) == (told.delta_m, told.missed)
    theirs = mtlc.load(tmp_path / "out", toy())
    assert same_state(compressed.model, theirs.module)


def test_the_result_has_the_network_the_numbers_and_the_bundle(compressed):
    assert compressed.model.stem[0].weight.shape[0] < 16
    assert set(compressed.metrics) == {"depth", "semseg"}
    assert compressed.original_metrics["depth"] != compressed.metrics["depth"]
    assert compressed.delta_m == compressed.results.delta_m.vs_original
    assert compressed.missed == []
    image = VALIDATION.batch([3])["image"]
    with compressed.session() as session, torch.no_grad():
        assert np.allclose(
            session.run(image.numpy())["depth"], compressed.model(image)["depth"].numpy(), atol=1e-5
        )  # fmt: skip
    assert compressed.report().read_text().startswith("<!")
    text = str(compressed)
    assert "% of the MACs" in text
    assert ", limit kept" in text
    assert " ," not in text  # a metric without a unit
    page = compressed._repr_html_()
    assert page.count("<tr>") == 3 + 4  # a row a task, and a sample's pictures
    assert "<iframe srcdoc=" in page
    assert "data:image/png" in page


def test_a_finished_call_is_not_done_again_unless_the_network_is_another(compressed):
    told: list[str] = []
    again = compress(compressed.out, log=told.append)
    assert any(line.startswith("prune: done before") for line in told)
    assert same_state(again.model, compressed.model)
    other = toy()
    with torch.no_grad():
        other.body[0].weight.mul_(1.5)
    told.clear()
    compress(compressed.out, model=other, log=told.append)
    assert not any("done before" in line for line in told)


def test_the_network_that_was_given_stays_as_it_is(tmp_path):
    model = toy().train()
    generator, drawn = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():
        compress(tmp_path / "out", model=model, passes=[mtlc.Finetune(epochs=1, lr=1e-3)], budget=None)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), generator)
    assert (np.random.get_state()[1] == drawn).all()
    assert same_state(model, toy())
    assert model.training
    assert not model._forward_hooks


def test_a_budget_that_is_missed_is_said(tmp_path):
    told: list[str] = []
    found = compress(tmp_path / "out", passes=[], budget={"params": "70%"}, log=told.append)
    assert found.missed == ["[budget] params = 2,008 missed, 2,868 reached; the job has no [[passes]] to meet it"]
    assert told[-1] == f"missed: {found.missed[0]}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device may be there")
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"device = 'cuda:7' is not there: this machine has no cuda device"):
        compress(tmp_path / "out", device="cuda:7")
    assert not (tmp_path / "out").exists()


@dataclass
class Classes:
    scores: Tensor
    names: tuple[str, ...] = ("red", "green", "blue")


class Found(NamedTuple):
    depth: Tensor
    semseg: Classes


class OwnTypes(Toy):
    def forward(self, image: Tensor) -> Found:
        features = self.body(self.stem(image))
        return Found(self.depth(features), Classes(self.semseg(features)))


def test_outputs_of_types_of_ones_own(compressed, tmp_path):
    """A named tuple that holds a dataclass: every number is that of the dict, and the network still returns its own."""
    torch.manual_seed(0)
    tasks = {**TASKS, "semseg": mtlc.Task("cross_entropy", "miou", output="semseg.scores")}
    found = compress(tmp_path / "out", model=OwnTypes(16), tasks=tasks)
    assert found.metrics == compressed.metrics
    assert same_state(found.model, compressed.model)
    assert found.model(VALIDATION.images).semseg.scores.shape == (8, 3, 16, 16)
    assert found.bundle.is_dir()


def test_live_losses_and_metrics_with_closures_and_workers(tmp_path):
    scale = 1000.0

    def millimetres(output: Tensor, target: Tensor) -> Tensor:
        return scale * (output - target).abs().mean()

    tasks = {
        "depth": mtlc.Task(millimetres, millimetres, max_drop="95%", higher_is_better=False, unit="mm"),
        "semseg": mtlc.Task(nn.CrossEntropyLoss(label_smoothing=0.1), "miou"),
    }
    batch = TRAIN.batch(range(32))
    pairs = TensorDataset(batch["image"], batch["depth"], batch["semseg"])
    found = compress(
        tmp_path / "out", tasks=tasks, train=DataLoader(pairs, 8, shuffle=True, num_workers=1), calibration=None
    )
    task = found.results.tasks["depth"]
    assert (task.unit, task.higher_is_better, task.kind) == ("mm", False, "unknown")
    images = VALIDATION.batch(range(8))
    with torch.no_grad():
        outputs = toy().eval()(images["image"])["depth"]
    assert task.before == pytest.approx(1000 * float((outputs - images["depth"]).abs().mean()), rel=1e-5)
    assert task.metric.startswith("live:ForeignMetric-")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda y: y[0], r"\[data\] train sample 17: \[tasks.depth\] loss = 'l1': .*\(1, 16, 16\)"),
        (lambda y: y.repeat(2, 1, 1), r"\[data\] train sample 17: \[tasks.depth\]"),
    ],
)
def test_a_label_that_does_not_fit_names_task_and_sample_before_anything_is_trained(tmp_path, label, message):
    samples = [TRAIN[index] for index in range(32)]
    samples[17]["depth"] = label(samples[17]["depth"])
    with pytest.raises(UserError, match=message):
        compress(tmp_path / "out", train=samples, calibration=None)
    assert not (tmp_path / "out").exists()


def test_a_class_out_of_range_in_what_became_the_calibration_split(tmp_path):
    samples = [TRAIN[index] for index in range(32)]
    samples[20]["semseg"][0, 0] = 3
    with pytest.raises(UserError, match=r"\[data\] train sample 20: \[tasks.semseg\] loss = 'cross_entropy': .*3"):
        compress(tmp_path / "out", train=samples, calibration=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"out": 3}, "out is a int: give a path"),
        ({"log": 3}, "log = 3: give a function that takes a line, such as print or mtlc.silent"),
        ({"model": Toy}, r"model is the class Toy: give an nn.Module, an object of it: Toy\(\)"),
        ({"model": nn.Linear(3, 3)}, r"\[model\] the network cannot run on the data"),
        ({"tasks": {"deph": mtlc.Task("l1", "rmse", target="depth")}}, "deph"),
        ({"tasks": {**TASKS, "depth": mtlc.Task(lambda o, t: 1 / 0, "rmse")}}, "depth.*ZeroDivisionError"),
        ({"passes": [mtlc.Prune(round_to=64)]}, r"passes\[0\] Prune: no layer of the network can lose channels"),
        ({"budget": None}, r"passes\[0\] Prune: prune needs a \[budget\]"),
        ({"export": {"tolerance": 2.0}}, r"mtlc.compress: \[export\] tolerance"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, changed, message):
    with pytest.raises(UserError, match=message) as caught:
        compress(tmp_path / "out", **changed) if "out" not in changed else compress(**changed)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_plan_says_what_compress_would_do():
    passes = [mtlc.Prune(round_to=4)]
    found = mtlc.plan(toy(), TASKS, TRAIN, VALIDATION, budget="60% MACs", passes=passes, log=mtlc.silent)
    assert (found.data.train, found.data.calibration, found.data.validation) == (28, 4, 8)
    assert found.budget.reachable
    assert found.budget.target == pytest.approx(0.6 * found.cost.macs)
    assert {group.name for group in found.units.prunable} == {"stem.0", "body.0"}


def test_passes_by_hand(tmp_path):
    data = mtlc.Splits(TRAIN, CALIBRATION, VALIDATION)
    start = mtlc.from_model(toy(), TASKS, TRAIN, log=mtlc.silent)
    told: list[str] = []
    cut = mtlc.prune(start, data, budget="60% MACs", out=tmp_path / "out", log=told.append, **QUICK)
    assert cut.module.stem[0].weight.shape[0] < 16 == start.module.stem[0].weight.shape[0]
    again = mtlc.prune(start, data, budget="60% MACs", out=tmp_path / "out", log=told.append, **QUICK)
    assert any("done before" in line for line in told)
    assert same_state(again.module, cut.module)
    tuned = mtlc.finetune(cut, data, epochs=1, lr=1e-3, log=mtlc.silent)
    assert [entry.name for entry in tuned.history] == ["prune", "finetune"]
    assert not same_state(tuned.module, cut.module)
    calm = mtlc.calibrate(tuned, (TRAIN, VALIDATION), log=mtlc.silent)
    tuned.save(tmp_path / "saved")
    assert same_state(mtlc.load(tmp_path / "saved", toy()).module, tuned.module)
    assert torch.equal(calm.module.stem[0].weight, tuned.module.stem[0].weight)
    assert not torch.equal(calm.module.stem[1].running_mean, tuned.module.stem[1].running_mean)
    with pytest.raises(UserError, match=r"program is a Toy: give that of mtlc.from_model\(model, tasks, data\)"):
        mtlc.finetune(toy(), data)
    with pytest.raises(UserError, match=r"data is a Pictures: give all splits, such as \(train, validation\)"):
        mtlc.finetune(tuned, TRAIN)
    with pytest.raises(UserError, match="Finetune: epoch: unknown key; did you mean 'epochs'"):
        mtlc.finetune(tuned, data, epoch=1)


def test_by_hand_is_what_compress_does(compressed):
    start = mtlc.from_model(toy(), TASKS, TRAIN, log=mtlc.silent)
    cut = mtlc.prune(start, (TRAIN, CALIBRATION, VALIDATION), budget="60% MACs", log=mtlc.silent, **QUICK)
    assert same_state(cut.module, compressed.model)


def test_threads_wait_for_each_other(compressed, tmp_path):
    """Torch's exporter is for one thread. The networks are there before: making one draws, outside of any call."""
    networks = [toy(), toy()]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda number: compress(tmp_path / f"{number}", networks[number]), range(2)))
    assert all(same_state(one.model, compressed.model) for one in made)


def test_extract_by_hand():
    teacher = moe_program()
    data = taught_splits(teacher, 8, 6, 4)
    tasks = {task.name: task for task in teacher.tasks}
    start = mtlc.from_model(moe(), tasks, data, log=mtlc.silent)
    found = mtlc.extract(start, data, tasks=["depth"], log=mtlc.silent)
    assert found.task_names == ("depth",)
    assert found.parameters_count() < start.parameters_count()


def test_export_a_program_or_a_module(tmp_path):
    made = mtlc.export(
        toy(), tmp_path / "one", TRAIN, tasks={"depth": TASKS["depth"], "semseg": TASKS["semseg"]}, log=mtlc.silent
    )
    assert set(made["verification"]) >= {"depth", "semseg"}
    program = mtlc.from_model(toy(), TASKS, TRAIN, log=mtlc.silent)
    other = mtlc.export(program, tmp_path / "two.mtlc", torch.rand(3, 3, 16, 16), archive=True)
    assert Path(other["path"]).is_file()
    with pytest.raises(UserError, match=r"tasks is missing: an nn.Module is exported with them"):
        mtlc.export(toy(), tmp_path / "three", TRAIN)
    with pytest.raises(UserError, match=r"mtlc.export: fues: unknown key; did you mean 'fuse'"):
        mtlc.export(program, tmp_path / "three", TRAIN, fues=True)
    with pytest.raises(UserError, match=r"cannot run on the data \(image \(8, 4, 16, 16\)\)"):
        mtlc.export(program, tmp_path / "three", torch.rand(2, 4, 16, 16))
    assert not (tmp_path / "three").exists()
    with pytest.raises(UserError, match="tasks is a list: give a dict"):
        mtlc.from_model(toy(), ["depth"], TRAIN)


def test_bench_and_profile_take_results_and_paths(compressed):
    rows = mtlc.bench([compressed, str(compressed.original_bundle)], rounds=3).rows
    assert [Path(row.bundle).name for row in rows] == ["bundle", "reference-bundle"]
    assert mtlc.profile(compressed, compressed.original_bundle, rounds=3).bundle == str(compressed.bundle)
    with pytest.raises(UserError, match="bundle is a int: give a path"):
        mtlc.bench(3)


def test_quantize_counts_limits_from_the_original(compressed, tmp_path):
    found = mtlc.quantize(compressed, out=tmp_path / "int8", target="x86", samples=8, log=mtlc.silent)
    assert found.against == str(compressed.original_bundle)
    assert set(found.tasks) == {"depth", "semseg"}
    assert (tmp_path / "int8" / "manifest.json").is_file()
    other = mtlc.quantize(
        compressed.bundle, TASKS, TRAIN, VALIDATION, CALIBRATION, out=tmp_path / "again", target="x86", samples=8,
        log=mtlc.silent,
    )  # fmt: skip
    assert other.against is None
    with pytest.raises(UserError, match=r"tasks is missing: mtlc.quantize needs tasks and data"):
        mtlc.quantize(compressed.bundle, out=tmp_path / "third")


def test_slim_and_search(tmp_path):
    train = {"epochs": 1, "lr": 1e-3, "batch_size": 8}
    found = mtlc.slim(
        toy(), TASKS, TRAIN, VALIDATION, CALIBRATION, out=tmp_path / "out", budgets=["70%"], recalibrate=8,
        prefer={"depth": 2, "semseg": 1}, passes=[mtlc.Slim(train=train)], report=NO_TIMES, log=mtlc.silent,
    )  # fmt: skip
    with found.session() as session:
        session.configure("70%")
        assert session.run(np.zeros((1, 3, 16, 16), np.float32))["depth"].shape == (1, 1, 16, 16)
    measured = mtlc.search(found, "70% MACs", {"depth": 1.0}, log=mtlc.silent)
    asked = mtlc.search(found.bundle, "70%", log=mtlc.silent)
    assert measured.of == "checkpoint"
    assert asked.of == "bundle"
    assert max(measured.share, asked.share) <= 0.7
    again = mtlc.search(
        tmp_path / "out", "70%", {"depth": 1.0}, model=toy(), tasks=TASKS, train=TRAIN, validation=VALIDATION,
        calibration=CALIBRATION, log=mtlc.silent,
    )  # fmt: skip
    assert (again.encoder, again.decoders) == (measured.encoder, measured.decoders)
    assert "<iframe" in found._repr_html_()
    with pytest.raises(UserError, match=r'budget = 0.4: give "40%" \(of the widest\)'):
        mtlc.search(found, 0.4)
    with pytest.raises(UserError, match="is a checkpoint: name the job whose data"):
        mtlc.search(tmp_path / "out", "70%")
