"""The extract pass: what it keeps, what it says, and what the pipeline makes of a network with fewer tasks."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import REGRESSION, TASKS, moe_program, same_state, taught_splits, with_limit
from testkit.toy_job import JOB, pictures, write

from mtlc.commands import plan, run
from mtlc.compress.experts.usage import observe, routed_cost
from mtlc.compress.pass_interface import Budget, Context, PassResult
from mtlc.compress.passes.calibrate import CalibrateConfig
from mtlc.compress.passes.extract import Extract, ExtractConfig
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.compress.training.train_config import FinetuneConfig
from mtlc.errors import UserError, VerificationError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import Splits, fetch
from mtlc.hw.cost.count import macs
from mtlc.job.job import load_job
from mtlc.moe.layers import moe_layers
from mtlc.program.program import ModelSource, Program
from mtlc.runtime.session import Session
from mtlc.tasks.task import Limit
from mtlc.workflows.plan import plan_job
from mtlc.workflows.run import run_job

FIRST, SECOND = "backbone.blocks.1.mlp", "backbone.blocks.3.mlp"
TUNE = FinetuneConfig(epochs=2, batch_size=8, ema=0.5)


@pytest.fixture(scope="module")
def program() -> Program:
    """The first layer's expert 2 is used by none, its expert 4 by "depth" alone: elsewhere their columns are 0."""
    made = moe_program(experts=20)
    with torch.no_grad():
        weight = made.module.backbone.blocks[1].mlp.router.weight
        weight[:, :, 2] = 0
        weight[1, :, 4] = 0
    return made


@pytest.fixture(scope="module")
def splits(program) -> Splits:
    return taught_splits(program, train=16, calibration=8)


def context(program: Program, splits: Splits, budget: Budget | None = None) -> Context:
    return Context(splits, Criteria(program.tasks), program, Path(tempfile.mkdtemp()), budget)


def extract(program: Program, splits: Splits, budget: Budget | None = None, **config) -> PassResult:
    one, given = Extract(ExtractConfig(**config)), context(program, splits, budget)
    one.requires(program, given)
    result = one.run(program, given)
    one.ensures(program, result)
    return result


def outputs(program: Program, batch) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return program.outputs(batch)


def kept(result: PassResult) -> dict[str, list[int]]:
    return {layer["layer"]: layer["kept"] for layer in result.report["layers"]}


# ---- by usage -------------------------------------------------------------------------------------------------------


def test_without_a_threshold_no_output_on_the_calibration_split_moves(program, splits):
    result = extract(program, splits, threshold=0)
    assert 2 not in kept(result)[FIRST]
    assert 4 in kept(result)[FIRST]
    batch = fetch(splits.calibration, range(8))
    before, after = outputs(program, batch), outputs(result.program, batch)
    assert all(torch.equal(after[task], before[task]) for task in before)
    assert result.report["approximate"] == []
    assert result.report["calibration"]["before"] == result.report["calibration"]["extracted"]
    assert any(line.startswith(f"{FIRST}: no token of the calibration split") for line in result.report["exact"])


def test_one_task_keeps_what_it_alone_uses(program, splits):
    depth, semseg = (extract(program, splits, tasks=(task,), threshold=0) for task in ("depth", "semseg"))
    assert 4 in kept(depth)[FIRST]
    assert 4 not in kept(semseg)[FIRST]
    batch = fetch(splits.calibration, range(8))
    wanted = outputs(program, batch)
    for result, task in ((depth, "depth"), (semseg, "semseg")):
        assert result.program.task_names == (task,)
        assert result.report["dropped_tasks"] == [t for t in ("depth", "semseg") if t != task]
        assert torch.allclose(outputs(result.program, batch)[task], wanted[task], rtol=0, atol=1e-6)
        assert f"heads.{task}.norm.weight" in result.program.module.state_dict()
        assert result.program.module.backbone.blocks[1].mlp.router.weight.shape == (1, 12, 20)


def test_an_expert_stays_if_any_task_uses_it_enough(program, splits):
    routed = observe(program, splits.calibration, 64)
    shares = torch.stack([one.usage(FIRST) for one in routed.values()])
    result = extract(program, splits, threshold=0.12)
    assert kept(result)[FIRST] == (shares.amax(0) >= 0.12).nonzero().flatten().tolist()
    layer = result.report["layers"][0]
    for place, task in enumerate(("depth", "semseg")):
        assert layer["tasks"][task]["usage"] == pytest.approx(shares[place].tolist(), abs=1e-5)
        hit = ~torch.isin(routed[task].index(FIRST), torch.tensor(layer["kept"]))
        assert layer["tasks"][task]["hit_dropped"] == pytest.approx(hit.any(1).double().mean().item(), abs=1e-6)
        mass = routed[task].score(FIRST).double()
        assert layer["tasks"][task]["coverage"] == pytest.approx(((mass * ~hit).sum() / mass.sum()).item(), abs=1e-6)
        assert 0 < layer["tasks"][task]["coverage"] < 1


