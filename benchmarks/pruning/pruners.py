"""Compares ways to prune at equal total training: PAGCP, torch-pruning's scores, a narrower network from scratch.

    python -m benchmarks.pruning.pruners --jobs 2                       # all of it; what is there is skipped
    python -m benchmarks.pruning.pruners --subject scenes --method uniform --cut 60% --seed 0
    python -m benchmarks.pruning.collect_pruners                        # what is there, to benchmarks/results

Methods: `recovered` is the prune pass with its race, `pagcp` the paper's allocation, `tilted` the pass's uniform one
with its tilt towards parameters. The others are simple ways, none of them the pass's: `uniform` one ratio for all
layers by magnitude, `magnitude-global`, `taylor` and `taylor-per-task` one threshold for all layers, `group-norm` the
same after sparsity training, `random` one ratio and channels at random, `scratch` the widths of `uniform` trained from
new weights.

Every method starts from the same trained network, is cut in one stage to the MACs (multiples of 8 channels, task
outputs left alone), and is trained on with the same recipe and as many samples in all: what counts as samples stands in
`benchmarks.pruning.pruning_cells`. Each is tried with every rate of the subject on the first seed, at one cut; what is
better on the calibration split is its rate everywhere. Recipe "old" is the one that the comparison had before, for the
ablation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import click
import torch

from benchmarks.pruning import run_cells
from benchmarks.pruning.pruning_cells import ABLATED, METHODS, OLD_RATE, RECIPES, Cell, read_result
from benchmarks.pruning.pruning_subjects import SUBJECTS, Subject
from mtlc.errors import UserError
from mtlc.files import one_at_a_time, write_json

WORK = Path("runs/pruners")
_FIXED = ("job", "training", "own_training", "epochs", "data", "training_epochs")
"""Settings that all cells of a folder must share; seeds, cuts and rates may be added."""


def tuning_cells(subject: Subject, methods: Sequence[str], round_to: int = 8) -> list[Cell]:
    """Every method with every rate: the first seed, one cut."""
    return [
        Cell(subject.name, method, subject.tuned_at, subject.seeds[0], "new", rate, round_to)
        for method in methods
        for rate in subject.rates_of(method)
    ]


def tuned_rate(subject: Subject, method: str, work: Path, round_to: int = 8) -> float:
    """The rate whose network does best on the calibration split; the lower one of two that do as well.

    Raises `UserError` where some rate has no result.
    """
    found, rates = tried_rates(subject, method, work, round_to), subject.rates_of(method)
    if len(found) < len(rates):
        raise UserError(f"{method}: no result for every rate of {rates} with seed {subject.seeds[0]}")
    return max(sorted(found), key=found.__getitem__)


def tried_rates(subject: Subject, method: str, work: Path, round_to: int = 8) -> dict[float, float]:
    """Δm on the calibration split by rate, of the rates that were tried."""
    return {
        cell.rate: float(read_result(cell.path(work))["delta_m_calibration"])
        for cell in tuning_cells(subject, [method], round_to)
        if cell.path(work).exists()
    }


def wanted(
    subject: Subject, methods: Sequence[str], shares: Sequence[float], seeds: Sequence[int], recipes: Sequence[str]
) -> list[tuple[str, float, int, str]]:
    """(method, share, seed, recipe) of the comparison, and of its ablation where they are in that.

    A seed after the other, so that what is there of a run that was stopped compares all methods at all cuts.
    """
    return [
        (method, share, seed, recipe)
        for seed in seeds
        for share in shares
        for recipe in RECIPES
        if recipe in recipes
        for method in METHODS
        if method in methods
        if recipe == "new" or (method in ABLATED and share in subject.ablated and seed in subject.ablation_seeds)
    ]


def check_settings(subject: Subject, work: Path) -> None:
    """Refuse a folder whose cells were run with other settings: they cannot be compared."""
    path, mine = work / subject.name / "settings.json", _settings(subject)
    with one_at_a_time(path):
        if not path.exists():
            write_json(path, mine)
    kept = read_result(path)
    for key in _FIXED:
        if kept.get(key) != mine[key]:
            raise UserError(
                f"{path.parent}: its cells have {key} = {kept.get(key)}, not {mine[key]}; use another --work"
            )


def _settings(subject: Subject) -> dict[str, object]:
    found = asdict(subject)
    return {key: str(found[key]) if key in ("job", "training") else found[key] for key in _FIXED}


def _parse_cut(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[float, ...]:
    """``60%`` of the MACs gone is 0.4 left."""
    found = []
    for text in texts:
        try:
            gone = float(text.removesuffix("%"))
        except ValueError:
            raise click.BadParameter(f"{text!r}: write the MACs that go, such as 60%") from None
        if not 0 < gone < 100:
            raise click.BadParameter(f"{text!r}: between 0% and 100%")
        found.append(round(1 - gone / 100, 6))
    return tuple(found)


@click.command()
@click.option("--subject", "names", multiple=True, type=click.Choice(list(SUBJECTS)), help="Default: all.")
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="Default: all.")
@click.option("--cut", "shares", multiple=True, callback=_parse_cut, help="MACs that go: 60%. Default: the subject's.")
@click.option("--seed", "seeds", multiple=True, type=int, help="Default: the subject's.")
@click.option("--recipe", "recipes", multiple=True, type=click.Choice(RECIPES), help="Default: both.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Take this rate, and try no others.")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="Of fine-tuning. Default: the subject's.")
@click.option("--round-to", default=8, show_default=True, help="Channels are multiples of it.")
@click.option("--work", default=WORK, show_default=True, type=click.Path(path_type=Path), help="Results and networks.")
@click.option("--save", type=click.Path(path_type=Path), help="Folder for networks, METHOD-SEED-SHARE.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes, one thread each.")
@click.option("--ray", is_flag=True, help="Spread the cells over a Ray cluster.")
@click.option("--quick", is_flag=True, help="Few samples, two seeds, one cut: shows that every step works.")
def main(
    names: tuple[str, ...],
    methods: tuple[str, ...],
    shares: tuple[float, ...],
    seeds: tuple[int, ...],
    recipes: tuple[str, ...],
    rate: float | None,
    epochs: float | None,
    round_to: int,
    work: Path,
    save: Path | None,
    jobs: int,
    ray: bool,
    quick: bool,
) -> None:
    torch.set_num_threads(1)
    failed = 0

    def run(cells: Sequence[Cell], subject: Subject) -> None:
        nonlocal failed
        left = [cell for cell in cells if save is not None or not cell.path(work).exists()]
        if len(left) < len(cells):
            click.echo(f"{subject.name}: {len(cells) - len(left)} of {len(cells)} cells are there", err=True)
        if not left:
            return
        if ray:
            outcomes = run_cells.on_ray(left, subject, work.absolute(), None if save is None else save.absolute())
        elif jobs > 1:
            outcomes = run_cells.in_processes(left, subject, work, jobs, save)
        else:
            outcomes = run_cells.here(left, subject, work, save)
        for cell, outcome in outcomes:
            if isinstance(outcome, str):
                failed += 1
                click.echo(f"{cell.subject} {cell.name}: {outcome}", err=True)
            else:
                click.echo(
                    f"{cell.subject} {cell.name}: {outcome['macs_share']:.1%} MACs, Δm {outcome['delta_m']:+.2f} %, "
                    f"{outcome['seconds']['all']:.0f} s",
                    err=True,
                )

    try:
        with run_cells.ray_cluster() if ray else nullcontext():
            for name in names or SUBJECTS:
                subject = SUBJECTS[name].quick() if quick else SUBJECTS[name]
                subject = subject if epochs is None else replace(subject, epochs=epochs)
                check_settings(subject, work)
                asked = wanted(
                    subject, methods or METHODS, shares or subject.shares, seeds or subject.seeds, recipes or RECIPES
                )
                if not asked:
                    raise UserError(
                        f"{name}: the ablation has only {', '.join(ABLATED)}, at {subject.ablated} of the MACs"
                    )
                rates = {}
                if rate is None:
                    tuned = [method for method in METHODS if any(m == method and r == "new" for m, _, _, r in asked)]
                    run(tuning_cells(subject, tuned, round_to), subject)
                    rates = {method: tuned_rate(subject, method, work, round_to) for method in tuned}
                cells = [
                    Cell(name, m, share, seed, recipe, OLD_RATE if recipe == "old" else rate or rates[m], round_to)
                    for m, share, seed, recipe in asked
                ]
                run(cells, subject)
    except UserError as error:
        raise click.ClickException(str(error)) from None
    if failed:
        raise click.ClickException(f"{failed} cells have no result; the others are kept")


if __name__ == "__main__":
    main()
