"""Finds the networks of the suite by name, and builds them: what the jobs of the suite name as their factory."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn

from conformance.case import Case

OWN = ("own_blocks", "own_mixers", "own_detectors", "own_multi_task")
"""Modules of networks that need no other package than mtlc's."""
OF_OTHERS = {"torchvision": "of_torchvision", "timm": "of_timm", "transformers": "of_transformers"}
"""Package -> the module of its networks. Their names begin with the package's."""


def modules() -> Iterator[str]:
    """The modules whose networks can be built here."""
    yield from OWN
    yield from (module for package, module in OF_OTHERS.items() if find_spec(package) is not None)


def collection(module: str) -> dict[str, Case]:
    """The networks of one module by name."""
    found: dict[str, Case] = import_module(f"conformance.{module}").NETWORKS
    return found


def case(name: str) -> Case:
    """The network of that name. Only its own module is imported. Raises `KeyError`."""
    package = name.partition("_")[0]
    for module in [OF_OTHERS[package]] if package in OF_OTHERS else OWN:
        if name in (found := collection(module)):
            return found[name]
    raise KeyError(f"no network {name!r} in the suite")


def build(name: str) -> nn.Module:
    """The network `name`, the same each time: weights from a fixed seed, batch norms with statistics of their own."""
    torch.manual_seed(0)
    module = case(name).build()
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
                if norm.affine:
                    norm.weight.uniform_(0.5, 1.5)
                    norm.bias.normal_(0, 0.2)
    return module
