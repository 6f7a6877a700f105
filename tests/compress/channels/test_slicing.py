"""The surgery step "slice" over all units of a network at once, and on every layer that can lose channels."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit import tiny_networks
from testkit.channel_slices import IMAGE, PICTURE, agree, by_name, check_slices, groups_of, outputs
from testkit.visible_experts import visible
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from mtlc.compress.channels.channel_groups import slice_step
from mtlc.compress.channels.slicing import sliced
from mtlc.compress.channels.unit import Unit
from mtlc.errors import UserError
from mtlc.moe.experts import ExpertLinear
from mtlc.program import surgery
from mtlc.zoo.m3vit import m3vit


class ConvNeXt(nn.Module):
    """Stem, one block (depth-wise 7×7, layer norm and perceptron on channels last, shortcut), head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.depthwise = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm = nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return self.head(x + self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2))


class UNet(nn.Module):
    """down 12 ── deep 16 ── up 10 ─┐
    └────────────────────── 22 ─ join 14 ── head
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.PReLU(12))
        self.deep = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.InstanceNorm2d(16, affine=True), nn.PReLU())
        self.up = nn.ConvTranspose2d(16, 10, 2, 2)
        self.join = nn.Sequential(nn.Conv2d(22, 14, 3, padding=1), nn.GroupNorm(2, 14, affine=False), nn.ReLU())
        self.head = nn.Conv2d(14, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.down(image)
        return self.head(self.join(torch.cat([x, self.up(self.deep(x))], 1)))


class Segformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = tiny_networks.segformer()
        self.head = nn.Conv2d(32, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image).last_hidden_state)


def small_m3vit() -> nn.Module:
    torch.manual_seed(3)
    made = m3vit(
        size="micro", width=48, heads=3, blocks=2, experts=4, top_k=2, head_width=16, image_size=[32, 32], patch=8,
        tasks=tiny_networks.OUTPUTS,
    )  # fmt: skip
    return visible(made)


def a_third_of(units: dict[str, Unit]) -> dict[str, list[int]]:
    """From every unit its first, fourth, … channels, or multiples of them."""
    return {
        name: [c for c in range(unit.channels) if c // unit.multiple % 3 == 0] for name, unit in units.items()
    }  # fmt: skip


@pytest.mark.parametrize(
    ("build", "example", "found"),
    [
        (
            tiny_networks.resnet, PICTURE,
            {
                **{f"encoder.stages.{i}.0.conv{k}.conv": 16 + 8 * i for i in range(3) for k in (1, 2)},
                **{f"decoders.{t}.{n}": 16 for t in ("depth", "semseg")
                   for n in ("laterals.0", "laterals.1", "smooth.0.conv")},
            },
        ),
        (ConvNeXt, IMAGE, {"narrow": 16, "wide": 64}),
        (UNet, IMAGE, {"deep.0": 16, "down.0": 12, "join.0": 14, "up": 10}),
    ],
)  # fmt: skip
def test_one_step_takes_all_channel_units(build, example, found):
    torch.manual_seed(1)
    module = build()
    units = by_name(groups_of(module, example))
    assert {name: u.channels for name, u in units.items()} == found
    cut = check_slices(module, a_third_of(units), example)
    pruned = copy.deepcopy(module)
    steps = groups_of(pruned, example).prune(a_third_of(units))
    assert [step["kind"] for step in steps] == ["slice"]
    assert tiny_networks.same_state(pruned, cut)


@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (
            small_m3vit,
            {
                "channels": {"backbone.blocks.0.mlp.fc1": 192, **{f"heads.{t}.convs.{i}": 16
                    for t in ("depth", "semseg") for i in range(3)}},
                "heads": {"backbone.blocks.0.attn": 3, "backbone.blocks.1.attn": 3},
                "experts": {"backbone.blocks.1.mlp.experts": 48},
            },
        ),
        (
            Segformer,
            {
                "channels": {
                    "backbone.stages.0.blocks.0.mlp.fc1": 64,
                    "backbone.stages.1.blocks.0.attention.o_proj": 32, "backbone.stages.1.blocks.0.mlp.fc1": 128,
                },
                "heads": {"backbone.stages.1.blocks.0.attention": 2},
            },
        ),
    ],
)  # fmt: skip
def test_one_step_over_heads_experts_and_channels(build, kinds):
    module = build()
    groups = groups_of(module, PICTURE)
    found: dict[str, dict[str, int]] = {}
    for unit in groups.units:
        found.setdefault(unit.kind, {})[unit.name] = unit.channels
    assert found == kinds
    units = by_name(groups)
    removed = a_third_of({name: units[name] for kind in kinds.values() for name in kind})
    cut = check_slices(module, removed, PICTURE, units)
    pruned = copy.deepcopy(module)
    groups_of(pruned, PICTURE).prune(removed)
    assert tiny_networks.same_state(pruned, cut)


def test_a_parameter_beside_layers_is_cut_with_its_channels():
    module = ConvNeXt()
    module.scale = nn.Parameter(torch.full((16, 1, 1), 0.5))
    module.forward = lambda image: module.head(module.stem(image) * module.scale)
    stem = by_name(groups_of(module))["stem"]
    assert ("scale", "dim0") in {(m.layer, m.side) for m in stem.members}
    assert not stem.by_layers
    expected = module.scale[[c for c in range(16) if c not in (0, 5)]]
    groups_of(module).prune({"stem": [0, 5]})
    assert torch.equal(module.scale, expected)
    assert module(IMAGE).shape == (2, 2, 4, 4)


MIXED: dict[str, Any] = {}


def mixed() -> tuple[nn.Module, dict[str, Unit]]:
    """Depth-wise, grouped, concatenated and normed channels, found once."""
    if not MIXED:
        torch.manual_seed(0)
        module = tiny_networks.random_norms(Mixed()).eval()
        MIXED["found"] = module, by_name(groups_of(module))
    return MIXED["found"]


class Mixed(nn.Module):
    """stem 16 ─┬─ squeeze 12 ─ grouped 12 (3 groups) ─ expand 16 ─ + ─┬─ head
    └────────────────────────────────────────────────── side 8 ─ depth-wise 8 ─┘
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.squeeze = nn.Conv2d(16, 12, 1)
        self.grouped = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.BatchNorm2d(12), nn.PReLU(12))
        self.expand = nn.Conv2d(12, 16, 1)
        self.side = nn.Sequential(nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GroupNorm(2, 8))
        self.head = nn.Conv2d(36, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        inner = self.grouped(F.relu(self.squeeze(x)))
        return self.head(torch.cat([x + self.expand(inner), self.side(x), inner], 1))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_slices_cuts_and_replays_agree_whatever_goes(data):
    module, units = mixed()
    assert {name: (u.channels, u.kind) for name, u in units.items()} == {
        "expand": (16, "channels"), "side.0": (8, "channels"), "squeeze": (3, "groups"),
    }  # fmt: skip
    removed = {}
    for name, unit in units.items():
        kept = data.draw(st.integers(1, unit.channels // unit.multiple)) * unit.multiple
        removed[name] = data.draw(st.permutations(range(unit.channels)))[kept:]
    check_slices(copy.deepcopy(module), removed, units=units)
    pruned, again = copy.deepcopy(module), copy.deepcopy(module)
    steps = json.loads(json.dumps(groups_of(pruned).prune(removed)))
    surgery.replay(again, (IMAGE,), steps)
    assert tiny_networks.same_state(pruned, again)
    with sliced(module, units, removed):
        agree(outputs(again, IMAGE), outputs(module, IMAGE))


def test_a_cut_network_trains_and_exports(tmp_path):
    module, units = mixed()
    cut = copy.deepcopy(module)
    cut.stem[0].weight.requires_grad_(False)
    surgery.cut(cut, slice_step(units, {"expand": [0, 5], "squeeze": [1], "side.0": [3, 4]}, cut))
    assert [n for n, p in cut.named_parameters() if not p.requires_grad] == ["stem.0.weight"]
    expected = outputs(cut, IMAGE)
    path = tmp_path / "cut.onnx"
    torch.onnx.export(cut, (IMAGE,), path, dynamo=True, input_names=["image"], output_names=["out"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    agree([torch.from_numpy(session.run(None, {"image": IMAGE.numpy()})[0])], expected, 1e-4)
    before = copy.deepcopy(cut.state_dict())
    cut.train()
    optimizer = torch.optim.SGD([p for p in cut.parameters() if p.requires_grad], lr=0.1)
    cut(IMAGE).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in cut.state_dict().items() if not torch.equal(value, before[name])}
    assert changed >= {"grouped.0.weight", "grouped.1.running_mean", "side.1.weight", "grouped.2.weight"}
    assert "stem.0.weight" not in changed


LAYERS = [
    (nn.Conv1d(4, 6, 3), (5, 2), nn.Conv1d(3, 4, 3)),
    (nn.Conv2d(4, 6, 3, bias=False), (5, 2), nn.Conv2d(3, 4, 3, bias=False)),
    (nn.Conv3d(4, 6, 1), (5, 2), nn.Conv3d(3, 4, 1)),
    (nn.ConvTranspose1d(4, 6, 2), (5, 2), nn.ConvTranspose1d(3, 4, 2)),
    (nn.ConvTranspose2d(4, 6, 2), (5, 2), nn.ConvTranspose2d(3, 4, 2)),
    (nn.ConvTranspose3d(4, 6, 1), (5, 2), nn.ConvTranspose3d(3, 4, 1)),
    (nn.Linear(4, 6), (5, 2), nn.Linear(3, 4)),
    (ExpertLinear(2, 4, 6), (5, 2), ExpertLinear(2, 3, 4)),
    (nn.Conv2d(8, 8, 3, groups=8), (5, None), nn.Conv2d(6, 6, 3, groups=6)),
    (nn.Conv1d(9, 6, 3, groups=3), (1, None), nn.Conv1d(6, 4, 3, groups=2)),
    (nn.BatchNorm1d(6), (5, None), nn.BatchNorm1d(4)),
    (nn.BatchNorm2d(6, affine=False), (5, None), nn.BatchNorm2d(4, affine=False)),
    (nn.BatchNorm3d(6, track_running_stats=False), (5, None), nn.BatchNorm3d(4, track_running_stats=False)),
    (nn.InstanceNorm1d(6), (5, None), nn.InstanceNorm1d(4)),
    (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (5, None),
     nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    (nn.LayerNorm(6), (5, None), nn.LayerNorm(4)),
    (nn.LayerNorm(6, elementwise_affine=False), (5, None), nn.LayerNorm(4, elementwise_affine=False)),
    (nn.GroupNorm(2, 6), (5, None), nn.GroupNorm(2, 4)),
    (nn.GroupNorm(2, 6, affine=False), (5, None), nn.GroupNorm(2, 4, affine=False)),
    (nn.PReLU(6), (5, None), nn.PReLU(4)),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "gone", "like"), LAYERS, ids=lambda x: repr(x) if isinstance(x, nn.Module) else "")
def test_what_is_left_of_a_layer_is_such_a_layer(layer, gone, like):
    """Two outputs go, the first and another, and one input where it has them."""
    module = nn.Sequential(copy.deepcopy(layer))
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_()
    whole = copy.deepcopy(module[0])
    surgery.cut(
        module, {"kind": "slice", "layers": [["0", [0, gone[0]], [gone[1]] if gone[1] else []]], "attributes": []}
    )
    left = module[0]
    assert repr(left) == repr(like)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (left, like)]
    assert shapes[0] == shapes[1]
    plain = ("training", "_parameters", "_buffers", "_modules")
    assert {k: v for k, v in vars(left).items() if k not in plain} == {
        k: v for k, v in vars(like).items() if k not in plain
    }
    bias = getattr(whole, "bias", None)
    if bias is not None:
        kept = [i for i in range(bias.shape[-1]) if i not in (0, gone[0])]
        assert torch.equal(left.bias, bias[..., kept])


def test_what_a_convolution_loses():
    module = nn.Sequential(nn.ConvTranspose2d(3, 4, 2))
    weight = module[0].weight.detach().clone()
    surgery.cut(module, {"kind": "slice", "layers": [["0", [3, 1], [0]]], "attributes": []})
    assert torch.equal(module[0].weight, weight[1:][:, [0, 2]])


NETWORK = nn.ModuleDict(
    {
        "conv": nn.Conv2d(4, 6, 1), "grouped": nn.Conv2d(4, 6, 1, groups=2),
        "up": nn.ConvTranspose2d(4, 6, 1, groups=2),
        "norm": nn.GroupNorm(3, 6), "plane": nn.LayerNorm((6, 2)), "table": nn.Embedding(4, 6),
        "made": weight_norm(nn.Linear(4, 6)), "hooked": nn.utils.spectral_norm(nn.Conv2d(4, 6, 1)),
    }
)  # fmt: skip
BAD_LAYERS = [
    (["conv", [6], []], "cannot cut layer 'conv': output 6 is not one of the 6 that it can lose"),
    (["conv", [-1], []], "cannot cut layer 'conv': output -1 is not one of the 6 that it can lose"),
    (["conv", [], [4]], "cannot cut layer 'conv': input 4 is not one of the 4 that it can lose"),
    (["conv", ["0"], []], "cannot cut layer 'conv': output '0' is not one of the 6 that it can lose"),
    (["conv", [True], []], "cannot cut layer 'conv': output True is not one of the 6 that it can lose"),
    (["conv", 3, []], "cannot cut layer 'conv': 3 is no list of indices"),
    (["conv", [0, 1, 2, 3, 4, 5], []], "cannot cut layer 'conv': it would have no outputs left"),
    (["conv", [], [0, 1, 2, 3]], "cannot cut layer 'conv': it would have no inputs left"),
    (["grouped", [0, 1], []], "cannot cut layer 'grouped': its 2 groups of outputs must all lose as many, or go as"),
    (["grouped", [], [2]], "cannot cut layer 'grouped': input 2 is not one of the 2 that it can lose"),
    (["up", [0], []], "cannot cut layer 'up': ConvTranspose2d is no layer that can lose channels"),
    (["norm", [0], []], "cannot cut layer 'norm': its 3 groups cannot share 5 channels"),
    (["plane", [0], []], "cannot cut layer 'plane': LayerNorm is no layer that can lose channels"),
    (["made", [0], []], "cannot cut layer 'made': ParametrizedLinear has no weights of its own"),
    (["hooked", [0], []], "cannot cut layer 'hooked': Conv2d has no weights of its own"),
    (["", [0], []], "cannot cut layer '': ModuleDict has no weights of its own"),
    (["convs", [0], []], "the surgery cuts 'convs', which is no layer of the network"),
    ([None, [0], []], "the surgery cuts None, which is no layer of the network"),
    (["conv", [0]], "the surgery's 'layers' are no list of three entries each: the checkpoint is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), BAD_LAYERS)
def test_a_damaged_step_is_one_line(entry, message):
    module = copy.deepcopy(NETWORK)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        surgery.replay(module, (), [{"kind": "slice", "layers": [entry], "attributes": []}])
    assert "\n" not in str(raised.value)
    assert tiny_networks.same_state(module, NETWORK)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["conv", "kernels", 1], "the surgery sets 'kernels' of 'conv', which is not a whole number of the network's"),
        (["conv", "groups", 0], "the surgery sets 'groups' of 'conv', which is not a whole number of the network's"),
        (
            ["conv", "training", 1],
            "the surgery sets 'training' of 'conv', which is not a whole number of the network's",
        ),
        (["convs", "groups", 1], "the surgery cuts 'convs', which is no layer of the network"),
    ],
)
def test_a_damaged_attribute_is_one_line(entry, message):
    step = {"kind": "slice", "layers": [], "attributes": [entry]}
    with pytest.raises(UserError, match=re.escape(message)):
        surgery.replay(copy.deepcopy(NETWORK), (), [step])
    for key in ("layers", "attributes"):
        with pytest.raises(UserError, match=f"the surgery's '{key}' are no list"):
            surgery.replay(copy.deepcopy(NETWORK), (), [{"kind": "slice", "layers": [], "attributes": [], key: None}])
