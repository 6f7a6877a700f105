"""Compares the FPGA model with published figures, and asks it about task switches, routing and other designs.

    python -m benchmarks.fpga.fpga_model

All times are modelled. Routing is drawn from a seed for the published networks, whose weights are not public, and
recorded on calibration scenes for the shipped micro networks. Writes ``results/fpga_model.json`` and the
timeline ``docs/fpga.png``.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.experts.extraction import TRAININGS, opened
from mtlc.errors import UserError
from mtlc.evaluation.splits import fetch
from mtlc.hw.fpga.accelerator import Accelerator, Policy, accelerator
from mtlc.hw.fpga.closed_form import closed_form
from mtlc.hw.fpga.design_search import explore_designs
from mtlc.hw.fpga.event_simulation import simulate
from mtlc.hw.fpga.resources import board, check_fits, parameter_memory, resources
from mtlc.hw.fpga.switching import switch_costs
from mtlc.hw.routing.moe_vit_shape import PUBLISHED, MoeVit, from_program
from mtlc.hw.routing.routing_trace import Frame, RoutingTrace, record, synthetic
from mtlc.report.figures.fpga_timeline import timeline_figure

RESULTS = Path(__file__).parents[1] / "results" / "fpga_model.json"
PICTURE = Path(__file__).parents[2] / "docs" / "fpga.png"
M3VIT, EDGE_MOE = accelerator("m3vit-zcu104"), accelerator("edge-moe-zcu102")
TABLE = {  # ms, M³ViT, NeurIPS 2022
    "PASCAL-Context": ("pascal-small", {"dense": 68.931, "cache": 637.478, "reordered": 69.033}),
    "NYUD-v2": ("nyud-small", {"dense": 84.418, "cache": 750.557, "reordered": 84.538}),
}
MEMORY = {"dense": 4.828, "cache": 4.840, "reordered": 4.840, "resident": 11.610}  # MiB
EDGE_MOE_MS = 34.64
ABLATION = (  # what is left out on top of the row before, ms (Edge-MoE, ICCAD 2023)
    ("attention_reorder", 104.3), ("unified_linear", 212.9), ("gelu_table", 353.4), ("single_pass_softmax", 433.4),
    ("patch_reorder", 650.3),
)  # fmt: skip
FITTED_ROWS = ("unified_linear", "gelu_table", "single_pass_softmax")
"""The rows of the ablation that a scalar was fitted to; see `FITTED`."""
SEEDS, SKEWS, IMAGES = range(5), (0.0, 0.5, 1.0, 2.0), 4
FITTED = {
    "m3vit-zcu104": [
        "linear.outputs · linear.inputs = 1536 MACs per cycle, to the dense row",
        "experts.cache = 4 and ddr.weight_port_bytes = 64, to the cache row",
        "nothing that is no product costs a cycle, and loads are prefetched: to the dense and reordered rows",
    ],
    "edge-moe-zcu102": [
        "vector.cycles_per_element, to the measured 34.64 ms: the one scalar behind that figure",
        "vector.function_cycles, to the ablation's rows on GELU and softmax; it has no part in the 34.64 ms",
        "separate.outputs · separate.inputs, to the ablation's row on the unified unit; no part in the 34.64 ms",
    ],
}


def error(ours: float, published: float) -> float:
    """By how many percent ours is more than published."""
    return 100 * (ours / published - 1)


def m3vit_table() -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for data_set, (name, published) in TABLE.items():
        network = PUBLISHED[name]
        rows[data_set] = {}
        for policy, ms in published.items():
            found = [simulate(network, M3VIT, policy, synthetic(network, seed=s).sequence(["task"])) for s in SEEDS]  # type: ignore[arg-type]
            mean = float(np.mean([one.ms for one in found]))
            formula = M3VIT.ms(sum(closed_form(network, M3VIT, policy).values()))  # type: ignore[arg-type]
            rows[data_set][policy] = {
                "published_ms": ms, "ms": mean, "error_percent": error(mean, ms), "closed_form_ms": formula,
                "spread_ms": max(one.ms for one in found) - min(one.ms for one in found),
                "ddr_mib": found[0].ddr_bytes / 2**20, "stall_ms": M3VIT.ms(found[0].stall),
                "miss_rate": found[0].misses / found[0].places if found[0].places else None,
            }  # fmt: skip
    memory = {
        policy: {"published_mib": mib, "mib": parameter_memory(PUBLISHED["nyud-small"], M3VIT, policy) / 2**20}  # type: ignore[arg-type]
        for policy, mib in MEMORY.items()
    }
    for row in memory.values():
        row["error_percent"] = error(row["mib"], row["published_mib"])
    in_order = M3VIT.changed(experts={"lookup": "in_order"})
    network = PUBLISHED["pascal-small"]
    plain = simulate(network, in_order, "cache", synthetic(network).sequence(["task"]))
    zcu104 = board("zcu104")
    return {
        "latency": rows, "memory": memory,
        "cache_in_order": {"ms": plain.ms, "miss_rate": plain.misses / plain.places},
        "board_memory_mib": 36 * (zcu104.bram36 + 8 * zcu104.uram) / 8 / 1024,
        "fits": fits(PUBLISHED["nyud-small"], M3VIT),
    }  # fmt: skip


def fits(network: MoeVit, hw: Accelerator) -> dict[str, Any]:
    found = resources(network, hw)
    try:
        check_fits(found, board(hw.board))
        verdict = "fits"
    except UserError as refused:
        verdict = str(refused)
    return {
        "dsp": found.dsp, "bram36": found.bram36, "uram": found.uram, "bytes_on_chip": dict(found.bytes_on_chip),
        "board": hw.board, "verdict": verdict,
    }  # fmt: skip


def edge_moe() -> dict[str, Any]:
    network = PUBLISHED["cityscapes-tiny"]
    frames = synthetic(network).sequence(["task"])
    found = simulate(network, EDGE_MOE, "reordered", frames)
    stated = simulate(network, EDGE_MOE.changed(vector={"cycles_per_element": 0.0}), "reordered", frames)
    elements = len(network.blocks) * 4 * network.tokens * network.width
    exact = (EDGE_MOE_MS - stated.ms) * EDGE_MOE.clock_mhz * 1e3 / elements
    rows = [
        {"without": "–", "published_ms": EDGE_MOE_MS, "ms": found.ms, "error_percent": error(found.ms, EDGE_MOE_MS)}
    ]
    off: dict[str, object] = {}
    for technique, published in ABLATION:
        off[technique] = False
        policy: Policy = "cache" if technique == "patch_reorder" else "reordered"
        ms = simulate(network, EDGE_MOE.changed(techniques=off), policy, frames).ms
        rows.append({"without": technique, "published_ms": published, "ms": ms, "error_percent": error(ms, published)})
    return {
        "published_ms": EDGE_MOE_MS, "ms": found.ms, "error_percent": error(found.ms, EDGE_MOE_MS),
        "fitted_scalar": {
            "name": "vector.cycles_per_element", "value": EDGE_MOE.vector.cycles_per_element, "exact_fit": exact,
            "ms_without_it": stated.ms, "error_percent_without_it": error(stated.ms, EDGE_MOE_MS),
        },
        "units_ms": {unit: EDGE_MOE.ms(found.busy(unit)) for unit in ("linear", "attention", "vector", "gate", "ddr")},
        "stall_ms": EDGE_MOE.ms(found.stall), "ablation": rows,
        "gains": gains(rows),
        "fits": fits(network, EDGE_MOE),
    }  # fmt: skip


def gains(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What each technique of the ablation saves, in the order of leaving them out, and which of two saves more.

    `same_order` counts the pairs of techniques that are in the published order; `not_fitted` those of which at least
    one has no scalar that was fitted to its row.
    """
    found = [
        {
            "technique": after["without"], "published_ms": after["published_ms"] - before["published_ms"],
            "ms": after["ms"] - before["ms"], "fitted": after["without"] in FITTED_ROWS,
        }
        for before, after in pairwise(rows)
    ]  # fmt: skip
    pairs = list(combinations(found, 2))
    same = [(a["ms"] < b["ms"]) == (a["published_ms"] < b["published_ms"]) for a, b in pairs]
    free = [agrees for agrees, (a, b) in zip(same, pairs, strict=True) if not (a["fitted"] and b["fitted"])]
    return {
        "techniques": found, "pairs": len(pairs), "same_order": sum(same),
        "not_fitted": {"pairs": len(free), "same_order": sum(free)},
    }  # fmt: skip


