"""Write the README's tables from the committed results, between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

python -m benchmarks.tables.tables            # rewrite README.md
python -m benchmarks.tables.tables --check    # fail if README.md and the results differ
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.tables import hardware_tables
from benchmarks.tables import runtime_tables
from benchmarks.tables.markdown_tables import ROOT, read, table


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


def startup() -> str:
    """Start-up costs."""
    found = read("startup")
    rows = [
        ["`mtlc --help`", f"{found['help_seconds']:.3f} s"],
        ["`import mtlc.runtime` adds to `import onnxruntime`", f"{found['runtime_adds_ms']:.1f} ms"],
        ["`from mtlc.runtime import Session` adds", f"{found['session_adds_ms']:.1f} ms"],
    ]
    return table(["start-up", "median"], rows)


def moe_macs() -> str:
    """M³ViT's MACs by our counter beside the paper's."""
    rows = []
    for name, found in read("m3vit_table")["data_sets"].items():
        values = [task["gmacs"] for task in found["tasks"].values()]
        published, backbone = found["published_gmacs"], found["parameters"]["backbone"]
        cells = [
            f"{min(values):.2f} to {max(values):.2f}",
            "–" if published is None else str(published),
            f"{backbone:,}",
        ]
        rows.append([f"{found['size']}, {name}", *cells])
    return table(["M³ViT", "GMACs, encoder and one decoder", "published", "backbone parameters"], rows)


def extraction() -> str:
    """What each task keeps at a usage threshold of 1 %, over the seeds."""
    runs = read("extraction")["runs"]
    rows = []
    for training in ("balance", "dependence"):
        found = [run for name, run in runs.items() if name.startswith(training)]
        for task in found[0]["tasks"]:
            entries = [run["tasks"][task] for run in found]
            first = runs[f"{training}_0"]["tasks"][task]
            kept = [sum(entry["kept_experts"]) / len(entry["kept_experts"]) for entry in entries]
            speed = first["latency"]["speedup"]["extracted"]["median"]
            rows.append(
                [
                    training, task, str(len(entries)), _mean([entry["whole"] for entry in entries], ".2f"), _mean(kept, ".1f"),
                    _mean([100 * entry["expert_parameters_gone"] for entry in entries], ".0f"),
                    _mean([entry["drop_percent"] for entry in entries], "+.3f"),
                    _mean([100 * entry["at_5_percent"]["expert_parameters_gone"] for entry in entries], ".0f"),
                    _mean([entry["at_5_percent"]["drop_percent"] for entry in entries], "+.3f"),
                    f"{first['parameters']['before'] / 1e6:.2f} → {first['parameters']['after'] / 1e6:.2f} M",
                    f"{first['bytes'] / 1e6:.1f} MB", f"{speed:.2f}×",
                ]
            )  # fmt: skip
    header = [
        "training", "task", "seeds", "metric, whole", "experts kept of 16", "expert parameters gone, %", "metric worse by, %",
        "gone, % (threshold 5 %)", "worse by, %", "parameters, seed 0", "bundle", "speed-up",
    ]  # fmt: skip
    return table(header, rows)


def _mean(values: list[float], form: str) -> str:
    """Mean ± standard deviation."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return format(mean, form)
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:{form}} ± {spread:{form.removeprefix('+')}}"


def extraction_variants() -> str:
    """Dropping, re-routing and merging at growing thresholds, and budgets by harm and by usage: seed 0."""
    rows = []
    for training, found in read("extraction")["variants"].items():
        for name, entry in found.items():
            if max(map(abs, entry["drop_percent"].values())) < 0.05:
                continue  # nothing moved: the table above says as much
            drops = ", ".join(f"{task} {value:+.1f}" for task, value in entry["drop_percent"].items())
            rows.append([training, name, f"{entry['expert_parameters_gone']:.0%}", drops])
    return table(["training", "extraction", "expert parameters gone", "metric worse by, %"], rows)


def moe_latency() -> str:
    """A single-task M³ViT tiny against a dense transformer of the same active MACs."""
    rows = []
    for setting, forms in read("moe_latency")["results"].items():
        cells = [f"{forms[form]['ratio']:.2f}×" if form in forms else "–" for form in ("queue", "masked", "cached")]
        rows.append([setting, f"{forms['dense']['median_ms']:.1f}", *cells])
    return table(["setting", "dense, ms", "queue", "masked", "cached"], rows)


