"""Collects the cells of `benchmarks.pruning.pruners` into one result: means, spreads, tests, the ablation.

    python -m benchmarks.pruning.collect_pruners [--work runs/pruners] [--out benchmarks/results/pruners.json]

What is not there yet is left out; the table says how many seeds it has of each. The paired tests at a cut are
of every allocation of the pass against the simple way with the best mean there. That one is picked by its results,
which favours it; so is the best of the pass's, where that is named.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.pruning.paired_test import paired
from benchmarks.pruning.pruners import WORK, tried_rates
from benchmarks.pruning.pruning_cells import ABLATED, METHODS, OURS, read_result
from benchmarks.pruning.pruning_subjects import SUBJECTS, Subject
from mtlc.errors import UserError
from mtlc.files import write_json

Runs = Sequence[Mapping[str, Any]]
SIMPLE_WAYS = tuple(method for method in METHODS if method not in OURS)


def cut_name(share: float) -> str:
    """``-60%`` where 0.4 of the MACs are left."""
    return f"-{1 - share:.0%}"


def collected(runs: Runs, subject: Subject, rates: Mapping[str, float]) -> dict[str, Any]:
    """One subject's part of the result. `runs` are results of cells, `rates` what each method was tuned to."""
    table: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        mine = [run for run in runs if run["method"] == method and _counts(run, rates)]
        if by_cut := _by_cut(mine):
            table[method] = by_cut
    cuts = sorted({cut for by_cut in table.values() for cut in by_cut}, key=_gone)
    return {
        "tuning": _tuning(runs, subject, rates),
        "table": table,
        "best": {cut: found for cut in cuts if (found := _best(table, cut)) is not None},
        "ablation": _ablation(runs, rates, subject),
        "dense": {str(run["seed"]): run["dense"] for run in sorted(runs, key=lambda r: int(r["seed"]))},
        "samples": {method: _samples(by_cut) for method, by_cut in table.items()},
        "hours": sum(run["seconds"]["all"] for run in runs) / 3600,
    }


def _counts(run: Mapping[str, Any], rates: Mapping[str, float]) -> bool:
    return bool(run["recipe"] == "new" and run["round_to"] == 8 and run["rate"] == rates.get(run["method"]))


def _by_cut(runs: Runs) -> dict[str, Any]:
    """Mean and spread over the seeds of one method's runs, by cut."""
    by_share = defaultdict(list)
    for run in sorted(runs, key=lambda r: (-r["share"], r["seed"])):
        by_share[run["share"]].append(run)
    found = {}
    for share, there in by_share.items():
        deltas = [run["delta_m"] for run in there]
        found[cut_name(share)] = {
            "delta_m_mean": statistics.fmean(deltas),
            "delta_m_std": statistics.stdev(deltas) if len(deltas) > 1 else None,
            "delta_m": deltas,
            "delta_m_before_finetuning": _mean_of_known(run["delta_m_before_finetuning"] for run in there),
            "macs_share": statistics.fmean(run["macs_share"] for run in there),
            "seeds": [run["seed"] for run in there],
            "missed": [run["missed"] for run in there if run["missed"]],
            "samples": [run["samples"] for run in there],
            "seconds": statistics.fmean(run["seconds"]["all"] for run in there),
        }
    return found


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    """None for the method that has its fine-tuning inside: nobody sees its network before."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _best(table: Mapping[str, Any], cut: str) -> dict[str, Any] | None:
    """Which method is best at a cut, which simple one, and each of the pass's own against that one.

    Methods may have different seeds: each is compared with the one that has most of them, over the seeds that both
    have.
    """
    there = {method: by_cut[cut] for method, by_cut in table.items() if cut in by_cut}
    simple = [method for method in there if method in SIMPLE_WAYS]
    if not simple:
        return None
    by_seed = {m: dict(zip(found["seeds"], found["delta_m"], strict=True)) for m, found in there.items()}

    measure = by_seed[max(simple, key=lambda method: len(by_seed[method]))]

    def ahead(method: str) -> float:
        mine = by_seed[method]
        shared = set(mine) & set(measure)
        if not shared:
            return statistics.fmean(mine.values()) - statistics.fmean(measure.values())
        return statistics.fmean(mine[seed] - measure[seed] for seed in shared)

    best, best_simple = max(there, key=ahead), max(simple, key=ahead)
    ours = [method for method in OURS if method in there]
    return {
        "method": best,
        "simple": best_simple,
        "ours": max(ours, key=ahead) if ours else None,
        "against_simple": {method: paired(by_seed[method], by_seed[best_simple]) for method in ours},
    }


def _ablation(runs: Runs, rates: Mapping[str, float], subject: Subject) -> dict[str, Any]:
    """Recipe and allocation: by cut, method and recipe, over the seeds that both recipes have."""
    found: dict[str, Any] = {}
    for share in subject.ablated:
        rows = {}
        for method in ABLATED:
            mine = [run for run in runs if run["method"] == method and run["share"] == share and run["round_to"] == 8]
            new = {run["seed"]: run for run in mine if _counts(run, rates)}
            old = {run["seed"]: run for run in mine if run["recipe"] == "old"}
            both = sorted(set(new) & set(old))
            if both:
                rows[method] = {
                    name: _by_cut([part[seed] for seed in both])[cut_name(share)]
                    for name, part in (("old", old), ("new", new))
                }
        if rows:
            found[cut_name(share)] = rows
    return found


def _tuning(runs: Runs, subject: Subject, rates: Mapping[str, float]) -> dict[str, Any]:
    """The grid that every method was tried with, what came of it on the calibration split, and what was taken."""
    tried: dict[str, dict[str, float]] = defaultdict(dict)
    for run in sorted(runs, key=lambda r: float(r["rate"])):
        key = (run["recipe"], run["share"], run["seed"], run["round_to"])
        if key == ("new", subject.tuned_at, subject.seeds[0], 8) and run["rate"] in subject.rates_of(run["method"]):
            tried[run["method"]][f"{run['rate']:g}"] = run["delta_m_calibration"]
    at = {"cut": cut_name(subject.tuned_at), "seed": subject.seeds[0], "rates": list(subject.rates)}
    at |= {"own_rates": {method: list(rates) for method, rates in subject.own_rates.items()}}
    return {**at, "delta_m_calibration": dict(tried), "taken": dict(rates)}


def _samples(by_cut: Mapping[str, Any]) -> dict[str, float]:
    """What a method's training saw in all at each cut, that of the trained network included: the mean over seeds."""
    return {
        cut: statistics.fmean(s["dense"] + s["choosing"] + s["training"] for s in found["samples"])
        for cut, found in by_cut.items()
    }


