"""Makes the tables of pruning: what the networks learnt, methods, the search's cost, speed-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.tables.markdown_tables import read, table


def tasks() -> str:
    """What the shipped networks learnt: multi-task, single-task, constant predictor."""
    found = read("zoo")
    rows = [
        [task, f"{e['metric']} ({e['unit']}, {'↑' if e['higher_is_better'] else '↓'})"]
        + [f"{e[key]:.2f}" for key in ("constant", "single_task", "multi_task")]
        for task, e in found["tasks"].items()
    ]
    header = ["task", "metric", "constant predictor", "single-task network", "multi-task network"]
    return (
        table(header, rows)
        + f"\n\nΔm of the multi-task network against the single-task ones: {found['delta_m']:+.2f} %."
    )


def pruners() -> str:
    """Δm by method and cut, and what won."""
    return comparison(read("pruners"))


def pruners_scenes() -> str:
    """Δm by method and stage on Scenes, with the earlier recipe."""
    return _by_stage(read("pruners_scenes")["table"])


def comparison(found: Mapping[str, Any]) -> str:
    """For each subject: who is ahead at each cut, Δm by method and cut, and the ablation."""
    parts = []
    for name, one in found["subjects"].items():
        cuts = list(one["best"])
        rows = [
            [method, _seeds(by_cut.values()), _rate(one["tuning"], method), *(_cell(by_cut, c) for c in cuts)]
            for method, by_cut in one["table"].items()
        ]
        tests = [
            [cut, f"{method} against {best['simple']}", *_tested(test)]
            for cut, best in one["best"].items()
            for method, test in best["against_simple"].items()
        ]
        parts += [
            f"**{name}**: ahead " + ", ".join(f"at {cut} {_ahead(best)}" for cut, best in one["best"].items()) + ".",
            table(["method", "seeds", "rate", *(f"Δm % at {cut} MACs" for cut in cuts)], rows),
        ]
        if tests:
            parts.append(
                table(["MACs", "against the best simple way", "Δm, points ± std", "seeds won, lost", "p"], tests)
            )
        if one["ablation"]:
            parts.append(_ablation(one["ablation"]))
    return "\n\n".join(parts)


_CHANCE = 0.05


def _rate(tuning: Mapping[str, Any], method: str) -> str:
    """The rate that a method has, and those of its grid that were not tried."""
    grid, tried = tuning["own_rates"].get(method, tuning["rates"]), tuning["delta_m_calibration"][method]
    missing = ", ".join(f"{rate:g}" for rate in grid if f"{rate:g}" not in tried)
    return f"{tuning['taken'][method]:g}" + (f" ({missing} not tried)" if missing else "")


def _ahead(best: Mapping[str, Any]) -> str:
    """Who is ahead, and of whom: the best of the pass's own and the best simple way, over the seeds that both have.

    A lead that as many seeds would show by chance in more than one case of twenty is told as no lead.
    """
    simple, ours = best["method"] == best["simple"], best["ours"]
    test = None if ours is None else best["against_simple"][ours]
    name = f"{best['method']}, a simple way" if simple else str(best["method"])
    if test is None:
        return name
    lead, seeds, p = abs(test["difference_mean"]), len(test["seeds"]), test["p"]
    other = ours if simple else best["simple"]
    spread = "1 seed" if p is None else f"{seeds} seeds, {'within' if p > _CHANCE else 'outside'} the spread"
    return f"{name} (by {lead:.2f} points before {other}, {spread})"


def _tested(test: Mapping[str, Any] | None) -> list[str]:
    if test is None:
        return ["–", "–", "–"]
    p = "–" if test["p"] is None else f"{test['p']:.3f}"
    return [
        _spread(test["difference_mean"], test["difference_std"]),
        f"{test['wins']}, {test['losses']} of {len(test['seeds'])}",
        p,
    ]


def _ablation(found: Mapping[str, Any]) -> str:
    """Recipe × allocation, over the seeds that both recipes have."""
    rows = []
    for cut, by_method in found.items():
        for method, by_recipe in by_method.items():
            cells = [_spread(e["delta_m_mean"], e["delta_m_std"]) for e in (by_recipe["old"], by_recipe["new"])]
            rows.append([cut, method, str(len(by_recipe["new"]["seeds"])), *cells])
    return table(["MACs", "allocation", "seeds", "Δm %, earlier recipe", "Δm %, recipe of today"], rows)


def _cell(by_cut: Mapping[str, Any], cut: str) -> str:
    entry = by_cut.get(cut)
    if entry is None:
        return "–"
    return f"{_spread(entry['delta_m_mean'], entry['delta_m_std'])} ({entry['macs_share']:.1%})"


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:+.2f}" + ("" if std is None else f" ± {std:.2f}")


def _seeds(entries: Iterable[Mapping[str, Any]]) -> str:
    """How many seeds; the fewest and the most where cuts have not the same number."""
    counts = sorted({len(entry["seeds"]) for entry in entries})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def _by_stage(found: Mapping[str, Any]) -> str:
    """Of a result whose methods went through the same stages: mean ± standard deviation over the seeds."""
    stages = list(next(iter(found.values())))
    rows = []
    for method, by_stage in found.items():
        cells = []
        for stage in stages:
            entry = by_stage.get(stage)
            if entry is None:
                cells.append("–")
                continue
            cells.append(f"{_spread(entry['delta_m_mean'], entry['delta_m_std'])} ({entry['macs_share']:.0%})")
        rows.append([method, str(len(by_stage[stages[0]]["seeds"])), *cells])
    return table(["method", "seeds", *(f"Δm % at {stage} MACs" for stage in stages)], rows)


def oracle() -> str:
    """Forwards and seconds of the search, fast against plain."""
    found = read("prune_oracle")
    rows = []
    for search in found["searches"]:
        for name, v in search["variants"].items():
            cells = [
                f"{v['forward_equivalents']:.1f}",
                f"{v['fewer_forwards']:.1f}×",
                f"{v['cpu_seconds']:.0f}",
                f"{v['faster']:.1f}×",
            ]
            rows.append([search["search"], name, *cells, "yes" if v["same_network_as_plain_scan"] else "no"])
    header = ["search", "variant", "forwards", "fewer", "CPU s", "faster", "same network"]
    return table(header, rows)


def speedup() -> str:
    """Measured speed-up beside the ideal one."""
    rows = []
    for found, align in ((read("speedup"), "8"), (read("speedup_round16"), "16")):
        for form, setting in (
            ("one program per task and trunk", "batch 1, 1 thread"),
            ("fused", "batch 1, 1 thread"),
            ("fused", "batch 8, 1 thread"),
        ):
            for name, e in found[form][setting]["networks"].items():
                if name != "original":
                    share = found["networks"][name]["share"]
                    cells = [
                        f"{share:.1%}",
                        f"{e['speedup']['median']:.2f}×",
                        f"{e['ideal']:.2f}×",
                        f"{e['of_ideal']:.0%}",
                    ]
                    rows.append([align, form, setting, *cells])
    return table(["`round_to`", "bundle", "setting", "MACs left", "speed-up", "ideal", "of ideal"], rows)


def subset() -> str:
    """One task's cost beside all tasks'."""
    found = read("subset")
    tasks = [name for name in found["split"] if name not in ("all", "one_task_of_all")]
    rows = [
        [
            form,
            *(f"{found[form][name]['median_ms']:.2f}" for name in ("all", *tasks)),
            f"{found[form]['one_task_of_all']:.0%}",
        ]
        for form in ("split", "fused")
    ]
    return table(["bundle", "all tasks, ms", *(f"{t} alone" for t in tasks), "one of all"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "tasks": tasks, "pruners": pruners, "pruners_scenes": pruners_scenes, "oracle": oracle, "speedup": speedup,
    "subset": subset,
}  # fmt: skip
