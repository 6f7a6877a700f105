"""A slimmable network as one bundle: what is stored once, what runs, what it costs, and what is refused."""

import itertools
import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from testkit.slimmable_networks import (
    SAMPLES,
    TASKS,
    VIT_SAMPLES,
    as_program,
    cut,
    networks,
    slimmable,
    slimmable_vit,
    with_statistics,
)  # fmt: skip
from torch import nn

from mtlc.errors import UserError, VerificationError
from mtlc.export import export_bundle
from mtlc.export.graph.batch_norms import scale_weights
from mtlc.export.graph.lower import lower
from mtlc.export.graph.small_graphs import shrink_graph
from mtlc.export.widths import write_widths as widths_module
from mtlc.export.widths.shared_slices import SharedWeights
from mtlc.export.widths.slimmable_network import EncoderWidths, SlimmableNetwork
from mtlc.export.widths.write_widths import export_widths
from mtlc.hw.cost.count import onnx_workload, workload
from mtlc.moe.experts import Experts
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.bundle.graph_check import check_graph


def count_macs(model):
    return onnx_workload(model).macs


@pytest.fixture(scope="module")
def network() -> SlimmableNetwork:
    return slimmable()


@pytest.fixture(scope="module")
def lowerings():
    return {}


@pytest.fixture(autouse=True)
def lowered_once(lowerings, monkeypatch):
    """Lowering takes seconds, so exports of the same network share one."""

    def cached(program, fold_norms):
        if id(program.module) not in lowerings:
            lowerings[id(program.module)] = program.module, lower(program, fold_norms=fold_norms)
        kept = lowerings[id(program.module)][1]
        model = onnx.ModelProto()
        model.CopyFrom(kept.model)
        return replace(kept, model=model)

    monkeypatch.setattr(widths_module, "lower", cached)


