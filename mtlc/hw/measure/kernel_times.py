"""Reads the backends' own profiles: the time of every kernel of a run, joined to the module that it was exported
from.

A backend fuses and reorders, and a kernel keeps the name of one of the nodes that went into it. A kernel that the
backend added itself, such as a change of layout, has no module.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mtlc.errors import Unavailable, UserError
from mtlc.export.graph.onnx_names import module_path

# What a fused kernel spends its time on, whatever else went into it.
_MULTIPLYING = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Attention"})
_MULTIPLYING_KERNELS = frozenset(
    {"Conv", "FusedConv", "Convolution", "GroupConvolution", "Deconvolution", "FullyConnected"}
)
_KERNEL_TIME = "_kernel_time"


@dataclass(frozen=True)
class KernelTime:
    """One kernel in one run. `layer` is its module's path, None if it has none; `kind` the operator that was exported,
    or the backend's word for what it added; `kernel` the backend's name for what ran.
    """

    run: int
    layer: str | None
    kind: str
    kernel: str
    ms: float


def read_kernel_times(backend: str, profile: Path, graph: Path, runs: int, warmup: int) -> Iterator[KernelTime]:
    """The kernels of one program file in the last `runs` runs; the `warmup` ones before are left out.

    A file that several programs share is called several times a run. Raises `Unavailable` for a backend whose
    profiles are not known, `UserError` if runs differ in how often they called the file.
    """
    if backend not in _READERS:
        raise Unavailable(f"backend {backend!r}: its profiles cannot be read; known: {', '.join(_READERS)}")
    names = ExportedNodes(onnx.load(graph, load_external_data=False))
    return _READERS[backend](json.loads(profile.read_text()), names, runs, warmup)


class ExportedNodes:
    """Finds the exported node of a backend's kernel by the name that the kernel inherited."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = {node.name: node for node in model.graph.node}
        self._producers = {output: node for node in model.graph.node for output in node.output}
        self._known: dict[tuple[tuple[str, ...], str], tuple[str | None, str]] = {}

    def find(self, names: Sequence[str], operator: str) -> tuple[str | None, str]:
        """The module path (None if there is none) and the exported operator of a kernel that carries these names.

        Of several nodes the first that multiplies counts, else the first. `operator` is the backend's word, which
        stands in where no node is found.
        """
        key = (tuple(names), operator)
        if key not in self._known:
            nodes = [node for node in (self._node(name, operator) for name in names) if node is not None]
            node = next((node for node in nodes if node.op_type in _MULTIPLYING), nodes[0] if nodes else None)
            self._known[key] = (None, operator) if node is None else (module_path(node), node.op_type)
        return self._known[key]

    def _node(self, kernel: str, operator: str) -> onnx.NodeProto | None:
        # A fusion appends its own name to a node's, or has the name of the last node in it: a bias, an activation. A
        # convolution in blocked layout is called after its output tensor.
        node, candidate = None, kernel
        while candidate and node is None:
            node, candidate = self._nodes.get(candidate), candidate.rpartition("/")[0]
        node = node or self._producers.get(kernel.removesuffix("_nchwc"))
        return self._multiplying(node) if operator in _MULTIPLYING_KERNELS else node

    def _multiplying(self, node: onnx.NodeProto | None) -> onnx.NodeProto | None:
        """The node that multiplies behind the ones that were fused into it."""
        while node is not None and node.op_type not in _MULTIPLYING:
            before = [self._producers[name] for name in node.input if name in self._producers]
            node = next((one for one in before if one.op_type in _MULTIPLYING), before[0] if before else None)
        return node


def onnxruntime_times(
    events: Sequence[Mapping[str, Any]], nodes: ExportedNodes, runs: int, warmup: int
) -> Iterator[KernelTime]:
    """From onnxruntime's trace, whose kernels lie in time before the end of their call."""
    ends = [event["ts"] + event["dur"] for event in events if event.get("name") == "model_run"]
    calls = _calls(len(ends), runs + warmup)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL_TIME):
            continue
        run = int(np.searchsorted(ends, event["ts"])) // calls - warmup
        if 0 <= run < runs:
            kernel = str(event["args"].get("op_name", ""))
            layer, kind = nodes.find((name.removesuffix(_KERNEL_TIME),), kernel)
            yield KernelTime(run, layer, kind, kernel, event["dur"] / 1e3)


def openvino_times(recorded: Mapping[str, Any], nodes: ExportedNodes, runs: int, warmup: int) -> Iterator[KernelTime]:
    """From what `mtlc.runtime.backends.openvino_backend` records: the kernels of each call, and the layers that went
    into each.
    """
    calls = _calls(len(recorded["calls"]), runs + warmup)
    sources = recorded["layers"]
    for index, kernels in enumerate(recorded["calls"]):
        run = index // calls - warmup
        if run < 0:
            continue
        for name, kind, kernel, microseconds in kernels:
            # A name of its own, such as that of a change of layout, is made of the names of others: only a layer that
            # went into the kernel counts.
            origins = [origin for origin in sources.get(name, "").split(",") if origin]
            layer, exported = nodes.find((name, *origins), kind) if origins else (None, kind)
            yield KernelTime(run, layer, exported, kernel, microseconds / 1e3)


_READERS: dict[str, Callable[[Any, ExportedNodes, int, int], Iterator[KernelTime]]] = {
    "onnxruntime": onnxruntime_times,
    "openvino": openvino_times,
}


def _calls(found: int, runs: int) -> int:
    if not found or found % runs:
        raise UserError(f"a program was called {found} times in {runs} runs of the same input: no profile to divide")
    return found // runs
