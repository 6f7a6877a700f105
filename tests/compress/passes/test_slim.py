"""The pass that makes a network slimmable: what it says, what it leaves as it was, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from testkit import tiny_networks, toy_job
from torch import nn

from mtlc.compress.pass_interface import Context, PassResult
from mtlc.compress.passes.slim import Slim, SlimConfig
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.sandwich_training import SandwichTrainer
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.training.recovery import planned_recipe
from mtlc.compress.training.train_config import FinetuneConfig
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits
from mtlc.hw.cost.count import macs
from mtlc.job.job import load_job
from mtlc.program.program import ModelSource, Program

TRAIN = {"epochs": 1, "batch_size": 8, "ema": 0.5}
SETTINGS = {"importance_samples": 8, "recalibrate": 16, "train": TRAIN}


def toy_program(width: int = 16) -> Program:
    torch.manual_seed(0)
    source = ModelSource("testkit.toy_job:net", {"width": width})
    return Program(source.build().eval(), tiny_networks.TASKS, {"image": torch.zeros(2, 3, 16, 16)}, source)


def slimmed(program: Program, splits: Splits, workdir: Path, **settings) -> PassResult:
    one = Slim(SlimConfig(**{**SETTINGS, **settings}))
    context = Context(splits, Criteria(program.tasks), program, workdir)
    one.requires(program, context)
    return one.run(program, context)


def test_the_toy_job_becomes_slimmable(tmp_path):
    """Its stem and its body have 16 channels each at one resolution; its heads are single layers."""
    program, lines = toy_program(), list[str]()
    steps = [Step("slim", SlimConfig(**SETTINGS), "[[passes]] 1 slim")]
    kept = {"splits": toy_job.pictures(), "criteria": Criteria(program.tasks), "out": tmp_path, "log": lines.append}
    (done,) = run_passes(program, steps, **kept)
    report = done.report
    training = report.pop("training")
    whole = macs(program)
    assert whole == 16 * 16 * (3 * 16 * 9 + 16 * 16 * 9 + 16 * 1 + 16 * 3)
    assert report == {
        "widths": [0.25, 0.5, 0.75, 1.0],
        "stages": ["stage1", "stage2"],
        "tasks": ["depth", "semseg"],
        "groups": {
            "stage1": {"options": [0.5, 1.0], "units": {"stem.0": [8, 16]}},
            "stage2": {"options": [0.5, 1.0], "units": {"body.0": [8, 16]}},
            "depth": {"options": [1.0], "units": {}},
            "semseg": {"options": [1.0], "units": {}},
        },
        "pool": [],
        "macs": {"widest": whole, "narrowest": 16 * 16 * (3 * 8 * 9 + 8 * 8 * 9 + 8 * 1 + 8 * 3)},
        "left_alone": [{"name": "semseg", "channels": 3, "why": "an output of the network"}],
    }
    assert training["steps"] == 4
    assert done.cost["macs"] == whole
    assert "slim: 2 channel groups in 2 encoder stages and 2 decoders" in lines
    supernet = Supernet.of(done.program)
    assert supernet.macs(supernet.smallest) == report["macs"]["narrowest"]
    (again,) = run_passes(program, steps, **kept)
    assert again.cached


@pytest.mark.parametrize("train_lr", [None, 2e-3])
def test_what_is_left_open_is_settled_as_in_any_fine_tuning(tmp_path, train_lr, monkeypatch):
    """The rate of [train], or that of a range test of the sandwich's own steps; the epochs follow from the data."""
    tried: list[SandwichTrainer] = []
    first_steps = SandwichTrainer.first_steps

    def watched(self, count):
        tried.append(self)
        return first_steps(self, count)

    monkeypatch.setattr(SandwichTrainer, "first_steps", watched)
    program, splits, lines = toy_program(), toy_job.pictures(), list[str]()
    config = SlimConfig(**{**SETTINGS, "train": {**TRAIN, "lr": "auto"}})
    context = Context(splits, Criteria(program.tasks), program, tmp_path, log=lines.append, train_lr=train_lr)
    recipe = Slim(config).run(program, context).report["training"]["recipe"]
    assert recipe["lr_from"] == ("a range test" if train_lr is None else "that of [train]")
    assert f"slim: 1 epochs (given), learning rate {recipe['lr']:g} ({recipe['lr_from']})" in lines
    assert bool(tried) == (train_lr is None)
    assert all(one.slim.configurations == 4 for one in tried)
    samples = len(splits.train)
    assert planned_recipe(SlimConfig(train={"epochs": "auto", "lr": "auto"}).train, samples, None) == planned_recipe(
        FinetuneConfig(epochs="auto"), samples, None
    )


