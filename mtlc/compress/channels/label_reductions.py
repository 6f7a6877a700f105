"""Says what norms, reductions, poolings and gates do to the labels of channels."""

from __future__ import annotations

import numpy as np

from mtlc.compress.channels.exported_network import operator_name
from mtlc.compress.channels.label_rules import dimension_of, pointwise
from mtlc.compress.channels.label_site import Given, Labels, Site

_SIZES = ("sym_", "numel", "size", "new_", "_assert", "result_type", "getitem")


def channel_norm(site: Site) -> Given:
    """Batch, group and instance norms: weights and statistics (C,) of x (N, C, …)."""
    labels = site.labels("input")
    names = [n for n in ("weight", "bias", "running_mean", "running_var") if site.has(n)]
    joined = site.join(labels.get(1), *(site.labels(name).get(0) for name in names))
    if joined is not None and 1 in labels:
        labels[1] = joined
    name = operator_name(site.node)
    if "group" in name and 1 in labels:
        site.classes.note(labels[1], "mixed")
    if takes_statistics(site):
        for dimension, channels in labels.items():
            if dimension != 1:
                site.classes.note(channels, "mixed")
                site.classes.note(channels, "read")
    return [labels, {}, {}] if isinstance(site.result, list | tuple) else labels


def takes_statistics(site: Site) -> bool:
    """Whether a norm takes its statistics of what it is given, over all dimensions but that of channels."""
    name = operator_name(site.node)
    if "instance" in name or "group" in name:
        return True
    asked = next((a for a in ("training", "use_input_stats", "train") if a in site.arguments), None)
    return asked is not None and bool(site.value(asked))


def layer_norm(site: Site) -> Given:
    """Over the last dimensions; weights of their shape."""
    labels = site.labels("input")
    rank = site.value("input").ndim
    across = len(site.value("normalized_shape"))
    for dimension in range(rank - across, rank):
        if dimension not in labels:
            continue
        if across > 1:
            site.keep(labels[dimension], "a norm over several dimensions")
        for name in ("weight", "bias"):
            if site.has(name):
                site.join(labels[dimension], site.labels(name).get(dimension - rank + across))
        site.classes.note(labels[dimension], "mixed")
    return [labels, {}, {}] if isinstance(site.result, list | tuple) else labels


def reduced(site: Site) -> Given:
    """Over some dimensions; a mean of fewer channels is the mean that the smaller network takes."""
    node = site.tensors()[0]
    value, labels = site.value(node), site.labels(node)
    first = site.result[0] if isinstance(site.result, list | tuple) else site.result
    if len(site.tensors()) > 1:  # the larger of two tensors
        return pointwise(site)
    gone = _reduced_dimensions(site, value.ndim)
    kept = first.ndim == value.ndim
    given: Labels = {}
    for dimension, channels in labels.items():
        if dimension in gone:
            site.classes.note(channels, "read")
            site.classes.note(channels, "mixed")
            if isinstance(site.result, list | tuple) and operator_name(site.node) in ("max", "min"):
                site.keep(channels, "the place of the largest of its channels may be asked for")
        else:
            given[dimension if kept else dimension - sum(d < dimension for d in gone)] = channels
    return [dict(given) for _ in site.result] if isinstance(site.result, list | tuple) else given


def picking(site: Site) -> Given:
    """What depends on the order or number of channels along a dimension cannot lose any of them."""
    node = site.tensors()[0]
    value, labels = site.value(node), site.labels(node)
    first = site.result[0] if isinstance(site.result, list | tuple) else site.result
    gone = _reduced_dimensions(site, value.ndim)
    given: Labels = {}
    for dimension, channels in labels.items():
        if dimension in gone:
            site.keep(channels, "depends on the order of its channels")
        elif first.ndim == value.ndim:
            given[dimension] = channels
        else:
            given[dimension - sum(d < dimension for d in gone)] = channels
    return [dict(given) for _ in site.result] if isinstance(site.result, list | tuple) else given


def along(site: Site) -> Given:
    """A softmax or a sum so far: each stays what it is, and depends on the others."""
    node = site.tensors()[0]
    labels = site.labels(node)
    dimension = dimension_of(site, site.value(node).ndim, "dim")
    if dimension in labels:
        site.classes.note(labels[dimension], "mixed")
    return labels


def pixels(site: Site) -> Given:
    """Works on the last dimensions of (N, C, …), each channel alone."""
    node = site.tensors()[0]
    value, labels = site.value(node), site.labels(node)
    rank = next((int(c) for c in operator_name(site.node)[::-1] if c.isdigit()), value.ndim - 2)
    given: Labels = {}
    for dimension, channels in labels.items():
        if dimension >= value.ndim - rank:
            site.keep(channels, "its channels lie along pixels")
        else:
            given[dimension] = channels
    for other in site.tensors()[1:]:
        for channels in site.labels(other).values():
            site.keep(channels, "its channels are coordinates")
    return [dict(given) for _ in site.result] if isinstance(site.result, list | tuple) else given


def slopes(site: Site) -> Given:
    """PReLU: one slope for all, or (C,) of x (N, C, …)."""
    node, weight = site.tensors()[:2]
    labels = site.labels(node)
    joined = site.join(labels.get(min(1, site.value(node).ndim - 1)), site.labels(weight).get(0))
    if joined is not None and site.value(weight).numel() > 1:
        labels[min(1, site.value(node).ndim - 1)] = joined
    return labels


def gated(site: Site) -> Given:
    """GLU: the first half times a function of the second."""
    node = site.tensors()[0]
    labels = site.labels(node)
    dimension = dimension_of(site, site.value(node).ndim, "dim", -1)
    if dimension in labels:
        one, other = np.split(labels[dimension], 2)
        site.classes.join(one, other)
        labels[dimension] = one
    return labels


def experts(site: Site) -> Given:
    """Our own operators for experts: their hidden channels are found by structure."""
    for node in site.tensors():
        for channels in site.labels(node).values():
            site.classes.keep(channels, "its channels are read or made by experts")
    return [{} for _ in site.result] if isinstance(site.result, list | tuple) else {}


def silent(site: Site) -> Given:
    """Sizes, constants and checks: nothing of a channel is in the result, or it decides more than a number of it."""
    if not operator_name(site.node).startswith(_SIZES):
        site.keep_all("its channels decide a number")
    return [{} for _ in site.result] if isinstance(site.result, list | tuple) else {}


def _reduced_dimensions(site: Site, rank: int) -> set[int]:
    found = site.value("dim") if "dim" in site.arguments else None
    if found is None or found == []:
        if operator_name(site.node) in ("sort", "topk", "argsort", "kthvalue", "mode", "cumprod"):
            return {rank - 1}
        return set(range(rank))
    return {int(d) % max(1, rank) for d in (found if isinstance(found, list | tuple) else [found])}
