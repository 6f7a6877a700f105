"""Sums a run up for the top of its report: what was gained, what it cost the tasks, and what was missed."""

from __future__ import annotations

from typing import Any

from mtlc.report.parts.numbers import DASH, as_change, as_count, as_number, as_percent, as_times, marked
from mtlc.report.parts.page import tile
from mtlc.report.sections.int8 import missed_in_int8
from mtlc.report.sections.latency import ratio_words
from mtlc.results.latency import LatencyResult
from mtlc.results.run import RunResults
from mtlc.results.tasks import unlearned_warnings

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
    learned = all(task.learned() for task in results.tasks.values())
    if change is not None and not learned:
        tiles.append(tile("Δm", DASH, "the original has not learned its tasks", None, "bad"))
    elif change is not None:
        tiles.append(tile("Δm", as_change(change), "mean change of the tasks", None, "" if all(judged) else "bad"))
        worse = "worse" if change < 0 else "better"
        sentences.append(f"On average its tasks are {abs(change):.2f} % {worse} than before (Δm).")
    if judged:
        kept, tone = sum(judged), "good" if all(judged) else "bad"
        tiles.append(tile("Limits kept", f"{kept} of {len(judged)}", "tasks with a limit", None, tone))
        sentences.append("All limits kept." if all(judged) else f"{len(judged) - kept} of {len(judged)} limits missed.")
    return {
        "words": " ".join(sentences),
        "tiles": tiles,
        "warnings": [f"{line[:1].upper()}{line[1:]}." for line in unlearned_warnings(results.tasks)],
        **_verdict(results, judged),
    }


def _cost_words(results: RunResults, tiles: Tiles) -> list[str]:
    words, costs = [], results.cost
    pairs = (
        ("MACs", costs.before.macs, costs.after.macs),
        ("Parameters", costs.before.parameters, costs.after.parameters),
    )
    for label, before, after in pairs:
        if not before or after is None:
            continue
        left = as_percent(after / before, 0)
        tiles.append(tile(label, left, f"{as_count(before)} → {as_count(after)}", "modelled"))
        if label == "MACs":
            words.append(f"The network does its work with {left} of the multiply–accumulates")
    return words


def _latency_words(latency: LatencyResult | None, tiles: Tiles) -> list[str]:
    if latency is None or not latency.speedup:
        return []
    doubtful = bool(latency.why_in_doubt())
    value = marked(as_times(latency.speedup), doubtful)
    tiles.append(tile("Latency", value, _latency_note(latency, doubtful), latency.kind))
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
