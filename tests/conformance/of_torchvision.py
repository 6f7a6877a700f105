"""Networks of torchvision, small and with random weights; classifiers get a second head."""

from __future__ import annotations

from typing import Any

import torchvision.models as zoo
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection, segmentation
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlockV2
from torchvision.ops import DeformConv2d, FeaturePyramidNetwork

from conformance.case import Collection

NETWORKS = Collection("torchvision_")
CLASSES = 12


class Maps(nn.Module):
    """A network's map of features (N, C, h, w) with a dense head and a classifier."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features, self.dense, self.classes = features, nn.Conv2d(width, 4, 1), nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.features(image)
        return {"dense": self.dense(x), "classes": self.classes(x.mean((2, 3)))}


class Attached(nn.Module):
    """A classifier whose last layer, `name`, becomes two."""

    def __init__(self, network: nn.Module, name: str, width: int) -> None:
        super().__init__()
        owner, _, last = name.rpartition(".")
        setattr(network.get_submodule(owner), last, nn.Identity())
        self.network, self.one, self.two = network, nn.Linear(width, CLASSES), nn.Linear(width, 3)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.network(image)
        return self.one(x), self.two(x)


@NETWORKS.add("backbone", "residual blocks", size=64)
def resnet18() -> nn.Module:
    return Attached(zoo.ResNet(zoo.resnet.BasicBlock, [1, 1, 1, 1]), "fc", 512)


@NETWORKS.add("backbone", "bottlenecks with grouped convolutions", size=64)
def resnext() -> nn.Module:
    return Attached(zoo.ResNet(zoo.resnet.Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4), "fc", 2048)


@NETWORKS.add("backbone", "plain convolutions, a flattened map", size=32)
def vgg11() -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    network = VGG(make_layers([16, "M", 32, "M", 48, 48, "M"], batch_norm=True), num_classes=CLASSES)
    network.avgpool = nn.AdaptiveAvgPool2d(2)
    network.classifier = nn.Sequential(nn.Linear(48 * 4, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 64))
    return Attached(network, "classifier.3", 64)


@NETWORKS.add("backbone", "every layer reads all before it", size=64)
def densenet() -> nn.Module:
    return Attached(zoo.DenseNet(16, (2, 2, 2), 32), "classifier", 64)


@NETWORKS.add("backbone", "inverted residuals, depth-wise", size=64)
def mobilenet_v2() -> nn.Module:
    return Attached(zoo.mobilenet_v2(width_mult=0.25), "classifier.1", 1280)


@NETWORKS.add("backbone", "squeeze and excitation, hard swish", size=64)
def mobilenet_v3() -> nn.Module:
    return Attached(zoo.mobilenet_v3_small(width_mult=0.5), "classifier.3", 512)


@NETWORKS.add("backbone", "squeeze and excitation, stochastic depth", size=64)
def efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    blocks = [
        MBConvConfig(1, 3, 1, 32, 16, 1), MBConvConfig(4, 3, 2, 16, 24, 2), MBConvConfig(4, 5, 2, 24, 40, 2),
        MBConvConfig(4, 3, 2, 40, 64, 1),
    ]  # fmt: skip
    return Attached(EfficientNet(blocks, 0.2, last_channel=128), "classifier.1", 128)


@NETWORKS.add("backbone", "channel split and shuffle", size=64)
def shufflenet_v2() -> nn.Module:
    return Attached(zoo.ShuffleNetV2([1, 2, 1], [16, 32, 64, 96, 128]), "fc", 128)


@NETWORKS.add("backbone", "fire modules, two branches joined", size=64)
def squeezenet() -> nn.Module:
    return Maps(zoo.squeezenet1_1().features[:8], 256)


@NETWORKS.add("backbone", "four branches joined, auxiliary classifiers in training", size=64)
def googlenet() -> nn.Module:
    class Main(nn.Module):
        """GoogLeNet without its named tuple: auxiliary outputs while it trains, as a dict."""

        def __init__(self) -> None:
            super().__init__()
            self.network = zoo.GoogLeNet(num_classes=CLASSES, aux_logits=True, init_weights=False)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            found = self.network(image)
            if not self.training:
                return {"main": found}
            return {"main": found.logits, "aux1": found.aux_logits1, "aux2": found.aux_logits2}

    return Main()


@NETWORKS.add("backbone", "squeeze and excitation in grouped bottlenecks", size=64)
def regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    stages = BlockParams([1, 1, 2], [16, 32, 64], [8, 8, 16], [1.0] * 3, [2, 2, 2], 0.25)
    return Attached(RegNet(stages), "fc", 64)


@NETWORKS.add("backbone", "layer norm over channels, LayerScale", size=64)
def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return Attached(ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, 64, 2)], 0.1), "classifier.2", 64)


@NETWORKS.add("backbone", "nn.MultiheadAttention, class token, position embedding", size=32)
def vit() -> nn.Module:
    return Attached(zoo.VisionTransformer(32, 8, 2, 4, 48, 96), "heads.head", 48)


@NETWORKS.add("backbone", "rolled windows, relative bias, patch merging", size=64)
def swin() -> nn.Module:
    return Attached(SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.1), "head", 64)


@NETWORKS.add("backbone", "cosine attention, bias from a network, norm behind", size=64)
def swin_v2() -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2

    network = SwinTransformer(
        [4, 4], 32, [2, 2], [2, 4], [4, 4], block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
    )
    return Attached(network, "head", 64)


@NETWORKS.add("backbone", "blocks, then grids, of attention behind convolutions", size=64)
def maxvit() -> nn.Module:
    network = zoo.MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.1, num_classes=CLASSES)
    return Attached(network, "classifier.5", 32)


@NETWORKS.add("multi-task", "LR-ASPP: a gate from a pooled map; with an auxiliary head", size=64)
def lraspp() -> nn.Module:
    class Two(nn.Module):
        """Segmentation, and depth from the same two maps."""

        def __init__(self) -> None:
            super().__init__()
            backbone = zoo.mobilenet_v3_small(width_mult=0.5, dilated=True).features
            from torchvision.models._utils import IntermediateLayerGetter

            low, high = backbone[1].out_channels, backbone[-1].out_channels
            self.backbone = IntermediateLayerGetter(backbone, {"1": "low", str(len(backbone) - 1): "high"})
            self.semseg = segmentation.lraspp.LRASPPHead(low, high, 5, 32)
            self.depth = segmentation.lraspp.LRASPPHead(low, high, 1, 32)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            maps = self.backbone(image)
            sized = {"size": image.shape[-2:], "mode": "bilinear", "align_corners": False}
            return {name: F.interpolate(getattr(self, name)(maps), **sized) for name in ("semseg", "depth")}

    return Two()


@NETWORKS.add("multi-task", "DeepLabV3: dilated branches joined, an auxiliary output", size=64)
def deeplab() -> nn.Module:
    from torchvision.models._utils import IntermediateLayerGetter

    body = zoo.mobilenet_v3_small(width_mult=0.5, dilated=True).features
    features = IntermediateLayerGetter(body, {"3": "aux", str(len(body) - 2): "out"})
    head = segmentation.deeplabv3.DeepLabHead(body[-2].out_channels, 5, (2, 4))
    aux = segmentation.fcn.FCNHead(body[3].out_channels, 3)
    return segmentation.DeepLabV3(features, head, aux)


class Pyramid(nn.Module):
    """Two maps of a ResNet with frozen norms through torchvision's feature pyramid."""

    def __init__(self, width: int = 32) -> None:
        from torchvision.models._utils import IntermediateLayerGetter
        from torchvision.ops import FrozenBatchNorm2d

        super().__init__()
        body = zoo.ResNet(zoo.resnet.BasicBlock, [1, 1, 1, 1], norm_layer=FrozenBatchNorm2d)
        body.fc = None
        self.body = IntermediateLayerGetter(body, {"layer2": "0", "layer3": "1", "layer4": "2"})
        self.pyramid = FeaturePyramidNetwork([128, 256, 512], width)
        self.out_channels = width

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(self.pyramid(self.body(image)).values())


