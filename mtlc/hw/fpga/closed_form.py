"""Computes the published cost formulas, which the simulation must agree with where their assumptions hold.

They are those of M³ViT's accelerator: every product runs on one array of P MACs a cycle without loss, everything that
is no product is hidden, all loads but an expert's are hidden, and routing is uniform.
"""

from __future__ import annotations

import math

from mtlc.hw.fpga.accelerator import Accelerator, Policy
from mtlc.hw.fpga.schedule import expert_bytes
from mtlc.hw.routing.moe_vit_shape import MoeVit
from mtlc.hw.rtl.published_cycles import reordered_layer


def closed_form(network: MoeVit, accelerator: Accelerator, policy: Policy) -> dict[str, float]:
    """Cycles of one frame by part: ``encoder`` (MACs / P), ``gates`` (N·(⌈D·E/P⌉ + 1) a layer) and ``waits`` for
    experts.

    Waits of ``cache`` are N·K·(1 − C/E) loads a layer, those of ``reordered`` what `reordered_layer` has beyond its
    products, those of ``resident`` none.
    """
    p = accelerator.linear.macs
    dense = network.dense()
    found = {"encoder": dense.macs() / p, "gates": 0.0, "waits": 0.0}
    if policy == "dense":
        return found
    for block in (network.blocks[index] for index in network.moe_blocks):
        found["gates"] += network.tokens * (math.ceil(network.gate_inputs * block.experts / p) + 1)
        load = expert_bytes(network, block, accelerator) / accelerator.ddr.weight_port_bytes
        places = network.tokens * block.top_k
        if policy == "cache":
            found["waits"] += places * (1 - min(1.0, accelerator.experts.cache / block.experts)) * load
        elif policy == "reordered":
            per_token = 2 * block.hidden * network.width / p
            queues = [places / block.experts] * block.experts
            whole = reordered_layer(queues, per_token, load, accelerator.weights.prefetch_first_expert)
            found["waits"] += whole - per_token * places
    return found
