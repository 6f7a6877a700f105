"""The prune pass from end to end: budgets, limits, what it reports, and what a kill leaves behind."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from testkit import tiny_networks
from testkit.pruning import TUNE, context, run
from testkit.tiny_networks import same_state, taught_splits, with_limit

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.passes.prune import PruneConfig
from mtlc.compress.pruning import rounds
from mtlc.compress.training import recovery
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.hw.cost.count import workload
from mtlc.program.program import Program
from mtlc.tasks.task import Limit

RESNET = 3  # rounds


@pytest.fixture(scope="module")
def chain() -> Program:
    return tiny_networks.chain_program()


@pytest.fixture(scope="module")
def resnet() -> Program:
    return tiny_networks.resnet_program()


@pytest.fixture(scope="module")
def chain_splits(chain):
    return taught_splits(chain)


@pytest.fixture(scope="module")
def resnet_splits(resnet):
    return taught_splits(resnet, train=16, calibration=8)


def test_the_whole_cost_of_the_chain_by_hand(chain):
    """64 pixels: 3·16·9 + 16·24·9 + 24·4 multiply-accumulates each."""
    assert workload(chain).macs == 64 * (432 + 3456 + 96)


@pytest.mark.parametrize("method", ["recovered", "pagcp", "tilted", "uniform"])
@pytest.mark.parametrize(("kind", "share"), [("macs", 0.6), ("macs", 0.3), ("params", 0.5)])
def test_a_budget_is_met_and_the_claim_is_what_is_measured(tmp_path, chain, chain_splits, kind, share, method):
    given = context(chain, chain_splits, tmp_path, kind, share)
    result = run(chain, given, method=method)
    measured = {"macs": workload(result.program).macs, "params": result.program.parameters_count()}
    assert result.missed is None
    assert measured[kind] <= given.budget.target
    assert result.cost_claimed == {kind: measured[kind]}
    assert result.report["reached"] == measured[kind]
    widths = (result.program.module.stem[0].out_channels, result.program.module.body[0].out_channels)
    assert all(width % 8 == 0 for width in widths)
    assert widths < (16, 24)


def test_a_network_of_many_units_in_rounds(tmp_path, resnet, resnet_splits):
    given = context(resnet, resnet_splits, tmp_path, share=0.35)
    result = run(resnet, given)
    assert result.missed is None
    assert workload(result.program).macs <= given.budget.target
    assert result.cost_claimed == {"macs": workload(result.program).macs}
    rounds = result.report["rounds"]
    assert [a["kept"] for a in rounds] == [True] * RESNET
    costs = [a["cost"] for a in rounds]
    assert [c["after"] for c in costs[:-1]] == [c["before"] for c in costs[1:]]
    assert all(c["after"] <= a["target"] for c, a in zip(costs, rounds, strict=True))
    for attempt in rounds:
        losses = attempt["losses"]
        assert losses["oracle"] == pytest.approx(losses["pruned"], rel=1e-4)
        assert all(losses["oracle"][t] <= 5 * losses["start"][t] for t in losses["start"])
    assert set(result.artifacts["sensitivity"]) == {"units", "ratios", "tasks", "growth"}
    entry = result.program.history[-1]
    assert (entry.name, len(entry.surgery), entry.config["round_to"]) == ("prune", RESNET, 8)
    left = {item["name"] for item in result.report["left_alone"]}
    assert left == {"decoders.semseg.predict"}  # depth's has one channel


def test_the_outputs_of_heads_keep_their_shapes_and_the_input_program_its_weights(tmp_path, chain, chain_splits):
    before = chain.clone()
    result = run(chain, context(chain, chain_splits, tmp_path))
    assert same_state(chain.module, before.module)
    assert chain.history == ()
    image = tiny_networks.images(3, 8, 5)
    outputs = result.program.outputs({"image": image})
    assert {t: tuple(o.shape) for t, o in outputs.items()} == {"depth": (3, 1, 8, 8), "semseg": (3, 3, 8, 8)}
    assert result.program.module.depth.out_channels == 1
    assert result.program.module.semseg.weight.shape[:1] == (3,)


def test_what_is_saved_replays_bit_for_bit(tmp_path, resnet, resnet_splits):
    result = run(resnet, context(resnet, resnet_splits, tmp_path / "work", share=0.5))
    result.program.save(tmp_path / "saved")
    loaded = Program.load(tmp_path / "saved", resnet.source)
    assert same_state(loaded.module, result.program.module)
    image = tiny_networks.images(3, 32, 5)
    with torch.no_grad():
        ours, theirs = result.program.outputs({"image": image}), loaded.outputs({"image": image})
    assert all(torch.equal(ours[t], theirs[t]) for t in ours)


def test_the_race_takes_its_share_and_the_winner_goes_on_with_the_rest(tmp_path, resnet, resnet_splits):
    """80 epochs of 16 samples in batches of 8 are 160 steps; half of them are the race's."""
    tune = TUNE.model_copy(update={"epochs": 80})
    given = context(resnet, resnet_splits, tmp_path, share=0.5)
    result = run(resnet, given, method="recovered", race=0.5, rounds=1, finetune=tune)
    (attempt,) = result.report["rounds"]
    raced = sum(one["samples"] for one in attempt["candidates"])
    assert raced == pytest.approx(0.5 * 80 * 16, abs=8 * len(attempt["candidates"]))
    assert attempt["samples"] == pytest.approx(80 * 16, abs=8)
    assert attempt["training"]["samples"] == attempt["samples"] - raced
    scores = {one["name"]: one["heats"][-1]["score"] for one in attempt["candidates"]}
    longest = max(len(one["heats"]) for one in attempt["candidates"])
    finalists = {one["name"] for one in attempt["candidates"] if len(one["heats"]) == longest}
    assert attempt["allocation"] == min(finalists, key=scores.__getitem__)


