"""Describes what ``mtlc infer`` wrote: a picture for each task."""

from __future__ import annotations

from mtlc.results.base import Result


class InferredTask(Result):
    """The output of one task."""

    picture: str
    """Path of the picture."""
    shape: list[int]
    """Shape of the output: channels, height, width."""
    raw: str | None = None
    """Path of the numbers; only where they were asked for."""


class InferResult(Result):
    """A bundle run on one picture."""

    bundle: str
    """Path of the bundle."""
    image: str
    """Path of the picture that it was given."""
    tasks: dict[str, InferredTask]
    """What was written, by task."""
    programs: list[str]
    """Names of the programs that ran, in their order."""
    first_run_ms: float
    """Time of the run, in ms. It loads the programs first, so it is no latency."""
