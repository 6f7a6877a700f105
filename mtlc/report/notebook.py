"""Shows results in a notebook: what was gained and paid, a sample's pictures, and the whole page folded below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlc.report.parts.changes_in_percent import gain_percent, interval_percent, interval_words
from mtlc.report.parts.numbers import DASH, as_change, as_count, as_number, as_percent
from mtlc.report.parts.page import render
from mtlc.report.sections.samples import Pictures, samples_section
from mtlc.report.sections.summary import summary
from mtlc.results.run import RunResults
from mtlc.results.slim import SlimResult

_HEAD = ("task", "metric", "before", "after", "change", "95 % interval", "may lose", "limit")
_VERDICTS = {True: "kept", False: "missed", None: ""}


def run_html(results: RunResults, pictures: Pictures, page: Path, bundle: Path) -> str:
    """A finished compression as HTML: each task's change, one sample of `pictures`, and `page` where it is there."""
    found = summary(results)
    rows = []
    for name, task in results.tasks.items():
        verdict = "kept by chance" if task.by_chance and task.within else _VERDICTS[task.within]
        metric = f"{task.metric} ({task.unit})" if task.unit else task.metric
        change, interval = as_change(gain_percent(task)), interval_words(interval_percent(task)) or DASH
        limit = DASH if task.limit is None else task.limit
        rows.append((name, metric, as_number(task.before), as_number(task.after), change, interval, limit, verdict))
    samples = samples_section({name: stack[:1] for name, stack in pictures.items()})
    view = {
        "verdict": "" if found["missed"] else found["verdict"],
        "words": found["words"],
        "missed": results.missed,
        "warnings": found["warnings"],
        "head": _HEAD,
        "rows": rows,
        "sample": samples[0] if samples else None,
    }
    return _rendered(view, page, bundle)


def widths_html(results: SlimResult, page: Path, bundle: Path) -> str:
    """A network of many widths as HTML: its named configurations with each task's metric, and `page`."""
    tasks, points = results.tasks or {}, results.points or []
    validated = all(point.validation for point in points)
    widest = max((point.macs for point in points), default=0)
    rows = []
    for point in points:
        metrics = (point.validation if validated else point.metrics) or {}
        delta = point.delta_m if validated else None if point.gain is None else 100 * point.gain
        share = as_percent(point.macs / widest, 0) if widest else DASH
        rows.append(
            (point.name, as_count(point.macs), share, as_change(delta), *(as_number(metrics.get(t)) for t in tasks))
        )
    warning, split = results.unlearned_warning(), "the validation split" if validated else "held-out data"
    view = {
        "verdict": "",
        "words": f"{len(points)} named configurations, measured on {split}.",
        "missed": [],
        "warnings": [] if warning is None else [f"{warning[:1].upper()}{warning[1:]}."],
        "head": (
            "configuration",
            "MACs",
            "of widest",
            "Δm",
            *(f"{name} ({task.metric})" for name, task in tasks.items()),
        ),
        "rows": rows,
        "sample": None,
    }
    return _rendered(view, page, bundle)


def _rendered(view: dict[str, Any], page: Path, bundle: Path) -> str:
    inner = page.read_text(encoding="utf-8") if page.is_file() else None
    return render("notebook.html.j2", {**view, "page": inner, "path": str(page), "bundle": str(bundle)})
