"""Small networks of two and more tasks, in the ways in which the literature couples tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.case import Collection
from conformance.own_blocks import conv
from conformance.own_detectors import AnchorHead, Pyramid

NETWORKS = Collection()
TASKS: Mapping[str, int] = {"semseg": 5, "depth": 1, "normals": 3}


def grown(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Residual(nn.Module):
    """Two convolutions with a shortcut that is projected."""

    def __init__(self, inputs: int, outputs: int, stride: int = 2) -> None:
        super().__init__()
        self.one = conv(inputs, outputs, stride=stride)
        self.two = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(self.one(x)) + self.short(x))


class Backbone(nn.Module):
    """Maps of 24, 40 and 56 channels at a quarter, an eighth and a 16th of the size."""

    def __init__(self, widths: Sequence[int] = (24, 40, 56)) -> None:
        super().__init__()
        self.stem = conv(3, 16, stride=2)
        self.stages = nn.ModuleList([Residual(i, o) for i, o in pairwise((16, *widths))])

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Cascade(nn.Module):
    """MTCNN's third network: PReLU, pooling, a flattened map, three linear heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(16, 32, 3), nn.PReLU(32), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 48, 2), nn.PReLU(48),
        )  # fmt: skip
        self.hidden, self.slope = nn.Linear(48 * 36, 64), nn.PReLU(64)
        self.face, self.box, self.landmarks = nn.Linear(64, 2), nn.Linear(64, 4), nn.Linear(64, 10)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.body(image).permute(0, 3, 2, 1).flatten(1)  # the order of columns that MTCNN's weights have
        x = self.slope(self.hidden(x))
        return self.face(x).softmax(1), self.box(x), self.landmarks(x)


@NETWORKS.add("multi-task", "MTCNN-like: a permuted map flattened into a linear layer, three heads", size=36)
def mtcnn_like() -> nn.Module:
    return Cascade()


class CrossStitch(nn.Module):
    """A network for each task, whose maps are mixed after every stage by a learned matrix (Misra et al., 2016)."""

    def __init__(self, widths: Sequence[int] = (16, 24, 40)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.ModuleList([conv(i, o, stride=2) for _ in range(2)]) for i, o in pairwise((3, *widths))]
        )
        self.stitches = nn.ParameterList([nn.Parameter(torch.eye(2) * 0.8 + 0.1) for _ in widths])
        self.heads = nn.ModuleList([nn.Conv2d(widths[-1], count, 1) for count in (5, 1)])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        one = two = image
        for stage, stitch in zip(self.stages, self.stitches, strict=True):
            x, y = stage[0](one), stage[1](two)
            one, two = stitch[0, 0] * x + stitch[0, 1] * y, stitch[1, 0] * x + stitch[1, 1] * y
        return {"semseg": grown(self.heads[0](one), image), "depth": grown(self.heads[1](two), image)}


@NETWORKS.add("multi-task", "cross-stitch: two networks mixed by learned matrices")
def cross_stitch() -> nn.Module:
    return CrossStitch()


class Fused(nn.Module):
    """NDDR: the maps of both tasks side by side through a 1×1 layer for each task, at every stage."""

    def __init__(self, widths: Sequence[int] = (16, 24, 40)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.ModuleList([conv(i, o, stride=2) for _ in range(2)]) for i, o in pairwise((3, *widths))]
        )
        self.mixes = nn.ModuleList([nn.ModuleList([conv(2 * w, w, 1) for _ in range(2)]) for w in widths])
        self.heads = nn.ModuleList([nn.Conv2d(sum(widths), count, 1) for count in (5, 1)])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = [image, image]
        kept: list[list[Tensor]] = [[], []]
        for stage, mix in zip(self.stages, self.mixes, strict=True):
            joined = torch.cat([layer(x) for layer, x in zip(stage, maps, strict=True)], 1)
            maps = [layer(joined) for layer in mix]
            for task, x in enumerate(maps):
                kept[task].append(grown(x, image))
        return {
            name: head(torch.cat(kept[task], 1))
            for task, (name, head) in enumerate(zip(("a", "b"), self.heads, strict=True))
        }


@NETWORKS.add("multi-task", "NDDR-CNN: both tasks' maps joined at every stage")
def nddr_like() -> nn.Module:
    return Fused()


