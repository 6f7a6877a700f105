"""Makes the tables of mixtures of experts: costs, extraction, latency, switching, the expert cache."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.tables.markdown_tables import read, table


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


def _mean(values: list[float], form: str) -> str:
    """Mean ± standard deviation."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return format(mean, form)
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:{form}} ± {spread:{form.removeprefix('+')}}"


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
                    training, task, str(len(entries)), _mean([entry["whole"] for entry in entries], ".2f"),
                    _mean(kept, ".1f"),
                    _mean([100 * entry["expert_parameters_gone"] for entry in entries], ".0f"),
                    _mean([entry["drop_percent"] for entry in entries], "+.3f"),
                    _mean([100 * entry["at_5_percent"]["expert_parameters_gone"] for entry in entries], ".0f"),
                    _mean([entry["at_5_percent"]["drop_percent"] for entry in entries], "+.3f"),
                    f"{first['parameters']['before'] / 1e6:.2f} → {first['parameters']['after'] / 1e6:.2f} M",
                    f"{first['bytes'] / 1e6:.1f} MB", f"{speed:.2f}×",
                ]
            )  # fmt: skip
    header = [
        "training", "task", "seeds", "metric, whole", "experts kept of 16", "expert parameters gone, %",
        "metric worse by, %",
        "gone, % (threshold 5 %)", "worse by, %", "parameters, seed 0", "bundle", "speed-up",
    ]  # fmt: skip
    return table(header, rows)


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
                    f"{e['latency_ms']['median_ms']:.1f}", f"{e['hit_rate']:.0%}",
                    f"{e['bytes_read_per_frame'] / 1e6:.2f}", f"{e['most_resident_bytes'] / 1e6:.2f}",
                ]  # fmt: skip
                rows.append([setting, budget, *cells])
    return table(["training, frames", "budget, of all experts", "ms", "hits", "MB read a frame", "MB resident"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "moe_macs": moe_macs, "extraction": extraction, "extraction_variants": extraction_variants,
    "moe_latency": moe_latency, "moe_switching": moe_switching, "expert_cache": expert_cache,
}  # fmt: skip
