"""``epochs = 0`` and ``finetune = false`` mean that nothing is trained, wherever a job may say so."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from testkit import tiny_networks, toy_job
from testkit.tiny_networks import REGRESSION, same_state

from mtlc.compress.pass_interface import Context
from mtlc.compress.passes.extract import ExtractConfig
from mtlc.compress.passes.finetune import Finetune
from mtlc.compress.passes.prune import PruneConfig
from mtlc.compress.passes.qat import QatConfig
from mtlc.compress.slimmable.sandwich_training import SlimTrainConfig
from mtlc.compress.training.train_config import FinetuneConfig, TrainConfig, fine_tuning_of
from mtlc.compress.training.trainer import train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.job.job import load_job
from mtlc.workflows.plan import plan_job
from mtlc.workflows.preconditions import trainings
from mtlc.workflows.run import run_job
from mtlc.workflows.train import train_job

BUDGET = '[budget]\nmacs = "60%"\n'
PRUNE = '[[passes]]\nname = "prune"\nround_to = 1\nmethod = "uniform"\nsensitivity = []\n'


@pytest.mark.parametrize("config", [PruneConfig, ExtractConfig])
@pytest.mark.parametrize("none", [False, None, {"epochs": 0}, {"epochs": 0.0, "lr": 1e-3}])
def test_no_fine_tuning_has_four_spellings(config, none):
    made = config.model_validate({"finetune": none})
    assert made.finetune is None
    assert fine_tuning_of(made) is None
    assert made.model_dump()["finetune"] is None


@pytest.mark.parametrize("config", [TrainConfig, QatConfig, SlimTrainConfig, FinetuneConfig])
def test_no_epochs_are_allowed_and_fewer_are_not(config):
    assert config(epochs=0).epochs == 0
    with pytest.raises(ValidationError):
        config(epochs=-1)


@pytest.mark.parametrize("bad", [True, 3, "fast", [1]])
def test_what_is_no_fine_tuning_is_refused(bad):
    with pytest.raises(ValidationError, match=r'a table such as . epochs = 10 ., "auto", or false for none'):
        PruneConfig.model_validate({"finetune": bad})


def test_the_rate_may_not_be_zero():
    with pytest.raises(ValidationError, match="finite number above 0"):
        FinetuneConfig(lr=0)


def test_the_pass_changes_nothing(tmp_path):
    program = tiny_networks.chain_program(REGRESSION)
    data = tiny_networks.taught(program, 8, 0)
    given = Context(Splits(data, data, data, identity="test"), Criteria(REGRESSION), program, tmp_path)
    result = Finetune(FinetuneConfig(epochs=0)).run(program, given)
    assert same_state(result.program.module, program.module)
    assert result.report == {"steps": 0, "samples": 0, "seconds": 0.0, "losses": {}}
    assert list(tmp_path.iterdir()) == []


def test_a_training_of_no_epochs_needs_nothing_to_train():
    program = tiny_networks.chain_program(REGRESSION)
    program.module.requires_grad_(False).train()
    data = tiny_networks.taught(program, 8, 0)
    before = {name: value.clone() for name, value in program.module.state_dict().items()}
    found = train(program, Splits(data, data, data), Criteria(REGRESSION), TrainConfig(epochs=0))
    assert found["steps"] == 0
    assert not program.module.training
    assert all(value.equal(before[name]) for name, value in program.module.state_dict().items())


@pytest.mark.parametrize("line", ["finetune = false\n", "finetune = { epochs = 0 }\n"])
def test_a_job_is_pruned_and_not_trained(tmp_path: Path, line: str) -> None:
    job = load_job(toy_job.write(tmp_path, toy_job.JOB, BUDGET, PRUNE, line, "[report]\ndevices = []\npictures = 0\n"))
    assert trainings(job.steps) == []
    assert plan_job(job).passes[0].config["finetune"] is None
    found = run_job(job, tmp_path / "out")
    (step,) = found.passes
    assert [one["training"] for one in step.report["rounds"]] == [None]
    assert found.budget is not None
    assert found.budget.met


def test_a_job_that_trains_nothing_writes_the_weights_that_it_has(tmp_path: Path) -> None:
    job = load_job(toy_job.write(tmp_path, toy_job.JOB, "[train]\nepochs = 0\n"))
    found = train_job(job, tmp_path / "weights.safetensors")
    assert found.training.steps == 0
    assert (tmp_path / "weights.safetensors").exists()


def test_a_negative_number_of_epochs_is_named(tmp_path: Path) -> None:
    path = toy_job.write(tmp_path, toy_job.JOB, BUDGET, PRUNE, "finetune = { epochs = -2 }\n")
    with pytest.raises(UserError, match=r"'prune' \[finetune\] epochs: must be .* above 0, or \"auto\"; 0 trains"):
        load_job(path)