@pytest.fixture(scope="module")
def exported(network, lowerings, tmp_path_factory):
    path = tmp_path_factory.mktemp("widths") / "b"
    with pytest.MonkeyPatch.context() as patch:
        lowered_once.__wrapped__(lowerings, patch)
        return path, export_widths(network, path, samples=SAMPLES, count_macs=count_macs)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_outputs_equal_those_of_the_narrow_networks(network, exported, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    x = torch.randn(4, 3, 32, 32)
    with Session(exported[0], backend=backend) as session, torch.inference_mode():
        for name, (encoder, chosen) in network.configurations.items():
            session.configure(name)
            results = session.run(x.numpy())
            for task, width in chosen.items():
                expected = networks(network)[encoder, width].outputs({"image": x})[task].numpy()
                np.testing.assert_allclose(results[task], expected, atol=1e-5 * np.abs(expected).max())


def test_every_pair_was_verified(exported):
    verification = exported[1]["verification"]
    assert {(encoder, width) for encoder, found in verification.items() for width in found} == {
        ("full", "0.5"), ("full", "1"), ("half", "0.5"), ("half", "1"),
    }  # fmt: skip
    for found in verification.values():
        for tasks in found.values():
            for task in TASKS:
                assert set(tasks[task]) == {"1", "3", "near_ties", "vacuous"}
                assert 0 < tasks[task]["3"]["max_rel"] < 1e-5
                assert tasks[task]["vacuous"] is None
    assert json.loads(json.dumps(exported[1])) == exported[1]


def test_weights_are_stored_once(network, exported, tmp_path):
    """The file of weights is as large as the widest network's alone."""
    path, report = exported
    whole = export_bundle(network.widest, tmp_path / "wide", samples=SAMPLES)
    assert report["weights_bytes"] == whole["weights_bytes"]
    assert report["bytes"] == sum(file.stat().st_size for file in path.iterdir())
    assert report["bytes"] == report["weights_bytes"] + report["graph_bytes"] + (path / "manifest.json").stat().st_size
    shapes = {tuple(p.shape) for p in network.widest.module.parameters() if p.numel() >= 256}
    for file in path.glob("*.onnx"):
        model = onnx.load(file, load_external_data=False)
        outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
        assert {tuple(tensor.dims) for tensor in outside} <= shapes
        widest = "full.trunk" in file.name or ("full" in file.name and file.name.endswith(".1.onnx"))
        assert any(node.op_type == "Slice" for node in model.graph.node) != widest


def test_files_are_small(exported):
    sizes = {file.name: file.stat().st_size for file in exported[0].glob("*.onnx")}
    assert max(sizes.values()) < 6500, sizes
    for file in exported[0].glob("*.onnx"):
        model = onnx.load(file, load_external_data=False)
        assert not any(node.metadata_props for node in model.graph.node)
        check_graph(file, {"weights.bin": exported[1]["weights_bytes"]})


def test_a_backend_folds_the_slices_and_the_norms(exported, tmp_path):
    for file in exported[0].glob("*half*.onnx"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        left = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
        assert "Conv" in left
        assert not left & {"Slice", "Mul", "BatchNormalization", "Relu", "Add", "Shape"}


def test_nodes_keep_the_path_of_their_module(network, exported):
    modules = dict(network.widest.module.named_modules())
    for file in exported[0].glob("*.onnx"):
        names = [node.name for node in onnx.load(file, load_external_data=False).graph.node if node.name]
        assert len(set(names)) == len(names)
        assert {name.rpartition("/")[0] for name in names} <= set(modules)


def test_macs_add_up_to_those_of_the_network(network, exported):
    with open_bundle(exported[0]) as bundle:
        manifest = bundle.manifest
    programs = {program.name: program for program in manifest.programs}
    for encoder in manifest.widths.encoders:
        for place, width in enumerate((0.5, 1.0)):
            names = [*encoder.programs, *(n for points in encoder.decoders.values() for n in points[place].programs)]
            assert sum(programs[n].macs for n in names) == workload(networks(network)[encoder.name, width]).macs


def test_the_manifest(exported):
    with open_bundle(exported[0]) as bundle:
        manifest = bundle.manifest
    widths = manifest.widths
    assert (widths.stages, widths.widths) == (("first", "second"), (0.5, 1.0))
    assert [(encoder.name, encoder.widths) for encoder in widths.encoders] == [("full", (1, 1)), ("half", (0.5, 0.5))]
    assert widths.encoders[1].programs == ("half.trunk",)
    assert [(p.width, p.programs, p.metric) for p in widths.encoders[1].decoders["depth"]] == [
        (0.5, ("half.head-depth.0.5",), 1.5),
        (1.0, ("half.head-depth.1",), 2.0),
    ]
    assert [c.name for c in manifest.configurations] == ["default", "mixed"]
    assert manifest.configurations[1].programs == ("half.trunk", "half.head-semseg.1", "half.head-depth.0.5")


def test_an_archive_is_the_folder_in_one_file(network, exported, tmp_path):
    report = export_widths(network, tmp_path / "b.mtlc", samples=SAMPLES, count_macs=count_macs, archive=True)
    assert [p.name for p in tmp_path.iterdir()] == ["b.mtlc"]
    with open_bundle(tmp_path / "b.mtlc") as packed, open_bundle(exported[0]) as folder:
        assert packed.manifest == folder.manifest
    assert report["bytes"] == exported[1]["bytes"]


def test_a_disagreement_is_refused_and_nothing_is_written(network, tmp_path, monkeypatch):
    """The bias of one convolution in one program is off: the eighth, after three of two networks each and a trunk."""
    real, calls = widths_module.scale_weights, itertools.count()

    def spoilt(graph):
        real(graph)
        bias = next(tensor for tensor in graph.initializer if tensor.name.endswith(".bias"))
        if next(calls) % 12 == 7:
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.1, bias.name))

    monkeypatch.setattr(widths_module, "scale_weights", spoilt)
    where = r"encoder 'half', decoders at 0\.5: task 'semseg', batch 1: the bundle differs"
    for archive in (False, True):
        with pytest.raises(VerificationError, match=where):
            export_widths(network, tmp_path / "b", samples=SAMPLES, count_macs=count_macs, archive=archive)
        assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_changes_with_the_decoders_is_refused(network, tmp_path):
    full, half = network.encoders
    mixed = EncoderWidths("odd", (1.0, 1.0), (half.decoders[0], full.decoders[1]))
    broken = replace(network, encoders=(full, mixed))
    broken = replace(broken, configurations={"default": network.configurations["default"]})
    with pytest.raises(UserError, match="encoder 'odd': what tasks share is not the same with decoders at 1"):
        export_widths(broken, tmp_path / "b", samples=SAMPLES, count_macs=count_macs)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_part_of_the_widest_are_stored_as_they_are(network, exported, tmp_path):
    """Nothing is taken on trust: with a wrong `kept` the bundle is larger, and right."""
    full, half = network.encoders
    kept = {name: chosen for name, chosen in half.decoders[0].kept.items() if not name.startswith("decoders")}
    wrong = replace(half.decoders[0], kept=kept)
    mistaken = replace(network, encoders=(full, replace(half, decoders=(wrong, half.decoders[1]))))
    report = export_widths(mistaken, tmp_path / "b", samples=SAMPLES, count_macs=count_macs)
    assert report["weights_bytes"] > exported[1]["weights_bytes"]
    assert report["own_bytes"] > exported[1]["own_bytes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: {"encoders": n.encoders[:1] * 2}, "the encoder 'full' is there twice"),
        (lambda n: {"encoders": (replace(n.encoders[0], name="a/b"),)}, "encoder 'a/b': its name may have letters"),
        (lambda n: {"stages": ("one",)}, "encoder 'full': 2 widths for 1 stages"),
        (lambda n: {"encoders": (replace(n.encoders[0], decoders=()),)}, "encoder 'full': it has no decoders"),
        (
            lambda n: {"encoders": (replace(n.encoders[0], decoders=n.encoders[0].decoders[:1] * 2),)},
            r"decoders of one width are there twice: 0\.5, 0\.5",
        ),
        (
            lambda n: {"encoders": (with_kept(n.encoders[0], {"encoder.stem.convs": (None, None)}),)},
            r"at 0\.5: kept: the network has no layer 'encoder\.stem\.convs'; did you mean",
        ),
        (lambda n: {"widest": n.widest.restricted(["depth"])}, "the network has other tasks or inputs than the widest"),
        (lambda n: {"reference": {"semseg": 1.0}}, "reference: there is no finite number for task 'depth'"),
        (lambda n: {"reference": {"semseg": 1.0, "depth": 0.0}}, "the reference metric of depth is 0"),
        (lambda n: {"higher_is_better": {"depth": True}}, "higher_is_better: task 'semseg' is missing"),
        (lambda n: {"configurations": {}}, "there is no configuration 'default'"),
        (lambda n: {"configurations": {"default": ("tiny", {})}}, "'default': there is no encoder 'tiny'"),
        (lambda n: {"configurations": {"default": ("full", {"depth": 1.0})}}, "must name a width for each of semseg"),
        (
            lambda n: {"configurations": {"default": ("full", {"depth": 1.0, "semseg": 0.75})}},
            "encoder 'full' has no decoders at 0.75, as semseg asks for",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused_before_anything_is_lowered(
    network, tmp_path, change, message, monkeypatch
):
    monkeypatch.setattr(widths_module, "lower", None)
    with pytest.raises(UserError, match=message):
        export_widths(replace(network, **change(network)), tmp_path / "b", samples=SAMPLES, count_macs=count_macs)


def with_kept(encoder, kept):
    return replace(encoder, decoders=(replace(encoder.decoders[0], kept=kept),))


def test_too_few_samples_are_refused_before_anything_is_lowered(network, tmp_path, monkeypatch):
    monkeypatch.setattr(widths_module, "lower", None)
    with pytest.raises(UserError, match="give 3 samples or more"):
        export_widths(network, tmp_path / "b", samples={"image": SAMPLES["image"][:2]}, count_macs=count_macs)


def test_experts_outside_the_graphs_are_refused(network, tmp_path):
    with pytest.raises(UserError, match="must be one of auto, queue, masked at several widths"):
        export_widths(network, tmp_path / "b", samples=SAMPLES, count_macs=count_macs, experts="cached")


def graph_of(tensors):
    """A graph that hands out its weights."""
    nodes = [helper.make_node("Identity", [f"t{i}"], [f"y{i}"]) for i in range(len(tensors))]
    values = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, t.shape) for i, t in enumerate(tensors)]
    weights = [numpy_helper.from_array(np.ascontiguousarray(t), f"t{i}") for i, t in enumerate(tensors)]
    graph = helper.make_graph(nodes, "weights", [], values, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def stored(model):
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer if tensor.name.endswith(".whole")}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 15), min_size=8, max_size=16, unique=True),
    st.lists(st.integers(0, 19), min_size=8, max_size=20, unique=True),
    st.booleans(),
)
def test_any_selection_of_a_layer_is_found_again(outputs, inputs, transposed):
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(20, 16))
    small = nn.Sequential(nn.Linear(20, 16))
    small[0].load_state_dict(wide[0].state_dict())
    cut(small[0], outputs, inputs)
    weight = small[0].weight.detach().numpy()
    weight = weight.T if transposed else weight
    model = graph_of([weight])
    own = SharedWeights(wide, small, {"0": (outputs, inputs)}).replace(model.graph)
    onnx.checker.check_model(model, full_check=True)
    (again,) = ReferenceEvaluator(model).run(None, {})
    np.testing.assert_array_equal(again, weight)
    assert own == 0
    complete = outputs == list(range(16)) and inputs == list(range(20))
    assert complete or stored(model) == {"t0.whole": (20, 16) if transposed else (16, 20)}