def switching(network: MoeVit, hw: Accelerator, trace: RoutingTrace) -> dict[str, Any]:
    """Extra cycles of a frame after another task's, the worst of all pairs, by where the gates are."""
    found = {}
    for gates in get_args(Accelerator.model_fields["gates"].annotation):
        costs = switch_costs(network, hw.changed(gates=gates), trace).values()
        found[gates] = {
            "extra_cycles": max(cost.cycles for cost in costs), "extra_bytes": max(cost.weight_bytes for cost in costs),
        }  # fmt: skip
    return found


def skewed() -> dict[str, Any]:
    """The cache and the reordering where some experts are popular."""
    network = PUBLISHED["pascal-small"]
    found = {}
    for skew in SKEWS:
        frames = synthetic(network, skew=skew).sequence(["task"])
        cache, reordered = (simulate(network, M3VIT, policy, frames) for policy in ("cache", "reordered"))  # type: ignore[arg-type]
        found[f"{skew:g}"] = {
            "cache_ms": cache.ms, "reordered_ms": reordered.ms, "ratio": cache.ms / reordered.ms,
            "miss_rate": cache.misses / cache.places, "reordered_stall_ms": M3VIT.ms(reordered.stall),
        }  # fmt: skip
    return found


def recorded() -> dict[str, Any]:
    """The shipped networks with the routes that they take, beside uniform routing, on the ZCU102 description."""
    found: dict[str, Any] = {}
    for training in TRAININGS:
        one = opened(training, 0, Path("data/moe"))
        images = fetch(one.splits.calibration, range(IMAGES))["image"]
        network = from_program(one.program)
        hw = EDGE_MOE.changed(experts={"cache": 4})
        trace = record(one.program, list(torch.as_tensor(images)))
        uniform = synthetic(network, frames=IMAGES)
        rows = {"uniform": compare(network, hw, uniform.sequence(["task"] * IMAGES))}
        for task in trace.tasks:
            rows[task] = compare(network, hw, trace.sequence([task] * IMAGES))
        turns = [task for _ in range(IMAGES) for task in trace.tasks]
        staying = sum(simulate(network, hw, "reordered", trace.sequence([t] * IMAGES)).cycles for t in trace.tasks)
        found[training] = {
            "frames": IMAGES, "routing": rows, "switching": switching(network, hw, trace),
            "cycles_tasks_in_turn": simulate(network, hw, "reordered", trace.sequence(turns)).cycles,
            "cycles_task_after_task": staying,
        }  # fmt: skip
    return found


