"""The graph of the network: boxes in boxes, sums of costs, what is known of each, and that a browser draws it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from testkit.browser import browse, laid_out, words
from testkit.sample_results import quantization, results

from mtlc.report.run_report import write_report
from mtlc.report.sections.network import SHOWN_FIRST, network_section
from mtlc.results.run import RunResults


def node(name: str, *inputs: str, kind: str = "conv", **more: Any) -> dict[str, Any]:
    return {"id": name, "name": name, "kind": kind, "inputs": list(inputs), **more}


def layer(name: str, before: int, after: int | None, macs: tuple[int, int | None]) -> dict[str, Any]:
    return {
        "name": name, "kind": "conv", "channels_before": before, "channels_after": after, "macs_before": macs[0],
        "macs_after": macs[1], "params_before": 10, "params_after": None if after is None else 5,
        "bytes_before": 100, "bytes_after": None if after is None else 50,
    }  # fmt: skip


def made() -> dict[str, Any]:
    """An encoder of two blocks with a short cut around the second, two heads, one of them gone."""
    return {
        "tasks": results()["tasks"],
        "layers": [
            layer("encoder.0.conv", 8, 4, (1000, 500)),
            layer("encoder.1.conv", 8, 8, (3000, 1500)),
            layer("heads.a", 2, 2, (400, 100)),
            layer("heads.b", 2, None, (600, None)),
        ],
        "graph": {
            "nodes": [
                {"id": "input x", "name": "x", "kind": "input"},
                node("encoder.0.conv", "input x"),
                node("encoder.1.conv", "encoder.0.conv"),
                {
                    "id": "encoder join 1", "name": "encoder", "kind": "elementwise", "join": True,
                    "inputs": ["encoder.0.conv", "encoder.1.conv"],
                },
                node("heads.a", "encoder join 1"),
                node("heads.b", "encoder join 1", network="before"),
                {"id": "output a", "name": "a", "kind": "output", "inputs": ["heads.a"]},
            ]
        },
        "sensitivity": {
            "units": [{"name": "encoder.0.conv"}, {"name": "encoder.1.conv"}],
            "ratios": [0.25, 0.5],
            "tasks": ["a"],
            "growth": [[[0.01], [0.04]], [[0.001], [0.01]]],
        },
        "latency": {
            "kind": "measured", "device": {"cpu": "c"}, "threads": 1, "batch": 1, "rounds": 9,
            "before": {"median_ms": 2.0}, "after": {"median_ms": 1.0}, "speedup": 2.0,
            "layers": [{"name": "encoder.0.conv", "before_ms": 0.5, "after_ms": 0.25}],
        },
    }  # fmt: skip


def drawn(data: dict[str, Any]) -> dict[str, Any]:
    found = network_section(RunResults.read(data, "made"))
    assert found is not None
    return {**found, "data": json.loads(found["data"])}


def test_modules_lie_in_modules_with_the_sums_of_their_layers() -> None:
    root = drawn(made())["data"]
    assert [box["n"] for box in root["c"]] == ["x", "encoder", "heads", "a"]
    encoder, heads = root["c"][1:3]
    assert [box["n"] for box in encoder["c"]] == ["0.conv", "1.conv", "+"]
    assert encoder["s"] == "2 layers · 4 k → 2 k"
    assert encoder["l"] == 0.5
    assert heads["s"] == "2 layers · 1 k → 100"
    assert "g" not in heads
    assert [box.get("g") for box in heads["c"]] == [None, 1]
    assert "1 of its layers are gone" in heads["t"]


def test_a_box_tells_all_that_is_known_of_it() -> None:
    first = drawn(made())["data"]["c"][1]["c"][0]
    assert first["s"] == "8 → 4 ch · 1 k → 500"
    assert first["t"].splitlines() == [
        "encoder.0.conv (conv)",
        "output channels 8 → 4",
        "MACs 1 k → 500",
        "parameters 10 → 5",
        "bytes read and written 100 B → 50 B",
        "ms, measured 0.5 → 0.25",
        "sensitivity of a: loss +4.00 %",
    ]


def test_shades_are_shares_on_one_scale() -> None:
    found = drawn(made())
    assert [key for key, _ in found["measures"]] == ["macs", "saved", "bytes", "ms", "s:a"]
    first, second, join = found["data"]["c"][1]["c"]
    # 500 and 1500 of 2100 MACs after, by their root; half of either went; the most sensitive unit is full.
    assert first["h"] == [0.49, 0.5, 0.58, 1.0, 1.0]
    assert second["h"][:2] == [0.85, 0.5]
    assert second["h"][3:] == [-1, 0.5]  # not timed; a quarter as sensitive
    assert "h" not in join


def test_flow_within_and_across_modules() -> None:
    root = drawn(made())["data"]
    assert root["e"] == [[0, 1], [1, 2], [2, 3]]
    encoder = root["c"][1]
    assert encoder["r"][0] == [0]
    assert [0, 1] in encoder["e"]
    assert any(route[0] == 0 and route[-1] == 2 and len(route) == 3 for route in encoder["e"])
    assert (encoder["i"], encoder["o"]) == ([0], [2])


def test_int8_stands_on_the_layers_that_it_concerns() -> None:
    data = made()
    data["quantization"] = quantization()
    operators = data["quantization"]["operators"]
    operators["float"][0].update(operator="encoder.1.conv/Conv_3", task="depth")
    operators["excluded"][0].update(operator="heads.a/Conv_9")
    operators["errors"] = [
        {"program": "trunk", "operator": "encoder.0.conv/Conv_1", "shares": {"depth": 0.4}},
        {"program": "trunk", "operator": "encoder.1.conv/Conv_3", "shares": {"depth": 0.1}},
    ]
    found = drawn(data)
    keys = [key for key, _ in found["measures"]]
    first, second, _ = found["data"]["c"][1]["c"]
    assert "INT8: 40.0 % of the error of depth" in first["t"]
    assert (first["h"][keys.index("q:depth")], second["h"][keys.index("q:depth")]) == (1.0, 0.5)
    assert "back in floating point for depth" in second["t"]
    assert (first["h"][keys.index("float")], second["h"][keys.index("float")]) == (0.0, 1.0)
    assert "never in INT8: it decides a discrete choice" in found["data"]["c"][2]["c"][0]["t"]


def seen(box: dict[str, Any]) -> int:
    return sum(1 + (seen(one) if one.get("x") else 0) for one in box["c"])


def test_five_hundred_layers_begin_with_few_boxes() -> None:
    names = [f"stage{stage}.blocks.{block}.conv{c}" for stage in (1, 2) for block in range(100) for c in (1, 2)]
    names += [f"flat.{index}" for index in range(100)]
    data = {
        "layers": [layer(name, 8, 4, (100, 50)) for name in names],
        "graph": {"nodes": [node(name, *names[i - 1 : i]) for i, name in enumerate(names)]},
    }
    root = drawn(data)["data"]
    assert [box["n"] for box in root["c"]] == ["stage1.blocks", "stage2.blocks", "flat"] or [
        box["n"] for box in root["c"]
    ] == ["stage1", "stage2", "flat"]
    assert seen(root) <= SHOWN_FIRST

    def most(box: dict[str, Any]) -> int:
        return max([len(box.get("c", ())), *(most(one) for one in box.get("c", ()))])

    def leaves(box: dict[str, Any]) -> int:
        return sum(map(leaves, box["c"])) if "c" in box else 1

    assert leaves(root) == 500
    assert most(root) <= 24
    assert [box["n"] for box in root["c"][2]["c"]][:2] == ["0 … 11", "12 … 23"]


def test_without_a_graph_there_is_no_section() -> None:
    assert network_section(RunResults.read(results(), "made")) is None


def test_names_cannot_leave_their_place(tmp_path: Path) -> None:
    data = made()
    data["graph"]["nodes"][4].update(name='"><script>alert(1)</script>', id="heads.a")
    write_report(RunResults.read(data, "made"), {}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<script") == 1
    assert "alert(1)" in text


def test_a_browser_draws_it_and_opens_what_is_clicked(chromium: str, tmp_path: Path) -> None:
    write_report(RunResults.read(made(), "made"), {}, tmp_path / "report.html")
    dom, console = browse(chromium, tmp_path / "report.html", tmp_path / "profile")
    assert console == ""
    section = dom[dom.index('<section id="network"') :]
    boxes = re.findall(r'<g [^>]*class="box ([^"]*)"', section)
    assert boxes.count("join") == 1  # the encoder is open from the start
    assert sum("module open" in box for box in boxes) == 2
    assert section.count('<path d="M') >= 8
    assert "4 layers that multiply" in words(section)
    click = '<script>addEventListener("load", () => document.querySelector("[data-do=close]").click());</script>'
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (tmp_path / "report.html").read_text())
    (tmp_path / "closed.html").write_text(text.replace("</body>", f"{click}</body>"))
    closed, console = browse(chromium, tmp_path / "closed.html", tmp_path / "profile")
    assert console == ""
    boxes = re.findall(r'<g [^>]*class="box ([^"]*)"', closed)
    assert [box.split()[0] for box in boxes] == ["input", "module", "module", "output"]


@pytest.mark.slow
def test_nothing_is_fetched_and_nothing_too_wide(chromium: str, tmp_path: Path) -> None:
    write_report(RunResults.read(made(), "made"), {}, tmp_path / "report.html")
    laid_out(chromium, tmp_path / "report.html", tmp_path)
