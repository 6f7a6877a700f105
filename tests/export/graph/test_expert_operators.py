"""Expert layers in bundles: every form, both backends, ties, and programs that tasks share."""

import json
import math
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.visible_experts import visible

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.errors import BundleError, UserError, VerificationError
from mtlc.export import export_bundle, verify_bundle
from mtlc.export.bundle import write_bundle as bundle_module
from mtlc.export.bundle.near_ties import routing_margins
from mtlc.export.graph.expert_operators import FORMS, layer_model
from mtlc.export.graph.lower import lower
from mtlc.export.quantization.near_ties_in_bundle import BundleMargins
from mtlc.hw.cost.count import workload
from mtlc.moe.experts import run_reference
from mtlc.moe.extraction import keep_experts
from mtlc.moe.routing import Router
from mtlc.program.program import ModelSource, Program
from mtlc.runtime import Session, open_bundle
from mtlc.runtime.backends.find_backend import find_backend
from mtlc.tasks.task import TaskSpec
from mtlc.workflows.verify_two import verify_pair
from mtlc.zoo.m3vit import m3vit

TASKS = {"semseg": 3, "depth": 1, "normals": 2}
KWARGS = {
    "size": "micro", "tasks": TASKS, "width": 24, "heads": 2, "blocks": 4, "head_width": 8, "image_size": (16, 32),
    "experts": 5, "top_k": 2, "expert_width": 16,
}  # fmt: skip


def network(**changes):
    """A small M³ViT whose routers disagree, and tie: experts 1 and 3 always, all experts for normals."""
    torch.manual_seed(0)
    module = visible(m3vit(**{**KWARGS, **changes}).eval())
    with torch.no_grad():
        for router in module.modules():
            if isinstance(router, Router):
                router.weight.normal_(std=0.5)
                router.weight[..., 3] = router.weight[..., 1]
                router.weight[-1] = 0 if len(router.weight) > 1 else router.weight[-1]
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.normal_(std=0.1)
    return module


def program(**changes) -> Program:
    specs = tuple(TaskSpec(name, "mse", "mse") for name in TASKS)
    kwargs = {**KWARGS, **changes}
    return Program(
        network(**changes), specs, {"image": torch.zeros(2, 3, 16, 32)}, ModelSource("mtlc.zoo:m3vit", kwargs)
    )


SAMPLES = {"image": torch.randn(7, 3, 16, 32, generator=torch.Generator().manual_seed(1))}


@pytest.fixture(scope="module")
def lowered():
    return lower(program())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, lowered):
    """One bundle per form, of one lowering."""
    made = {}
    for form in (*FORMS, "cached"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle_module, "lower", lambda program, together=False: copied(lowered))
            made[form] = tmp_path_factory.mktemp(form) / "bundle"
            export_bundle(program(), made[form], samples=SAMPLES, experts=form)
    return made


def copied(lowered):
    model = onnx.ModelProto()
    model.CopyFrom(lowered.model)
    return replace(lowered, model=model)


