"""What was built is compared with the original whose removed parts are masked, and a difference stops the pass."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from testkit.tiny_networks import TASKS, chain_program, moe_program, taught_splits
from torch import nn

from mtlc.compress.compare_with_masked import compare_with_masked, difference, unmasked
from mtlc.compress.pass_interface import Budget
from mtlc.compress.passes.extract import ExtractConfig
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.pruning import rounds
from mtlc.errors import UserError, VerificationError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import fetch
from mtlc.moe import extraction, foreign_experts
from mtlc.moe.foreign_experts import Cut
from mtlc.moe.layers import dropping, moe_layers, observing
from mtlc.program.program import ModelSource, Program
from mtlc.zoo.m3vit import M3ViT


def foreign(bank: str, **kwargs) -> Program:
    source = ModelSource("testkit.expert_traits:network", {"bank": bank, **kwargs})
    return Program(source.build(), TASKS, {"image": torch.zeros(2, 3, 16, 16)}, source)


def run(program: Program, folder: Path, config, budget: Budget | None = None):
    splits = taught_splits(program, train=4, calibration=8)
    name = "prune" if isinstance(config, PruneConfig) else "extract"
    (done,) = run_passes(
        program, [Step(name, config, "[[passes]] 1")], splits=splits, criteria=Criteria(program.tasks), out=folder,
        budget=budget,
    )  # fmt: skip
    return done, fetch(splits.calibration, range(8))


def outputs(program: Program, batch) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return program.outputs(batch)


def largest(one, other) -> float:
    return max(float((one[task] - other[task]).abs().max()) for task in other)


# ---- extract --------------------------------------------------------------------------------------------------------

BANKS = ["Ours", "Bank", "Buffer", "Listed", "Width", "Counted", "WeightedInput", "Renormalised", "Residual"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bank", BANKS)
def test_without_a_threshold_experts_of_anothers_code_move_no_output(bank, shared, tmp_path):
    program = foreign(bank, unused=[1, 4], shared=shared)
    done, batch = run(program, tmp_path, ExtractConfig(threshold=0))
    assert all(not {1, 4} & set(layer["kept"]) for layer in done.report["layers"])
    assert largest(outputs(done.program, batch), outputs(program, batch)) < 1e-5
    compared = done.report["compared"]
    assert compared["samples"] == 4
    assert compared["tasks"].keys() == compared["exact"].keys() == {"depth", "semseg"}
    assert list(compared["layers"]) == (["sparse.a", "sparse.b"] if shared else ["sparse"])
    assert max(*compared["tasks"].values(), *compared["layers"].values(), *compared["exact"].values()) < 1e-5
    assert done.report["params"]["after"] == done.program.parameters_count() == done.cost["params"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bank", BANKS)
def test_with_experts_gone_the_network_is_the_masked_one(bank, shared, tmp_path):
    program = foreign(bank, shared=shared)
    done, batch = run(program, tmp_path, ExtractConfig(threshold=0.2))
    kept = {layer["layer"]: layer["kept"] for layer in done.report["layers"]}
    assert all(2 <= len(experts) < 8 for experts in kept.values())
    assert len({tuple(experts) for experts in kept.values()}) == 1
    with dropping(moe_layers(program.module), kept):
        masked = outputs(program, batch)
    assert largest(outputs(done.program, batch), masked) < 1e-5
    assert largest(outputs(program, batch), masked) > 1e-2
    assert done.report["compared"].get("exact") is None
    assert done.report["approximate"]


def test_shared_experts_are_kept_by_what_either_layer_sends_them(tmp_path):
    program = foreign("Bank", shared=True)
    done, batch = run(program, tmp_path, ExtractConfig(threshold=0.3))
    with torch.no_grad(), observing(moe_layers(program.module)) as routed:
        program.outputs(batch)
    shares = torch.stack([routed.usage("sparse.a"), routed.usage("sparse.b")])
    wanted = (shares.amax(0) >= 0.3).nonzero().flatten().tolist()
    apart = [(share >= 0.3).nonzero().flatten().tolist() for share in shares]
    assert apart[0] != apart[1]
    assert [layer["kept"] for layer in done.report["layers"]] == [wanted, wanted]


def test_a_budget_counts_shared_experts_once(tmp_path):
    program = foreign("Buffer", shared=True)
    whole = program.parameters_count()
    each = 16 * 24 * 2 + 24 + 16
    done, _ = run(program, tmp_path, ExtractConfig(by="budget"), Budget("params", whole - 2.5 * each))
    assert done.missed is None
    assert done.cost["params"] == whole - 3 * each
    assert [len(layer["kept"]) for layer in done.report["layers"]] == [5, 5]
    assert len(done.artifacts["experts"]) == 3
    assert {entry["layer"] for entry in done.artifacts["experts"]} == {"sparse.a"}


def test_a_budget_counts_the_row_of_zeros(tmp_path):
    program = foreign("Renormalised")
    whole, each = program.parameters_count(), 16 * 24 * 2 + 24 + 16
    done, _ = run(program, tmp_path, ExtractConfig(by="budget"), Budget("params", whole - 2 * each))
    assert done.cost["params"] == whole - 2 * each
    assert len(done.report["layers"][0]["kept"]) == 5  # and one of zeros
    with pytest.raises(UserError, match="are fewer than extraction can reach"):
        run(program, tmp_path / "less", ExtractConfig(by="budget"), Budget("params", whole - 6 * each))


def test_experts_that_cannot_be_taken_out_are_refused_before_the_work(tmp_path):
    with pytest.raises(UserError, match=r"layer 'sparse': experts cannot be taken out of its NormAfter") as told:
        run(foreign("NormAfter"), tmp_path, ExtractConfig(by="budget"), Budget("params", 3000))
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"layer 'sparse': experts cannot be taken out of its WidthParameter"):
        run(foreign("WidthParameter"), tmp_path, ExtractConfig(threshold=0.2))


@pytest.mark.parametrize("reversed_rows", [False, True])
def test_a_cut_that_is_wrong_is_an_error_that_names_the_layer(reversed_rows, tmp_path, monkeypatch):
    """Whatever the trials said: what was built is compared."""
    monkeypatch.setattr(extraction, "find_cut", lambda *_: Cut(tensors=("scale",) if reversed_rows else ()))
    if reversed_rows:
        monkeypatch.setattr(
            extraction, "select", lambda experts, rows, cut: foreign_experts.select(experts, rows.flip(0), cut)
        )
    with pytest.raises(VerificationError, match=r"layer 'sparse': the experts that are left give another") as told:
        run(foreign("Buffer"), tmp_path, ExtractConfig(threshold=0.2))
    assert "Buffer keeps something for each expert" in str(told.value)
    assert not list(tmp_path.glob("steps/*/step.json"))


def test_weight_0_where_it_does_not_silence_is_an_error_that_names_the_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "find_cut", lambda *_: Cut())
    with pytest.raises(VerificationError, match=r"layer 'sparse': the experts that are left"):
        run(foreign("Renormalised"), tmp_path, ExtractConfig(threshold=0.2))


@pytest.mark.parametrize("settings", [{}, {"reroute": True}, {"handle": "merge"}, {"tasks": ("depth",)}])
def test_mtlcs_own_experts_are_compared_too(settings, tmp_path):
    program = moe_program(experts=12)
    done, _ = run(program, tmp_path, ExtractConfig(threshold=0.2, **settings))
    compared = done.report["compared"]
    assert len(compared["layers"]) == 2
    assert max(*compared["tasks"].values(), *compared["layers"].values()) < 1e-5
    assert (compared.get("without_dropped_tasks") is not None) == ("tasks" in settings)


@pytest.mark.parametrize("settings", [{}, {"reroute": True}, {"handle": "merge"}])
def test_rows_in_a_wrong_order_are_an_error(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(
        extraction, "select", lambda experts, rows, cut: foreign_experts.select(experts, rows.roll(1), cut)
    )
    if settings.get("handle") == "merge":  # which writes every row anew
        monkeypatch.setattr(extraction, "_rows", _swapped(extraction._rows))
    with pytest.raises(VerificationError, match=r"layer 'backbone\.blocks\.1\.mlp': the experts that are left"):
        run(moe_program(experts=12), tmp_path, ExtractConfig(threshold=0.2, **settings))


def _swapped(rows):
    def wrong(together, groups):
        kept, positions = rows(together, groups)
        return kept, {path: torch.where(p >= 0, (p + 1) % len(kept), p) for path, p in positions.items()}

    return wrong


def test_tasks_that_change_when_others_go_are_an_error(tmp_path, monkeypatch):
    keep_tasks = M3ViT.keep_tasks

    def wrong(self, tasks):
        keep_tasks(self, tasks)
        with torch.no_grad():
            next(self.heads.parameters()).mul_(1.5)

    monkeypatch.setattr(M3ViT, "keep_tasks", wrong)
    with pytest.raises(VerificationError, match="task 'depth': the network that was built gives another output"):
        run(moe_program(experts=12), tmp_path, ExtractConfig(tasks=("depth",), threshold=0.2))


# ---- prune ----------------------------------------------------------------------------------------------------------

FAST = {"finetune": None, "recalibrate": 0, "sensitivity": (), "round_to": 4, "initial_thres": 50.0}


@pytest.mark.parametrize("settings", [{}, {"reconstruct": False, "rank": "norm"}])
@pytest.mark.parametrize("make", [chain_program, moe_program])
def test_pruned_channels_are_masked_ones(make, settings, tmp_path):
    program = make()
    done, _ = run(
        program, tmp_path, PruneConfig(**FAST, **settings), Budget("params", 0.8 * program.parameters_count())
    )
    (first, *_) = done.report["rounds"]
    assert first["compared"]["samples"] == 4
    assert first["compared"]["tasks"].keys() == {"depth", "semseg"}
    assert max(first["compared"]["tasks"].values()) < 1e-5
    one = Prune(PruneConfig(**FAST)).results(done.report, done.artifacts)
    assert one.compared == max(
        (entry["compared"] for entry in done.report["rounds"]), key=lambda c: max(c["tasks"].values())
    )


def test_other_channels_than_were_asked_for_are_an_error_that_names_the_layer(tmp_path, monkeypatch):
    right = rounds.slice_step

    def wrong(units, removed, module):
        others = {
            name: [(c + 1) % units[name].channels for c in channels] if name == "stem.0" else channels
            for name, channels in removed.items()
        }
        return right(units, others, module)

    monkeypatch.setattr(rounds, "slice_step", wrong)
    program = chain_program()
    budget = Budget("params", 0.6 * program.parameters_count())
    with pytest.raises(VerificationError, match=r"layer 'stem\.0': task '\w+': the network that was built") as told:
        run(program, tmp_path, PruneConfig(**FAST), budget)
    assert "leave it out: ignore = ['stem.0']" in str(told.value)
    assert "\n" not in str(told.value)


# ---- the comparison -------------------------------------------------------------------------------------------------


def test_differences_by_hand():
    one = torch.tensor([1.0, -4.0, 2.0])
    assert difference(one, torch.tensor([1.0, -4.0, 2.5])) == pytest.approx(0.125)
    assert difference(one, one) == 0
    assert difference(one, torch.tensor([1.0, float("nan"), 2.0])) == float("inf")
    assert difference(one, one[:2]) == float("inf")
    assert difference(torch.zeros(3), torch.tensor([0, 0, 0.5])) == 0.5
    masked = torch.tensor([1.0, float("-inf"), float("nan")])
    assert difference(masked, masked.clone()) == 0
    assert difference(torch.tensor([3, 4]), torch.tensor([3, 5])) == 0.25


class Steep(nn.Module):
    """Rounding decides: the outputs are differences of large numbers, times `slope`."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order, self.gain = order, nn.Parameter(torch.tensor(1e4))

    def forward(self, image):
        parts = image.flatten(1)[:, :6] * self.gain
        total = parts[:, self.order[0]]
        for place in self.order[1:]:
            total = total + parts[:, place]
        total = (total - parts.sum(1).detach().round())[:, None]
        return {"depth": total.view(-1, 1, 1, 1), "semseg": total.view(-1, 1, 1, 1).expand(-1, 3, -1, -1)}


