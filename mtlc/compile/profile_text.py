"""What ``mtlc profile`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.compile.text import NETWORK, count, table

MIB = 2**20


def profile(result: Mapping[str, Any]) -> str:
    """Latency, instructions and memory, a line for each bundle; times by layer and operator if they were asked for."""
    backend = result["backend"]
    setting = f"{result['threads']} thread(s), batch {result['batch']}, {result['rounds']} rounds"
    with_what = f"{backend['name']} {backend['version'] or ''}".rstrip()
    lines = [f"measured on {result['device']['cpu']}, {with_what}, {setting}", *costs(result)]
    if "layers" in result:
        rows = [
            (one["name"] or NETWORK, f"{one['ms']:.3f}", f"{100 * one['share']:.1f}", one["kernel"])
            for one in result["layers"]
        ]
        lines += ["", table(("layer", "ms", "%", "slowest kernel"), rows)]
    if "operators" in result:
        kernels = [
            (one["kind"], one["kernel"], f"{one['count']:g}", f"{one['ms']:.3f}", f"{100 * one['share']:.1f}")
            for one in result["operators"]
        ]
        lines += ["", table(("operator", "kernel", "times", "ms", "%"), kernels)]
    if "attributed" in result:
        lines.append(f"{100 * result['attributed']:.1f} % of the profiled time belongs to a layer")
    if "regression" in result:
        lines += ["", regression(result["regression"])]
    return "\n".join(lines)


def costs(result: Mapping[str, Any]) -> list[str]:
    """The tables of what `measure` and `footprint` found, and why there are no instructions if there are none."""
    times, memory = [], []
    for name, found in result["bundles"].items():
        ratio = result["speedup"].get(name)
        shown = (f"{found[key]:.3f}" for key in ("median_ms", "p10_ms", "p90_ms"))
        counted = found["instructions"]
        instructions = ("-", "-") if counted is None else (count(counted["median"]), f"{100 * counted['spread']:.3f}")
        times.append(
            (
                name, *shown, f"{100 * found['spread']:.1f}", f"{found['cpu_median_ms']:.3f}", *instructions,
                "" if ratio is None else f"{ratio['median']:.2f}x",
            )
        )  # fmt: skip
        resident = found["memory"]
        mib = (
            "-" if resident[k] is None else f"{resident[k] / MIB:.1f}"
            for k in ("added_bytes", "peak_bytes", "baseline_bytes")
        )
        cold = f"{resident['cold_ms']:.0f}", f"{resident['cold_min_ms']:.0f} to {resident['cold_max_ms']:.0f}"
        memory.append((name, *mib, *cold))
    header = ("bundle", "median ms", "p10 ms", "p90 ms", "spread %", "cpu ms", "instructions", "spread %", "faster")
    lines = [table(header, times)]
    if result["instructions_why"] is not None:
        lines.append(f"instructions: {result['instructions_why']}")
    return [
        *lines,
        "",
        table(("bundle", "adds MiB", "peak MiB", "before opening MiB", "cold start ms", "range"), memory),
    ]


def regression(found: Mapping[str, Any]) -> str:
    """A line for the growth over the baseline, by what and with which allowance; a second if it is not by instructions."""
    what = "instructions" if found["by"] == "instructions" else "median ms"
    show = count if found["by"] == "instructions" else "{:.3f}".format
    line = f"{what}: {show(found['before'])} in {found['baseline']}, {show(found['after'])} here: "
    line += (
        f"{100 * found['growth']:+.2f} %, {100 * found['max_growth']:g} % allowed, spread {100 * found['spread']:.2f} %"
    )
    return line if found["why"] is None else f"{line}\ncompared by time, which says less: {found['why']}"
