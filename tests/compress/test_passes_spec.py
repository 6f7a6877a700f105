"""What holds for every pass: each one is run on the same small program by the same test class."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tiny_networks
import torch
from tiny_networks import same_state, taught_splits, with_limit

from mtlc.compress.passes import Budget, Context, Pass, PassConfig, PassResult, pass_type, pass_types
from mtlc.compress.pipeline import tensors_hash
from mtlc.errors import UserError
from mtlc.evaluation import Criteria
from mtlc.hw.workload import workload
from mtlc.program import Program
from mtlc.tasks import Limit

TUNE = {"epochs": 2, "batch_size": 8, "ema": 0.5}


@dataclass(frozen=True)
class Case:
    """A pass as a job names it, with settings that are quick here."""

    name: str
    settings: dict


CASES = [
    Case("prune", {"finetune": TUNE}),
    Case("prune", {"finetune": None, "sensitivity": (), "recalibrate": 0}),
    Case("finetune", TUNE),
    Case("calibrate", {"samples": 16, "batch_size": 8}),
]


@pytest.fixture(scope="module")
def program() -> Program:
    """Some parameters are frozen, and one task has a limit: passes must carry both over."""
    made = with_limit(tiny_networks.chain_program(), depth=Limit(0.9, False))
    made = replace(made, preprocessing={"scale": 0.5}, module=made.module.train())
    made.module.stem[0].weight.requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def splits(program):
    return taught_splits(program, train=16, calibration=8)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name}-{len(c.settings)}")
class TestEveryPass:
    @pytest.fixture
    def run(self, case: Case, program: Program, splits, tmp_path: Path) -> Callable[..., PassResult]:
        """Run the pass; the global generator stands somewhere else each time."""

        def go(seed: int = 0, name: str = "work") -> PassResult:
            one = pass_type(case.name)(pass_type(case.name).Config(**case.settings))
            torch.manual_seed(len(name))
            budget = Budget("macs", 0.71 * workload(program).macs)
            given = Context(splits, Criteria(program.tasks), program, tmp_path / name, budget, seed)
            one.requires(program, given)
            result = one.run(program, given)
            one.ensures(program, result)
            return result

        return go

    def test_the_input_program_stays(self, run, program):
        before, module, trainable = tensors_hash(program), program.module, trained(program)
        modes = [m.training for m in module.modules()]
        result = run()
        assert tensors_hash(program) == before
        assert program.module is module is not result.program.module
        assert trained(program) == trainable == trained(result.program)
        assert [m.training for m in module.modules()] in (modes, [False] * len(modes))
        shared = {p.data_ptr() for p in module.parameters()} & {
            p.data_ptr() for p in result.program.module.parameters()
        }
        assert shared == set()

    def test_something_changed(self, run, program):
        assert tensors_hash(run().program) != tensors_hash(program)

    def test_outputs_keep_their_shapes_and_types(self, run, program):
        image, result = tiny_networks.images(3, 8, 9), run()
        with torch.no_grad():
            before, after = program.clone().outputs({"image": image}), result.program.outputs({"image": image})
        assert {t: (o.shape, o.dtype) for t, o in after.items()} == {t: (o.shape, o.dtype) for t, o in before.items()}
        assert all(bool(o.isfinite().all()) for o in after.values())

    def test_the_history_grows_by_one(self, run, program, case):
        after = run().program
        assert len(after.history) == len(program.history) + 1
        assert after.history[-1].name == case.name
        rebuilt = pass_type(case.name).Config(**after.history[-1].config)
        assert rebuilt == pass_type(case.name).Config(**case.settings)

    def test_all_else_is_carried_over(self, run, program):
        after = run().program
        assert (after.tasks, after.source, after.preprocessing) == (
            program.tasks,
            program.source,
            program.preprocessing,
        )
        assert after.inputs == program.inputs

    def test_reports_are_strict_json(self, run):
        result = run()
        for value in (result.report, result.artifacts, result.cost_claimed):
            assert json.loads(json.dumps(value, allow_nan=False)) is not None

    def test_what_it_claims_to_cost_is_what_is_measured(self, run):
        result = run()
        measured = {"macs": workload(result.program).macs, "params": result.program.parameters_count()}
        assert {kind: measured[kind] for kind in result.cost_claimed} == result.cost_claimed

    def test_saved_and_loaded_it_gives_equal_outputs(self, run, program, tmp_path):
        after = run().program
        after.save(tmp_path / "saved")
        loaded = Program.load(tmp_path / "saved", program.source)
        image = tiny_networks.images(3, 8, 9)
        with torch.no_grad():
            ours, theirs = after.outputs({"image": image}), loaded.outputs({"image": image})
        assert all(torch.equal(ours[t], theirs[t]) for t in ours)
        assert same_state(after.module, loaded.module)
        assert loaded.history[-1].surgery == list(after.history[-1].surgery)

    def test_the_seed_alone_decides(self, run):
        assert same_state(run(0, "one").program.module, run(0, "another").program.module)


def trained(program: Program) -> set[str]:
    return {name for name, p in program.module.named_parameters() if p.requires_grad}


def test_the_cases_are_all_the_passes():
    assert {case.name for case in CASES} == set(pass_types())


def test_every_pass_explains_itself():
    for name, cls in pass_types().items():
        assert cls.name == name
        assert issubclass(cls, Pass)
        assert issubclass(cls.Config, PassConfig)
        assert cls.__doc__
        with pytest.raises(ValueError, match="Extra inputs"):
            cls.Config(no_such_setting=1)


def test_an_unknown_pass_has_a_nearest_name():
    with pytest.raises(UserError, match="'pruned': no such pass; did you mean 'prune'"):
        pass_type("pruned")
