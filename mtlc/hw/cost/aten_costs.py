"""Counts the multiply–accumulates of each ATen operator, and tells what kind of operator it is.

An operator is known by a formula here, by a formula that its author registered with torch
(`torch.utils.flop_counter.register_flop_formula`, two FLOPs to a MAC), by torch's pointwise or reduction tag, or by the
table of those that multiply nothing. Any other of torch's own counts none and is *assumed*: its kind follows from the
shapes that go in and come out, and whoever shows the cost shows its name. One of another library may be a kernel of any
cost, and is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mtlc.errors import UserError

_NO_MACS: dict[str, str] = {
    "norm": """
        native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update
        cudnn_batch_norm miopen_batch_norm native_layer_norm native_group_norm _fused_rms_norm _weight_norm_interface
        linalg_vector_norm renorm
        """,
    "activation": """
        relu relu6 gelu silu sigmoid tanh elu celu selu leaky_relu hardtanh hardswish hardsigmoid softplus mish
        _softmax _log_softmax log_sigmoid_forward glu _prelu_kernel rrelu_with_noise hardshrink softshrink threshold
        _safe_softmax
        """,
    "pool": """
        max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d
        _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d max_unpool2d
        """,
    "resize": """
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
        upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa pixel_shuffle pixel_unshuffle grid_sampler_2d grid_sampler_3d
        """,
    "reduction": """
        sum mean amax amin max min argmax argmin var var_mean std std_mean prod all any cumsum cumprod logsumexp norm
        topk sort kthvalue median mode count_nonzero aminmax logcumsumexp
        """,
    "gather": """
        embedding index index_select gather take scatter scatter_add scatter_reduce index_put index_add index_copy
        masked_fill masked_scatter one_hot _unsafe_index _unsafe_index_put searchsorted bucketize embedding_renorm
        slice_scatter select_scatter diagonal_scatter
        """,
    "copy": """
        cat stack clone _to_copy copy lift_fresh_copy lift_fresh lift constant_pad_nd reflection_pad1d
        reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d roll flip repeat tril
        triu im2col col2im channel_shuffle native_channel_shuffle detach contiguous resize set _reshape_copy view_copy
        _unsafe_view unsafe_split unsafe_chunk repeat_interleave rot90 unfold_copy expand_copy permute_copy
        """,
    "elementwise": """
        native_dropout where clamp polar complex _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask _assert_async
        _assert_scalar
        """,
    "create": """
        empty empty_strided empty_like empty_permuted zeros zeros_like ones ones_like full full_like arange linspace
        scalar_tensor eye new_empty new_zeros new_ones new_full new_empty_strided rand randn rand_like randn_like
        randint bernoulli normal fill zero tril_indices triu_indices
        """,
}
_LIBRARIES: dict[str, dict[str, str]] = {
    "torchvision": {
        "nms": "gather", "roi_align": "pool", "roi_pool": "pool", "ps_roi_align": "pool", "ps_roi_pool": "pool",
        "_interpolate_bilinear2d_aa": "resize", "_interpolate_bicubic2d_aa": "resize",
    },
}  # fmt: skip
"""By library, the operators of its own that multiply nothing."""

_TORCHS_OWN = ("aten", "prims", "rngprims")
"""The namespaces whose operators are all known to be torch's: none of them is a kernel of some library."""

_KIND_OF = {name: "copy" if kind == "create" else kind for kind, names in _NO_MACS.items() for name in names.split()}


def _matmul(a: Any, b: Any) -> int:
    result: int = prod(a.shape) * (b.shape[-1] if b.dim() > 1 else 1)
    return result


def _convolution(x: Any, weight: Any, transposed: bool, out: Any) -> int:
    # weight holds (C_out, C_in / groups, k…), transposed (C_in, C_out / groups, k…): each element meets each position
    # of the output, or of the input where transposed. Groups need no term of their own.
    positions = x if transposed else out
    result: int = weight.numel() * positions.shape[0] * prod(positions.shape[2:])
    return result


def _attention(query: Any, key: Any, value: Any) -> int:
    # Q·Kᵀ: (…, Tq, D)·(…, D, Tk); scores·V: (…, Tq, Tk)·(…, Tk, Dv). A causal mask spares no dense kernel anything.
    result: int = prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return result


def _grouped_product(a: Any, b: Any, out: Any) -> int:
    # Rows are in groups, each with a matrix of its own: (M, K)·(G, K, N) and (G, M, K)·(G, K, N) meet K for every
    # element of the result; of (M, K)·(K, N) to (G, M, N) each group has a share of K.
    positions = out.shape[1:] if a.dim() == 2 and b.dim() == 2 else out.shape
    result: int = prod(positions) * a.shape[-1]
    return result