class AttendedStage(nn.Module):
    """MTAN's attention of one task at one stage: a mask over the shared map, from it and the stage before."""

    def __init__(self, shared: int, before: int, width: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(conv(shared + before, width, 1), nn.Conv2d(width, shared, 1), nn.Sigmoid())
        self.out = nn.Sequential(conv(shared, width), nn.MaxPool2d(2))
        self.before = before

    def forward(self, shared: Tensor, before: Tensor | None) -> Tensor:
        joined = shared if before is None else torch.cat((shared, before), 1)
        return self.out(shared * self.mask(joined))


class Attended(nn.Module):
    """MTAN (Liu et al., CVPR 2019): soft masks of each task over a shared network."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.tasks = nn.ModuleDict(
            {
                task: nn.ModuleList([AttendedStage(24, 0, 24), AttendedStage(40, 24, 24), AttendedStage(56, 24, 32)])
                for task in TASKS
            }
        )
        self.heads = nn.ModuleDict({task: nn.Conv2d(32, count, 1) for task, count in TASKS.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps, found = self.backbone(image), {}
        for task, stages in self.tasks.items():
            x = None
            for stage, shared in zip(stages, maps, strict=True):
                x = stage(shared, x)
            found[task] = grown(self.heads[task](x), image)
        return found


@NETWORKS.add("multi-task", "MTAN-like: masks of each task over shared maps")
def mtan_like() -> nn.Module:
    return Attended()


class Distilled(nn.Module):
    """PAD-Net (Xu et al., CVPR 2018): first predictions become features again, and gate each other."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.backbone, self.reduce = Backbone(), conv(120, 40, 1)
        self.first = nn.ModuleDict({task: nn.Conv2d(40, count, 1) for task, count in TASKS.items()})
        self.back = nn.ModuleDict({task: conv(count, width, 1) for task, count in TASKS.items()})
        self.gates = nn.ModuleDict({task: nn.Conv2d(width, width, 3, padding=1) for task in TASKS})
        self.last = nn.ModuleDict(
            {task: nn.Sequential(conv(width, width), nn.Conv2d(width, count, 1)) for task, count in TASKS.items()}
        )

    def forward(self, image: Tensor) -> dict[str, dict[str, Tensor]]:
        maps = self.backbone(image)
        x = self.reduce(torch.cat([grown(one, maps[0]) for one in maps], 1))
        first = {task: head(x) for task, head in self.first.items()}
        features = {task: self.back[task](one) for task, one in first.items()}
        last = {}
        for task in TASKS:
            gate = torch.sigmoid(self.gates[task](features[task]))
            others = sum(gate * features[other] for other in TASKS if other != task)
            last[task] = grown(self.last[task](features[task] + others), image)
        return {"first": first, "last": last}


@NETWORKS.add("multi-task", "PAD-Net-like: first predictions are read again, and are outputs too")
def padnet_like() -> nn.Module:
    return Distilled()


class Drive(nn.Module):
    """YOLOP: detection, and two segmentations of the same neck (Wu et al., 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid, self.detect = Pyramid(), AnchorHead((24, 32, 48))

        def decoder() -> nn.Sequential:
            up = {"scale_factor": 2, "mode": "nearest"}
            return nn.Sequential(
                conv(24, 24), nn.Upsample(**up), conv(24, 16), nn.Upsample(**up), conv(16, 8), nn.Upsample(**up),
                nn.Conv2d(8, 2, 3, padding=1), nn.Sigmoid(),
            )  # fmt: skip

        self.area, self.lane = decoder(), decoder()

    def forward(self, image: Tensor) -> list[object]:
        maps = self.pyramid(image)
        return [self.detect(maps), self.area(maps[0]), self.lane(maps[0])]


@NETWORKS.add("multi-task", "YOLOP-like: anchors in a fifth dimension, and two segmentations", size=64)
def yolop_like() -> nn.Module:
    return Drive()


class DriveDecoded(Drive):
    """The same, boxes decoded in place and joined over scales."""

    def __init__(self) -> None:
        super().__init__()
        self.detect = AnchorHead((24, 32, 48), decode=True)


@NETWORKS.add("multi-task", "YOLOP-like, boxes decoded and joined", size=64)
def yolop_decoded() -> nn.Module:
    return DriveDecoded()


class Mixture(nn.Module):
    """MMoE (Ma et al., KDD 2018): experts that all run, and a softmax gate over them for each task."""

    def __init__(self, experts: int = 4, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, stride=2), conv(16, 40, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(40, width), nn.ReLU()) for _ in range(experts)])
        self.gates = nn.ModuleList([nn.Linear(40, experts) for _ in range(3)])
        self.towers = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, n)) for n in (3, 1, 7)]
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.body(image)
        stacked = torch.stack([expert(x) for expert in self.experts], 1)
        mixed = [torch.einsum("ne,ned->nd", gate(x).softmax(-1), stacked) for gate in self.gates]
        return [tower(one) for tower, one in zip(self.towers, mixed, strict=True)]


@NETWORKS.add("multi-task", "MMoE: experts stacked and mixed by a gate for each task")
def mmoe_like() -> nn.Module:
    return Mixture()


class Layered(nn.Module):
    """PLE: experts of each task beside shared ones, in two layers (Tang et al., RecSys 2020)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 24, stride=2), conv(24, width, stride=2), nn.AdaptiveAvgPool2d(2))
        self.layers = nn.ModuleList(
            [
                nn.ModuleDict({name: nn.Linear(4 * width if n == 0 else 32, 32) for name in ("one", "two", "shared")})
                for n in range(2)
            ]
        )
        self.gates = nn.ModuleList([nn.ModuleList([nn.Linear(4 * width, 2) for _ in range(2)]) for _ in range(2)])
        self.towers = nn.ModuleList([nn.Linear(32, 5), nn.Linear(32, 2)])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        flat = self.body(image).flatten(1)
        one = two = shared = flat
        for layer, gates in zip(self.layers, self.gates, strict=True):
            both = F.relu(layer["shared"](shared))
            mixed = []
            for gate, name, x in zip(gates, ("one", "two"), (one, two), strict=True):
                weight = gate(flat).softmax(-1)
                mixed.append(weight[:, :1] * F.relu(layer[name](x)) + weight[:, 1:] * both)
            (one, two), shared = mixed, both
        return {"one": self.towers[0](one), "two": self.towers[1](two)}


