"""Small networks of two tasks with one difficulty each: a stem, a middle that is the difficulty, two heads.

A picture (N, 3, 32, 32) becomes a map (N, 32, 16, 16), then the middle, then ``a`` (N, 4, 32, 32) and ``b``
(N, 1, 32, 32), unless a network says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from conformance.case import Collection

NETWORKS = Collection()
WIDTH = 32


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **more: Any) -> nn.Sequential:
    """A convolution of "same" size, its batch norm, a ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, **more)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class TwoTasks(nn.Module):
    """A stem of half the size, `middle`, and two heads whose maps have the picture's size again."""

    def __init__(self, middle: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), conv(16, WIDTH))
        self.middle = middle
        self.head_a = nn.Sequential(conv(width, 16), nn.Conv2d(16, 4, 1))
        self.head_b = nn.Sequential(conv(width, 16), nn.Conv2d(16, 1, 1))

    def forward(self, image: Tensor) -> Any:
        return self.heads(self.middle(self.stem(image)), image)

    def heads(self, features: Tensor, image: Tensor) -> dict[str, Any]:
        sized = {"size": image.shape[-2:], "mode": "bilinear", "align_corners": False}
        return {
            "a": F.interpolate(self.head_a(features), **sized),
            "b": F.interpolate(self.head_b(features), **sized),
        }


def block(about: str, width: int = WIDTH, **more: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add `TwoTasks` around the middle that the decorated function builds."""

    def added(middle: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def network() -> nn.Module:
            return TwoTasks(middle(), width)

        network.__name__ = middle.__name__
        NETWORKS.add("block", about, **more)(network)
        return middle

    return added


# -- Resolution ------------------------------------------------------------------------------------------------------


@block("PixelShuffle: four channels become one of twice the size")
def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        conv(WIDTH, 48, stride=2), nn.Conv2d(48, 96, 1), nn.PixelShuffle(2), nn.BatchNorm2d(24), nn.ReLU(), conv(24, 32)
    )


@block("PixelUnshuffle: each channel becomes four")
def pixel_unshuffle() -> nn.Module:
    return nn.Sequential(conv(WIDTH, 24), nn.PixelUnshuffle(2), conv(96, 32))


@block("a transposed convolution with a batch norm")
def transposed() -> nn.Module:
    return nn.Sequential(
        conv(WIDTH, 64, stride=2), nn.ConvTranspose2d(64, 40, 2, 2), nn.BatchNorm2d(40), nn.ReLU(), conv(40, 32)
    )


@block("a depth-wise transposed convolution")
def transposed_depthwise() -> nn.Module:
    return nn.Sequential(conv(WIDTH, 48, stride=2), nn.ConvTranspose2d(48, 48, 4, 2, 1, groups=48), conv(48, 32))


class Fold(nn.Module):
    """A downsampling by slices that are concatenated: YOLOv5's Focus."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = conv(WIDTH, 24), conv(96, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return self.after(torch.cat(parts, 1))


@block("four strided slices of a map in one concat (Focus)")
def focus() -> nn.Module:
    return Fold()


# -- Norms and scales ------------------------------------------------------------------------------------------------


@block("group norms between convolutions")
def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(WIDTH, 48, 3, padding=1), nn.GroupNorm(6, 48), nn.SiLU(), nn.Conv2d(48, 32, 3, padding=1),
        nn.GroupNorm(8, 32), nn.SiLU(),
    )  # fmt: skip


@block("instance norms with affine parameters")
def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(WIDTH, 48, 3, padding=1), nn.InstanceNorm2d(48, affine=True), nn.ReLU(), conv(48, 32)
    )


class ChannelsLast(nn.LayerNorm):
    """A layer norm over the channels of a map, by way of (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@block("a layer norm over channels, between two permutes")
def layer_norm_2d() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, 48, 3, padding=1), ChannelsLast(48), nn.GELU(), nn.Conv2d(48, 32, 1))


class ByHand(nn.Module):
    """A norm over channels of plain operators, with a weight and a bias for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels) / 5)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, keepdim=True, unbiased=False)
        x = (x - mean) * torch.rsqrt(variance + 1e-6)
        return x * self.scale[None, :, None, None] + self.shift[None, :, None, None]


