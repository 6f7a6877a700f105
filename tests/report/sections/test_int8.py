"""INT8 in the reports: every task's metrics, how much of its limit is used up, and what went back to floating point."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from testkit.browser import check_alone, laid_out, words
from testkit.sample_results import quantization, results

from mtlc.errors import UserError
from mtlc.report.run_report import write_report
from mtlc.report.sections.int8 import limit_used, quantization_section, write_quantization_page
from mtlc.results.quantize import Int8Metrics, QuantizeResult
from mtlc.results.run import RunResults


def of_the_verb() -> dict[str, Any]:
    device = {"cpu": "AMD EPYC 7B13", "cores": 2, "system": "Linux", "machine": "x86_64", "load_1min": None}
    return {
        **quantization(), "bundle": "out/bundle", "against": "out/reference", "job": "job.toml",
        "versions": {"nncf": "3.4.0", "onnxruntime": "1.32.0"}, "device": device,
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "int8.html"
    write_quantization_page(QuantizeResult.model_validate(of_the_verb()), path)
    return path


def shown(made: dict[str, Any], folder: Path) -> str:
    write_quantization_page(QuantizeResult.model_validate(made), folder / "int8.html")
    return words((folder / "int8.html").read_text())


def test_a_browser_draws_it_and_fetches_nothing(chromium: str, page: Path, tmp_path: Path) -> None:
    _, found = laid_out(chromium, page, tmp_path)
    assert len(found["svg"]) == 1
    assert all(width > 500 and height > 200 for width, height in found["svg"])


def test_it_is_one_small_file_and_the_same_again(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert len(text) < 100_000
    check_alone(text)
    write_quantization_page(QuantizeResult.model_validate(of_the_verb()), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == text


def test_the_head_says_what_was_gained_and_what_was_missed(page: Path) -> None:
    text = words(page.read_text())
    head = text[: text.index("What each task pays")]
    for said in (
        "bundle-int8: INT8 for x86",
        "5 tasks: semseg, depth, normals, edge, sal · made of out/bundle",
        "98.6 % of the multiply–accumulates run in INT8, and the bundle has 30 % of its former size.",
        "In INT8 modelled 98.6 % of the MACs",
        "Bundle measured 30 % 3.24 MiB → 1000 KiB",
        "Floating point 2 operators given back, 85 in INT8",
        "Limits kept 3 of 4 on the validation split",
        "Not every limit was kept. The best effort was written. task 'normals': mean_angle is 18.7 in INT8",
    ):
        assert said in head


def test_both_splits_have_their_metrics_and_verdicts(page: Path) -> None:
    text = words(page.read_text())
    validation, control = text.split("What the control did")
    assert "semseg miou (%) ↑ 61 60.8 −0.33 % 1% 60.39 33 % kept" in validation
    assert "depth rmse (m) ↓ 0.51 0.522 −2.35 % 0.02 0.53 60 % kept" in validation
    assert "normals mean_angle (°) ↓ 18.4 18.7 −1.63 % 1% 18.58 163 % missed" in validation
    assert "edge f1 ↑ 0.71 0.7135 +0.49 % 1% 0.7029 −49 % kept" in validation
    assert "sal miou (%) ↑ 77.9 77.1 −1.03 % – – –" in validation
    assert "The 400 samples of the calibration split" in control
    assert "depth rmse (m) ↓ 0.5 0.56 300 % 0.509 45 % 0.52 kept" in control
    assert "sal miou (%) ↑ 77 76.1 – 76.1 – –" in control


def test_how_sure_a_change_is_stands_beside_it(tmp_path: Path) -> None:
    made = of_the_verb()
    interval = {"low": -0.004, "high": 0.031, "confidence": 0.95, "samples": 90, "draws": 1000}
    made["tasks"]["depth"]["validation"]["change_interval"] = interval
    text = shown(made, tmp_path).split("What the control did")[0]
    assert "95 % interval, in its unit" in text
    assert "depth rmse (m) ↓ 0.51 0.522 −2.35 % -0.004 to +0.031 0.02 0.53 60 % kept" in text
    assert "sal miou (%) ↑ 77.9 77.1 −1.03 % – – – –" in text


def test_operators_have_the_task_that_they_were_for(page: Path) -> None:
    text = words(page.read_text())
    assert "2 operators went back to floating point, for the sake of depth. 1 operator never left it." in text
    assert "Ranges come from 128 samples of the calibration split, decisions from 400." in text
    assert "(7-bit weights, right on x86 without VNNI too): 98.6 % of the multiply–accumulates, counted" in text
    assert "The bundle goes from 3.24 MiB to 1000 KiB." in text
    assert "decoders.depth/Resize_60 Resize head-depth depth rmse (m) ↓ 0.56 0.53" in text
    assert "decoders.depth.smooth.2.conv/Conv_47 Conv head-depth depth rmse (m) ↓ 0.53 0.509" in text
    assert "mlp.router/MatMul_7 trunk it decides a discrete choice" in text


def test_the_plot_cuts_a_bar_that_is_too_long_and_names_it(page: Path) -> None:
    svg = re.search(r"<svg.*?</svg>", page.read_text(), re.DOTALL)[0]  # type: ignore[index]
    # Tasks with a limit only; of the bars only depth's, at three times its limit, is cut and so labelled.
    assert [name for name in ("semseg", "depth", "normals", "edge", "sal") if f">{name}<" in svg] == [
        "semseg", "depth", "normals", "edge",
    ]  # fmt: skip
    assert ">300 %<" in svg


def test_where_the_numbers_come_from(page: Path) -> None:
    text = words(page.read_text())
    assert "nncf 3.4.0 onnxruntime 1.32.0 float bundle out/bundle INT8 bundle out/bundle-int8 job job.toml" in text
    assert "limits measured against out/reference search 88 operators ranked, 4 measurements cpu AMD EPYC" in text


def test_all_kept_and_nothing_given_back(tmp_path: Path) -> None:
    made = of_the_verb()
    made["tasks"]["normals"].update(
        missed=None, validation={"float": 18.4, "int8": 18.5, "bound": 18.6, "within": True}
    )
    made["operators"].update(float=[], excluded=[])
    text = shown({**made, "missed": []}, tmp_path)
    assert "Every task kept its limit." in text
    assert "4 of 4" in text
    assert "No operator had to go back to floating point." in text
    assert "Back in floating point" not in text
    assert "Never quantised" not in text


def test_a_limit_that_floating_point_misses_is_not_shown_as_kept(tmp_path: Path) -> None:
    made = of_the_verb()
    made["tasks"]["depth"]["missed"] = "task 'depth': no precision can meet it"
    text = shown({**made, "missed": ["task 'depth': no precision can meet it"]}, tmp_path)
    assert "0.53 60 % missed" in text
    assert "2 of 4" in text


def test_without_limits_there_is_no_plot_and_no_verdict(tmp_path: Path) -> None:
    made = of_the_verb()
    made["tasks"] = {"sal": made["tasks"]["sal"]}
    made["operators"]["float"] = []
    text = shown({**made, "missed": []}, tmp_path)
    assert "Every task kept" not in text
    assert "Limits kept" not in text
    assert "<figure>" not in (tmp_path / "int8.html").read_text()


def test_a_metric_that_is_not_a_number_is_a_dash(tmp_path: Path) -> None:
    made = of_the_verb()
    made["tasks"]["depth"]["control"]["int8_all"] = float("nan")
    made["operators"]["float"][0]["before"] = None
    text = shown(made, tmp_path)
    assert "nan" not in text
    assert "None" not in text
    assert "depth rmse (m) ↓ 0.5 – – 0.509 45 % 0.52 kept" in text


def test_the_share_of_a_limit() -> None:
    def used(plain: float, int8: float, bound: float | None) -> float | None:
        found = Int8Metrics.model_validate({"float": plain, "int8": int8, "bound": bound, "within": None})
        return limit_used(found, found.int8)

    assert used(60.0, 59.7, 59.4) == pytest.approx(0.5)
    assert used(0.5, 0.56, 0.52) == pytest.approx(3.0)
    assert used(0.5, 0.49, 0.52) == pytest.approx(-0.5)
    assert used(0.5, 0.56, None) is None
    # Of a limit of nothing there is no share.
    assert used(0.5, 0.56, 0.5) is None


def test_long_lists_are_folded(tmp_path: Path) -> None:
    made = of_the_verb()
    made["operators"]["float"] *= 20
    write_quantization_page(QuantizeResult.model_validate(made), tmp_path / "int8.html")
    assert "<summary>40 operators</summary>" in (tmp_path / "int8.html").read_text()


def test_names_are_escaped(tmp_path: Path) -> None:
    made = of_the_verb()
    made["path"], made["operators"]["float"][0]["operator"] = "out/<b>x", "<img src=x>"
    made["missed"] = ["<script>"]
    write_quantization_page(QuantizeResult.model_validate(made), tmp_path / "int8.html")
    text = (tmp_path / "int8.html").read_text()
    assert [bad for bad in ("<b>x", "<script>]", "<img src") if bad in text] == []
    assert text.count("<script") == 1  # the page's own


def test_a_run_shows_the_section_and_what_int8_alone_missed(tmp_path: Path) -> None:
    write_report(RunResults.read(results(), "made"), {}, tmp_path / "report.html")
    text = words((tmp_path / "report.html").read_text())
    line = "INT8: task 'normals': mean_angle is 18.7 in INT8 on validation, its limit is 18.58."
    assert line in text[: text.index("The budget, and what was reached")]
    assert "In INT8: what each task pays measured 85 operators run in INT8 for the target x86" in text
    # What the compressed network misses is said of that network.
    made = results()
    made["tasks"]["normals"]["within"] = False
    write_report(RunResults.read(made, "made"), {}, tmp_path / "report.html")
    assert line not in words((tmp_path / "report.html").read_text())
    assert quantization_section(None) is None


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError):
        write_quantization_page(QuantizeResult.model_validate(of_the_verb()), tmp_path / "file" / "int8.html")
    assert (tmp_path / "file").read_text() == "old"
