"""Counts forwards and seconds of PAGCP's search, with each ingredient of the fast oracle switched off in turn.

The plain scan is the paper's: every ratio of the grid until the first that fails, each one a whole forward of the
network without the channels. mtlc tries each channel count once, runs only what the removed channels reach on kept
activations, and ends a trial when a task is sure to be over its limit. Both must choose the same channels: the command
fails if they do not. Bisection is measured beside them.

    python -m benchmarks.pruning.prune_oracle --out benchmarks/results/prune_oracle.json

A *forward equivalent* is one forward of the whole network over all calibration samples (`Effort`); a suffix counts by
its share of the MACs. The plain scan's forwards get cheaper as the network gets smaller, the fast oracle's do not (what
is gone is zero, but computed), so `mac_equivalents` counts the MACs that were really run, in forwards of the original.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
import torch

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.pagcp.oracle import Losses, Oracle, Removed
from mtlc.compress.pagcp.sweep import Rules, Sweep, ratios, reach, sweep
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import load_job
from mtlc.program.program import Program

PROBE_SAMPLES = 2  # what the oracle tries every unit on before it relies on zeroing


@dataclass(frozen=True)
class Variant:
    """Which ingredients a search has. `suffix`: only what depends on the channels is run, on kept activations."""

    distinct: bool = True
    bisect: bool = False
    suffix: bool = True
    early_stop: bool = True
    memo: bool = True
    expect: bool = False


PLAIN = "plain scan"
VARIANTS = {
    PLAIN: Variant(distinct=False, bisect=False, suffix=False, early_stop=False, memo=False),
    "plain, distinct counts": Variant(bisect=False, suffix=False, early_stop=False, memo=False),
    "plain, distinct counts, bisection": Variant(bisect=True, suffix=False, early_stop=False, memo=False),
    "distinct counts, suffix": Variant(bisect=False, early_stop=False, memo=False),
    "distinct counts, suffix, early stop": Variant(bisect=False),
    "distinct counts, suffix, early stop, bisection": Variant(bisect=True),
    "distinct counts, suffix, early stop, bisection, expectation": Variant(bisect=True, expect=True),
}
FASTS = {variant: name for name, variant in VARIANTS.items() if variant.early_stop}
FAST = FASTS[Variant(bisect=Rules().bisect, expect=Rules().expect)]  # what `mtlc run` does, beside its sensitivity map


class CountedOracle(Oracle):
    """The oracle with ingredients switched off. `sliced_macs` are forwards on sliced weights, by their MACs."""

    def __init__(
        self, program: Program, splits: Splits, criteria: Criteria, variant: Variant, samples: int, reconstruct: bool
    ) -> None:
        groups = ChannelGroups(program.module, program.example_inputs())
        self._variant, self.sliced_forwards, self.sliced_macs = variant, 0.0, 0.0
        self.commits: list[tuple[str, int]] = []  # (unit, channels kept)
        self._excess: dict[tuple[int, str], dict[int, float]] = {}
        super().__init__(
            program,
            groups,
            criteria,
            splits.calibration,
            samples=samples,
            cached=variant.suffix,
            reconstruct=reconstruct,
        )
        self.costs = ChannelCosts(program, self.units)
        self._whole_macs = self.costs.macs({})
        self._step, self._round_to = Rules().grid, Rules().round_to

    def trial(self, unit: str, channels: Sequence[int], limits: Mapping[str, float] | None = None) -> Losses:
        for _ in range(1 if self._variant.distinct else self._ratios_that_keep(unit, len(channels))):
            if not self._variant.memo:
                self._known.clear()
            losses = super().trial(unit, channels, limits if self._variant.early_stop else None)
            past = (losses[task] / limit - 1 for task, limit in (limits or {}).items() if limit > 0)
            excess = max(past, default=0.0)
            at = self._excess.setdefault((len(self.commits), unit), {})
            at[self.units[unit].channels - len(channels)] = excess
            if excess > 0:
                break  # the scan ends at the first ratio that fails
        return losses

    def commit(self, unit: str, channels: Sequence[int], losses: Losses) -> None:
        super().commit(unit, channels, losses)
        self.commits.append((unit, self.units[unit].channels - len(channels)))

    def tried(self, commits: int, unit: str) -> dict[int, float]:
        """Channels kept → how far the worst task was past its limit (relative), after so many commits."""
        return self._excess.get((commits, unit), {})

    def _ratios_that_keep(self, unit: str, gone: int) -> int:
        """How many ratios of the grid leave this unit with the count that it has without `gone` channels."""
        width = self.units[unit].channels
        kept = [math.ceil(round(width * (1 - r), 6) / self._round_to) * self._round_to for r in ratios(Rules())]
        return kept.count(width - gone)

    def _whole(self, removed: Removed, limits: Mapping[str, float] | None) -> Losses:
        before = self.effort.forward_equivalents
        losses = super()._whole(removed, limits)
        forwards = self.effort.forward_equivalents - before
        self.sliced_forwards += forwards
        self.sliced_macs += forwards * self.costs.macs(removed) / self._whole_macs
        return losses


def one_sweep(oracle: CountedOracle, rules: Rules) -> list[Sweep]:
    return [sweep(oracle, oracle.costs, rules, rules.initial_rate, rules.initial_thres)]


def to_target(oracle: CountedOracle, rules: Rules) -> list[Sweep]:
    return reach(oracle, oracle.costs, rules, 0.6 * oracle.costs.cost({}))


@dataclass(frozen=True)
class Search:
    """A search, its rules, whether removed channels are made up for, and the variants that are worth their time."""

    find: Callable[[CountedOracle, Rules], list[Sweep]]
    rules: Rules = field(default_factory=Rules)
    reconstruct: bool = False
    variants: tuple[str, ...] = tuple(VARIANTS)


SEARCHES = {
    "one sweep as in the paper, d0 = 0.05, T = 5": Search(one_sweep),
    "to 60 % of the MACs with mtlc's defaults": Search(
        to_target, Rules(rank="reconstruction"), True, (PLAIN, *FASTS.values())
    ),
}


def run(
    program: Program, splits: Splits, criteria: Criteria, variant: Variant, search: str, samples: int
) -> tuple[dict[str, Any], CountedOracle, list[Sweep]]:
    """One search with one variant: what it cost, and what it chose."""
    searched = SEARCHES[search]
    wall, cpu = time.perf_counter(), time.process_time()
    oracle = CountedOracle(program, splits, criteria, variant, samples, searched.reconstruct)
    prepared, prepared_cpu = time.perf_counter() - wall, time.process_time() - cpu
    sweeps = searched.find(oracle, replace(searched.rules, bisect=variant.bisect, expect=variant.expect))
    effort = oracle.effort
    # The probes are what the fast oracle pays for its trust in zeroing; `Effort` leaves them out, the plain scan has
    # none.
    probes = (1 + 2 * len(oracle.units)) * PROBE_SAMPLES / samples if variant.suffix else 0.0
    return (
        {
            **asdict(variant),
            "trials": effort.trials,
            "forward_equivalents": effort.forward_equivalents + probes,
            "mac_equivalents": effort.forward_equivalents - oracle.sliced_forwards + oracle.sliced_macs + probes,
            "probe_forwards": probes,
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "seconds_preparing": prepared,
            "cpu_seconds_preparing": prepared_cpu,
        },
        oracle,
        sweeps,
    )


def chosen(oracle: Oracle) -> dict[str, list[int]]:
    """Unit → removed channels."""
    return {unit: channels for unit, channels in sorted(oracle.removed.items()) if channels}


def digest(removed: Removed) -> str:
    return hashlib.sha256(json.dumps(removed, sort_keys=True).encode()).hexdigest()


def first_difference(mine: CountedOracle, plain: CountedOracle) -> dict[str, Any] | None:
    """Where two searches part, with the trials of both there: counts kept → how far past the limit (over 0: failed).

    A scan stops at the first count that fails; bisection may never try that count and pass at a narrower one, since
    losses do not always rise when channels go. None if all commits are the same.
    """
    for number, (ours, theirs) in enumerate(zip_longest(mine.commits, plain.commits)):
        if ours != theirs:
            units = sorted({step[0] for step in (ours, theirs) if step})
            return {
                "commits_before": number,
                "kept_here": ours,
                "kept_by_plain_scan": theirs,
                "trials_here": {unit: mine.tried(number, unit) for unit in units},
                "trials_of_plain_scan": {unit: plain.tried(number, unit) for unit in units},
            }
    return None


def compare(program: Program, splits: Splits, criteria: Criteria, search: str, samples: int) -> dict[str, Any]:
    """All variants of one search, each beside the plain scan."""
    variants: dict[str, Any] = {}
    reference: tuple[CountedOracle, list[Sweep]] | None = None
    for name in SEARCHES[search].variants:
        variant = VARIANTS[name]
        figures, oracle, sweeps = run(program, splits, criteria, variant, search, samples)
        reference = reference or (oracle, sweeps)
        first = variants.setdefault(PLAIN, figures)
        same = chosen(oracle) == chosen(reference[0])
        variants[name] = {
            **figures,
            "same_network_as_plain_scan": same,
            "first_difference": None if same else first_difference(oracle, reference[0]),
            "losses_differ_at_most": max(
                abs(oracle.losses[t] / loss - 1) if loss else 0.0 for t, loss in reference[0].losses.items()
            ),
            "fewer_forwards": first["forward_equivalents"] / figures["forward_equivalents"],
            "fewer_macs": first["mac_equivalents"] / figures["mac_equivalents"],
            "faster": first["cpu_seconds"] / figures["cpu_seconds"],
        }
        click.echo(
            f"{search} | {name}: {figures['trials']} trials, {figures['forward_equivalents']:.1f} forwards, "
            f"{figures['cpu_seconds']:.0f} s CPU, {variants[name]['fewer_forwards']:.2f} × fewer forwards, "
            f"same: {same}",
            err=True,
        )
    assert reference is not None
    removed = chosen(reference[0])
    return {
        "search": search,
        "sweeps": len(reference[1]),
        "units": len(reference[0].units),
        "units_tried_by_zeroing": sum(u.maskable for u in reference[0].units.values()),
        "macs_share": reference[0].costs.cost(removed) / reference[0].costs.cost({}),
        "kept_channels": {u: reference[0].units[u].channels - len(c) for u, c in removed.items()},
        "removed_channels_sha256": digest(removed),
        "variants": variants,
    }


@click.command()
@click.option("--job", default=Path("examples/scenes/prune.toml"), type=click.Path(path_type=Path))
@click.option("--samples", default=128, show_default=True, help="Samples of the calibration split.")
@click.option("--threads", default=1, show_default=True)
@click.option(
    "--out", default=Path("benchmarks/results/prune_oracle.json"), type=click.Path(path_type=Path), show_default=True
)
def main(job: Path, samples: int, threads: int, out: Path) -> None:
    torch.set_num_threads(threads)
    loaded = load_job(job)
    splits = loaded.load_splits()
    program = loaded.build_program(splits)
    criteria = Criteria(program.tasks)
    searches = [compare(program, splits, criteria, search, samples) for search in SEARCHES]
    result = {
        "baseline": PLAIN,
        "mtlc": FAST,
        "device": this_machine(),
        "threads": threads,
        "samples": samples,
        "same_network": all(s["variants"][FAST]["same_network_as_plain_scan"] for s in searches),
        "searches": searches,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    if not result["same_network"]:
        where = [s["variants"][FAST]["first_difference"] for s in searches]
        raise click.ClickException(f"the fast search chose another network than the plain scan: {where}")


if __name__ == "__main__":
    main()
