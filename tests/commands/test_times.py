"""What verbs print of times: the ratio of the rounds with its spread and CPU time, marked where it is in doubt."""

from __future__ import annotations

import re
from typing import Any

import pytest
from click.testing import CliRunner

from mtlc.cli import main
from mtlc.commands import bench, profile
from mtlc.commands.tables import cpu_ratio_text, ratio_text, table
from mtlc.results.bench import BenchResult
from mtlc.results.latency import Ratio
from mtlc.results.profile import ProfileResult

SOUND = {"median": 1.6, "p10": 1.2, "p90": 4.1, "low": 1.5, "high": 1.7, "cpu": 1.62, "doubt": None}
BUSY = "the machine was busy: other processes used 1.4 of 2 cores"


def row(path: str, faster: dict[str, Any] | None, ms: float) -> dict[str, Any]:
    times = dict.fromkeys(("p10_ms", "p90_ms", "p99_ms", "mean_ms", "min_ms"), ms)
    return {
        "bundle": path, "configuration": None, "precision": "fp32", "bytes": 10, "backend": "onnxruntime",
        "version": "1", "threads": 1, "median_ms": ms, **times, "spread": 0.1, "cpu_median_ms": 1.0,
        "instructions": None, "throughput": 1000 / ms, "memory": {"cold_ms": 1.0}, "faster": faster,
    }  # fmt: skip


def benched(ratio: dict[str, Any], *doubts: str) -> str:
    return bench.text(
        BenchResult.model_validate({
            "kind": "measured", "device": {"cpu": "A CPU"}, "batch": 1, "rounds": 200, "warmup": 5, "tasks": ["depth"],
            "instructions_why": None, "fixed_batch": False, "doubts": doubts,
            "rows": [row("a", None, 9.51), row("b", ratio, 2.268), row("c", SOUND, 5.0)],
        })
    )  # fmt: skip


def profiled(ratio: dict[str, Any], *doubts: str) -> str:
    times = {"p10_ms": 1.0, "p90_ms": 2.0, "cpu_median_ms": 1.0, "memory": {"cold_ms": 1, "cold_min_ms": 1,
             "cold_max_ms": 1}}  # fmt: skip
    return profile.text(
        ProfileResult.model_validate({
            "bundle": "b", "bundles": {"a": {"median_ms": 9.51, **times}, "b": {"median_ms": 2.268, **times}},
            "speedup": {"b": ratio}, "doubts": doubts, "device": {"cpu": "A CPU"},
        })
    )  # fmt: skip


def test_a_sound_ratio_has_no_mark() -> None:
    for text in (benched(SOUND), profiled(SOUND)):
        assert "~" not in text
        assert "in doubt" not in text
        assert re.search(r"1\.62x +1\.60x \(1\.20 to 4\.10\)$", text, re.MULTILINE)


def test_a_busy_machine_marks_all_rows_and_the_line_says_so() -> None:
    for text in (benched(SOUND, BUSY), profiled(SOUND, BUSY)):
        assert re.search(r"1\.62x +~1\.60x \(1\.20 to 4\.10\)$", text, re.MULTILINE)
        assert "~9.510" in text
        assert "~2.268" in text
        assert f"~ in doubt: {BUSY}; measure again on a quiet machine (--wait-quiet)" in text


def test_a_ratio_of_its_own_doubt_marks_its_row_only() -> None:
    unsure = {**SOUND, "doubt": "after 200 rounds the ratio lies between 1.20x and 2.00x"}
    lines = benched(unsure).splitlines()
    assert lines[0].endswith(
        "200 rounds in turns; ~ in doubt: b, onnxruntime, 1 thread: after 200 rounds the ratio lies between 1.20x and "
        "2.00x; measure again on a quiet machine (--wait-quiet)"
    )
    assert [line.startswith("b ") for line in lines[1:] if "~" in line] == [True]
    assert "~2.268" in lines[-2]


def test_marked_numbers_stand_to_the_right_as_others_do() -> None:
    assert table(("ms",), [("~9.5",), ("12.25",)]).splitlines() == ["   ms", " ~9.5", "12.25"]


@pytest.mark.parametrize("cpu", [None, 1.0])
def test_texts_of_a_ratio(cpu: float | None) -> None:
    ratio = Ratio(median=2, p10=1.5, p90=2.5, cpu=cpu)
    assert ratio_text(ratio) == "2.00x (1.50 to 2.50)"
    assert ratio_text(ratio, in_doubt=True) == "~2.00x (1.50 to 2.50)"
    assert cpu_ratio_text(ratio) == ("-" if cpu is None else "1.00x")
    assert ratio_text(None) == cpu_ratio_text(None) == ""


@pytest.mark.parametrize("verb", ["run", "bench", "profile", "compare"])
def test_verbs_that_measure_can_wait(verb: str) -> None:
    assert "--wait-quiet" in CliRunner().invoke(main, [verb, "--help"]).output
