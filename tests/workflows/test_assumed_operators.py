"""An operator without a cost rule stops no plan: it is named in its text, its JSON, the results and the report."""

from __future__ import annotations

from pathlib import Path

import torch
from testkit import toy_job
from torch import Tensor, nn

from mtlc.commands.plan import text
from mtlc.hw.cost.workload import Operator, Workload
from mtlc.job.job import load_job
from mtlc.report.sections.cost import cost_section
from mtlc.results.cost import AssumedOperator, Cost, CostPair
from mtlc.results.plan import Plan
from mtlc.results.run import RunResults
from mtlc.workflows.assumed_operators import assumed_operators
from mtlc.workflows.plan import plan_job


class Spectral(nn.Module):
    """The size of each frequency of a row."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x, n=2 * x.shape[-1] - 2).abs()


class Net(toy_job.Toy):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.spectral = Spectral()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(image)
        return outputs | {"depth": outputs["depth"] + self.spectral(outputs["depth"])}


def network() -> nn.Module:
    return Net(8)


def operator(name: str, assumed: str | None) -> Operator:
    return Operator(name, "copy", 0, (), (), (1,), 8, assumed)


def test_a_plan_names_it(tmp_path: Path) -> None:
    job = toy_job.JOB.replace("testkit.toy_job:net", f"{__name__}:network")
    plan = plan_job(load_job(toy_job.write(tmp_path, job, '[budget]\nmacs = "90%"\n')))
    (one,) = plan.assumed
    assert (one.operator, one.kind, one.layers) == ("aten._fft_r2c", "reduction", ["spectral"])
    assert "assumed   aten._fft_r2c (reduction) counts no MACs, in spectral" in text(plan).splitlines()
    assert Plan.read(plan.to_dict(), "plan").assumed == plan.assumed
    assert plan.to_dict()["assumed"] == [one.to_dict()]


def test_a_plan_of_known_operators_has_no_such_key(tmp_path: Path) -> None:
    plan = plan_job(load_job(toy_job.write(tmp_path)))
    assert "assumed" not in plan.to_dict()
    assert "training_only" not in plan.to_dict()


def test_workloads_are_joined_by_operator() -> None:
    one = Workload((operator("a", "aten.x"), operator("b", None), operator("c", "aten.y")), 0)
    other = Workload((operator("d", "aten.x"), operator("a", "aten.x")), 0)
    found = assumed_operators(one, other)
    assert [(item.operator, item.layers) for item in found] == [("aten.x", ["a", "d"]), ("aten.y", ["c"])]


def test_many_layers_are_counted() -> None:
    one = AssumedOperator(operator="aten.x", kind="copy", layers=["", "a", "b", "c", "d"])
    assert one.line() == "aten.x (copy) counts no MACs, in the network's forward, a, b and 2 more"


def test_the_report_lists_them() -> None:
    one = AssumedOperator(operator="aten.x", kind="copy", layers=["a"])
    pair = CostPair(before=Cost(macs=8), after=Cost(macs=4))
    section = cost_section(RunResults(cost=pair, assumed=[one]))
    assert section is not None
    assert section["assumed"] == ["aten.x (copy) counts no MACs, in a"]
    without = cost_section(RunResults(cost=pair))
    assert without is not None
    assert without["assumed"] == []
