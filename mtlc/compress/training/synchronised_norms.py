"""Lets batch norms normalise with the statistics of the batch of all processes, on any device.

Synchronised batch norm, as `torch.nn.SyncBatchNorm`, which runs on a GPU only and takes the place of the layers. Here
the layers stay what they are: within the context, every call of `torch.nn.functional.batch_norm` in training mode is
computed with sums over the processes, those of a supernet's narrower widths too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mtlc.compress.training.process_group import ProcessGroup


class SynchronisedNorms(TorchFunctionMode):
    """Within this context batch norms in training mode see the samples of all processes of `group`."""

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is functional.batch_norm:
            return self._normalised(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _normalised(
        self,
        norm: Any,
        input: Tensor,  # the names are those of torch's function
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            made: Tensor = norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
            return made
        channels = input.shape[1]
        scale = input.new_ones(channels, dtype=torch.float32) if weight is None else weight
        shift = input.new_zeros(channels, dtype=torch.float32) if bias is None else bias
        output, mean, variance, count = _Normalise.apply(input, scale, shift, eps, self._group)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            if running_var is not None:
                unbiased = variance * (count / (count - 1).clamp_min(1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return output  # type: ignore[no-any-return]


class _Normalise(torch.autograd.Function):
    """(x − m) / √(v + ε) · w + b, with m and v over the samples of all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide, channels = x.float(), x.shape[1]
        count_here = wide.numel() // channels
        # In double: these are sums of many numbers. A variance is that within the processes and that between them,
        # and not a difference of squares, which loses digits where the mean is large.
        mean_here, variance_here = (value.double() for value in _statistics(wide))
        *sums, count = group.sum(torch.cat([count_here * mean_here, mean_here.new_tensor([count_here])])).split(
            [channels, 1]
        )
        mean = sums[0] / count
        variance = group.sum(count_here * (variance_here + (mean_here - mean).square())) / count
        mean, variance = mean.float(), variance.float()
        # With statistics that are given torch's own kernel does the rest, as in evaluation.
        output = functional.batch_norm(wide, mean, variance, weight.float(), bias.float(), False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.group, ctx.eps = group, eps
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        wide, inverse = x.float(), (variance + ctx.eps).rsqrt()
        # With given statistics: g·w/σ for x, Σ g·n for w and Σ g for b, n being the normalised x.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient.float(), wide, weight.float(), mean, variance, mean, inverse, False, ctx.eps, [True, True, True]
        )
        # Weights are this process's part: their gradients are added up with all others at the end of the step.
        total = ctx.group.sum(torch.cat([of_bias.double(), of_weight.double()])) / count
        mean_gradient, mean_product = total.split(x.shape[1])
        # The statistics hang on x too: less (mean g + n · mean g·n)·w/σ, which is a line in x for each channel.
        scale = weight.double() * inverse.double()
        slope = scale * mean_product * inverse.double()
        offset = scale * mean_gradient - slope * mean.double()
        of_x = of_x.sub_(torch.addcmul(_spread(offset.float(), x), wide, _spread(slope.float(), x)))
        return of_x.to(x.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each channel, and the mean squared distance from it."""
    if x.device.type == "cpu":  # where `var_mean` takes many times as long
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        return mean, variance
    variance, mean = torch.var_mean(x, [dimension for dimension in range(x.ndim) if dimension != 1], correction=0)
    return mean, variance


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """One value a channel, (C,), as a tensor that goes with `like` (N, C, …)."""
    return values.view(1, -1, *(1 for _ in range(like.ndim - 2)))
