"""The comparison of pruners: one ratio meets the MACs, all train on as many samples, what is there is not run again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from testkit import toy_job

from benchmarks.pruning import pruners, pruning_cells
from benchmarks.pruning.collect_pruners import collect
from benchmarks.pruning.draw_pruners import draw, lower_edge
from benchmarks.pruning.equal_ratio import above_threshold, kept_within
from benchmarks.pruning.paired_test import paired
from benchmarks.pruning.pruning_cells import METHODS, Cell, finetuning, run_cell
from benchmarks.pruning.pruning_subjects import SUBJECTS, Subject, dense
from benchmarks.pruning.simple_pruners import SIMPLE, prune_simply, start_anew
from benchmarks.pruning.sparsity_training import SparsityTrainer
from benchmarks.tables.pruning_tables import comparison
from mtlc.compress.training.trainer import TrainConfig, Trainer
from mtlc.errors import UserError
from mtlc.hw.cost.count import macs
from mtlc.program.program import Program

WIDE = toy_job.JOB.replace(':net"\n', ':net"\nargs = { width = 24 }\n')
SAMPLES = 32


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """The toy job with 24 channels, trained for one epoch of 32 pictures, fine-tuned for two."""
    job = toy_job.write(tmp_path / "job", WIDE)
    training = toy_job.write(tmp_path / "training", WIDE, "[train]\nepochs = 1\nbatch_size = 8\n")
    made = Subject("toy", job, training, True, 2.0, (0, 1), (0.5, 0.2), tuned_at=0.5, ablated=(0.5,))
    monkeypatch.setitem(SUBJECTS, "toy", made)
    monkeypatch.setattr(pruning_cells, "SEEN_SAMPLES", 16)
    return made


class Summed:
    """A cost by hand: as many MACs as channels, of one unit of 4 and one of 8, and 2 for the rest."""

    def cost(self, removed):
        return 14 - sum(len(channels) for channels in removed.values())


def test_the_ratio_is_the_largest_network_within_the_target_and_its_rest_goes_to_who_lost_most():
    allowed = {"a": [1, 2, 3, 4], "b": [2, 4, 6, 8]}

    def wanted(gone):
        return {"a": 4 * (1 - gone), "b": 8 * (1 - gone)}

    # 3 of `a` and 6 of `b` cost 11; 2 and 4 cost 8. At 10, what these leave is enough for one of them: `a` lost as
    # large a share as `b` and stands first, and then `b` has no room for two more.
    assert kept_within(Summed(), allowed, wanted, 11) == {"a": 3, "b": 6}
    assert kept_within(Summed(), allowed, wanted, 8) == {"a": 2, "b": 4}
    assert kept_within(Summed(), allowed, wanted, 10) == {"a": 3, "b": 4}
    with pytest.raises(UserError, match="5 with every unit at its narrowest"):
        kept_within(Summed(), allowed, wanted, 4)


def test_one_threshold_takes_the_lowest_scores_of_all_units():
    scores = {"a": torch.tensor([0.1, 0.2, 0.9, 0.8]), "b": torch.tensor([0.5, 0.6, 0.7, 0.05])}
    wanted = above_threshold(scores)
    assert wanted(0.0) == {"a": 4, "b": 4}
    assert wanted(3 / 8) == {"a": 2, "b": 3}
    assert wanted(1.0) == {"a": 1, "b": 0}


@pytest.mark.parametrize("name", SIMPLE)
def test_a_simple_pruner_meets_the_target_with_multiples_of_8(subject, tmp_path, name):
    start = dense(subject, 0, tmp_path / "work")
    whole = macs(start.program)
    # A pixel costs 27·s + 9·s·b + 4·b with s channels of the stem and b of the body: 5,928 with 24 each.
    assert whole == 256 * 5928
    pruned = prune_simply(name, start.program, start.splits, start.criteria, 0.75 * whole, 0, 8)
    kept = pruned.history[-1].report["kept"]
    assert set(kept.values()) <= {8, 16, 24}
    stem, body = kept["stem.0"], kept["body.0"]
    assert macs(pruned) == 256 * (27 * stem + 9 * stem * body + 4 * body) <= 0.75 * whole
    if name in ("uniform", "random"):  # 16 and 16 leave 28 %: enough for 24 of the body, and then not for the stem
        assert (stem, body) == (16, 24)
    assert pruned.module.depth.out_channels == 1
    pruned.save(tmp_path / "saved")
    again = Program.load(tmp_path / "saved", start.program.source)
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.module(image)["depth"], pruned.module.eval()(image)["depth"])


def test_starting_anew_keeps_the_structure_and_no_weight(subject, tmp_path):
    start = dense(subject, 0, tmp_path / "work")
    pruned = prune_simply("uniform", start.program, start.splits, start.criteria, 0.5 * macs(start.program), 0, 8)
    before = {name: p.clone() for name, p in pruned.module.named_parameters()}
    start_anew(pruned, 0)
    after = dict(pruned.module.named_parameters())
    assert {name: p.shape for name, p in after.items()} == {name: p.shape for name, p in before.items()}
    assert not any(torch.equal(after[name], p) for name, p in before.items() if p.ndim > 1)
    start_anew(pruned, 0)
    assert torch.equal(pruned.module.stem[0].weight, after["stem.0.weight"])


def test_sparsity_training_pulls_the_weakest_channels_most(subject, tmp_path):
    start = dense(subject, 0, tmp_path / "work")
    with torch.no_grad():
        start.program.module.stem[0].weight[3] *= 0.01
    config = TrainConfig(epochs=1, batch_size=8)
    plain = Trainer(start.program.clone(), start.splits, start.criteria, config, 0, None, None)
    sparse = SparsityTrainer(start.program.clone(), start.splits, start.criteria, config, 0, None, None)
    for trainer in (plain, sparse):
        trainer.first_step()
    pull = sparse.module.stem[0].weight.grad - plain.module.stem[0].weight.grad
    weight = start.program.module.stem[0].weight.detach()
    # The pull is 5e-4 · γ · w, with γ from 1 to 16. Steps are clipped only where gradients are long; these are short.
    strength = (pull / weight / 5e-4).flatten(1).median(1).values
    assert strength.argmax() == 3
    assert float(strength[3]) == pytest.approx(16, rel=0.05)
    assert float(strength.min()) == pytest.approx(1, rel=0.05)


def test_every_method_trains_on_as_many_samples(subject, tmp_path):
    results = {}
    for method in METHODS:
        cell = Cell("toy", method, 0.5, 0, "new", 1e-3)
        results[method] = run_cell(cell, subject, tmp_path / "work")
    allowed = 2 * SAMPLES
    samples = {method: result["samples"] for method, result in results.items()}
    assert results["recovered"]["race"]["chosen"] in [one["name"] for one in results["recovered"]["race"]["candidates"]]
    assert samples["group-norm"]["choosing"] > 0
    batch = 32  # of the fine-tuning: what is over or under one is rounded to whole batches
    for method in METHODS:
        whole = samples[method]["choosing"] + samples[method]["training"] + samples[method]["dense"]
        assert abs(whole - SAMPLES - allowed) <= batch
    assert samples["scratch"]["dense"] == 0
    assert samples["scratch"]["training"] == SAMPLES + allowed
    assert results["scratch"]["channels"] == results["uniform"]["channels"]
    assert all(result["macs_share"] <= 0.5 for result in results.values())
    assert all(result["missed"] is None for result in results.values())


def test_a_seed_has_a_network_of_its_own_and_the_old_recipe_is_what_it_was(subject, tmp_path):
    one, other = (dense(subject, seed, tmp_path / "work").program.module for seed in (0, 1))
    assert not torch.equal(one.stem[0].weight, other.stem[0].weight)
    old = finetuning("old", 7.0, 5e-3)
    assert (old.epochs, old.lr, old.distill, old.ema) == (2.0, 1e-3, 0.5, 0.998)
    new = finetuning("new", 7.0, 5e-3)
    assert (new.epochs, new.lr) == (7.0, 5e-3)


def test_what_is_there_is_not_run_again(subject, tmp_path, monkeypatch):
    cell, work = Cell("toy", "uniform", 0.5, 0, "new", 1e-3), tmp_path / "work"
    first = run_cell(cell, subject, work, tmp_path / "saved")
    source = dense(subject, 0, work).program.source
    assert Program.load(tmp_path / "saved" / "uniform-0-0.5", source).parameters_count() == first["parameters"]
    monkeypatch.setattr(pruning_cells, "_run", lambda *_: pytest.fail("ran again"))
    assert run_cell(cell, subject, work) == first
    assert {"revision", "machine", "versions", "seconds", "training"} <= set(first)
    cell.path(work).write_text("{")
    with pytest.raises(UserError, match="delete it and run the cell again"):
        run_cell(cell, subject, work)


def test_the_better_rate_is_taken_and_the_lower_of_two_equal_ones(subject, tmp_path):
    for rate, delta in ((1e-3, -2.0), (3e-3, -1.0)):
        write_result(tmp_path, "uniform", 0.5, 0, delta, rate=rate)
        write_result(tmp_path, "taylor", 0.5, 0, -1.0, rate=rate)
    assert pruners.tuned_rate(subject, "uniform", tmp_path) == 3e-3
    assert pruners.tuned_rate(subject, "taylor", tmp_path) == 1e-3
    with pytest.raises(UserError, match="no result for every rate"):
        pruners.tuned_rate(subject, "random", tmp_path)


def test_a_method_may_be_tried_with_rates_of_its_own(subject, tmp_path):
    own = replace(subject, own_rates={"scratch": (5e-3,)})
    assert [cell.rate for cell in pruners.tuning_cells(own, ["uniform", "scratch"])] == [1e-3, 3e-3, 5e-3]
    write_result(tmp_path, "scratch", 0.5, 0, -1.0, rate=5e-3)
    assert pruners.tuned_rate(own, "scratch", tmp_path) == 5e-3
    with pytest.raises(UserError, match="no result for every rate"):
        pruners.tuned_rate(subject, "scratch", tmp_path)


def test_the_grid_is_all_of_new_and_the_ablation_of_old(subject):
    asked = pruners.wanted(subject, METHODS, subject.shares, subject.seeds, ("new", "old"))
    new = [cell for cell in asked if cell[3] == "new"]
    assert len(new) == 10 * 2 * 2
    assert [cell for cell in asked if cell[3] == "old"] == [
        (method, 0.5, seed, "old") for seed in (0, 1) for method in ("recovered", "pagcp", "uniform")
    ]
    assert [seed for _, _, seed, _ in asked] == sorted(seed for _, _, seed, _ in asked)


def test_cells_of_other_settings_are_refused(subject, tmp_path):
    pruners.check_settings(subject, tmp_path)
    pruners.check_settings(replace(subject, seeds=(0, 1, 2)), tmp_path)
    with pytest.raises(UserError, match=r"epochs = 2\.0, not 3\.0"):
        pruners.check_settings(replace(subject, epochs=3.0), tmp_path)


def test_a_paired_test_by_hand():
    found = paired({0: 1.0, 1: 2.0, 2: 3.0, 7: 9.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert found is not None
    # t = 2 / (1/√3) with two degrees of freedom: p = 1 − t/√(t² + 2).
    assert found["p"] == pytest.approx(1 - 12**0.5 / 14**0.5)
    assert (found["difference_mean"], found["difference_std"], found["seeds"]) == (2.0, 1.0, [0, 1, 2])
    assert (found["wins"], found["losses"]) == (3, 0)
    assert paired({0: 1.0}, {1: 1.0}) is None
    alone = paired({0: 1.0}, {0: 2.0})
    assert alone is not None
    assert (alone["p"], alone["difference_std"], alone["losses"]) == (None, None, 1)


def write_result(work: Path, method: str, share: float, seed: int, delta: float, **other) -> None:
    """The result of a cell as `run_cell` writes it, with the Δm that is given."""
    cell = Cell("toy", method, share, seed, other.get("recipe", "new"), other.get("rate", 1e-3))
    result = {
        "subject": "toy", "method": method, "share": share, "seed": seed, "recipe": cell.recipe, "rate": cell.rate,
        "round_to": 8, "macs_share": share, "missed": None, "delta_m": delta, "delta_m_calibration": delta,
        "delta_m_before_finetuning": -50.0, "dense": {"metrics": {"depth": 1.0}, "macs": 100},
        "samples": {"allowed": 80, "choosing": 0, "training": 80, "dense": 32}, "seconds": {"choosing": 1, "all": 36},
        "training": {"epochs": 2.0, "lr": cell.rate, "distill": 0.5}, "revision": "abc",
        "machine": {"cpu": "a CPU", "cores": 2, "machine": "x86_64"}, "versions": {"torch": "2"},
    }  # fmt: skip
    path = cell.path(work)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


@pytest.fixture
def result(subject, tmp_path) -> dict:
    """At −50 % mtlc is ahead by 1.0 and 2.0; at −80 % uniform is, which mtlc has only one seed of."""
    work = tmp_path / "cells"
    pruners.check_settings(subject, work)
    deltas = {"recovered": (-1.0, -2.0), "uniform": (-2.0, -4.0), "taylor": (-9.0, -9.5)}
    for method, by_seed in deltas.items():
        for seed, delta in enumerate(by_seed):
            write_result(work, method, 0.5, seed, delta)
        write_result(work, method, 0.5, 0, -99.0, rate=3e-3)
        write_result(work, method, 0.2, 0, -20.0 if method == "recovered" else -15.0)
    write_result(work, "tilted", 0.5, 0, -2.5)
    write_result(work, "tilted", 0.5, 0, -99.0, rate=3e-3)
    write_result(work, "uniform", 0.5, 0, -6.0, recipe="old")
    return collect(work, [subject])


def test_collecting_gives_means_spreads_tests_and_the_ablation(result):
    one = result["subjects"]["toy"]
    assert one["tuning"]["taken"] == {"recovered": 1e-3, "tilted": 1e-3, "uniform": 1e-3, "taylor": 1e-3}
    entry = one["table"]["uniform"]["-50%"]
    assert (entry["delta_m_mean"], entry["delta_m_std"], entry["seeds"]) == (-3.0, pytest.approx(2**0.5), [0, 1])
    assert one["best"]["-50%"]["method"] == "recovered"
    assert one["best"]["-50%"]["simple"] == "uniform"
    tests = one["best"]["-50%"]["against_simple"]
    assert (one["best"]["-50%"]["ours"], list(tests)) == ("recovered", ["recovered", "tilted"])
    assert (tests["recovered"]["difference_mean"], tests["recovered"]["wins"]) == (1.5, 2)
    # Of one seed, on which uniform has -2: its lead of 0.5 counts, not how its -2.5 stands beside the others' means.
    assert (tests["tilted"]["difference_mean"], tests["tilted"]["seeds"]) == (-0.5, [0])
    assert one["best"]["-80%"]["method"] == "uniform"
    assert list(one["ablation"]) == ["-50%"]
    assert one["ablation"]["-50%"]["uniform"]["old"]["delta_m"] == [-6.0]
    assert one["ablation"]["-50%"]["uniform"]["new"]["delta_m"] == [-2.0]
    assert one["hours"] == pytest.approx(15 * 36 / 3600)
    assert result["revisions"] == ["abc"]


def test_the_first_line_names_who_is_ahead_also_where_it_is_a_simple_way(result):
    lines = comparison(result).splitlines()
    assert lines[0] == (
        "**toy**: ahead at -50% recovered (by 1.50 points before uniform, 2 seeds, within the spread), "
        "at -80% uniform, a simple way (by 5.00 points before recovered, 1 seed)."
    )
    assert "| uniform | 1–2 | 0.001 | -3.00 ± 1.41 (50.0%) | -15.00 (20.0%) |" in lines
    assert any(line.startswith("| -50% | recovered against uniform | +1.50 ± 0.71 | 2, 0 of 2") for line in lines)
    assert "| -50% | uniform | 1 | -6.00 | -2.00 |" in lines


def test_a_rate_that_was_not_tried_is_told(subject, tmp_path):
    pruners.check_settings(subject, tmp_path)
    write_result(tmp_path, "uniform", 0.5, 0, -2.0)
    write_result(tmp_path, "taylor", 0.2, 0, -2.0)  # not at the cut that rates are tried at
    found = collect(tmp_path, [subject])
    assert found["subjects"]["toy"]["tuning"]["taken"] == {"uniform": 1e-3}
    assert "| uniform | 1 | 0.001 (0.003 not tried) | -2.00 (50.0%) |" in comparison(found).splitlines()


def test_a_lead_outside_the_spread_says_so(subject, tmp_path):
    pruners.check_settings(subject, tmp_path)
    for seed in range(3):
        write_result(tmp_path, "pagcp", 0.5, seed, -1.0 + 0.01 * seed)
        write_result(tmp_path, "uniform", 0.5, seed, -2.0)
    write_result(tmp_path, "pagcp", 0.5, 0, -99.0, rate=3e-3)
    write_result(tmp_path, "uniform", 0.5, 0, -99.0, rate=3e-3)
    line = comparison(collect(tmp_path, [subject])).splitlines()[0]
    assert line == "**toy**: ahead at -50% pagcp (by 1.01 points before uniform, 3 seeds, outside the spread)."


def test_the_picture_shows_four_methods_whole(result, tmp_path):
    draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    entry = {"delta_m_mean": 0.0, "delta_m_std": None}
    table = {str(n): {"-50%": entry | {"delta_m_mean": -float(n)}} for n in (1, 2, 3, 4, 50)}
    assert lower_edge(table) == pytest.approx(-4.6)
    table["a little further down"] = {"-50%": entry | {"delta_m_mean": -10.0}}
    assert lower_edge(table) == pytest.approx(-11.5)
    with pytest.raises(UserError, match="of an earlier form"):
        draw({"table": {}}, tmp_path / "other.png")


def test_nothing_to_collect_is_told(subject, tmp_path):
    with pytest.raises(UserError, match="no finished cells"):
        collect(tmp_path, [subject])


def test_the_command_tunes_runs_and_goes_on(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(pruners, "SUBJECTS", {"toy": subject})
    options = ["--subject", "toy", "--method", "uniform", "--cut", "50%", "--seed", "1", "--work", str(tmp_path / "w")]
    command = pruners.main
    next(p for p in command.params if p.name == "names").type.choices = ["toy"]
    first = CliRunner().invoke(command, options)
    assert first.exit_code == 0, first.output
    cells = sorted(path.stem for path in (tmp_path / "w" / "toy" / "cells").glob("*.json"))
    assert len(cells) == 4
    assert {"uniform-0.5-0-new-0.001", "uniform-0.5-0-new-0.003", "uniform-0.5-1-old-0.001"} < set(cells)
    monkeypatch.setattr(pruning_cells, "_run", lambda *_: pytest.fail("ran again"))
    again = CliRunner().invoke(command, options)
    assert again.exit_code == 0, again.output
    assert "2 of 2 cells are there" in again.output
    wrong = CliRunner().invoke(command, ["--cut", "all"])
    assert "such as 60%" in wrong.output
