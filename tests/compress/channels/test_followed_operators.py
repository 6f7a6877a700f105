"""Channels are followed through every kind of operator: by hand for each, and cut against the masked graph."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from testkit import tiny_networks
from torch import Tensor, nn
from torch.nn import functional as F

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.slicing import sliced
from mtlc.hw.cost.count import workload
from mtlc.program import surgery
from mtlc.program.program import ModelSource, Program
from mtlc.program.unpacking import unpack
from mtlc.tasks.task import TaskSpec

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Middle(nn.Module):
    """stem 16 ── what `forward` makes of it with `layers` ── head."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], width: int = 16, **layers: nn.Module | Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.head = nn.Conv2d(width, 2, 1)
        self.middle = forward
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(self.middle(self, F.relu(self.stem(image)))))


class Gained(nn.Conv2d):
    """A convolution of standardised weights with a gain for every filter."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = self.gain * (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias)


class Frozen(nn.Module):
    """A batch norm whose numbers are buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.mean * scale).view(1, -1, 1, 1)


def merged_windows(net: Any, x: Tensor) -> Tensor:
    """2×2 neighbours beside each other, as Swin merges patches."""
    x = x.permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
    return net.reduce(net.norm(x)).permute(0, 3, 1, 2)


def response_norm(net: Any, x: Tensor) -> Tensor:
    """ConvNeXt V2's: the energy of each channel over the mean of all."""
    energy = x.norm(dim=(2, 3), keepdim=True)
    return net.out(x + net.gamma * x * energy / (energy.mean(1, keepdim=True) + 1e-6))


def cross_attention(net: Any, x: Tensor) -> Tensor:
    n = len(x)
    tokens = x.flatten(2).transpose(1, 2)
    q = net.q(net.queries.expand(n, -1, -1)).unflatten(-1, (4, -1)).transpose(1, 2)
    k, v = (f(tokens).unflatten(-1, (4, -1)).transpose(1, 2) for f in (net.k, net.v))
    made = net.o((torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).flatten(2))
    return x + made.mean(1)[:, :, None, None]


def linear_attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = (f(x).flatten(2) for f in (net.q, net.k, net.v))
    return net.o(torch.einsum("bkl,bvl->bkv", k.softmax(-1), v).mT @ q.softmax(1)).unflatten(-1, x.shape[2:])