@NETWORKS.add("multi-task", "PLE: experts of a task beside shared ones, behind a flattened map")
def ple_like() -> nn.Module:
    return Layered()


class Pooling(nn.Module):
    """RefineNet's chained pooling: each pooled and convolved map is added to the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Conv2d(width, width, 1, bias=False) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = top = F.relu(x)
        for step in self.steps:
            top = step(F.max_pool2d(top, 5, 1, 2))
            x = x + top
        return x


class Refined(nn.Module):
    """Light-weight RefineNet for segmentation and depth (Nekrasov et al., ICRA 2019): inverted bottlenecks below."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = conv(3, 16, stride=2)
        self.blocks = nn.ModuleList([Inverted(i, o) for i, o in ((16, 24), (24, 32), (32, 48))])
        self.reduce = nn.ModuleList([nn.Conv2d(w, width, 1, bias=False) for w in (24, 32, 48)])
        self.adapt = nn.ModuleList([nn.Conv2d(width, width, 1, bias=False) for _ in range(2)])
        self.chains = nn.ModuleList([Pooling(width) for _ in range(3)])
        self.before = nn.ModuleDict({t: nn.Conv2d(width, width, 1, groups=width) for t in ("semseg", "depth")})
        self.heads = nn.ModuleDict({"semseg": nn.Conv2d(width, 5, 3, padding=1), "depth": nn.Conv2d(width, 1, 3, 1, 1)})

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x, maps = self.stem(image), []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        x = self.chains[2](self.reduce[2](maps[2]))
        for level in (1, 0):
            x = grown(self.adapt[level](x), maps[level])
            x = self.chains[level](F.relu(self.reduce[level](maps[level]) + x))
        return tuple(self.heads[task](F.relu6(self.before[task](x))) for task in ("semseg", "depth"))