def compare(network: MoeVit, hw: Accelerator, frames: list[Frame]) -> dict[str, float]:
    cache, reordered = (simulate(network, hw, policy, frames) for policy in ("cache", "reordered"))  # type: ignore[arg-type]
    return {
        "cache_ms": cache.ms / len(frames), "reordered_ms": reordered.ms / len(frames),
        "miss_rate": cache.misses / cache.places,
        "cache_ddr_mib": cache.ddr_bytes / len(frames) / 2**20,
        "reordered_ddr_mib": reordered.ddr_bytes / len(frames) / 2**20,
    }  # fmt: skip


def designs() -> dict[str, Any]:
    network = PUBLISHED["cityscapes-tiny"]
    frames = synthetic(network).sequence(["task"])
    made = {}
    for name in ("zcu102", "kv260"):
        found = explore_designs(network, EDGE_MOE, board(name), frames)
        made[name] = {
            "network": "cityscapes-tiny", "tried": len(found.designs) + found.too_large, "too_large": found.too_large,
            "front": [design.results().to_dict() for design in found.front],
        }  # fmt: skip
    return made


def picture() -> None:
    """Two blocks of Edge-MoE's frame, one with a perceptron and one with experts."""
    network = PUBLISHED["cityscapes-tiny"]
    found = simulate(network, EDGE_MOE, "reordered", synthetic(network).sequence(["task"]))
    timeline_figure(found, "block 2", "block 3").savefig(PICTURE, dpi=90, metadata={"Software": None})


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    networks = (("m3vit-zcu104", M3VIT, "pascal-small"), ("edge-moe-zcu102", EDGE_MOE, "cityscapes-tiny"))
    results = {
        "kind": "modelled",
        "note": "M³ViT's published times are the authors' own estimate, Edge-MoE's 34.64 ms was measured in silicon",
        "fitted": FITTED, "m3vit": m3vit_table(), "edge_moe": edge_moe(),
        "switching": {
            label: switching(PUBLISHED[name], hw, synthetic(PUBLISHED[name], ("semseg", "depth", "normals"), skew=1.0))
            for label, hw, name in networks
        },
        "skewed_routing": skewed(), "recorded_routing": recorded(), "design_search": designs(),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    picture()
    print(json.dumps({key: results[key] for key in ("m3vit", "edge_moe", "switching", "skewed_routing")}, indent=1))


if __name__ == "__main__":
    main()