def _gone(cut: str) -> float:
    return float(cut.strip("-%"))


def collect(work: Path, subjects: Iterable[Subject]) -> dict[str, Any]:
    """The whole result from the cells under `work`. Raises `UserError` where there are none."""
    found: dict[str, Any] = {}
    every: list[dict[str, Any]] = []
    for subject in subjects:
        runs = [read_result(path) for path in sorted((work / subject.name / "cells").glob("*.json"))]
        if not runs:
            continue
        every += runs
        tried = {method: tried_rates(subject, method, work) for method in METHODS}
        # Of a grid that is not finished the best so far; the table says which rates were not tried.
        rates = {method: max(sorted(found), key=found.__getitem__) for method, found in tried.items() if found}
        settings = read_result(work / subject.name / "settings.json")
        found[subject.name] = {"settings": settings, **collected(runs, subject, rates)}
    if not every:
        raise UserError(f"{work}: no finished cells; run: python -m benchmarks.pruning.pruners --work {work}")
    machines = {(run["machine"]["cpu"], run["machine"]["cores"], run["machine"]["machine"]) for run in every}
    return {
        "kind": "measured",
        "baseline": "the trained network that a method starts from, of the same seed",
        "stages": "one, straight from the trained network",
        "subjects": found,
        "revisions": sorted({str(run["revision"]) for run in every}),
        "machines": [dict(zip(("cpu", "cores", "machine"), one, strict=True)) for one in sorted(machines, key=str)],
        "versions": {name: sorted({run["versions"][name] for run in every}) for name in every[0]["versions"]},
        "recipes": {run["recipe"]: _recipe(run["training"]) for run in every if run["method"] == "uniform"},
    }


def _recipe(training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that do not differ between cells."""
    return {key: value for key, value in training.items() if key not in ("epochs", "lr")}


@click.command()
@click.option("--work", default=WORK, show_default=True, type=click.Path(path_type=Path))
@click.option("--out", default=Path("benchmarks/results/pruners.json"), type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="The cells are those of `pruners --quick`.")
@click.option("--show", is_flag=True, help="Print the tables too.")
def main(work: Path, out: Path, quick: bool, show: bool) -> None:
    from benchmarks.tables.pruning_tables import comparison

    try:
        result = collect(work, [subject.quick() if quick else subject for subject in SUBJECTS.values()])
        write_json(out, result)
    except UserError as error:
        raise click.ClickException(str(error)) from None
    if show:
        click.echo(comparison(result))


if __name__ == "__main__":
    main()
