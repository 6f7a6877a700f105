"""The README's tables of hardware: devices, the FPGA model, the engine in Verilog."""

from __future__ import annotations

from collections.abc import Callable

from markdown_tables import read, table


def fpga_m3vit() -> str:
    """M³ViT's hardware table by the FPGA model, all modelled."""
    found = read("fpga_model")["m3vit"]
    rows = [
        [f"{data_set}, {policy}", f"{e['published_ms']:.3f} ms", f"{e['ms']:.3f} ms", f"{e['error_percent']:+.2f} %"]
        for data_set, policies in found["latency"].items()
        for policy, e in policies.items()
    ]
    rows += [
        [f"memory, {policy}", f"{e['published_mib']:.3f} MiB", f"{e['mib']:.3f} MiB", f"{e['error_percent']:+.2f} %"]
        for policy, e in found["memory"].items()
    ]
    return table(["M³ViT small on a ZCU104", "published", "modelled", "error"], rows)


def fpga_edge_moe() -> str:
    """Edge-MoE's latency, to which one scalar is fitted, and its cumulative ablation."""
    rows = [
        [e["without"], f"{e['published_ms']:.1f}", f"{e['ms']:.1f}", f"{e['error_percent']:+.1f} %"]
        for e in read("fpga_model")["edge_moe"]["ablation"]
    ]
    return table(["Edge-MoE on a ZCU102, also without", "published, ms", "modelled, ms", "error"], rows)


def rtl_cycles() -> str:
    """The engine's cycles in simulation against the closed forms."""
    rows = [
        [array, str(found["shapes"])]
        + [
            f"{found[form][key]:.2%}"
            for form in ("closed_form", "published_form")
            for key in ("median", "p90", "worst")
        ]
        for array, found in read("rtl_cycles")["arrays"].items()
    ]
    header = ["array", "random shapes", "closed form: median error", "p90", "worst"]
    return table([*header, "published form: median error", "p90", "worst"], rows)


def rtl_resources() -> str:
    """What the engine takes of a ZCU104."""
    found = read("rtl_resources")
    rows = []
    for one in found["found"]:
        share = one["share_of_board"]["zcu104"]
        cells = [f"{one[key]:,g} ({share[key]:.0%})" for key in ("lut", "ff", "dsp", "bram36")]
        rows.append([one["array"], one["elements"], *cells])
    rows += [[one["array"], one["elements"], one["reason"], "", "", ""] for one in found["failed"]]
    return table(["array", "multipliers", "LUT", "FF", "DSP48E2", "BRAM36"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "fpga_m3vit": fpga_m3vit, "fpga_edge_moe": fpga_edge_moe, "rtl_cycles": rtl_cycles, "rtl_resources": rtl_resources,
}  # fmt: skip
