"""Asks the passes of a job what they would do, and works out from it whether the budget can be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlc.compress.pass_interface import Budget, PassPlan
from mtlc.compress.passes.registry import pass_type
from mtlc.compress.pipeline.identity import Step
from mtlc.errors import MtlcError, UserError, one_line
from mtlc.hw.cost.count import macs, parameters
from mtlc.program.program import Program
from mtlc.results.plan import PlannedBudget


def pass_plans(program: Program, steps: Sequence[Step], budget: Budget | None) -> list[PassPlan]:
    """What each pass would do."""
    found: list[PassPlan] = []
    tasks: Sequence[str] = program.task_names
    for step in steps:
        try:
            plan = pass_type(step.name)(step.config).plan(program, tasks, budget)
        except MtlcError as error:
            raise type(error)(f"{step.where}: {error}") from None
        except Exception as error:  # a pass may be a package's
            raise UserError(f"{step.where}: its plan raised {one_line(error)}") from error
        found.append(plan)
        tasks = tasks if plan.tasks is None else plan.tasks
    return found


def least_cost(steps: Sequence[Step], plans: Sequence[PassPlan]) -> Mapping[str, int]:
    """The least cost that the passes can reach, by kind, of those that have a say in it.

    How far passes of different kinds go together nobody knows before the first has run; nor does anybody where one of
    them cannot tell.
    """
    asked = [
        (step.name, plan.least) for step, plan in zip(steps, plans, strict=True) if pass_type(step.name).plans_cost
    ]
    if len({name for name, _ in asked}) != 1:
        return {}
    kinds = set[str].intersection(*(set(least) for _, least in asked))
    return {kind: min(least[kind] for _, least in asked) for kind in kinds}


def planned_budget(
    budget: Budget, program: Program, floor: Mapping[str, int], counted: int | None = None
) -> PlannedBudget:
    """The budget in absolute numbers beside the original's cost and the floor; `counted` are its MACs, if known."""
    original = None
    if budget.kind == "macs":
        original = macs(program) if counted is None else counted
    elif budget.kind == "params":
        original = parameters(program)
    least = floor.get(budget.kind)
    return PlannedBudget(
        kind=budget.kind,
        target=budget.target,
        device=budget.device,
        original=original,
        least=least,
        reachable=None if least is None else least <= budget.target,
        met_already=None if original is None else original <= budget.target,
    )


def amount(budget: PlannedBudget) -> str:
    """A budget in MACs or parameters as the start of a message."""
    return f"[budget] {budget.kind} = {budget.target:,.0f}"


def beyond(budget: PlannedBudget) -> str:
    """The message for a budget that is out of reach."""
    return (
        f"{amount(budget)} is out of reach: the passes of the job can go to {budget.least:,} at least; "
        "raise it, or let them take more"
    )
