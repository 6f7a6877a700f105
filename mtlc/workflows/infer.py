"""Runs a bundle on pictures, arrays, videos or a camera: ``mtlc infer``. Pictures need Pillow, videos OpenCV."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtlc.errors import UserError
from mtlc.files import atomic_file, user_errors, write_json
from mtlc.log import Log, bar, silent, tracked
from mtlc.results.infer import InferredSource, InferredTask, InferResult, InferSeveralResult
from mtlc.runtime import Session, read_image, write_png
from mtlc.workflows.drawn_outputs import Drawn, beside_each_other, draw
from mtlc.workflows.infer_sources import Source, find_sources, read_arrays

_AT_ONCE = 8
"""Samples of an array that are run together, where the bundle takes any number."""
_BESIDE = "beside.png"


@dataclass(frozen=True)
class InferOptions:
    """How `infer` works. `raw`: the numbers too, at the network's resolution. `beside`: also a picture of all tasks
    beside each other. Of videos and cameras: at most so many `frames` or `seconds`, written as a ``"video"`` or as
    ``"png"``.
    """

    raw: bool = False
    beside: bool = False
    frames: int | None = None
    seconds: float | None = None
    form: Literal["video", "png"] = "video"


def infer(
    bundle: Path,
    sources: Path | Sequence[Path],
    tasks: Sequence[str] = (),
    out: Path = Path(),
    *,
    raw: bool = False,
    backend: str = "auto",
    threads: int | None = None,
    configuration: str | None = None,
    options: InferOptions | None = None,
    log: Log = silent,
) -> InferResult | InferSeveralResult:
    """Run `tasks` (all of the bundle's if none is named) on each of `sources` and write what they give to `out`.

    A picture is fitted to the network's input as the bundle says, and the outputs are brought back to its size:
    ``TASK.png``; of a task that detects with its boxes, which ``TASK.json`` lists. With `raw`, ``TASK.npy`` holds the
    output as it is, (C, H, W). Of several sources each has a folder of its name. Arrays are fed as they are, and their
    outputs written as numbers; uint8 arrays (H, W, 3) and (N, H, W, 3) are pictures. Of a video or a camera the input
    and all tasks are written beside each other, frame by frame.

    `configuration` is what the bundle runs in, if not its default. Raises `UserError`, `BundleError` or `Unavailable`;
    a source is never written over.
    """
    how = options or InferOptions(raw=raw)
    given = [Path(sources)] if isinstance(sources, str | Path) else [Path(one) for one in sources]
    if not given:
        raise UserError("nothing to run on: name pictures, a folder, arrays, a video or the number of a camera")
    found = find_sources(given)
    moving = any(one.kind in ("video", "camera") for one in found)
    if not moving and (how.frames is not None or how.seconds is not None or how.form != "video"):
        raise UserError("--frames, --seconds and --format are for a video or a camera")
    if moving and how.raw:
        raise UserError("--raw is for pictures: of a video no numbers are written")
    out = Path(out)
    with Session(bundle, backend=backend, threads=threads) as session:
        if configuration is not None:
            session.configure(configuration)
        wanted = tuple(tasks) or tuple(session.tasks)
        programs = list(session.programs(wanted))
        run = _Run(session, bundle, wanted, how, log, tuple(one.path for one in found))
        if any(one.kind != "array" for one in found):
            run.check_pictures()  # before anything is written
        if len(found) == 1 and found[0].kind == "picture":
            return run.one_picture(found[0].path, out, programs)
        made = []
        for one in tracked(found, "sources"):
            folder = out if len(found) == 1 else out / one.name
            made.append(run.source(one, folder))
    return InferSeveralResult(bundle=str(bundle), sources=made, programs=programs)


class _Run:
    """A session with what was asked of it."""

    def __init__(
        self,
        session: Session,
        bundle: Path,
        tasks: tuple[str, ...],
        how: InferOptions,
        log: Log,
        given: tuple[Path, ...],
    ) -> None:
        self.session, self.bundle, self.tasks, self.how, self.log = session, bundle, tasks, how, log
        self._given = [path.resolve() for path in given]

    def one_picture(self, path: Path, out: Path, programs: list[str]) -> InferResult:
        image = read_image(path)
        outputs, milliseconds = self._outputs(image)
        written, beside = self._write_picture(image, outputs, out)
        return InferResult(
            bundle=str(self.bundle), image=str(path), tasks=written, programs=programs, first_run_ms=milliseconds,
            **({} if beside is None else {"beside": beside}),
        )  # fmt: skip

    def source(self, source: Source, out: Path) -> InferredSource:
        if source.kind == "picture":
            image = read_image(source.path)
            written, beside = self._write_picture(image, self._outputs(image)[0], out)
            more = {} if beside is None else {"beside": beside}
            return InferredSource(source=str(source.path), kind="picture", tasks=written, **more)
        if source.kind == "array":
            return self._arrays(source, out)
        from mtlc.workflows.infer_video import run_video

        return run_video(source, out, self.frame, self.how.form, self.how.frames, self.how.seconds, self.log)

    def frame(self, image: np.ndarray, ranges: dict[str, tuple[float, float]]) -> np.ndarray:
        """A frame of a video with its tasks beside it; `ranges` are those of the colours so far, by task."""
        drawn = draw(self.session, self._outputs(image)[0], image, ranges)
        return beside_each_other([image, *(one.picture for one in drawn.values() if one.picture is not None)])

    def _outputs(self, image: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        x = self.session.preprocess(image)
        started = time.perf_counter()
        outputs = self.session.run(x, tasks=self.tasks)
        return outputs, (time.perf_counter() - started) * 1e3

    def check_pictures(self) -> None:
        """Raise `UserError` where the bundle does not take one picture, or says not how."""
        inputs = self.session.manifest.inputs
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            names = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            raise UserError(
                f"{self.bundle}: takes {names}, not one picture: give arrays, an .npz with one for each input"
            )
        if self.session.manifest.preprocessing is None:
            raise UserError(
                f"{self.bundle}: the bundle has no preprocessing, so nobody knows how a picture becomes its input: "
                "give arrays as the network takes them (.npy)"
            )

    def _write_picture(
        self, image: np.ndarray, outputs: Mapping[str, np.ndarray], out: Path
    ) -> tuple[dict[str, InferredTask], str | None]:
        """Write what the outputs of one picture are, and tell what was written."""
        drawn = draw(self.session, outputs, image)
        numbers = {task for task, one in drawn.items() if self.how.raw or one.picture is None}
        self._spare_sources(out, [f"{task}.png" for task in drawn])
        self._spare_sources(out, [f"{task}.npy" for task in numbers])
        self._spare_sources(out, [_BESIDE] if self.how.beside else [])
        written = {}
        for task, one in drawn.items():
            made = _written(out, task, one, outputs[task], image)
            if task in numbers:
                made = made.model_copy(update={"raw": _save(out / f"{task}.npy", outputs[task][0])})
            written[task] = made
        if not self.how.beside:
            return written, None
        shown = beside_each_other([image, *(one.picture for one in drawn.values() if one.picture is not None)])
        return written, _png(out / _BESIDE, shown)

    def _spare_sources(self, out: Path, names: Sequence[str]) -> None:
        """Raise `UserError` where a file that will be written is one that was given."""
        for name in names:
            if (out / name).resolve() in self._given:
                raise UserError(f"{out / name}: is a source, and would be written over: choose another --out")

    # -- arrays -------------------------------------------------------------------------------------------------------

    def _arrays(self, source: Source, out: Path) -> InferredSource:
        loaded = read_arrays(source.path)
        given = {"": loaded} if isinstance(loaded, np.ndarray) else loaded
        pixels = self._pixels(given)
        if pixels is not None:
            outputs, single = self._run_pictures(pixels), pixels.ndim < 4
        else:
            outputs, single = self._run_arrays(source.path, given)
        if single:
            outputs = {task: array[0] for task, array in outputs.items()}
        shapes = {task: InferredTask(shape=list(array.shape)) for task, array in outputs.items()}
        if isinstance(loaded, np.ndarray):
            self._spare_sources(out, [f"{task}.npy" for task in outputs])
            paths = {task: _save(out / f"{task}.npy", array) for task, array in outputs.items()}
        else:
            self._spare_sources(out, ["outputs.npz"])
            target = out / "outputs.npz"
            with user_errors(target), atomic_file(target) as temporary, temporary.open("wb") as file:
                np.savez(file, **outputs)  # type: ignore[arg-type]
            paths = dict.fromkeys(outputs, str(target))
        tasks = {task: one.model_copy(update={"raw": paths[task]}) for task, one in shapes.items()}
        return InferredSource(source=str(source.path), kind="array", tasks=tasks)

    def _pixels(self, given: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The array that is pictures of bytes, for a network that takes one of floats; None where there is none."""
        inputs = self.session.manifest.inputs
        if len(given) != 1 or len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype == "uint8":
            return None
        array = next(iter(given.values()))
        if array.dtype != np.uint8 or self.session.manifest.preprocessing is None:
            return None
        return array if array.ndim in (2, 3, 4) and (array.ndim == 2 or array.shape[-1] in (1, 3)) else None

    def _run_pictures(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of pictures (H, W), (H, W, C) or (N, H, W, C) in the size of the pictures, stacked."""
        stack = pixels if pixels.ndim == 4 else pixels[None]
        found: list[dict[str, np.ndarray]] = []
        for image in tracked(stack, "pictures"):
            outputs, _ = self._outputs(image)
            found.append(self.session.restore(outputs, image.shape[:2]))
        return {task: np.concatenate([one[task] for one in found]) for task in self.tasks} if found else {}

    def _run_arrays(self, path: Path, given: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
        """The outputs of arrays as the network takes them; and whether they were one sample without its axis."""
        inputs = self.session.manifest.inputs
        if len(given) == 1 and len(inputs) == 1:
            given = {inputs[0].name: next(iter(given.values()))}
        arrays, single = dict(given), False
        for info in inputs:
            array = arrays.get(info.name)
            if array is None:
                continue  # the session says what is missing
            if array.ndim == len(info.shape) - 1 and info.shape and isinstance(info.shape[0], str):
                array, single = array[None], True
            if np.dtype(info.dtype).kind == "f" and array.dtype.kind == "f":
                array = array.astype(info.dtype, copy=False)
            arrays[info.name] = np.ascontiguousarray(array)
        try:
            found = [self.session.decode(part) for part in self._parts(arrays)]
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        return {task: np.concatenate([one[task] for one in found]) for task in self.tasks}, single

    def _parts(self, arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of some samples at a time; of all at once where the samples are no axis of every input."""
        free = {info.name: bool(info.shape) and isinstance(info.shape[0], str) for info in self.session.manifest.inputs}
        counts = {len(array) for array in arrays.values() if array.ndim}
        whole = len(counts) != 1 or not all(free.get(name, False) for name in arrays) or min(counts) <= _AT_ONCE
        if whole:
            yield self.session.run(dict(arrays), tasks=self.tasks)
            return
        count = counts.pop()
        with bar("samples", count) as done:
            for start in range(0, count, _AT_ONCE):
                part = {name: array[start : start + _AT_ONCE] for name, array in arrays.items()}
                yield self.session.run(part, tasks=self.tasks)
                done(min(_AT_ONCE, count - start))


def _written(out: Path, task: str, drawn: Drawn, output: np.ndarray, image: np.ndarray) -> InferredTask:
    """Write the picture of a task, and the boxes of one that detects."""
    values: dict[str, Any] = {"shape": list(output.shape[1:])}
    if drawn.picture is not None:
        values["picture"] = _png(out / f"{task}.png", drawn.picture)
    if drawn.detections is not None:
        listed = out / f"{task}.json"
        with user_errors(out):
            write_json(
                listed,
                {"size": list(image.shape[:2]), "detections": [one.to_dict() for one in drawn.detections]},
            )
        values |= {"shape": [len(drawn.rows), 6], "boxes": str(listed), "detections": drawn.detections}
    if drawn.classified is not None:
        values["classified"] = drawn.classified
    return InferredTask(**values)


def _png(target: Path, shown: np.ndarray) -> str:
    with atomic_file(target) as temporary:
        write_png(temporary, shown)
    return str(target)


def _save(target: Path, array: np.ndarray) -> str:
    with user_errors(target.parent), atomic_file(target) as temporary, temporary.open("wb") as file:
        np.save(file, array)
    return str(target)
