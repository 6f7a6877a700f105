"""Describes what an extraction did to each layer of experts, and what of the network it kept exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlc.moe.layers import MoeLayer, Routed


def layer_report(
    layer: MoeLayer, kept: Sequence[int], plan: Mapping[str, Any] | None, routed: Mapping[str, Routed]
) -> dict[str, Any]:
    """One layer: its experts and, for each task, how it used them on the calibration split.

    ``usage`` is the share of a task's tokens that go to each expert, ``coverage`` the share of its routed score mass
    that goes to the experts `kept`, ``hit_dropped`` the share of its tokens that go to an expert that is not; all in
    the network as it was before.
    """
    return {
        "layer": layer.path,
        "experts": len(layer.present),
        "top_k": layer.top_k,
        "kept": list(kept),
        "groups": [list(group) for group in plan["groups"]] if plan and "groups" in plan else None,
        "tasks": {
            task: {
                "usage": [round(share, 5) for share in one.usage(layer.path).tolist()],
                "coverage": round(one.coverage(layer.path, kept), 6),
                "hit_dropped": round(one.hit(layer.path, kept), 6),
            }
            for task, one in routed.items()
        },
    }


def verdicts(
    layers: Sequence[Mapping[str, Any]], dropped_tasks: Sequence[str], handle: str, reroute: bool
) -> tuple[list[str], list[str]]:
    """What of the result is exact and what is approximate, a line each."""
    exact, approximate = [], []
    if dropped_tasks:
        exact.append(f"the tasks {', '.join(dropped_tasks)} are gone: their gates and heads touch no other task")
    cut = [layer for layer in layers if len(layer["kept"]) < layer["experts"]]
    for layer in cut:
        hit = {task: one["hit_dropped"] for task, one in layer["tasks"].items() if one["hit_dropped"] > 0}
        gone = layer["experts"] - len(layer["kept"])
        if hit:
            shares = ", ".join(f"{100 * share:.2g} % of the tokens of {task}" for task, share in hit.items())
            approximate.append(
                f"{layer['layer']}: {gone} of {layer['experts']} experts are gone, which {shares} went to"
            )
        else:
            exact.append(
                f"{layer['layer']}: no token of the calibration split went to the {gone} of {layer['experts']} experts "
                "that are gone"
            )
    if any(one["hit_dropped"] > 0 for layer in cut for one in layer["tasks"].values()):
        if handle == "merge":
            how = "goes to the mean that its expert became part of, and so does one of the kept expert"
        elif reroute:
            how = "goes to the next best expert that is left"
        else:
            how = "keeps its other experts, and their scores"
        approximate.append(f"a token of an expert that is gone {how}")
    if len(cut) < len(layers):
        exact.append(f"{len(layers) - len(cut)} of {len(layers)} layers keep all their experts")
    return exact, approximate
