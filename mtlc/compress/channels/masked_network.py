"""Compares a network that lost channels with its own graph, in which they are masked: the check behind every unit.

The graph is the whole network's, with the labels of every tensor. Masked, an element that belongs to a removed channel
is zero, and what a norm or a mean takes over channels it takes over the others. Nothing is rebuilt, so no reshape can
go wrong: where a layer of the network that lost the channels reads other numbers, the network counts on them in a way
that the labels do not tell.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from mtlc.compress.channels.channel_classes import Channels
from mtlc.compress.channels.exported_network import applied, layer_of, operator_name
from mtlc.compress.channels.label_operators import ACROSS, PRODUCTS, rule_of
from mtlc.compress.channels.label_propagation import LabelPropagation
from mtlc.compress.channels.label_reductions import along, layer_norm, reduced
from mtlc.program.outputs import tensors_in

_TOLERANCE = 1e-3
"""Of the largest value that a layer reads. Rounding is far below; a channel taken for another is far above."""

_PLACES = 16
"""How many places of every dimension without channels are compared."""

_READERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


class Mismatch(Exception):
    """The two differ: `classes` are those that may be to blame, none if it is not known."""

    def __init__(self, why: str, classes: set[int]) -> None:
        super().__init__(why)
        self.why, self.classes = why, classes


class MaskedNetwork:
    """The graph of one network under masks."""

    def __init__(self, module: nn.Module, propagation: LabelPropagation) -> None:
        self._module, self._propagation = module, propagation
        layers = dict(module.named_modules())
        self._readers = {path for path, layer in layers.items() if isinstance(layer, _READERS)}
        self._calls = Counter(layer_of(node) for node in propagation.network.nodes if rule_of(node) in ACROSS)

    def compare(self, removed: set[int], lost: Callable[[], Any]) -> None:
        """Compare the graph without the classes `removed` with the network that `lost` runs without them.

        Raises `Mismatch`, or what `lost` raises.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with _reading(self._module, self._readers) as read:
                outputs = tensors_in(lost())
            torch.manual_seed(0)
            expected = self._run(removed, read)
        if len(outputs) != len(expected):
            raise Mismatch("the network has other outputs without its channels", set())
        for found, wanted in zip(outputs, expected, strict=True):
            if found.shape != wanted.shape:
                raise Mismatch("its channels reach an output", set())
            if not _agree(wanted, found):
                raise Mismatch("an output is another than with the channels masked", set())

    def _run(self, removed: set[int], read: Mapping[str, list[Tensor]]) -> list[Tensor]:
        """The outputs; what layers read on the way is compared with `read`."""
        network, values = self._propagation.network, self._propagation.network.arguments()
        calls: dict[str, int] = defaultdict(int)
        for node in network.nodes:
            path = layer_of(node)
            if path in self._readers and rule_of(node) in ACROSS:
                seen = read.get(path, [])
                # The graph has no calls whose results nobody reads: which of a layer's calls are left is not said.
                if len(seen) == self._calls[path]:
                    seen = [seen[calls[path]]]
                if seen:
                    self._compare_read(path, node, values, removed, seen)
                calls[path] += 1
            values[node] = self._applied(node, values, removed)
            for used in network.done_after(node):
                del values[used]
        leaves = [leaf for leaf in tree_leaves(network.output.args) if isinstance(leaf, fx.Node)]
        return [values[leaf] for leaf in leaves if isinstance(values[leaf], Tensor)]

    def _compare_read(
        self, path: str, node: fx.Node, values: Mapping[fx.Node, Any], removed: set[int], seen: Sequence[Tensor]
    ) -> None:
        argument = node.args[0]
        if not isinstance(argument, fx.Node):
            return
        labels = self._propagation.labels.get(argument, {})
        expected, present = values[argument], set[int]()
        labelled = labels if isinstance(labels, dict) else {}
        # Of pictures and rows of tokens a few places say what all would.
        steps = {
            d: -(-size // _PLACES) for d, size in enumerate(expected.shape) if d not in labelled and size > _PLACES
        }
        for dimension, step in steps.items():
            expected = expected[(slice(None),) * dimension + (slice(None, None, step),)]
            seen = [
                s[(slice(None),) * dimension + (slice(None, None, step),)] if s.ndim > dimension else s for s in seen
            ]
        for dimension, channels in labelled.items():
            of = self._propagation.classes.of(channels)
            present |= set(of.tolist()) & removed
            expected = expected.index_select(dimension, _left(of, removed))
        if all(expected.shape != one.shape for one in seen):
            raise Mismatch(f"{path} reads {_sizes(seen[0])} without its channels, not {_sizes(expected)}", present)
        if not any(one.shape == expected.shape and _agree(expected, one) for one in seen):
            raise Mismatch(f"{path} reads other numbers than with the channels masked", present)

    def _applied(self, node: fx.Node, values: Mapping[fx.Node, Any], removed: set[int]) -> Any:
        """The value of a node under masks.

        An element of a removed channel is only ever masked where others are made of it: what works element by element
        or moves elements may as well carry it along. Where a layer reads it, its weight's columns are masked instead.
        """
        if self._is_across(node, removed):
            return self._without(node, values, removed)
        rule = rule_of(node)
        masked: Sequence[fx.Node] = ()
        if rule in ACROSS:
            masked = [used for used in node.args[1:2] if isinstance(used, fx.Node)]
        elif rule in PRODUCTS:
            masked = node.all_input_nodes
        arguments, named = fx.node.map_arg(
            (node.args, node.kwargs),
            lambda used: (
                self._masked(values[used], self._propagation.labels.get(used), removed)
                if used in masked
                else values[used]
            ),
        )
        return applied(node, arguments, named)

    def _is_across(self, node: fx.Node, removed: set[int]) -> bool:
        """Whether a node takes something of all channels that are left: a norm, a mean, a softmax."""
        if not node.args or not isinstance(node.args[0], fx.Node):
            return False
        labels = self._propagation.labels.get(node.args[0], {})
        mixing = rule_of(node) in (reduced, along, layer_norm) or node in self._propagation.with_statistics
        if not mixing or not isinstance(labels, dict):
            return False
        return any(set(self._propagation.classes.of(c).tolist()) & removed for c in labels.values())

    def _without(self, node: fx.Node, values: Mapping[fx.Node, Any], removed: set[int]) -> Any:
        """The node applied to tensors without the channels, and zeros put back where they were."""
        first = node.args[0]
        assert isinstance(first, fx.Node)

        def smaller(used: fx.Node) -> Any:
            value = values[used]
            labels = self._propagation.labels.get(used, {})
            if isinstance(value, Tensor) and isinstance(labels, dict):
                for dimension, channels in labels.items():
                    value = value.index_select(dimension, _left(self._propagation.classes.of(channels), removed))
            return value

        arguments, named = fx.node.map_arg((node.args, node.kwargs), smaller)
        whole, less = values[first], smaller(first)
        if rule_of(node) is layer_norm:
            last: Any = arguments[1]
            arguments = (less, list(less.shape[whole.ndim - len(last) :]), *arguments[2:])
        elif "native_group_norm" in operator_name(node):
            arguments = (*arguments[:3], less.shape[0], less.shape[1], less[0, 0].numel(), *arguments[6:])
        result = applied(node, arguments, named)
        labels = self._propagation.labels.get(node, {})
        if isinstance(result, list | tuple):
            several = labels if isinstance(labels, list) else [labels] * len(result)
            return [self._put_back(one, of, removed) for one, of in zip(result, several, strict=True)]
        return self._put_back(result, labels if isinstance(labels, dict) else {}, removed)

    def _put_back(self, less: Any, labels: Mapping[int, Channels], removed: set[int]) -> Any:
        if not isinstance(less, Tensor):
            return less
        for dimension, channels in labels.items():
            of = self._propagation.classes.of(channels)
            shape = list(less.shape)
            if shape[dimension] == len(of):
                continue
            shape[dimension] = len(of)
            less = less.new_zeros(shape).index_copy_(dimension, _left(of, removed), less)
        return less

    def _masked(self, value: Any, labels: Any, removed: set[int]) -> Any:
        if not isinstance(value, Tensor) or not isinstance(labels, dict):
            return value
        for dimension, channels in labels.items():
            of = self._propagation.classes.of(channels)
            gone = np.isin(of, list(removed))
            if gone.any():
                value = value.index_fill(dimension, torch.from_numpy(gone.nonzero()[0]), 0)
        return value


@contextmanager
def _reading(module: nn.Module, layers: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What layers read in the block, by path and in the order of their calls."""
    read: dict[str, list[Tensor]] = defaultdict(list)

    def keeper(path: str) -> Callable[..., None]:
        def keep(_: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            value = given[0] if given else next(iter(named.values()), None)
            if isinstance(value, Tensor):
                read[path].append(value.detach().clone())  # an activation may be written into it later

        return keep

    hooks = [
        module.get_submodule(path).register_forward_pre_hook(keeper(path), with_kwargs=True) for path in sorted(layers)
    ]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def _left(of: Channels, removed: set[int]) -> Tensor:
    return torch.from_numpy((~np.isin(of, list(removed))).nonzero()[0])


def _agree(expected: Tensor, found: Tensor) -> bool:
    if not expected.is_floating_point():
        return bool(torch.equal(expected, found))
    if expected.numel() == 0:
        return True
    largest = float(torch.linalg.vector_norm(expected, math.inf))
    if math.isfinite(largest):
        return float(torch.linalg.vector_norm(expected - found, math.inf)) <= _TOLERANCE * largest
    apart = (expected - found).abs()
    same = (expected == found) | (expected.isnan() & found.isnan())
    scale = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return bool((same | (apart <= _TOLERANCE * scale)).all())


def _sizes(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def alternate(channels: int, multiple: int) -> Sequence[int]:
    """A third of a unit's channels, in steps of `multiple`: neither what goes nor what stays is one block.

    A third, so that forwards which write down sizes do not find them halved by luck.
    """
    return [c for c in range(channels) if c // multiple % 3 == 0]
