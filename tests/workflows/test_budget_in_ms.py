"""What a budget in milliseconds is judged by is what the passes aimed at."""

from types import SimpleNamespace

import pytest
from testkit import tiny_networks

from mtlc.compress.pass_interface import Budget
from mtlc.results.cost import CostPair
from mtlc.results.latency import LatencyResult
from mtlc.workflows.run_budget import judge_budget, read_budget


@pytest.mark.parametrize(("threads", "met", "reached"), [(1, True, 1.9), (2, False, 3.0)])
def test_one_thread_is_judged_by_cpu_time(threads, met, reached):
    """The call waited a while for a busy processor; with several threads the wall clock is all there is."""
    timing = {"before": {"median_ms": 5.0, "cpu_median_ms": 4.0}, "after": {"median_ms": 3.0, "cpu_median_ms": 1.9}}
    latency = LatencyResult.model_validate({"threads": threads, **timing})
    found = judge_budget(Budget("latency", 2.0, "local-cpu"), CostPair(), latency, [])
    assert (found.met, found.reached) == (met, reached)


class Shares:
    """A job whose budget is a share of a latency that takes another time whenever it is measured."""

    def __init__(self) -> None:
        section = SimpleNamespace(
            kind="latency", quantity=SimpleNamespace(relative=True), model_dump=lambda mode: "50%"
        )
        self.file = SimpleNamespace(budget=section)
        self.measured = 0

    def budget(self, program) -> Budget:
        self.measured += 1
        return Budget("latency", 2.0 + self.measured, "local-cpu")


def test_a_share_is_measured_once_and_anew_where_it_is_damaged(tmp_path):
    job, program, lines = Shares(), tiny_networks.chain_program(), []
    assert read_budget(job, program, tmp_path, lines.append) == Budget("latency", 3.0, "local-cpu")
    assert read_budget(job, program, tmp_path, lines.append) == Budget("latency", 3.0, "local-cpu")
    assert (job.measured, lines) == (1, [])
    path = tmp_path / "budget.json"
    path.write_text(path.read_text().replace("3.0", "8.0"))
    assert read_budget(job, program, tmp_path, lines.append) == Budget("latency", 4.0, "local-cpu")
    assert lines == [f"{path}: damaged (its SHA-256 is not what was written); measuring anew"]
    assert read_budget(job, program, tmp_path, lines.append).target == 4.0
