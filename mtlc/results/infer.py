"""Describes what ``mtlc infer`` wrote: a picture for each task, or numbers, or a video."""

from __future__ import annotations

from typing import Literal

from mtlc.results.base import Result


class Detected(Result):
    """A box that was found."""

    box: list[float]
    """Left, top, right and bottom, in pixels of the picture."""
    label: int
    """Number of its class."""
    name: str | None = None
    """Name of its class, where the bundle has one."""
    score: float
    """How sure the network is, from 0 to 1."""


class Classified(Result):
    """The class of a whole picture."""

    label: int
    """Number of the class of the largest score."""
    name: str | None = None
    """Its name, where the bundle has one."""


class InferredTask(Result):
    """The output of one task."""

    picture: str | None = None
    """Path of the picture; None where the output is none, or only numbers were asked for."""
    shape: list[int]
    """Shape of the output: channels, height, width. Of an array that was given, with the samples."""
    boxes: str | None = None
    """Path of the boxes, for a task that detects."""
    detections: list[Detected] | None = None
    """The boxes, best first, for a task that detects."""
    classified: Classified | None = None
    """The class, for a task that has one for a picture."""
    raw: str | None = None
    """Path of the numbers; only where they were asked for, or arrays were given."""


class InferResult(Result):
    """A bundle run on one picture."""

    bundle: str
    """Path of the bundle."""
    image: str
    """Path of the picture that it was given."""
    tasks: dict[str, InferredTask]
    """What was written, by task."""
    beside: str | None = None
    """Path of the picture with all tasks beside each other; only where it was asked for."""
    programs: list[str]
    """Names of the programs that ran, in their order."""
    first_run_ms: float
    """Time of the run, in ms. It loads the programs first, so it is no latency."""


class InferredSource(Result):
    """What came of one of several sources, or of an array or a video."""

    source: str
    """The path that was given, or the number of the camera."""
    kind: Literal["picture", "array", "video", "camera"]
    """What it is."""
    tasks: dict[str, InferredTask] = {}
    """What was written, by task; nothing of a video, whose frames are in one file."""
    beside: str | None = None
    """Path of the picture, of the video, or of the folder of pictures, with all tasks beside each other."""
    frames: int | None = None
    """Frames of a video or a camera that were run."""
    frames_per_second: float | None = None
    """How many frames were read, run and written in a second of the clock; no latency of the network."""


class InferSeveralResult(Result):
    """A bundle run on several pictures, on arrays, or on a video."""

    bundle: str
    """Path of the bundle."""
    sources: list[InferredSource]
    """What came of each, in their order."""
    programs: list[str]
    """Names of the programs that ran, in their order."""
