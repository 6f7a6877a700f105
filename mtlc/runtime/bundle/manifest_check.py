"""Checks that a manifest's programs fit together: all that a bundle may be asked to run computes its tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mtlc.errors import BundleError, nearest
from mtlc.runtime.bundle.limits import (
    FREE_TENSORS,
    MAX_EXPERTS,
    MAX_PROGRAMS,
    MAX_TASKS,
    TENSORS_A_NAME,
    TENSORS_AGAIN,
)
from mtlc.runtime.bundle.postprocess_check import check_postprocessing
from mtlc.runtime.bundle.refusals import Refusal

if TYPE_CHECKING:
    from mtlc.runtime.bundle.manifest import (
        Configuration,
        EncoderPoint,
        ExpertLayer,
        Manifest,
        OpenVinoInfo,
        ProgramInfo,
        Widths,
    )

_Made = Mapping[str, int]
"""The tasks that each tensor is made for, as bits: to compare two sets takes the same time whatever is in them."""


@dataclass
class _Checked:
    """What the checks of one manifest share: its programs by name, the bits of tasks, and the work done so far, of
    which there is `most`.
    """

    manifest: Manifest
    inputs: _Made
    tasks: Mapping[str, int]
    most: int
    programs: dict[str, ProgramInfo] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)
    work: int = 0

    def count(self, tensors: int) -> None:
        """Note that so many tensors are looked at. Programs may be named again and again, in a few bytes each time."""
        self.work += tensors
        if self.work > self.most:
            raise BundleError(
                "manifest.json: widths and configurations name large programs too often: "
                f"they have more than {self.most} tensors in all",
                code=Refusal.LIMIT,
            )


def check_manifest(manifest: Manifest) -> None:
    """Raise `BundleError` naming the key unless every configuration makes each task's output, from tensors made before.

    Without widths that is one graph of all programs in their order. With widths it is each encoder with each width of
    each task's decoder, and each named configuration; the work is linear in the size of the manifest, because what a
    decoder reads comes from the encoder alone.
    """
    for name, count, most in (
        ("tasks", len(manifest.tasks), MAX_TASKS),
        ("programs", len(manifest.programs), MAX_PROGRAMS),
    ):
        if count > most:
            raise BundleError(f"manifest.json: {name} has {count} entries, more than {most}", code=Refusal.LIMIT)
    if not manifest.tasks or not manifest.inputs:
        raise BundleError(f"manifest.json: {'inputs' if manifest.tasks else 'tasks'} is empty", code=Refusal.KEY_VALUE)
    every = (1 << len(manifest.tasks)) - 1
    inputs: dict[str, int] = {}
    for tensor in manifest.inputs:
        if tensor.name in inputs:
            raise BundleError(f"manifest.json: inputs: {tensor.name!r} is listed twice", code=Refusal.TWICE)
        inputs[tensor.name] = every
    bits = {task: 1 << place for place, task in enumerate(manifest.tasks)}
    checked = _Checked(manifest, inputs, bits, _most_work(manifest))
    for program in manifest.programs:
        _check_program(program, checked)
    if sum(program.experts.count for program in manifest.programs if program.experts is not None) > MAX_EXPERTS:
        raise BundleError(f"manifest.json: programs have more than {MAX_EXPERTS} experts in all", code=Refusal.LIMIT)
    _check_engines(manifest)
    check_postprocessing(manifest)
    if manifest.openvino is not None:
        _check_openvino(manifest, manifest.openvino)
    if manifest.widths is None:
        _check_outputs(checked, _flow(manifest.programs, checked, (inputs,), ""), "")
    else:
        _check_widths(checked, manifest.widths)
    _check_configurations(checked)


def _most_work(manifest: Manifest) -> int:
    """How many tensors the checks may look at; it grows with what the manifest lists, and so with its bytes."""
    named = sum(len(one.programs) + len(one.decoders) for one in manifest.configurations)
    for encoder in () if manifest.widths is None else manifest.widths.encoders:
        named += len(encoder.programs)
        named += sum(len(point.programs) for row in encoder.decoders.values() for point in row)
    listed = sum(1 + len(program.inputs) + len(program.outputs) for program in manifest.programs)
    return FREE_TENSORS + TENSORS_A_NAME * named + TENSORS_AGAIN * (listed + len(manifest.tasks))


def _check_configurations(checked: _Checked) -> None:
    manifest = checked.manifest
    encoders = {} if manifest.widths is None else {encoder.name: encoder for encoder in manifest.widths.encoders}
    points = {
        (encoder.name, task, point.width): point.programs
        for encoder in encoders.values()
        for task, row in encoder.decoders.items()
        for point in row
    }
    names: set[str] = set()
    for configuration in manifest.configurations:
        if not checked.programs.keys() >= set(configuration.programs):
            raise BundleError(
                f"manifest.json: configurations: {configuration.name!r} names a program that is not there",
                code=Refusal.REFERENCE,
            )
        if manifest.widths is not None:
            inside = f"configurations: {configuration.name!r}: "
            listed = (checked.programs[name] for name in configuration.programs)
            _check_outputs(checked, _flow(listed, checked, (checked.inputs,), inside), inside)
            if configuration.name in names:
                raise BundleError(
                    f"manifest.json: configurations: {configuration.name!r} is listed twice", code=Refusal.TWICE
                )
        if configuration.encoder is not None:
            _check_point(configuration, configuration.encoder, manifest, encoders, points)
        names.add(configuration.name)
    if "default" not in names:
        raise BundleError("manifest.json: configurations: there is no 'default'", code=Refusal.KEY_MISSING)


def _check_program(program: ProgramInfo, checked: _Checked) -> None:
    where, manifest = f"manifest.json: program {program.name!r}", checked.manifest
    if program.name in checked.programs:
        raise BundleError(f"{where} is listed twice", code=Refusal.TWICE)
    if program.file not in manifest.files:
        raise BundleError(f"{where}: its file {program.file!r} is not in files", code=Refusal.REFERENCE)
    # Backends tell formats by the name, and would read others unchecked: onnxruntime's own, for one.
    if not program.file.endswith(".onnx"):
        raise BundleError(f"{where}: its file {program.file!r} must end in .onnx", code=Refusal.FILE_NAME)
    if not program.tasks or not manifest.tasks.keys() >= set(program.tasks):
        raise BundleError(
            f"{where}: tasks must name one or more of {', '.join(sorted(manifest.tasks))}", code=Refusal.REFERENCE
        )
    tensors = {*program.inputs, *program.outputs}
    for name in program.names:
        if name not in tensors:
            raise BundleError(f"{where}: names: it neither reads nor writes {name!r}", code=Refusal.REFERENCE)
    if program.experts is not None:
        _check_experts(program, program.experts, manifest, where)
    checked.programs[program.name] = program
    mask = 0
    for task in program.tasks:
        mask |= checked.tasks[task]
    checked.masks[program.name] = mask


def _check_experts(program: ProgramInfo, layer: ExpertLayer, manifest: Manifest, where: str) -> None:
    if len(program.inputs) != 3 or len(program.outputs) != 1:
        raise BundleError(
            f"{where}: an expert layer reads tokens, choices and scores, and writes one tensor", code=Refusal.EXPERTS
        )
    if layer.file not in manifest.files:
        raise BundleError(f"{where}: its expert file {layer.file!r} is not in files", code=Refusal.REFERENCE)
    if layer.offset + layer.count * layer.stride > manifest.files[layer.file].bytes:
        raise BundleError(
            f"{where}: its experts lie beyond the end of {layer.file!r}: the file is truncated", code=Refusal.EXPERTS
        )


def _check_engines(manifest: Manifest) -> None:
    """Engines are payloads of their own, each of a program's file."""
    programs = {program.file for program in manifest.programs}
    used = set(programs)
    for name, engine in manifest.engines.items():
        where = f"manifest.json: engines.{name}"
        if name not in programs:
            raise BundleError(f"{where}: no program has this file", code=Refusal.REFERENCE)
        if engine.file not in manifest.files:
            raise BundleError(f"{where}: its file {engine.file!r} is not in files", code=Refusal.REFERENCE)
        if engine.file in used:
            raise BundleError(
                f"{where}: its file {engine.file!r} is a program's, or another engine's", code=Refusal.TWICE
            )
        used.add(engine.file)


