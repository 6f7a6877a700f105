"""Measures which form an expert layer should take on a backend, with tokens routed as in the network.

Rules of thumb do not travel: what wins depends on the tokens, the width, the experts that are left and the backend.
"""

from __future__ import annotations

import time
from math import prod
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto

from mtlc.export.graph.expert_operators import FORMS, ExpertNode, Form, expand, expert_nodes, layer_model
from mtlc.files import scratch_folder
from mtlc.runtime.backends.find_backend import find_backend

CACHED = "cached"
"""The form that keeps experts outside the graphs (`mtlc.export.bundle.experts_file`)."""
_ROUNDS = 15


def place_experts(
    model: ModelProto, wanted: str = "auto", backend: str = "auto"
) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Give every `Experts` node of the model its form, in place; returns the forms and the milliseconds of each, by
    node.

    ``"auto"`` measures the forms of each layer on `backend` and takes the faster; layers of equal shape are measured
    once. TensorRT takes one of the forms only, ``"masked"``, and nothing is measured. Any other `wanted` form measures
    nothing, and ``"cached"`` leaves the nodes for the partition to cut out.
    """
    layers = expert_nodes(model.graph)
    if wanted == "auto" and backend == "tensorrt":
        wanted = "masked"
    if wanted != "auto":
        if wanted != CACHED:
            expand(model, {layer.node.name: wanted for layer in layers})  # type: ignore[misc]
        return {layer.node.name: wanted for layer in layers}, {}
    forms: dict[str, Form] = {}
    timings: dict[str, dict[str, float]] = {}
    known: dict[tuple[int, ...], dict[str, float]] = {}
    for layer in layers:
        name, tokens = layer.node.name, _at_batch_1(model.graph, layer.inputs[0])
        key = (*layer.weights[0].shape, *tokens, *_at_batch_1(model.graph, layer.inputs[1]))
        if key not in known:
            known[key] = _measure(layer, tokens[0], key[-1], backend)
        timings[name] = known[key]
        forms[name] = min(FORMS, key=known[key].__getitem__)
    expand(model, forms)
    return dict(forms), timings


def _at_batch_1(graph: GraphProto, tensor: str) -> tuple[int, ...]:
    """The tensor's shape at batch 1. A free dimension is written as a product, such as ``65*batch``."""
    value = next(value for value in graph.value_info if value.name == tensor)
    sizes = []
    for dimension in value.type.tensor_type.shape.dim:
        factors = dimension.dim_param.split("*") if dimension.dim_param else [str(dimension.dim_value)]
        sizes.append(prod(int(factor) for factor in factors if factor.strip().isdecimal()))
    return tuple(sizes)


def _measure(layer: ExpertNode, tokens: int, top_k: int, backend: str) -> dict[str, float]:
    """Milliseconds of each form on one thread, in turns: medians."""
    experts = len(layer.weights[0])
    width = layer.weights[0].shape[2]
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].astype(np.int64)
    if chosen.shape[1] < top_k:  # fewer experts than places: the rest stay empty, as in the network
        chosen = np.pad(chosen, ((0, 0), (0, top_k - chosen.shape[1])), constant_values=-1)
    feeds: dict[str, np.ndarray] = {
        "x": rng.standard_normal((tokens, width)).astype(np.float32),
        "index": chosen,
        "score": rng.random((tokens, top_k)).astype(np.float32),
    }
    loader = find_backend(backend)
    with scratch_folder("experts") as folder:
        running = {}
        for form in FORMS:
            path = Path(folder) / f"{form}.onnx"
            path.write_bytes(layer_model(layer.weights, form, top_k).SerializeToString())
            running[form] = loader.load(path, 1, None)
        times: dict[str, list[float]] = {form: [] for form in FORMS}
        for turn in range(_ROUNDS + 3):
            for form, executable in running.items():
                started = time.perf_counter()
                executable.run(["y"], feeds)
                if turn >= 3:
                    times[form].append((time.perf_counter() - started) * 1e3)
        for executable in running.values():
            executable.close()
    return {form: float(np.median(values)) for form, values in times.items()}
