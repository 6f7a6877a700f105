"""Makes the tables of networks whose widths are chosen afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.tables.markdown_tables import read, table


def _of_seeds(entry: Any) -> str:
    """Mean ± standard deviation (the number of seeds)."""
    spread = "" if entry["std"] is None else f" ± {entry['std']:.2f}"
    return f"{entry['mean']:+.2f}{spread} ({entry['seeds']})"


def slimmable() -> str:
    """Δm against the widest network trained alone; the number of seeds in brackets."""
    found = read("slimmable")["summary"]
    rows = [["100 %", _of_seeds(found["widest"]), "0 (by definition)", "–", "–"]]
    for label in ("60%", "40%"):
        if f"searched {label}" in found:
            cells = (f"searched {label}", f"alone {label}", f"searched against alone {label}", f"pagcp {label}")
            rows.append([label.replace("%", " %"), *(_of_seeds(found[c]) if c in found else "–" for c in cells)])
    header = [
        "MACs",
        "slimmable, no retraining",
        "that width trained alone",
        "slimmable against alone",
        "PAGCP, fine-tuned",
    ]
    return table(header, rows)


def width_search() -> str:
    """Strategies over the seeds: means."""
    seeds = list(read("width_search")["seeds"].values())
    rows = []
    for strategy in seeds[0]["strategies"]:
        of = [seed["strategies"][strategy] for seed in seeds]
        best = [seed["optimum"]["hypervolume"] for seed in seeds]
        share = sum(o["hypervolume"] / b for o, b in zip(of, best, strict=True)) / len(of)
        spearman = [
            o["controllability"]["mean_spearman"] for o in of if o["controllability"]["mean_spearman"] is not None
        ]
        rows.append(
            [
                strategy, f"{share:.1%}", f"{sum(o['runs_per_question']['median'] for o in of) / len(of):.0f}",
                f"{sum(o['runs_for_all_questions'] for o in of) / len(of):.0f}",
                f"{sum(o['seconds_per_question'] for o in of) / len(of):.0f}",
                f"{sum(o['controllability']['mean_range'] for o in of) / len(of):.1f}",
                f"{sum(spearman) / len(spearman):.2f}" if spearman else "–",
            ]
        )  # fmt: skip
    header = [
        "strategy", "hypervolume, of the optimum's", "measurements a question", "for 24 questions", "s a question",
        "controllability, % points", "Spearman",
    ]  # fmt: skip
    ratios = [seed["evolution_against_joint"] for seed in seeds]
    middle = sorted(r["median"] for r in ratios)[len(ratios) // 2]
    never, asked = sum(r["never"] for r in ratios), sum(r["questions"] for r in ratios)
    return (
        table(header, rows)
        + f"\n\n{len(seeds)} seeds. To come as far as `joint`, evolution measures {middle:.0f} times as much "
        f"(median over the questions); in {never} of {asked} it never does."
    )


def feature_distillation() -> str:
    """Δm after two epochs by form of distillation."""
    found = read("feature_distillation")["summary"]
    names = list(next(iter(found.values())))
    return table(["form", *names], [[form, *(_of_seeds(of[name]) for name in names)] for form, of in found.items()])


def width_switching() -> str:
    """The named configurations of the demo's bundle beside the same networks exported alone."""
    found = read("width_switching")
    rows = [
        [
            name, f"{e['macs'] / 1e6:.1f}", f"{e['bundle']['median_ms']:.2f}", f"{e['alone']['median_ms']:.2f}",
            f"{e['bundle_over_alone']:.2f}×", f"{found['bytes']['each_alone'][name] / 1e6:.2f}",
        ]
        for name, e in found["latency"].items()
    ]  # fmt: skip
    header = ["configuration", "MMACs", "in the bundle, ms", "alone, ms", "bundle / alone", "alone, MB"]
    switching, bytes_ = found["switching"], found["bytes"]
    quiet, load, after = found["governor"]["phases"]
    widest = found["latency"]["default"]["macs"]
    return (
        table(header, rows)
        + f"\n\nThe bundle: {bytes_['bundle'] / 1e6:.2f} MB, {bytes_['ratio']:.2f}× the widest network's. "
        f"Switching, loaded: {1000 * switching['by_name_ms']['median_ms']:.1f} µs by name, "
        f"{switching['by_budget_and_preference_ms']['median_ms']:.2f} ms by budget and preference. "
        f"Memory (PSS): {found['memory_kb']['bundle, all named'] / 1e3:.0f} MB with all named configurations loaded, "
        f"{found['memory_kb']['every point alone, at once'] / 1e3:.0f} MB for the same networks alone. "
        f"The governor's runs within its target: {quiet['governed_within_target']:.0%} when quiet, "
        f"{load['governed_within_target']:.0%} under load (the widest network: {load['widest_within_target']:.0%}). "
        "It stays narrow for a while: 200 quiet runs after the load it was at "
        f"{after['macs_at_the_end'] / widest:.0%} of the MACs."
    )


TABLES: dict[str, Callable[[], str]] = {
    "slimmable": slimmable, "width_search": width_search, "feature_distillation": feature_distillation,
    "width_switching": width_switching,
}  # fmt: skip