@pytest.mark.parametrize("form", [*FORMS, "cached"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_form_gives_the_networks_numbers_ties_included(bundles, form, backend):
    found = verify_bundle(bundles[form], program(), SAMPLES, batch_sizes=(1, 3), tolerance=1e-5, backend=backend)
    assert {task: entry["vacuous"] for task, entry in found.items()} == dict.fromkeys(TASKS)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"gate": "single", "experts_per_task": 4}, marks=pytest.mark.slow),
        {"gate": "conditioned", "experts_per_task": 4, "prune_threshold": 0.2, "gate_input_ahead": True},
        pytest.param({"gate_input_ahead": True, "prune_threshold": 0.2}, marks=pytest.mark.slow),
    ],
)
def test_the_options_of_the_official_code_are_in_a_bundle(tmp_path, changes):
    """Both backends compute what the network does, and each option makes another network of it."""
    one = program(**changes)
    export_bundle(one, tmp_path / "bundle", samples=SAMPLES)
    for backend in ("onnxruntime", "openvino"):
        found = verify_bundle(tmp_path / "bundle", one, SAMPLES, batch_sizes=(1, 3), tolerance=1e-5, backend=backend)
        assert {task: entry["vacuous"] for task, entry in found.items()} == dict.fromkeys(TASKS)
    expected = one.outputs(SAMPLES, list(TASKS))
    for left_out in changes.keys() - {"gate"}:
        other = program(**{key: value for key, value in changes.items() if key != left_out}).outputs(
            SAMPLES, list(TASKS)
        )
        assert max(float((other[task] - expected[task]).abs().max()) for task in TASKS) > 1e-4, left_out


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 9), experts=st.integers(1, 5), top_k=st.integers(1, 3), seed=st.integers(0, 2**16),
    form=st.sampled_from(FORMS),
)  # fmt: skip
def test_a_layer_alone_equals_the_formula(tokens, experts, top_k, seed, form):
    """Any choice of experts: none at all (−1), one expert twice, experts that nobody chose."""
    draw = torch.Generator().manual_seed(seed)
    w1, b1, w2, b2 = (
        torch.randn(shape, generator=draw) for shape in ((experts, 4, 6), (experts, 4), (experts, 6, 4), (experts, 6))
    )
    x = torch.randn(tokens, 6, generator=draw)
    index = torch.randint(-1, experts, (tokens, top_k), generator=draw)
    score = torch.rand(tokens, top_k, generator=draw)
    weights = tuple(w.numpy() for w in (w1, b1, w2, b2))
    session = onnxruntime.InferenceSession(
        layer_model(weights, form, top_k).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x.numpy(), "index": index.numpy(), "score": score.numpy()})
    expected = run_reference(x, index, score, w1, b1, w2, b2).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_several_threads_give_the_same_bits_every_time(form, tmp_path):
    """A sum that threads add to in any order comes out differently, and the next layer routes otherwise at times."""
    draw = torch.Generator().manual_seed(0)
    weights = tuple(
        torch.randn(shape, generator=draw).numpy() for shape in ((8, 64, 64), (8, 64), (8, 64, 64), (8, 64))
    )
    (tmp_path / "layer.onnx").write_bytes(layer_model(weights, form, 4).SerializeToString())
    executable = find_backend("onnxruntime").load(tmp_path / "layer.onnx", 2, None)
    feeds = {
        "x": torch.randn(3000, 64, generator=draw).numpy(),
        "index": torch.rand(3000, 8, generator=draw).argsort(1)[:, :4].numpy(),
        "score": torch.rand(3000, 4, generator=draw).numpy(),
    }
    (first,) = executable.run(["y"], feeds)
    for _ in range(10):
        np.testing.assert_array_equal(executable.run(["y"], feeds)[0], first)


def test_tasks_share_the_stem_the_trunks_file_and_every_expert(bundles):
    manifest = json.loads((bundles["queue"] / "manifest.json").read_text())
    programs = {entry["name"]: entry for entry in manifest["programs"]}
    assert list(programs) == [
        "stem", "trunk@semseg", "trunk@depth", "trunk@normals", "head-semseg", "head-depth", "head-normals",
    ]  # fmt: skip
    assert len({programs[f"trunk@{task}"]["file"] for task in TASKS}) == 1
    assert [programs[f"trunk@{task}"]["constants"] for task in TASKS] == [{"task": 0}, {"task": 1}, {"task": 2}]
    parameters = sum(p.numel() for p in network().parameters())
    assert (bundles["queue"] / "weights.bin").stat().st_size < 4 * parameters * 1.25  # pages, and constants


