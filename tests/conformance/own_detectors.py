"""Small detectors whose outputs are raw maps, in the ways in which detectors return them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.case import Collection
from conformance.own_blocks import conv

NETWORKS = Collection()
CLASSES = 5


def silu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, its batch norm, a SiLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, eps=1e-3), nn.SiLU(inplace=True))


class Bottleneck(nn.Module):
    """Two convolutions, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = silu(width, width), silu(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x))


class Partial(nn.Module):
    """Half of the channels through bottlenecks, half past them (YOLOv5's C3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right, self.out = (
            silu(width, width // 2, 1), silu(width, width // 2, 1), silu(width, width, 1)
        )  # fmt: skip
        self.steps = nn.Sequential(Bottleneck(width // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat((self.steps(self.left(x)), self.right(x)), 1))


class Halves(nn.Module):
    """One layer makes both halves, all steps are joined (YOLOv8's C2f)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.into, self.out = silu(inputs, width, 1), silu(width * 3 // 2, width, 1)
        self.step = Bottleneck(width // 2)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.into(x).chunk(2, 1)
        return self.out(torch.cat((one, two, self.step(two)), 1))


class Pooled(nn.Module):
    """Three poolings after each other, joined (SPPF)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = silu(width, width // 2, 1), silu(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.into(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        return self.out(torch.cat(maps, 1))


class Pyramid(nn.Module):
    """Maps at an eighth, a 16th and a 32nd of the size, mixed down and up again (PAN)."""

    def __init__(self, widths: tuple[int, int, int] = (24, 32, 48), split: bool = False) -> None:
        super().__init__()
        a, b, c = widths
        step: Any = (lambda i, o: Halves(i, o)) if split else (lambda i, o: nn.Sequential(silu(i, o, 1), Partial(o)))
        self.stem = nn.Sequential(silu(3, 16, 3, 2), silu(16, 16, 3, 2))
        self.one = nn.Sequential(silu(16, a, 3, 2), step(a, a))
        self.two = nn.Sequential(silu(a, b, 3, 2), step(b, b))
        self.three = nn.Sequential(silu(b, c, 3, 2), step(c, c), Pooled(c))
        self.down2, self.down1 = step(c + b, b), step(b + a, a)
        self.shrink1, self.shrink2 = silu(a, a, 3, 2), silu(b, b, 3, 2)
        self.up2, self.up3 = step(a + b, b), step(b + c, c)

    def forward(self, image: Tensor) -> list[Tensor]:
        p3 = self.one(self.stem(image))
        p4 = self.two(p3)
        p5 = self.three(p4)
        n4 = self.down2(torch.cat((F.interpolate(p5, size=p4.shape[2:]), p4), 1))
        n3 = self.down1(torch.cat((F.interpolate(n4, size=p3.shape[2:]), p3), 1))
        m4 = self.up2(torch.cat((self.shrink1(n3), n4), 1))
        return [n3, m4, self.up3(torch.cat((self.shrink2(m4), p5), 1))]


class AnchorHead(nn.Module):
    """YOLOv5's head: (N, anchors, H, W, 5 + classes) for each scale, decoded in place and joined if `decode`."""

    def __init__(self, widths: tuple[int, ...], anchors: int = 3, decode: bool = False, in_place: bool = True) -> None:
        super().__init__()
        self.each, self.anchors, self.decode, self.in_place = 5 + CLASSES, anchors, decode, in_place
        self.layers = nn.ModuleList([nn.Conv2d(width, anchors * self.each, 1) for width in widths])
        self.stride = torch.tensor([8.0, 16.0, 32.0])  # an attribute and no buffer, as there
        self.register_buffer("sizes", torch.rand(len(widths), anchors, 2) * 4 + 1)

    def forward(self, maps: list[Tensor]) -> Any:
        raw, decoded = [], []
        for index, (layer, features) in enumerate(zip(self.layers, maps, strict=True)):
            y = layer(features)
            n, _, h, w = y.shape
            y = y.view(n, self.anchors, self.each, h, w).permute(0, 1, 3, 4, 2).contiguous()
            raw.append(y)
            if self.decode:
                decoded.append(self._boxes(y.sigmoid().clone(), index, h, w).view(n, -1, self.each))
        return torch.cat(decoded, 1) if self.decode else raw

    def _boxes(self, y: Tensor, index: int, h: int, w: int) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((columns, rows), -1).view(1, 1, h, w, 2).to(y)
        sizes = self.sizes[index].view(1, self.anchors, 1, 1, 2)
        if self.in_place:
            y[..., 0:2] = (y[..., 0:2] * 2 - 0.5 + grid) * self.stride[index]
            y[..., 2:4] = (y[..., 2:4] * 2) ** 2 * sizes
            return y
        xy, wh, scores = y.split((2, 2, self.each - 4), -1)
        return torch.cat(((xy * 2 - 0.5 + grid) * self.stride[index], (wh * 2) ** 2 * sizes, scores), -1)


class Detector(nn.Module):
    """A pyramid and a head."""

    def __init__(self, pyramid: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.pyramid, self.head = pyramid, head

    def forward(self, image: Tensor) -> Any:
        return self.head(self.pyramid(image))


WIDTHS = (24, 32, 48)


@NETWORKS.add("detector", "YOLOv5-like: anchors in a fifth dimension, a list for each scale", size=64)
def yolov5_like() -> nn.Module:
    return Detector(Pyramid(), AnchorHead(WIDTHS))


@NETWORKS.add("detector", "YOLOv5-like, decoded in place, scales flattened and joined", size=64)
def yolov5_decoded() -> nn.Module:
    return Detector(Pyramid(), AnchorHead(WIDTHS, decode=True))


@NETWORKS.add("detector", "YOLOv5-like, decoded by split and concat", size=64)
def yolov5_split() -> nn.Module:
    return Detector(Pyramid(), AnchorHead(WIDTHS, decode=True, in_place=False))


class DistributionHead(nn.Module):
    """YOLOv8's head: box edges as distributions over `bins`, classes beside; joined over scales, decoded if asked."""

    def __init__(self, widths: tuple[int, ...], bins: int = 8, decode: bool = False) -> None:
        super().__init__()
        self.bins, self.decode = bins, decode
        self.boxes = nn.ModuleList([nn.Sequential(silu(w, 32), nn.Conv2d(32, 4 * bins, 1)) for w in widths])
        self.classes = nn.ModuleList(
            [nn.Sequential(silu(w, w, groups=w), silu(w, 24, 1), nn.Conv2d(24, CLASSES, 1)) for w in widths]
        )
        self.expectation = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.expectation.weight.data[:] = torch.arange(bins).view(1, bins, 1, 1)

    def forward(self, maps: list[Tensor]) -> Any:
        found = [torch.cat((b(x), c(x)), 1) for b, c, x in zip(self.boxes, self.classes, maps, strict=True)]
        if not self.decode:
            return found
        joined = torch.cat([one.flatten(2) for one in found], 2)
        box, scores = joined.split((4 * self.bins, CLASSES), 1)
        box = box.view(box.shape[0], 4, self.bins, -1).transpose(2, 1).softmax(1)
        return torch.cat((self.expectation(box).squeeze(1), scores.sigmoid()), 1)


@NETWORKS.add("detector", "YOLOv8-like: C2f, a list of maps, boxes and classes in one", size=64)
def yolov8_like() -> nn.Module:
    return Detector(Pyramid(split=True), DistributionHead(WIDTHS))


@NETWORKS.add("detector", "YOLOv8-like, distributions decoded, scales joined", size=64)
def yolov8_decoded() -> nn.Module:
    return Detector(Pyramid(split=True), DistributionHead(WIDTHS, decode=True))


class DecoupledHead(nn.Module):
    """YOLOX's head: a tower for classes, one for boxes and objectness; a dict with a list for each."""

    def __init__(self, widths: tuple[int, ...], width: int = 24) -> None:
        super().__init__()
        self.stems = nn.ModuleList([silu(w, width, 1) for w in widths])
        self.class_towers = nn.ModuleList([silu(width, width) for _ in widths])
        self.box_towers = nn.ModuleList([silu(width, width) for _ in widths])
        self.classes = nn.ModuleList([nn.Conv2d(width, CLASSES, 1) for _ in widths])
        self.boxes = nn.ModuleList([nn.Conv2d(width, 4, 1) for _ in widths])
        self.objects = nn.ModuleList([nn.Conv2d(width, 1, 1) for _ in widths])

    def forward(self, maps: list[Tensor]) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {"classes": [], "boxes": [], "objects": []}
        for index, features in enumerate(maps):
            x = self.stems[index](features)
            seen, placed = self.class_towers[index](x), self.box_towers[index](x)
            found["classes"].append(self.classes[index](seen))
            found["boxes"].append(self.boxes[index](placed))
            found["objects"].append(self.objects[index](placed))
        return found


@NETWORKS.add("detector", "YOLOX-like: towers apart, a dict of lists", size=64)
def yolox_like() -> nn.Module:
    return Detector(Pyramid(), DecoupledHead(WIDTHS))


class SharedTowers(nn.Module):
    """FCOS's head: one tower for all scales with group norms, a learned scale for each; flattened and joined."""

    def __init__(self, width: int = 32, scales: int = 3) -> None:
        super().__init__()

        def tower() -> nn.Sequential:
            layers = [[nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()] for _ in range(2)]
            return nn.Sequential(*(layer for three in layers for layer in three))

        self.seen, self.placed = tower(), tower()
        self.classes, self.boxes = nn.Conv2d(width, CLASSES, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.tensor(1.0 + s)) for s in range(scales)])

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        classes, boxes, centres = [], [], []
        for scale, features in zip(self.scales, maps, strict=True):
            seen, placed = self.seen(features), self.placed(features)
            classes.append(self.classes(seen).flatten(2).transpose(1, 2))
            boxes.append(F.relu(self.boxes(placed) * scale).flatten(2).transpose(1, 2))
            centres.append(self.centre(placed).flatten(1))
        return {"classes": torch.cat(classes, 1), "boxes": torch.cat(boxes, 1), "centres": torch.cat(centres, 1)}


class TopDown(nn.Module):
    """A feature pyramid: laterals of one width, added from the top down."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = conv(3, 16, stride=2)
        self.stages = nn.ModuleList([conv(i, o, stride=2) for i, o in ((16, 24), (24, 40), (40, 56))])
        self.laterals = nn.ModuleList([nn.Conv2d(w, width, 1) for w in (24, 40, 56)])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(3)])

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        sums = [self.laterals[2](maps[2])]
        for level in (1, 0):
            sums.insert(0, self.laterals[level](maps[level]) + F.interpolate(sums[0], scale_factor=2))
        return [smooth(one) for smooth, one in zip(self.smooth, sums, strict=True)]


@NETWORKS.add("detector", "FCOS-like: one tower for all scales, flattened and joined", size=64)
def fcos_like() -> nn.Module:
    return Detector(TopDown(), SharedTowers())


class Weighted(nn.Module):
    """EfficientDet's BiFPN: maps are added with weights that are normalised; depth-wise separable layers."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.pyramid, self.weights = TopDown(width), nn.ParameterList([nn.Parameter(torch.rand(n)) for n in (2, 3, 2)])
        self.mixes = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width), silu(width, width, 1)) for _ in range(3)]
        )
        self.classes, self.boxes = nn.Conv2d(width, 3 * CLASSES, 1), nn.Conv2d(width, 12, 1)

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        p3, p4, p5 = self.pyramid(image)

        def fused(index: int, *maps: Tensor) -> Tensor:
            weight = F.relu(self.weights[index])
            weight = weight / (weight.sum() + 1e-4)
            return self.mixes[index](sum(weight[i] * one for i, one in enumerate(maps)))

        n3 = fused(0, p3, F.interpolate(p4, scale_factor=2))
        n4 = fused(1, p4, F.interpolate(p5, scale_factor=2), F.max_pool2d(n3, 2))
        n5 = fused(2, p5, F.max_pool2d(n4, 2))
        return [self.classes(x) for x in (n3, n4, n5)], [self.boxes(x) for x in (n3, n4, n5)]


