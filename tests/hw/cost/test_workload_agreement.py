"""Program, ONNX file and torch's own counter tell one number of MACs, or differ by a formula."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from testkit.costed_networks import MLP, ViT, program, randomized
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mtlc.errors import UserError
from mtlc.export import export_bundle
from mtlc.export.graph.expert_operators import expand, expert_nodes
from mtlc.export.graph.lower import lower
from mtlc.hw.cost.count import macs, onnx_workload, workload
from mtlc.moe.layers import moe_layers
from mtlc.program.program import Program
from mtlc.program.task_modules import TaskOutputs
from mtlc.zoo.m3vit import m3vit
from mtlc.zoo.resnet import mtl_resnet

TASKS = ("depth", "edge")
MOE = {"image_size": (16, 32), "width": 24, "heads": 2, "blocks": 4, "head_width": 8, "experts": 5, "top_k": 2}
TOKENS, EXPERTS, TOP_K, WIDTH = 1 + 2 * 4, 5, 2, 24
PATHS = ["backbone.blocks.1.mlp.experts", "backbone.blocks.3.mlp.experts"]


def image(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def moe(**changes: object) -> Program:
    torch.manual_seed(0)
    module = randomized(m3vit("micro", TASKS, **{**MOE, **changes}))  # type: ignore[arg-type]
    return program(module.eval(), image(16, 32), outputs=TASKS)


def huggingface_vit() -> Program:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=7,
    )  # fmt: skip
    torch.manual_seed(0)
    return program(randomized(ViTForImageClassification(config)), image(32, 32), outputs=("logits",))


def networks() -> dict[str, Program]:
    return {
        "mlp": program(randomized(MLP()), torch.randn(2, 6)),
        "resnet": program(
            randomized(mtl_resnet(list(TASKS), widths=(8, 16, 24), depths=(1, 1, 1), decoder_width=8)),
            image(32, 32), outputs=TASKS,
        ),
        "vit": program(randomized(ViT()), image(32, 32), outputs=("label", "angle")),
        "vit of transformers": huggingface_vit(),
        "moe": moe(),
    }  # fmt: skip


def decomposed_macs(made: Program) -> int:
    """What `FlopCounterMode` counts of one sample, after the decompositions that make products of attention."""
    inputs = tuple(tensor[:1] for tensor in made.example_inputs())
    with torch.no_grad():
        exported = torch.export.export(TaskOutputs(made).eval(), inputs).run_decompositions()
        with FlopCounterMode(display=False) as counter:
            exported.module()(*inputs)
    return counter.get_total_flops() // 2


def expanded(made: Program, form: str | None) -> onnx.ModelProto:
    model = lower(made, together=True).model
    if form is not None:
        expand(model, {layer.node.name: form for layer in expert_nodes(model.graph)})  # type: ignore[misc]
    return model


def by_layer(cost: object) -> dict[str, int]:
    return {path: layer.macs for path, layer in cost.by_layer().items() if layer.macs}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["mlp", "resnet", "vit", "vit of transformers", "moe"])
def test_three_counts_are_one_number(name: str) -> None:
    made = networks()[name]
    found = workload(made)
    read = onnx_workload(expanded(made, "queue"))
    assert found.macs == read.macs == decomposed_macs(made) > 0
    # A weight that no module's own operator multiplies with is named alike on both sides as well.
    assert by_layer(read) == by_layer(found)


def test_what_hangs_on_weights_alone_is_folded_by_the_export() -> None:
    made = moe(gate="conditioned")
    # The representation of a task known in advance: Linear(64, 64) of a row for each task; the first layer is a table.
    assert decomposed_macs(made) == macs(made)
    assert onnx_workload(expanded(made, "queue")).macs == macs(made) - len(TASKS) * 64 * 64


@pytest.mark.slow
def test_experts_that_stay_one_operator_cost_what_their_queues_do() -> None:
    made = moe()
    assert onnx_workload(expanded(made, None)).macs == onnx_workload(expanded(made, "queue")).macs == macs(made)
    assert onnx_workload(expanded(made, "queue"), batch=3).macs == 3 * macs(made)


def test_masked_experts_cost_all_of_them_for_every_token() -> None:
    made = moe()
    rows = len(TASKS) * 2 * TOKENS  # of the tasks' tokens, in two layers
    # E instead of K experts, and the scores weigh the second biases in a product of their own.
    more = rows * ((EXPERTS - TOP_K) * 2 * WIDTH * WIDTH + EXPERTS * WIDTH)
    assert onnx_workload(expanded(made, "masked")).macs == macs(made) + more


def test_the_programs_of_a_bundle_add_up(tmp_path: Path) -> None:
    made = moe()
    samples = {"input0": torch.randn(3, 3, 16, 32)}
    for form in ("queue", "cached"):
        path = tmp_path / form
        export_bundle(made, path, samples=samples, experts=form)
        total = 0
        for info in json.loads((path / "manifest.json").read_text())["programs"]:
            # A program of one expert takes its rows as the batch: all places of the layer, whoever fills them.
            rows = TOKENS * TOP_K if info.get("experts") else 1
            total += onnx_workload(path / info["file"], batch=rows).macs
        assert total == macs(made), form


# ---- queues of known lengths ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_queues_cost_the_rows_that_they_hold() -> None:
    made = moe(gate="single")
    model = expanded(made, "queue")
    rows = {PATHS[0]: [9, 0, 4, 0, 1], PATHS[1]: [9, 9, 0, 0, 0]}
    found, full = onnx_workload(model, tokens_per_expert=rows), onnx_workload(model)
    empty = (TOKENS * TOP_K - 14) + (TOKENS * TOP_K - 18)
    assert found.macs == full.macs - empty * 2 * WIDTH * WIDTH
    assert by_layer(found)[PATHS[0]] == 14 * 2 * WIDTH * WIDTH
    queues = [o for o in found.operators if o.name == PATHS[0] and o.macs]
    assert [o.output_shape for o in queues] == [(n, WIDTH) for n in (9, 9, 0, 0, 4, 4, 0, 0, 1, 1) if n]
    assert onnx_workload(expanded(made, None), tokens_per_expert=rows).macs == found.macs
    assert onnx_workload(model, tokens_per_expert={PATHS[0]: rows[PATHS[0]]}).macs == full.macs - 4 * 2 * WIDTH * WIDTH


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone.blocks.1.mlp.expert": [1] * 5}, "no expert layer 'backbone.blocks.1.mlp.expert'.*did you mean"),
        ({PATHS[0]: [1] * 4}, "4 experts with 4 tokens: it has 5 experts and 9 × 2 places"),
        ({PATHS[0]: [9, 9, 9, 0, 0]}, "5 experts with 27 tokens"),
        ({PATHS[0]: [-1, 9, 0, 0, 0]}, "5 experts with 8 tokens"),
    ],
)
def test_counts_of_another_network_are_refused(given: dict[str, list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        onnx_workload(expanded(moe(gate="single"), "queue"), tokens_per_expert=given)


def test_layers_are_known_by_their_nodes_and_not_by_their_names() -> None:
    made = moe(gate="single")
    model = expanded(made, "queue")
    for node in model.graph.node:
        del node.metadata_props[:]
    assert onnx_workload(model).macs == macs(made)
    nodes = [node for node in model.graph.node if node.op_type == "NonZero"]
    at = next(i for i, node in enumerate(model.graph.node) if node is nodes[0] or node.name == nodes[0].name)
    wrong = next(node for node in model.graph.node[at:] if node.op_type == "Div")
    wrong.op_type = "Mul"  # another graph: nobody knows how long its queues are
    with pytest.raises(UserError, match=r"node '.*NonZero_4' \(NonZero\): the shape of .* depends on the data"):
        onnx_workload(model)


# ---- what has no cost is refused ------------------------------------------------------------------------------------


def graph(nodes: list[onnx.NodeProto], shapes: dict[str, list], output: str, **more: object) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    results = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "g", inputs, results, **more)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)])


def constant(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> TensorProto:
    return helper.make_tensor(name, kind, shape, [1] * int(torch.Size(shape).numel()))


def test_a_strangers_data_dependent_shapes_are_named() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"], name="find"),
        helper.make_node("Transpose", ["places"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("GatherND", ["x", "turned"], ["y"], name="take"),
    ]
    model = graph(nodes, {"x": [4, 4]}, "y")
    with pytest.raises(UserError, match=r"node 'find' \(NonZero\): the shape of 'places' is not known"):
        onnx_workload(model)
    # A file may say what it likes of the number of elements that are not 0.
    model.graph.value_info.append(helper.make_tensor_value_info("places", TensorProto.INT64, [2, 5]))
    with pytest.raises(UserError, match="node 'find'"):
        onnx_workload(model)


@pytest.mark.parametrize("inner", ["If", "Loop"])
def test_inner_graphs_are_refused_even_where_their_inputs_are_constants(inner: str) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["z"])], "body", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 4])],
    )  # fmt: skip
    if inner == "If":
        node = helper.make_node("If", ["flag"], ["y"], name="choose", then_branch=body, else_branch=body)
        weights = [constant("flag", [], TensorProto.BOOL)]
    else:
        body.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, []))
        body.input.append(helper.make_tensor_value_info("go", TensorProto.BOOL, []))
        body.node.insert(0, helper.make_node("Identity", ["go"], ["on"]))
        body.output.insert(0, helper.make_tensor_value_info("on", TensorProto.BOOL, []))
        node = helper.make_node("Loop", ["times", ""], ["y"], name="choose", body=body)
        weights = [constant("times", [], TensorProto.INT64)]
    with pytest.raises(UserError, match=rf"node 'choose' \({inner}\): what its inner graph costs depends on the data"):
        onnx_workload(graph([node], {"x": [4, 4]}, "y", initializer=weights))


def test_an_unknown_operator_on_weights_alone_is_not_free() -> None:
    nodes = [
        helper.make_node("Unpack", ["w"], ["wide"], name="unpack", domain="acme"),
        helper.make_node("Add", ["x", "wide"], ["y"]),
    ]
    model = graph(nodes, {"x": [4, 4]}, "y", initializer=[constant("w", [4, 4])])
    with pytest.raises(UserError, match=r"node 'unpack' \(Unpack\): no cost rule for this operator of domain 'acme'"):
        onnx_workload(model)


@pytest.mark.parametrize(("free", "rows"), [("batch", 3), ("65*batch", 195), ("n * 4", 12)])
def test_a_free_dimension_is_a_multiple_of_the_batch(free: str, rows: int) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"])
    model = graph([node], {"x": [free, 6]}, "y", initializer=[constant("w", [6, 2])])
    assert onnx_workload(model, batch=3).macs == rows * 12


@pytest.mark.parametrize("free", ["batch + 1", "a*b", "2*"])
def test_any_other_free_dimension_is_refused(free: str) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(UserError, match="has a free dimension"):
        onnx_workload(graph([node], {"x": [free, 6]}, "y"))


# ---- speed ----------------------------------------------------------------------------------------------------------


def test_a_vision_transformer_with_experts_is_costed_in_a_fraction_of_a_second() -> None:
    module = m3vit("small", image_size=(480, 640))
    made = program(module, torch.zeros(1, 3, 480, 640), outputs=module.tasks)
    macs(made)
    times = []
    for _ in range(3):
        started = time.process_time()
        found = workload(made)
        times.append(time.process_time() - started)
    assert statistics.median(times) < 1.0
    assert len(moe_layers(module)) == 6
    assert found.macs == 477_306_350_592
