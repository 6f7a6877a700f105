"""The numbers that are left open are settled as documented, and explicit settings train as they always did."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import BaseModel, ValidationError
from testkit import tiny_networks
from testkit.tiny_networks import REGRESSION, same_state

from mtlc.compress.pass_interface import Context
from mtlc.compress.passes.prune import PruneConfig
from mtlc.compress.passes.qat import QatConfig
from mtlc.compress.passes.slim import SlimConfig
from mtlc.compress.training import batch_norm, recovery
from mtlc.compress.training.batch_norm import recalibrate_batchnorm, recalibrate_where_better
from mtlc.compress.training.recovery import RATES, epochs_of, planned_recipe, range_test, recover
from mtlc.compress.training.train_config import FinetuneConfig, TrainConfig, fine_tuning_of
from mtlc.compress.training.trainer import train
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.log import Log, silent
from mtlc.program.program import Program

FAST = {"batch_size": 4, "augment": False, "precision": "float32"}


def student() -> Program:
    return tiny_networks.program("chain", 8, REGRESSION, seed=7)


def context(folder: Path, train_lr: float | None = None, log: Log = silent) -> Context:
    teacher = tiny_networks.chain_program(REGRESSION)
    data = tiny_networks.taught(teacher, 16, 0)
    splits = Splits(data, data, data, identity="test")
    return Context(splits, Criteria(REGRESSION), teacher, folder, log=log, train_lr=train_lr)


@pytest.mark.parametrize(
    ("samples", "batch", "epochs", "steps"),
    [
        (8000, 32, 10.0, 2500),  # ten epochs
        (30000, 32, 6.4, 5997),  # 937 steps an epoch: no more than 6,000
        (2000, 32, 24.2, 1500),  # 62 steps an epoch: no fewer than 1,500
        (795, 32, 40.0, 960),  # 24 steps an epoch: no more than 40 epochs
        (1_000_000, 32, 2.0, 62500),  # no fewer than 2
        (3, 32, 40.0, 40),
    ],
)
def test_epochs_follow_from_the_size_of_the_data(samples, batch, epochs, steps):
    found, told = epochs_of(FinetuneConfig(epochs="auto", batch_size=batch), samples)
    assert found == epochs
    assert told == f"auto: {steps:,} steps of {min(samples, batch)} samples"
    assert epochs_of(FinetuneConfig(epochs=3), samples) == (3, "given")


def test_the_rate_goes_back_to_the_trainings(tmp_path):
    lines: list[str] = []
    report = recover(
        student(), context(tmp_path, 3e-3, lines.append), FinetuneConfig(epochs=1, **FAST), seed=0,
        checkpoint=tmp_path / "t",
    )  # fmt: skip
    assert report["recipe"] == {"epochs": 1, "epochs_from": "given", "lr": 3e-3, "lr_from": "that of [train]"}
    assert lines == ["fine-tuning: 1 epochs (given), learning rate 0.003 (that of [train])"]


def test_a_range_test_takes_the_rate_that_descends_most(tmp_path, monkeypatch):
    """Losses as shares of those without a step, by rate; the batch's two tasks fall alike."""
    shares = dict(zip(RATES, [0.99, 0.9, 0.6, 0.4, 0.5, 1.7, 0.1], strict=True))

    def first_steps(self, count: int) -> list[dict[str, float]]:
        asked.append(self.config.lr)
        return [{task.name: shares.get(self.config.lr, 1.0) for task in REGRESSION}] * count

    asked: list[float] = []
    monkeypatch.setattr(recovery.Trainer, "first_steps", first_steps)
    found = range_test(student(), context(tmp_path), TrainConfig(epochs=400, **FAST), 0)
    assert asked == [1e-12, *RATES[:6]]  # the one that diverges is the last
    assert (found["lr"], found["steps"]) == (1e-3, 7 * 12)
    shares[RATES[4]] = 1.2  # the next above diverges: a third of it is the same, to rounding
    assert range_test(student(), context(tmp_path), TrainConfig(epochs=400, **FAST), 0)["lr"] == pytest.approx(1e-3)
    shares.update(dict.fromkeys(RATES, 1.5))
    assert range_test(student(), context(tmp_path), TrainConfig(epochs=400, **FAST), 0)["lr"] == RATES[0]