def _extent(first: Any, second: Any, third: Any, expands: Sequence[Sequence[int]]) -> int:
    # Three tensors are multiplied element by element over the dimensions of all; each lacks those it is expanded by.
    dims = first.dim() + len(expands[0])
    sizes = [1] * dims
    for tensor, missing in zip((first, second, third), expands, strict=True):
        own = iter(tensor.shape)
        for place in range(dims):
            if place not in missing:
                sizes[place] = max(sizes[place], next(own))
    return prod(sizes)


_FORMULAS: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "mm": lambda a, out: _matmul(a[0], a[1]),
    "bmm": lambda a, out: _matmul(a[0], a[1]),
    "mv": lambda a, out: _matmul(a[0], a[1]),
    "dot": lambda a, out: _matmul(a[0], a[1]),
    "vdot": lambda a, out: _matmul(a[0], a[1]),
    "linear": lambda a, out: prod(a[0].shape) * a[1].shape[0],
    "addmm": lambda a, out: _matmul(a[1], a[2]),
    "addmv": lambda a, out: _matmul(a[1], a[2]),
    "baddbmm": lambda a, out: _matmul(a[1], a[2]),
    "addbmm": lambda a, out: _matmul(a[1], a[2]),
    "addr": lambda a, out: prod(out.shape),
    "_int_mm": lambda a, out: _matmul(a[0], a[1]),
    "_scaled_mm": lambda a, out: _matmul(a[0], a[1]),
    "_grouped_mm": lambda a, out: _grouped_product(a[0], a[1], out),
    "_scaled_grouped_mm": lambda a, out: _grouped_product(a[0], a[1], out),
    "_cdist_forward": lambda a, out: prod(out.shape) * a[0].shape[-1],
    "_pdist_forward": lambda a, out: prod(out.shape) * a[0].shape[-1],
    "_trilinear": lambda a, out: _extent(a[0], a[1], a[2], a[3:6]),
    "conv_tbc": lambda a, out: prod(out.shape[:2]) * a[1].numel(),
    "convolution": lambda a, out: _convolution(a[0], a[1], a[6], out),
    "_convolution": lambda a, out: _convolution(a[0], a[1], a[6], out),
}


@dataclass(frozen=True)
class CallCost:
    """The kind and the MACs of one call; `assumed` says that there is no rule, and no MACs were taken for granted."""

    kind: str
    macs: int = 0
    assumed: bool = False


def cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, parametric: bool, where: str) -> CallCost:
    """What one call costs. `parametric` says that an input is a parameter, `where` names the module.

    Raises `UserError` for an operator of another library without a rule.
    """
    packet = func.overloadpacket
    name = packet.__name__
    # Only ATen's own operators go by their name: another library's `linear` may compute something else.
    plain = name.removesuffix("_") if func.namespace == "aten" else ""
    # From the exact to the general: a formula of ours, an author's, the table of operators without products, and last
    # the tags that torch gives. Whatever is left has no known cost, and is no free operator.
    if plain in _FORMULAS:
        kind = "conv" if "convolution" in plain else "linear" if parametric else "matmul"
        return CallCost(kind, _FORMULAS[plain](args, out))
    if plain.startswith("_scaled_dot_product") and len(args) >= 3:
        return CallCost("attention", _attention(*args[:3]))
    if packet in flop_registry:
        return CallCost("custom", int(flop_registry[packet](*args, **kwargs, out_val=out)) // 2)
    if (func.namespace, name) == ("torchvision", "deform_conv2d"):
        return CallCost("conv", _convolution(args[0], args[1], False, out))
    known = _KIND_OF.get(plain) or _LIBRARIES.get(func.namespace, {}).get(name)
    if known is not None:
        return CallCost(known)
    if torch.Tag.pointwise in func.tags and plain:
        return CallCost("elementwise")
    if torch.Tag.reduction in func.tags and plain:
        return CallCost("reduction")
    if is_view(func):
        return CallCost("copy")  # of a tensor that is no buffer of the network, such as a constant
    if func.namespace in _TORCHS_OWN:
        return CallCost(_class_of(args, kwargs, out), assumed=True)
    raise UserError(
        f"[model] {where}: no cost rule for the operator {func}, which is not torch's own and may compute anything, so "
        "it is not counted as free: register one with torch.utils.flop_counter.register_flop_formula (a formula that "
        "returns 0 says that it multiplies nothing)"
    )


def is_view(func: Any) -> bool:
    """Whether what an operator returns is always a view of what it reads: it moves nothing."""
    returned = func._schema.returns
    return bool(returned) and all(one.alias_info is not None and not one.alias_info.is_write for one in returned)


def _class_of(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> str:
    """The kind of an operator without a rule, by what goes in and comes out: as much, less, or anything else."""
    read = [leaf.numel() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    written = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    most = max(read, default=0)
    if not read or max(written) > most:
        return "copy"
    return "elementwise" if max(written) == most else "reduction"