def test_runs_of_indices_are_slices_and_others_are_gathered():
    wide = nn.Sequential(nn.Conv2d(16, 16, 3))
    model_of = {}
    for name, outputs, inputs in (("runs", range(2, 10), range(8)), ("mixed", range(8), [0, 3, 4, 9, 15])):
        small = nn.Sequential(nn.Conv2d(16, 16, 3))
        small[0].load_state_dict(wide[0].state_dict())
        cut(small[0], list(outputs), list(inputs))
        model = graph_of([small[0].weight.detach().numpy()])
        SharedWeights(wide, small, {"0": (outputs, inputs)}).replace(model.graph)
        model_of[name] = [node.op_type for node in model.graph.node]
        (again,) = ReferenceEvaluator(model).run(None, {})
        np.testing.assert_array_equal(again, small[0].weight.detach().numpy())
    assert model_of == {"runs": ["Slice", "Identity"], "mixed": ["Slice", "Gather", "Identity"]}


def test_one_changed_number_is_no_selection():
    wide, small = nn.Sequential(nn.Linear(20, 16)), nn.Sequential(nn.Linear(20, 16))
    small[0].load_state_dict(wide[0].state_dict())
    cut(small[0], range(8), None)
    with torch.no_grad():
        small[0].weight[3, 4] += 1e-6
    model = graph_of([small[0].weight.detach().numpy()])
    assert SharedWeights(wide, small, {"0": (range(8), None)}).replace(model.graph) == 8 * 20 * 4
    assert stored(model) == {}