def test_settings_that_are_given_say_so(tmp_path):
    report = slimmed(toy_program(), toy_job.pictures(), tmp_path).report
    assert report["training"]["recipe"] == {"epochs": 1, "epochs_from": "given", "lr": 1e-3, "lr_from": "given"}


def test_training_makes_every_width_better(tmp_path):
    program, splits = toy_program(), toy_job.pictures()
    train = {**TRAIN, "epochs": 15, "lr": 1e-2}
    losses = {}
    for epochs in (0.25, 15):
        supernet = Supernet.of(
            slimmed(program, splits, tmp_path / str(epochs), train={**train, "epochs": epochs}).program
        )
        for name, configuration in (("widest", supernet.largest), ("narrowest", supernet.smallest)):
            with supernet.at(configuration):
                found = evaluate(supernet.program, Criteria(program.tasks), splits.validation).losses
            losses[name, epochs] = sum(found.values())
    assert losses["widest", 15] < 0.6 * losses["widest", 0.25]
    assert losses["narrowest", 15] < 0.8 * losses["narrowest", 0.25]


def test_without_steps_worth_the_name_the_widest_is_the_network_sorted(tmp_path):
    program = tiny_networks.resnet_program()
    splits = tiny_networks.taught_splits(program, train=8)
    still = {**TRAIN, "batch_size": 8, "lr": 1e-30, "weight_decay": 0.0, "ema": 0.0}
    for norm in program.module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0
    result = slimmed(program, splits, tmp_path, train=still, recalibrate=0, round_to=4)
    batch = {"image": tiny_networks.images(3, 32, 9)}
    with torch.no_grad():
        before, after = program.outputs(batch), result.program.outputs(batch)
    assert all(torch.allclose(after[task], before[task], atol=1e-4) for task in before)
    moved = [
        n for n, t in program.module.state_dict().items() if not torch.equal(t, result.program.module.state_dict()[n])
    ]
    assert len(moved) > 30


def test_statistics_of_the_widest_are_measured_at_the_end(tmp_path):
    program = toy_program()
    splits = toy_job.pictures()
    with_them, without = (
        slimmed(program, splits, tmp_path / str(samples), recalibrate=samples).program.module.state_dict()
        for samples in (16, 0)
    )
    different = {name for name in with_them if not torch.equal(with_them[name], without[name])}
    assert different == {
        f"{layer}.1.{name}"
        for layer in ("stem", "body")
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }  # fmt: skip


def test_frozen_layers_are_sorted_and_not_trained(tmp_path):
    program = toy_program()
    program.module.stem.requires_grad_(False)
    result = slimmed(program, toy_job.pictures(), tmp_path, importance="norm")
    before, after = program.module.stem[0].weight, result.program.module.stem[0].weight
    order = before.square().flatten(1).sum(1) + 1  # its norm is 1 and 0 in every channel
    assert torch.equal(after, before[order.argsort(descending=True, stable=True)])
    assert not any(p.requires_grad for p in result.program.module.stem.parameters())
    assert not torch.equal(result.program.module.body[0].weight, program.module.body[0].weight)


def test_a_further_pass_goes_on_training_the_same_widths(tmp_path):
    program = toy_program()
    further = {**SETTINGS, "train": {**TRAIN, "narrow_weight": 0.1}}
    steps = [Step("slim", SlimConfig(**settings), "[[passes]] slim") for settings in (SETTINGS, further)]
    kept = {"splits": toy_job.pictures(), "criteria": Criteria(program.tasks), "out": tmp_path}
    first, second = run_passes(program, steps, **kept)
    one, two = Supernet.of(first.program), Supernet.of(second.program)
    assert one.table == two.table
    assert first.report["left_alone"] == second.report["left_alone"] != []
    assert [entry.name for entry in second.program.history] == ["slim", "slim"]
    changed = [
        not torch.equal(a, b)
        for a, b in zip(first.program.module.parameters(), second.program.module.parameters(), strict=True)
    ]
    assert all(changed)
    second.program.save(tmp_path / "saved")
    assert Supernet.of(Program.load(tmp_path / "saved", program.source)).table == one.table