def _check_openvino(manifest: Manifest, ir: OpenVinoInfo) -> None:
    """Every program's file has an IR, a payload of its own, and the weights are there."""
    where = "manifest.json: openvino"
    programs = {program.file for program in manifest.programs}
    for file in programs.symmetric_difference(ir.files):
        raise BundleError(
            f"{where}.files.{file}: " + ("is missing" if file in programs else "no program has this file"),
            code=Refusal.REFERENCE,
        )
    taken = programs | {engine.file for engine in manifest.engines.values()}
    for file, name in ir.files.items():
        if name not in manifest.files:
            raise BundleError(f"{where}.files.{file}: {name!r} is not in files", code=Refusal.REFERENCE)
        if name in taken or name == ir.weights:
            raise BundleError(f"{where}.files.{file}: {name!r} is another payload's file", code=Refusal.TWICE)
        if not name.endswith(".xml"):
            raise BundleError(f"{where}.files.{file}: {name!r} must end in .xml", code=Refusal.FILE_NAME)
        taken.add(name)
    if ir.weights not in manifest.files:
        raise BundleError(f"{where}.weights: {ir.weights!r} is not in files", code=Refusal.REFERENCE)
    if not 0 <= ir.shared_bytes <= manifest.files[ir.weights].bytes:
        raise BundleError(
            f"{where}.shared_bytes: {ir.shared_bytes} is more than {ir.weights!r} has", code=Refusal.KEY_VALUE
        )