def test_a_layer_is_never_emptied(program, splits):
    lines = []
    one, given = Extract(ExtractConfig(threshold=1.0)), replace(context(program, splits), log=lines.append)
    result = one.run(program, given)
    usage = torch.stack([r.usage(FIRST) for r in observe(program, splits.calibration, 64).values()]).amax(0)
    assert kept(result)[FIRST] == sorted(usage.topk(2).indices.tolist())
    assert f"layer '{FIRST}': 0 experts reach the threshold; its 2 most used are kept" in result.report["notes"]
    assert any(FIRST in line for line in lines)
    assert len(kept(extract(program, splits, threshold=1.0, keep_at_least=5))[SECOND]) == 5


def test_what_it_costs(program, splits):
    result = extract(program, splits, threshold=0.12)
    gone = sum(20 - len(experts) for experts in kept(result).values())
    assert result.cost_claimed == {"params": program.parameters_count() - gone * (2 * 12 * 12 + 24)}
    assert result.cost_claimed["params"] == result.program.parameters_count()
    # every place of a token with a dropped expert is 2·12·12 MACs that are not done; the split has 8 samples
    found = observe(result.program, splits.calibration, 64).values()
    empty = sum(one.empty(path) for one in found for path in (FIRST, SECOND))
    assert empty > 0
    after = result.report["active_macs"]["after"]
    assert after == pytest.approx(macs(result.program) - empty * 288 / 8)
    assert after == pytest.approx(routed_cost(result.program, splits.calibration).active_macs)
    assert result.report["active_macs"]["before"] == macs(program)


def test_merged_and_rerouted_tokens_leave_no_place_empty(program, splits):
    dropped = extract(program, splits, threshold=0.12)
    for settings in ({"handle": "merge"}, {"reroute": True}):
        result = extract(program, splits, threshold=0.12, **settings)
        assert kept(result) == kept(dropped)
        assert result.program.parameters_count() == dropped.program.parameters_count()
        found = observe(result.program, splits.calibration, 64).values()
        assert sum(one.empty(path) for one in found for path in (FIRST, SECOND)) == 0
    groups = extract(program, splits, threshold=0.12, handle="merge").report["layers"][0]["groups"]
    assert sorted(e for group in groups for e in group) == [*range(20)]


def test_finetuning_distils_and_helps():
    program = moe_program(REGRESSION)
    recalibrate_batchnorm(program, taught_splits(program), 32)  # or training would meet other statistics
    splits, tune = taught_splits(program, train=32, calibration=8), TUNE.model_copy(update={"epochs": 6})
    result = extract(program, splits, finetune=tune, tasks=("depth",), threshold=0.5)
    losses = {stage: found["losses"]["depth"] for stage, found in result.report["calibration"].items()}
    assert losses["before"] < losses["finetuned"] < 0.8 * losses["extracted"]
    assert result.report["training"]["steps"] == 24


@pytest.mark.parametrize("gate", ["single", "conditioned"])
def test_every_kind_of_gate(splits, gate):
    program = moe_program(gate=gate)
    result = extract(program, splits, tasks=("semseg",), threshold=0.3)
    both = extract(program, splits, threshold=0.3)
    places = 8 * 17 * 2 * (1 if gate == "single" else 2)
    distinct = {id(one): one for one in observe(both.program, splits.calibration, 64).values()}.values()
    empty = sum(one.empty(path) for one in distinct for path in (FIRST, SECOND))
    assert 0 < empty < 2 * places
    assert both.report["active_macs"]["after"] == pytest.approx(macs(both.program) - 288 * empty / 8)
    batch = fetch(splits.calibration, range(8))
    exact = extract(program, splits, tasks=("semseg",), threshold=0)
    wanted = outputs(program, batch)["semseg"]
    assert torch.allclose(outputs(exact.program, batch)["semseg"], wanted, rtol=0, atol=1e-6)
    assert result.report["active_macs"]["after"] < both.report["active_macs"]["after"]


