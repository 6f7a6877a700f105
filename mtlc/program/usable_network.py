"""Tells a network that can be trained, cut and exported from one that is compiled, scripted, quantised or exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from mtlc.errors import UserError
from mtlc.program.plain_state import settle

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_QUANTISED = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.intrinsic.qat", "torch.ao.nn.qat",
    "torch.ao.quantization.fake_quantize", "torch.ao.quantization.observer", "torchao", "bitsandbytes",
    "optimum.quanto",
)  # fmt: skip
"""Modules and packages whose layers hold integers, or round as if they did."""


def usable_network(made: Any, reference: str | None) -> nn.Module:
    """The network that a factory `made`, without a `DataParallel` around it, and with its plain state settled
    (`mtlc.program.plain_state`).

    Raises `UserError` that names the factory's `reference`, the layer where it is one, and what to return instead:
    for what is no `nn.Module`, and for modules whose layers cannot be read, cut or trained any more. Without a
    `reference` it is the argument `model` of a call, and the message says what to give instead.
    """
    try:
        return _usable(made, "model is" if reference is None else f"[model] factory = {reference!r} returned")
    except UserError as error:
        if reference is not None:
            raise
        raise UserError(_as_argument(str(error))) from None


def _as_argument(message: str) -> str:
    """A message about what a factory returned, about an argument: one is given, not returned."""
    for returned, given in (("it must return", "give"), ("return the", "give the"), (" in the factory", "")):
        message = message.replace(returned, given)
    return message


def _usable(made: Any, where: str) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise UserError(f"{where} {_described(made)}")
    network: nn.Module = made
    while isinstance(network, _PARALLEL):
        network = network.module
    for name, module in network.named_modules():
        why = _unusable(module)
        if why:
            raise UserError(f"{where} a network whose layer {name!r} is {why}" if name else f"{where} {why}")
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        why = _without_values(tensor)
        if why:
            raise UserError(f"{where} a network whose {name!r} {why}")
    settle(network)
    return network


def _described(made: Any) -> str:
    """What a factory returned that is no network, and what it should."""
    kind = type(made).__name__
    if isinstance(made, type):
        return f"the class {made.__name__}: it must return an nn.Module, an object of it: {made.__name__}()"
    if isinstance(made, torch.export.ExportedProgram):
        return f"an {kind}, an exported network: it must return the nn.Module that was exported"
    if isinstance(made, Mapping):
        return f"{kind}: it must return an nn.Module; weights are loaded into it, or named in [model] weights"
    if isinstance(made, tuple | list) and any(isinstance(one, nn.Module) for one in made):
        return f"{kind}: it must return an nn.Module, the network alone"
    if callable(made):
        return f"{kind}: it must return an nn.Module, not what makes or runs one"
    return f"{kind}: it must return an nn.Module"


def _unusable(module: nn.Module) -> str | None:
    """Why a layer cannot be worked on, if so."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module, which cannot be cut or exported: return the nn.Module that was traced or scripted"
    if kind.__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
        return "a module compiled by torch.compile: return the one that was given to it"
    if _is_exported(module):
        return "an exported network, whose shapes are fixed: return the nn.Module that was exported"
    if isinstance(module, _PARALLEL) or kind.__name__ == "FullyShardedDataParallel":
        return f"a {kind.__name__}: return the network without it, on one device"
    if f"{kind.__module__}.".startswith(tuple(f"{package}." for package in _QUANTISED)):
        return f"a {kind.__name__}, quantised already: return the network in floating point, [quantize] does the rest"
    return None


def _is_exported(module: nn.Module) -> bool:
    if type(module).__module__.startswith("torch.export"):
        return True
    if not isinstance(module, torch.fx.GraphModule):
        return False
    # What symbolic tracing makes calls modules and functions; what export makes calls operators on given shapes.
    return any(isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes)


def _without_values(tensor: Tensor) -> str | None:
    """Why a tensor has no numbers that can be read, if so."""
    if isinstance(tensor, UninitializedParameter | nn.parameter.UninitializedBuffer):
        return "has no size yet: run the network once in the factory, so that its lazy layers learn theirs"
    if tensor.is_meta:
        return "has no values: it was made on the device 'meta'; make it on the CPU"
    if tensor.is_quantized or f"{type(tensor).__module__}.".startswith(("torchao.", "bitsandbytes.")):
        return "is quantised already: return the network in floating point, [quantize] does the rest"
    return None