def test_experts_are_found_in_both_arrangements():
    """Expert by expert, as the queues have them, and all in one, as the masked form has them."""
    torch.manual_seed(0)
    wide = Experts(3, 16, 24)
    small = Experts(3, 16, 24)
    small.load_state_dict(wide.state_dict())
    cut(small.fc1, range(12), None)
    cut(small.fc2, None, range(12))
    w1, w2 = small.fc1.weight.detach().numpy(), small.fc2.weight.detach().numpy()
    tensors = [*w1, *w2, w1.reshape(-1, 16), w2.transpose(0, 2, 1).reshape(-1, 16)]
    model = graph_of(tensors)
    shared = SharedWeights(wide, small, {"fc1": (range(12), None), "fc2": (None, range(12))})
    assert shared.replace(model.graph) == 0
    assert set(stored(model).values()) == {(24, 16), (16, 24), (72, 16)}
    for again, tensor in zip(ReferenceEvaluator(model).run(None, {}), tensors, strict=True):
        np.testing.assert_array_equal(again, tensor)


def test_norms_stay_operators_and_become_scales(network):
    """The weights in the graph are the network's, and the numbers those of the norm."""
    program = network.encoders[1].decoders[0].program
    lowered = lower(program, fold_norms=False)
    parameters = {name: p.detach().numpy() for name, p in program.module.named_parameters()}
    weights = {t.name: numpy_helper.to_array(t) for t in lowered.model.graph.initializer}
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in program.module.modules())
    assert [node.op_type for node in lowered.model.graph.node].count("BatchNormalization") == norms
    assert {item.domain for item in lowered.model.opset_import} == {""}
    for name, parameter in parameters.items():
        if name.endswith("conv.weight"):
            np.testing.assert_array_equal(weights[f"network.{name}"], parameter)
    scale_weights(lowered.model.graph)
    operators = [node.op_type for node in lowered.model.graph.node]
    assert (operators.count("BatchNormalization"), operators.count("Mul")) == (0, norms)
    x = SAMPLES["image"]
    session = onnxruntime.InferenceSession(lowered.model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        for task, expected in program.outputs({"image": x}).items():
            (found,) = session.run([task], {"image": x.numpy()})
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-5 * float(expected.abs().max()))


