"""Makes the tables of hardware: costs, devices, predicted latency, the FPGA model, the engine in Verilog."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.tables.markdown_tables import read, table


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


def mac_counts() -> str:
    """MACs of four networks by six counters, in millions."""
    found = read("mac_counts")["networks"]
    names = list(dict.fromkeys(name for one in found.values() for name in one["counts"]))
    rows = []
    for network, one in found.items():
        cells = ["–" if one["by_hand"] is None else f"{one['by_hand'] / 1e6:.3f}"]
        for name in names:
            count = one["counts"].get(name)
            cells.append("–" if count is None else "fails" if count["macs"] is None else f"{count['macs'] / 1e6:.3f}")
        rows.append([network, *cells])
    return table(["M MACs", "by hand", *names], rows)


def roofline() -> str:
    """How far modelled times are off on networks that were not fitted, by class of device."""
    rows = []
    for name, one in read("roofline_fit")["classes"].items():
        error = one["error"]
        held, boards = error["held_out_over_splits"], error.get("boards_held_out")
        rows.append(
            [
                f"{name}, {one['precision']}: {', '.join(one['boards'])}",
                str(error["fitted"]["rows"] + error["held_out"]["rows"]),
                f"{error['fitted']['median']:.0%}",
                f"{held['median']:.0%} / {held['p90']:.0%}",
                "–" if not boards else f"{boards['median']:.0%} / {boards['p90']:.0%}",
                f"{error['peak_alone_held_out']['median']:.0%}",
            ]
        )
    header = ["devices fitted", "published times", "error, fitted", "networks held out, median / p90"]
    return table([*header, "boards held out, median / p90", "peak alone"], rows)


def latency_table() -> str:
    """How well the table predicts networks that it was not fitted on, beside simpler predictors."""
    found = read("latency_table")
    names = {
        "table": "latency table",
        "line in MACs per family": "a line in MACs for each family",
        "line in MACs": "one line in MACs",
    }
    rows = []
    for name, words in names.items():
        one = found["quality"][name]
        cells = [f"{one[key]:.1%}" for key in ("median_error", "p90_error", "worst_error")]
        rows.append([words, *cells, f"{one['rank_correlation']:.3f}"])
    return table(["prediction", "median error", "90th percentile", "worst", "rank correlation"], rows)


def latency_pruning() -> str:
    """Δm against measured latency, by what pruning aimed at."""
    found = read("latency_pruning")
    rows = []
    for aim in dict.fromkeys(row["aim"] for row in found["networks"]):
        for share in dict.fromkeys(row["share"] for row in found["networks"] if row["aim"] == aim):
            ones = [row for row in found["networks"] if (row["aim"], row["share"]) == (aim, share)]
            deltas = [row["delta_m"] for row in ones]
            spread = f" ({min(deltas):+.1f} … {max(deltas):+.1f})" if len(deltas) > 1 else ""
            mean = sum(deltas) / len(deltas)
            rows.append([aim, f"{ones[0]['measured_ms']:.2f}", f"{ones[0]['macs_share']:.0%}", f"{mean:+.2f}{spread}"])
    lines = [
        f"Against *{other}*, at the same latency: {one['mean_delta_m_gained']:+.1f} points of Δm; "
        f"at the same Δm: {one['mean_latency_change']:+.0%} latency."
        for other, one in found["latency_against"].items()
        if one["mean_delta_m_gained"] is not None and one["mean_latency_change"] is not None
    ]
    whole = f"The whole network: {found['original_ms']:.2f} ms, {found['seeds']} seeds of fine-tuning."
    return table(["aim", "measured ms", "MACs left", "Δm %"], rows) + "\n\n" + " ".join([whole, *lines])


TABLES: dict[str, Callable[[], str]] = {
    "fpga_m3vit": fpga_m3vit, "fpga_edge_moe": fpga_edge_moe, "rtl_cycles": rtl_cycles, "rtl_resources": rtl_resources,
    "mac_counts": mac_counts, "roofline": roofline, "latency_table": latency_table,
    "latency_pruning": latency_pruning,
}  # fmt: skip