def of(module: nn.Module) -> Program:
    return Program(module, TASKS, {"image": torch.zeros(2, 3, 16, 16)}, ModelSource("tests:none"))


def test_rounding_that_is_too_much_for_float32_is_settled_in_float64():
    batch = {"image": torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    found = compare_with_masked(of(Steep((0, 1, 2, 3, 4, 5))), unmasked, of(Steep((5, 3, 1, 0, 2, 4))), batch)
    assert found.precision == "float64"
    assert found.largest < 1e-9
    with pytest.raises(VerificationError, match="task 'depth'"):
        compare_with_masked(of(Steep((0, 1, 2, 3, 4, 5))), unmasked, of(Steep((5, 3, 1, 0, 2, 2))), batch)


def test_a_random_forward_is_told():
    class Noisy(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width, self.gain = width, nn.Parameter(torch.ones(()))

        def forward(self, image):
            noise = torch.randn(len(image), self.width, device=image.device).mean(1).view(-1, 1, 1, 1) * self.gain
            return {"depth": noise, "semseg": noise.expand(-1, 3, -1, -1)}

    batch = {"image": torch.rand(4, 3, 16, 16)}
    assert compare_with_masked(of(Noisy(3)), unmasked, of(Noisy(3)), batch).largest == 0  # the same draws
    with pytest.raises(UserError, match="its forward must not be random in eval mode"):
        compare_with_masked(of(Noisy(3)), unmasked, of(Noisy(2)), batch)


def test_a_network_that_no_longer_runs_is_one_line():
    class Refusing(nn.Module):
        def forward(self, image):
            raise RuntimeError("shape mismatch\nof two lines")

    batch = {"image": torch.rand(4, 3, 16, 16)}
    with pytest.raises(VerificationError, match=r"does not run without what was taken out \(RuntimeError: shape") as t:
        compare_with_masked(of(Steep((0, 1))), unmasked, of(Refusing()), batch)
    assert "\n" not in str(t.value)


def test_masks_and_modes_are_left_as_they_were():
    program = moe_program()
    entered = []

    @contextmanager
    def masking(one):
        entered.append(one)
        yield

    batch = {"image": torch.rand(2, 3, 16, 16)}
    state = torch.get_rng_state()
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in program.module.modules()]
    found = compare_with_masked(program, masking, program.clone(), batch, experts=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.samples, found.precision, found.largest, len(entered)) == (2, "float32", 0.0, 1)
    assert [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in program.module.modules()] == hooks
    assert found.line().startswith("max difference 0 of the largest value, on 2 calibration samples in float32")