def _flow(programs: Iterable[ProgramInfo], checked: _Checked, before: Sequence[_Made], inside: str) -> dict[str, int]:
    """What `programs` make, run in this order where the tensors of `before` are there already."""
    made: dict[str, int] = {}
    places = (made, *before)
    for program in programs:
        where = f"manifest.json: {inside}program {program.name!r}"
        checked.count(1 + len(program.inputs) + len(program.outputs))
        tasks = checked.masks[program.name]
        for tensor in program.inputs:
            made_for = next((place[tensor] for place in places if tensor in place), None)
            if made_for is None:
                raise BundleError(f"{where}: no earlier program makes its input {tensor!r}", code=Refusal.FLOW)
            if tasks & ~made_for:
                raise BundleError(f"{where}: its input {tensor!r} is not made for all of its tasks", code=Refusal.FLOW)
        for tensor in program.outputs:
            if any(tensor in place for place in places):
                raise BundleError(f"{where}: its output {tensor!r} is made twice", code=Refusal.FLOW)
            made[tensor] = tasks
    return made


def _check_outputs(checked: _Checked, made: _Made, inside: str) -> None:
    checked.count(len(checked.tasks))
    for name, task in checked.manifest.tasks.items():
        if not made.get(task.output, 0) & checked.tasks[name]:
            raise BundleError(
                f"manifest.json: {inside}tasks.{name}.output: no program of the task makes {task.output!r}",
                code=Refusal.FLOW,
            )


def _check_point(
    configuration: Configuration,
    name: str,
    manifest: Manifest,
    encoders: Mapping[str, EncoderPoint],
    points: Mapping[tuple[str, str, float], tuple[str, ...]],
) -> None:
    """The programs of a named configuration are those of the encoder and the decoders that it names."""
    inside = f"configurations: {configuration.name!r}: "
    if manifest.widths is None:
        raise BundleError(
            f"manifest.json: {inside}it names an encoder, and the bundle has no widths", code=Refusal.WIDTHS
        )
    if name not in encoders:
        raise BundleError(
            f"manifest.json: {inside}there is no encoder {name!r}{nearest(name, encoders)}", code=Refusal.REFERENCE
        )
    _check_tasks(configuration.decoders, manifest, f"{inside}decoders")
    named = set(encoders[name].programs)
    for task, width in configuration.decoders.items():
        if (name, task, width) not in points:
            raise BundleError(
                f"manifest.json: {inside}encoder {name!r} has no decoder of {task} at {width:g}", code=Refusal.REFERENCE
            )
        named.update(points[name, task, width])
    if named != set(configuration.programs):
        raise BundleError(
            f"manifest.json: {inside}programs are not those of its encoder and decoders", code=Refusal.WIDTHS
        )


