"""The pass that cuts one configuration out of a slimmable network."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from testkit import tiny_networks

from mtlc.compress.pass_interface import Budget, Context, PassResult
from mtlc.compress.passes.narrow import Narrow, NarrowConfig
from mtlc.compress.passes.slim import Slim, SlimConfig
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_search import STRATEGIES
from mtlc.compress.training.train_config import FinetuneConfig
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits
from mtlc.hw.cost.count import macs
from mtlc.program.program import Program

SLIM = SlimConfig(
    round_to=4, importance_samples=8, recalibrate=16, train={"epochs": 6, "batch_size": 8, "ema": 0.5, "lr": 3e-3}
)


@cache
def slimmed() -> tuple[Program, Splits]:
    program = tiny_networks.resnet_program()
    splits = tiny_networks.taught_splits(program, train=16, calibration=8)
    context = Context(splits, Criteria(program.tasks), program, Path(mkdtemp()))
    return Slim(SLIM).run(program, context).program, splits


def narrowed(budget: Budget | float | None, program: Program | None = None, **settings) -> PassResult:
    start, splits = slimmed()
    start = program or start
    if isinstance(budget, float):
        budget = Budget("macs", budget * macs(start))
    one = Narrow(NarrowConfig(**{"recalibrate": 16, **settings}))
    context = Context(splits, Criteria(start.tasks), start, Path(mkdtemp()), budget)
    one.requires(start, context)
    return one.run(start, context)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_the_budget_is_met_and_the_claim_is_measured(strategy, share):
    result, (start, splits) = narrowed(share, strategy=strategy), slimmed()
    cost = macs(result.program)
    assert cost == result.cost_claimed["macs"] <= share * macs(start)
    report = result.report
    chosen = Configuration(
        tuple(report["configuration"]["encoder"].values()), tuple(report["configuration"]["decoders"].values())
    )
    assert Supernet.of(start).macs(chosen) == cost
    measured = evaluate(result.program, Criteria(start.tasks), splits.calibration).metrics
    assert measured == pytest.approx(report["metrics"], rel=1e-4)
    assert report["preference"] == {"depth": 0.5, "semseg": 0.5}
    assert report["measurements"] >= 1
    assert [entry.name for entry in result.program.history] == ["slim", "narrow"]
    assert [step["kind"] for step in result.program.history[-1].surgery] == ["slice"]


def test_joint_is_no_worse_than_one_width_for_all():
    gains = {strategy: narrowed(0.5, strategy=strategy).report["gain"] for strategy in ("joint", "uniform")}
    assert gains["joint"] >= gains["uniform"] - 1e-9


def test_the_preferred_task_has_the_wider_decoder():
    for task, other in (("depth", "semseg"), ("semseg", "depth")):
        report = narrowed(0.5, prefer={task: 1.0}, strategy="ecmt").report
        assert report["preference"] == {task: 1.0, other: 0.0}
        widths = report["configuration"]["decoders"]
        assert widths[task] == 1.0
        assert widths[other] == 0.25


def test_a_job_of_slim_narrow_and_finetune(tmp_path):
    """What the pipeline checks holds: claims, replays, finite outputs. Reading it again runs nothing."""
    program = tiny_networks.resnet_program()
    splits = tiny_networks.taught_splits(program, train=16, calibration=8)
    budget = Budget("macs", 0.5 * macs(program))
    steps = [
        Step("slim", SLIM, "[[passes]] 1 slim"),
        Step("narrow", NarrowConfig(recalibrate=16), "[[passes]] 2 narrow"),
        Step("finetune", FinetuneConfig(epochs=1, batch_size=8), "[[passes]] 3 finetune"),
    ]
    settings = {"splits": splits, "criteria": Criteria(program.tasks), "out": tmp_path, "budget": budget}
    slim, narrow, tuned = run_passes(program, steps, **settings)
    assert slim.cost["macs"] == macs(program)
    assert tuned.cost == narrow.cost
    assert narrow.cost["macs"] <= budget.target
    loaded = Program.load(narrow.folder / "program", program.source)
    batch = {"image": tiny_networks.images(3, 32, 9)}
    with torch.no_grad():
        one, other = narrow.program.outputs(batch), loaded.outputs(batch)
    assert all(torch.equal(one[task], other[task]) for task in one)
    assert all(step.cached for step in run_passes(program, steps, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefer": {"semsek": 1.0}}, "prefer: 'semsek' is not one of the tasks that run; did you mean 'semseg'?"),
        ({"prefer": {"depth": -1.0}}, "prefer: depth = -1.0: must be a number, zero or more"),
        ({"prefer": {"depth": 0.0}}, "prefer: every task has 0: give one or more of depth, semseg a number above 0"),
        ({"prefer": {}}, "prefer: every task has 0: give one or more of depth, semseg a number above 0"),
    ],
)
def test_preferences_that_are_none_are_one_line(settings, message):
    with pytest.raises(UserError) as caught:
        narrowed(0.5, **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize("budget", [None, Budget("params", 1e6), Budget("latency", 3.0)])
def test_other_budgets_are_one_line(budget):
    with pytest.raises(UserError) as caught:
        narrowed(budget)
    assert str(caught.value) == "narrow needs a [budget] in macs; for milliseconds use: mtlc search"


def test_a_budget_under_the_least_is_one_line():
    supernet = Supernet.of(slimmed()[0])
    least, most = supernet.macs(supernet.smallest), supernet.macs(supernet.largest)
    with pytest.raises(UserError) as caught:
        narrowed(Budget("macs", least - 1000))
    assert str(caught.value) == (
        f"budget {(least - 1000) / 1e6:.4g} MMACs is under the least that this network can run: "
        f"{least / 1e6:.4g} MMACs, "
        f"{least / most:.1%} of the widest; it misses by 0.001 MMACs"
    )


def test_networks_of_one_width_are_one_line():
    with pytest.raises(UserError) as caught:
        narrowed(0.5, tiny_networks.resnet_program())
    assert str(caught.value) == "the program has one width: make a slimmable one with: mtlc slim JOB"
    with pytest.raises(UserError, match=r"^the program was changed by 'narrow' after its last 'slim'"):
        narrowed(0.5, narrowed(0.5, strategy="uniform").program)


def test_the_widest_that_fits_all_is_the_network_itself():
    start, splits = slimmed()
    result = narrowed(1.0, strategy="uniform")
    weights = dict(start.module.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in result.program.module.named_parameters())
    assert result.report["gain"] == 0.0
    assert len(splits.train) == 16
