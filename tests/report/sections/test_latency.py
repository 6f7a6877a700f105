"""One statistic of how much faster: wherever it is shown it is the ratio of the rounds, marked where it is in doubt."""

from __future__ import annotations

from typing import Any

import pytest
from testkit.sample_results import results

from mtlc.commands.run import text
from mtlc.report.sections.devices import devices_section
from mtlc.report.sections.latency import latency_section
from mtlc.report.sections.provenance import provenance
from mtlc.report.sections.summary import summary
from mtlc.results.run import RunResults

RATIO = {"median": 1.6, "p10": 1.2, "p90": 4.1, "low": 1.55, "high": 1.66, "cpu": 1.62, "doubt": None}
BUSY = "the machine was busy: other processes used 1.4 of 2 cores"


def run(ratio: dict[str, Any] | None = None, doubts: tuple[str, ...] = (), **latency: Any) -> RunResults:
    """The run that once printed −76.2 % and ×1.60: 9.51 → 2.268 ms."""
    made = results()
    made["latency"].update(speedup=1.6, before={"median_ms": 9.51, "cpu_median_ms": 3.0},
                           after={"median_ms": 2.268, "cpu_median_ms": 1.8})  # fmt: skip
    if ratio is not None:
        made["latency"].update(ratio=ratio, doubts=list(doubts),
                               load={"load_1min": 3.0, "cores": 2, "others_cores": 1.4, "waited_s": None})  # fmt: skip
    made["latency"].update(latency)
    made["devices"] = [{"device": "local-cpu", "title": "Here", "kind": "measured", "what": "latency",
                        "precision": "fp32", "error": None, "peak": None, "bandwidth": None, "peak_bandwidth": None,
                        "ceilings": {}, "before_ms": 9.51, "after_ms": 2.268, "speedup": 1.6, "run_ms": None,
                        "bounds": None, "layers": [], "notes": []}]  # fmt: skip
    return RunResults.read(made, "made")


def tiles(found: RunResults) -> dict[str, dict[str, Any]]:
    return {tile["label"]: tile for tile in summary(found)["tiles"]}


def cells(found: RunResults, name: str) -> list[str]:
    (line,) = (line for line in text(found).splitlines() if line.startswith(name))
    return [cell.strip() for cell in line[len(name) :].split("  ") if cell.strip()]


def test_the_tile_has_one_statistic() -> None:
    tile = tiles(run(RATIO))["Latency"]
    assert (tile["value"], tile["note"]) == ("×1.60", "×1.20 to ×4.10 · CPU time ×1.62")
    assert "runs 1.6 times as fast on" in summary(run(RATIO))["words"]


def test_a_busy_machine_marks_every_figure() -> None:
    found = run(RATIO, (BUSY,))
    tile = tiles(found)["Latency"]
    assert (tile["value"], tile["note"]) == ("≈ ×1.60", "×1.20 to ×4.10 · CPU time ×1.62 · in doubt")
    assert "runs about 1.6 times as fast on AMD EPYC 7B13 (in doubt: see Latency)" in summary(found)["words"]
    section = latency_section(found)
    assert section is not None
    assert BUSY in section["doubts"]
    assert "Speed-up ≈ ×1.60 in the median of the rounds (×1.20 to ×4.10 · CPU time ×1.62)" in section["words"]
    wall, cpu = section["costs"][:2]
    assert (wall["before"], wall["after"], wall["share"]) == ("≈ 9.51", "≈ 2.268", "≈ 62.5 %")
    assert (cpu["before"], cpu["after"], cpu["share"]) == ("3", "1.8", "61.7 %")
    devices = devices_section(found)
    assert devices is not None
    assert [devices["rows"][0][key] for key in ("before", "after", "speedup")] == ["≈ 9.51", "≈ 2.268", "≈ ×1.60"]
    assert ("other processes", "1.40 of 2 cores") in provenance(found)


def test_a_ratio_of_its_own_doubt_is_marked() -> None:
    found = run({**RATIO, "doubt": "after 400 rounds the ratio lies between 1.20x and 2.00x"})
    assert tiles(found)["Latency"]["value"] == "≈ ×1.60"
    (line,) = (one for one in text(found).splitlines() if one.startswith("~ in doubt"))
    assert line == (
        "~ in doubt: after 400 rounds the ratio lies between 1.20x and 2.00x; measure again on a quiet machine "
        "(--wait-quiet)"
    )


def test_the_text_of_a_run_says_what_the_report_says() -> None:
    quiet, busy = run(RATIO), run(RATIO, (BUSY,))
    assert cells(quiet, "ms, 1 thread") == ["9.510", "2.268", "1.60x (1.20 to 4.10) as fast"]
    assert cells(quiet, "ms of CPU time") == ["3.000", "1.800", "1.62x as fast"]
    assert cells(busy, "ms, 1 thread") == ["~9.510", "~2.268", "~1.60x (1.20 to 4.10) as fast"]
    assert "-76.2%" not in text(quiet) + text(busy)
    assert "in doubt" not in text(quiet)


def test_an_earlier_file_that_contradicts_itself_is_marked() -> None:
    tile = tiles(run())["Latency"]
    assert (tile["value"], tile["note"]) == ("≈ ×1.60", "in doubt: the times say otherwise")
    section = latency_section(run())
    assert section is not None
    assert "the medians of the times would say 4.19x, the rounds say 1.60x" in section["doubts"]
    sound = run(before={"median_ms": 9.51}, after={"median_ms": 5.94})
    tile = tiles(sound)["Latency"]
    assert (tile["value"], tile["note"]) == ("×1.60", "9.51 → 5.94 ms")


def test_processor_times_that_contradict_their_ratio_are_marked() -> None:
    found = run({**RATIO, "cpu": 1.01})
    section = latency_section(found)
    assert section is not None
    assert [section["costs"][1][key] for key in ("before", "after", "share")] == ["≈ 3", "≈ 1.8", "≈ 99.0 %"]
    assert cells(found, "ms of CPU time") == ["~3.000", "~1.800", "~1.01x as fast"]


def test_starts_that_were_not_in_turns_have_no_ratio() -> None:
    sides = {
        side: {"median_ms": 2.0, "memory": {"cold_ms": ms, "added_bytes": size}}
        for side, ms, size in (("before", 199.0, 2**21), ("after", 101.0, 2**20))
    }
    section = latency_section(run(RATIO, **sides))
    assert section is not None
    rows = {row["label"]: row["share"] for row in section["costs"]}
    assert rows["cold start and first call, ms"] == "–"
    assert rows["memory that the bundle adds"] == "50.0 %"


@pytest.mark.parametrize("ratio", [RATIO, {**RATIO, "cpu": None}])
def test_a_processor_time_that_is_not_known(ratio: dict[str, Any]) -> None:
    note = tiles(run(ratio))["Latency"]["note"]
    assert ("CPU time" in note) == (ratio["cpu"] is not None)
