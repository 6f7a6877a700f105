"""Networks of transformers from tiny configurations with random weights, with two heads where they have one or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.case import Collection

NETWORKS = Collection("transformers_")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VIT = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "patch_size": 8,
    "image_size": 64,
}  # fmt: skip
DETECTION = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 10, "dropout": 0.0, "num_labels": 5,
}  # fmt: skip


def small_resnet(stages: int = 3) -> Any:
    """A ResNet whose last maps are features; detectors replace its batch norms by frozen ones."""
    widths = [24, 32, 48, 64][:stages]
    return hf.ResNetConfig(
        embedding_size=16, hidden_sizes=widths, depths=[1] * stages, layer_type="basic",
        out_features=[f"stage{index + 1}" for index in range(stages)],
    )  # fmt: skip


class Tokens(nn.Module):
    """Tokens of a network, without its first `skip`, as a map of `side`² with two heads."""

    def __init__(self, network: nn.Module, width: int, side: int, skip: int = 1) -> None:
        super().__init__()
        self.network, self.side, self.skip = network, side, skip
        self.depth, self.semseg = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 5, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        tokens = self.network(image).last_hidden_state[:, self.skip :]
        x = tokens.transpose(1, 2).unflatten(2, (self.side, self.side))
        sized = {"size": image.shape[-2:], "mode": "bilinear", "align_corners": False}
        return {"depth": F.interpolate(self.depth(x), **sized), "semseg": F.interpolate(self.semseg(x), **sized)}


class Maps(nn.Module):
    """The last map of a network with a dense head and a classifier."""

    def __init__(self, network: nn.Module, width: int, index: int | None = None) -> None:
        super().__init__()
        self.network, self.index = network, index
        self.dense, self.classes = nn.Conv2d(width, 4, 1), nn.Linear(width, 7)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(image)
        x = found.last_hidden_state if self.index is None else found.feature_maps[self.index]
        return self.dense(x), self.classes(x.mean((2, 3)))


class Named(nn.Module):
    """Some of the outputs of a network, by name."""

    def __init__(self, network: nn.Module, *names: str, **arguments: Any) -> None:
        super().__init__()
        self.network, self.names, self.arguments = network, names, arguments

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.network(pixel_values=image, **self.arguments)
        return {name: getattr(found, name) for name in self.names}


class Classes(nn.Module):
    """A pooled output with two linear heads."""

    def __init__(self, network: nn.Module, width: int, key: str = "pooler_output") -> None:
        super().__init__()
        self.network, self.key = network, key
        self.one, self.two = nn.Linear(width, 7), nn.Linear(width, 3)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = getattr(self.network(image), self.key)
        x = x.flatten(1) if x.ndim == 4 else x
        return self.one(x), self.two(x)


def backbone(about: str, **more: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add a backbone on pictures of 64×64."""
    return NETWORKS.add("backbone", about, **{"size": 64} | more)


