"""Outputs that exist in training mode only: they are trained with, and are in no checkpoint's tasks and no bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from testkit import toy_job
from torch import Tensor, nn

from mtlc.cli import main
from mtlc.compress.pipeline.identity import evaluation_hash
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import Trainer, train
from mtlc.errors import UserError
from mtlc.job.job import load_job
from mtlc.program.program import Program, read_description
from mtlc.runtime import Session
from mtlc.workflows.opened_job import open_job
from mtlc.workflows.plan import plan_job
from mtlc.workflows.run import run_job


class Auxiliary(toy_job.Toy):
    """A second depth head on the stem, as segmentation networks have one, in training mode."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.early = nn.Conv2d(width, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        stem = self.stem(image)
        features = self.body(stem)
        outputs = {"depth": self.depth(features), "semseg": self.semseg(features)}
        return {**outputs, "aux": self.early(stem)} if self.training else outputs


class Renamed(toy_job.Toy):
    """As BiSeNet: (main, auxiliary) in training mode, the lone main output in evaluation."""

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        depth = self.depth(self.body(self.stem(image)))
        return (depth, 2 * depth) if self.training else depth


def auxiliary() -> nn.Module:
    return Auxiliary(8)


def renamed() -> nn.Module:
    return Renamed(8)


AUX = '[tasks.aux]\nloss = "l1"\noutput = "aux"\ntarget = "depth"\nweight = 0.5\ntraining_only = true\n'
REST = "[report]\ndevices = []\npictures = 0\n"


def job(folder: Path, *sections: str) -> Path:
    text = toy_job.JOB.replace("testkit.toy_job:net", f"{__name__}:auxiliary")
    return toy_job.write(folder, text, AUX, *sections)


def test_it_is_trained_with_at_its_weight(tmp_path: Path) -> None:
    opened = open_job(load_job(job(tmp_path)))
    (aux,) = opened.program.auxiliary
    assert (aux.name, aux.output_key, aux.target_key, aux.weight) == ("aux", "aux", "depth", 0.5)
    assert opened.program.task_names == ("depth", "semseg")
    config = TrainConfig(epochs=1, batch_size=8, augment=False)

    def first(program: Program) -> tuple[dict[str, float], Tensor]:
        trainer = Trainer(program.clone(), opened.splits, opened.criteria, config, 0, None, None)
        losses = trainer.first_step()
        return losses, trainer.module.early.weight.grad

    losses, gradient = first(opened.program)
    twice, doubled = first(replace(opened.program, auxiliary=(replace(aux, weight=1.0),)))
    assert list(losses) == ["depth", "semseg", "aux"]
    assert losses == twice
    assert torch.allclose(doubled, 2 * gradient, rtol=1e-4)
    without, none = first(replace(opened.program, auxiliary=()))
    assert list(without) == ["depth", "semseg"]
    assert none is None
    assert {name: losses[name] for name in without} == without


def test_its_head_learns(tmp_path: Path) -> None:
    opened = open_job(load_job(job(tmp_path)))
    before = opened.program.module.early.weight.detach().clone()
    found = train(opened.program, opened.splits, opened.criteria, TrainConfig(epochs=1, batch_size=8, ema=0))
    assert list(found["losses"]) == ["depth", "semseg", "aux"]
    assert float((opened.program.module.early.weight.detach() - before).abs().max()) > 1e-4


def test_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    opened = open_job(load_job(job(tmp_path)))
    opened.program.save(tmp_path / "checkpoint")
    loaded = Program.load(tmp_path / "checkpoint", opened.program.source)
    assert loaded.auxiliary == opened.program.auxiliary
    replace(opened.program, auxiliary=()).save(tmp_path / "plain")
    assert "auxiliary" not in read_description(tmp_path / "plain")
    assert Program.load(tmp_path / "plain", opened.program.source).auxiliary == ()


def test_it_counts_in_the_key_of_a_step(tmp_path: Path) -> None:
    opened = open_job(load_job(job(tmp_path)))
    opened.splits.identify(print)
    tasks, aux = opened.program.tasks, opened.program.auxiliary
    assert evaluation_hash((*tasks, *aux), opened.splits) != evaluation_hash(tasks, opened.splits)


def test_a_task_less_is_without_it(tmp_path: Path) -> None:
    program = open_job(load_job(job(tmp_path))).program
    assert program.restricted(["depth", "semseg"]).auxiliary == program.auxiliary
    assert program.restricted(["depth"]).auxiliary == ()


