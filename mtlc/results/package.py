"""Describes what ``mtlc package`` made: a folder that a board runs as it is."""

from __future__ import annotations

from mtlc.results.base import Result


class PackageResult(Result):
    """A folder with a bundle, the C library and its engine."""

    bundle: str
    """Path of the bundle."""
    out: str
    """Path of the folder."""
    target: str
    """The kind of machine that it runs on, such as ``linux-aarch64``."""
    compiler: str
    """The command that the library was compiled with."""
    engine: str | None
    """Where onnxruntime's library came from; None where it was left out."""
    glibc: str | None
    """The least version of glibc that the board must have, such as ``2.28``; None where none is needed."""
    files: int
    """How many files there are."""
    bytes: dict[str, int]
    """Sizes in bytes: of ``bundle``, ``library`` (what a program of yours loads), ``engine`` and ``all``."""
    tried: dict[str, float] | None
    """By task, the largest difference of the package's outputs from the Python runtime's on random inputs, run here;
    None for another kind of machine, and without an engine."""