@block("a norm over channels, written out")
def written_out_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, 48, 3, padding=1), ByHand(48), nn.GELU(), nn.Conv2d(48, 32, 1))


class Frozen(nn.Module):
    """A batch norm whose parameters and statistics are buffers of a module that is no batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(channels) + 0.5)
        self.register_buffer("bias", torch.randn(channels) / 5)
        self.register_buffer("mean", torch.randn(channels) / 5)
        self.register_buffer("var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight / torch.sqrt(self.var + 1e-5)
        shift = self.bias - self.mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


@block("a frozen batch norm: buffers for each channel")
def frozen_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, 48, 3, padding=1, bias=False), Frozen(48), nn.ReLU(), conv(48, 32))


class Scaled(nn.Module):
    """A residual whose branch has a factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(WIDTH, 48), nn.Conv2d(48, WIDTH, 3, padding=1))
        self.gamma = nn.Parameter(torch.rand(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.branch(x)


@block("LayerScale on the branch of a residual")
def layer_scale() -> nn.Module:
    return nn.Sequential(Scaled(), Scaled(), conv(WIDTH, 32))


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al., CVPR 2023): a channel's share of the mean over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.randn(1, channels, 1, 1) / 5)

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        return x + self.gamma * (x * (size / (size.mean(1, keepdim=True) + 1e-6))) + self.beta


@block("global response normalisation (GRN)")
def response_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, 64, 1), nn.GELU(), ResponseNorm(64), nn.Conv2d(64, 32, 1))


@block("a PReLU with a slope for each channel")
def prelu() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, 48, 3, padding=1), nn.PReLU(48), nn.Conv2d(48, 32, 3, padding=1), nn.PReLU())


@block("no norms, dilated kernels")
def without_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(WIDTH, 48, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(48, 32, 3, padding=3, dilation=3),
        nn.LeakyReLU(0.1),
    )  # fmt: skip


# -- Weights that are not a layer's own ------------------------------------------------------------------------------


class Twice(nn.Module):
    """The same layers on two scales, added."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(conv(WIDTH, 48), conv(48, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        small = self.shared(F.max_pool2d(x, 2))
        return self.shared(x) + F.interpolate(small, scale_factor=2, mode="nearest")


@block("the same layers run at two scales")
def shared_layers() -> nn.Module:
    return Twice()


@block("two convolutions that share one weight")
def tied_convolutions() -> nn.Module:
    first, second = conv(WIDTH, WIDTH), conv(WIDTH, WIDTH)
    second[0].weight = first[0].weight
    return nn.Sequential(first, second, conv(WIDTH, 32))


@block("a weight in magnitude and direction (weight_norm)")
def weight_norm() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Conv2d(WIDTH, 48, 3, padding=1))
    return nn.Sequential(layer, nn.ReLU(), conv(48, 32))


@block("a weight over its largest singular value (spectral_norm)")
def spectral_norm() -> nn.Module:
    layer = parametrizations.spectral_norm(nn.Conv2d(WIDTH, 48, 3, padding=1))
    return nn.Sequential(layer, nn.ReLU(), conv(48, 32))


class Standardised(nn.Conv2d):
    """A convolution whose filters are standardised, times a gain for each (Qiao et al., 2019)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(outputs) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5) * self.gain.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@block("weight-standardised convolutions with a gain for each filter")
def standardised_weights() -> nn.Module:
    return nn.Sequential(Standardised(WIDTH, 48), nn.ReLU(), Standardised(48, 48), nn.ReLU(), conv(48, 32))


