"""Sums a run up for the top of its report: what was gained, what it cost the tasks, and what was missed."""

from __future__ import annotations

from typing import Any

from mtlc.report.parts.numbers import as_bytes, as_count, as_number, as_percent, as_times, marked
from mtlc.report.parts.page import tile
from mtlc.report.sections.int8 import missed_in_int8
from mtlc.report.sections.latency import ratio_words
from mtlc.results.latency import LatencyResult
from mtlc.results.run import RunResults
from mtlc.results.tasks import chance_warnings, unlearned_warnings

Tiles = list[dict[str, Any]]


def subtitle(results: RunResults) -> str:
    """The tasks and the passes: "2 tasks: depth, semseg · prune → finetune"."""
    tasks = results.tasks
    parts = [f"{len(tasks)} tasks: {', '.join(tasks)}" if len(tasks) > 1 else ", ".join(tasks)]
    parts.append(" → ".join(step.name for step in results.passes))
    return " · ".join(part for part in parts if part)


def summary(results: RunResults) -> dict[str, Any]:
    """Sentences, tiles with the figures that matter most, and the verdict."""
    tiles: Tiles = []
    gained = [*_cost_words(results, tiles), *_latency_words(results.latency, tiles)]
    sentences = [f"{_as_sentence(gained)}."] if gained else []
    judged = [task.within for task in results.tasks.values() if task.within is not None]
    change = results.delta_m.vs_original
    if change is not None and all(task.learned() for task in results.tasks.values()):
        worse = "worse" if change < 0 else "better"
        sentences.append(f"On average its tasks are {abs(change):.2f} % {worse} than before (Δm).")
    if judged:
        kept = sum(judged)
        sentences.append("All limits kept." if all(judged) else f"{len(judged) - kept} of {len(judged)} limits missed.")
    warnings = (*unlearned_warnings(results.tasks), *chance_warnings(results.tasks))
    return {
        "words": " ".join(sentences),
        "tiles": tiles,
        "warnings": [f"{line[:1].upper()}{line[1:]}." for line in warnings],
        **_verdict(results, judged),
    }


def _cost_words(results: RunResults, tiles: Tiles) -> list[str]:
    words = []
    old, new = results.cost.before, results.cost.after
    for label, before, after, show, kind in (
        ("MACs", old.macs, new.macs, as_count, "modelled"),
        ("Parameters", old.parameters, new.parameters, as_count, "modelled"),
        ("Bundle", old.bundle_bytes, new.bundle_bytes, as_bytes, "measured"),
    ):
        if not before or after is None:
            continue
        less = f"{100 * (after / before - 1):+.0f} %".replace("-", "−")
        tiles.append(_tile(label, less, f"{show(before)} → {show(after)}", kind, after / before))
        if label == "MACs":
            words.append(f"The network does its work with {as_percent(after / before, 0)} of the multiply–accumulates")
    return words


def _tile(label: str, value: str, note: str, kind: str, share: float | None) -> dict[str, Any]:
    """A figure with a bar of what is left of it, in percent; no bar where that is not known or it grew."""
    known = share is not None and 0 <= share <= 1
    return {**tile(label, value, note, kind), "share": round(100 * share, 1) if known and share is not None else None}


def _latency_words(latency: LatencyResult | None, tiles: Tiles) -> list[str]:
    if latency is None or not latency.speedup:
        return []
    doubtful = bool(latency.why_in_doubt())
    value = marked(as_times(latency.speedup), doubtful)
    tiles.append(_tile("Latency", value, _latency_note(latency, doubtful), latency.kind, 1 / latency.speedup))
    verb = "runs" if latency.kind == "measured" else f"is {latency.kind} to run"
    where = latency.device.cpu or latency.device.name or "this machine"
    about = "about " if doubtful else ""
    what = " (in doubt: see Latency)" if doubtful else ""
    return [f"{verb} {about}{latency.speedup:.1f} times as fast on {where}{what}"]


def _latency_note(latency: LatencyResult, doubtful: bool) -> str:
    """The spread of the ratio. The times stand beside it only in files that have no spread, and agree with it: two
    medians may say another ratio than the rounds.
    """
    if latency.ratio is not None:
        return ratio_words(latency.ratio) + (" · in doubt" if doubtful else "")
    before, after = (side.median_ms if side else None for side in (latency.before, latency.after))
    if doubtful:
        return "in doubt: the times say otherwise"
    return f"{as_number(before)} → {as_number(after)} ms" if before and after else ""


def _as_sentence(words: list[str]) -> str:
    """The parts with "and" between; without the one that names the network, "It" does."""
    text = " and ".join(words)
    return text if text.startswith("The network") else f"It {text}"


def _verdict(results: RunResults, judged: list[bool]) -> dict[str, Any]:
    budget, missed = results.budget, []
    if budget is not None and not budget.met:
        missed.append(budget.missed or "The budget was not met.")
    for name, task in results.tasks.items():
        if task.within is False:
            change = f"{as_number(task.before)} → {as_number(task.after)} {task.unit}".strip()
            missed.append(f"{name}: {task.metric} {change}, its limit was {task.limit}.")
    missed += [f"INT8: {line}." for line in missed_in_int8(results.quantization, results.tasks)]
    parts = ["the budget is met"] if budget is not None else []
    if judged:
        parts.append("every task kept its limit")
    text = " and ".join(parts)
    return {"missed": missed, "verdict": f"{text[:1].upper()}{text[1:]}." if text else ""}
