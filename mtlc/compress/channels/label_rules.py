"""Says what operators that work element by element, move elements or join tensors do to the labels of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mtlc.compress.channels.channel_classes import Channels
from mtlc.compress.channels.exported_network import operator_name
from mtlc.compress.channels.label_site import Given, Labels, Site


def pointwise(site: Site) -> Given:
    """Element by element, with broadcasting: what meets belongs together."""
    result = site.result[0] if isinstance(site.result, list | tuple) else site.result
    if not isinstance(result, Tensor):
        site.keep_all("its channels decide a number")
        return {}
    return _met(site, site.tensors(), result)


def _met(site: Site, nodes: Sequence[fx.Node], result: Tensor) -> Labels:
    """The labels where tensors are broadcast against each other to the shape of `result`."""
    met: dict[int, list[Channels]] = {}
    for node in nodes:
        value, ahead = site.value(node), result.ndim - site.value(node).ndim
        for dimension, channels in site.labels(node).items():
            if value.shape[dimension] != result.shape[dimension + ahead]:
                site.keep(channels, "a channel is broadcast to others")
            else:
                met.setdefault(dimension + ahead, []).append(channels)
    labels: Labels = {}
    for dimension, sides in met.items():
        joined = site.join(*sides)
        assert joined is not None
        labels[dimension] = joined
        for node in nodes:
            value, place = site.value(node), dimension - (result.ndim - site.value(node).ndim)
            if place >= 0 and value.shape[place] > 1 and place not in site.labels(node) and site.is_fixed(node):
                site.keep(joined, "its channels meet a tensor whose size is fixed")
    return labels


def moved(site: Site) -> Given:
    """Elements go elsewhere: the operator itself is run on the numbers of the channels."""
    node = site.tensors()[0]
    value, labels = site.value(node), site.labels(node)
    if operator_name(site.node) in ("expand_as", "view_as", "reshape_as"):
        return _as_another(site)
    for other in site.tensors()[1:]:
        for channels in site.labels(other).values():
            site.keep(channels, "its channels are indices")
    return site.moved(value, labels, lambda numbers: _again(site, node, numbers))


def _as_another(site: Site) -> Given:
    """Brought to the shape of another tensor, whose sizes may fall with channels of its own."""
    node, other = site.tensors()[0], site.tensors()[-1]
    value, shaped = site.value(node), site.value(other)
    given = site.moved(
        value,
        site.labels(node),
        lambda numbers: (
            numbers.expand_as(shaped) if operator_name(site.node) == "expand_as" else numbers.reshape(shaped.shape)
        ),
    )
    assert isinstance(given, dict)
    for dimension, channels in site.labels(other).items():
        joined = site.join(given.get(dimension), channels)
        assert joined is not None
        given[dimension] = joined
    return given


def _again(site: Site, replaced: fx.Node, numbers: Tensor) -> Any:
    """The operator's result with `numbers` in the place of one argument."""

    def value(node: fx.Node) -> Any:
        return numbers if node is replaced else site.value(node)

    arguments, named = fx.node.map_arg((site.node.args, site.node.kwargs), value)
    name = operator_name(site.node)
    if name in ("view", "_unsafe_view", "_reshape_alias", "view_as"):  # numbers are spread without strides of their own
        return numbers.reshape(site.result.shape)
    if name in ("constant_pad_nd", "pad") and named.get("mode", "constant") == "constant":
        return torch.ops.aten.constant_pad_nd(numbers, arguments[1], 0.0)
    return site.node.target(*arguments, **named)  # type: ignore[operator]


def parts(site: Site) -> Given:
    """Equal parts of a dimension of channels: forwards count on their being equal, so they lose the same places."""
    given = moved(site)
    node = site.tensors()[0]
    dimension = dimension_of(site, site.value(node).ndim, "dim")
    if isinstance(given, list) and dimension in site.labels(node):
        sizes = [result.shape[dimension] for result in site.result]
        if len(set(sizes)) == 1:
            site.join(*(found.get(dimension) for found in given))
    return given


def sliced(site: Site) -> Given:
    """One of equal slices of a dimension of channels: tied to the others, as the parts of a split are."""
    given = moved(site)
    node = site.tensors()[0]
    value, dimension = site.value(node), dimension_of(site, site.value(node).ndim, "dim", 0)
    channels = site.labels(node).get(dimension)
    size, kept = value.shape[dimension], site.result.shape[dimension]
    start = site.value("start") or 0
    step = site.value("step") or 1
    if channels is not None and 0 < kept < size and step == 1 and size % kept == 0 and start % kept == 0:
        rows = channels.reshape(-1, kept)
        site.classes.join(rows[0], rows)
    return given


def concatenated(site: Site) -> Given:
    """End to end along one dimension; element by element along all others."""
    nodes = [node for node in site.tensors() if site.value(node).numel() or site.value(node).ndim > 1]
    dimension = dimension_of(site, site.result.ndim, "dim", 0)
    labels: Labels = {}
    for d in range(site.result.ndim):
        sides = [site.labels(node).get(d) for node in nodes]
        if all(side is None for side in sides):
            continue
        if d != dimension:
            joined = site.join(*sides)
            assert joined is not None
            labels[d] = joined
            if any(side is None and site.is_fixed(node) for side, node in zip(sides, nodes, strict=True)):
                site.keep(joined, "its channels meet a tensor whose size is fixed")
        else:
            sizes = [site.value(node).shape[d] for node in nodes]
            labels[d] = np.concatenate(
                [np.zeros(n, np.int64) if s is None else s for s, n in zip(sides, sizes, strict=True)]
            )
    return labels


def stacked(site: Site) -> Given:
    """Beside each other along a new dimension, element by element along the old ones."""
    new = dimension_of(site, site.result.ndim, "dim", 0)
    labels: Labels = {}
    for d in range(site.result.ndim - 1):
        joined = site.join(*(site.labels(node).get(d) for node in site.tensors()))
        if joined is not None:
            labels[d + (d >= new)] = joined
    return labels


def scattered(site: Site) -> Given:
    """One tensor with another in a slice of it."""
    into, source = site.tensors()[:2]
    labels = site.labels(into)
    if operator_name(site.node) == "slice_scatter":
        dimension = dimension_of(site, site.value(into).ndim, "dim", 0)
        for d, channels in site.labels(source).items():
            if d == dimension and site.value(source).shape[d] != site.value(into).shape[d]:
                site.keep(channels, "a slice of channels is written")
                site.keep(labels.get(d, channels), "a slice of channels is written")
            else:
                joined = site.join(labels.get(d), channels)
                assert joined is not None
                labels[d] = joined
        if dimension in labels and dimension not in site.labels(source):
            site.keep(labels[dimension], "a slice of channels is written")
        return labels
    site.keep_all("channels are written one by one")
    return labels


def dimension_of(site: Site, rank: int, name: str, default: int = 0) -> int:
    found = site.value(name) if name in site.arguments else None
    return int(default if found is None else found) % max(1, rank)