def test_a_task_runs_the_stem_its_trunk_and_its_head(bundles):
    with Session(bundles["queue"]) as session:
        assert session.programs("depth") == ("stem", "trunk@depth", "head-depth")
        assert session.programs(("depth", "semseg")) == (
            "stem", "trunk@semseg", "trunk@depth", "head-semseg", "head-depth",
        )  # fmt: skip
        session.run(SAMPLES["image"][:1].numpy(), "depth")
        assert session.loaded == ("stem", "trunk@semseg", "trunk@depth", "trunk@normals", "head-depth")  # one file


def test_the_graphs_hold_standard_operators_only(bundles):
    for path in [p for form in bundles for p in bundles[form].glob("*.onnx")]:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert {node.domain for node in model.graph.node} == {""}, path
        assert [item.domain for item in model.opset_import] == [""]


def test_nodes_of_an_expanded_layer_keep_its_module_path(bundles):
    model = onnx.load(next(bundles["queue"].glob("*-trunk.onnx")), load_external_data=False)
    paths = Counter(node.name.split("/")[0] for node in model.graph.node if node.op_type == "Gemm")
    assert paths["backbone.blocks.1.mlp.experts"] == paths["backbone.blocks.3.mlp.experts"] == 2 * 5


def test_auto_measures_and_takes_the_faster_form(tmp_path, lowered, monkeypatch):
    monkeypatch.setattr(bundle_module, "lower", lambda program, together=False: copied(lowered))
    report = export_bundle(program(), tmp_path / "bundle", samples=SAMPLES)["experts"]
    assert len(report["forms"]) == 2
    for name, form in report["forms"].items():
        timed = report["measured_ms"][name]
        assert set(timed) == set(FORMS)
        assert timed[form] == min(timed.values()) > 0


@pytest.mark.slow  # fused bundles of every kind are in the specification of backends
def test_a_fused_bundle_runs_all_tasks_in_one_program(tmp_path):
    export_bundle(program(), tmp_path / "bundle", samples=SAMPLES, fuse=True, experts="queue")
    with Session(tmp_path / "bundle") as session:
        assert session.programs() == ("network",)


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["conditioned", "single"])
def test_other_gates(tmp_path, gate):
    export_bundle(program(gate=gate), tmp_path / "bundle", samples=SAMPLES, experts="queue", tolerance=1e-5)
    with Session(tmp_path / "bundle") as session:
        expected = ("stem", "trunk@depth", "head-depth") if gate == "conditioned" else ("trunk", "head-depth")
        assert session.programs("depth") == expected


def test_one_task_needs_no_selector(tmp_path):
    whole = program()
    whole.module.keep_tasks(["depth"])
    one = replace(whole, tasks=(TaskSpec("depth", "mse", "mse"),))
    export_bundle(one, tmp_path / "bundle", samples=SAMPLES, experts="queue", tolerance=1e-5)
    with Session(tmp_path / "bundle") as session:
        assert session.programs() == ("network",)


def test_only_active_experts_are_counted():
    """A layer's MACs: K experts of 2·D·hidden for each of the 9 tokens, for each of the three tasks."""
    counted = [o.macs for o in workload(program()).operators if o.name.endswith("experts")]
    assert counted == [3 * 9 * 2 * (2 * 24 * 16)] * 2


def test_margins_are_the_gap_at_the_last_place():
    """Top 2 of scores .4 .3 .2 .1: the third is a third less than the second.

    An exact tie is none that rounding decides.
    """
    one = program(experts=4, top_k=2)
    first, second = (one.module.backbone.blocks[index] for index in (1, 3))
    with torch.no_grad():
        for block in (first, second):  # tokens become the constant 1 in feature 0
            block.norm2.weight.zero_()
            block.norm2.bias.zero_()
            block.norm2.bias[0] = 1.0
            block.mlp.router.weight.zero_()
        second.mlp.router.weight[:, 0] = torch.tensor([9.0, 9.0, 0.0, 0.0])
        for place, scores in enumerate(([0.4, 0.3, 0.2, 0.1], [0.25] * 4, [0.4, 0.3, 0.3 * (1 - 1e-5), 0.0001])):
            first.mlp.router.weight[place, 0] = torch.tensor(scores).log()
    margins = {task: routing_margins(one, SAMPLES, task) for task in TASKS}
    assert margins["semseg"].tolist() == pytest.approx([1 / 3] * 7, abs=1e-6)
    assert margins["depth"].tolist() == pytest.approx([1 - math.exp(-9)] * 7, abs=1e-6)
    assert margins["normals"].tolist() == pytest.approx([1e-5] * 7, abs=1e-6)


