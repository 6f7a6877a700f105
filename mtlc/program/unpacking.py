"""Turns layers whose weights cannot lose channels as they are into plain ones that compute the same.

A weight that is computed from others (`torch.nn.utils.parametrize`, weight and spectral norm) becomes the weight that
it is at this moment; training goes on with it as a plain one. `nn.MultiheadAttention` takes its sizes from the width of
what it reads, so that none of its heads can go: `SeparateAttention` has the same weights in layers of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from mtlc.errors import UserError

Step = dict[str, Any]
KIND = "unpack"


class SeparateAttention(nn.Module):
    """`nn.MultiheadAttention` with a linear layer each for queries, keys and values, and sizes of its own.

    It is called as the other is: query (N, L, E), key (N, S, E), value (N, S, E) with `batch_first`, else (L, N, E); or
    without N. Returns the output and, with `need_weights`, the attention weights (N, L, S), a mean over heads unless
    `average_attn_weights` is False.
    """

    in_proj_bias = None  # keeps nn.TransformerEncoderLayer from its fused path

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = packed.num_heads, packed.head_dim
        self.batch_first, self.dropout = packed.batch_first, packed.dropout
        width = packed.embed_dim
        same = packed.in_proj_weight is not None
        weights = (
            packed.in_proj_weight.chunk(3)
            if same
            else (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        )
        biases: tuple[Any, ...] = (None,) * 3 if packed.in_proj_bias is None else packed.in_proj_bias.chunk(3)
        made = [_linear(weight, bias, width) for weight, bias in zip(weights, biases, strict=True)]
        self.q_proj, self.k_proj, self.v_proj = made
        self.out_proj = _linear(packed.out_proj.weight, packed.out_proj.bias, width)
        self.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        sides = [t if batched else t.unsqueeze(0 if self.batch_first else 1) for t in (query, key, value)]
        if not self.batch_first:
            sides = [t.transpose(0, 1) for t in sides]
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (
            layer(t).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer, t in zip(layers, sides, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, batched, q.shape[0], q.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            heads = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not self.batch_first:
            out = out.transpose(0, 1)
        if not batched:
            out = out.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return out, weights

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, batched: bool, batch: int, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to the scores (N, heads, L, S): −∞ where a mask is True."""
        mask = None if attn_mask is None else _added(attn_mask, dtype)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (batch, -1))
        if padding is not None:
            ignored = _added(padding if batched else padding.unsqueeze(0), dtype)[:, None, None, :]
            mask = ignored if mask is None else mask + ignored
        return mask


def unpack(module: nn.Module) -> Step | None:
    """Unpack what can be in `module`, in place; the step that replays it, or None if there was nothing to do."""
    folded = [[path, name] for path, layer in module.named_modules() for name in _computed(layer)]
    attention = [path for path, layer in module.named_modules() if path and _is_packed(layer)]
    if not folded and not attention:
        return None
    step: Step = {"kind": KIND, "folded": folded, "attention": attention}
    replay(module, step)
    return step


def replay(module: nn.Module, step: Step) -> None:
    """Apply a step that `unpack` made. Raises `UserError` where the network has no such layer."""
    for path, name in step.get("folded", ()):
        layer = _layer(module, path)
        if name not in _computed(layer):
            raise UserError(f"the surgery folds {name!r} of {path!r}, which is not computed from others")
        _fold(layer, name)
    for path in step.get("attention", ()):
        layer = _layer(module, path)
        if not isinstance(layer, nn.MultiheadAttention):
            raise UserError(f"the surgery unpacks {path!r}, which is no nn.MultiheadAttention")
        parent, _, name = path.rpartition(".")
        with torch.no_grad():
            setattr(module.get_submodule(parent), name, SeparateAttention(layer))


def _layer(module: nn.Module, path: Any) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise UserError(f"the surgery unpacks {path!r}, which is no layer of the network") from error


def _computed(layer: nn.Module) -> list[str]:
    """The weights of a layer that are computed from others."""
    if parametrize.is_parametrized(layer):
        return sorted(layer.parametrizations)  # type: ignore[arg-type]
    hooks = [h for h in layer._forward_pre_hooks.values() if type(h).__name__ in ("WeightNorm", "SpectralNorm")]
    return sorted(hook.name for hook in hooks)  # type: ignore[attr-defined]


def _fold(layer: nn.Module, name: str) -> None:
    if parametrize.is_parametrized(layer):
        # A deep copy shares the class that torch made for the layer, and removing takes the weight from that class.
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
        return
    kinds = {type(hook).__name__ for hook in layer._forward_pre_hooks.values() if getattr(hook, "name", None) == name}
    if "WeightNorm" in kinds:
        torch.nn.utils.remove_weight_norm(layer, name)
    else:
        torch.nn.utils.remove_spectral_norm(layer, name)
        hooks = layer._load_state_dict_pre_hooks  # torch leaves the one that asks for the norm's own tensors
        for key in [k for k, hook in hooks.items() if "SpectralNorm" in type(getattr(hook, "hook", hook)).__name__]:
            del hooks[key]


def _is_packed(layer: nn.Module) -> bool:
    # A subclass may compute something else with the same weights.
    return type(layer) is nn.MultiheadAttention and layer.bias_k is None and not layer.add_zero_attn


def _linear(weight: Tensor, bias: Tensor | None, rows: int) -> nn.Linear:
    made = nn.Linear(weight.shape[1], rows, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    trainable = weight.requires_grad
    made.weight = nn.Parameter(weight.detach().clone(), trainable)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return made


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
