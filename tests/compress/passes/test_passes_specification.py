"""What holds for every pass: each one is run on the same small programs by the same test class."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from testkit import tiny_networks
from testkit.tiny_networks import same_state, taught_splits, with_limit
from torch import Tensor

from mtlc.compress.pass_interface import Budget, Context, Pass, PassConfig, PassResult
from mtlc.compress.passes.registry import pass_type, pass_types
from mtlc.compress.pipeline.identity import tensors_hash
from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.hw.cost.count import workload
from mtlc.program.program import Program
from mtlc.tasks.task import Limit

TUNE = {"epochs": 2, "batch_size": 8, "ema": 0.5}
SLIM = {"round_to": 4, "importance_samples": 8, "recalibrate": 16, "train": {"epochs": 1, "batch_size": 8, "ema": 0.5}}


@dataclass(frozen=True)
class Case:
    """A pass as a job names it, with settings that are quick here, on a program of `tiny_networks`."""

    name: str
    settings: dict
    network: str = "chain"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that stay."""
        return self.settings.get("tasks", ("depth", "semseg"))


CASES = [
    Case("prune", {"finetune": TUNE}),
    Case("prune", {"finetune": None, "sensitivity": (), "recalibrate": 0}),
    Case("finetune", TUNE),
    Case("qat", {**TUNE, "target": "tensorrt"}),
    Case("qat", {**TUNE, "target": "x86-vnni", "calibration_samples": 4}, "moe"),
    Case("calibrate", {"samples": 16, "batch_size": 8}),
    Case("slim", SLIM, "resnet"),
    Case("slim", {**SLIM, "importance": "norm", "recalibrate": 0, "widths": (0.5, 1.0), "round_to": 2}, "moe"),
    Case("narrow", {"recalibrate": 16}, "slimmed"),
    Case("narrow", {"recalibrate": 16, "prefer": {"semseg": 2.0}, "strategy": "ecmt", "samples": 4}, "slimmed"),
    Case("extract", {"threshold": 0.4}, "moe"),
    Case("extract", {"tasks": ("depth",), "threshold": 0.4, "handle": "merge", "finetune": TUNE}, "moe"),
    Case("extract", {"tasks": ("semseg",), "by": "budget", "keep_at_least": 1}, "moe"),
]


@cache
def made(network: str) -> tuple[Program, Splits]:
    """Some parameters are frozen, and one task has a limit: passes must carry both over."""
    if network == "slimmed":
        program, splits = made("resnet")
        context = Context(splits, Criteria(program.tasks), program, Path(mkdtemp()))
        return pass_type("slim")(pass_type("slim").Config(**SLIM)).run(program, context).program, splits
    program = with_limit(getattr(tiny_networks, f"{network}_program")(), depth=Limit(0.9, False))
    program = replace(program, preprocessing={"scale": 0.5}, module=program.module.train())
    next(p for p in program.module.parameters() if p.ndim == 4).requires_grad_(False)
    return program, taught_splits(program, train=16, calibration=8)


@pytest.fixture
def program(case: Case) -> Program:
    return made(case.network)[0]


@pytest.fixture
def splits(case: Case) -> Splits:
    return made(case.network)[1]


def images(program: Program) -> dict[str, Tensor]:
    return {"image": tiny_networks.images(3, program.example["image"].shape[-1], 9)}


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

    def test_the_input_program_stays(self, run, program, case):
        before, module, trainable = tensors_hash(program), program.module, trained(program)
        modes = [m.training for m in module.modules()]
        result = run()
        assert tensors_hash(program) == before
        assert program.module is module is not result.program.module
        gone = tuple(f"heads.{task}." for task in program.task_names if task not in case.tasks)
        assert trained(program) == trainable
        assert trained(result.program) == {name for name in trainable if not name.startswith(gone)}
        assert [m.training for m in module.modules()] in (modes, [False] * len(modes))
        shared = {p.data_ptr() for p in module.parameters()} & {
            p.data_ptr() for p in result.program.module.parameters()
        }
        assert shared == set()

    def test_something_changed(self, run, program):
        assert tensors_hash(run().program) != tensors_hash(program)

    def test_outputs_keep_their_shapes_and_types(self, run, program, case):
        batch, result = images(program), run()
        with torch.no_grad():
            before, after = program.clone().outputs(batch), result.program.outputs(batch)
        assert tuple(after) == case.tasks
        assert all((after[t].shape, after[t].dtype) == (before[t].shape, before[t].dtype) for t in after)
        assert all(bool(o.isfinite().all()) for o in after.values())

    def test_the_history_grows_by_one(self, run, program, case):
        after = run().program
        assert len(after.history) == len(program.history) + 1
        assert after.history[-1].name == case.name
        rebuilt = pass_type(case.name).Config(**after.history[-1].config)
        assert rebuilt == pass_type(case.name).Config(**case.settings)

    def test_all_else_is_carried_over(self, run, program, case):
        after = run().program
        assert (after.tasks, after.source, after.preprocessing) == (
            tuple(task for task in program.tasks if task.name in case.tasks),
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
        with torch.no_grad():
            ours, theirs = after.outputs(images(program)), loaded.outputs(images(program))
        assert all(torch.equal(ours[t], theirs[t]) for t in ours)
        assert same_state(after.module, loaded.module)
        assert loaded.history[-1].surgery == list(after.history[-1].surgery)

    def test_the_seed_alone_decides(self, run):
        assert same_state(run(0, "one").program.module, run(0, "another").program.module)


def trained(program: Program) -> set[str]:
    """The trainable parameters, by the names that they have before anything wraps them."""
    return {
        name.replace("experts.inner", "experts") for name, p in program.module.named_parameters() if p.requires_grad
    }


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
