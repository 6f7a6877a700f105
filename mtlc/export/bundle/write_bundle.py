"""Writes a bundle: lowers, splits, stores the weights once, verifies, and only then takes the target's place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor

import mtlc
from mtlc.detection import Detection
from mtlc.errors import UserError
from mtlc.evaluation.splits import read_preprocessing
from mtlc.export.bundle.experts_file import ExpertFile
from mtlc.export.bundle.publish import check_target, file_info, publish, write_manifest
from mtlc.export.bundle.verify import in_backend, runs_onnx, verify_in_backends
from mtlc.export.bundle.verify_decoders import verify_decoders
from mtlc.export.graph.detection_program import decoder_file, write_decoders
from mtlc.export.graph.expert_forms import CACHED, place_experts
from mtlc.export.graph.expert_operators import DOMAIN, FORMS
from mtlc.export.graph.lower import BATCH, Lowered, inference_copy, lower
from mtlc.export.graph.partition import Part, partition
from mtlc.export.graph.weights_file import WeightsFile, weights_bytes
from mtlc.program.program import Program
from mtlc.runtime.bundle.manifest import (
    DTYPES,
    KINDS,
    Configuration,
    ExpertLayer,
    Manifest,
    Preprocessing,
    ProgramInfo,
    Sizes,
    TaskInfo,
    TensorInfo,
)

if TYPE_CHECKING:
    from mtlc.evaluation.criteria import Criteria

WEIGHTS = "weights.bin"
BATCH_SIZES = (1, 3)


def export_bundle(
    program: Program,
    path: Path,
    *,
    samples: Mapping[str, Tensor],
    criteria: Criteria | None = None,
    fuse: bool = False,
    archive: bool = False,
    tolerance: float = 1e-4,
    provenance: Mapping[str, Any] | None = None,
    device: str | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    experts: str = "auto",
    backend: str = "auto",
    batch: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Export `program` as a bundle at `path`: a folder, or one zip file if `archive`.

    `samples` are real inputs by name, (N, …) with N of 3 or more: verification compares the bundle with the network on
    them. `criteria` says what the outputs mean (kind, unit), and `classes` names a task's classes. `fuse` makes one
    program of all tasks: less overhead when they always run together, no saving when some are asked for. `tolerance`
    bounds each output's largest difference relative to its largest absolute value; the default fits float32. `experts`
    is the form of expert layers: ``"queue"``, ``"masked"``, ``"auto"`` (the faster of the two, measured on `backend`),
    or ``"cached"``: outside the graphs, for a device whose memory does not hold them all. `backend` is what will run
    the bundle: it is verified there too. `batch` is the smallest, usual and largest batch, for targets whose programs
    are built for sizes.

    Returns the report: ``path``, ``bytes``, ``weights_bytes``, ``programs``, ``experts``, ``tolerance`` and
    ``verification`` (see `verify_bundle`). Raises `UserError` for a network that cannot be exported, and
    `VerificationError` naming the task and the error if the bundle and the network disagree: nothing is written then,
    and what was at `path` stays.
    """
    path = Path(path)
    check_target(path, archive)
    how = read_preprocessing(program.preprocessing)
    if experts not in (*FORMS, "auto", CACHED):
        raise UserError(f"[export] experts = {experts!r}: must be one of auto, {', '.join(FORMS)}, {CACHED}")
    check_detectors(program, criteria)
    writing = _Writing(program, lower(program, together=fuse), fuse, how, device, provenance, batch)
    forms, timings = place_experts(writing.lowered.model, experts, backend)
    tasks = task_infos(program, writing.lowered, criteria, classes or {})
    manifest, checked = publish(
        path,
        archive,
        lambda folder: writing.write(folder, tasks),
        lambda written: _verify(written, program, samples, tolerance, backend),
    )
    return {
        "path": str(path),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "weights_bytes": manifest.files[WEIGHTS].bytes if WEIGHTS in manifest.files else 0,
        "programs": [
            {
                "name": part.name,
                "file": info.file,
                "tasks": list(part.tasks),
                "nodes": len(part.model.graph.node),
                "weights_bytes": weights_bytes(part.model.graph),
            }
            for info, part in _first_programs(manifest, writing.parts)
        ],
        "experts": {"forms": forms, "measured_ms": timings},
        "tolerance": tolerance,
        "verification": checked,
    }


