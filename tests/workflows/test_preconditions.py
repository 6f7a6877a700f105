"""What `plan`, `run`, `train` and `slim` refuse before anything is trained, with its place in the job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from testkit import toy_job
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.cli import main
from mtlc.compress.passes import registry
from mtlc.errors import UserError
from mtlc.evaluation.splits import Splits
from mtlc.job.job import load_job
from mtlc.workflows.opened_job import open_job
from mtlc.workflows.preconditions import check_preconditions, trainings


class RandomForward(toy_job.Toy):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {name: F.dropout(output, 0.3) for name, output in super().forward(image).items()}


class Auxiliary(toy_job.Toy):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(image)
        return {**outputs, "aux": outputs["depth"]} if self.training else outputs


class OnlyInEvaluation(toy_job.Toy):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(image)
        return {"semseg": outputs["semseg"]} if self.training else outputs


class Pooled(toy_job.Toy):
    """A batch norm on one value per channel and sample: no batch of one can train it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(self.stem(image))
        features = features + self.context(features)
        return {"depth": self.depth(features), "semseg": self.semseg(features)}


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 16:
            raise IndexError("no more than 16")
        return x


class FailsInTraining(toy_job.Toy):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.body.add_module("last", Fails())


NETWORKS = {
    "random": RandomForward, "auxiliary": Auxiliary, "evaluation": OnlyInEvaluation, "pooled": Pooled,
    "fails": FailsInTraining,
}  # fmt: skip


def network(kind: str) -> nn.Module:
    return NETWORKS[kind](8)


class Late(toy_job.Pictures):
    """One class too many in one sample."""

    def __init__(self, index: int) -> None:
        super().__init__(32, 0)
        self.bad, self.identity = index, f"late:{index}"

    def batch(self, indices) -> dict[str, Tensor]:
        batch = super().batch(indices)
        for row, index in enumerate(indices):
            if index == self.bad:
                batch["semseg"][row, 3, 4] = 3
        return batch


def late(index: int) -> Splits:
    return Splits(Late(index), toy_job.Pictures(8, 1), toy_job.Pictures(8, 2))


FINETUNE = '[[passes]]\nname = "finetune"\nepochs = 1\n'
PRUNE = '[budget]\nmacs = "60%"\n[[passes]]\nname = "prune"\nround_to = 1\n'


def job(folder: Path, kind: str = "", *sections: str, data: str = "testkit.toy_job:pictures") -> Path:
    text = toy_job.JOB.replace("testkit.toy_job:pictures", data)
    if kind:
        text = text.replace('"testkit.toy_job:net"', f'"{__name__}:network"\nargs = {{kind = "{kind}"}}')
    return toy_job.write(folder, text, *sections)


def refused(verb: str, path: Path, *words: str) -> None:
    """One line, exit code 2, and nothing but the job is there afterwards."""
    result = CliRunner().invoke(main, [verb, str(path), "--quiet"])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    for word in words:
        assert word in line
    assert sorted(path.parent.iterdir()) == [path]


def planned(path: Path) -> bool:
    return CliRunner().invoke(main, ["plan", str(path), "--quiet"]).exit_code == 0


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("kind", "section", "words"),
    [
        ("random", "", ["[model] in evaluation mode", "task 'depth'", "self.training"]),
        ("evaluation", FINETUNE, ["in training mode task 'depth': the model has no output 'depth'"]),
        (
            "pooled",
            FINETUNE + "batch_size = 1\n",
            ["'finetune': a training step on 1 samples, layer 'context.2': ", "raise batch_size"],
        ),
        ("fails", FINETUNE, ["on 32 samples, layer 'body.last': IndexError: no more than 16"]),
    ],
)
def test_a_network_that_cannot_be_compressed(tmp_path, verb, kind, section, words):
    refused(verb, job(tmp_path, kind, section), *words)


def test_no_gradient_reaches_the_weights(tmp_path):
    text = toy_job.JOB.replace("testkit.toy_job:net", "testkit.toy_job:untraceable")
    refused("plan", toy_job.write(tmp_path, text, FINETUNE), "'finetune': a training step", "no gradient reaches")


@pytest.mark.parametrize("kind", ["auxiliary", "pooled", "fails"])
def test_what_trains_nothing_asks_for_no_training(tmp_path, kind):
    assert planned(job(tmp_path, kind, '[[passes]]\nname = "calibrate"\nbatch_size = 8\n'))


def test_the_batch_size_is_the_real_one(tmp_path):
    assert not planned(job(tmp_path, "pooled", FINETUNE, "batch_size = 1\n"))
    assert planned(job(tmp_path, "pooled", FINETUNE, "batch_size = 2\n"))


def test_norms_that_are_frozen_in_training_take_a_batch_of_one(tmp_path):
    assert planned(job(tmp_path, "pooled", '[[passes]]\nname = "qat"\nbatch_size = 1\n'))


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_the_section_train_is_tried_too(tmp_path, verb):
    path = job(tmp_path, "evaluation", "[train]\nepochs = 1\n")
    path.write_text(path.read_text().replace("args =", 'weights = "w.safetensors"\nargs ='))
    refused(verb, path, "[train]: in training mode task 'depth': the model has no output 'depth'")