def detector(about: str, **more: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add a detector on pictures of 64×64."""
    return NETWORKS.add("detector", about, **{"size": 64} | more)


# -- Backbones -------------------------------------------------------------------------------------------------------


@backbone("separate queries, keys and values, class token")
def vit() -> nn.Module:
    return Tokens(hf.ViTModel(hf.ViTConfig(**VIT, **NO_DROPOUT), add_pooling_layer=False), 48, 8)


@backbone("LayerScale, class token")
def dinov2() -> nn.Module:
    return Tokens(hf.Dinov2Model(hf.Dinov2Config(**VIT)), 48, 8)


@backbone("four register tokens beside the class token")
def dinov2_with_registers() -> nn.Module:
    return Tokens(hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**VIT)), 48, 8, skip=5)


@backbone("rotary embedding, registers, LayerScale")
def dinov3_vit() -> nn.Module:
    return Tokens(hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VIT, num_register_tokens=2)), 48, 8, skip=3)


@backbone("relative position bias for each head")
def beit() -> nn.Module:
    config = hf.BeitConfig(**VIT, **NO_DROPOUT, use_relative_position_bias=True, use_mask_token=False)
    return Tokens(hf.BeitModel(config, add_pooling_layer=False), 48, 8)


@backbone("rolled windows, patch merging")
def swin() -> nn.Module:
    config = hf.SwinConfig(
        image_size=64, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4, out_features=["stage2"]
    )
    return Maps(hf.SwinBackbone(config), 48, 0)


@backbone("keys of a reduced map, overlapping patches")
def pvt_v2() -> nn.Module:
    config = hf.PvtV2Config(
        image_size=64, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[4, 4, 4, 4], out_features=["stage4"],
    )  # fmt: skip
    return Maps(hf.PvtV2Backbone(config), 64, 0)


@backbone("global response normalisation")
def convnextv2() -> nn.Module:
    return Maps(hf.ConvNextV2Model(hf.ConvNextV2Config(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1])), 48)


@backbone("maps unfolded into tokens")
def mobilevit() -> nn.Module:
    config = hf.MobileViTConfig(
        image_size=64, hidden_sizes=[24, 32, 40], neck_hidden_sizes=[16, 16, 24, 24, 32, 32, 64], num_attention_heads=4
    )
    return Maps(hf.MobileViTModel(config), 64)


@backbone("linear attention on maps")
def mobilevitv2() -> nn.Module:
    return Maps(hf.MobileViTV2Model(hf.MobileViTV2Config(image_size=64, width_multiplier=0.25)), 128)


@backbone("attention with a cache of biases")
def levit() -> nn.Module:
    config = hf.LevitConfig(
        image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8],
        down_ops=[["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2]],
    )  # fmt: skip
    return Classes(hf.LevitModel(config), 64)


@backbone("inverted residuals, squeeze and excitation")
def efficientnet() -> nn.Module:
    config = hf.EfficientNetConfig(
        image_size=64, width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640, kernel_sizes=[3, 3, 5],
        in_channels=[32, 16, 24], out_channels=[16, 24, 40], strides=[1, 2, 2], num_block_repeats=[1, 1, 1],
        expand_ratios=[1, 4, 4], depthwise_padding=[], dropout_rate=0.0,
    )  # fmt: skip
    return Maps(hf.EfficientNetModel(config), 640)


@backbone("bottlenecks")
def resnet() -> nn.Module:
    return Maps(hf.ResNetModel(hf.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2])), 64)


@backbone("weight-standardised, group norms")
def bit() -> nn.Module:
    config = hf.BitConfig(embedding_size=32, hidden_sizes=[64, 96], depths=[1, 1], num_groups=8)
    return Maps(hf.BitModel(config), 96)


@backbone("convolutions make queries, keys and values")
def cvt() -> nn.Module:
    config = hf.CvtConfig(
        embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3], drop_rate=[0.0] * 3, cls_token=[False] * 3,
        attention_drop_rate=[0.0] * 3, drop_path_rate=[0.0] * 3,
    )  # fmt: skip
    return Maps(hf.CvtModel(config), 48)


@backbone("pooling mixes tokens")
def poolformer() -> nn.Module:
    config = hf.PoolFormerConfig(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1])
    return Maps(hf.PoolFormerModel(config), 48)


@backbone("focal modulation")
def focalnet() -> nn.Module:
    config = hf.FocalNetConfig(image_size=64, embed_dim=16, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3],
                               hidden_sizes=[16, 32], out_features=["stage2"])  # fmt: skip
    return Maps(hf.FocalNetBackbone(config), 32, 0)


@backbone("efficient additive attention, convolutions")
def swiftformer() -> nn.Module:
    config = hf.SwiftFormerConfig(image_size=64, depths=[1, 1, 1, 1], embed_dims=[16, 24, 32, 48])
    return Maps(hf.SwiftFormerModel(config), 48)


@backbone("units of masked windows, tokens pooled between stages")
def hiera() -> nn.Module:
    config = hf.HieraConfig(embed_dim=16, image_size=[64, 64], patch_kernel=[7, 7], patch_stride=[4, 4],
                            depths=[1, 1, 1], num_heads=[1, 2, 4], num_query_pool=2, masked_unit_size=[4, 4],
                            out_features=["stage3"])  # fmt: skip
    return Maps(hf.HieraBackbone(config), 64, 0)


@backbone("learned downsampling, light blocks")
def hgnet_v2() -> nn.Module:
    config = hf.HGNetV2Config(
        stem_channels=[3, 16, 16], stage_in_channels=[16, 32, 48], stage_mid_channels=[16, 16, 24],
        stage_out_channels=[32, 48, 64], stage_num_blocks=[1, 1, 1], stage_downsample=[False, True, True],
        stage_light_block=[False, False, True], stage_kernel_size=[3, 3, 5], stage_numb_of_layers=[2, 2, 2],
        embedding_size=16, hidden_sizes=[32, 48, 64], depths=[1, 1, 1], out_features=["stage3"],
    )  # fmt: skip
    return Maps(hf.HGNetV2Backbone(config), 64, 0)


# -- Dense prediction ------------------------------------------------------------------------------------------------


class SegformerTasks(nn.Module):
    """SegFormer's encoder with its decoder for segmentation, and a second one for depth."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {
            "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 48, "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0, **NO_DROPOUT,
        }  # fmt: skip
        from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

        self.encoder = hf.SegformerModel(hf.SegformerConfig(**sizes))
        self.semseg = SegformerDecodeHead(hf.SegformerConfig(**sizes, num_labels=5))
        self.depth = SegformerDecodeHead(hf.SegformerConfig(**sizes, num_labels=1))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.encoder(image, output_hidden_states=True).hidden_states
        return {"semseg": self.semseg(maps), "depth": self.depth(maps)}