class Killed(BaseException):
    """As a signal would: nothing in the code catches it."""


@pytest.mark.parametrize("file", ["rounds.json", "round-1/model.safetensors", "round-1/program.json"])
def test_damaged_rounds_are_told_and_begun_anew(tmp_path, monkeypatch, chain, chain_splits, file):
    given = context(chain, chain_splits, tmp_path / "whole", share=0.4)
    whole = run(chain, given)
    saves = rounds.Rounds._save

    def dies(self) -> None:
        saves(self)
        raise Killed

    monkeypatch.setattr(rounds.Rounds, "_save", dies)
    with pytest.raises(Killed):
        run(chain, context(chain, chain_splits, tmp_path / "killed", share=0.4))
    monkeypatch.undo()
    path = tmp_path / "killed" / file
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    lines: list[str] = []
    again = run(chain, context(chain, chain_splits, tmp_path / "killed", share=0.4, lines=lines))
    told = path if file == "rounds.json" else path.parent
    assert lines[0] == f"{told}: damaged (its SHA-256 is not what was written); beginning anew"
    assert same_state(whole.program.module, again.program.module)


def _without_times(rounds: list[dict]) -> list[dict]:
    """Rounds as reports have them, without what a second run takes another time for."""
    kept = [{key: value for key, value in one.items() if key != "effort"} for one in rounds]
    return [one | {"training": {k: v for k, v in (one["training"] or {}).items() if k != "seconds"}} for one in kept]


