"""Measures one graph with its heads behind `If` on the task against mtlc's bundle of a trunk and heads.

    python -m benchmarks.experts.moe_if_form

M³ViT tiny at 128×256 and micro at 64×64 with three tasks. Both forms take the task as an input of the trunk; the bundle
runs a program for the head, the one graph branches. Latency of one task in onnxruntime and OpenVINO, one thread, in
turns; memory that each adds to a process of its own after all three tasks ran. Writes ``results/moe_if_form.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from benchmarks.experts.moe_switching import CHILD, SIZES, TASKS, added, program
from mtlc.export import export_bundle
from mtlc.export.graph.expert_forms import place_experts
from mtlc.export.graph.lower import lower
from mtlc.export.graph.partition import partition
from mtlc.export.graph.weights_file import WeightsFile
from mtlc.hw.measure.in_turns import summary
from mtlc.hw.measure.this_machine import this_machine
from mtlc.program.program import Program
from mtlc.runtime import Session
from mtlc.runtime.backends.find_backend import Executable, find_backend

RESULTS = Path(__file__).parents[1] / "results" / "moe_if_form.json"
ROUNDS = {"tiny": 30, "micro": 300}

# What a process of its own does with the one graph, through mtlc's backend, so that the settings are the same.
ONE_GRAPH = """
import sys, json, pathlib, numpy as np
from mtlc.runtime.backends.find_backend import find_backend
path, backend, shape = json.loads(sys.argv[1])
loader = find_backend(backend)
x = np.zeros(shape, np.float32)
def pss():
    text = open("/proc/self/smaps_rollup").read()
    return int(next(l for l in text.splitlines() if l.startswith("Pss:")).split()[1]) * 1024
before = pss()
loaded = loader.load(pathlib.Path(path), 1, None)
for task in range(3):
    for _ in range(3): loaded.run(["result"], {"image": x, "task": np.array([task])})
print(json.dumps([before, pss()]))
"""


def one_graph(source: Program, folder: Path) -> Path:
    """The network as one ONNX file with inputs image and task, and the output of that task."""
    lowered = lower(source)
    place_experts(lowered.model, "queue")
    parts = partition(lowered)
    nodes = [node for part in parts if len(part.tasks) > 1 for node in part.model.graph.node]
    weights = {tensor.name: tensor for part in parts for tensor in part.model.graph.initializer}
    heads = {part.tasks[0]: part for part in parts if len(part.tasks) == 1}
    result = "result"
    branch: onnx.GraphProto | None = None
    for place, task in reversed(list(enumerate(TASKS))):
        body = list(heads[task].model.graph.node)
        end = f"{lowered.outputs[task]}.chosen"
        value = helper.make_tensor_value_info(end, TensorProto.FLOAT, None)
        chosen = helper.make_graph(
            [*body, helper.make_node("Identity", [lowered.outputs[task]], [end])], task, [], [value]
        )
        if branch is None:
            branch = chosen
            continue
        weights[f"number.{task}"] = onnx.numpy_helper.from_array(np.array([place]), f"number.{task}")
        output = result if place == 0 else f"otherwise.{task}"
        choice = [
            helper.make_node("Equal", [str(lowered.selector), f"number.{task}"], [f"is.{task}"]),
            helper.make_node("If", [f"is.{task}"], [output], then_branch=chosen, else_branch=branch),
        ]
        if place == 0:
            nodes += choice
        else:
            value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
            branch = helper.make_graph(choice, f"not-{task}", [], [value])
    inputs = list(lowered.model.graph.input)
    graph = helper.make_graph(
        nodes, "one", inputs, [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)], list(weights.values())
    )
    model = helper.make_model(graph, opset_imports=parts[0].model.opset_import, ir_version=10)
    folder.mkdir()
    with WeightsFile(folder / "weights.bin") as file:
        file.externalize(model)
    (folder / "one.onnx").write_bytes(model.SerializeToString())
    return folder / "one.onnx"


def latency(graph: Executable, session: Session, x: np.ndarray, rounds: int) -> dict[str, object]:
    """Milliseconds of the task depth in both, in turns, and the ratio; the outputs must agree."""
    place = np.array([list(TASKS).index("depth")])
    feeds = {"image": x, "task": place}
    expected = session.run(x, "depth")["depth"]
    (found,) = graph.run(["result"], feeds)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))
    times: dict[str, list[float]] = {"bundle": [], "one graph": []}
    for turn in range(rounds + 5):
        for name, call in (
            ("bundle", lambda: session.run(x, "depth")),
            ("one graph", lambda: graph.run(["result"], feeds)),
        ):
            started = time.perf_counter()
            call()
            if turn >= 5:
                times[name].append((time.perf_counter() - started) * 1e3)
    ratio = float(np.median(np.asarray(times["one graph"]) / np.asarray(times["bundle"])))
    return {**{name: summary(values) for name, values in times.items()}, "one_graph_over_bundle": ratio}


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    results = {}
    with TemporaryDirectory() as scratch:
        for size in SIZES:
            source, folder = program(size, list(TASKS)), Path(scratch)
            samples = torch.randn(4, 3, *SIZES[size], generator=torch.Generator().manual_seed(0))
            export_bundle(source, folder / f"{size}-bundle", samples={"image": samples}, experts="queue")
            path = one_graph(source, folder / f"{size}-one")
            shape = [1, 3, *SIZES[size]]
            results[size] = {}
            for backend in ("onnxruntime", "openvino"):
                try:
                    graph = find_backend(backend).load(path, 1, None)
                    with Session(folder / f"{size}-bundle", backend=backend, threads=1) as session:
                        found = latency(graph, session, samples[:1].numpy(), ROUNDS[size])
                except Exception as error:
                    results[size][backend] = {"one_graph_fails": str(error).strip().splitlines()[0]}
                    print(size, backend, results[size][backend], flush=True)
                    continue
                bundle = CHILD.replace("threads=1", f"threads=1, backend={backend!r}")
                found["memory_bytes"] = {
                    "bundle": added(bundle, [[str(folder / f"{size}-bundle")], list(TASKS), shape]),
                    "one graph": added(ONE_GRAPH, [str(path), backend, shape]),
                }
                results[size][backend] = found
                print(size, backend, json.dumps(found), flush=True)
    RESULTS.write_text(json.dumps({"device": this_machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