class Mixed(nn.Module):
    """A convolution whose kernel is a mixture of four, weighted by what the picture holds (CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.before = conv(WIDTH, 24)
        self.kernels = nn.Parameter(torch.randn(4, 32, 24, 3, 3) / 12)
        self.route = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        n, c, h, w = x.shape
        share = torch.sigmoid(self.route(x.mean((2, 3))))
        kernel = torch.einsum("nk,koihw->noihw", share, self.kernels).reshape(n * 32, c, 3, 3)
        return F.conv2d(x.reshape(1, n * c, h, w), kernel, padding=1, groups=n).reshape(n, 32, h, w)


@block("kernels that depend on the picture (CondConv)")
def mixed_kernels() -> nn.Module:
    return Mixed()


# -- Channels that are cut, joined and gated -------------------------------------------------------------------------


class SplitJoin(nn.Module):
    """Half of the channels go through more layers, all halves are joined: the C2f of YOLOv8."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = conv(WIDTH, 64, 1), conv(128, 32, 1)
        self.steps = nn.ModuleList([conv(32, 32), conv(32, 32)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.into(x).chunk(2, 1))
        for step in self.steps:
            parts.append(step(parts[-1]))
        return self.out(torch.cat(parts, 1))


@block("chunk into halves, concat of four (C2f)")
def chunk_concat() -> nn.Module:
    return SplitJoin()


class Ladder(nn.Module):
    """Uneven parts, each added to the one before (Res2Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = conv(WIDTH, 56, 1), conv(56, 32, 1)
        self.steps = nn.ModuleList([conv(16, 16), conv(16, 16)])

    def forward(self, x: Tensor) -> Tensor:
        rest, one, two, three = self.into(x).split((8, 16, 16, 16), 1)
        two = self.steps[0](one + two)
        three = self.steps[1](two + three)
        return self.out(torch.cat((rest, one, two, three), 1))


@block("uneven split, parts added to each other (Res2Net)")
def uneven_split() -> nn.Module:
    return Ladder()


class Shuffled(nn.Module):
    """Grouped 1×1 convolutions with a shuffle of the channels between them."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = conv(WIDTH, 48, 1, groups=2), conv(48, 32, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        n, c, h, w = y.shape
        return self.out(y.reshape(n, 2, c // 2, h, w).swapaxes(1, 2).flatten(1, 2))


@block("a shuffle of channels between grouped convolutions")
def channel_shuffle() -> nn.Module:
    return Shuffled()


class Gated(nn.Module):
    """Squeeze and excitation by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = conv(WIDTH, 48, 1), conv(48, 32, 1)
        self.squeeze, self.excite = nn.Linear(48, 16), nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((-2, -1))))))
        return self.out(y * gate[..., None, None])


@block("squeeze and excitation by linear layers")
def squeeze_excite() -> nn.Module:
    return Gated()


class GatedUnit(nn.Module):
    """A gated linear unit on maps: half of the channels gate the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(WIDTH, 96, 3, padding=1), nn.Conv2d(48, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.glu(self.into(x), 1))


@block("a gated linear unit (GLU) on maps")
def gated_unit() -> nn.Module:
    return GatedUnit()


class Largest(nn.Module):
    """Maxout: the larger of two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(WIDTH, 80, 3, padding=1), nn.Conv2d(40, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.into(x).unflatten(1, (40, 2)).amax(2))


@block("maxout: the larger of two neighbours")
def maxout() -> nn.Module:
    return Largest()


class Stacked(nn.Module):
    """Three branches that are stacked and weighted by a softmax over branches for each channel (SKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv(WIDTH, 40, k) for k in (1, 3, 5)])
        self.choose, self.out = nn.Linear(40, 120), conv(40, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([branch(x) for branch in self.branches], 1)
        score = self.choose(maps.sum(1).mean((2, 3))).unflatten(1, (3, 40)).softmax(1)
        return self.out((maps * score[..., None, None]).sum(1))


@block("stacked branches, a softmax over them (SKNet)")
def selected_kernels() -> nn.Module:
    return Stacked()


class Dense(nn.Module):
    """Each layer reads all before it, norm first."""

    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH + 16 * step for step in range(3)]
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in widths])
        self.layers = nn.ModuleList([nn.Conv2d(width, 16, 3, padding=1) for width in widths])
        self.out = conv(WIDTH + 48, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            maps.append(layer(F.relu(norm(torch.cat(maps, 1)))))
        return self.out(torch.cat(maps, 1))


@block("every layer reads all before it (DenseNet)")
def dense() -> nn.Module:
    return Dense()


class Padded(nn.Module):
    """A residual whose shortcut is padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(WIDTH, 40, stride=2), nn.Conv2d(40, 48, 3, padding=1))
        self.out = conv(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 8, 8))
        return self.out(F.relu(self.branch(x) + short))


@block("a shortcut that is padded with channels of zeros")
def padded_shortcut() -> nn.Module:
    return Padded()


class Ghost(nn.Module):
    """Half of the channels are cheap copies of the other half, and what is too many is cut off (GhostNet)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = (outputs + 1) // 2
        self.outputs, self.primary, self.cheap = outputs, conv(inputs, half, 1), conv(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        one = self.primary(x)
        return torch.cat((one, self.cheap(one)), 1)[:, : self.outputs]


@block("cheap copies of channels, the rest sliced off (GhostNet)")
def ghost() -> nn.Module:
    return nn.Sequential(Ghost(WIDTH, 44), Ghost(44, WIDTH))


class Coordinates(nn.Module):
    """Two channels of coordinates, a buffer, beside the map (CoordConv)."""

    def __init__(self) -> None:
        super().__init__()
        axis = torch.linspace(-1, 1, 16)
        self.register_buffer("grid", torch.stack(torch.meshgrid(axis, axis, indexing="ij"))[None])
        self.before, self.after = conv(WIDTH, 40), conv(42, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(torch.cat((x, self.grid.expand(x.shape[0], -1, -1, -1)), 1))


@block("channels of coordinates beside the map (CoordConv)")
def coordinates() -> nn.Module:
    return Coordinates()


class Correlated(nn.Module):
    """Products of all pairs of two maps' channels at each place (bilinear pooling)."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = conv(WIDTH, 8, 1), conv(WIDTH, 12, 1), conv(96, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.left(x)[:, :, None] * self.right(x)[:, None]
        return self.out(pairs.flatten(1, 2))


@block("products of all pairs of channels (bilinear)")
def bilinear_pairs() -> nn.Module:
    return Correlated()


# -- What else networks do -------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Layers whose activations are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(WIDTH, 48), conv(48, 32))

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        found: Tensor = checkpoint(self.layers, x, use_reentrant=False)
        return found


@block("gradient checkpointing")
def checkpointed() -> nn.Module:
    return Checkpointed()


class Separate(nn.Module):
    """Rows and columns by convolutions over one axis, by way of (N·H, C, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Conv1d(WIDTH, 40, 5, padding=2), nn.Conv1d(40, 32, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = F.relu(self.rows(x.permute(0, 2, 1, 3).flatten(0, 1))).unflatten(0, (n, h))
        x = self.columns(x.permute(0, 3, 2, 1).flatten(0, 1)).unflatten(0, (n, w))
        return x.permute(0, 2, 3, 1)


@block("Conv1d over rows, then over columns")
def rows_and_columns() -> nn.Module:
    return Separate()


class Recurrent(nn.Module):
    """A GRU over the rows of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.rows, self.after = conv(WIDTH, 24, 1), nn.GRU(24, 16, batch_first=True), conv(16, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        n, c, h, w = x.shape
        found, _ = self.rows(x.permute(0, 2, 3, 1).reshape(n * h, w, c))
        return self.after(found.reshape(n, h, w, 16).permute(0, 3, 1, 2))


@block("a GRU over rows")
def recurrent() -> nn.Module:
    return Recurrent()


class Spectral(nn.Module):
    """A filter in the frequencies of the map (GFNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = conv(WIDTH, 24, 1), conv(24, 32, 1)
        self.filter = nn.Parameter(torch.randn(24, 16, 9, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        y = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        return self.after(torch.fft.irfft2(y, s=x.shape[-2:], norm="ortho"))


@block("a filter of complex numbers in frequencies (GFNet)", may={"openvino": "openvino cannot load program"})
def frequencies() -> nn.Module:
    return Spectral()


class WithUnused(TwoTasks):
    """Part of the network is computed and thrown away, and part is never called."""

    def __init__(self) -> None:
        super().__init__(conv(WIDTH, 32))
        self.classifier, self.never = nn.Linear(WIDTH, 10), nn.Conv2d(WIDTH, 8, 1)

    def forward(self, image: Tensor) -> Any:
        features = self.middle(self.stem(image))
        _ = self.classifier(features.mean((2, 3)))
        return self.heads(features, image)


@NETWORKS.add("block", "a branch whose result nobody uses, a layer that is never called")
def unused_branch() -> nn.Module:
    return WithUnused()


class InTraining(TwoTasks):
    """A further output while it trains."""

    def __init__(self) -> None:
        super().__init__(conv(WIDTH, 32))
        self.auxiliary = nn.Sequential(conv(WIDTH, 16), nn.Conv2d(16, 4, 1))

    def forward(self, image: Tensor) -> Any:
        early = self.stem(image)
        found = self.heads(self.middle(early), image)
        if self.training:
            found["aux"] = self.auxiliary(early)
        return found


@NETWORKS.add("block", "an auxiliary head in training only")
def training_output() -> nn.Module:
    return InTraining()


class Attribute(TwoTasks):
    """A tensor that is an attribute and no buffer scales one output."""

    def __init__(self) -> None:
        super().__init__(conv(WIDTH, 32))
        self.strides = torch.tensor([4.0, 8.0, 16.0])

    def forward(self, image: Tensor) -> Any:
        found = super().forward(image)
        return {"a": found["a"], "b": found["b"] * self.strides[1]}


@NETWORKS.add("block", "a plain tensor attribute")
def tensor_attribute() -> nn.Module:
    return Attribute()


class Cached(nn.Module):
    """What depends on weights alone is kept from the first call in evaluation on, as LeViT keeps its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.bias, self.kept = conv(WIDTH, 48), nn.Parameter(torch.randn(6, 6)), {}
        self.register_buffer("places", torch.arange(256).reshape(16, 16) % 6, persistent=False)
        self.out = conv(48, 32)

    def train(self, mode: bool = True) -> Cached:
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.kept.get("bias") if not self.training else self.bias.mean(1)[self.places]
        if bias is None:
            bias = self.kept["bias"] = self.bias.mean(1)[self.places]
        return self.out(self.layer(x) + bias)


@block("a cache that is filled in evaluation (LeViT)")
def cached_bias() -> nn.Module:
    return Cached()


class Nested(TwoTasks):
    """Outputs in lists and dicts, with None among them."""

    def forward(self, image: Tensor) -> Any:
        found = super().forward(image)
        return [found["a"], {"inner": (found["b"], None)}, None]


@NETWORKS.add("block", "outputs in lists, dicts and tuples, some None")
def nested_outputs() -> nn.Module:
    return Nested(conv(WIDTH, 32))


class Worded(TwoTasks):
    """A text and a number beside the outputs."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(image) | {"version": "1.0", "scale": 4.0, "classes": 4}


@NETWORKS.add("block", "a text and numbers among the outputs", ignore=("version", "scale", "classes"))
def worded_outputs() -> nn.Module:
    return Worded(conv(WIDTH, 32))


class Chosen(TwoTasks):
    """One output holds as many numbers as the other has above a threshold."""

    def forward(self, image: Tensor) -> Any:
        found = super().forward(image)
        return {"a": found["a"], "b": found["b"][found["b"] > 0]}


@NETWORKS.add("block", "an output whose size depends on the data", refused="so its shape depends on the data")
def data_dependent() -> nn.Module:
    return Chosen(conv(WIDTH, 32))
