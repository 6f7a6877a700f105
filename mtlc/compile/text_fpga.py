"""What the verbs about FPGAs, and ``mtlc export``, print for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlc.compile.text import count, table


def export(result: Mapping[str, Any]) -> str:
    """What was written, and how well it was verified."""
    if result["format"] == "onnx":
        checked = result["verification"]
        return f"{result['path']}  {count(result['bytes'], 'B')}, {len(result['programs'])} programs, verified ({len(checked)} figures)"  # fmt: skip
    rows, columns = result["array"]
    lines = [
        f"{result['path']}  {count(result['bytes'], 'B')}: the experts of {result['task']} in INT8 for an array of {rows}x{columns}",
        "",
        table(
            ("layer", "experts", "of", "weights", "places", "signal to noise, dB"),
            [
                (
                    one["layer"], one["experts"], one["routed"], count(one["weights_bytes"], "B"), one["places"],
                    decibels(one["signal_to_quantisation_noise_db"]),
                )
                for one in result["layers"]
            ],
        ),
    ]  # fmt: skip
    metric = result["metric"]
    if metric is not None:
        lines += [
            "",
            f"{metric['name']} on {metric['samples']} validation samples: {metric['float']:.5g} with float experts, "
            f"{metric['int8_experts']:.5g} with INT8 experts (measured{', ' + metric['unit'] if metric['unit'] else ''})",
        ]
    return "\n".join(lines)


def rtl(result: Mapping[str, Any]) -> str:
    """Each layer's comparison and cycles."""
    rows = [
        (
            one["layer"], one["experts"], one["outputs_compared"], _same(one["verilog"]), _same(one["numpy"]), one["cycles"],
            one["closed_form"], f"{100 * (one['utilisation'] or 0):.0f}%",
        )
        for one in result["layers"]
    ]  # fmt: skip
    header = ("layer", "experts", "outputs", "Verilog", "numpy", "cycles", "closed form", "of the peak")
    port = "a beat" if result["bytes_per_cycle"] is None else f"{result['bytes_per_cycle']:g} bytes"
    array = "x".join(map(str, result["array"]))
    return (
        f"{table(header, rows)}\n\n{result['cycles']} cycles ({result['kind']}: the Verilog, {array}, {port} a cycle)"
    )


def simulation(result: Mapping[str, Any]) -> str:
    """A row for each policy, what it takes of the board, and what nobody measured."""
    rows = []
    for one in result["policies"]:
        parts, peak, took = one["parts_ms"], one["peak"], one["resources"]
        rows.append(
            (
                one["policy"], f"{one['ms']:.4g}", *(f"{parts[unit]:.3g}" for unit in ("linear", "attention", "vector", "gate")),
                f"{one['stall_ms']:.3g}", count(one["ddr_bytes"] + one["streamed_bytes"], "B"), count(peak["weight_bytes"], "B"),
                peak["queue_places"], *(f"{took[name]['used']}/{took[name]['total']}" for name in ("dsp", "bram36", "uram")),
            )
        )  # fmt: skip
    header = (
        "policy", "ms", "linear", "attention", "vector", "gate", "stall", "from DDR", "on chip", "queued", "DSP", "BRAM36", "URAM",
    )  # fmt: skip
    lines = [
        f"{result['accelerator']}, {result['network']}: one frame ({result['kind']}; routing {result['routing']})",
        "",
        table(header, rows),
    ]
    tasks = [
        f"{one['policy']} {task} {ms:.4g} ms" for one in result["policies"] for task, ms in one["tasks_ms"].items()
    ]
    if len(tasks) > len(result["policies"]):
        lines += ["", "by task: " + ", ".join(tasks)]
    switch = result["switching"]
    if switch is not None:
        lines.append(
            f"switching the task every frame ({switch['policy']}): {switch['extra_cycles']} cycles and {switch['extra_bytes']} bytes more than staying"
        )
    lines += [f"left out: {policy}: {why}" for policy, why in result["left_out"].items()]
    for one in result["policies"]:
        if one["resources"]["problem"]:
            lines.append(f"{one['policy']}: {one['resources']['problem']}")
    lines.append(
        f"The clock of {result['clock_mhz']:g} MHz is assumed. Weights come from DDR over one port. No energy is measured."
    )
    lines += [str(result[key]) for key in ("timeline", "chrome_trace") if result[key]]
    return "\n".join(lines)


def search(result: Mapping[str, Any]) -> str:
    """The Pareto front."""
    rows = [
        (
            f"{one['ms']:.4g}", one["dsp"], one["bram36"], one["uram"], "x".join(map(str, one["linear"])), one["queries"],
            f"{one['buffers']} of {count(one['buffer_bytes'], 'B')}",
        )
        for one in result["front"]
    ]  # fmt: skip
    lines = [
        f"{result['accelerator']} changed for {result['network']} on {result['board']}: {result['tried']} designs tried, "
        f"{result['too_large']} do not fit, {len(rows)} on the front",
        "",
        table(("ms", "DSP", "BRAM36", "URAM", "array", "queries", "buffers"), rows),
        "",
        f"{result['policy']}, {result['kind']}; the clock of {result['clock_mhz']:g} MHz is assumed for all of them",
    ]
    return "\n".join([*lines, *([result["picture"]] if result["picture"] else [])])


def synthesis(result: Mapping[str, Any]) -> str:
    """Resources beside the board's."""
    rows = [
        (name, one["used"], "-" if one["total"] is None else one["total"], share(one["used"], one["total"]))
        for name, one in result["resources"].items()
    ]
    array = "x".join(map(str, result["array"]))
    note = f"{array} on {result['board']}: mapped by {result['version']} in {result['seconds']:g} s, not placed ({result['kind']})"
    return f"{table(('resource', 'used', 'there', 'share'), rows)}\n\n{note}"


def share(used: float, total: float | None) -> str:
    return "-" if not total else f"{100 * used / total:.1f}%"


def decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _same(identical: bool) -> str:
    return "identical" if identical else "DIFFERS"
