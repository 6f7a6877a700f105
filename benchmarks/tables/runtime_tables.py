"""Makes the tables of the runtime: what it adds, its start-up, the C library, TensorRT engines, Arm."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.tables.markdown_tables import read, table


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


def startup() -> str:
    """Start-up costs."""
    found = read("startup")
    rows = [
        ["`mtlc --help`", f"{found['help_seconds']:.3f} s"],
        ["`import mtlc.runtime` adds to `import onnxruntime`", f"{found['runtime_adds_ms']:.1f} ms"],
        ["`from mtlc.runtime import Session` adds", f"{found['session_adds_ms']:.1f} ms"],
    ]
    return table(["start-up", "median"], rows)


def native() -> str:
    """The C library beside the Python runtime, in the same onnxruntime."""
    found = read("native")
    rows = []
    for row in found["rows"]:
        for side, name in (("c", "C"), ("python", "Python")):
            one = {key: value["median"] for key, value in row[side].items() if key != "runs"}
            tasks = "1 task" if row["tasks"] == 1 else f"{row['tasks']} tasks"
            cells = [f"{one['ready_cpu_ms']:.0f}", f"{one['cpu_ms']:.3f}", f"{one['peak_rss_kb'] / 1e3:.0f}"]
            rows.append([f"{row['network']}, {tasks}", name, *cells])
    header = ["network", "runtime", "CPU ms until the first result", "CPU ms a run", "memory at most, MB"]
    return table(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    "runtime_overhead": runtime_overhead, "tensorrt": tensorrt, "arm": arm, "startup": startup, "native": native,
}  # fmt: skip
