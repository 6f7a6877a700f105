"""Finds which channels of a network belong together, by following their labels through its exported graph.

Every index along every dimension of a weight is a channel (`ChannelClasses`). Labels say which channel each index of a
tensor belongs to, dimension by dimension, and each operator says what it does to them:

    x (N, C, H, W)      C: conv1's outputs c1 … cC
    x.flatten(2)        (N, C, H·W), C: the same                      moved: run on the numbers of the channels
    x + y               c1 = d1, c2 = d2, …                           element by element: joined
    conv2(x)            C: conv2's outputs; conv2's inputs = c1 …     contracted: the reader's columns go with them
    x.view(N, 2, C/2)   c1 = c(C/2 + 1), …                            spread over two dimensions: joined along one

What an operator without a rule reads is left alone, and the operator is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from mtlc.compress.channels.channel_classes import ChannelClasses, Channels
from mtlc.compress.channels.exported_network import ExportedNetwork, applied, layer_of, operator_name
from mtlc.compress.channels.label_contractions import convolution
from mtlc.compress.channels.label_operators import NORMS, rule_of
from mtlc.compress.channels.label_reductions import channel_norm, takes_statistics
from mtlc.compress.channels.label_site import Choice, Given, Labels, Site
from mtlc.moe.experts import ExpertLinear

_RESHAPES = ("view", "reshape", "unflatten", "flatten", "split", "split_with_sizes", "slice", "narrow", "expand")


@dataclass(frozen=True)
class Tied:
    """Rows of a layer that can only go together, whatever the graph says; `note` is kept of all of them.

    With `why`, none of them can go.
    """

    layer: str
    rows: Sequence[Sequence[int]]
    note: str
    why: str | None = None


class LabelPropagation:
    """The channels of one exported network, after its graph has been followed once.

    `channels` are those of each weight by name and dimension; `norms` those of each norm by its layer; `labels` those
    of each node; `by_position` are grouped convolutions that keep their groups. `preferred` says, by the name of a
    node, which of its choices to take instead of the first; `tied` rows go together whatever the graph says, such as
    those of one attention head.
    """

    def __init__(
        self,
        network: ExportedNetwork,
        module: nn.Module,
        tied: Sequence[Tied] = (),
        preferred: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.network = network
        self.classes = ChannelClasses()
        self.channels: dict[tuple[str, int], Channels] = {}
        self.norms: dict[str, Channels] = {}
        self.labels: dict[fx.Node, Given] = {}
        self.choices: list[Choice] = []
        self.group_norms: list[tuple[Channels, int]] = []
        self.by_position: set[str] = set()
        self.with_statistics: set[fx.Node] = set()
        self._preferred = preferred
        self._fixed: set[fx.Node] = {*network.inputs, *network.constants}
        self._layers = dict(module.named_modules())
        self._norm_layers = {path for path, layer in self._layers.items() if isinstance(layer, NORMS)}
        for node, name in network.weights.items():
            self.labels[node] = self._weight(name)
        for one in tied:
            self._tie(one)
        with torch.no_grad(), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            self._follow()

    def _tie(self, one: Tied) -> None:
        """Join rows of a layer that go together, such as those of one head; or keep them all, with the reason."""
        for attribute in ("weight", "bias"):
            rows = self.channels.get((f"{one.layer}.{attribute}", 0))
            if rows is None:
                continue
            if one.why is not None:
                self.classes.keep(rows, one.why)
            for together in one.rows:
                self.classes.join_all(rows[list(together)])
            self.classes.note(rows, one.note)

    def _weight(self, name: str) -> Labels:
        value = self.network.values[name]
        layer = self._layers.get(name.rpartition(".")[0])
        if value.is_floating_point():
            for dimension, size in enumerate(value.shape):
                if size > 1 and (name, dimension) not in self.channels:
                    self.channels[name, dimension] = self.classes.new(size)
                    if isinstance(layer, ExpertLinear):
                        self.classes.keep(self.channels[name, dimension], "its channels are read or made by experts")
        return {d: self.channels[name, d] for d in range(value.ndim) if (name, d) in self.channels}

    def _follow(self) -> None:
        values: dict[fx.Node, Any] = self.network.arguments()
        for node in self.network.nodes:
            arguments, named = fx.node.map_arg((node.args, node.kwargs), lambda used: values[used])
            values[node] = applied(node, arguments, named)
            if any(used in self._fixed for used in node.all_input_nodes) and not self._labelled(node):
                self._fixed.add(node)
            self.labels[node] = self._given(node, values)
            for used in self.network.done_after(node):
                del values[used]
        for node in self.network.output.all_input_nodes:
            found = self.labels.get(node, {})
            for labels in found if isinstance(found, list) else [found]:
                for channels in labels.values():
                    self.classes.keep(channels, "an output of the network")

    def reshaping(self, classes: set[int]) -> list[fx.Node]:
        """The nodes that reshape tensors with channels of these classes."""
        found = []
        for node in self.network.nodes:
            if operator_name(node) not in _RESHAPES:
                continue
            argument = node.args[0]
            labels = self.labels.get(argument, {}) if isinstance(argument, fx.Node) else {}
            if isinstance(labels, dict) and any(classes & set(self.classes.of(c).tolist()) for c in labels.values()):
                found.append(node)
        return found

    def reshaped_sizes(self, one: int) -> dict[tuple[str, int], int]:
        """The sizes that reshapes make of dimensions with this class, by module: how often the class lies in them."""
        found: dict[tuple[str, int], int] = {}
        for node in self.reshaping({one}):
            given = self.labels.get(node, {})
            argument = node.args[0]
            before = self.labels.get(argument, {}) if isinstance(argument, fx.Node) else {}
            for labels in [before, *(given if isinstance(given, list) else [given])]:
                for channels in labels.values() if isinstance(labels, dict) else ():
                    times = int((self.classes.of(channels) == one).sum())
                    if times:
                        found[layer_of(node), len(channels)] = times
        return found

    def _labelled(self, node: fx.Node) -> bool:
        return any(self.labels.get(used) for used in node.all_input_nodes)

    def _given(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Given:
        if operator_name(node) == "getitem":
            several, place = node.args
            held = self.labels.get(several, {}) if isinstance(several, fx.Node) else {}
            return held[place] if isinstance(held, list) and isinstance(place, int) else {}
        site = Site(
            node, self.classes, values, self.labels, values[node], self._fixed.__contains__, self.network.weights,
            self._preferred.get(node.name, 0),
        )  # fmt: skip
        rule = rule_of(node)
        if rule is None:
            site.keep_all("no rule follows channels through it")
            return [{} for _ in values[node]] if isinstance(values[node], list | tuple) else {}
        given = rule(site)
        self.choices += site.choices
        if rule is channel_norm and takes_statistics(site):
            self.with_statistics.add(node)
        if rule is convolution and site.choices and site.preferred:
            self.by_position.add(layer_of(node))
        self._at_norm(node, site)
        return given

    def _at_norm(self, node: fx.Node, site: Site) -> None:
        """A norm's size and groups are its module's, whether it has weights or not."""
        name = operator_name(node)
        if "norm" not in name or not site.has("input"):
            return
        value = site.value("input")
        dimension = value.ndim - 1 if "layer" in name or "rms" in name else 1
        channels = site.labels("input").get(dimension)
        if channels is None or not isinstance(value, Tensor):
            return
        path = layer_of(node)
        if path in self._norm_layers:
            if path not in self.norms:
                self.norms[path] = self.classes.new(len(channels))
            self.classes.join(self.norms[path], channels)
        if "group_norm" in name:
            groups = site.value("num_groups" if "num_groups" in site.arguments else "group")
            self.group_norms.append((channels, int(groups)))