@NETWORKS.add("multi-task", "SegFormer with a second decoder for depth", size=64)
def segformer_depth() -> nn.Module:
    return SegformerTasks()


@NETWORKS.add("multi-task", "UPerNet on ConvNeXt: pooled pyramid; with its auxiliary head", size=64)
def upernet() -> nn.Module:
    below = hf.ConvNextConfig(
        hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = hf.UperNetConfig(backbone_config=below, hidden_size=32, num_labels=5, auxiliary_in_channels=32,
                              auxiliary_channels=16)  # fmt: skip
    return Upper(hf.UperNetForSemanticSegmentation(config))


class Upper(nn.Module):
    """Both heads of UPerNet."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.network.backbone.forward_with_filtered_kwargs(image).feature_maps
        return {"semseg": self.network.decode_head(maps), "auxiliary": self.network.auxiliary_head(maps)}


@backbone("DPT: tokens reassembled into maps and fused")
def dpt() -> nn.Module:
    config = hf.DPTConfig(
        **{**VIT, "num_hidden_layers": 4}, **NO_DROPOUT, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 24, 32, 32],
        fusion_hidden_size=24, reassemble_factors=[4, 2, 1, 0.5],
    )  # fmt: skip
    return Named(hf.DPTForDepthEstimation(config), "predicted_depth")


@backbone("Depth Anything: DINOv2 below a DPT head", size=56)
def depth_anything() -> nn.Module:
    below = hf.Dinov2Config(
        **{**VIT, "patch_size": 14, "image_size": 56, "num_hidden_layers": 4}, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"], apply_layernorm=True,
    )  # fmt: skip
    config = hf.DepthAnythingConfig(
        backbone_config=below, reassemble_hidden_size=48, patch_size=14, neck_hidden_sizes=[16, 24, 32, 32],
        fusion_hidden_size=24, head_hidden_size=16,
    )  # fmt: skip
    return Named(hf.DepthAnythingForDepthEstimation(config), "predicted_depth")


@backbone("GLPN: SegFormer's encoder, selective fusion for depth")
def glpn() -> nn.Module:
    config = hf.GLPNConfig(
        hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=24,
        drop_path_rate=0.0, **NO_DROPOUT,
    )  # fmt: skip
    return Named(hf.GLPNForDepthEstimation(config), "predicted_depth")


@backbone("super-resolution by Swin blocks and PixelShuffle", size=32)
def swin2sr() -> nn.Module:
    config = hf.Swin2SRConfig(
        image_size=32, embed_dim=24, depths=[2], num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffle"
    )
    return Named(hf.Swin2SRForImageSuperResolution(config), "reconstruction")


@backbone("poses: a simple decoder on ViT maps")
def vitpose() -> nn.Module:
    below = hf.VitPoseBackboneConfig(
        image_size=[64, 64], patch_size=[16, 16], hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        out_indices=[2],
    )  # fmt: skip
    config = hf.VitPoseConfig(backbone_config=below, num_labels=5, scale_factor=4, use_simple_decoder=True)
    return Named(hf.VitPoseForPoseEstimation(config), "heatmaps")


# -- Detectors -------------------------------------------------------------------------------------------------------


class Boxes(nn.Module):
    """Class scores and boxes of a detector of transformers; it is told that the whole picture is one."""

    def __init__(self, network: nn.Module, mask: bool = True) -> None:
        super().__init__()
        self.network, self.mask = network, mask

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        mask = {"pixel_mask": torch.ones_like(image[:, 0], dtype=torch.long)} if self.mask else {}
        found = self.network(pixel_values=image, **mask)
        return {"logits": found.logits, "boxes": found.pred_boxes}


@detector("DETR: frozen norms, learned queries, sine positions")
def detr() -> nn.Module:
    config = hf.DetrConfig(**DETECTION, use_timm_backbone=False, backbone_config=small_resnet())
    return Boxes(hf.DetrForObjectDetection(config))


@detector("Conditional DETR: queries with a place")
def conditional_detr() -> nn.Module:
    config = hf.ConditionalDetrConfig(**DETECTION, use_timm_backbone=False, backbone_config=small_resnet())
    return Boxes(hf.ConditionalDetrForObjectDetection(config))


@detector("DAB-DETR: queries are boxes that are refined")
def dab_detr() -> nn.Module:
    sizes = {**DETECTION, "hidden_size": DETECTION["d_model"]}
    sizes.pop("d_model")
    config = hf.DabDetrConfig(**sizes, use_timm_backbone=False, backbone_config=small_resnet())
    return Boxes(hf.DabDetrForObjectDetection(config))


@detector("Deformable DETR: samples where it says")
def deformable_detr() -> nn.Module:
    config = hf.DeformableDetrConfig(
        **DETECTION, use_timm_backbone=False, backbone_config=small_resnet(), num_feature_levels=3,
        disable_custom_kernels=True,
    )  # fmt: skip
    return Boxes(hf.DeformableDetrForObjectDetection(config))


@detector("YOLOS: detection tokens in a ViT")
def yolos() -> nn.Module:
    config = hf.YolosConfig(**{**VIT, "image_size": [64, 64]}, **NO_DROPOUT, num_detection_tokens=10, num_labels=5)
    return Boxes(hf.YolosForObjectDetection(config), mask=False)


def hybrid_sizes() -> dict[str, Any]:
    """The sizes of RT-DETR and its like, over a small ResNet of its own kind."""
    return {
        "encoder_hidden_dim": 32, "encoder_in_channels": [32, 48, 64], "feat_strides": [8, 16, 32],
        "encoder_ffn_dim": 64, "encoder_attention_heads": 4, "d_model": 32, "num_queries": 10,
        "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 64, "decoder_layers": 2, "decoder_attention_heads": 4,
        "num_denoising": 0, "num_labels": 5, "hidden_expansion": 0.5, "eval_size": None, "disable_custom_kernels": True,
    }  # fmt: skip


def hybrid_backbone() -> Any:
    return hf.RTDetrResNetConfig(
        embedding_size=24, hidden_sizes=[24, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


@detector("RT-DETR: hybrid encoder, the best places become queries")
def rt_detr() -> nn.Module:
    config = hf.RTDetrConfig(**hybrid_sizes(), backbone_config=hybrid_backbone())
    return Boxes(hf.RTDetrForObjectDetection(config), mask=False)


@detector("D-FINE: edges as distributions that are refined")
def d_fine() -> nn.Module:
    sizes = {**hybrid_sizes(), "hidden_expansion": 1.0, "decoder_n_points": [2, 2, 2], "max_num_bins": 8}
    below = hf.HGNetV2Config(
        stem_channels=[3, 16, 16], stage_in_channels=[16, 24, 32, 48], stage_mid_channels=[16, 16, 16, 24],
        stage_out_channels=[24, 32, 48, 64], stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True], stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5], stage_numb_of_layers=[2, 2, 2, 2], embedding_size=16,
        hidden_sizes=[24, 32, 48, 64], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = hf.DFineConfig(**sizes, backbone_config=below)
    return Boxes(hf.DFineForObjectDetection(config), mask=False)


@detector("Mask2Former: masks of queries, deformable attention on pixels", size=64)
def mask2former() -> nn.Module:
    below = hf.SwinConfig(image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 4], window_size=2,
                          out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = hf.Mask2FormerConfig(
        backbone_config=below, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64,
        encoder_layers=1, decoder_layers=2, num_attention_heads=4, dim_feedforward=64, num_queries=8, num_labels=5,
    )  # fmt: skip
    return Named(hf.Mask2FormerForUniversalSegmentation(config), "class_queries_logits", "masks_queries_logits")


# -- Mixtures of experts ---------------------------------------------------------------------------------------------


class Sparse(nn.Module):
    """A stem, a block of experts on its tokens, two heads."""

    def __init__(self, block: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, width, 4, 4), block
        self.depth, self.semseg = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        x = (tokens + self.block(tokens)).transpose(1, 2).unflatten(2, x.shape[2:])
        return {"depth": self.depth(x), "semseg": self.semseg(x)}


def experts(block: str, config: Any) -> nn.Module:
    """A sparse block of transformers whose experts run as one product."""
    config._experts_implementation = "batched_mm"
    network = Sparse(getattr(__import__(f"transformers.models.{block.rpartition('.')[0]}", fromlist=["*"]),
                             block.rpartition(".")[2])(config))  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@NETWORKS.add("multi-task", "Mixtral's block of experts", size=32, experts=True)
def mixtral_block() -> nn.Module:
    config = hf.MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2)
    return experts("mixtral.modeling_mixtral.MixtralSparseMoeBlock", config)


@NETWORKS.add("multi-task", "Qwen3's block of experts", size=32, experts=True)
def qwen3_block() -> nn.Module:
    config = hf.Qwen3MoeConfig(hidden_size=16, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2)
    return experts("qwen3_moe.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock", config)