def moe_switching() -> str:
    """Changing the task, and the memory of three tasks."""
    rows = []
    for size, e in read("moe_switching")["results"].items():
        memory, difference = e["memory_bytes"], e["switching"]["difference_us"]
        rows.append(
            [
                size, f"{e['switching']['same_us']['median_ms'] / 1e3:.2f}",
                f"{difference['median']:+.0f} ({difference['p25']:+.0f} … {difference['p75']:+.0f})",
                *(f"{memory[key] / 1e6:.0f}" for key in ("one_task", "three_tasks", "three_bundles")),
                f"{memory['three_over_one_plus_heads']:.2f}×",
            ]
        )  # fmt: skip
    header = [
        "M³ViT", "one task, ms", "after another task, µs more", "one task, MB", "three tasks, MB", "three bundles, MB",
        "three tasks / (one + other heads)",
    ]  # fmt: skip
    return table(header, rows)


def expert_cache() -> str:
    """The expert cache under falling budgets."""
    rows = []
    for setting, found in read("expert_cache")["results"].items():
        rows.append([setting, "in the graph", f"{found['in the graph']['latency_ms']['median_ms']:.1f}", "–", "–", "–"])
        for budget, e in found.items():
            if budget != "in the graph":
                cells = [
                    f"{e['latency_ms']['median_ms']:.1f}", f"{e['hit_rate']:.0%}", f"{e['bytes_read_per_frame'] / 1e6:.2f}",
                    f"{e['most_resident_bytes'] / 1e6:.2f}",
                ]  # fmt: skip
                rows.append([setting, budget, *cells])
    return table(["training, frames", "budget, of all experts", "ms", "hits", "MB read a frame", "MB resident"], rows)


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
        + f"\n\n{len(seeds)} seeds. To come as far as `joint`, evolution measures {middle:.0f} times as much (median over the "
        f"questions); in {never} of {asked} it never does."
    )


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
        + f"\n\nThe bundle: {bytes_['bundle'] / 1e6:.2f} MB, {bytes_['ratio']:.2f}× the widest network's. Switching, loaded: "
        f"{1000 * switching['by_name_ms']['median_ms']:.1f} µs by name, {switching['by_budget_and_preference_ms']['median_ms']:.2f} ms by budget and "
        f"preference. Memory (PSS): {found['memory_kb']['bundle, all named'] / 1e3:.0f} MB with all named configurations loaded, "
        f"{found['memory_kb']['every point alone, at once'] / 1e3:.0f} MB for the same networks alone. The governor's runs within its target: "
        f"{quiet['governed_within_target']:.0%} when quiet, {load['governed_within_target']:.0%} under load (the widest network: {load['widest_within_target']:.0%}). "
        f"It stays narrow for a while: 200 quiet runs after the load it was at {after['macs_at_the_end'] / widest:.0%} of the MACs."
    )


def feature_distillation() -> str:
    """Δm after two epochs by form of distillation."""
    found = read("feature_distillation")["summary"]
    names = list(next(iter(found.values())))
    return table(["form", *names], [[form, *(_of_seeds(of[name]) for name in names)] for form, of in found.items()])


TABLES: dict[str, Callable[[], str]] = {
    "pruners": pruners, "tasks": tasks, "oracle": oracle, "speedup": speedup, "subset": subset, "startup": startup,
    "moe_macs": moe_macs, "extraction": extraction, "extraction_variants": extraction_variants, "moe_latency": moe_latency,
    "moe_switching": moe_switching, "expert_cache": expert_cache, "slimmable": slimmable, "width_search": width_search,
    "width_switching": width_switching, "feature_distillation": feature_distillation, **hardware_tables.TABLES, **runtime_tables.TABLES,
}  # fmt: skip


def render(text: str) -> str:
    """`text` with every marked table rewritten."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no place for the table {name!r}")
        before, after = pattern.split(text)[0], pattern.split(text)[-1]
        text = f"{before}<!-- {name} -->\n{make()}\n<!-- /{name} -->{after}"
    return text


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text()
    if "--check" in sys.argv:
        if render(text) != text:
            raise SystemExit("README.md does not show the committed results: run python -m benchmarks.tables.tables")
        return
    path.write_text(render(text))


if __name__ == "__main__":
    main()