def _verify(
    written: Path, program: Program, samples: Mapping[str, Tensor], tolerance: float, backend: str
) -> dict[str, dict[str, Any]]:
    checked = verify_in_backends(written, program, samples, BATCH_SIZES, tolerance, backend)
    verify_decoders(written, samples)
    if runs_onnx(backend):
        with in_backend(backend):
            verify_decoders(written, samples, backend)
    return checked


@dataclass
class _Writing:
    """What is written of a network. `lowered` gives its weights away on the way, and `parts` are there afterwards."""

    program: Program
    lowered: Lowered
    fuse: bool
    how: Preprocessing | None
    device: str | None
    provenance: Mapping[str, Any] | None
    batch: Sequence[int] | None
    parts: list[Part] = field(default_factory=list)

    def write(self, folder: Path, tasks: Mapping[str, TaskInfo]) -> Manifest:
        """Write the files and the manifest."""
        files: dict[str, str] = {}
        layers: dict[str, ExpertLayer] = {}
        with WeightsFile(folder / WEIGHTS) as weights, ExpertFile(folder) as outside:
            self._give_away(weights)
            self.parts = parts = partition(self.lowered, self.fuse)
            for index, part in enumerate(parts):
                if part.expert_layer is not None:
                    files[part.name], layers[part.name] = outside.add(part)
                    continue
                weights.externalize(part.model)
                name = file_name(index, part.name)
                (folder / name).write_bytes(part.model.SerializeToString(deterministic=True))
                files[part.name] = name
        if (folder / WEIGHTS).stat().st_size == 0:
            (folder / WEIGHTS).unlink()
        write_decoders(folder, tasks)
        programs = tuple(info for part in parts for info in program_infos(part, parts, self.lowered, files, layers))
        manifest = Manifest(
            tasks=tasks,
            inputs=input_infos(self.lowered),
            programs=programs,
            files={file.name: file_info(file) for file in sorted(folder.iterdir())},
            preprocessing=self.how,
            configurations=(Configuration("default", tuple(info.name for info in programs)),),
            device=self.device,
            provenance=provenance_of(self.program, self.provenance),
            dimensions={} if self.batch is None else {BATCH: Sizes(*self.batch)},
        )
        write_manifest(folder, manifest)
        return manifest

    def _give_away(self, weights: WeightsFile) -> None:
        """Move the weights out before the graph is cut up: each program has copies of those that it reads.

        What is taken out of a message is kept by it to its end, so a new one takes its place. Expert layers that are
        still nodes give their weights to a file of their own.
        """
        if any(node.domain == DOMAIN for node in self.lowered.model.graph.node):
            return
        weights.externalize(self.lowered.model)
        light = onnx.ModelProto()
        light.CopyFrom(self.lowered.model)
        self.lowered = replace(self.lowered, model=light)


def file_name(index: int, program: str) -> str:
    """The file of a program. The number keeps files apart where case is ignored; the rest is for people."""
    return f"{index:02d}-{re.sub(r'[^A-Za-z0-9_.+-]', '_', program)}.onnx"


def program_infos(
    part: Part, parts: Sequence[Part], lowered: Lowered, files: Mapping[str, str], layers: Mapping[str, ExpertLayer]
) -> list[ProgramInfo]:
    """The part as a program of the bundle; one for each of its tasks where its numbers depend on the selector."""
    file, layer = files[part.name], layers.get(part.name)
    if not part.selected:
        return [ProgramInfo(part.name, file, part.inputs, part.outputs, part.tasks, experts=layer)]
    selected = {name for other in parts if other.selected for name in other.outputs}
    found = []
    for task in part.tasks:
        own = {name: f"{name}@{task}" for name in selected if name not in lowered.outputs.values()}
        inputs = [name for name in part.inputs if name != lowered.selector]
        names = {own[name]: name for name in (*inputs, *part.outputs) if name in own}
        constants = {}
        if lowered.selector in part.inputs:
            constants[lowered.selector] = list(lowered.outputs).index(task)
        found.append(
            ProgramInfo(
                part.name if len(part.tasks) == 1 else f"{part.name}@{task}", file,
                tuple(own.get(name, name) for name in inputs), tuple(own.get(name, name) for name in part.outputs),
                (task,), constants, {} if layer is not None else names, layer,
            )
        )  # fmt: skip
    return found


