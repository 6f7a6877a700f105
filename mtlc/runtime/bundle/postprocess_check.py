"""Checks what a manifest declares of post-processing against the tasks, inputs and files that it lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlc.errors import BundleError, UserError
from mtlc.runtime.bundle.refusals import Refusal

if TYPE_CHECKING:
    from mtlc.runtime.bundle.manifest import Manifest, TaskInfo


def check_postprocessing(manifest: Manifest) -> None:
    """Raise `BundleError` naming the key of the first post-processing that does not fit its task, or its file."""
    taken = {program.file for program in manifest.programs} | {e.file for e in manifest.engines.values()}
    taken |= {program.experts.file for program in manifest.programs if program.experts is not None}
    if manifest.openvino is not None:
        taken |= {*manifest.openvino.files.values(), manifest.openvino.weights}
    for task in manifest.tasks.values():
        where = f"manifest.json: tasks.{task.name}"
        if task.postprocess is not None:
            _check_task(manifest, task, where)
        elif task.decoder is not None:
            raise BundleError(f"{where}.decoder: the task has no postprocess for it to do", code=Refusal.POSTPROCESS)
        if task.decoder is None:
            continue
        if task.decoder not in manifest.files:
            raise BundleError(f"{where}.decoder: its file {task.decoder!r} is not in files", code=Refusal.REFERENCE)
        if not task.decoder.endswith(".onnx"):
            raise BundleError(f"{where}.decoder: its file {task.decoder!r} must end in .onnx", code=Refusal.FILE_NAME)
        if task.decoder in taken:
            raise BundleError(f"{where}.decoder: {task.decoder!r} is another payload's file", code=Refusal.TWICE)
        taken.add(task.decoder)


def _check_task(manifest: Manifest, task: TaskInfo, where: str) -> None:
    how = task.postprocess
    assert how is not None
    if task.kind != "boxes":
        raise BundleError(
            f"{where}.postprocess: is for a task of kind 'boxes', and this one is of {task.kind!r}",
            code=Refusal.POSTPROCESS,
        )
    if task.dtype not in ("float16", "float32"):
        raise BundleError(
            f"{where}.postprocess: is for an output in float16 or float32, and this one is {task.dtype}",
            code=Refusal.POSTPROCESS,
        )
    try:
        how.classes(task.shape)
    except UserError as error:
        raise BundleError(f"{where}.postprocess: {error}", code=Refusal.POSTPROCESS) from None
    pictures = [info.shape[2:] for info in manifest.inputs if len(info.shape) == 4]
    if not any(all(isinstance(a, str) or a == b for a, b in zip(shape, how.size, strict=True)) for shape in pictures):
        sizes = " or ".join(str(list(shape)) for shape in pictures) or "no picture"
        raise BundleError(
            f"{where}.postprocess.size = {list(how.size)}: the bundle's inputs are {sizes}", code=Refusal.POSTPROCESS
        )