def test_an_output_of_training_mode_that_nobody_named_is_told(tmp_path):
    opened, lines = open_job(load_job(job(tmp_path, "auxiliary", FINETUNE))), list[str]()
    check_preconditions(opened, trainings(opened.job.steps), lines.append)
    (warning,) = (line for line in lines if line.startswith("warning"))
    assert "in training mode the network also returns 'aux', which no task names" in warning
    assert "training_only = true" in warning
    ignored = job(tmp_path / "ignored", "auxiliary", FINETUNE)
    ignored.write_text(ignored.read_text().replace("args =", 'ignore_outputs = ["aux"]\nargs ='))
    opened, lines = open_job(load_job(ignored)), []
    check_preconditions(opened, trainings(opened.job.steps), lines.append)
    assert not any(line.startswith("warning") for line in lines)


@pytest.mark.parametrize("verb", ["plan", "run", "slim"])
@pytest.mark.parametrize("index", [0, 31])
def test_a_late_bad_label(tmp_path, verb, index):
    section = '[[passes]]\nname = "slim"\nround_to = 1\n' if verb == "slim" else ""
    path = job(tmp_path, "", f"[data.args]\nindex = {index}\n", section, data=f"{__name__}:late")
    refused(verb, path, f"[data] train sample {index}: [tasks.semseg] loss = 'cross_entropy': expected classes 0 to 2")


def test_every_training_of_a_job(tmp_path):
    """Also those inside a pass's settings; after a pass that drops tasks, without what depends on their number."""
    path = job(
        tmp_path,
        "",
        FINETUNE + "tasks_per_sample = 1\n",
        '[[passes]]\nname = "extract"\ntasks = ["depth"]\nfinetune = {epochs = 1}\n',
        FINETUNE + "tasks_per_sample = 1\n",
        '[[passes]]\nname = "qat"\n',
        '[[passes]]\nname = "slim"\n',
        '[[passes]]\nname = "calibrate"\n',
    )
    found = trainings(load_job(path).steps)
    assert [(one.where.split("'")[1], one.config.tasks_per_sample, one.frozen_norms) for one in found] == [
        ("finetune", 1, False), ("extract", None, False), ("finetune", None, False), ("qat", None, True),
        ("slim", None, False),
    ]  # fmt: skip


def test_nothing_changes_and_good_labels_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = open_job(load_job(job(tmp_path / "job", "", FINETUNE, "batch_size = 4\n")))
    before = {name: value.clone() for name, value in opened.program.module.state_dict().items()}
    reads: list[int] = []
    batch = toy_job.Pictures.batch
    monkeypatch.setattr(toy_job.Pictures, "batch", lambda self, indices: reads.extend(indices) or batch(self, indices))
    state = torch.get_rng_state()
    check_preconditions(opened, trainings(opened.job.steps))
    assert len(reads) >= 32 + 8 + 8
    reads.clear()
    check_preconditions(opened, trainings(opened.job.steps))
    assert len(reads) < 20, "a few to try the network and the training, and not all labels"
    assert torch.equal(torch.get_rng_state(), state)
    assert not opened.program.module.training
    assert all(torch.equal(value, before[name]) for name, value in opened.program.module.state_dict().items())
    (kept,) = (tmp_path / "cache" / "mtlc" / "labels").iterdir()
    assert '"train": 32' in kept.read_text()


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines: list[str] = []
    check_preconditions(open_job(load_job(job(tmp_path / "job"))), [], lines.append)
    assert "the labels will be checked again the next time" in lines[-1]


def test_the_first_pass_is_asked_before_the_original_is_evaluated(tmp_path, monkeypatch):
    def no(self, program, context):
        raise UserError("not this network")

    monkeypatch.setattr(registry.pass_type("finetune"), "requires", no)
    monkeypatch.setattr("mtlc.workflows.run.evaluated", lambda *args: pytest.fail("evaluated"))
    refused("run", job(tmp_path, "", FINETUNE), "[[passes]] 1 (line 12) 'finetune': not this network")


def test_later_passes_are_asked_before_the_first_runs(tmp_path):
    """A budget that prune cannot meet, and a setting that fits no layer, would show after the fine-tuning."""
    path = job(tmp_path, "", FINETUNE, PRUNE.replace("60%", "0.5%"))
    refused("run", path, "[budget] macs = 1,055 is out of reach: the passes of the job can go to 10,240 at least")
    path = job(tmp_path, "", FINETUNE, PRUNE + 'ignore = ["decoder.*"]\n')
    refused("run", path, "'prune'", "'decoder.*' matches no layer")


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            [PRUNE.replace("60%", "0.5%")],
            "[budget] macs = 1,055 is out of reach: the passes of the job can go to 10,240",
        ),
        ([PRUNE.split("[[")[0], FINETUNE], "[budget] macs = 126,566 is out of reach: the job has no pass that could"),
        ([PRUNE.split("[[")[0]], "the job has no pass that could meet it, such as prune"),
        ([PRUNE], None),
        ([PRUNE.split("[[")[0].replace('"60%"', "210944")], None),  # met already
        ([], None),
    ],
)
def test_plan_says_by_its_exit_code_that_the_budget_is_out_of_reach(tmp_path, sections, words, as_json):
    path = job(tmp_path, "", *sections)
    result = CliRunner().invoke(main, ["plan", str(path), "--quiet", *(["--json"] if as_json else [])])
    assert result.exit_code == (0 if words is None else 3)
    assert (words or "") in result.stderr
    assert len(result.stderr.splitlines()) == (words is not None)
    assert json.loads(result.stdout)["cost"]["macs"] == 210944 if as_json else "network " in result.stdout
