"""Compares searches for widths by what they measure: ours, evolution, greedy slimming, uniform widths.

    python -m benchmarks.slimmable.width_search [--weights FOLDER] [--seeds 0 1 2] [--table-only]

For every seed the supernet of benchmarks/slimmable/slimmable.py is measured at all 256 encoders with all decoders at
each of four widths (64 calibration samples, statistics from 64 training samples): a table from which every one of the
262,144 configurations follows exactly, as a task's metric does not depend on the other decoders. The searches are then
run on the table, which counts what they ask for: a run is one network measured. Seconds are runs times what a run took.

Every question is asked of a search that knows nothing yet (`runs` to its answer), for budgets of 25, 40, 60 and 80 % of
the MACs and six preferences: all tasks alike, and each task at 0.6. The hypervolume is of (share of the MACs, gain)
over the four budgets, from the gain of the narrowest network at full cost; the mean over preferences is given.
`optimum` is the best of all configurations, whatever the preference's order. Controllability is each task's range of
change as its preference goes from 0 to 1 at 40 %, the others sharing the rest, and Spearman's rank correlation with the
preference. Writes ``results/width_search.json`` and replaces there only the seeds that it was asked for.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.slimmable.slimmable import supernet  # this folder's
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations, Here, Measurer, Metrics
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_search import STRATEGIES, Question, Search
from mtlc.files import write_json
from mtlc.runtime.widths.width_choice import normalised_preference, relative_gain

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results" / "width_search.json"
BUDGETS = (0.25, 0.4, 0.6, 0.8)
PREFERENCES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
SAMPLES = 64
CLOSE = 1e-3  # of gain: a tenth of a percent


def table_of(seed: int, folder: Path) -> tuple[Supernet, Evaluations, dict[str, bool], float]:
    """Every encoder with decoders at each width, measured or read; and the seconds that a run takes."""
    one, net = supernet(seed, folder)
    measurer = Measurer(net, one.splits, one.criteria, SAMPLES, SAMPLES, SAMPLES)
    kept = Evaluations(Here(measurer), net.tasks, folder / f"table_{seed}.json", f"seed {seed}")
    levels = [(width,) * len(net.tasks) for width in net.table.widths]
    for number, encoder in enumerate(net.encoders()):
        kept.of([Configuration(encoder, level) for level in levels])
        if number % 32 == 0:
            print(f"seed {seed}: encoder {number} of {len(net.encoders())}", flush=True)
    started = time.process_time()
    timed = [Configuration(net.encoders()[i], levels[i % 4]) for i in range(3, 256, 23)]
    for configuration in timed:
        measurer(configuration)
    return net, kept, dict(one.criteria.higher_is_better), (time.process_time() - started) / len(timed)


class Table:
    """Answers from the table."""

    def __init__(self, kept: Evaluations) -> None:
        self._kept = kept

    def __call__(self, configuration: Configuration) -> Metrics:
        metrics = self._kept.known(configuration)
        assert metrics is not None, configuration
        return metrics


def fresh(net: Supernet, kept: Evaluations, higher: Mapping[str, bool], seed: int) -> Search:
    return Search(net, Evaluations(Here(Table(kept)), net.tasks), higher, seed=seed)


def optima(
    net: Supernet, kept: Evaluations, higher: Mapping[str, bool], preference: Mapping[str, float]
) -> list[float]:
    """The largest gain within each budget over all configurations."""
    table, whole = kept.entries(), net.macs(net.largest)
    reference = {t: table[net.largest.encoder, t, 1.0] for t in net.tasks}
    widths = net.table.widths
    sets = np.stack(np.meshgrid(*[np.arange(len(widths))] * len(net.tasks), indexing="ij"), -1).reshape(
        -1, len(net.tasks)
    )
    best = np.full(len(BUDGETS), -np.inf)
    for encoder in net.encoders():
        costs = net.encoder_macs(encoder) + sum(
            np.array([net.decoder_macs(t, encoder, w) for w in widths])[sets[:, i]] for i, t in enumerate(net.tasks)
        )
        gains = sum(
            np.array([preference[t] * relative_gain(table[encoder, t, w], reference[t], higher[t]) for w in widths])[
                sets[:, i]
            ]
            for i, t in enumerate(net.tasks)
        )
        for place, share in enumerate(BUDGETS):
            fits = costs <= share * whole
            if fits.any():
                best[place] = max(best[place], gains[fits].max())
    return [float(value) for value in best]


def hypervolume(gains: Sequence[float], floor: float) -> float:
    """The area over (share of the MACs, gain) that points at the budgets dominate, up to full cost, from `floor` up."""
    edges, best, area = [*BUDGETS, 1.0], floor, 0.0
    for place, gain in enumerate(gains):
        best = max(best, gain)
        area += (edges[place + 1] - edges[place]) * (best - floor)
    return area


def of_seed(seed: int, folder: Path) -> dict[str, Any]:
    net, kept, higher, seconds = table_of(seed, folder)
    whole = net.macs(net.largest)
    preferences = {"alike": normalised_preference(None, net.tasks)}
    for task in net.tasks:
        rest = {t: 0.4 / (len(net.tasks) - 1) for t in net.tasks if t != task}
        preferences[task] = normalised_preference({task: 0.6, **rest}, net.tasks)
    found: dict[str, Any] = {"seconds_per_run": seconds, "strategies": {}}
    floors = {
        name: fresh(net, kept, higher, seed).gain(p, Table(kept)(net.smallest)) for name, p in preferences.items()
    }
    best = {name: optima(net, kept, higher, p) for name, p in preferences.items()}
    found["optimum"] = {
        "hypervolume": float(np.mean([hypervolume(best[n], floors[n]) for n in preferences])),
        "gains": best,
    }
    answers: dict[str, dict[tuple[str, float], Any]] = {}
    for strategy in STRATEGIES:
        answers[strategy] = {
            (name, share): fresh(net, kept, higher, seed).find(Question(p, share * whole), strategy)
            for name, p in preferences.items()
            for share in BUDGETS
        }
        gains = {name: [answers[strategy][name, share].gain for share in BUDGETS] for name in preferences}
        runs = [answer.runs for answer in answers[strategy].values()]
        together = fresh(net, kept, higher, seed)
        for p in preferences.values():
            for share in BUDGETS:
                together.find(Question(p, share * whole), strategy)
        found["strategies"][strategy] = {
            "hypervolume": float(np.mean([hypervolume(gains[name], floors[name]) for name in preferences])),
            "gains": gains,
            "runs_per_question": {"median": float(np.median(runs)), "most": max(runs)},
            "runs_for_all_questions": together.evaluations.runs,
            "seconds_per_question": float(np.median(runs)) * seconds,
            "controllability": controlled(net, fresh(net, kept, higher, seed), higher, strategy),
        }
        print(seed, strategy, found["strategies"][strategy]["hypervolume"], np.median(runs), flush=True)
    found["evolution_against_joint"] = reached(answers["joint"], answers["evolution"])
    return found


def reached(ours: Mapping[Any, Any], evolution: Mapping[Any, Any]) -> dict[str, Any]:
    """How many runs evolution takes to come as far as ours, to `CLOSE`, and the questions in which it never does."""
    ratios, never = [], 0
    for question, answer in ours.items():
        runs = next((runs for runs, gain in evolution[question].trace if gain >= answer.gain - CLOSE), None)
        never += runs is None
        ratios.append((evolution[question].runs if runs is None else runs) / answer.runs)
    return {
        "median": float(np.median(ratios)),
        "p10": float(np.percentile(ratios, 10)),
        "never": never,
        "questions": len(ratios),
    }


def controlled(net: Supernet, search: Search, higher: Mapping[str, bool], strategy: str) -> dict[str, Any]:
    budget, reference = 0.4 * net.macs(net.largest), search.reference()
    ranges, ranks, lines = {}, {}, {}
    for task in net.tasks:
        changes = []
        for p in PREFERENCES:
            rest = {t: (1 - p) / (len(net.tasks) - 1) for t in net.tasks if t != task}
            answer = search.find(Question(normalised_preference({task: p, **rest}, net.tasks), budget), strategy)  # type: ignore[arg-type]
            changes.append(100 * relative_gain(answer.metrics[task], reference[task], higher[task]))
        lines[task] = changes
        ranges[task] = max(changes) - min(changes)
        ranks[task] = float(spearmanr(PREFERENCES, changes).statistic) if len(set(changes)) > 1 else None
    known = [rank for rank in ranks.values() if rank is not None]
    return {
        "range": ranges, "mean_range": float(np.mean(list(ranges.values()))), "spearman": ranks,
        "mean_spearman": float(np.mean(known)) if known else None, "lines": lines,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "data" / "slimmable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table-only", action="store_true", help="measure, and leave the searches for later")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        if given.table_only:
            table_of(seed, given.weights)
            continue
        kept = json.loads(RESULTS.read_text())["seeds"] if RESULTS.exists() else {}
        kept[str(seed)] = of_seed(seed, given.weights)
        write_json(RESULTS, {"budgets": BUDGETS, "preferences": PREFERENCES, "seeds": dict(sorted(kept.items()))})


if __name__ == "__main__":
    main()