@pytest.mark.parametrize("where", ["between rounds", pytest.param("in fine-tuning", marks=pytest.mark.slow)])
def test_a_killed_run_gives_the_same_network_bit_for_bit(tmp_path, monkeypatch, resnet, resnet_splits, where):
    whole = run(resnet, context(resnet, resnet_splits, tmp_path / "whole", share=0.45), method="recovered")
    assert len(whole.report["rounds"]) >= 2
    calls = []

    def dies(function):
        def wrapped(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    if where == "between rounds":
        monkeypatch.setattr(rounds, "propose", dies(rounds.propose))
    else:
        monkeypatch.setattr(recovery, "train", dies(recovery.train))
    with pytest.raises(Killed):
        run(resnet, context(resnet, resnet_splits, tmp_path / "killed", share=0.45), method="recovered")
    monkeypatch.undo()
    lines = []
    again = run(
        resnet, context(resnet, resnet_splits, tmp_path / "killed", share=0.45, lines=lines), method="recovered"
    )
    assert lines[0] == "prune: goes on after round 1"
    assert same_state(whole.program.module, again.program.module)
    assert [e.surgery for e in whole.program.history] == [e.surgery for e in again.program.history]
    ours, theirs = _without_times(again.report["rounds"]), _without_times(whole.report["rounds"])
    assert ours == theirs
    assert again.artifacts == whole.artifacts


def test_a_limit_of_zero_stops_the_task_and_the_result_keeps_it(tmp_path, chain, chain_splits):
    """Nothing but a lucky fine-tuning keeps a metric whole: with none, every attempt fails and the network stays."""
    strict = with_limit(chain, depth=Limit(0.0, True))
    given = context(strict, chain_splits, tmp_path, share=0.3)
    result = run(strict, given, finetune=None, recalibrate=0)
    assert result.missed is not None
    assert result.missed.startswith("[budget] macs = 76,493 missed, 254,976 reached: ")
    assert "task 'depth' stopped it: rmse" in result.missed
    assert "past max_drop = 0%" in result.missed
    assert re.search(r"layer '(stem\.0|body\.0)'$", result.missed)
    assert len(result.report["rounds"]) == 3
    assert not any(a["kept"] for a in result.report["rounds"])
    assert same_state(result.program.module, chain.module)
    criteria = Criteria(strict.tasks)
    before = evaluate(strict, criteria, chain_splits.calibration).metrics["depth"]
    after = evaluate(result.program, criteria, chain_splits.calibration).metrics["depth"]
    assert strict.tasks[0].max_drop.allows(before, after, criteria.higher_is_better["depth"])
    targets = [a["target"] for a in result.report["rounds"]]
    assert targets == sorted(targets)  # half the cut, and half of that


def test_a_limit_that_is_met_does_not_stop_anything(tmp_path, chain, chain_splits):
    loose = with_limit(chain, depth=Limit(20.0, True), semseg=Limit(100.0, False))
    result = run(loose, context(loose, chain_splits, tmp_path))
    assert result.missed is None
    assert result.program.tasks == loose.tasks


def test_a_tolerance_that_allows_nothing_names_who_stopped_it(tmp_path, chain, chain_splits):
    given = context(chain, chain_splits, tmp_path)
    result = run(chain, given, method="pagcp", initial_rate=1e-6, initial_thres=1 + 2.5e-6, finetune=None)
    assert "no layer can lose more channels within the tolerance" in result.missed
    assert re.search(
        r"task '(depth|semseg)' stopped \d+ of \d+ trials, the last at layer '(stem|body)\.0'", result.missed
    )
    assert same_state(result.program.module, chain.module)


def test_a_budget_that_is_met_already_changes_nothing(tmp_path, chain, chain_splits):
    lines = []
    result = run(chain, context(chain, chain_splits, tmp_path, share=1.0, lines=lines))
    assert (result.missed, result.cost_claimed, result.report["rounds"]) == (None, {}, [])
    assert lines == ["prune: the network is within its budget already (macs 254,976)"]
    assert same_state(result.program.module, chain.module)
    assert result.program.history[-1].surgery == []


def test_a_budget_under_the_floor(tmp_path, chain, chain_splits):
    """All at 8 channels: 64 · (3·8·9 + 8·8·9 + 8·4) = 52,736 of 254,976."""
    with pytest.raises(UserError, match=r"macs = 50,995 \(20.0%\) is under what pruning can reach: 52,736 \(20.7%\)"):
        run(chain, context(chain, chain_splits, tmp_path, share=0.2))
    with pytest.raises(UserError, match=r"no layer of the network can lose channels at round_to = 32"):
        run(chain, context(chain, chain_splits, tmp_path), round_to=32)
    with pytest.raises(UserError, match="needs a \\[budget\\]"):
        run(chain, replace(context(chain, chain_splits, tmp_path), budget=None))


def test_the_floor_can_be_reached(tmp_path, chain, chain_splits):
    result = run(chain, context(chain, chain_splits, tmp_path, share=0.207), initial_thres=1000.0, finetune=None)
    assert workload(result.program).macs == 52_736
    assert result.missed is None


def test_settings_without_a_solution():
    with pytest.raises(UserError, match=r"initial_thres = 1\.05 must be above"):
        PruneConfig(initial_rate=0.06, initial_thres=1.05)
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        PruneConfig(initial_treshold=3)


class ByMacs:
    """A prediction of milliseconds that knows MACs only."""

    kind = "latency"

    def __init__(self, program, units, measured_ms, log):
        self._costs, self._ms = ChannelCosts(program, units), measured_ms

    def cost(self, removed):
        return self._ms * self._costs.cost(removed) / self._costs.cost({})


def test_latency_is_reached_by_measuring_after_every_round(tmp_path, monkeypatch, chain, chain_splits):
    """Milliseconds that follow the MACs with a constant part that the prediction does not know: more rounds."""
    whole, asked = workload(chain).macs, []

    def latency(program: Program, device: str) -> float:
        asked.append(device)
        return 0.2 + 0.8 * workload(program).macs / whole

    monkeypatch.setattr("mtlc.compress.pruning.rounds.latency_ms", latency)
    monkeypatch.setattr("mtlc.compress.pruning.rounds.latency_costs", ByMacs)
    given = context(chain, chain_splits, tmp_path, "latency", 0.5)
    result = run(chain, given)
    assert result.missed is None
    assert result.cost_claimed == {}
    assert result.report["reached"] == latency(result.program, "") <= 0.5
    assert workload(result.program).macs <= (0.5 - 0.2) / 0.8 * whole
    assert set(asked[:-1]) == {"local-cpu"}
    assert 2 <= len(result.report["rounds"]) <= 3


def test_latency_that_never_falls_ends(tmp_path, monkeypatch, chain, chain_splits):
    monkeypatch.setattr("mtlc.compress.pruning.rounds.latency_ms", lambda program, device: 1.0)
    monkeypatch.setattr("mtlc.compress.pruning.rounds.latency_costs", ByMacs)
    result = run(chain, context(chain, chain_splits, tmp_path, "latency", 0.5), initial_thres=1e4, finetune=None)
    assert result.missed.startswith("[budget] latency = 0.5 missed, 1 reached")


def test_the_report_is_strict_json(tmp_path, chain, chain_splits):
    result = run(chain, context(chain, chain_splits, tmp_path))
    json.dumps([result.report, result.artifacts], allow_nan=False)


def test_ignored_layers_keep_their_channels(tmp_path, chain, chain_splits):
    result = run(chain, context(chain, chain_splits, tmp_path, share=0.71), initial_thres=1e3, ignore=("stem.*",))
    assert result.program.module.stem[0].out_channels == 16
    assert result.program.module.body[0].out_channels == 16
    assert {"name": "stem.0", "channels": 16, "why": "ignored by the job"} in result.report["left_alone"]


def test_the_sensitivity_map_is_the_growth_of_the_pruned_networks_losses(tmp_path, chain, chain_splits):
    result = run(
        chain,
        context(chain, chain_splits, tmp_path),
        finetune=None,
        reconstruct=False,
        rank="norm",
        sensitivity=(0.25, 0.75),
    )
    found = result.artifacts["sensitivity"]
    assert (found["tasks"], found["ratios"]) == (["depth", "semseg"], [0.25, 0.75])
    assert found["units"] == [{"name": "body.0", "channels": 24}, {"name": "stem.0", "channels": 16}]
    criteria, calibration = Criteria(chain.tasks), chain_splits.calibration
    original = evaluate(chain, criteria, calibration).losses
    for unit, rows in zip(found["units"], found["growth"], strict=True):
        norms = chain.module.get_submodule(unit["name"]).weight.abs().mean((1, 2, 3))
        for ratio, row in zip(found["ratios"], rows, strict=True):
            pruned = chain.clone()
            example = pruned.example_inputs()
            groups = ChannelGroups(pruned.module, example)
            groups.prune({unit["name"]: norms.argsort()[: int(ratio * unit["channels"])].tolist()})
            losses = evaluate(pruned, criteria, calibration).losses
            assert row == pytest.approx([losses[t] / original[t] - 1 for t in found["tasks"]], rel=1e-4)
    assert run(chain, context(chain, chain_splits, tmp_path / "2"), finetune=None, sensitivity=()).artifacts == {}
