"""Reads the options of ``mtlc profile``, calls it, and prints what it found for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import BACKEND, BUNDLE, CONFIGURATION, DEBUG, JSON, LOG_LEVEL, PATH, ROUNDS, WAIT_QUIET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import IN_DOUBT, NETWORK, count, cpu_ratio_text, doubts_text, ratio_text, table
from mtlc.errors import BudgetMissed

if TYPE_CHECKING:
    from mtlc.results.devices import DeviceResult
    from mtlc.results.latency import Memory
    from mtlc.results.profile import Latencies, ProfileResult, Regression

MIB = 2**20


def text(result: ProfileResult) -> str:
    """What was measured, if anything was, and a block for each modelled device."""
    blocks = [_measured(result)] if result.bundles else []
    return "\n\n".join([*blocks, *(_device(entry) for entry in result.devices)])


def _measured(result: ProfileResult) -> str:
    """Latency, instructions and memory, a line for each bundle; times by layer and operator if they were asked for."""
    backend = result.backend
    setting = f"{result.threads} thread(s), batch {result.batch}, {result.rounds} rounds"
    with_what = f"{backend.name} {backend.version or ''}".rstrip()
    memory = {name: found.memory for name, found in result.bundles.items()}
    lines = [f"measured on {result.device.cpu}, {with_what}, {setting}", *costs(result, memory)]
    if "layers" in result.model_fields_set:
        rows = [(one.name or NETWORK, f"{one.ms:.3f}", f"{100 * one.share:.1f}", one.kernel) for one in result.layers]
        lines += ["", table(("layer", "ms", "%", "slowest kernel"), rows)]
    if "operators" in result.model_fields_set:
        kernels = [
            (one.kind, one.kernel, f"{one.count:g}", f"{one.ms:.3f}", f"{100 * one.share:.1f}")
            for one in result.operators
        ]
        lines += ["", table(("operator", "kernel", "times", "ms", "%"), kernels)]
    if "attributed" in result.model_fields_set:
        lines.append(f"{100 * result.attributed:.1f} % of the profiled time belongs to a layer")
    if result.regression is not None:
        lines += ["", regression(result.regression)]
    return "\n".join(lines)


def costs(result: Latencies, memory: Mapping[str, Memory | None]) -> list[str]:
    """The tables of times, and of memory by bundle; what makes times doubtful, and why there are no instructions if
    there are none.
    """
    from mtlc.results.latency import said_doubts

    times, resident, doubtful = [], [], bool(result.doubts)
    for name, found in result.bundles.items():
        ratio, counted, kept = result.speedup.get(name), found.instructions, memory[name]
        mark = IN_DOUBT if doubtful or (ratio is not None and ratio.doubt) else ""
        shown = (f"{mark}{found.median_ms:.3f}", *(f"{ms:.3f}" for ms in (found.p10_ms, found.p90_ms)))
        spread = 0.0 if counted is None or counted.spread is None else counted.spread
        instructions = ("-", "-") if counted is None else (count(counted.median), f"{100 * spread:.3f}")
        times.append(
            (
                name, *shown, f"{100 * (found.spread or 0.0):.1f}", f"{found.cpu_median_ms:.3f}", *instructions,
                cpu_ratio_text(ratio), ratio_text(ratio, doubtful),
            )
        )  # fmt: skip
        if kept is None:
            continue
        mib = (
            "-" if size is None else f"{size / MIB:.1f}"
            for size in (kept.added_bytes, kept.peak_bytes, kept.baseline_bytes)
        )
        cold = f"{kept.cold_ms:.0f}", f"{kept.cold_min_ms:.0f} to {kept.cold_max_ms:.0f}"
        resident.append((name, *mib, *cold))
    header = (
        "bundle", "median ms", "p10 ms", "p90 ms", "spread %", "cpu ms", "instructions", "spread %", "faster by cpu",
        "faster",
    )  # fmt: skip
    lines = [table(header, times)]
    if doubts := said_doubts(result.doubts, result.speedup):
        lines.append(doubts_text(doubts))
    if result.instructions_why is not None:
        lines.append(f"instructions: {result.instructions_why}")
    return [
        *lines,
        "",
        table(("bundle", "adds MiB", "peak MiB", "before opening MiB", "cold start ms", "range"), resident),
    ]


def regression(found: Regression) -> str:
    """A line for the growth over the baseline, by what and with which allowance; a second if it is by time."""
    what = "instructions" if found.by == "instructions" else "median ms"
    show = count if found.by == "instructions" else "{:.3f}".format
    line = f"{what}: {show(found.before)} in {found.baseline}, {show(found.after)} here: "
    line += f"{100 * found.growth:+.2f} %, {100 * found.max_growth:g} % allowed, spread {100 * found.spread:.2f} %"
    return line if found.why is None else f"{line}\ncompared by time, which says less: {found.why}"


SLOWEST = 12


def _device(entry: DeviceResult) -> str:
    off = "error not known"
    if error := entry.error:
        off = f"±{100 * error.median:.0f} % in the median, {100 * error.p90:.0f} % at p90, on {error.held_out} held out"
    bounds = entry.bounds or {}
    share = " and ".join(f"{100 * part:.0f} % {bound}" for bound, part in bounds.items() if part >= 0.005)
    before = "" if entry.before_ms is None else f", {entry.before_ms:.3g} ms for the other bundle"
    lines = [
        f"modelled on {entry.title}, {entry.precision}, one sample: {entry.after_ms:.3g} ms{before} ({off})",
        f"it waits for: {share}",
        *entry.notes,
    ]
    layers = sorted(entry.layers, key=lambda layer: -layer.ms)
    rows = [
        (layer.name or NETWORK, f"{layer.ms:.4f}", layer.bound, count(layer.rate, "MAC/s"))
        for layer in layers[:SLOWEST]
    ]
    lines.append(table(("layer", "ms", "bound", "reaches"), rows))
    if len(layers) > SLOWEST:
        lines.append(f"and {len(layers) - SLOWEST} layers that take less; all with --json")
    return "\n".join(lines)


@click.command()
@BUNDLE
@click.option("--against", type=PATH, help="Another bundle, measured in turns with this one.")
@click.option("--task", "tasks", multiple=True, help="A task to run; may be given again. Default: all.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@ROUNDS
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads per program.")
@click.option("--layers", is_flag=True, help="Also the time by layer (needs onnx).")
@click.option(
    "--device", "devices_", multiple=True, help="A device or its file; may be given again. Default: local-cpu."
)
@click.option("--operators", is_flag=True, help="Also the time by kind of operator and kernel (needs onnx).")
@click.option("--baseline", type=PATH, help="The JSON of an earlier profile: exit 3 if BUNDLE costs more.")
@click.option("--max-growth", metavar="SHARE", help="What it may cost more. Default: 1% of instructions, 10% of ms.")
@CONFIGURATION
@BACKEND
@WAIT_QUIET
@JSON
@DEBUG
@LOG_LEVEL
def profile(
    bundle: Path,
    against: Path | None,
    tasks: tuple[str, ...],
    batch: int,
    rounds: int | None,
    threads: int,
    layers: bool,
    devices_: tuple[str, ...],
    operators: bool,
    baseline: Path | None,
    max_growth: str | None,
    configuration: str | None,
    backend: str,
    wait_quiet: bool,
    as_json: bool,
    log_level: str,
) -> None:
    """Measure BUNDLE on this machine: latency, instructions, memory, start; or model it on another --device."""
    from mtlc.workflows.device_times import profile_devices
    from mtlc.workflows.profile import profile as profile_here

    def measure() -> ProfileResult:
        return profile_here(
            bundle, against, tasks=tasks, batch=batch, rounds=rounds, threads=threads, backend=backend, layers=layers,
            operators=operators, configuration=configuration, baseline=baseline, max_growth=max_growth,
            wait_quiet=wait_quiet, log=listener(log_level)["log"],
        )  # fmt: skip

    asked = {"--baseline": baseline, "--max-growth": max_growth, "--layers": layers, "--operators": operators}
    result = profile_devices(
        bundle, devices_, measure, against=against, tasks=tasks, batch=batch, configuration=configuration,
        local_only=[option for option, value in asked.items() if value],
    )  # fmt: skip
    emit(as_json, result, text)
    if result.regression is not None and result.regression.grew:
        raise BudgetMissed(regression(result.regression).splitlines()[0])
