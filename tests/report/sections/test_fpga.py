"""The report's section on an FPGA: what it says, and that its picture stays small."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from testkit.browser import browse, words

from mtlc.hw.fpga.accelerator import accelerator
from mtlc.hw.fpga.event_simulation import simulate
from mtlc.hw.fpga.policy_costs import Case, policy_costs, switching
from mtlc.hw.fpga.resources import board
from mtlc.hw.routing.moe_vit_shape import PUBLISHED
from mtlc.hw.routing.routing_trace import synthetic
from mtlc.report.figures.fpga_timeline import ROWS, timeline_data, timeline_svg
from mtlc.report.run_report import write_report
from mtlc.report.sections.fpga import fpga_sections
from mtlc.results.run import RunResults


def found(network: str, name: str) -> dict[str, Any]:
    hw, shape = accelerator(name), PUBLISHED[network]
    case = Case(shape, synthetic(shape, ("a", "b")))
    sides = {
        side: {
            "policies": [policy_costs(case, hw, policy, board(hw.board)) for policy in ("dense", "reordered")],
            "switching": switching(case, hw, "reordered"),
        }
        for side in ("before", "after")
    }
    sides["before"]["policies"][1]["ms"] = 2 * sides["after"]["policies"][1]["ms"]
    return {
        "device": hw.board, "board": board(hw.board).title, "accelerator": hw.title, "clock_mhz": hw.clock_mhz,
        "kind": case.kind, **sides,
        "timeline": {"task": "a", **timeline_data(case.run(hw, "reordered", "a"), pixels=400)},
    }  # fmt: skip


def test_what_it_says() -> None:
    (one,) = fpga_sections([found("cityscapes-tiny", "edge-moe-zcu102")])
    assert (one["title"], one["kind"]) == ("Edge-MoE on a ZCU102", "modelled")
    assert "the clock of 300 MHz is assumed" in one["words"]
    assert "reordered is the fastest: 69.27 ms before, 34.64 ms after" in one["words"]
    assert [(row["policy"], row["side"], row["bar"]) for row in one["rows"][2:]] == [
        ("reordered", "before", 100.0), (None, "after", 50.0),
    ]  # fmt: skip
    cell = one["resources"][1]["cells"][0]
    assert (cell["words"], cell["share"], cell["over"]) == ("640 of 2520", 25.4, False)
    assert one["switching"].startswith("Another task in every frame costs at most 0 cycles and 0 bytes more")
    assert fpga_sections(None) == []


def test_a_design_that_does_not_fit_says_so() -> None:
    (one,) = fpga_sections([found("pascal-small", "m3vit-zcu104")])
    assert "No design with experts fits the board" in one["words"]
    bram = one["resources"][1]["cells"][1]
    assert (bram["words"], bram["share"], bram["over"]) == ("1568 of 312", 100.0, True)


@pytest.mark.parametrize("policy", ["cache", "reordered"])
def test_the_picture_is_small(policy: str) -> None:
    """Token by token there are thousands of loads; what a reader cannot tell apart is one bar."""
    shape = PUBLISHED["cityscapes-tiny"]
    ran = simulate(shape, accelerator("edge-moe-zcu102"), policy, synthetic(shape).sequence(["task"]))  # type: ignore[arg-type]
    data = timeline_data(ran, pixels=400)
    assert len(timeline_svg(data)) < 150_000
    assert max(size for _, size in data["weights"]) == ran.peak_weight_bytes
    assert set(data["bars"]) == set(ROWS)
    for bars in data["bars"].values():
        assert all(a < b for a, b in bars)
        assert all(one[1] < other[0] for one, other in pairwise(bars))


def test_a_browser_draws_it(chromium: str, tmp_path: Path) -> None:
    write_report(RunResults(fpga=[found("cityscapes-tiny", "edge-moe-zcu102")]), {}, tmp_path / "report.html")
    dom, console = browse(chromium, tmp_path / "report.html", tmp_path / "profile")
    assert console == ""
    text = words(dom)
    assert "640 of 2520" in text
    assert "A frame over time" in text
