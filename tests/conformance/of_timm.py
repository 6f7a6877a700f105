"""Networks of timm, small and with random weights: maps of features, or a classifier's, with two heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from timm.layers import GroupNormAct
from timm.models import metaformer, mlp_mixer, nfnet, resnetv2, tiny_vit
from timm.models.convmixer import ConvMixer
from torch import Tensor, nn

from conformance.case import Collection

NETWORKS = Collection("timm_")
CLASSES = 12


class TwoHeads(nn.Module):
    """What timm calls the features of a network, pooled as its own classifier does, with two linear heads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, width = network, network.head_hidden_size or network.num_features
        self.one, self.two = nn.Linear(width, CLASSES), nn.Linear(width, 3)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.network(image)
        return {"one": self.one(x), "two": self.two(x)}


class Dense(nn.Module):
    """The last two maps of a network, each with a head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        widths = network.feature_info.channels()
        self.network, self.one, self.two = network, nn.Conv2d(widths[-1], 4, 1), nn.Conv2d(widths[-2], 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network(image)
        return self.one(maps[-1]), self.two(maps[-2])


def model(
    name: str,
    about: str,
    size: int = 64,
    dense: bool = False,
    make: Callable[..., nn.Module] | None = None,
    **arguments: Any,
) -> None:
    """Add timm's network `name` with `arguments`, as a classifier of two heads or, `dense`, with heads on two maps.

    `make` builds it where timm's own function of that name fixes the sizes.
    """

    def build() -> nn.Module:
        if make is not None:
            return TwoHeads(make(num_classes=0, **arguments))
        if dense:
            return Dense(timm.create_model(name, features_only=True, **arguments))
        return TwoHeads(timm.create_model(name, num_classes=0, **arguments))

    build.__name__ = f"{name}_maps" if dense else name
    NETWORKS.add("backbone", about, size=size)(build)


model(
    "convnextv2_atto", "global response normalisation", depths=(1, 1, 1, 1), dims=(16, 24, 32, 48), drop_path_rate=0.1
)
model("convnextv2_atto", "the same, as maps", dense=True, depths=(1, 1, 1, 1), dims=(16, 24, 32, 48))
model("swin_tiny_patch4_window7_224", "rolled windows, patch merging", img_size=64, window_size=4,
      embed_dim=24, depths=(2, 2), num_heads=(2, 4))  # fmt: skip
model("pvt_v2_b0", "keys of a reduced map, overlapping patches", depths=(1, 1, 1, 1), embed_dims=(16, 32, 48, 64),
      num_heads=(1, 2, 3, 4))  # fmt: skip
model("dm_nfnet_f0", "weight-standardised, no norms, scaled residuals, a gate",
      make=partial(nfnet.NormFreeNet, nfnet.NfCfg((1, 1, 1, 1), (64, 96, 128, 128), stem_type="deep_quad", stem_chs=32,
                                                  group_size=16, bottle_ratio=0.5, extra_conv=True, num_features=128,
                                                  attn_layer="se", attn_kwargs={"rd_ratio": 0.5},
                                                  skipinit=True)))  # fmt: skip
model("ghostnet_050", "cheap copies of channels")
model("levit_128s", "attention with a cache of biases", size=224)
model("edgenext_xx_small", "split depth-wise steps, attention between channels")
model("efficientnet_b0", "the same, as maps", dense=True)
model("mobilenetv4_conv_small", "universal inverted bottlenecks")
model("mobilevit_xxs", "maps unfolded into tokens")
model("resnetv2_50x1_bit", "weight-standardised, group norms, norm first", make=resnetv2.ResNetV2, layers=[1, 1, 1, 1],
      channels=(32, 64, 96, 128), stem_type="fixed",
      norm_layer=partial(GroupNormAct, num_groups=8))  # fmt: skip
model("resnest14d", "split attention")
model("dla34", "trees of residuals", channels=(16, 16, 24, 32, 40, 48))
model("hrnet_w18_small", "four resolutions exchanged")
model("rexnet_100", "channels that grow by odd steps, padded shortcuts")
model("inception_next_atto", "channels split for four kernels")
model("convmixer_768_32", "depth-wise on patches", make=ConvMixer, dim=48, depth=2)
model(
    "mixer_s32_224",
    "perceptrons over places",
    make=mlp_mixer.MlpMixer,
    img_size=64,
    patch_size=16,
    num_blocks=2,
    embed_dim=48,
)
model("gmlp_ti16_224", "a gate over places", make=mlp_mixer.MlpMixer, img_size=64, patch_size=8, num_blocks=2,
      embed_dim=32, mlp_ratio=6, block_layer=mlp_mixer.SpatialGatingBlock, mlp_layer=mlp_mixer.GatedMlp)  # fmt: skip
model("vit_tiny_patch16_224", "class token, fused attention", img_size=64, depth=2, embed_dim=48, num_heads=3)
model(
    "eva02_tiny_patch14_224",
    "rotary embedding, gated perceptrons",
    size=56,
    img_size=56,
    depth=2,
    embed_dim=48,
    num_heads=3,
)
model("cait_xxs24_224", "talking heads, class attention", img_size=64, depth=2, embed_dim=48, num_heads=3)
model("xcit_nano_12_p16_224", "attention between channels", img_size=64, depth=2, embed_dim=48, num_heads=3)
model("twins_svt_small", "windows and reduced maps", img_size=64, depths=(1, 1, 1, 1), embed_dims=(16, 32, 48, 64),
      num_heads=(1, 2, 3, 4))  # fmt: skip
model("visformer_tiny", "attention on maps by 1×1 convolutions", img_size=64, depth=2)
model("efficientvit_b0", "linear attention of ReLU kernels")
model("fastvit_t8", "branches that can be folded")
model("tiny_vit_5m_224", "attention biases with a cache", make=tiny_vit.TinyVit, embed_dims=(16, 32, 48, 64),
      depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4), window_sizes=(4, 4, 4, 2))  # fmt: skip
model("davit_tiny", "attention over windows, then over channels", depths=(1, 1, 1, 1), embed_dims=(16, 32, 48, 64),
      num_heads=(2, 2, 3, 4))  # fmt: skip
model("starnet_s1", "maps multiplied with each other")
model("mambaout_femto", "gated convolutions", depths=(1, 1, 1, 1), dims=(16, 24, 32, 48))
model("caformer_s18", "separable convolutions, then attention, learned scales", make=metaformer.MetaFormer,
      token_mixers=[metaformer.SepConv, metaformer.SepConv, metaformer.Attention, metaformer.Attention],
      norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
      depths=(1, 1, 1, 1), dims=(16, 24, 32, 64))  # fmt: skip