def _first_programs(manifest: Manifest, parts: Sequence[Part]) -> Iterator[tuple[ProgramInfo, Part]]:
    """Each part with the first of the programs that run it."""
    for part in parts:
        names = {part.name, *(f"{part.name}@{task}" for task in part.tasks)}
        yield next(info for info in manifest.programs if info.name in names), part


def task_infos(
    program: Program, lowered: Lowered, criteria: Criteria | None, classes: Mapping[str, Sequence[str]]
) -> dict[str, TaskInfo]:
    """The tasks as the manifest describes them."""
    types = {value.name: value for value in lowered.model.graph.output}
    with torch.inference_mode():
        outputs = inference_copy(program).outputs({name: tensor.cpu() for name, tensor in program.example.items()})
    tasks = {}
    for task in program.tasks:
        name = lowered.outputs[task.name]
        shape, dtype = _type(types[name])
        if not shape:  # the exporter could not tell: the batch is first, the rest as in the example
            shape = (BATCH, *outputs[task.name].shape[1:])
        kind = criteria.kinds[task.name] if criteria is not None else "unknown"
        how = None if task.postprocess is None else Detection.parse(task.postprocess)
        tasks[task.name] = TaskInfo(
            task.name,
            name,
            shape,
            dtype,
            "boxes" if how is not None else kind if kind in KINDS else "unknown",
            task.metric,
            criteria.units[task.name] if criteria is not None else "",
            tuple(classes[task.name]) if task.name in classes else None if how is None else how.names,
            how,
            None if how is None else decoder_file(task.name),
        )
    return tasks


def check_detectors(program: Program, criteria: Criteria | None) -> None:
    """Raise `UserError` naming the task whose output is not what its postprocess declares."""
    detectors = [task for task in program.tasks if task.postprocess is not None]
    if not detectors:
        return
    with torch.inference_mode():
        outputs = inference_copy(program).outputs({name: tensor.cpu() for name, tensor in program.example.items()})
    for task in detectors:
        try:
            Detection.parse(task.postprocess).classes(tuple(outputs[task.name].shape))
        except UserError as error:
            raise UserError(f"[tasks.{task.name}] postprocess: {error}") from None
        kind = "boxes" if criteria is None else criteria.kinds[task.name]
        if kind not in ("boxes", "unknown"):
            raise UserError(
                f"[tasks.{task.name}] postprocess: the task's metric is of kind {kind!r}, and not one of boxes"
            )


def input_infos(lowered: Lowered) -> tuple[TensorInfo, ...]:
    """The network's inputs as the manifest describes them; a selector is not among them."""
    types = {value.name: value for value in lowered.model.graph.input}
    return tuple(TensorInfo(name, *_type(types[name])) for name in lowered.inputs)


def _type(value: onnx.ValueInfoProto) -> tuple[tuple[int | str, ...], str]:
    """A graph edge's shape and numpy dtype name."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    if dtype not in DTYPES:
        raise UserError(
            f"[export] the tensor {value.name!r} is {dtype}, which a bundle cannot hand over: cast it in the network"
        )
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or f"d{i}" for i, d in enumerate(tensor.shape.dim)
    )
    return shape, dtype


def provenance_of(program: Program, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """What made the bundle: versions, the factory, the passes, and what the caller adds."""
    return {
        "versions": {"mtlc": mtlc.__version__, "torch": torch.__version__, "onnx": onnx.__version__},
        "factory": program.source.factory,
        "passes": [entry.name for entry in program.history],
        **(extra or {}),
    }
