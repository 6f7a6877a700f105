"""Active MACs of recorded routing, by hand, and the verb that records it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from testkit.sample_results import TASKS as SAMPLE_TASKS
from testkit.sample_results import routing as sample_routing
from testkit.tiny_networks import moe_program
from testkit.toy_job import JOB, write

from mtlc.cli import main
from mtlc.errors import UserError
from mtlc.hw.cost.count import macs
from mtlc.hw.routing.active_macs import active, tokens_per_expert
from mtlc.hw.routing.routing_trace import Frame, RoutingTrace, load, record
from mtlc.moe.extraction import keep_experts
from mtlc.report.sections.routing import routing_section
from mtlc.results.run import RunResults

PER_PLACE, PLACES = 2 * 12 * 12, 17 * 2
FIRST, SECOND = "backbone.blocks.1.mlp", "backbone.blocks.3.mlp"
MOE_JOB = JOB.replace("testkit.toy_job:net", "testkit.tiny_networks:moe")


def images(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def made_trace(empty: int = 3) -> RoutingTrace:
    """One frame of depth: expert 0 and 1 for every token, `empty` second places of the first layer left empty."""
    route = np.tile(np.array([0, 1], np.int16), (17, 1))
    first = route.copy()
    first[:empty, 1] = -1
    return RoutingTrace({"depth": (Frame("depth", (first, route)),)}, "by hand")


def test_places_that_no_expert_fills_do_not_count() -> None:
    program = moe_program()
    cost = active(program, made_trace())
    full = macs(program.restricted(["depth"]))
    assert cost.task_macs == {"depth": full}
    assert cost.active_task_macs == {"depth": full - 3 * PER_PLACE}
    assert (cost.macs, cost.active_macs) == (full, full - 3 * PER_PLACE)
    first, second = cost.layers
    assert (first.layer, first.experts, first.top_k, first.tokens) == (FIRST, 6, 2, 17)
    assert first.full_macs == PLACES * PER_PLACE
    assert first.tasks["depth"].tokens_per_expert == (17, 14, 0, 0, 0, 0)
    assert first.tasks["depth"].active_macs == 31 * PER_PLACE
    assert first.tasks["depth"].busiest == 17 / 31
    assert second.tasks["depth"].active_macs == second.full_macs


def test_experts_that_are_gone_leave_their_places_empty() -> None:
    program = moe_program()
    keep_experts(program.module, {key: {"kept": [0, 2, 3, 4, 5]} for key in (FIRST, SECOND)})
    trace = made_trace(empty=0)
    cost = active(program, trace)
    assert cost.task_macs["depth"] - cost.active_task_macs["depth"] == 2 * 17 * PER_PLACE  # expert 1, in both layers
    assert cost.layers[0].present == (0, 2, 3, 4, 5)
    rows = tokens_per_expert(program, trace.frames["depth"])
    assert rows == {f"{FIRST}.experts.inner": [17, 0, 0, 0, 0], f"{SECOND}.experts.inner": [17, 0, 0, 0, 0]}


@pytest.mark.parametrize(("gate", "times"), [("multi", 2), ("single", 1)])
def test_tasks_that_share_their_routing_pay_for_it_once(gate: str, times: int) -> None:
    program = moe_program(gate=gate)
    frames = made_trace().frames["depth"]
    cost = active(program, RoutingTrace({"depth": frames, "semseg": frames}, "by hand"))
    assert cost.macs == macs(program)
    assert cost.macs - cost.active_macs == times * 3 * PER_PLACE


def test_a_trace_of_another_network_is_refused() -> None:
    program, trace = moe_program(), made_trace()
    frame = trace.frames["depth"][0]

    def other(task: str = "depth", layers: tuple[np.ndarray, ...] = frame.layers) -> RoutingTrace:
        return RoutingTrace({task: (Frame(task, layers),)}, "")

    for wrong, message in (
        (other("depht"), "no task 'depht'; did you mean 'depth'"),
        (other(layers=frame.layers[:1]), "has 1 layers of experts, not 2"),
        (other(layers=(frame.layers[0], frame.layers[1][:9])), rf"'{SECOND}' has places \(9, 2\), not \(17, 2\)"),
        (other(layers=(frame.layers[0] + 5, frame.layers[1])), f"'{FIRST}' names expert 6, but there are 6"),
        (other(layers=(frame.layers[0] - 1, frame.layers[1])), "names expert -2"),
        (other(layers=(frame.layers[0] * 0.5, frame.layers[1])), "names experts by float64"),
        (RoutingTrace({}, ""), "holds no frame"),
    ):
        with pytest.raises(UserError, match=message):
            active(program, wrong)


# ---- the verb -------------------------------------------------------------------------------------------------------


def test_the_verb_writes_what_the_accelerators_model_reads(tmp_path: Path) -> None:
    job, out = write(tmp_path, MOE_JOB), tmp_path / "routing.npz"
    done = CliRunner().invoke(main, ["trace", str(job), "--samples", "3", "--out", str(out), "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["kind"], found["samples"]) == ("measured", {"depth": 3, "semseg": 3})
    trace = load(out)
    assert trace.source == found["source"] == "recorded on 3 calibration samples of job.toml"
    from testkit.toy_job import pictures

    own = record(moe_program(), list(pictures().calibration.images[:3]))
    for task, frames in own.frames.items():
        for frame, written in zip(frames, trace.frames[task], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(frame.layers, written.layers, strict=True))
    usage = found["layers"][0]["tasks"]["depth"]["tokens_per_expert"]
    assert usage == pytest.approx(trace.usage("depth", 0, 6).tolist())
    assert sum(usage) == pytest.approx(PLACES)
    shown = CliRunner().invoke(main, ["trace", str(job), "--trace", str(out), "--quiet"])
    assert shown.exit_code == 0
    assert "recorded on 3 calibration samples" in shown.stdout
    assert "16.7 % of 6" in shown.stdout


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (JOB, [], "no mixture of experts"),
        (MOE_JOB, ["--task", "depht"], "no task 'depht'; did you mean 'depth'?"),
        (MOE_JOB, ["--samples", "9"], "--samples 9: the calibration split has 8"),
        (MOE_JOB, ["--out", "trace.txt"], "a trace is an .npz file"),
        (MOE_JOB, ["--trace", "none.npz"], "none.npz: no such file"),
        (MOE_JOB, ["--trace", "none.npz", "--samples", "1"], "give no --samples"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, text: str, options: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["trace", str(write(tmp_path, text)), *options, "--quiet"])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# ---- the report -----------------------------------------------------------------------------------------------------


def test_the_section_has_a_map_for_each_task_and_network() -> None:
    found = routing_section(RunResults.read({"routing": sample_routing()}, "made"))
    assert found is not None
    assert [picture["title"] for picture in found["pictures"]] == ["the original network", "the compressed network"]
    for picture in found["pictures"]:
        assert all(f">{task}<" in picture["svg"] for task in SAMPLE_TASKS)
        assert picture["svg"].count("<image") >= len(SAMPLE_TASKS)
    assert found["rows"][0] == {"task": "semseg", "cells": ["1.5 M", "1.4 M", "1.5 M", "1.4 M"]}
    assert "would make every cell 25 %" in found["words"]


def test_networks_and_tasks_that_route_alike_share_a_map() -> None:
    both = sample_routing()
    for layer in both["before"]["layers"]:
        layer["tasks"] = dict.fromkeys(SAMPLE_TASKS, layer["tasks"]["depth"])
    found = routing_section(RunResults.read({"routing": {**both, "after": both["before"]}}, "made"))
    assert found is not None
    (picture,) = found["pictures"]
    assert picture["title"] == "both networks alike"
    assert "all tasks alike" in picture["svg"]
    assert routing_section(RunResults()) is None