def _check_widths(checked: _Checked, widths: Widths) -> None:
    manifest = checked.manifest
    _check_tasks(widths.reference, manifest, "widths.reference")
    _check_tasks(widths.higher_is_better, manifest, "widths.higher_is_better")
    for task, reference in widths.reference.items():
        if reference == 0:
            raise BundleError(
                f"manifest.json: widths.reference.{task} is 0: a relative change is undefined", code=Refusal.WIDTHS
            )
    if not widths.encoders:
        raise BundleError("manifest.json: widths.encoders is empty", code=Refusal.KEY_VALUE)
    names: set[str] = set()
    for encoder in widths.encoders:
        inside = f"widths: encoder {encoder.name!r}: "
        if encoder.name in names:
            raise BundleError(f"manifest.json: {inside}it is listed twice", code=Refusal.TWICE)
        names.add(encoder.name)
        if len(encoder.widths) != len(widths.stages):
            raise BundleError(
                f"manifest.json: {inside}{len(encoder.widths)} widths for the {len(widths.stages)} stages",
                code=Refusal.WIDTHS,
            )
        _check_tasks(encoder.decoders, manifest, f"{inside}decoders")
        _check_encoder(encoder, inside, checked, widths)


def _check_encoder(encoder: EncoderPoint, inside: str, checked: _Checked, widths: Widths) -> None:
    """The encoder with every width of every task's decoder.

    Decoders read the bundle's inputs and the encoder's tensors only, and those of two tasks make no tensor of one name:
    so decoders that each fit the encoder fit together, whichever widths they have.
    """
    made = _flow(_found(encoder.programs, checked.programs, inside), checked, (checked.inputs,), inside)
    makers: dict[str, str] = {}
    for task, points in encoder.decoders.items():
        output, reference = checked.manifest.tasks[task].output, widths.reference[task]
        for point in points:
            here = f"{inside}{task} at {point.width:g}: "
            if not math.isfinite((point.metric - reference) / reference):
                raise BundleError(
                    f"manifest.json: {here}metric {point.metric:g} is out of proportion to its reference",
                    code=Refusal.WIDTHS,
                )
            own = _found(point.programs, checked.programs, here)
            for program in own:
                if checked.masks[program.name] != checked.tasks[task]:
                    raise BundleError(
                        f"manifest.json: {here}program {program.name!r} is not one of {task} alone", code=Refusal.WIDTHS
                    )
            decoded = _flow(own, checked, (made, checked.inputs), here)
            if not decoded.get(output, made.get(output, 0)) & checked.tasks[task]:
                raise BundleError(f"manifest.json: {here}no program makes its output {output!r}", code=Refusal.FLOW)
            for tensor in decoded:
                if makers.setdefault(tensor, task) != task:
                    other = makers[tensor]
                    raise BundleError(
                        f"manifest.json: {here}tensor {tensor!r} is also made by a decoder of {other}",
                        code=Refusal.WIDTHS,
                    )


def _found(names: Iterable[str], programs: Mapping[str, ProgramInfo], inside: str) -> list[ProgramInfo]:
    found: dict[str, ProgramInfo] = {}
    for name in names:
        if name not in programs:
            raise BundleError(
                f"manifest.json: {inside}there is no program {name!r}{nearest(name, programs)}", code=Refusal.REFERENCE
            )
        if name in found:
            raise BundleError(f"manifest.json: {inside}program {name!r} is listed twice", code=Refusal.TWICE)
        if programs[name].macs is None:
            raise BundleError(f"manifest.json: {inside}program {name!r} has no macs", code=Refusal.KEY_MISSING)
        found[name] = programs[name]
    return list(found.values())


def _check_tasks(given: Mapping[str, object], manifest: Manifest, key: str) -> None:
    """`given` has an entry for each task, and no other."""
    for task in manifest.tasks:
        if task not in given:
            raise BundleError(f"manifest.json: {key}: task {task!r} is missing", code=Refusal.REFERENCE)
    for name in given:
        if name not in manifest.tasks:
            raise BundleError(
                f"manifest.json: {key}: there is no task {name!r}{nearest(name, manifest.tasks)}",
                code=Refusal.REFERENCE,
            )