def nudged(change: float) -> Program:
    """The network with expert 3 preferred to its twin, expert 1, by a little: tokens that tie go elsewhere.

    A change of 2e-6 moves logits by some 1e-5: more than any processor's rounding, less than a near tie.
    """
    one = program()
    with torch.no_grad():
        for _, router in one.module.routers():
            router.weight[0, :, 3] += change * router.weight[0, :, 1].sign()
    return one


def test_samples_that_rounding_may_route_otherwise_are_told_from_faults(bundles):
    settled = verify_bundle(bundles["queue"], program(), SAMPLES)
    assert {task: entry["near_ties"] for task, entry in settled.items()} == dict.fromkeys(TASKS, 0)
    with pytest.raises(VerificationError, match=r"task 'semseg': 6 of 6 samples differ and have tokens .* nearly tied"):
        verify_bundle(bundles["queue"], nudged(2e-6), SAMPLES)
    with pytest.raises(VerificationError, match="task 'semseg', batch 1: the bundle differs from the network by"):
        verify_bundle(bundles["queue"], nudged(0.5), SAMPLES)


def test_a_few_samples_at_a_tie_do_not_fail_an_export(bundles, monkeypatch):
    """Sample 2 is made to differ: with a near tie it is counted, without one it is a fault."""
    run = Session.run

    def other(self, x, tasks=None):
        outputs = run(self, x, tasks)
        place = np.flatnonzero((x["image"] == SAMPLES["image"][2].numpy()).all((1, 2, 3)))
        for array in outputs.values():
            array[place] += 1.0
        return outputs

    monkeypatch.setattr(Session, "run", other)
    for margin, fails in ((1e-6, False), (1e-3, True)):
        monkeypatch.setattr(
            "mtlc.export.bundle.verify.routing_margins",
            lambda p, batch, task, m=margin: torch.full((len(batch["image"]),), m),
        )
        if fails:
            with pytest.raises(VerificationError, match="differs from the network"):
                verify_bundle(bundles["queue"], program(), SAMPLES)
        else:
            found = verify_bundle(bundles["queue"], program(), SAMPLES)
            assert {task: entry["near_ties"] for task, entry in found.items()} == dict.fromkeys(TASKS, 1)
            assert found["depth"]["3"]["max_rel"] < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_margins_of_a_bundle_are_those_of_its_network(bundles, form):
    with open_bundle(bundles[form]) as opened:
        margins = BundleMargins(opened)
    assert margins.sees
    for task in TASKS:
        expected = routing_margins(program(), SAMPLES, task).numpy()
        found = margins.least({"image": SAMPLES["image"].numpy()}, task)
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        finite = np.isfinite(expected)
        np.testing.assert_allclose(found[finite], expected[finite], atol=1e-5)


def test_experts_outside_the_graphs_are_not_looked_into(bundles):
    with open_bundle(bundles["cached"]) as opened:
        assert not BundleMargins(opened).sees


