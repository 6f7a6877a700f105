"""Makes the tables of pruning: what the networks learnt, methods, the search's cost, speed-up."""

from __future__ import annotations

from collections.abc import Callable

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
    """Δm by method and stage, mean ± standard deviation over the seeds."""
    found = read("pruners")["table"]
    stages = list(next(iter(found.values())))
    rows = []
    for method, by_stage in found.items():
        cells = []
        for stage in stages:
            entry = by_stage.get(stage)
            if entry is None:
                cells.append("–")
                continue
            spread = "" if entry["delta_m_std"] is None else f" ± {entry['delta_m_std']:.2f}"
            cells.append(f"{entry['delta_m_mean']:+.2f}{spread} ({entry['macs_share']:.0%})")
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
    "tasks": tasks, "pruners": pruners, "oracle": oracle, "speedup": speedup, "subset": subset,
}  # fmt: skip