# ---- by budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_a_budget_is_met_by_what_hurts_least(program, splits, kind):
    whole = program.parameters_count() if kind == "params" else macs(program)
    budget = Budget(kind, whole * (0.75 if kind == "params" else 0.99))
    result = extract(program, splits, budget, by="budget")
    reached = result.program.parameters_count() if kind == "params" else result.report["active_macs"]["after"]
    assert result.missed is None
    assert reached <= budget.target
    assert 2 not in kept(result)[FIRST], "no token goes to it"
    if kind == "params":
        assert reached > budget.target - (2 * 12 * 12 + 24), "more went than the budget asks"
        # the expert that no token goes to costs nothing and went in the first step
        assert {"layer": FIRST, "expert": 2, "growth": {"depth": 0.0, "semseg": 0.0}} in result.artifacts["experts"][:5]
    by_usage = extract(program, splits, threshold=0.13)
    if kind == "params":
        assert by_usage.program.parameters_count() >= reached * 0.8
    assert all(len(experts) >= 2 for experts in kept(result).values())


def test_harm_is_the_growth_of_the_loss_without_that_expert(program, splits):
    """The first expert that went did least; what the pass measured is what the built network loses."""
    result = extract(program, splits, Budget("params", program.parameters_count() - 1), by="budget")
    counts = [(layer, len(experts)) for layer, experts in kept(result).items()]
    assert counts in ([(FIRST, 19), (SECOND, 20)], [(FIRST, 20), (SECOND, 19)])
    (gone,) = result.artifacts["experts"]
    criteria = Criteria(program.tasks)
    before = evaluate(program, criteria, splits.calibration).losses
    after = evaluate(result.program, criteria, splits.calibration).losses
    assert gone["growth"] == pytest.approx({t: after[t] / before[t] - 1 for t in before}, abs=1e-6)


def test_a_limit_brings_experts_back(splits):
    program = moe_program(REGRESSION)
    splits = taught_splits(program, train=4, calibration=8)
    budget = Budget("params", 0.8 * program.parameters_count())
    free = extract(program, splits, budget, by="budget")
    tight = extract(with_limit(program, depth=Limit(0.05, True)), splits, budget, by="budget")
    assert free.missed is None
    for report, within in ((free.report, False), (tight.report, True)):
        before, after = (report["calibration"][stage]["metrics"]["depth"] for stage in ("before", "extracted"))
        assert (after <= 1.05 * before) is within
    assert tight.report["broken_limits"] == []
    assert tight.missed.startswith(f"[budget] params = {budget.target:,.0f} missed, ")
    assert "experts had to come back for the tasks' limits" in tight.missed


