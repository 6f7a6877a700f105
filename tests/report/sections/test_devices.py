"""The report's comparison of devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from testkit.browser import laid_out, words

from mtlc.report.figures.roofline import roofline, slowest
from mtlc.report.run_report import write_report
from mtlc.report.sections.devices import devices_section
from mtlc.results.devices import DeviceResult
from mtlc.results.run import RunResults


def layer(name: str, ms: float, bound: str | None, intensity: float | None, rate: float) -> dict[str, Any]:
    return {"name": name, "ms": ms, "bound": bound, "kernel": "spatial", "intensity": intensity, "rate": rate}


def entries() -> list[DeviceResult]:
    layers = [
        layer("encoder.stem", 2.0, "compute", 80.0, 4e11), layer("decoder.fuse", 1.0, "memory", 4.0, 5e10),
        layer("head", 0.5, "launch", 9.0, 1e9), layer("", 0.25, "memory", None, 0.0),
    ]  # fmt: skip
    modelled: dict[str, Any] = {
        "device": "board", "title": "A <board>", "kind": "modelled", "what": "latency", "precision": "int8",
        "peak": 6e11, "bandwidth": 9e9, "peak_bandwidth": 18e9, "ceilings": {"spatial": 5e11},
        "before_ms": 8.0, "after_ms": 4.0,
        "speedup": 2.0, "run_ms": 0.25, "error": {"median": 0.056, "p90": 0.21, "held_out": "networks"},
        "outside_fit": "smaller", "bounds": {"compute": 0.5, "memory": 0.31, "launch": 0.19}, "layers": layers,
        "notes": ["Smaller than the fit."],
    }  # fmt: skip
    on_chip = {**modelled, "device": "chip", "title": "A chip", "peak_bandwidth": None, "error": None, "notes": []}
    on_chip["layers"] = [layer("encoder.stem", 2.0, "compute", None, 4e11), layer("big", 3.0, "memory", 0.5, 2e8)]
    measured = {
        **modelled, "device": "local-cpu", "title": "A CPU", "kind": "measured", "precision": "fp32", "error": None,
        "peak": None, "bandwidth": None, "peak_bandwidth": None, "ceilings": {}, "bounds": None,
        "notes": ["Calibrate."],
    }  # fmt: skip
    return [DeviceResult.read(one, "made") for one in (measured, modelled, on_chip)]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("devices") / "report.html"
    write_report(RunResults(devices=entries()), {}, path)
    return path


def test_a_row_says_its_kind_its_error_and_what_it_waits_for() -> None:
    section = devices_section(RunResults(devices=entries()))
    assert section is not None
    here, board, chip = section["rows"]
    assert (here["kind"], here["error"], here["waits"]) == ("measured", [], "not known")
    assert board["error"] == ["±6 % (p90 21 %)", "on networks held out", "this one is smaller"]
    assert board["waits"] == "arithmetic 50 %, memory 31 %, launches 19 %"
    assert (board["before"], board["after"], board["speedup"]) == ("8", "4", "×2.00")
    assert chip["error"] == ["error not known"]
    assert section["modelled"]
    assert devices_section(RunResults(devices=[])) is devices_section(RunResults()) is None


def test_the_slowest_layers_are_numbered_and_named() -> None:
    board = entries()[1]
    assert [one.name for one in slowest(board)] == ["encoder.stem", "decoder.fuse", "head"]
    section = devices_section(RunResults(devices=[board]))
    assert section is not None
    assert section["plots"][0]["slowest"][1] == "decoder.fuse 1 ms, waits for memory"


def test_a_plot_has_both_roofs_and_escapes_its_title() -> None:
    here, board, _ = entries()
    assert roofline(here) is None
    text = roofline(board)
    assert text is not None
    assert 'aria-label="Roofline of A &lt;board&gt;"' in text
    for word in (">peak<", ">fitted<", ">waits for compute<", ">waits for memory<", ">waits for launch<", ">100 G<"):
        assert word in text
    assert "mathdefault" not in text


def test_layers_that_pass_no_byte_have_a_panel_of_their_own_over_their_work() -> None:
    """On one axis with an end that is none the roof would have a gap, and all such layers one place."""
    _, board, chip = entries()
    resident = chip.model_copy(update={"layers": [one.model_copy(update={"intensity": None}) for one in board.layers]})
    alone, memory = roofline(resident) or "", roofline(board) or ""
    mixed = roofline(
        board.model_copy(update={"layers": [*board.layers, board.layers[0].model_copy(update={"intensity": None})]})
    ) or ""  # fmt: skip
    for text, panels, axes in ((alone, 1, ("of the layer",)), (memory, 1, ("for each byte",)),
                               (mixed, 2, ("of the layer", "for each byte"))):  # fmt: skip
        assert len(re.findall(r'<g id="axes_\d+"', text)) == panels
        assert [
            said for said in ("of the layer", "for each byte") if f"multiply–accumulates {said}<" in text
        ] == sorted(axes, key=("of the layer", "for each byte").index)
        roofs = re.findall(r'<g id="line2d_\d+">\s*<path d="([^"]+)" clip-path', text)
        assert roofs
        assert all(path.count("M") == 1 for path in roofs)  # one stroke each: nothing is broken


def test_layers_that_lie_on_each_other_share_a_number() -> None:
    board = entries()[1]
    first = board.layers[0]
    twice = board.model_copy(update={"layers": [first, first.model_copy(update={"name": "again"})]})
    assert ">1, 2<" in (roofline(twice) or "")


def test_the_page_draws_them(chromium: str, page: Path, tmp_path: Path) -> None:
    dom, found = laid_out(chromium, page, tmp_path)
    assert len(found["svg"]) == 2
    assert all(width > 500 and height > 100 for width, height in found["svg"])
    text = words(dom)
    assert "How to read a roofline" in text
    assert "1: encoder.stem 2 ms, waits for arithmetic" in text
    assert "A modelled time was measured on no such device" in text


def test_a_page_of_measured_devices_does_not_speak_of_models(tmp_path: Path) -> None:
    write_report(RunResults(devices=entries()[:1]), {}, tmp_path / "report.html")
    text = words((tmp_path / "report.html").read_text())
    assert "A modelled time" not in text
    assert "How to read" not in text
    assert "Calibrate." in text
