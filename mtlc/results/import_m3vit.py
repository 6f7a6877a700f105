"""Describes what ``mtlc import m3vit`` wrote."""

from __future__ import annotations

from typing import Any

from mtlc.results.base import Result


class ImportResult(Result):
    """Weights that were imported, and how a job names them."""

    weights: str
    """Path of the weights."""
    factory: str
    """The factory of the network, as a job names it."""
    args: dict[str, Any]
    """The factory's keyword arguments, which are the factory's own."""
    untraced: dict[str, Any]
    """What no checkpoint shows, as it was said or by default: ``top_k``, ``gate_input_ahead``, ``expert_prune`` and
    ``experts_per_task`` (none if each task may use every expert). Trained otherwise, the network computes something
    else.
    """
    parameters: int
    """Parameters of the network."""
    job: str
    """``[model]`` and ``[tasks]`` of a job, in TOML."""
