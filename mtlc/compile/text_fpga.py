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