def test_two_bundles_may_differ_at_near_ties_only(bundles, tmp_path, monkeypatch):
    """All of semseg's tokens tie within some 1e-5 in one bundle: too many samples. A few would be left out."""
    export_bundle(nudged(2e-6), tmp_path / "nudged", samples=SAMPLES, experts="queue", tolerance=1.0)
    found = verify_pair(bundles["queue"], tmp_path / "nudged", samples=6).to_dict()
    assert found["tasks"]["semseg"]["near_ties"] == 6
    assert any(line.startswith("task 'semseg': 6 of 6 samples differ and have tokens") for line in found["failed"])
    again = verify_pair(bundles["queue"], bundles["masked"], samples=6).to_dict()
    assert (again["failed"], {row["near_ties"] for row in again["tasks"].values()}) == ([], {0})
    few = {0: 1e-6, 1: 1e-3}
    monkeypatch.setattr(
        BundleMargins, "least", lambda self, inputs, task: np.array([few.get(i, 1.0) for i in range(6)])
    )
    for broken, line in (([0], None), ([0, 1], "1 of 6 samples differ, by up to")):
        monkeypatch.setattr(
            "mtlc.workflows.output_differences.Differences.over", lambda self, tolerance, them=broken: them
        )
        found = verify_pair(bundles["queue"], tmp_path / "nudged", samples=6).to_dict()
        assert found["tasks"]["semseg"]["near_ties"] == 1
        assert line is None or line in found["failed"][0]


def test_an_unknown_form_is_refused(tmp_path):
    with pytest.raises(UserError, match="experts = 'fast': must be one of auto, queue, masked, cached"):
        export_bundle(program(), tmp_path / "bundle", samples=SAMPLES, experts="fast")
    assert not (tmp_path / "bundle").exists()


# -- experts outside the graphs ---------------------------------------------------------------------------------------


def test_a_quarter_of_the_experts_in_memory_gives_the_same_bits(bundles):
    image = SAMPLES["image"].numpy()
    with Session(bundles["cached"]) as whole:
        expected = whole.run(image)
        total = whole.expert_cache().total_bytes
    budget = total // 4 // 4096 * 4096
    with Session(bundles["cached"], expert_bytes=budget) as session:
        for _ in range(4):
            for task, array in session.run(image).items():
                np.testing.assert_array_equal(array, expected[task])
        found = session.expert_cache()
    assert found.budget_bytes == budget
    assert found.peak_bytes <= budget
    assert found.resident_bytes <= budget
    assert found.evicted > 0
    assert found.bytes_read >= total
    assert 0 < found.hit_rate < 1


def resident(mapped_file: str) -> int:
    """Resident bytes of the mapping of a file, as the system counts them."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(mapped_file)
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's smaps")
def test_the_system_agrees_on_what_is_resident(bundles):
    """At most the budget, whatever ran. The file is read through its mapping only, so the mapping's pages are all."""
    file = str((bundles["cached"] / "experts.bin").resolve())
    with Session(bundles["cached"]) as whole:
        total = whole.expert_cache().total_bytes
        before = resident(file)
        whole.run(SAMPLES["image"].numpy())
        assert resident(file) >= total // 2 > before
    budget = total // 4 // 4096 * 4096
    with Session(bundles["cached"], expert_bytes=budget) as session:
        for task in (*TASKS, *TASKS):
            session.run(SAMPLES["image"].numpy(), task)
            assert resident(file) <= budget


def test_a_task_that_comes_again_hits_the_cache(bundles):
    image = SAMPLES["image"].numpy()
    with Session(bundles["cached"]) as session:
        session.run(image, "depth")
        first = session.expert_cache()
        session.run(image, "depth")
        second = session.expert_cache()
    assert first.hits == 0
    assert first.misses > 0
    assert (second.misses, second.bytes_read, second.hits) == (first.misses, first.bytes_read, first.misses)


