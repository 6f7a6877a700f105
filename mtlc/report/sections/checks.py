"""Lists what makes a compression safe to use, each with what was found: budget, limits, chance, verification."""

from __future__ import annotations

import math

from mtlc.report.parts.numbers import as_count
from mtlc.results.run import BundleResult, RunResults
from mtlc.results.tasks import TaskResult

_TARGETS = {"macs": "MACs", "params": "parameters", "latency": "ms"}

Check = dict[str, str]


def checks(results: RunResults) -> list[Check]:
    """A title, words and a tone for each: "good", "bad", "doubt", or "unknown" where nothing was found out."""
    found = [
        _budget(results),
        _limits(results.tasks),
        _chance(results.tasks),
        _int8(results),
        _verified(results.bundles.after),
        _learned(results.tasks),
        _times(results),
    ]
    return [check for check in found if check is not None]


def _check(tone: str, title: str, words: str) -> Check:
    return {"tone": tone, "title": title, "words": words}


def _budget(results: RunResults) -> Check | None:
    budget = results.budget
    if budget is None:
        return None
    show = as_count if budget.kind != "latency" else lambda value: f"{value:.3g}"
    words = f"{show(budget.reached)} of at most {show(budget.target)} {_TARGETS[budget.kind]}"
    return _check(*(("good", "The budget is met") if budget.met else ("bad", "The budget is missed")), words)


def _limits(tasks: dict[str, TaskResult]) -> Check | None:
    judged = {name: task.within for name, task in tasks.items() if task.within is not None}
    free = len(tasks) - len(judged)
    if not judged:
        return (
            _check("unknown", "No task has a limit", "nothing says how much may be lost (max_drop)") if tasks else None
        )
    kept = sum(judged.values())
    title = f"{kept} of {len(judged)} limits kept"
    if kept == len(judged):
        return _check("good", title, f"{free} task{'s' if free > 1 else ''} without one" if free else "on validation")
    return _check("bad", title, "missed: " + ", ".join(name for name, within in judged.items() if not within))


def _chance(tasks: dict[str, TaskResult]) -> Check | None:
    """Whether the limits that are kept are kept by chance."""
    kept = {name: task for name, task in tasks.items() if task.limit is not None and task.within}
    if not kept:
        return None
    lucky = [name for name, task in kept.items() if task.by_chance]
    unknown = [name for name, task in kept.items() if task.change_interval is None]
    if lucky:
        shares = (f"{name} ({_share(kept[name])})" for name in lucky)
        return _check("doubt", "Kept by chance", f"other samples may say otherwise: {', '.join(shares)}")
    if unknown:
        return _check("unknown", "Chance is not known", f"no interval for {', '.join(unknown)}")
    return _check("good", "None kept by chance", "the 95 % intervals lie within the limits")


def _share(task: TaskResult) -> str:
    return "share of draws not known" if task.kept_in is None else f"{100 * task.kept_in:.0f} % of draws keep it"


def _verified(bundle: BundleResult | None) -> Check | None:
    """How far the written bundle is from the network that it was made of."""
    found = None if bundle is None else bundle.verification
    if bundle is None or not found:
        return None
    sizes = {size: one for task in found.values() for size, one in task.items() if isinstance(one, dict)}
    errors = [one.get("max_rel") for task in found.values() for one in task.values() if isinstance(one, dict)]
    known = [error for error in errors if isinstance(error, int | float) and math.isfinite(error)]
    if not known:
        return None
    vacuous = [name for name, task in found.items() if task.get("vacuous")]
    words = f"differs from the network by at most {max(known):.1g} of an output's range"
    words += f", in batches of {' and '.join(sizes)}" if sizes else ""
    words += f" (allowed: {bundle.tolerance:g})" if bundle.tolerance is not None else ""
    if vacuous:
        return _check(
            "doubt", "The check of the bundle says little", f"{found[vacuous[0]]['vacuous']}: {', '.join(vacuous)}"
        )
    return _check("good", "The bundle is verified", words)


def _int8(results: RunResults) -> Check | None:
    found = results.quantization
    if found is None:
        return None
    missed = [name for name, task in found.tasks.items() if task.missed is not None]
    judged = [
        name for name, task in found.tasks.items() if task.validation.within is not None or task.missed is not None
    ]
    if missed:
        return _check("bad", "INT8 misses limits", ", ".join(missed))
    if not judged:
        return _check("unknown", "INT8 has no limits to keep", "no task has one")
    return _check("good", "INT8 keeps its limits", f"{len(judged)} of {len(judged)}, on validation")


def _learned(tasks: dict[str, TaskResult]) -> Check | None:
    """Whether the networks are better than answering every sample alike."""
    known = {name: task for name, task in tasks.items() if task.constant is not None}
    if not known:
        return None
    poor = [name for name, task in known.items() if not (task.learned() and task.learned(after=True))]
    if poor:
        return _check("bad", "No better than a constant answer", ", ".join(poor))
    return _check("good", "Better than a constant answer", f"at {len(known)} of {len(tasks)} tasks, before and after")


def _times(results: RunResults) -> Check | None:
    latency = results.latency
    doubts = [] if latency is None else latency.why_in_doubt()
    return _check("doubt", "The times are in doubt", "; ".join(doubts)) if doubts else None
