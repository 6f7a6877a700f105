"""The README's tables of runtimes: INT8, what the runtime adds, TensorRT engines, Arm."""

from __future__ import annotations

from collections.abc import Callable

from markdown_tables import read, table


def quantization() -> str:
    """INT8 against float32 by network and backend: CPU time of a call, bytes, and the worst task."""
    found = read("quantization")
    rows = []
    for form, settings in found["latency_ms"].items():
        for setting, by_network in settings.items():
            cells = []
            for name in ("dense fp32", "dense int8", "pruned fp32", "pruned int8"):
                one = by_network[name]
                cells.append(f"{one['cpu_median_ms']:.2f} ({one['cpu_speedup']:.2f}×)")
            rows.append([f"{form}, {setting}", *cells])
    times = table(["ms of CPU time", "dense, float32", "dense, INT8", "pruned, float32", "pruned, INT8"], rows)
    lines = []
    for name, by_backend in found["worse_percent"].items():
        if name == "dense fp32":
            continue  # what the others are compared with
        worst = {backend: max(tasks.items(), key=lambda entry: entry[1]) for backend, tasks in by_backend.items()}
        words = ", ".join(f"{task} {worse:+.2f} % in {backend}" for backend, (task, worse) in worst.items())
        lines.append(f"{name}: {words}")
    sizes = {name: one for name, one in found["networks"].items() if name.endswith("task by task")}
    bytes_ = "; ".join(
        f"{name.partition(',')[0]} {one['bytes_before'] / 1e6:.2f} → {one['bytes'] / 1e6:.2f} MB, "
        f"{one['operators']['int8']} operators in INT8 and {len(one['operators']['float'])} given back"
        for name, one in sizes.items()
    )
    return f"{times}\n\nThe worst task against the dense network in float32: {'; '.join(lines)}.\nBundles: {bytes_}."


def quantization_control() -> str:
    """Our limit for each task beside NNCF's control of one averaged score."""
    words = {
        "per_task": "a limit for each task (mtlc)", "averaged": "one averaged score (NNCF)",
        "averaged_same_count": "one averaged score, as many iterations as mtlc gave back",
    }  # fmt: skip
    rows = []
    for name in ("quantization_control", "quantization_control_64"):
        found = read(name)
        for limit, ways in found["limits"].items():
            for way, one in ways.items():
                worst = one["worst"]["validation"]
                cells = [str(one["int8_operators"]), worst["task"], f"{worst['drop_percent']:.2f} %"]
                rows.append([str(found["control"]), limit, words[way], *cells])
    return table(
        ["control samples", "limit", "control", "operators in INT8", "worst task", "its drop, validation"], rows
    )


def runtime_overhead() -> str:
    """What `Session.run` adds to the backend's own calls."""
    rows = []
    for row in read("runtime_overhead")["rows"]:
        added = row["overhead_us"]
        cells = [row["backend"], f"{row['by_hand_us']:.0f}", f"{added['median']:+.1f}"]
        rows.append([row["network"], *cells, f"{added['p25']:+.1f} … {added['p75']:+.1f}"])
    return table(["network", "backend", "µs, calls by hand", "µs that Session.run adds", "quartiles"], rows)


def tensorrt() -> str:
    """Engines that were built, not run."""
    rows = []
    for row in read("tensorrt_build")["rows"]:
        megabytes = [f"{row[key] / 1e6:.2f}" for key in ("onnx_bytes", "engine_bytes")]
        kept = str(row["nodes_in_float32"]) if row["precision"] == "fp16" else "–"
        rows.append(
            [row["network"], row["precision"], str(row["engines"]), *megabytes, f"{row['cpu_seconds']:.1f}", kept]
        )
    header = ["network", "precision", "engines", "ONNX, MB", "engines, MB", "CPU s to build", "nodes kept in float32"]
    return table(header, rows)


def arm() -> str:
    """The largest difference between an emulated Arm core and x86, by bundle."""
    found = read("arm")["cores"]
    bundles = list(next(iter(found.values()))["bundles"])
    rows = []
    for bundle in bundles:
        worst = [max(t["max_rel"] for t in core["bundles"][bundle]["tasks"].values()) for core in found.values()]
        runs = next(iter(found.values()))["bundles"][bundle]["cases"]
        rows.append([bundle, str(runs), *(f"{value:.1e}" for value in worst)])
    return table(["bundle", "runs", *(f"largest relative difference, {core}" for core in found)], rows)


TABLES: dict[str, Callable[[], str]] = {
    "quantization": quantization, "quantization_control": quantization_control, "runtime_overhead": runtime_overhead,
    "tensorrt": tensorrt, "arm": arm,
}  # fmt: skip
