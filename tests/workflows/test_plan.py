"""What `mtlc plan` asks of the passes, and what it makes of their answers."""

from __future__ import annotations

import pytest
from testkit import toy_job

from mtlc.commands.plan import text
from mtlc.compress.pass_interface import Pass, PassConfig, PassPlan
from mtlc.compress.passes import registry
from mtlc.errors import UserError
from mtlc.job.job import load_job
from mtlc.workflows.plan import plan_job

BUDGET = '[budget]\nmacs = "50%"\n'
MACS, PARAMETERS = 2048 * (27 + 72 + 4), 860  # of the toy network
OURS = registry.pass_types()


def section(name: str) -> str:
    return f'[[passes]]\nname = "{name}"\n'


class Bare(Pass[PassConfig]):
    """A stranger's pass without a single hook."""

    name = "bare"

    def run(self, program, context):
        raise NotImplementedError


class Halves(Bare):
    """Says that it can halve what every network costs, and something of its own."""

    name = "halves"

    def plan(self, program, tasks, budget):
        return PassPlan(least={"macs": MACS // 2 - 1, "params": PARAMETERS // 2}, details={"tasks": list(tasks)})


class Leaves(Bare):
    """Keeps depth alone."""

    name = "leaves"

    def plan(self, program, tasks, budget):
        return PassPlan(tasks=("depth",), least={"params": 100})


class Fails(Bare):
    name = "fails"

    def plan(self, program, tasks, budget):
        return PassPlan(details={"first": tasks[100]})


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path):
    types = {**OURS, **{cls.name: cls for cls in (Bare, Halves, Leaves, Fails)}}
    monkeypatch.setattr(registry, "pass_types", lambda: types)
    return lambda *sections: plan_job(load_job(toy_job.write(tmp_path, toy_job.JOB, *sections)))


def test_a_pass_without_hooks_is_planned_as_one_that_only_a_run_can_tell_of(plan):
    found = plan(BUDGET, section("bare"))
    assert [one.to_dict() for one in found.passes] == [
        {"name": "bare", "config": {}, "where": "[[passes]] 1 (line 14) 'bare'"}
    ]
    assert (found.budget.least, found.budget.reachable) == (None, None)
    assert "units" not in found.to_dict()
    assert "what is in reach shows as the passes run" in text(found)


def test_a_pass_says_what_it_can_reach_and_what_else_it_would_do(plan):
    found = plan(BUDGET, section("halves"))
    assert (found.budget.original, found.budget.least, found.budget.reachable) == (MACS, MACS // 2 - 1, True)
    assert found.passes[0].plan == {"tasks": ["depth", "semseg"]}
    assert '          tasks = ["depth", "semseg"]' in text(found).splitlines()


def test_passes_of_two_kinds_leave_open_what_they_reach_together(plan):
    found = plan(BUDGET, section("leaves"), section("halves"))
    assert found.budget.least is None
    assert found.passes[1].plan == {"tasks": ["depth"]}, "the second is told what the first leaves"


def test_a_pass_that_only_trains_has_no_say(plan):
    alone, with_training = (plan(BUDGET, *map(section, names)) for names in (["halves"], ["halves", "finetune"]))
    assert alone.budget == with_training.budget


def test_without_a_pass_that_could_meet_the_budget_it_is_shown_what_pruning_could(plan):
    pruned, trained = plan(BUDGET, section("prune")), plan(BUDGET, section("finetune"))
    assert trained.units == pruned.units
    assert trained.budget == pruned.budget
    assert trained.budget.least == MACS, "in steps of 8, layers of 8 channels keep them all"


def test_the_order_of_the_keys(plan):
    keys = ["job", "tasks", "data", "weights", "cost", "layers", "passes", "export", "report"]
    assert list(plan().to_dict()) == keys
    assert list(plan(BUDGET, section("prune")).to_dict()) == [*keys, "units", "budget"]


def test_what_a_plan_raises_is_one_line_with_its_place(plan):
    with pytest.raises(UserError, match=r"^\[\[passes\]\] 1 \(line 12\) 'fails': its plan raised IndexError: "):
        plan(section("fails"))
    with pytest.raises(UserError, match=r"^\[\[passes\]\] 1 \(line 12\) 'prune': prune needs a \[budget\]"):
        plan(section("prune"))


def test_a_network_that_has_learned_nothing_is_warned_of_first(plan, monkeypatch):
    """Against a constant predictor that is as good as the network itself: the warning names what was compared."""
    from mtlc.workflows import plan as planning

    exact = plan()
    values = {task.name: task.original for task in exact.tasks}
    monkeypatch.setattr(planning, "constants_of", lambda *_, limit: values)
    found = plan()
    assert [task.learned() for task in found.tasks] == [False, False]
    depth = found.tasks[0]
    assert (depth.constant, depth.higher_is_better) == (depth.original, False)
    first = text(found).splitlines()[0]
    assert first.startswith("warning: the original network is no better than a constant predictor at depth (rmse ")
    assert f"(rmse {depth.original:.4g} against {depth.original:.4g} m), semseg (miou" in first
    monkeypatch.setattr(planning, "constants_of", lambda *_, limit: dict.fromkeys(values))
    assert text(plan()).startswith("data ")


def test_weights_that_are_not_there_yet_are_not_judged(tmp_path):
    job = toy_job.JOB.replace('factory = "testkit.toy_job:net"\n', 'factory = "testkit.toy_job:net"\nweights = "w"\n')
    found = plan_job(load_job(toy_job.write(tmp_path, job)))
    assert found.weights.exists is False
    assert all("original" not in task.to_dict() for task in found.tasks)
    assert "warning" not in text(found)