def test_a_range_test_is_the_same_twice_bounded_and_changes_nothing(tmp_path):
    program, config = student(), TrainConfig(epochs=5, **FAST)
    found = range_test(program, context(tmp_path), config, 0)
    assert found == range_test(program, context(tmp_path), config, 0)
    assert same_state(program.module, student().module)
    assert found["steps"] <= 3 * (len(RATES) + 1)  # of 20 steps in all, so each rate has the fewest
    assert RATES[0] <= found["lr"] <= RATES[-1]
    ratios = {one["lr"]: one["loss"] for one in found["rates"]}
    assert ratios[RATES[0]] > ratios[1e-3]


def test_a_range_test_is_not_made_again_after_a_kill(tmp_path, monkeypatch):
    config, given = FinetuneConfig(epochs=1, **FAST), context(tmp_path)
    first = recover(student(), given, config, seed=0, checkpoint=tmp_path / "t")
    assert first["recipe"]["lr_from"] == "a range test"
    assert json.loads((tmp_path / "t-recipe.json").read_text())["recipe"]["lr"] == first["recipe"]["lr"]
    monkeypatch.setattr(recovery, "range_test", None)
    again = student()
    assert recover(again, given, config, seed=0, checkpoint=tmp_path / "t")["recipe"] == first["recipe"]
    with pytest.raises(TypeError):  # another seed: another test
        recover(student(), given, config, seed=1, checkpoint=tmp_path / "t")


def test_explicit_settings_train_as_they_always_did(tmp_path):
    """Figures of the trainer before it knew features and curves; 1e-3 is for other processors' order of summation."""
    given = context(tmp_path)
    config = FinetuneConfig(epochs=6, lr=0.01, distill=0.5, distill_features=0, recalibrate=0, **FAST)
    recovered, plain = student(), student()
    report = recover(recovered, given, config, seed=3, checkpoint=tmp_path / "t")
    assert report["losses"] == pytest.approx({"depth": 0.09603, "semseg": 0.16408}, rel=1e-3)
    train(
        plain, given.splits, given.criteria, TrainConfig(epochs=6, lr=0.01, distill=0.5, **FAST), seed=3,
        teacher=given.reference,
    )  # fmt: skip
    assert same_state(recovered.module, plain.module)


def test_auto_in_a_job_means_both():
    def read(text: str) -> BaseModel:
        return PruneConfig.model_validate_json(text, strict=True)

    both = read('{"finetune": "auto"}').finetune
    assert (both.epochs, both.lr) == ("auto", "auto")
    assert both == FinetuneConfig(epochs="auto", lr="auto")
    old = read('{"finetune": {"epochs": 4, "lr": 1e-3, "distill": 0.5}}').finetune
    assert (old.epochs, old.lr, old.distill) == (4, 1e-3, 0.5)
    assert read('{"finetune": null}').finetune is None
    for key, value in (("lr", '"fast"'), ("epochs", "-1"), ("epochs", "true"), ("lr", "1e999")):
        with pytest.raises(ValidationError, match='must be a finite number above 0, or "auto"') as raised:
            read(f'{{"finetune": {{"{key}": {value}}}}}')
        assert raised.value.errors()[0]["loc"] == ("finetune", key)
    for text in ('"auot"', "true", "5", '["auto"]'):
        with pytest.raises(ValidationError, match=r'must be a table such as .*, "auto", or false for none, not'):
            read(f'{{"finetune": {text}}}')