def test_a_job_is_planned_pruned_and_exported_with_it(tmp_path: Path) -> None:
    """Pruning cuts the stem, which the auxiliary head reads: it has to follow, or the fine-tuning does not run."""
    path = job(
        tmp_path, '[budget]\nmacs = "50%"\n', '[[passes]]\nname = "prune"\nround_to = 1\nmethod = "uniform"\n',
        "sensitivity = []\nrounds = 1\nfinetune = {epochs = 1, lr = 1e-3, batch_size = 8}\n", REST,
    )  # fmt: skip
    loaded = load_job(path)
    plan = plan_job(loaded)
    assert [task.name for task in plan.tasks] == ["depth", "semseg"]
    assert [(one.name, one.loss, one.weight) for one in plan.training_only] == [("aux", "l1", 0.5)]
    found = run_job(loaded, tmp_path / "out")
    (step,) = found.passes
    assert list(step.report["rounds"][0]["training"]["losses"]) == ["depth", "semseg", "aux"]
    with Session(tmp_path / "out" / "bundle") as session:
        assert list(session.tasks) == ["depth", "semseg"]
    program = Program.load(tmp_path / "out" / "program", loaded.source)
    left = program.module.stem[0].out_channels
    assert program.module.early.weight.shape == (1, left, 1, 1)
    assert left < 8


def test_an_output_of_another_name_in_training(tmp_path: Path) -> None:
    depth = '[tasks.depth]\nloss = "l1"\nmetric = "rmse"\noutput = ""\n'
    head = f'schema = 1\n[model]\nfactory = "{__name__}:renamed"\n'
    data = '[data]\nfactory = "testkit.toy_job:pictures"\n[[passes]]\nname = "finetune"\nepochs = 1\nlr = 1e-3\n'
    path = toy_job.write(tmp_path, head + depth + data)
    with pytest.raises(UserError, match=r"in training mode task 'depth': .* say which: training_output"):
        plan_job(load_job(path))
    aux = '[tasks.aux]\nloss = "l1"\noutput = "1"\ntarget = "depth"\ntraining_only = true\n'
    path = toy_job.write(tmp_path, head + depth + 'training_output = "0"\n' + aux + data)
    plan_job(load_job(path))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("training_only = true", "", "[tasks.aux] metric: this key is required"),
        ("weight = 0.5", 'metric = "rmse"', "[tasks.aux] metric: a task that is training_only has no output to judge"),
        ("weight = 0.5", 'max_drop = "1%"', "[tasks.aux]: max_drop: does not go with training_only"),
        ("weight = 0.5", 'training_output = "x"', "[tasks.aux]: training_output: does not go with training_only"),
        ('output = "aux"', 'output = "axu"', "in training mode task 'aux': the model has no output 'axu'"),
        ('loss = "l1"\noutput', 'loss = "l2"\noutput', "[tasks.aux] unknown loss 'l2'"),
        ('target = "depth"', 'target = "deep"', "[tasks.aux] the train split has no 'deep'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = job(tmp_path, '[[passes]]\nname = "finetune"\nepochs = 1\nlr = 1e-3\n')
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    result = CliRunner().invoke(main, ["plan", str(path), "--quiet"])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_something_has_to_stay(tmp_path: Path) -> None:
    text = toy_job.JOB.replace('metric = "rmse"\n', "training_only = true\n")
    path = toy_job.write(tmp_path, text.replace('metric = "miou"\n', "training_only = true\n"))
    with pytest.raises(UserError, match="every task is training_only: nothing is left to export"):
        load_job(path)


def test_a_supernet_cannot_narrow_what_a_training_only_part_reads(tmp_path: Path) -> None:
    path = job(tmp_path, '[[passes]]\nname = "slim"\nround_to = 1\nwidths = [0.5, 1.0]\nimportance = "norm"\n')
    path.write_text(path.read_text() + "[passes.train]\nepochs = 1\nlr = 1e-3\nbatch_size = 8\n" + REST)
    result = CliRunner().invoke(main, ["run", str(path), "--out", str(tmp_path / "out"), "--quiet"])
    assert result.exit_code == 2, result.output
    assert "in training mode the network does not run at" in result.stderr
    assert "Traceback" not in result.stderr