class Norms(nn.Module):
    """A norm without scale, one whose convolution is read twice, and one before anything."""

    def __init__(self):
        super().__init__()
        self.first, self.conv, self.plain = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)
        self.twice, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.plain(self.conv(self.first(x)))
        z = self.twice(y)
        return {"semseg": z, "depth": self.last(z)}


def test_norms_that_are_not_behind_a_convolution_of_their_own():
    torch.manual_seed(0)
    program = as_program(with_statistics(Norms()), (4, 4))
    lowered = lower(program, fold_norms=False)
    scale_weights(lowered.model.graph)
    operators = [node.op_type for node in lowered.model.graph.node]
    assert (operators.count("BatchNormalization"), operators.count("Mul")) == (2, 1)
    x = torch.randn(2, 3, 4, 4)
    session = onnxruntime.InferenceSession(lowered.model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        for task, expected in program.outputs({"image": x}).items():
            np.testing.assert_allclose(session.run([task], {"image": x.numpy()})[0], expected.numpy(), atol=1e-5)


def test_compact_keeps_what_the_graph_computes():
    value = helper.make_tensor_value_info
    one, two = (numpy_helper.from_array(np.float32([[2.0]]), name) for name in ("a long name", "another"))
    nodes = [
        helper.make_node("Mul", ["x", "a long name"], ["network.inner"], name="block/Mul_17"),
        helper.make_node("Flatten", ["network.inner"], ["flat"], name="block.deep/Flatten_3", axis=1),
        helper.make_node("Add", ["flat", "another"], ["y"], name="Add_18"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["batch", 2])], [value("y", TensorProto.FLOAT, ["batch", 2])],
        [one, two], value_info=[value("network.inner", TensorProto.FLOAT, ["batch", 2])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    shrink_graph(model, {"y": "trunk.0"})
    onnx.checker.check_model(model, full_check=True)
    assert [(n.name, list(n.input), list(n.output), len(n.attribute)) for n in model.graph.node] == [
        ("block/Mul_0", ["x", "a"], ["b"], 0),
        ("block.deep/Flatten_1", ["b"], ["c"], 0),
        ("", ["c", "a"], ["trunk.0"], 0),
    ]
    assert not model.graph.value_info
    (y,) = ReferenceEvaluator(model).run(None, {"x": np.float32([[1, 2]])})
    np.testing.assert_array_equal(y, [[4, 6]])


def test_compact_renames_what_inner_graphs_read():
    value = helper.make_tensor_value_info
    branches = [
        helper.make_graph(
            [helper.make_node(operator, ["inner", "weight"], [f"{operator} result"])],
            operator, [], [value(f"{operator} result", TensorProto.FLOAT, None)],
        )
        for operator in ("Add", "Sub")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["a"], ["inner"], name="block/Relu_4"),
        helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    inputs = [value("a", TensorProto.FLOAT, ["batch", 2]), value("which", TensorProto.BOOL, [])]
    weights = [numpy_helper.from_array(np.float32([1, 2]), "weight")]
    graph = helper.make_graph(
        nodes, "g", inputs, [value("y", TensorProto.FLOAT, ["batch", 2])], weights,
        value_info=[value("inner", TensorProto.FLOAT, ["batch", 2])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    shrink_graph(model, {})
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for which, expected in ((True, [[4, 2]]), (False, [[2, -2]])):
        np.testing.assert_array_equal(
            session.run(["y"], {"a": np.float32([[3, -1]]), "which": np.array(which)})[0], expected
        )


@pytest.mark.parametrize("form", [pytest.param("queue", marks=pytest.mark.slow), "masked"])
def test_a_trunk_that_takes_the_task_as_an_input(tmp_path, form, vit):
    """Attention loses heads, which are scattered rows of qkv, and experts lose hidden channels."""
    slim, encoders, samples = vit, vit.encoders, VIT_SAMPLES
    path = tmp_path / "b"
    report = export_widths(slim, path, samples=samples, count_macs=count_macs, experts=form)
    assert report["experts"]["forms"] == {"backbone.blocks.1.mlp.experts": form}
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
    programs = {program.name: program for program in manifest.programs}
    for encoder, point in zip(encoders, manifest.widths.encoders, strict=True):
        assert point.programs == tuple(f"{point.name}.{name}" for name in ("stem", "trunk@semseg", "trunk@depth"))
        for task in TASKS:
            names = [*point.programs, *point.decoders[task][0].programs]
            macs = sum(programs[name].macs for name in names if task in programs[name].tasks)
            assert macs == workload(encoder.decoders[0].program.restricted([task])).macs
    (narrow_trunk,) = path.glob("*half.trunk.onnx")
    model = onnx.load(narrow_trunk, load_external_data=False)
    assert {"Gather", "Slice"} & {node.op_type for node in model.graph.node}
    widest = export_widths(
        replace(slim, encoders=encoders[:1]), tmp_path / "w", samples=samples, count_macs=count_macs, experts=form
    )
    assert report["weights_bytes"] == widest["weights_bytes"]


@pytest.fixture(scope="module")
def vit() -> SlimmableNetwork:
    return slimmable_vit()


def test_networks_of_other_sizes_are_refused(network, tmp_path, monkeypatch):
    full, half = network.encoders
    other = replace(half.decoders[0].program, example={"image": torch.zeros(2, 3, 16, 16)})
    encoders = (full, replace(half, decoders=(replace(half.decoders[0], program=other),)))
    configurations = {"default": network.configurations["default"]}
    broken = replace(network, encoders=encoders, configurations=configurations)
    monkeypatch.setattr(widths_module, "lower", lower)  # the cache knows networks by their modules
    with pytest.raises(UserError, match=r"0\.5: an input or a task's output has"):
        export_widths(broken, tmp_path / "b", samples=SAMPLES, count_macs=count_macs)