def test_what_the_next_layer_likes_is_read_ahead(bundles):
    image = SAMPLES["image"].numpy()
    with Session(bundles["cached"]) as session:
        total = session.expert_cache().total_bytes
    with Session(bundles["cached"], expert_bytes=total // 2) as session:
        for _ in range(8):
            session.run(image, "depth")
            session.run(image, "semseg")
        assert session.expert_cache().prefetched > 0


def test_a_budget_under_two_experts_is_refused(bundles):
    with pytest.raises(UserError, match=r"expert_bytes = 100: two experts take 8,192 bytes"):
        Session(bundles["cached"], expert_bytes=100)
    with pytest.raises(UserError, match='export with experts = "cached"'):
        Session(bundles["queue"], expert_bytes=1 << 20)


def edited(source: Path, target: Path, change) -> Path:
    """A copy of a bundle whose files `change` alters; sizes and checksums in the manifest follow, so that only what is
    inside can be at fault.
    """
    import hashlib
    import shutil

    shutil.copytree(source, target)
    change(target)
    manifest = json.loads((target / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (target / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_a_truncated_expert_file_is_one_clear_line(bundles, tmp_path):
    def cut(folder: Path) -> None:
        path = folder / "experts.bin"
        path.write_bytes(path.read_bytes()[:-20000])

    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(bundles["cached"], plain)
    cut(plain)
    with pytest.raises(BundleError, match=r"experts\.bin is \d+ bytes, the manifest says \d+"):
        Session(plain)
    with pytest.raises(BundleError, match=r"its experts lie beyond the end of 'experts.bin': the file is truncated"):
        Session(edited(bundles["cached"], tmp_path / "edited", cut))


def test_a_bundle_with_experts_apart_may_be_one_zip(tmp_path, lowered, monkeypatch):
    monkeypatch.setattr(bundle_module, "lower", lambda program, together=False: copied(lowered))
    path = tmp_path / "bundle.mtlc"
    export_bundle(program(), path, samples=SAMPLES, experts="cached", archive=True)
    assert "experts.bin" in zipfile.ZipFile(path).namelist()
    with Session(path, expert_bytes=1 << 20) as session:
        assert session.run(SAMPLES["image"].numpy(), "depth")["depth"].shape == (7, 1, 16, 32)


def test_threads_may_share_a_small_cache(bundles):
    from concurrent.futures import ThreadPoolExecutor

    image = SAMPLES["image"].numpy()
    with Session(bundles["cached"]) as whole:
        expected = whole.run(image)
        total = whole.expert_cache().total_bytes
    with Session(bundles["cached"], expert_bytes=total // 2) as session, ThreadPoolExecutor(3) as pool:
        for task, result in pool.map(lambda task: (task, session.run(image, task)[task]), list(TASKS) * 6):
            np.testing.assert_array_equal(result, expected[task])
        assert session.expert_cache().peak_bytes <= total // 2


def test_no_node_is_named_after_the_exporters_placeholder(bundles):
    for path in bundles["queue"].glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        named = [node.name for node in model.graph.node] + [str(node.metadata_props) for node in model.graph.node]
        assert not any("_empty_nn_module_stack" in name for name in named)


@pytest.mark.slow
def test_a_network_that_lost_heads_hidden_channels_and_experts(tmp_path):
    """All that prune and extract take away at once: the bundle computes what is left."""
    one = program()
    example = one.example_inputs()
    groups = ChannelGroups(one.module, example)
    kinds = {unit.kind: unit.name for unit in groups.units}
    assert set(kinds) == {"channels", "heads", "experts"}
    groups.prune({unit.name: [0] for unit in groups.units if unit.kind != "channels" or unit.name.endswith("mlp.fc1")})
    keep_experts(one.module, {"backbone.blocks.1.mlp": {"kept": [0, 2, 3], "reroute": False}})
    keep_experts(one.module, {"backbone.blocks.3.mlp": {"kept": [1, 4], "reroute": True}})
    one.module.eval()
    for form in (*FORMS, "cached"):
        found = export_bundle(one, tmp_path / form, samples=SAMPLES, experts=form, tolerance=1e-5)
        assert {task: entry["near_ties"] for task, entry in found["verification"].items()} == dict.fromkeys(TASKS, 0)
    with Session(tmp_path / "cached") as session:
        layers = [p.experts for p in session.manifest.programs if p.experts is not None]
    assert {(layer.count, layer.hidden) for layer in layers} == {(3, 15), (2, 15)}
