"""Works out what a task gained or lost in percent of what it was: its change, the interval of it, and its limit."""

from __future__ import annotations

import math

from mtlc.results.tasks import IntervalResult, TaskResult


def gain_percent(task: TaskResult) -> float | None:
    """The change of the metric in percent, positive for an improvement; None where there is nothing to divide by, and
    where the original has learned nothing.
    """
    before, after = task.before, task.after
    if not task.learned() or not before or after is None or not (math.isfinite(before) and math.isfinite(after)):
        return None
    return (1 if task.higher_is_better else -1) * 100 * (after - before) / abs(before)


def interval_percent(task: TaskResult) -> tuple[float, float] | None:
    """The ends of the interval of `gain_percent`, lower first; None where either is not known."""
    found = task.change_interval
    if found is None or not task.before or gain_percent(task) is None:
        return None
    sign = 1 if task.higher_is_better else -1
    low, high = sorted(sign * 100 * end / abs(task.before) for end in (found.low, found.high))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def limit_percent(limit: str | None, before: float | None) -> float | None:
    """A limit such as "1%" or "0.02" as a negative change in percent of the metric before."""
    if limit is None or not before:
        return None
    text = limit.partition(" at ")[0].strip()  # "1% at 95% confidence"
    try:
        return -float(text[:-1]) if text.endswith("%") else -100 * float(text) / abs(before)
    except ValueError:
        return None


def interval_words(ends: tuple[float, float] | IntervalResult | None) -> str:
    """An interval in percent: "−3.41 to −2.55 %"; empty for none."""
    if ends is None:
        return ""
    low, high = (ends.low, ends.high) if isinstance(ends, IntervalResult) else ends
    return f"{low:+.2f} to {high:+.2f} %".replace("-", "−")
