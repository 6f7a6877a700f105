"""What a budget in milliseconds is judged by is what the passes aimed at."""

import pytest

from mtlc.compress.pass_interface import Budget
from mtlc.results.cost import CostPair
from mtlc.results.latency import LatencyResult
from mtlc.workflows.run_budget import judge_budget


@pytest.mark.parametrize(("threads", "met", "reached"), [(1, True, 1.9), (2, False, 3.0)])
def test_one_thread_is_judged_by_cpu_time(threads, met, reached):
    """The call waited a while for a busy processor; with several threads the wall clock is all there is."""
    timing = {"before": {"median_ms": 5.0, "cpu_median_ms": 4.0}, "after": {"median_ms": 3.0, "cpu_median_ms": 1.9}}
    latency = LatencyResult.model_validate({"threads": threads, **timing})
    found = judge_budget(Budget("latency", 2.0, "local-cpu"), CostPair(), latency, [])
    assert (found.met, found.reached) == (met, reached)
