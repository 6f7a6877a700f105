"""The page of two bundles: B's share of A's time is by the rounds, and what was not measured in turns has none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mtlc.report.comparison import write_comparison
from mtlc.results.compare import Comparison

RATIO = {"median": 1.6, "p10": 1.2, "p90": 4.1, "low": 1.5, "high": 1.7, "cpu": 1.25, "doubt": None}


def page(folder: Path, **latency: Any) -> str:
    """The page of A and B, whose medians alone would say ×4.19."""
    side = {
        "path": "a", "bundle": "a", "results": None, "programs": 1, "configurations": [], "device": None, "passes": [],
        "versions": {}, "network": "n",
    }  # fmt: skip
    cost = {"kind": "modelled", "macs": 10, "parameters": 4, "bytes": 100}
    memory = {label: {"cold_ms": ms, "peak_bytes": 2**20} for label, ms in (("A", 40.0), ("B", 20.0))}
    found = Comparison.model_validate({
        "kind": "comparison", "A": side, "B": side, "tasks": {}, "cost": {"A": cost, "B": cost}, "memory": memory,
        "layers": [], "agreement": None, "agreement_inputs": None, "differs": [], "notes": [],
        "latency": {
            "device": {"cpu": "A CPU"}, "in_turns": True, "speedup": {"B": RATIO}, "doubts": [],
            "bundles": {"A": {"median_ms": 9.51, "p10_ms": 9.0, "p90_ms": 10.0, "cpu_median_ms": 2.5},
                        "B": {"median_ms": 2.268, "p10_ms": 2.0, "p90_ms": 3.0, "cpu_median_ms": 2.0}},
            **latency,
        },
    })  # fmt: skip
    write_comparison(found, folder / "page.html")
    return re.sub(r"<svg.*?</svg>", "", (folder / "page.html").read_text(), flags=re.DOTALL)


def row(text: str, label: str) -> list[str]:
    (cells,) = re.findall(rf'<th scope="row">{label}</th>(.*?)</tr>', text)
    return [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", cells)]


def test_shares_of_time_are_by_the_rounds(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert row(text, "latency, ms") == ["9.51", "2.268", "62.5 %", "measured"]
    assert row(text, "CPU time, ms") == ["2.5", "2", "80.0 %", "measured"]
    assert row(text, "cold start, ms") == ["40", "20", "–", "measured"]
    assert "<b class=\"\">×1.60</b><span>×1.20 to ×4.10 · CPU time ×1.25</span>" in text  # fmt: skip
    assert "23.8" not in text
    assert "24 %" not in text
    assert "in doubt" not in text


def test_a_busy_machine_is_said(tmp_path: Path) -> None:
    load = {"cores": 2, "others_cores": 1.5, "load_1min": 4.0}
    text = page(tmp_path, doubts=["the machine was busy: other processes used 1.5 of 2 cores"], load=load)
    assert "≈ marks what is in doubt: the machine was busy: other processes used 1.5 of 2 cores." in text
    assert row(text, "latency, ms") == ["≈ 9.51", "≈ 2.268", "≈ 62.5 %", "measured"]
    assert "What B is of A: ≈ ×1.60 as fast, measured in turns." in text
    assert "<dt>other processes</dt><dd>1.50 of 2 cores</dd>" in text


def test_what_did_not_run_in_turns_has_no_ratio(tmp_path: Path) -> None:
    text = page(tmp_path, in_turns=False, speedup={})
    assert row(text, "latency, ms") == ["9.51", "2.268", "–", "measured"]
    assert row(text, "CPU time, ms") == ["2.5", "2", "–", "measured"]
    assert "<span>Latency" not in text
