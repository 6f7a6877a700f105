"""Says what operators that read all channels of a dimension, and make others, do to the labels of channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from mtlc.compress.channels.channel_classes import Channels
from mtlc.compress.channels.exported_network import operator_name
from mtlc.compress.channels.label_site import Choice, Given, Labels, Site


def linear(site: Site) -> Given:
    """y = x·Wᵀ + b: (…, in) and (out, in)."""
    x, weight = site.labels("input"), site.labels("weight")
    last = site.value("input").ndim - 1
    _contract(site, x.pop(last, None), weight.get(1))
    made = _made(site, weight.get(0), "bias")
    return {**x, **({last: made} if made is not None else {})}


def convolution(site: Site) -> Given:
    """x (N, in, …), weight (out, in / groups, …), or (in, out / groups, …) of a transposed one."""
    name = operator_name(site.node)
    transposed = "transpose" in name or bool(site.value("transposed") if "transposed" in site.arguments else False)
    pixels = site.value("weight").ndim - 2
    x, weight = site.labels("input"), site.labels("weight")
    channel = site.value("input").ndim - pixels - 1
    for dimension, channels in x.items():
        if dimension > channel:
            site.keep(channels, "its channels lie along pixels")
    given = {d: c for d, c in x.items() if d < channel}
    groups = int(site.value("groups") or 1) if "groups" in site.arguments else 1
    read, rows, columns = x.get(channel), weight.get(0), weight.get(1)
    if groups == 1:
        made, of = (columns, rows) if transposed else (rows, columns)
        _contract(site, read, of)
        made = _made(site, made, "bias")
    else:
        made = _grouped(site, read, rows, columns, groups, transposed)
        made = _made(site, made, "bias") if made is not None else None
    return {**given, **({channel: made} if made is not None else {})}


def _grouped(
    site: Site, read: Channels | None, rows: Channels | None, columns: Channels | None, groups: int, transposed: bool
) -> Channels | None:
    """The channels that a grouped convolution makes: a group's outputs and inputs go together.

    Or, as the second choice, the same places of all groups.
    """
    if rows is None:
        site.keep_all("its weight is fixed")
        return None
    site.classes.note(rows, "made")
    if read is None:
        site.keep(rows, "it reads channels that are not followed")
        return None
    inputs = read.reshape(groups, -1)
    weights = rows.reshape(groups, -1)
    if (inputs == 0).any():
        site.keep_all("some channels of its groups cannot go")
    if inputs.shape[1] > 1 and weights.shape[1] > 1 and columns is not None and not transposed:
        site.choices.append(Choice(site.node.name, (0, 1), np.concatenate([read, rows])))
        if site.preferred:
            site.classes.join(inputs[0], inputs)
            site.classes.join(weights[0], weights)
            _contract(site, inputs[0], columns)
            return rows
    site.classes.join(inputs[:, :1], inputs)
    site.classes.join(inputs[:, :1], weights)
    if weights.shape[1] > 1 or inputs.shape[1] > 1:
        site.classes.note(rows, "grouped")
    # A group of one channel is that channel; what it makes has no other owner than its inputs.
    per = site.result.shape[site.value("input").ndim - site.value("weight").ndim + 1] // groups
    return np.repeat(inputs[:, 0], per) if transposed else rows


def _contract(site: Site, read: Channels | None, columns: Channels | None) -> None:
    if read is None:
        if columns is not None:
            site.keep(columns, "it reads channels that are not followed")
        return
    if columns is None:
        site.keep(read, "its channels are read by weights of a fixed size")
        return
    site.classes.join(read, columns)
    site.classes.note(read, "read")
    if not site.is_weight("weight"):
        site.classes.note(read, "computed")
    if (read == 0).any():
        site.keep(columns[read == 0], "it reads channels that are not followed")


def _made(site: Site, made: Channels | None, bias: str) -> Channels | None:
    if made is not None:
        site.classes.note(made, "made")
        if site.has(bias):
            site.join(made, site.labels(bias).get(0))
    return made


def matrices(site: Site) -> Given:
    """a (…, m, k) times b (…, k, n), with an addend where the operator has one."""
    names = ("self", "input", "mat1", "batch1", "mat2", "vec2", "batch2", "other", "tensor", "vec")
    name = operator_name(site.node)
    if name in ("addmm", "baddbmm", "addbmm"):
        one, other = (site.arguments[n] for n in (("mat1", "mat2") if name == "addmm" else ("batch1", "batch2")))
    else:
        one, other = [site.arguments[n] for n in names if isinstance(site.arguments.get(n), fx.Node)][:2]
    given = _product(site, one, other)
    if name in ("addmm", "baddbmm") and site.has("self"):
        given = _with_addend(site, given, "self")
    return given


def _with_addend(site: Site, given: Labels, name: str) -> Labels:
    ahead = site.result.ndim - site.value(name).ndim
    for dimension, channels in site.labels(name).items():
        if dimension + ahead in given:
            site.join(given[dimension + ahead], channels)
        else:
            site.keep(channels, "its channels meet others that are not followed")
    return given


def _product(site: Site, one: Any, other: Any) -> Labels:
    a, b = site.value(one), site.value(other)
    left, right = site.labels(one), site.labels(other)
    m, n = a.ndim > 1, b.ndim > 1  # whether there are rows and columns
    _contract_two(site, left.pop(a.ndim - 1, None), right.pop(max(0, b.ndim - 2), None))
    given: Labels = {}
    rank = site.result.ndim
    if n and b.ndim - 1 in right:
        given[rank - 1] = right.pop(b.ndim - 1)
        site.classes.note(given[rank - 1], "made")
    if m and a.ndim - 2 in left:
        row = rank - 1 - n
        given[row] = left.pop(a.ndim - 2)
    batch = rank - m - n
    for labels, ahead in ((left, batch - max(0, a.ndim - 2)), (right, batch - max(0, b.ndim - 2))):
        for dimension, channels in labels.items():
            joined = site.join(given.get(dimension + ahead), channels)
            assert joined is not None
            given[dimension + ahead] = joined
    for channels in given.values():
        site.classes.note(channels, "product")
    return given


def _contract_two(site: Site, left: Channels | None, right: Channels | None) -> None:
    """A dimension that two tensors are multiplied and summed along."""
    for side, against in ((left, right), (right, left)):
        if side is not None and against is None:
            site.keep(side, "its channels are multiplied with a tensor whose channels are not followed")
    if left is None or right is None:
        return
    site.classes.join(left, right)
    for name in ("read", "product", "computed"):
        site.classes.note(left, name)


def attention(site: Site) -> Given:
    """Scaled dot products: query (…, L, E), key (…, S, E), value (…, S, V)."""
    query, key, value = (site.labels(name) for name in ("query", "key", "value"))
    rank = site.value("query").ndim
    _contract_two(site, query.pop(rank - 1, None), key.pop(rank - 1, None))
    if (rank - 2 in key) or (rank - 2 in value):
        for labels in (key, value):
            if rank - 2 in labels:
                site.keep(labels.pop(rank - 2), "attention runs over its channels")
    given: Labels = {}
    if rank - 1 in value:
        given[rank - 1] = value.pop(rank - 1)
    if rank - 2 in query:
        given[rank - 2] = query.pop(rank - 2)
    if site.value("enable_gqa") if "enable_gqa" in site.arguments else False:
        heads = rank - 3
        times = site.value("query").shape[heads] // site.value("key").shape[heads]
        for labels in (key, value):
            if heads in labels:
                labels[heads] = np.repeat(labels[heads], times)
    sides = [query, key, value]
    if site.has("attn_mask"):
        mask, ahead = site.labels("attn_mask"), rank - site.value("attn_mask").ndim
        sides.append({d + ahead: c for d, c in mask.items() if d + ahead < rank - 2})
        for d, channels in mask.items():
            if d + ahead >= rank - 2:
                site.keep(channels, "attention runs over its channels")
    for d in range(rank - 2):
        joined = site.join(*(side.get(d) for side in sides))
        if joined is not None:
            given[d] = joined
    for channels in given.values():
        site.classes.note(channels, "product")
    return given


def einsum(site: Site) -> Given:
    """By the letters of the equation: what shares one belongs together."""
    equation = str(site.arguments["equation"]).replace(" ", "")
    nodes = site.tensors()
    if "..." in equation or "->" not in equation or len(nodes) != equation.count(",") + 1:
        site.keep_all("an einsum with dots, without a result or with a tensor twice")
        return {}
    terms, made = equation.split("->")[0].split(","), equation.split("->")[1]
    met: dict[str, list[Channels | None]] = {}
    for term, node in zip(terms, nodes, strict=True):
        labels = site.labels(node)
        for dimension, letter in enumerate(term):
            met.setdefault(letter, []).append(labels.get(dimension))
    given: Labels = {}
    for letter, sides in met.items():
        joined = site.join(*sides)
        if joined is None:
            continue
        if any(side is None for side in sides):
            site.keep(joined, "its channels are multiplied with a tensor whose channels are not followed")
        site.classes.note(joined, "product")
        if letter in made:
            given[made.index(letter)] = joined
            site.classes.note(joined, "made")
        else:
            site.classes.note(joined, "read")
            site.classes.note(joined, "computed")
    return given


def embedding(site: Site) -> Given:
    """Rows of a table by whole numbers: (…,) and (rows, C)."""
    channels = site.labels("weight").get(1)
    if channels is None:
        return {}
    site.classes.note(channels, "made")
    return {site.result.ndim - 1: channels}