class RawHead(nn.Module):
    """A pyramid and a head that takes its list of maps."""

    def __init__(self, pyramid: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.pyramid, self.head = pyramid, head

    def forward(self, image: Tensor) -> Any:
        return self.head(self.pyramid(image))


@NETWORKS.add("detector", "RetinaNet's raw heads, frozen norms below", size=64)
def retinanet() -> nn.Module:
    return RawHead(Pyramid(), detection.retinanet.RetinaNetHead(32, 3, 5))


@NETWORKS.add("detector", "FCOS's raw heads, group norms", size=64)
def fcos() -> nn.Module:
    return RawHead(Pyramid(), detection.fcos.FCOSHead(32, 1, 5, 2))


@NETWORKS.add("detector", "Faster R-CNN's proposals: a list of maps", size=64)
def rpn() -> nn.Module:
    return RawHead(Pyramid(), detection.rpn.RPNHead(32, 3))


@NETWORKS.add("detector", "SSDlite's raw heads behind MobileNetV3", size=64)
def ssdlite() -> nn.Module:
    class Features(nn.Module):
        """Three maps of MobileNetV3."""

        def __init__(self) -> None:
            super().__init__()
            layers = zoo.mobilenet_v3_small(width_mult=0.5).features
            self.parts = nn.ModuleList([layers[:4], layers[4:9], layers[9:]])

        def forward(self, image: Tensor) -> list[Tensor]:
            maps = [image]
            for part in self.parts:
                maps.append(part(maps[-1]))
            return maps[1:]

    from functools import partial

    features = Features()
    widths = [part[-1].out_channels for part in features.parts]
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    return RawHead(features, detection.ssdlite.SSDLiteHead(widths, [6, 6, 6], 5, norm))


@NETWORKS.add("detector", "RetinaNet with its boxes decoded and filtered", size=64, refused="")
def retinanet_filtered() -> nn.Module:
    return Filtered()


class Filtered(nn.Module):
    """What a detector gives when it filters its boxes itself: as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = retinanet()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        from torchvision.ops import nms

        found = self.raw(image)
        boxes, scores = found["bbox_regression"][0], found["cls_logits"][0].amax(-1)
        corners = boxes.cumsum(-1)
        kept = nms(corners, scores, 0.5)
        return {"boxes": corners[kept], "scores": scores[kept]}


class Deformed(nn.Module):
    """A convolution that reads where another one says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.offset, self.read = nn.Conv2d(24, 18, 3, padding=1), DeformConv2d(24, 32, 3, padding=1)
        self.after = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 40, 3, padding=1), nn.ReLU())
        self.one, self.two = nn.Conv2d(40, 4, 1), nn.Conv2d(40, 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(image)
        x = self.after(self.read(x, self.offset(x)))
        return self.one(x), self.two(x)


@NETWORKS.add("block", "a deformable convolution, a kernel of its own")
def deformable() -> nn.Module:
    return Deformed()
