"""Networks of the suite that need no other package: what can be pruned of them, by number.

Those of `own_blocks.TwoTasks` have one stem and two heads. By hand, whole and with 4 channels everywhere:

    stem   3 → 16 → 32, 3×3 at 16×16      27·16·256 + 144·32·256        1,290,240      64,512
    heads  32 → 16 → 4, 32 → 16 → 1       2·288·16·256 + 16·5·256       2,379,776      78,848

The middles are worked out in the table: `AT_16` MACs for each pair of channels of a 3×3 convolution at 16×16, and 256
for one of 1×1 or a linear layer on every place.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformance.catalogue import build, case
from conformance.compress_and_export import compress_and_export
from conformance.jobs import PRUNE, SLIM, outputs, write_job
from conformance.narrowest_width import narrowest_width
from conformance.verbs import call
from mtlc.job.job import load_job
from mtlc.results.plan import Plan
from mtlc.workflows.plan import plan_job

STEM, HEADS = 1_290_240, 2_379_776
LEAST_STEM, LEAST_HEADS = 64_512, 78_848
FRAME, LEAST = STEM + HEADS, LEAST_STEM + LEAST_HEADS
AT_16 = 9 * 256
OUTPUT = "an output of the network"


def job(name: str, folder: Path, *more: str) -> Path:
    """A job of a network of the suite."""
    return write_job(folder, case(name), outputs(build(name), case(name)), name, *more)


def planned(name: str, folder: Path) -> Plan:
    """What ``mtlc plan`` says of a network of the suite."""
    return plan_job(load_job(job(name, folder, PRUNE.format(budget="99%"))))


@pytest.mark.parametrize(
    ("name", "units", "macs", "least"),
    [
        # 32 → 48 → 32, a scale, a mean and so on for each of the 48 between them
        ("frozen_norm", 6, FRAME + AT_16 * 2 * 32 * 48, LEAST + AT_16 * 2 * 16),
        ("standardised_weights", 7, FRAME + AT_16 * (32 * 48 + 48 * 48 + 48 * 32), LEAST + AT_16 * 3 * 16),
        # stem, first and second convolution lose the same channels, as both have one weight
        ("tied_convolutions", 5, FRAME + AT_16 * 3 * 32 * 32, LEAST + AT_16 * 3 * 16),
        # two channels of each half stay: 4 → 2 + 2, 2 → 4 → 4, and 2 + 2 + 4 + 4 → 4
        (
            "chunk_concat",
            8,
            FRAME + 256 * (32 * 64 + 128 * 32) + AT_16 * 2 * 32 * 32,
            LEAST + 256 * (4 * 4 + 12 * 4) + AT_16 * (2 * 4 + 4 * 4),
        ),
        # 32 → 48 → 96 at 8×8, and 24 → 32 behind the shuffle
        (
            "pixel_shuffle",
            7,
            FRAME + 64 * (9 * 32 * 48 + 48 * 96) + AT_16 * 24 * 32,
            LEAST + 64 * (9 * 16 + 4 * 16) + AT_16 * 16,
        ),
        # a channel and its gate go together: 32 → 2 × 48 → 32, and four of each half stay
        ("gated_unit", 6, FRAME + AT_16 * 32 * 96 + 256 * 48 * 32, LEAST + AT_16 * 4 * 8 + 256 * 4 * 4),
        # 32 → 48, 48 → 16 → 48 on the mean, 48 → 32
        ("squeeze_excite", 7, FRAME + 256 * 2 * 32 * 48 + 2 * 48 * 16, LEAST + 256 * 2 * 16 + 2 * 16),
        # heads at 8×8; 24 channels are 96 of four neighbours: 32 → 24, 96 → 32
        (
            "patch_merging",
            6,
            STEM + HEADS // 4 + 256 * 32 * 24 + 64 * 96 * 32,
            LEAST_STEM + LEAST_HEADS // 4 + 256 * 4 * 4 + 64 * 16 * 4,
        ),
        # None and a dict among the outputs change nothing
        ("nested_outputs", 5, FRAME + AT_16 * 32 * 32, LEAST + AT_16 * 16),
    ],
)
def test_every_unit_is_found_and_can_go_to_four_channels(name, units, macs, least, tmp_path):
    plan = planned(name, tmp_path)
    assert plan.units is not None
    assert (len(plan.units.prunable), plan.cost.macs, plan.units.least.macs) == (units, macs, least)
    assert {one.why for one in plan.units.left_alone} == {OUTPUT}


def test_a_network_is_pruned_exported_and_made_slim(tmp_path):
    """70 % of its MACs, as they are counted; the bundle, and the narrowest width, compute what torch does."""
    text = PRUNE.format(budget="70%")
    found = compress_and_export(job("chunk_concat", tmp_path, text), tmp_path / "out")
    assert found["macs"] <= 0.7 * 9_961_472
    assert found["missed"] is None
    assert found["compared"] < 1e-5
    assert found["differs"] < 1e-5
    narrow = narrowest_width(job("chunk_concat", tmp_path, SLIM), tmp_path / "slim")
    assert narrow["macs"][0] == 9_961_472
    assert narrow["macs"][1] < 0.35 * 9_961_472
    assert narrow["differs"] < 1e-5


def test_an_output_whose_size_depends_on_the_data_is_refused(tmp_path):
    found = call("plan", job("data_dependent", tmp_path))
    assert found["exit"] == 2
    assert found["error"].startswith("task 'b': its output 'b' is (")
    assert "so its shape depends on the data; return raw maps" in found["error"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8_like", "yolop_like", "windows"])
def test_the_command_line_runs_prunes_and_slims(name, tmp_path):
    """``mtlc run`` and ``mtlc slim`` whole, with both bundles and all reports."""
    quantize = "[quantize]\nsamples = 4\ncontrol = 4\n[export]\nformats = ['onnx', 'openvino']\n"
    done = call("run", job(name, tmp_path, PRUNE.format(budget="70%"), quantize), "--out", tmp_path / "out")
    assert (done["exit"], done["error"]) == (0, None)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["cost"]["after"]["macs"] <= 0.7 * results["cost"]["before"]["macs"]
    slim = "[slim]\nbudgets = ['99%']\nsamples = 2\nrecalibrate = 8\n"
    done = call("slim", job(name, tmp_path / "s", SLIM, slim), "--out", tmp_path / "slim")
    assert (done["exit"], done["error"]) == (0, None)
