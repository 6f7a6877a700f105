"""Time per layer: onnxruntime's profile of a bundle, joined to the module paths that its nodes were exported from."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from mtlc.errors import UserError
from mtlc.hw.devices import this_machine
from mtlc.hw.measure import Inputs
from mtlc.hw.onnx_graph import module_path
from mtlc.runtime.bundle import open_bundle
from mtlc.runtime.session import Session

UNATTRIBUTED = "(runtime)"
_CONVOLUTIONS = ("Conv", "FusedConv")


def profile_layers(
    bundle: str | Path,
    inputs: Inputs,
    threads: int = 1,
    tasks: Iterable[str] | str | None = None,
    rounds: int = 20,
    warmup: int = 5,
) -> dict[str, Any]:
    """The time of each module of a bundle in ms, by onnxruntime's own profiler: medians over `rounds` runs.

    ``layers`` is a list of ``{"name", "ms", "share"}`` in execution order. onnxruntime fuses and reorders: a fused
    operator counts for the layer whose weights it reads, and what it added itself, such as layout changes, is listed as
    ``"(runtime)"``. ``attributed`` is the share of the time that has a layer. Profiling itself adds some microseconds
    an operator, so ``total_ms`` is a little more than `measure` finds.
    """
    if rounds < 1 or warmup < 0:
        raise UserError(f"rounds = {rounds}, warmup = {warmup}: one round or more, and no negative warm-up")
    if tasks is not None and not isinstance(tasks, str):
        tasks = tuple(tasks)
    runs: list[dict[str, float]] = [defaultdict(float) for _ in range(rounds)]
    with TemporaryDirectory(prefix="mtlc-profile-") as folder:
        with Session(bundle, threads=threads, profile=Path(folder) / "ort") as session:
            for _ in range(warmup + rounds):
                session.run(inputs, tasks)
            profiles = session.end_profile()
            order = session.programs(tasks)
        with open_bundle(bundle) as opened:
            # Programs may share a file, and a file has one profile: of all their calls.
            paths = {name: opened.program_path(name) for name in order}
            calls = Counter(paths.values())
            for name, path in paths.items():
                if name in profiles and path in calls:
                    graph = NodeFinder(onnx.load(path, load_external_data=False))
                    _collect(json.loads(profiles[name].read_text()), graph, runs, calls.pop(path))
    names = list(dict.fromkeys(layer for run in runs for layer in run))
    median = {layer: float(np.median([run.get(layer, 0.0) for run in runs])) for layer in names}
    total = sum(median.values())
    return {
        "kind": "measured",
        "device": this_machine(),
        "threads": threads,
        "rounds": rounds,
        "total_ms": total,
        "attributed": 1 - median.get(UNATTRIBUTED, 0.0) / total if total else 0.0,
        "layers": [{"name": layer, "ms": ms, "share": ms / total if total else 0.0} for layer, ms in median.items()],
    }


def _collect(events: list[Mapping[str, Any]], graph: NodeFinder, runs: list[dict[str, float]], calls: int) -> None:
    """Add one file's kernel times to the last ``len(runs)`` runs, in each of which it was called `calls` times."""
    ends = [event["ts"] + event["dur"] for event in events if event.get("name") == "model_run"]
    first = len(ends) - calls * len(runs)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        index = (int(np.searchsorted(ends, event["ts"])) - first) // calls
        if 0 <= index < len(runs):
            layer = graph.layer(name.removesuffix("_kernel_time"), str(event["args"].get("op_name", "")))
            runs[index][layer] += event["dur"] / 1e3


class NodeFinder:
    """Finds the module of a kernel of onnxruntime by the name that the kernel inherited from the exported graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {node.name: node for node in model.graph.node}
        self.producers = {output: node for node in model.graph.node for output in node.output}
        self._known: dict[tuple[str, str], str] = {}

    def layer(self, kernel: str, operator: str) -> str:
        key = (kernel, operator)
        if key not in self._known:
            node = self._node(kernel, operator)
            path = None if node is None else module_path(node)
            self._known[key] = UNATTRIBUTED if path is None else path
        return self._known[key]

    def _node(self, kernel: str, operator: str) -> onnx.NodeProto | None:
        # A fusion appends its own name to a node's; a convolution in blocked layout is called after its output tensor,
        # which an activation fused into it produced in the exported graph.
        candidate = kernel
        while candidate:
            if candidate in self.nodes:
                return self.nodes[candidate]
            candidate = candidate.rpartition("/")[0]
        node = self.producers.get(kernel.removesuffix("_nchwc"))
        if operator not in _CONVOLUTIONS:
            return node
        while node is not None and node.op_type not in _CONVOLUTIONS:
            node = self.producers.get(node.input[0]) if node.input else None
        return node
