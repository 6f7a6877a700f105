"""Describes how a network's layers hang together: what the report draws as a graph."""

from __future__ import annotations

from typing import Literal

from mtlc.results.base import Result


class GraphNode(Result):
    """A layer that multiplies, a place where results join, an input, or the output of a task."""

    id: str
    """What `inputs` call it: unique."""
    name: str
    """Module path of a layer, or of the module in which results join; else the name of the input or task."""
    kind: str
    """``input``, ``output``, or the kind of the operator, such as ``conv``; of a join ``elementwise`` or ``copy``."""
    join: bool = False
    """Whether it multiplies nothing and only joins results."""
    inputs: list[str] = []
    """Where what it reads comes from, by `id`: what lies between and neither multiplies nor joins is left out."""
    network: Literal["both", "before", "after"] = "both"
    """Which of the two networks has it."""


class NetworkGraph(Result):
    """The layers of both networks and how results flow, in the order in which they run."""

    nodes: list[GraphNode] = []
    """Its nodes."""
