"""Puts the rounding of INT8 inference into a copy of a network: what `qat` trains with and measures with.

Weights of convolutions, linear layers and experts are rounded symmetrically with one scale per output channel, inputs
of these layers with one scale per tensor whose range is that of calibration samples: the numbers that
`mtlc.export.quantization` has NNCF choose. Gradients pass rounding as if it were not there, and stop where a value is
outside its range (straight-through estimator, Bengio et al., arXiv 1308.3432).

Batch norms need no treatment of their own. Folding multiplies each output channel of a weight by a number s, and
rounding with a scale a from the channel's largest magnitude commutes with that: round(s w / |s a|) |s a| = s round(w /
a) a. So the weight before the norm is rounded exactly as the folded one will be. (But for channels under 1 % of the
layer's largest: NNCF rounds those to the grid of 1 %.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mtlc.errors import UserError
from mtlc.evaluation.splits import batches
from mtlc.export.quantization.targets import LARGEST
from mtlc.moe.experts import Experts
from mtlc.moe.layers import moe_layers
from mtlc.program.placement import placed
from mtlc.program.program import Program

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_INPUT = "input_rounding"


@dataclass(frozen=True)
class Rounded:
    """A copy of a program that rounds; `layers` are those that do, `left_alone` those that do not, with the reason."""

    program: Program
    layers: tuple[str, ...]
    left_alone: dict[str, str]


class InputRounding(nn.Module):
    """Rounds a tensor to 8 bits with one scale: uint8 with a zero point, or int8 with zero point 0 if `symmetric`.

    `seen` has the least and the greatest number of each sample. The range is from the mean of the least to that of the
    greatest (NNCF's MEAN_MINMAX), with 0.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, seen: Sequence[tuple[float, float]], symmetric: bool) -> None:
        super().__init__()
        self.bounds = (-128, 127) if symmetric else (0, 255)
        if symmetric:
            scale, zero = fmean(max(-low, high) for low, high in seen) / 127, 0
        else:
            low = min(fmean(low for low, _ in seen), 0.0)
            high = max(fmean(high for _, high in seen), 0.0)
            zero = round(-low / (high - low) * 255) if high > low else 0
            # 0 must be a number of the grid: the side that rounding the zero point makes too narrow decides.
            scale = max(high / (255 - zero) if zero < 255 else 0.0, -low / zero if zero else 0.0)
        self.register_buffer("scale", torch.tensor(max(scale, torch.finfo(torch.float32).eps)))
        self.register_buffer("zero_point", torch.tensor(zero, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x.float(), self.scale, self.zero_point, *self.bounds).to(x.dtype)


class WeightRounding(nn.Module):
    """Rounds a weight symmetrically with a scale per slice along `axis`; the first `flat` dimensions count as one."""

    def __init__(self, largest: float, axis: int = 0, flat: int = 1) -> None:
        super().__init__()
        self.largest, self.axis, self.flat = largest, axis, flat

    def forward(self, weight: Tensor) -> Tensor:
        w = weight.float().flatten(0, self.flat - 1) if self.flat > 1 else weight.float()
        others = [dimension for dimension in range(w.ndim) if dimension != self.axis]
        scale = (w.detach().abs().amax(others) / self.largest).clamp_min(torch.finfo(torch.float32).eps)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(w, scale, zeros, self.axis, -128, 127)
        return rounded.view_as(weight).to(weight.dtype)


def rounded(program: Program, data: Any, samples: int, weights: str, symmetric: bool) -> Rounded:
    """A copy of `program` in eval mode that rounds as INT8 inference does; ranges are of the first `samples` of `data`.

    `weights` is ``"full"`` or ``"reduced"``, `symmetric` is of the layers' inputs, both as in a quantisation target.
    Routers and layers that are not called as modules stay as they are. Raises `UserError` naming a layer whose input is
    not finite, and for a network without a layer that can be rounded.
    """
    copy = program.clone()
    copy.module.eval()
    layers, left_alone = _roundable(copy.module)
    seen = _ranges(copy, layers, data, samples)
    for path, layer in [*layers.items()]:
        if not all(math.isfinite(bound) for bounds in seen[path] for bound in bounds):
            raise UserError(f"layer {path!r}: its input on the calibration split has NaN or infinite values")
        if not seen[path]:
            left_alone[path] = "it is not called as a module, with its input first"
            del layers[path]
            continue
        layer.add_module(_INPUT, InputRounding(seen[path], symmetric))
        layer.register_forward_pre_hook(_round_input)
        for holder, rounding in _weights(layer, LARGEST[weights]):
            parametrize.register_parametrization(holder, "weight", rounding)
    if not layers:
        raise UserError(
            f"{type(program.module).__name__} has no convolution, linear layer or expert that can be rounded"
        )
    return Rounded(copy, tuple(layers), left_alone)


def _ranges(
    program: Program, layers: Mapping[str, nn.Module], data: Any, samples: int
) -> dict[str, list[tuple[float, float]]]:
    """By layer, the least and greatest number of its input at each call; a call is given one sample."""
    seen: dict[str, list[tuple[float, float]]] = {path: [] for path in layers}

    def observer(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def observe(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and inputs[0].numel():  # else its input comes by keyword, or it is an expert without tokens
                seen[path].append((float(inputs[0].min()), float(inputs[0].max())))

        return observe

    hooks = [layer.register_forward_pre_hook(observer(path)) for path, layer in layers.items()]
    try:
        with placed(program.module), torch.no_grad():
            for batch in batches(data, 1, samples):
                program.outputs_on_data(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def unrounded(rounding: Rounded, program: Program) -> Program:
    """A copy of `program`, which `rounding` is of, with the weights of the rounding one as they are before rounding."""
    plain, source = program.clone(), rounding.program.clone().module
    for path in rounding.layers:
        _remove(source.get_submodule(path))
    plain.module.load_state_dict(source.state_dict())
    plain.module.eval()
    return plain


def _remove(layer: nn.Module) -> None:
    delattr(layer, _INPUT)
    layer._forward_pre_hooks = type(layer._forward_pre_hooks)(
        (key, hook) for key, hook in layer._forward_pre_hooks.items() if hook is not _round_input
    )
    for holder, _ in _weights(layer, LARGEST["full"]):
        if parametrize.is_parametrized(holder, "weight"):
            parametrize.remove_parametrizations(holder, "weight", leave_parametrized=False)


def _round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    if not inputs:  # its input comes by keyword
        return inputs
    return layer.get_submodule(_INPUT)(inputs[0]), *inputs[1:]


def _roundable(module: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that INT8 multiplies in, and those of their kind that stay in floating point."""
    routers = {id(part) for layer in moe_layers(module) for part in layer.router.modules()}
    found, left = dict[str, nn.Module](), dict[str, str]()
    for path, layer in module.named_modules():
        if not isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear, Experts)):
            continue
        if id(layer) in routers:
            left[path] = "it decides a discrete choice"
        elif any(parametrize.is_parametrized(holder) for holder, _ in _weights(layer, LARGEST["full"])):
            left[path] = "its weight is parametrised already"
        else:
            found[path] = layer
    return found, left


def _weights(layer: nn.Module, largest: float) -> Iterator[tuple[nn.Module, WeightRounding]]:
    """The modules that hold the layer's weights, and how each is rounded.

    Of experts, the first product has a scale per expert and channel, the second a scale per channel: those are the
    output channels of the two matrices that the ``masked`` form multiplies with.
    """
    if isinstance(layer, Experts):
        yield layer.fc1, WeightRounding(largest, flat=2)
        yield layer.fc2, WeightRounding(largest, axis=1)
    else:
        yield layer, WeightRounding(largest, axis=1 if isinstance(layer, _TRANSPOSED) else 0)
