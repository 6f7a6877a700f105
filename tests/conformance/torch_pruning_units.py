"""Asks torch-pruning for the channel groups of a network, and tries each: can it go, and does the network still run?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from conformance.jobs import leaves
from mtlc.errors import one_line

ROOTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


def groups_of(module: nn.Module, example: Tensor) -> dict[str, Any]:
    """``groups``: by name, the layers that lose output channels, and ``why`` the group cannot go (None where it can).

    A group that reaches an output is not counted. ``error`` says why there is no graph at all.
    """
    module.eval()
    names = {one: name for name, one in module.named_modules()}
    try:
        graph = tp.DependencyGraph().build_dependency(
            module, example, output_transform=lambda tree: [t for _, t in leaves(tree) if isinstance(t, Tensor)]
        )
        groups = list(graph.get_all_groups(root_module_types=list(ROOTS)))
    except Exception as error:  # it raises whatever it stumbles over
        return {"groups": [], "error": f"{type(error).__name__}: {one_line(error)}"}
    module.eval()
    expected = _shapes(module, example)
    found = []
    for group in groups:
        if any(type(item.dep.target.module).__name__ == "_OutputOp" for item in group):
            continue
        layers = [
            names[item.dep.target.module]
            for item in group
            if item.dep.target.module in names and graph.is_out_channel_pruning_fn(item.dep.handler)
        ]
        with _undone(module, graph):
            why = _why_not(graph, group, module, example, expected)
        found.append(
            {"name": layers[0] if layers else "", "channels": len(group[0].idxs), "layers": layers, "why": why}
        )
    return {"groups": found, "error": None}


def _why_not(graph: Any, group: Any, module: nn.Module, example: Tensor, expected: Sequence[Any]) -> str | None:
    try:
        # A quarter goes from the front: one channel alone would break group norms that could lose more.
        channels = list(range(max(1, len(group[0].idxs) // 4)))
        graph.get_pruning_group(group[0].dep.target.module, group[0].dep.handler, channels).prune(record_history=False)
        shapes = _shapes(module, example)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"
    return None if shapes == expected else "its channels reach an output"


def _shapes(module: nn.Module, example: Tensor) -> list[Any]:
    with torch.no_grad():
        return [getattr(leaf, "shape", None) for _, leaf in leaves(module(example))]


@contextmanager
def _undone(module: nn.Module, graph: Any) -> Iterator[None]:
    """Whatever happens inside to the network's modules, and to the graph's notes of parameters, is undone."""
    notes = [(note, dict(note)) for note in (graph.module2node, graph._param_to_name)]
    nodes = [(node, node.module) for node in graph.module2node.values()]
    kept = [(one, dict(vars(one)), dict(one._parameters), dict(one._buffers)) for one in module.modules()]
    data = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
    try:
        yield
    finally:
        for one, attributes, parameters, buffers in kept:
            vars(one).clear()
            vars(one).update(attributes)
            one._parameters.clear()
            one._parameters.update(parameters)
            one._buffers.clear()
            one._buffers.update(buffers)
        for tensor, value in data:
            tensor.data = value
        for note, entries in notes:
            note.clear()
            note.update(entries)
        for node, target in nodes:
            node.module = target