class Inverted(nn.Module):
    """A wide depth-wise convolution between two narrow ones."""

    def __init__(self, inputs: int, outputs: int, stride: int = 2, expand: int = 3) -> None:
        super().__init__()
        wide = inputs * expand
        self.layers = nn.Sequential(
            conv(inputs, wide, 1), conv(wide, wide, 3, stride, groups=wide), nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.same else self.layers(x)


@NETWORKS.add("multi-task", "RefineNet-like: chained pooling, maps fused from the top down")
def refinenet_like() -> nn.Module:
    return Refined()


class Adapted(nn.Module):
    """A shared network with a gate over channels for each task, run once for each (Maninis et al., CVPR 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 24, stride=2), conv(24, 40, stride=2), conv(40, 40)
        self.gates = nn.ModuleDict(
            {task: nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 40), nn.Sigmoid()) for task in TASKS}
        )
        self.heads = nn.ModuleDict({task: nn.Conv2d(40, count, 1) for task, count in TASKS.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.one(self.stem(image))
        found = {}
        for task, head in self.heads.items():
            gate = self.gates[task](F.adaptive_avg_pool2d(x, 1).flatten(1)).view(x.shape[0], -1, 1, 1)
            found[task] = grown(head(self.two(x * gate) + x), image)
        return found


@NETWORKS.add("multi-task", "ASTMT-like: shared layers run once for each task behind its gate")
def astmt_like() -> nn.Module:
    return Adapted()


class Prompted(nn.Module):
    """A transformer with a token for each task, which weighs the map for that task (TaskPrompter)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.prompts, self.places = nn.Parameter(torch.randn(1, 3, width)), nn.Parameter(torch.randn(1, 64, width) / 5)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.heads = nn.ModuleList([nn.Sequential(conv(width, 24), nn.Conv2d(24, n, 1)) for n in TASKS.values()])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.patches(image).flatten(2).transpose(1, 2) + self.places
        x = self.layers(torch.cat((self.prompts.expand(x.shape[0], -1, -1), x), 1))
        prompts, tokens = x[:, :3], x[:, 3:]
        found = {}
        for index, (task, head) in enumerate(zip(TASKS, self.heads, strict=True)):
            weight = torch.sigmoid(tokens @ prompts[:, index].unsqueeze(-1))
            found[task] = grown(head((tokens * weight).transpose(1, 2).unflatten(2, (8, 8))), image)
        return found


@NETWORKS.add("multi-task", "TaskPrompter-like: a token for each task")
def prompted() -> nn.Module:
    return Prompted()


class Exchanged(nn.Module):
    """HRNet-like: two resolutions side by side that are exchanged, then MTI-Net-like heads at both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.high, self.low = conv(3, 24, stride=2), conv(24, 24), conv(24, 40, stride=2)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.highs, self.lows = nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            self.highs.append(conv(24, 24))
            self.lows.append(conv(40, 40))
            self.down.append(nn.Sequential(nn.Conv2d(24, 40, 3, 2, 1, bias=False), nn.BatchNorm2d(40)))
            self.up.append(nn.Sequential(nn.Conv2d(40, 24, 1, bias=False), nn.BatchNorm2d(24)))
        self.heads = nn.ModuleDict({task: nn.Conv2d(64, count, 1) for task, count in TASKS.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        high, low = self.high(x), self.low(x)
        for one, two, down, up in zip(self.highs, self.lows, self.down, self.up, strict=True):
            high, low = one(high), two(low)
            high, low = F.relu(high + grown(up(low), high)), F.relu(low + down(high))
        joined = torch.cat((high, grown(low, high)), 1)
        return {task: grown(head(joined), image) for task, head in self.heads.items()}


@NETWORKS.add("multi-task", "HRNet-like: two resolutions exchanged, three heads")
def hrnet_like() -> nn.Module:
    return Exchanged()


class Nested(nn.Module):
    """A U-Net with a decoder for each task, and depth that reads the segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.decoders = nn.ModuleDict(
            {task: nn.ModuleList([conv(56 + 40, 40), conv(40 + 24, 24)]) for task in ("semseg", "depth")}
        )
        self.semseg, self.depth = nn.Conv2d(24, 5, 1), nn.Conv2d(24 + 5, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps, found = self.backbone(image), {}
        for task, (one, two) in self.decoders.items():
            x = one(torch.cat((grown(maps[2], maps[1]), maps[1]), 1))
            found[task] = two(torch.cat((grown(x, maps[0]), maps[0]), 1))
        semseg = self.semseg(found["semseg"])
        depth = self.depth(torch.cat((found["depth"], semseg.softmax(1)), 1))
        return {"semseg": grown(semseg, image), "depth": F.softplus(grown(depth, image))}


@NETWORKS.add("multi-task", "U-Net-like: a decoder for each task, one reads the other's output")
def unet_tasks() -> nn.Module:
    return Nested()


@NETWORKS.add("multi-task", "mtlc's own residual network with five decoders")
def mtl_resnet() -> nn.Module:
    from mtlc.zoo.resnet import mtl_resnet as network

    return network({"depth": 1, "semseg": 3, "edge": 1}, widths=(16, 24, 32), depths=(1, 1, 1), decoder_width=16)


@NETWORKS.add("multi-task", "M³ViT: experts that tasks share, gates of each", size=16, experts=True)
def m3vit_micro() -> nn.Module:
    from mtlc.zoo.m3vit import m3vit

    sizes = {"width": 24, "heads": 2, "blocks": 2, "patch": 4, "head_width": 16}
    return m3vit("micro", {"depth": 1, "semseg": 3}, image_size=(16, 16), experts=6, top_k=2, **sizes)