def test_a_further_pass_trains_what_a_search_finds(tmp_path):
    further = {**SETTINGS, "train": {**TRAIN, "draw": "searched"}}
    steps = [Step("slim", SlimConfig(**settings), "[[passes]] slim") for settings in (SETTINGS, further)]
    program, lines = toy_program(), list[str]()
    kept = {"splits": toy_job.pictures(), "criteria": Criteria(program.tasks), "out": tmp_path, "log": lines.append}
    first, second = run_passes(program, steps, **kept)
    assert first.report["pool"] == []
    pool = [Configuration(tuple(c["encoder"]), tuple(c["decoders"])) for c in second.report["pool"]]
    net = Supernet.of(second.program)
    assert net.trained == tuple(pool)
    assert Supernet.of(first.program).trained == ()
    assert pool[0] == net.smallest
    assert 2 <= len(pool) <= 4  # of the four that there are
    second.program.history[-1].report["pool"][0].pop("encoder")
    with pytest.raises(UserError, match="its last 'slim' is damaged: pool"):
        _ = net.trained
    assert f"slim: trains the widest network and {len(pool)} configurations that a search found" in lines


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (0.5, 1.0)}, "slimmable already, with widths = (0.25, 0.5, 0.75, 1.0): a further pass"),
        (
            {"round_to": 4},
            "slimmable already, with round_to = 8: a further pass goes on training it and takes the same",
        ),
        ({"ignore": ("stem*",)}, "slimmable already: stages and ignore belong to the first pass"),
    ],
)
def test_a_further_pass_takes_the_same_widths(tmp_path, settings, message):
    program = slimmed(toy_program(), toy_job.pictures(), tmp_path).program
    with pytest.raises(UserError) as caught:
        slimmed(program, toy_job.pictures(), tmp_path / "again", **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "widths = [0.25, 0.5]",
            "widths: 0.25, 0.5 lacks 1.0: the widest network is what the others learn from",
        ),
        ("widths = [1.0]", "widths: 1.0 alone leaves nothing to choose; add a narrower one"),
        ("widths = [0.5, 1.0, 2]", "widths: 2 must be above 0 and at most 1"),
        (
            "train = {tasks_per_sample = 1}",
            "train.tasks_per_sample = 1: all widths train all tasks, taught by the widest; leave it out",
        ),
        ('train = {lr = "fast"}', 'lr: must be a finite number above 0, or "auto"'),
        ("train = {configurations = 1}", "configurations: input should be greater than or equal to 2, not 1"),
        (
            "train = {budgets = [0.5, 1.0]}",
            "budgets: 1 must be a share of the widest network's MACs, above 0 and under 1",
        ),
        ("round_tp = 4", "round_tp: unknown key; did you mean 'round_to'?"),
    ],
)
def test_a_jobs_mistakes_are_one_line(tmp_path, settings, message):
    path = toy_job.write(tmp_path, toy_job.JOB, f'[[passes]]\nname = "slim"\n{settings}\n')
    with pytest.raises(UserError) as caught:
        load_job(path)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert said.startswith("job.toml: [[passes]] 1 (line 12) 'slim'")
    assert message in said, said


@pytest.mark.parametrize(
    ("width", "settings", "message"),
    [
        (
            8, {},
            "stage1 is too narrow for width 0.25: its widest channel group, stem.0, has 8 channels, all of them kept "
            "in steps of 8; lower round_to, or list its layers in ignore",
        ),
        (
            16, {"ignore": ("stem.*", "body.*")},
            "no channel group of the network can be made slim; see what was left alone with mtlc inspect",
        ),
        (16, {"ignore": ("stm.*",)}, "ignore = 'stm.*' matches no layer of the network"),
        (
            16, {"stages": {"early": ("stem.*",), "late": ("bdy.*",)}},
            "stages.late: bdy.* matches no channel group of the encoder",
        ),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_made_slim_is_one_line(tmp_path, width, settings, message):
    with pytest.raises(UserError) as caught:
        slimmed(toy_program(width), toy_job.pictures(), tmp_path, **settings)
    assert str(caught.value) == message


def test_stages_of_ones_own(tmp_path):
    program = toy_program()
    stages = {"all": ("stem.*", "body.*")}
    result = slimmed(program, toy_job.pictures(), tmp_path, stages=stages, widths=(0.5, 1.0))
    assert result.report["groups"]["all"] == {"options": [0.5, 1.0], "units": {"body.0": [8, 16], "stem.0": [8, 16]}}
    supernet = Supernet.of(result.program)
    assert supernet.encoders() == [(0.5,), (1.0,)]


def test_a_checkpoint_runs_at_every_width(tmp_path):
    program = tiny_networks.resnet_program()
    result = slimmed(program, tiny_networks.taught_splits(program, train=8), tmp_path / "work", round_to=4)
    result.program.save(tmp_path / "saved")
    loaded = Supernet.of(Program.load(tmp_path / "saved", program.source))
    ours = Supernet.of(result.program)
    assert loaded.table.to_step() == ours.table.to_step()
    batch = {"image": tiny_networks.images(3, 32, 9)}
    for configuration in (ours.smallest, replace(ours.largest, decoders=ours.smallest.decoders), ours.largest):
        with torch.no_grad(), ours.at(configuration), loaded.at(configuration):
            one, other = ours.program.outputs(batch), loaded.program.outputs(batch)
        assert all(torch.equal(one[task], other[task]) for task in one)