@NETWORKS.add("detector", "EfficientDet-like: maps added with learned weights (BiFPN)", size=64)
def efficientdet_like() -> nn.Module:
    return Weighted()


class Centres(nn.Module):
    """CenterNet's outputs: a heat map, sizes and offsets at a quarter of the size, by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 24, stride=2), conv(24, 40, stride=2), conv(40, 64, stride=2))
        self.up = nn.Sequential(nn.ConvTranspose2d(64, 48, 4, 2, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(48, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, count, 1))
                for name, count in (("heat", CLASSES), ("size", 2), ("offset", 2))
            }
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.up(self.body(image))
        found = {name: head(features) for name, head in self.heads.items()}
        return found | {"heat": found["heat"].sigmoid()}


@NETWORKS.add("detector", "CenterNet-like: heat map, sizes, offsets", size=64)
def centernet_like() -> nn.Module:
    return Centres()


class Boxes(nn.Module):
    """SSD's outputs: a default box's classes and offsets on four maps, permuted, flattened, joined; L2-normed first."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 48, 48, 32)
        self.steps = nn.ModuleList(
            [conv(3, 32, stride=4)]
            + [nn.Sequential(conv(i, o // 2, 1), conv(o // 2, o, stride=2)) for i, o in pairwise(widths)]
        )
        self.scale = nn.Parameter(torch.full((32,), 10.0))
        self.classes = nn.ModuleList([nn.Conv2d(w, 4 * CLASSES, 3, padding=1) for w in widths])
        self.offsets = nn.ModuleList([nn.Conv2d(w, 16, 3, padding=1) for w in widths])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x, classes, offsets = image, [], []
        for index, step in enumerate(self.steps):
            x = step(x)
            seen = F.normalize(x) * self.scale.view(1, -1, 1, 1) if index == 0 else x
            classes.append(self.classes[index](seen).permute(0, 2, 3, 1).flatten(1, 2).flatten(1))
            offsets.append(self.offsets[index](seen).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
        return torch.cat(classes, 1).view(x.shape[0], -1, CLASSES), torch.cat(offsets, 1)


@NETWORKS.add("detector", "SSD-like: an L2 norm with scales, outputs flattened and joined", size=64)
def ssd_like() -> nn.Module:
    return Boxes()


class Queries(nn.Module):
    """A small DETR of plain modules: frozen norms are left out, sine positions, learned queries, an auxiliary list."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 24, stride=2), conv(24, 40, stride=2), conv(40, 48, stride=2))
        self.project = nn.Conv2d(48, width, 1)
        layer = {"d_model": width, "nhead": 4, "dim_feedforward": 64, "dropout": 0.0, "batch_first": True}
        self.encoder = nn.TransformerEncoderLayer(**layer)
        self.decoder = nn.ModuleList([nn.TransformerDecoderLayer(**layer) for _ in range(2)])
        self.queries, self.places = nn.Embedding(10, width), nn.Parameter(torch.randn(64, width) / 5)
        self.classes, self.boxes = nn.Linear(width, CLASSES + 1), nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )  # fmt: skip

    def forward(self, image: Tensor) -> dict[str, Any]:
        memory = self.encoder(self.project(self.body(image)).flatten(2).transpose(1, 2) + self.places)
        x, found = self.queries.weight.expand(image.shape[0], -1, -1), []
        for layer in self.decoder:
            x = layer(x, memory)
            found.append({"logits": self.classes(x), "boxes": self.boxes(x).sigmoid()})
        return found[-1] | ({"auxiliary": found[:-1]} if self.training else {})


@NETWORKS.add("detector", "DETR-like: torch's own layers, queries from an embedding", size=64)
def detr_like() -> nn.Module:
    return Queries()
