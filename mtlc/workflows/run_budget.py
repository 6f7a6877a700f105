"""Works out the budget of a run in numbers, and judges what was reached by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mtlc.compress.pass_interface import Budget
from mtlc.compress.pipeline.identity import program_hash
from mtlc.compress.pipeline.step_folder import Finished
from mtlc.files import write_json
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import Job
from mtlc.program.program import Program
from mtlc.results.cost import BudgetResult, CostPair
from mtlc.results.latency import BundleLatency, LatencyResult


def read_budget(job: Job, program: Program, out: Path) -> Budget | None:
    """The budget in numbers; None without one.

    A share of a measured latency is measured once per network and kept in `out`: measuring anew would give another
    budget, and every finished step would be run again.
    """
    section = job.file.budget
    if section is None or section.kind != "latency" or not section.quantity.relative:
        return job.budget(program)
    # A time is one machine's; the folder may have come from another. What the machine was busy with is not its name.
    machine = {key: value for key, value in this_machine().items() if key != "load_1min"}
    described = json.dumps([program_hash(program), section.model_dump(mode="json"), machine], default=str)
    key = hashlib.sha256(described.encode()).hexdigest()
    path = out / "budget.json"
    try:
        kept = json.loads(path.read_text())
        if kept["key"] == key:
            return Budget("latency", float(kept["target_ms"]), kept["device"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # not there, or not ours to trust: measure
    budget = job.budget(program)
    assert budget is not None
    write_json(path, {"key": key, "target_ms": budget.target, "device": budget.device})
    return budget


def judge_budget(
    budget: Budget, cost: CostPair, latency: LatencyResult | None, steps: Sequence[Finished]
) -> BudgetResult:
    """What was asked for and what was reached, and in a line why it was missed."""
    if budget.kind == "latency":
        assert latency is not None
        original, reached = _milliseconds(latency)
    else:
        original, reached = _modelled(budget.kind, cost)
    met = reached <= budget.target
    why = next((step.missed for step in steps if step.missed), None) or (
        f"[budget] {budget.kind} = {_amount(budget, budget.target)} missed, {_amount(budget, reached)} reached"
        + ("" if steps else "; the job has no [[passes]] to meet it")
    )
    return BudgetResult(
        kind=budget.kind, device=budget.device, original=original, target=budget.target, reached=reached, met=met,
        missed=None if met else why,
    )  # fmt: skip


def _milliseconds(latency: LatencyResult) -> tuple[float, float]:
    """The same quantity that the passes aim at and a share is taken of: see `mtlc.hw.measure.program_latency`.

    With one thread it is processor time, which other processes disturb less; with several only the wall clock is left.
    """

    def of(side: BundleLatency | None) -> float:
        assert side is not None
        found = side.cpu_median_ms if latency.threads == 1 else side.median_ms
        assert found is not None
        return found

    return of(latency.before), of(latency.after)


def _modelled(kind: str, cost: CostPair) -> tuple[float, float]:
    """MACs or parameters. With a mixture of experts MACs are those as routed; tasks that went count in the original."""
    before, after = cost.before, cost.after
    pair: tuple[float | None, float | None]
    if kind == "params":
        pair = before.parameters, after.parameters
    elif after.active_macs is not None:
        pair = before.macs_of_all_tasks or before.active_macs, after.active_macs
    else:
        pair = before.macs_of_all_tasks or before.macs, after.macs
    original, reached = pair
    assert original is not None
    assert reached is not None
    return float(original), float(reached)


def _amount(budget: Budget, value: float) -> str:
    return f"{value:.3g} ms" if budget.kind == "latency" else f"{value:,.0f}"
