"""Writes the report of a run: one HTML file without anything to fetch."""

from __future__ import annotations

from pathlib import Path

from mtlc.errors import UserError
from mtlc.report.parts.page import json_text, write_page
from mtlc.report.sections.checks import checks
from mtlc.report.sections.paid import paid
from mtlc.report.sections.provenance import provenance
from mtlc.report.sections.registry import sections
from mtlc.report.sections.samples import Pictures, check_pictures
from mtlc.report.sections.summary import subtitle, summary
from mtlc.results.run import RunResults


def write_report(results: RunResults, pictures: Pictures, path: Path) -> None:
    """Write the report to `path`, atomically, with a section for everything that `results` has.

    `pictures` holds ``image`` and ``truth_<task>``, ``before_<task>``, ``after_<task>``, each (K, H, W, 3) uint8; the
    first few samples are shown, scaled down so that the file stays under 2 MB.

    Raises `UserError` if a picture has another shape or type, or the file cannot be written. If a section of an
    installed package fails, the page is written without it first.
    """
    check_pictures(pictures)
    shown, failed = [], []
    for one in sections(pictures):
        try:
            shown.append(one.section(results))
        except UserError as error:
            failed.append(error)
    view = {
        "title": results.title or "Compression report",
        "subtitle": subtitle(results),
        "summary": summary(results),
        "paid": paid(results),
        "checks": checks(results),
        "sections": [html for html in shown if html is not None],
        "provenance": provenance(results),
        "job": json_text(
            {"set over the file": results.overrides, **(results.job or {})} if results.overrides else results.job
        ),
    }
    write_page("report.html.j2", view, path)
    if failed:
        raise failed[0]
