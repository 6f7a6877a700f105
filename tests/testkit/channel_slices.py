"""Checks that the surgery step "slice" gives what zeroed channels give, for every unit of a network."""

from __future__ import annotations

import copy
import json

import torch
from torch import Tensor, nn

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups, slice_step
from mtlc.compress.channels.slicing import sliced
from mtlc.compress.channels.unit import Unit
from mtlc.hw.cost.count import workload
from mtlc.program import surgery
from mtlc.program.program import ModelSource, Program
from mtlc.tasks.task import TaskSpec
from testkit import tiny_networks

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


PICTURE = tiny_networks.images(2, 32, 4)


def groups_of(module: nn.Module, example: Tensor = IMAGE, ignore=()) -> ChannelGroups:
    module.eval()
    return ChannelGroups(module, (example,), ignore)


def by_name(groups: ChannelGroups) -> dict[str, Unit]:
    return {unit.name: unit for unit in groups.units}


def reasons(groups: ChannelGroups) -> dict[str, str]:
    return {item.name: item.why for item in groups.left_alone}


def outputs(module: nn.Module, example: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(module(example))


def agree(one: list[Tensor], other: list[Tensor], tolerance: float = 1e-6) -> None:
    assert [o.shape for o in one] == [o.shape for o in other]
    for a, b in zip(one, other, strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def check_slices(
    module: nn.Module, removed: dict[str, list[int]], example: Tensor = IMAGE, units: dict[str, Unit] | None = None
) -> nn.Module:
    """One step over all units equals the sliced network, `prune`, and its replay; costs are as claimed."""
    tiny_networks.random_norms(module).eval()
    units = units or by_name(groups_of(module, example))
    whole = outputs(module, example)
    with sliced(module, units, removed):
        expected = outputs(module, example)
    agree(outputs(module, example), whole, 0.0)
    cut = copy.deepcopy(module)
    step = json.loads(json.dumps(slice_step(units, removed, cut)))
    surgery.cut(cut, step)
    agree(outputs(cut, example), expected)
    consistent(cut)
    again = copy.deepcopy(module)
    surgery.replay(again, (example,), [step])
    assert tiny_networks.same_state(cut, again)
    assert repr(cut) == repr(again)
    source = ModelSource("none:none")
    tasks = (TaskSpec("out", "mse", "mse", output=""),)
    if isinstance(module(example), Tensor):
        program, built = (Program(m, tasks, {"image": example}, source) for m in (module, cut))
        assert ChannelCosts(program, units, "macs").cost(removed) == workload(built).macs
        assert ChannelCosts(program, units, "params").cost(removed) == built.parameters_count()
    return cut


def consistent(module: nn.Module) -> None:
    """Every layer says the sizes that its tensors have: one built anew from what it says has the same shapes."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            fresh: nn.Module = type(layer)(
                layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups,
                bias=layer.bias is not None
            )  # fmt: skip
        elif isinstance(layer, nn.Linear):
            fresh = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        elif isinstance(layer, nn.BatchNorm2d):
            fresh = nn.BatchNorm2d(layer.num_features)
        elif type(layer) is nn.LayerNorm:
            fresh = nn.LayerNorm(layer.normalized_shape)
        else:
            continue
        shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (layer, fresh)]
        assert shapes[0] == shapes[1], layer