conv = nn.Conv2d
# By name: the network, and by one of the layers that make a unit's channels, how many it has.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "pixel shuffle": (
        lambda: Middle(lambda s, x: s.norm(F.pixel_shuffle(s.a(x), 2)), 8, a=conv(16, 32, 1), norm=nn.BatchNorm2d(8)),
        {"stem.0": 16, "a": 8},
    ),
    "pixel unshuffle": (
        lambda: Middle(lambda s, x: s.a(F.pixel_unshuffle(x, 2)), a=conv(64, 16, 1)),
        {"stem.0": 16, "a": 16},
    ),
    "chunks": (
        lambda: Middle(
            lambda s, x: s.b(torch.cat([*(y := s.a(x).chunk(2, 1)), s.m(y[1])], 1)),
            a=conv(16, 24, 1),
            m=conv(12, 12, 1),
            b=conv(36, 16, 1),
        ),
        {"a": 12, "m": 12, "b": 16},
    ),
    "halves": (
        lambda: Middle(
            lambda s, x: s.b((y := s.a(x))[:, : y.shape[1] // 2] + s.m(y[:, y.shape[1] // 2 :])),
            a=conv(16, 24, 1),
            m=conv(12, 12, 1),
            b=conv(12, 16, 1),
        ),
        {"a": 12, "b": 16},
    ),
    "gated": (lambda: Middle(lambda s, x: s.b(F.glu(s.a(x), 1)), a=conv(16, 24, 1), b=conv(12, 16, 1)), {"a": 12}),
    "stack": (
        lambda: Middle(
            lambda s, x: s.c(torch.stack([s.a(x), s.b(x)], 1).amax(1)),
            a=conv(16, 12, 1),
            b=conv(16, 12, 1),
            c=conv(12, 16, 1),
        ),
        {"a": 12, "c": 16},
    ),
    "frozen norm": (
        lambda: Middle(lambda s, x: s.b(s.n(s.a(x))), a=conv(16, 24, 1), n=Frozen(24), b=conv(24, 16, 1)),
        {"a": 24},
    ),
    "layer scale": (
        lambda: Middle(lambda s, x: x + s.g * s.a(x), a=conv(16, 16, 1), g=torch.rand(16, 1, 1)),
        {"a": 16},
    ),
    "gain": (lambda: Middle(lambda s, x: s.b(s.a(x)), a=Gained(16, 24, 1), b=Gained(24, 16, 1)), {"a": 24, "b": 16}),
    "windows": (
        lambda: Middle(merged_windows, norm=nn.LayerNorm(64), reduce=nn.Linear(64, 16, bias=False)),
        {"stem.0": 16, "reduce": 16},
    ),
    "response norm": (
        lambda: Middle(response_norm, gamma=torch.rand(1, 16, 1, 1), out=conv(16, 16, 1)),
        {"stem.0": 16},
    ),
    "squeeze": (
        lambda: Middle(
            lambda s, x: x * torch.sigmoid(s.e(F.relu(s.r(x.mean((2, 3), keepdim=True))))),
            r=conv(16, 8, 1),
            e=conv(8, 16, 1),
        ),
        {"e": 16, "r": 8},
    ),
    "root mean square": (
        lambda: Middle(
            lambda s, x: s.b(s.n(s.a(x.movedim(1, -1)))).movedim(-1, 1),
            a=nn.Linear(16, 24),
            n=nn.RMSNorm(24),
            b=nn.Linear(24, 16),
        ),
        {"a": 24, "b": 16},
    ),
    "instance norm": (
        lambda: Middle(
            lambda s, x: s.b(s.n(s.a(x))), a=conv(16, 24, 1), n=nn.InstanceNorm2d(24, affine=True), b=conv(24, 16, 1)
        ),
        {"a": 24},
    ),
    "depth-wise transposed": (
        lambda: Middle(lambda s, x: s.b(s.a(x)), a=nn.ConvTranspose2d(16, 16, 2, 2, groups=16), b=conv(16, 16, 1)),
        {"stem.0": 16, "b": 16},
    ),
    "matrix product with a parameter": (
        lambda: Middle(
            lambda s, x: (x.movedim(1, -1) @ s.w @ s.v).movedim(-1, 1), w=torch.randn(16, 24), v=torch.randn(24, 16)
        ),
        {"stem.0": 16},
    ),
    "padded shortcut": (
        lambda: Middle(lambda s, x: s.b(F.pad(x, (0, 0, 0, 0, 0, 8)) + s.a(x)), a=conv(16, 24, 1), b=conv(24, 16, 1)),
        {"b": 16},
    ),
    "einsum": (
        lambda: Middle(
            lambda s, x: s.b(torch.einsum("nchw,nc->nchw", y := s.a(x), y.mean((2, 3)))),
            a=conv(16, 24, 1),
            b=conv(24, 16, 1),
        ),
        {"a": 24},
    ),
    "cross attention": (
        lambda: Middle(
            cross_attention,
            q=nn.Linear(16, 32),
            k=nn.Linear(16, 32),
            v=nn.Linear(16, 32),
            o=nn.Linear(32, 16),
            queries=torch.randn(1, 5, 16),
        ),
        {"k": 8, "v": 8},
    ),
    "linear attention": (
        lambda: Middle(
            linear_attention, q=conv(16, 12, 1), k=conv(16, 12, 1), v=conv(16, 24, 1), o=nn.Conv1d(24, 16, 1)
        ),
        {"k": 12, "v": 24},
    ),
    "rolled windows": (
        lambda: Middle(
            lambda s, x: s.b(torch.roll(x, (1, 1), (2, 3)).flip(1).unfold(2, 2, 2)[..., 0]), b=conv(16, 16, 1)
        ),
        {"stem.0": 16},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_found_and_cut(name):
    """Every unit alone and all together: the cut network is the lent one, costs what is claimed, and replays."""
    build, expected = NETWORKS[name]
    module = tiny_networks.random_norms(build()).eval()
    groups = ChannelGroups(module, (IMAGE,))
    assert groups.notes == []
    found = {member.layer: unit for unit in groups.units for member in unit.producers}
    assert {layer: found[layer].channels for layer in expected} == expected
    program = Program(module, (TaskSpec("out", "mse", "mse", output=""),), {"image": IMAGE}, ModelSource("none:none"))
    units = {unit.name: unit for unit in groups.units}
    cases = [{name: [0, unit.channels - 1]} for name, unit in units.items() if unit.channels > 2]
    for removed in [*cases, {n: g for case in cases for n, g in case.items()}]:
        with torch.no_grad(), sliced(module, units, removed):
            lent = module(IMAGE)
        pruned = copy.deepcopy(module)
        step = json.loads(json.dumps(ChannelGroups(pruned, (IMAGE,)).prune(removed)))
        again = copy.deepcopy(module)
        surgery.replay(again, (IMAGE,), step)
        assert tiny_networks.same_state(pruned, again)
        with torch.no_grad():
            assert torch.allclose(pruned(IMAGE), lent, atol=1e-5)
        built = Program(pruned, program.tasks, program.example, program.source)
        assert ChannelCosts(program, units, "params").cost(removed) == built.parameters_count()
        if len(removed) == 1:
            assert ChannelCosts(program, units, "macs").cost(removed) == workload(built).macs < workload(program).macs


def reasons(module: nn.Module) -> dict[str, str]:
    groups = ChannelGroups(module.eval(), (IMAGE,))
    assert not any(member.layer == "a" for unit in groups.units for member in unit.producers)
    return {item.name: item.why for item in groups.left_alone}


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (
            lambda: Middle(lambda s, x: s.b(s.a(x).sort(1)[0]), a=conv(16, 24, 1), b=conv(24, 16, 1)),
            "depends on the order of its channels (sort in the network itself)",
        ),
        (
            lambda: Middle(lambda s, x: s.b(torch.fft.fft(s.a(x), dim=1).real), a=conv(16, 24, 1), b=conv(24, 16, 1)),
            "no rule follows channels through it (",
        ),
        (lambda: Middle(lambda s, x: x + s.a(x)[:, :1], a=conv(16, 24, 1)), "a single channel is picked (slice in"),
        (
            lambda: Middle(
                lambda s, x: s.b(s.a(x).unflatten(1, (6, 4)).flatten(1, 2)), a=conv(16, 24, 1), b=conv(24, 16, 1)
            ),
            "the network does not run without its channels (",
        ),
        (
            lambda: Middle(lambda s, x: s.b(s.n(s.a(x))), a=conv(16, 24, 1), n=nn.GroupNorm(24, 24), b=conv(24, 16, 1)),
            "a group norm allows no fewer channels",
        ),
        (
            lambda: Middle(lambda s, x: s.b((y := s.a(x))[:, :10] * y[:, 10:20]), a=conv(16, 24, 1), b=conv(10, 16, 1)),
            "",
        ),
    ],
)
def test_what_cannot_be_followed_names_the_operator_and_the_module(module, why):
    assert reasons(module())["a"].startswith(why)


class Constant(nn.Module):
    """Reads the first 12 of its channels, whatever their number: it runs without some of them, and is wrong then."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = conv(3, 24, 1), conv(12, 16, 1)
        self.head = conv(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        y = self.a(image)
        return self.head(F.relu(self.b(y[:, :12] + y.flip(1)[:, :12])))


def test_a_network_that_would_compute_something_else_is_caught():
    groups = ChannelGroups(Constant().eval(), (IMAGE,))
    for unit in groups.units:
        gone = [c for c in range(unit.channels) if c % 2]
        module = Constant().eval()
        expected = ChannelGroups(module, (IMAGE,))
        expected.prune({unit.name: gone})
        assert module(IMAGE).shape == (2, 2, 8, 8)
    assert not any(member.layer == "a" for unit in groups.units for member in unit.producers)


def test_weights_that_two_layers_share_stay_one():
    def tied() -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(
            conv(3, 16, 1), conv(16, 16, 3, padding=1), nn.ReLU(), conv(16, 16, 3, padding=1), conv(16, 2, 1)
        )
        net[3].weight = net[1].weight
        return net.eval()

    module = tied()
    (unit,) = ChannelGroups(module, (IMAGE,)).units
    assert {m.layer for m in unit.producers} == {"0", "1", "3"}
    with torch.no_grad(), sliced(module, {unit.name: unit}, {unit.name: [1, 5]}):
        lent = module(IMAGE)
    steps = ChannelGroups(module, (IMAGE,)).prune({unit.name: [1, 5]})
    assert module[1].weight is module[3].weight
    assert module[1].weight.shape == (14, 14, 3, 3)
    assert torch.allclose(module(IMAGE), lent, atol=1e-5)
    again = tied()
    surgery.replay(again, (IMAGE,), json.loads(json.dumps(steps)))
    assert again[1].weight is again[3].weight
    assert tiny_networks.same_state(again, module)


class Own(nn.Module):
    """Attention under names of its own, whose forward reshapes to numbers that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts, self.each, self.all = 4, 8, 32
        self.make, self.mix, self.head = nn.Linear(3, 96), nn.Linear(32, 16), nn.Linear(16, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(2).mT
        a, b, c = self.make(x).view(*x.shape[:2], 3, self.parts, self.each).permute(2, 0, 3, 1, 4)
        made = torch.softmax(a @ b.mT / self.each**0.5, -1) @ c
        return self.head(F.relu(self.mix(made.transpose(1, 2).reshape(*x.shape[:2], self.all))))


def test_numbers_that_a_module_reshapes_by_fall_with_its_channels():
    module = Own().eval()
    unit = next(u for u in ChannelGroups(module, (IMAGE,)).units if u.producers[0].layer == "make")
    assert unit.channels in (4, 8)
    with torch.no_grad(), sliced(module, {unit.name: unit}, {unit.name: [1]}):
        lent = module(IMAGE)
    ChannelGroups(module, (IMAGE,)).prune({unit.name: [1]})
    assert module.parts * module.each == module.all in (24, 28)
    assert torch.allclose(module(IMAGE), lent, atol=1e-5)


def test_the_width_of_a_transformer_goes_where_it_is_asked_for():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def build() -> nn.Module:
        torch.manual_seed(0)
        net = Middle(
            lambda s, x: s.block(x.flatten(2).mT + s.place).mT.unflatten(-1, x.shape[2:]),
            block=copy.deepcopy(layer),
            place=torch.randn(64, 16),
        )
        unpack(net)
        return net.eval()

    kept = ChannelGroups(build(), (IMAGE,), residual=False)
    assert {u.name: (u.kind, u.channels) for u in kept.units} == {
        "block.linear1": ("channels", 32),
        "block.self_attn": ("heads", 2),
    }
    assert any("residual = true" in item.why and item.channels == 16 for item in kept.left_alone)
    stream = next(u for u in ChannelGroups(build(), (IMAGE,)).units if u.residual)
    assert ("place", "dim1") in {(m.layer, m.side) for m in stream.members}
    module = build()
    ChannelGroups(module, (IMAGE,)).prune({stream.name: [0, 3, 9]})
    assert module(IMAGE).shape == (2, 2, 8, 8)
    assert module.place.shape == (64, 13)
    assert module.block.norm1.normalized_shape == (13,)


class Listed(nn.Module):
    """Splits by sizes that it keeps in a tuple, and adds to the first channels of a wider map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sizes, self.narrow = (8, 12, 4), 8
        self.a, self.b, self.c = conv(3, 24, 1), conv(8, 8, 1), conv(12, 8, 1)
        self.head = conv(20, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        one, two, three = F.relu(self.a(image)).split(self.sizes, 1)
        wide = torch.cat([self.b(one), two], 1)
        return self.head(torch.cat([wide[:, : self.narrow] + self.c(two), wide[:, self.narrow :]], 1) + three.sum())


def test_entries_of_a_tuple_fall_with_their_channels():
    module = Listed().eval()
    groups = ChannelGroups(module, (IMAGE,))
    assert {u.channels for u in groups.units if any(m.layer == "a" for m in u.producers)} == {8, 12, 4}
    removed = {u.name: [1] for u in groups.units}
    units = {u.name: u for u in groups.units}
    with torch.no_grad(), sliced(module, units, removed):
        lent = module(IMAGE)
    assert (module.sizes, module.narrow) == ((8, 12, 4), 8)  # given back
    steps = json.loads(json.dumps(ChannelGroups(module, (IMAGE,)).prune(removed)))
    assert (module.sizes, module.narrow) == ((7, 11, 3), 7)
    assert torch.allclose(module(IMAGE), lent, atol=1e-5)
    again = Listed().eval()
    surgery.replay(again, (IMAGE,), steps)
    assert again.sizes == (7, 11, 3)
    assert torch.equal(again(IMAGE), module(IMAGE))