def test_a_plan_says_what_is_known():
    auto = FinetuneConfig(epochs="auto", lr="auto")
    assert planned_recipe(auto, 8000, 2e-3) == {
        "epochs": 10.0, "epochs_from": "auto: 2,500 steps of 32 samples", "lr": 2e-3, "lr_from": "that of [train]",
    }  # fmt: skip
    assert planned_recipe(auto, 8000, None)["lr_from"] == "a range test"
    assert planned_recipe(FinetuneConfig(epochs=2, lr=0.1), 8000, 2e-3)["lr_from"] == "given"


@pytest.mark.parametrize(
    ("config", "epochs", "distill"),
    [
        (QatConfig(lr="auto"), 2, 0.5),
        (SlimConfig(train={"lr": "auto"}), 10, 0.0),
        (PruneConfig(), 5, 0.5),
        (FinetuneConfig(), 5, 0.5),
    ],
)
def test_a_plan_finds_what_every_pass_trains_with(config, epochs, distill):
    found = fine_tuning_of(config)
    assert (found.epochs, found.lr, found.distill) == (epochs, "auto", distill)
    assert planned_recipe(found, 8000, 2e-3) == {
        "epochs": epochs, "epochs_from": "given", "lr": 2e-3, "lr_from": "that of [train]",
    }  # fmt: skip
    assert fine_tuning_of(PruneConfig(finetune=None)) is None


def test_statistics_are_judged_where_losses_are_below_zero(tmp_path, monkeypatch):
    """From -2 to -1 is worse, from -1 to -2 better, to no number worse."""
    program, given = tiny_networks.resnet_program(REGRESSION), context(tmp_path)
    data = tiny_networks.taught(program, 4, 0)
    splits = Splits(data, data, data, identity="test")
    for before, after, stay in ((-2.0, -1.0, False), (-1.0, -2.0, True), (1.0, math.nan, False)):
        found = iter([before, after])
        monkeypatch.setattr(
            batch_norm, "evaluate", lambda *_, found=found: SimpleNamespace(losses={"depth": next(found)})
        )
        assert recalibrate_where_better(program.clone(), splits, given.criteria, 4) is stay


def test_statistics_that_serve_worse_are_put_back(tmp_path):
    """A network with batch norms that made the labels keeps its statistics; spoilt ones are measured anew."""
    teacher = tiny_networks.resnet_program(REGRESSION)
    data = tiny_networks.taught(teacher, 8, 0, noise=0.0)
    splits = Splits(data, data, data, identity="test")
    criteria, kept = Criteria(REGRESSION), teacher.clone()
    assert recalibrate_where_better(kept, splits, criteria, 8) is False
    assert same_state(kept.module, teacher.module)
    assert recalibrate_where_better(kept, splits, criteria, 1) is None  # one sample has no variance
    assert recalibrate_batchnorm(teacher, splits, 8) > 0
    data = tiny_networks.taught(teacher, 8, 0, noise=0.0)
    spoilt, splits = teacher.clone(), Splits(data, data, data, identity="test")
    for name, buffer in spoilt.module.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(100)
    assert recalibrate_where_better(spoilt, splits, criteria, 8) is True


def partly_labelled(folder: Path, *keys: str) -> Context:
    """Sample i has the label ``keys[i % len(keys)]`` alone; none at all without `keys`."""
    whole = context(folder)
    data = whole.splits.train
    samples = [
        {"image": data[row]["image"]} | ({key: data[row][key] for key in keys[row % len(keys) :][:1]} if keys else {})
        for row in range(len(data))
    ]
    return Context(Splits(samples, data, data, identity="some"), whole.criteria, whole.reference, folder)


def test_a_range_test_goes_by_the_labels_that_are_there(tmp_path):
    found = range_test(student(), partly_labelled(tmp_path, "depth", "semseg"), TrainConfig(epochs=40, **FAST), 0)
    assert any(one["loss"] is not None and one["loss"] < 1 for one in found["rates"])
    assert found["lr"] <= max(RATES)
    with pytest.raises(UserError, match=r'^lr = "auto": none of the \d+ training samples that rates are judged by has'):
        range_test(student(), partly_labelled(tmp_path), TrainConfig(epochs=40, **FAST), 0)
