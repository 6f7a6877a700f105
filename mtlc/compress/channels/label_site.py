"""One operator of the graph as the rules of labels see it: its arguments, their labels, and what may be said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mtlc.compress.channels.channel_classes import ChannelClasses, Channels
from mtlc.compress.channels.exported_network import layer_of, operator_name

Labels = dict[int, Channels]
"""By dimension of a tensor, the channel that each index along it belongs to. Dimensions without are left out."""
Given = Labels | list[Labels]
"""The labels of an operator's result, or of each of its results."""


@dataclass(frozen=True)
class Choice:
    """A place where channels were spread over several dimensions: those that may keep them, the best guess first."""

    node: str
    dimensions: tuple[int, ...]
    channels: Channels


class Site:
    """An operator with the values of its arguments on the example (`values`) and their labels."""

    def __init__(
        self,
        node: fx.Node,
        classes: ChannelClasses,
        values: Mapping[fx.Node, Any],
        labels: Mapping[fx.Node, Given],
        result: Any,
        fixed: Callable[[fx.Node], bool],
        weights: Mapping[fx.Node, str],
        preferred: int,
    ) -> None:
        self.node, self.classes, self.result, self.preferred = node, classes, result, preferred
        self._values, self._labels, self._fixed, self._weights = values, labels, fixed, weights
        self.choices: list[Choice] = []
        self.arguments = _named_arguments(node)

    @property
    def where(self) -> str:
        """The operator and the module that holds it."""
        layer = layer_of(self.node)
        return f"{operator_name(self.node)} in {layer or 'the network itself'}"

    def has(self, name: str) -> bool:
        return isinstance(self.arguments.get(name), fx.Node)

    def labels(self, argument: Any) -> Labels:
        """Of an argument by its name, or of a node; a copy. None for what is no tensor."""
        node = self.arguments.get(argument) if isinstance(argument, str) else argument
        found = self._labels.get(node, {}) if isinstance(node, fx.Node) else {}
        return dict(found) if isinstance(found, dict) else {}

    def value(self, argument: Any) -> Any:
        """Of an argument by its name, or of anything that holds nodes."""
        held = self.arguments.get(argument) if isinstance(argument, str) else argument
        return fx.node.map_arg(held, lambda node: self._values[node])

    def is_fixed(self, argument: Any) -> bool:
        """Whether a tensor's size follows from the network's inputs or a constant, so that no cut changes it."""
        node = self.arguments.get(argument) if isinstance(argument, str) else argument
        return isinstance(node, fx.Node) and self._fixed(node)

    def is_weight(self, argument: str) -> bool:
        """Whether an argument is a weight as it is kept, and nothing computed from one."""
        return self.arguments.get(argument) in self._weights

    def tensors(self) -> list[fx.Node]:
        """All arguments that are tensors, also those in lists."""
        return [node for node in self.node.all_input_nodes if isinstance(self._values.get(node), Tensor)]

    def keep(self, channels: Channels, why: str) -> None:
        """These cannot go: `why` gets the operator and its module."""
        self.classes.keep(channels, f"{why} ({self.where})")

    def keep_all(self, why: str) -> None:
        for node in self.node.all_input_nodes:
            found = self._labels.get(node, {})
            for labels in found if isinstance(found, list) else [found]:
                for channels in labels.values():
                    self.keep(channels, why)

    def join(self, *sides: Channels | None) -> Channels | None:
        """Join what is there of arrays of one length; the first of them, or None."""
        present = [side for side in sides if side is not None]
        for other in present[1:]:
            self.classes.join(present[0], other)
        if not present:
            return None
        # Where the first has none (padding, say), another may: what is not owned by one is owned by the other.
        merged = present[0]
        for other in present[1:]:
            merged = np.where(merged > 0, merged, other)
        return merged

    def moved(self, value: Tensor, labels: Labels, move: Callable[[Tensor], Any]) -> Given:
        """The labels after an operator that only moves elements: it is run on the numbers of the channels."""
        given: list[Labels] = []
        several = False
        for dimension, channels in labels.items():
            shape = [1] * value.ndim
            shape[dimension] = len(channels)
            spread = torch.from_numpy(channels.astype(np.float64)).reshape(shape).expand(value.shape)
            results = move(spread)
            several = isinstance(results, list | tuple)
            results = list(results) if several else [results]
            given = given or [{} for _ in results]
            for found, result in zip(given, results, strict=True):
                self._settle(result, found, len(channels))
        if not labels:
            several = isinstance(self.result, list | tuple)
            given = [{} for _ in self.result] if several else [{}]
        return given if several else given[0]

    def _settle(self, result: Tensor, found: Labels, before: int) -> None:
        """Add to `found` along which dimension the channels of `result` lie now."""
        # What is spread by `expand` is the same all along: one index of it says all.
        for dimension, (size, stride) in enumerate(zip(result.shape, result.stride(), strict=True)):
            if stride == 0 and size > 1:
                result = result.narrow(dimension, 0, 1)
        channels = self.classes.of(result.numpy().astype(np.int64))
        varying = [d for d in range(channels.ndim) if _varies(channels, d)]
        if not varying:
            if channels.size and channels.max() > 0:
                # One channel all over: it was picked out of several, or several were made one.
                self.keep(channels.ravel(), "a single channel is picked" if before > 1 else "a channel stands alone")
            return
        chosen = varying[0]
        if len(varying) > 1:
            order = self._by_size(channels, varying)
            self.choices.append(Choice(self.node.name, tuple(order), np.unique(channels[channels > 0])))
            chosen = order[min(self.preferred, len(order) - 1)]
        rows = np.moveaxis(channels, chosen, 0).reshape(channels.shape[chosen], -1)
        leading = rows.max(axis=1)
        # Those beside each other along the other dimensions can only go together, or no box would be left.
        self.classes.join(leading[:, None], rows)
        leading = self.classes.of(leading)
        if chosen in found:
            # Two kinds of channels flattened into one dimension: only one kind of them can go.
            if self.classes.are_kept(found[chosen]):
                found[chosen] = leading
            else:
                self.keep(leading, "two kinds of channels are flattened into one dimension")
            return
        found[chosen] = leading

    def _by_size(self, channels: Channels, varying: Sequence[int]) -> list[int]:
        if operator_name(self.node) in ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"):
            channel = channels.ndim - 3
            return sorted(varying, key=lambda d: d != channel)
        # Forwards write down the number of groups or heads and leave the rest to follow: the longest dimension most
        # often is what may shrink.
        return sorted(varying, key=lambda d: (-channels.shape[d], -d))


def _varies(channels: Channels, dimension: int) -> bool:
    if channels.shape[dimension] < 2:
        return False
    return bool(((channels != channels.max(axis=dimension, keepdims=True)) & (channels > 0)).any())


def _named_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments by the names of the operator's schema, positional and named alike."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
