"""Presents a bundle of several widths as one whose tasks are all of its points, so that a limit holds at each of them.

A point is a task with one encoder and one width of its decoder. In the unrolled manifest it is a task of its own, and
tensors of one name that programs of different points make have names of their own: what calibrates, measures and gives
back precision task by task then does so point by point, and computes an encoder once for all of its decoders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.export.quantization.targets import Target
from mtlc.runtime.bundle.manifest import DecoderPoint, EncoderPoint, Manifest, ProgramInfo, TaskInfo, Widths


@dataclass(frozen=True)
class Point:
    """A task with one encoder and one width of its decoder."""

    task: str
    encoder: EncoderPoint
    decoder: DecoderPoint

    @property
    def name(self) -> str:
        return point_name(self.encoder.name, self.task, self.decoder.width)


def point_name(encoder: str, task: str, width: float) -> str:
    """What a point is called in an unrolled manifest, and in what is measured with one."""
    return f"{encoder}.{task}.{width:g}"


def check_widths(manifest: Manifest, criteria: Criteria, target: Target, against: bool) -> None:
    """Raise `UserError` where a bundle of several widths cannot be quantised; any other bundle is let pass.

    `criteria` are those of the manifest's tasks: what the runtime chooses by must stay the same metric. `against` says
    whether limits are to be measured against another bundle.
    """
    if manifest.widths is None:
        return
    cut = "cut one configuration out (mtlc search … --out) and quantise that"
    if target.symmetric:
        raise UserError(f"target = {target.name!r}: a bundle of several widths runs in onnxruntime and OpenVINO: {cut}")
    if against:
        raise UserError(
            "a bundle of several widths keeps each limit against the same widths in floating point, not against "
            f"another bundle: leave --against out, or {cut}"
        )
    for task in criteria.tasks:
        metric = manifest.tasks[task.name].metric
        if metric not in ("", task.metric):
            raise UserError(
                f"task {task.name!r}: the bundle's widths are chosen by {metric}, the job measures {task.metric}"
            )


def unrolled(manifest: Manifest) -> Manifest:
    """The manifest with each point as a task and without widths; one without widths as it is.

    Raises `UserError` for programs that are not of an encoder or a decoder.
    """
    if manifest.widths is None:
        return manifest
    known = {program.name: program for program in manifest.programs}
    inputs = {info.name for info in manifest.inputs}
    programs: list[ProgramInfo] = []
    tasks: dict[str, TaskInfo] = {}
    left = set(known)
    for encoder in manifest.widths.encoders:
        shared = dict.fromkeys(inputs, "")
        served = [Point(task, encoder, decoder) for task, row in encoder.decoders.items() for decoder in row]
        for name in encoder.programs:
            of = tuple(point.name for point in served if point.task in known[name].tasks)
            programs.append(replace(_renamed(known[name], encoder.name, shared), tasks=of))
        for point in served:
            own = dict(shared)
            for name in point.decoder.programs:
                programs.append(replace(_renamed(known[name], point.name, own), tasks=(point.name,)))
            info = manifest.tasks[point.task]
            tasks[point.name] = replace(info, name=point.name, output=_name(info.output, own))
            left -= {*encoder.programs, *point.decoder.programs}
    if left:
        raise UserError(
            f"the programs {', '.join(sorted(left))} belong to no encoder and no decoder of the bundle's widths"
        )
    return replace(manifest, tasks=tasks, programs=tuple(programs), configurations=(), widths=None)


def unrolled_criteria(criteria: Criteria, manifest: Manifest) -> Criteria:
    """The criteria of the tasks for the points of the manifest; for one without widths as they are."""
    if manifest.widths is None:
        return criteria
    tasks = {task.name: task for task in criteria.tasks}
    return Criteria(
        replace(
            tasks[point.task], name=point.name, output=tasks[point.task].output_key, target=tasks[point.task].target_key
        )
        for point in points(manifest.widths)
    )


def with_metrics(manifest: Manifest, metrics: Mapping[str, float]) -> Manifest:
    """The manifest with measured `metrics` by point, which the runtime chooses widths by; without widths as it is.

    The reference is the point with the widest encoder and decoder. Raises `UserError` for numbers that cannot be chosen
    by.
    """
    if manifest.widths is None:
        return manifest
    for point in points(manifest.widths):
        if not math.isfinite(metrics[point.name]):
            raise UserError(f"{point.name}: the metric in INT8 is {metrics[point.name]}: look at its labels")
    encoders = tuple(
        replace(
            encoder,
            decoders={
                task: tuple(replace(d, metric=metrics[point_name(encoder.name, task, d.width)]) for d in decoders)
                for task, decoders in encoder.decoders.items()
            },
        )
        for encoder in manifest.widths.encoders
    )
    widest = max(encoders, key=lambda encoder: sum(encoder.widths))
    reference = {task: decoders[-1].metric for task, decoders in widest.decoders.items()}
    for task, metric in reference.items():
        if metric == 0:
            raise UserError(
                f"task {task!r}: the metric of its widest network is 0 in INT8: a relative change is undefined"
            )
    return replace(manifest, widths=replace(manifest.widths, encoders=encoders, reference=reference))


def points(widths: Widths) -> Iterator[Point]:
    """Every point, encoder by encoder and task by task, from narrow to wide."""
    for encoder in widths.encoders:
        for task, decoders in encoder.decoders.items():
            for decoder in decoders:
                yield Point(task, encoder, decoder)


def by_configuration(manifest: Manifest) -> dict[str, dict[str, str]]:
    """The name of each task's point in each named configuration; empty without widths."""
    return {
        configuration.name: {
            task: point_name(configuration.encoder, task, width) for task, width in configuration.decoders.items()
        }
        for configuration in manifest.configurations
        if configuration.encoder is not None
    }


def _renamed(program: ProgramInfo, place: str, makers: dict[str, str]) -> ProgramInfo:
    """The program with its outputs named for `place`.

    `makers` says by tensor which place made it, and learns of these.
    """
    reads = {_name(name, makers): name for name in program.inputs}
    makers |= dict.fromkeys(program.outputs, place)
    tensors = reads | {_name(name, makers): name for name in program.outputs}
    return replace(
        program,
        name=f"{program.name}@{place}",  # two places may share a program
        inputs=tuple(reads),
        outputs=tuple(_name(name, makers) for name in program.outputs),
        names={new: program.names.get(old, old) for new, old in tensors.items()},
    )


def _name(tensor: str, makers: Mapping[str, str]) -> str:
    return f"{makers[tensor]}:{tensor}" if makers[tensor] else tensor
