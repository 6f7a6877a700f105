"""Says by which rule labels of channels pass an operator.

Operators fall in few kinds: those that work element by element, move elements, join tensors, read all of a dimension
(contract it) and make another, reduce, normalise, or work on pixels. What is in none of the lists and is not marked as
element-wise by torch has no rule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from mtlc.compress.channels import label_contractions as contractions
from mtlc.compress.channels import label_reductions as reductions
from mtlc.compress.channels import label_rules as rules
from mtlc.compress.channels.exported_network import operator_name
from mtlc.compress.channels.label_site import Given, Site

Rule = Callable[[Site], Given]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip

_POINTWISE = _words("""
    add sub mul div zero clone contiguous to _to_copy type_as detach alias lift_fresh_copy copy dropout feature_dropout
    alpha_dropout zeros_like ones_like full_like empty_like rand_like randn_like masked_fill nan_to_num where silu gelu
    relu6 selu elu celu hardtanh hardswish hardsigmoid mish logsigmoid softplus square maximum minimum lerp _weight_norm
    clamp clamp_min clamp_max pow threshold logit rsub log_sigmoid hardshrink softshrink tanhshrink float_power
    _weight_norm_interface fill positive conj real imag fake_quantize_per_tensor_affine l1_loss
""")
_MOVES = _words("""
    view _unsafe_view reshape permute transpose t numpy_T swapaxes swapdims movedim moveaxis flatten unflatten squeeze
    unsqueeze expand expand_as broadcast_to repeat tile repeat_interleave select narrow unbind pixel_shuffle
    pixel_unshuffle channel_shuffle roll flip fliplr flipud rot90 unfold im2col constant_pad_nd pad reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d index index_select gather
    take_along_dim diagonal as_strided adjoint mT mH view_as reshape_as ravel atleast_1d atleast_2d atleast_3d
    _unsafe_index unsafe_chunk _reshape_alias
""")
_PARTS = _words("split chunk split_with_sizes unsafe_split unsafe_split_with_sizes tensor_split hsplit vsplit dsplit")
_REDUCTIONS = _words("""
    mean sum amax amin aminmax max min var std var_mean std_mean norm linalg_vector_norm logsumexp frobenius_norm
""")
_PICKING = _words("argmax argmin prod median mode sort topk kthvalue any all cumprod cummax cummin nanmedian argsort")
_ALONG = _words("softmax _softmax log_softmax _log_softmax cumsum normalize softmin")
_POOLS = _words("""
    avg_pool max_pool adaptive_avg_pool _adaptive_avg_pool adaptive_max_pool lp_pool max_pool_with_indices
    fractional_max_pool max_unpool
""")
_UPSAMPLES = _words("""
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d grid_sampler
""")
_SILENT = _words("""
    sym_size sym_numel sym_stride size numel arange zeros ones full empty linspace eye scalar_tensor rand randn
    _assert_tensor_metadata _assert_scalar _assert_async new_zeros new_ones new_full new_empty item _local_scalar_dense
    is_nonzero meshgrid tril_indices triu_indices one_hot nonzero result_type
""")


def rule_of(node: fx.Node) -> Rule | None:
    """The rule for an operator, or None."""
    name = operator_name(node)
    if not hasattr(node.target, "_schema"):
        return reductions.silent  # arithmetic on sizes
    found = OPERATORS.get(name)
    if getattr(node.target, "namespace", "aten") == "mtlc":
        return reductions.experts
    if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return rules.pointwise
    return found


OPERATORS: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE, rules.pointwise),
    **dict.fromkeys(_MOVES, rules.moved),
    **dict.fromkeys(_PARTS, rules.parts),
    **dict.fromkeys(_REDUCTIONS, reductions.reduced),
    **dict.fromkeys(_PICKING, reductions.picking),
    **dict.fromkeys(_ALONG, reductions.along),
    **{f"{name}{rank}d": reductions.pixels for name in _POOLS for rank in (1, 2, 3)},
    **{f"max_pool{rank}d_with_indices": reductions.pixels for rank in (1, 2, 3)},
    **dict.fromkeys(_UPSAMPLES, reductions.pixels),
    **dict.fromkeys(_SILENT, reductions.silent),
    **dict.fromkeys(("cat", "concat", "concatenate"), rules.concatenated),
    **dict.fromkeys(("slice_scatter", "select_scatter", "index_put", "scatter", "scatter_add"), rules.scattered),
    **dict.fromkeys(("linear",), contractions.linear),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        contractions.convolution,
    ),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm"), contractions.matrices),
    **dict.fromkeys(
        (
            "batch_norm", "instance_norm", "group_norm", "native_group_norm", "native_batch_norm",
            "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
        ),
        reductions.channel_norm,
    ),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"), reductions.layer_norm),
    "slice": rules.sliced,
    "stack": rules.stacked,
    "scaled_dot_product_attention": contractions.attention,
    "einsum": contractions.einsum,
    "embedding": contractions.embedding,
    "prelu": reductions.slopes,
    "_prelu_kernel": reductions.slopes,
    "glu": reductions.gated,
}  # fmt: skip

PRODUCTS: tuple[Rule, ...] = (contractions.matrices, contractions.attention, contractions.einsum)
"""The rules of operators that multiply activations and sum over a dimension."""
ACROSS: tuple[Rule, ...] = (contractions.linear, contractions.convolution)
"""The rules of layers that read all channels and make others."""