def test_a_limit_may_ask_for_confidence(splits):
    """It is a little more than the change: kept by the metric, and not in most draws of eight samples."""
    program = moe_program(REGRESSION)
    splits = taught_splits(program, train=4, calibration=8)
    free = extract(program, splits, threshold=0.3).report["calibration"]
    before, after = (free[stage]["metrics"]["depth"] for stage in ("before", "extracted"))
    assert after > before
    for confidence, broken in ((None, 0), (0.999, 1)):
        limited = with_limit(program, depth=Limit(1.02 * (after - before), False, confidence))
        report = extract(limited, splits, threshold=0.3).report
        assert json.loads(json.dumps(report["calibration"]))["before"]["labelled"] == {"depth": 8, "semseg": 8}
        assert len(report["broken_limits"]) == broken


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "budget", "message"),
    [
        ({"tasks": ("dept",)}, None, "tasks: the network has no task 'dept'; did you mean 'depth'"),
        ({"by": "budget"}, None, 'extract by = "budget" needs a [budget]: params, memory or macs'),
        ({"by": "budget"}, Budget("latency", 1.0), "takes params, memory or macs, not latency"),
        ({"by": "budget", "reroute": True}, Budget("macs", 1.0), "[budget] macs: reroute = true saves none"),
        ({"by": "budget", "handle": "merge"}, Budget("macs", 1.0), '[budget] macs: handle = "merge" saves none'),
        ({"by": "budget"}, Budget("params", 5.0), "[budget] 5 parameters (0.0%) are fewer than extraction can reach"),
        ({"reroute": True, "keep_at_least": 1}, None, "sends a token to 2 experts; keep as many"),
    ],
)
def test_what_cannot_be_done_is_one_line(program, splits, config, budget, message):
    with pytest.raises(UserError) as caught:
        extract(program, splits, budget, **config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_contradict_each_other():
    with pytest.raises(UserError, match=r"tasks = \[\]: name at least one task"):
        ExtractConfig(tasks=())
    with pytest.raises(UserError, match='reroute = true with handle = "merge"'):
        ExtractConfig(reroute=True, handle="merge")


def test_a_network_without_experts_is_refused(splits):
    with pytest.raises(UserError, match="extract needs a mixture of experts, and Chain has none that mtlc knows"):
        extract(tiny_networks.chain_program(), splits)


def test_a_router_with_nan_is_named(program, splits):
    broken = program.clone()
    broken.module.backbone.blocks[3].mlp.router.weight.data[0, 0, 0] = math.nan
    with pytest.raises(UserError, match=f"layer '{SECOND}': its router gives scores that are NaN"):
        extract(broken, splits)


# ---- in the pipeline ------------------------------------------------------------------------------------------------


def test_passes_after_it_see_the_tasks_that_are_left(program, splits, tmp_path):
    limited = with_limit(program, depth=Limit(0.5, True))
    steps = [
        Step("extract", ExtractConfig(tasks=("semseg",), threshold=0.12), "[[passes]] 1"),
        Step("finetune", TUNE, "[[passes]] 2"),
        Step("calibrate", CalibrateConfig(samples=8, batch_size=4), "[[passes]] 3"),
    ]
    done = run_passes(limited, steps, splits=splits, criteria=Criteria(limited.tasks), out=tmp_path)
    assert [step.program.task_names for step in done] == [("semseg",)] * 3
    assert [entry.name for entry in done[-1].program.history] == ["extract", "finetune", "calibrate"]
    again = run_passes(limited, steps, splits=splits, criteria=Criteria(limited.tasks), out=tmp_path)
    assert all(step.cached for step in again)
    assert same_state(again[-1].program.module, done[-1].program.module)


def test_a_pass_that_promises_all_tasks_may_not_lose_one(program, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(Extract, "keeps_tasks", True)
    steps = [Step("extract", ExtractConfig(tasks=("depth",)), "[[passes]] 1")]
    with pytest.raises(VerificationError, match=r"\[\[passes\]\] 1: task 'semseg': its output is gone"):
        run_passes(program, steps, splits=splits, criteria=Criteria(program.tasks), out=tmp_path)


def test_macs_of_experts_that_run_for_empty_places_cannot_be_saved():
    source = ModelSource("testkit.foreign_network:mixtral")
    program = Program(source.build(), TASKS, {"image": torch.zeros(2, 3, 16, 16)}, source)
    with pytest.raises(UserError, match=r"\[budget\] macs: MixtralExperts does its work for empty places, too"):
        extract(program, taught_splits(program), Budget("macs", 0.5 * macs(program)), by="budget")


def test_a_network_that_cannot_drop_tasks_ignores_them(tmp_path):
    """A sparse block of transformers in a network of two tasks: extract, save, load, and what the report says."""
    source = ModelSource("testkit.foreign_network:mixtral", {"unused": [1, 4]})
    program = Program(source.build(), TASKS, {"image": torch.zeros(2, 3, 16, 16)}, source)
    splits = taught_splits(program, train=4, calibration=8)
    steps = [Step("extract", ExtractConfig(tasks=("depth",), threshold=0), "[[passes]] 1")]
    (done,) = run_passes(program, steps, splits=splits, criteria=Criteria(program.tasks), out=tmp_path)
    small = done.program
    (layer,) = moe_layers(small.module)
    assert (layer.present, layer.count, layer.rows) == ([0, 2, 3], 5, 3)
    assert (small.task_names, small.ignored_outputs) == (("depth",), ("semseg",))
    batch = fetch(splits.calibration, range(8))
    assert torch.allclose(outputs(small, batch)["depth"], outputs(program, batch)["depth"], rtol=0, atol=1e-6)
    assert done.report["notes"] == [
        "Foreign has no keep_tasks: the checkpoint still holds the heads of semseg; a bundle does not"
    ]
    with pytest.raises(UserError, match="reroute = true: layer 'sparse' has a router of its own"):
        Extract(ExtractConfig(reroute=True)).requires(program, context(program, splits))


def test_restricted_programs_and_criteria(program):
    both = Criteria(TASKS)
    assert both.restricted(("semseg", "depth")) is both
    assert [task.name for task in both.restricted(("semseg",)).tasks] == ["semseg"]
    assert program.restricted(("semseg", "depth")) is program
    assert program.restricted(["depth"]).module.tasks == ("depth",)
    assert program.module.tasks == ("depth", "semseg")
    with pytest.raises(UserError, match="no task to keep"):
        program.restricted([])
    with pytest.raises(UserError, match="no task 'semsge'; did you mean 'semseg'"):
        program.restricted(["semsge"])


# ---- from the job to the bundle -------------------------------------------------------------------------------------

MOE_JOB = JOB.replace("testkit.toy_job:net", "testkit.tiny_networks:moe").replace(
    'metric = "rmse"\n', 'metric = "rmse"\nmax_drop = "99%"\n'
)
EXTRACT = '[[passes]]\nname = "extract"\ntasks = ["depth"]\nthreshold = 0.3\n'


@pytest.mark.slow
def test_a_run_ends_with_the_tasks_that_stay(tmp_path):
    (tmp_path / "single.json").write_text('{"depth": 1.0, "semseg": 50}')
    shallow = MOE_JOB.replace('moe"\n', 'moe"\nargs = { blocks = 2 }\n')
    path = write(tmp_path, shallow, EXTRACT, '[budget]\nmemory = "90%"\n[report]\nbaselines = "single.json"\n')
    job = load_job(path)
    found = run_job(job, tmp_path / "out")
    assert (list(found.tasks), found.dropped_tasks, found.missed) == (["depth"], ["semseg"], [])
    change = 1 - found.tasks["depth"].after / found.tasks["depth"].before
    assert found.delta_m.vs_original == pytest.approx(100 * change)
    assert found.delta_m.vs_single_task == pytest.approx(100 * (1 - found.tasks["depth"].after))
    cost = found.cost
    assert cost.after.active_macs < cost.after.macs
    assert cost.before.macs == cost.before.active_macs == cost.after.macs  # of the task that is left
    assert cost.before.macs_of_all_tasks > cost.before.macs
    assert found.budget.target == pytest.approx(0.9 * cost.before.parameters)
    layers = {layer.name: layer for layer in found.layers}
    experts = layers[f"{FIRST}.experts"]
    assert experts.macs_before == experts.macs_after  # the places of every token, filled or not
    assert 0 < experts.params_after < experts.params_before
    assert found.experts.tasks == ["depth"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<section id="experts"' in page
    assert "semseg went." in page
    assert f"{FIRST}: " in run.text(found)
    (step,) = found.passes
    assert step.compared == found.experts.compared
    assert step.compared.tasks.keys() == step.compared.without_dropped_tasks.keys() == {"depth"}
    assert step.compared.layers.keys() == {FIRST}
    assert step.compared.largest < 1e-5
    assert f"extract, compared with the network whose removed parts are masked: {step.compared.line()}" in run.text(
        found
    )
    assert f"whose removed parts are masked: {step.compared.line()}." in page
    with Session(tmp_path / "out" / "bundle") as session:
        image = pictures().validation.batch(range(4))["image"]
        saved = Program.load(tmp_path / "out" / "program", job.source)
        answer = session.run(image.numpy())
        assert list(answer) == ["depth"]
        assert np.allclose(answer["depth"], outputs(saved, {"image": image})["depth"], atol=1e-4)


def test_a_plan_shows_the_experts_and_what_they_can_spare(tmp_path):
    result = plan_job(load_job(write(tmp_path, MOE_JOB, EXTRACT, '[budget]\nparams = "90%"\n')))
    layer = {"layer": FIRST, "experts": 6, "top_k": 2, "keeps": 2}
    assert result.experts.to_dict() == {"tasks": ["depth"], "layers": [layer, {**layer, "layer": SECOND}]}
    alone = moe_program().restricted(["depth"]).parameters_count()
    assert result.budget.least == alone - 8 * (2 * 12 * 12 + 24)
    assert result.budget.reachable
    assert "tasks that stay: depth" in plan.text(result)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('tasks = ["dept"]', "[[passes]] 1 (line 13) 'extract': tasks: the network has no task 'dept'"),
        ('by = "budget"', "'extract': by = \"budget\" needs a [budget]: params, memory or macs"),
    ],
)  # fmt: skip
def test_a_plan_refuses_what_the_pass_would(tmp_path, setting, message):
    section = f'[[passes]]\nname = "extract"\n{setting}\n'
    with pytest.raises(UserError) as caught:
        plan_job(load_job(write(tmp_path, MOE_JOB, section)))
    assert message in str(caught.value)


def test_a_job_whose_settings_are_wrong_names_the_key(tmp_path):
    with pytest.raises(UserError, match="'extract': tasks = \\[\\]: name at least one task to keep"):
        load_job(write(tmp_path, MOE_JOB, '[[passes]]\nname = "extract"\ntasks = []\n'))
