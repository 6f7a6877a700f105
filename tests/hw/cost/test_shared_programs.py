"""Times by layer of a bundle whose tasks share the trunk's file."""

import onnx
import pytest
import torch

from mtlc.export import export_bundle
from mtlc.hw.measure.kernel_times import ExportedNodes, onnxruntime_times
from mtlc.hw.measure.layer_profile import profile_layers, summed
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from mtlc.zoo.m3vit import m3vit

TASKS = {"semseg": 3, "depth": 1, "normals": 2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    network = m3vit(
        "micro", tasks=TASKS, width=48, heads=3, blocks=2, head_width=8, image_size=(32, 64), experts=4, top_k=2
    ).eval()
    tasks = tuple(TaskSpec(task, "mse", "mse") for task in TASKS)
    program = Program(network, tasks, {"image": torch.zeros(2, 3, 32, 64)}, ModelSource("mtlc.zoo:m3vit"))
    path = tmp_path_factory.mktemp("shared") / "bundle"
    export_bundle(program, path, samples={"image": torch.randn(6, 3, 32, 64)}, experts="queue", tolerance=1e-2)
    return path


def times(bundle, tasks):
    found = profile_layers(bundle, torch.zeros(1, 3, 32, 64).numpy(), tasks=tasks, rounds=30)
    return {layer["name"]: layer["ms"] for layer in found["layers"]}


@pytest.mark.parametrize("task", list(TASKS))
def test_each_task_has_the_trunks_layers(bundle, task):
    found = times(bundle, task)
    assert found["backbone.blocks.1.mlp.experts"] > 0
    assert {name for name in found if name.endswith(".predict")} == {f"heads.{task}.predict"}


def test_every_call_of_a_shared_file_counts():
    """Two rounds after a warm-up, of three calls: a kernel of 10 µs takes 30 µs a round, whatever the clock says."""
    events = []
    for call in range(9):
        start = 1000 * call
        events.append(
            {"name": "fc1_kernel_time", "cat": "Node", "ts": start + 5, "dur": 10, "args": {"op_name": "Gemm"}}
        )
        events.append({"name": "model_run", "cat": "Session", "ts": start, "dur": 100})
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], name="fc1")
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    times = list(onnxruntime_times(events, ExportedNodes(graph), runs=2, warmup=1))
    assert [sum(time.ms for time in times if time.run == run) for run in range(2)] == pytest.approx([0.03, 0.03])
    found = summed(times, rounds=2)
    assert found["total_ms"] == pytest.approx(0.03)
    assert found["operators"] == [
        {"kind": "Gemm", "kernel": "Gemm", "ms": pytest.approx(0.03), "share": 1.0, "count": 3.0}
    ]
