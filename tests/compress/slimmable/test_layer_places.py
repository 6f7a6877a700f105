"""When every layer runs, at what resolution, and which tasks need it."""

from __future__ import annotations

import pytest
import torch
from testkit import tiny_networks, wide_networks
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.slimmable.layer_places import decoder_layers, survey
from mtlc.errors import UserError
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec

BOTH = {"depth", "semseg"}


def program_of(module: nn.Module, size: int = 8, tasks=tiny_networks.REGRESSION) -> Program:
    return Program(module.eval(), tasks, {"image": torch.zeros(2, 3, size, size)}, ModelSource("none:none"))


def test_a_resnet():
    places = survey(tiny_networks.resnet_program())
    orders = [place.order for place in places.values()]
    assert orders == sorted(orders)
    assert len(set(orders)) == len(orders)
    assert next(iter(places)) == "encoder.stem.conv"
    for path, place in places.items():
        assert place.tasks == ({path.split(".")[1]} if path.startswith("decoders") else BOTH)
    positions = {path: place.positions for path, place in places.items()}
    assert positions["encoder.stem.conv"] == 16 * 16
    assert [positions[f"encoder.stages.{i}.0.conv1.conv"] for i in range(3)] == [256, 64, 16]
    assert [positions[f"decoders.depth.laterals.{i}"] for i in range(3)] == [256, 64, 16]
    found = decoder_layers(tiny_networks.resnet_program(), places)
    assert found["depth"] == [
        "decoders.depth.laterals.2", "decoders.depth.laterals.1", "decoders.depth.smooth.1.conv",
        "decoders.depth.laterals.0", "decoders.depth.smooth.0.conv", "decoders.depth.predict",
    ]  # fmt: skip
    assert list(found) == ["depth", "semseg"]


def test_frozen_layers_are_seen_and_stay_frozen():
    program = tiny_networks.resnet_program()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in program.module.modules()]
    expected = survey(program)
    program.module.encoder.requires_grad_(False)
    program.module.train()
    program.module.encoder.stem.eval()
    with torch.no_grad():
        assert survey(program) == expected
    assert not any(p.requires_grad for p in program.module.encoder.parameters())
    assert all(p.requires_grad for p in program.module.decoders.parameters())
    assert program.module.training
    assert not program.module.encoder.stem.bn.training
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in program.module.modules()]


@pytest.mark.parametrize("gate", ["multi", "single", "conditioned"])
def test_m3vit_whose_decoders_are_its_heads(gate):
    program = tiny_networks.moe_program(gate=gate)
    places = survey(program)
    own = {path for path, place in places.items() if place.tasks != BOTH}
    assert own == {path for path in places if path.startswith("heads.")}
    assert {path: p.positions for path, p in places.items() if path.endswith("attn.qkv")} == {
        f"backbone.blocks.{i}.attn.qkv": 17 for i in range(4)
    }  # 4 × 4 patches and the class token
    experts = places["backbone.blocks.1.mlp.experts.fc1"]
    assert places["backbone.blocks.1.mlp.router"].order < experts.order < places["backbone.blocks.2.norm1"].order
    assert decoder_layers(program, places) == {
        task: [f"heads.{task}.convs.0", f"heads.{task}.convs.1", f"heads.{task}.predict"] for task in BOTH
    }


class Adapted(nn.Module):
    """Each task has a scale of its own inside the encoder, beside its head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.scales = nn.ModuleDict({task: nn.Conv2d(8, 8, 1) for task in sorted(BOTH)})
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1)) for task in sorted(BOTH)}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        return {task: self.heads[task](self.body(x + self.scales[task](x))) for task in self.heads}


def test_what_a_task_has_inside_the_encoder_is_no_decoder():
    program = program_of(Adapted())
    places = survey(program)
    assert places["scales.depth"].tasks == {"depth"}
    assert places["body"].tasks == BOTH
    assert decoder_layers(program, places) == {task: [f"heads.{task}.0", f"heads.{task}.1"] for task in BOTH}


def test_channels_last_maps_have_the_resolution_of_images():
    places = survey(wide_networks.program_of("convnext"))
    assert {path: places[path].positions for path in ("stem", "depthwise", "norm", "wide", "narrow")} == dict.fromkeys(
        ("stem", "depthwise", "norm", "wide", "narrow"), 16
    )


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"depth": self.conv(image), "semseg": F.relu(image)}


def test_a_task_without_parameters_is_one_line():
    with pytest.raises(UserError) as caught:
        survey(program_of(Constant()))
    assert str(caught.value) == (
        "task 'semseg': its output depends on no parameter of the network; nothing to make slim"
    )


def test_a_task_without_layers_of_its_own_has_no_decoder():
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.extra = nn.Conv2d(4, 3, 1)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            x = self.conv(image)
            return {"depth": x[:, :1], "semseg": self.extra(x)}

    program = program_of(One())
    assert decoder_layers(program, survey(program)) == {"semseg": ["extra"]}


def test_layers_called_twice_stand_where_they_ran_first():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.pool = nn.AvgPool2d(2)

        def forward(self, image: Tensor) -> Tensor:
            return self.shared(self.pool(self.shared(self.first(image))))

    places = survey(program_of(Twice(), tasks=(TaskSpec("depth", "mse", "mse", output=""),)))
    assert {path: place.positions for path, place in places.items()} == {"first": 64, "shared": 64}
