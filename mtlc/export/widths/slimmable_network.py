"""Describes a network of several widths to the exporter: its encoders, its decoders, and what each width keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtlc.errors import UserError, nearest
from mtlc.export.widths.shared_slices import Kept
from mtlc.program.program import Program

DEFAULT = "default"


@dataclass(frozen=True)
class DecoderWidth:
    """The network cut to one encoder and all decoders at one `width` (a share of the widest, above 0).

    `program` is a network of its own, of plain layers. `kept` says by layer path which output and input indices of the
    widest network's layer it has (None: all); layers that are not named have all. `metrics` are the tasks' with these
    widths.
    """

    width: float
    program: Program
    kept: Kept
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EncoderWidths:
    """An encoder: its name, its width in every stage, and the networks that have it, one for each width of decoders."""

    name: str
    widths: tuple[float, ...]
    decoders: tuple[DecoderWidth, ...]


@dataclass(frozen=True)
class SlimmableNetwork:
    """A network to be exported at several widths.

    `widest` holds the weights that the others have parts of. `widths` is the set that it was trained for, `stages`
    names the encoder's. `reference` is each task's metric at full width. `configurations` names ways to run it: an
    encoder, and a decoder's width for every task; ``"default"`` is what runs if nothing is chosen.
    """

    widest: Program
    stages: tuple[str, ...]
    widths: tuple[float, ...]
    encoders: tuple[EncoderWidths, ...]
    configurations: Mapping[str, tuple[str, Mapping[str, float]]]
    reference: Mapping[str, float]
    higher_is_better: Mapping[str, bool]


def check_network(network: SlimmableNetwork) -> None:
    """Raise `UserError` unless the network's encoders, decoders, configurations and metrics fit together."""
    names = [encoder.name for encoder in network.encoders]
    if len(set(names)) < len(names):
        raise UserError(f"widths: the encoder {next(n for n in names if names.count(n) > 1)!r} is there twice")
    for encoder in network.encoders:
        _check_encoder(network, encoder)
    tasks = network.widest.task_names
    _check_numbers(network.reference, tasks, "widths: reference")
    for task in tasks:
        if network.reference[task] == 0:
            raise UserError(f"widths: the reference metric of {task} is 0: a relative change is undefined")
        if task not in network.higher_is_better:
            raise UserError(f"widths: higher_is_better: task {task!r} is missing")
    if DEFAULT not in network.configurations:
        raise UserError(f"widths: there is no configuration {DEFAULT!r}")
    # Last, as a configuration picks from encoders that are known to be whole by now.
    known = {encoder.name: {decoders.width for decoders in encoder.decoders} for encoder in network.encoders}
    for name, (encoder_name, chosen) in network.configurations.items():
        _check_configuration(f"widths: configuration {name!r}", encoder_name, chosen, known, tasks)


def _check_encoder(network: SlimmableNetwork, encoder: EncoderWidths) -> None:
    where = f"widths: encoder {encoder.name!r}"
    # The name becomes part of file names and of configurations' names (``encoder.width``): no dot, no slash.
    if not re.fullmatch(r"[A-Za-z0-9_+-]+", encoder.name):
        raise UserError(f"{where}: its name may have letters, digits, _, + and - only")
    if len(encoder.widths) != len(network.stages):
        raise UserError(f"{where}: {len(encoder.widths)} widths for {len(network.stages)} stages")
    if not encoder.decoders:
        raise UserError(f"{where}: it has no decoders")
    # As they are written in names: two widths that look alike would get one name.
    widths = [f"{decoders.width:g}" for decoders in encoder.decoders]
    if len(set(widths)) < len(widths):
        raise UserError(f"{where}: decoders of one width are there twice: {', '.join(widths)}")
    tasks = network.widest.task_names
    for decoders in encoder.decoders:
        at = f"{where}, decoders at {decoders.width:g}"
        if decoders.program.task_names != tasks or decoders.program.inputs != network.widest.inputs:
            raise UserError(f"{at}: the network has other tasks or inputs than the widest")
        layers = dict(decoders.program.module.named_modules())
        for layer in decoders.kept:
            if layer not in layers:
                raise UserError(f"{at}: kept: the network has no layer {layer!r}{nearest(layer, layers)}")
        _check_numbers(decoders.metrics, tasks, f"{at}: metrics")


def _check_configuration(
    where: str, encoder: str, chosen: Mapping[str, float], known: Mapping[str, set[float]], tasks: Sequence[str]
) -> None:
    """`known` has the decoders' widths of every encoder by its name."""
    if encoder not in known:
        raise UserError(f"{where}: there is no encoder {encoder!r}")
    if set(chosen) != set(tasks):
        raise UserError(f"{where}: it must name a width for each of {', '.join(tasks)} and nothing else")
    for task, width in chosen.items():
        if width not in known[encoder]:
            raise UserError(f"{where}: encoder {encoder!r} has no decoders at {width:g}, as {task} asks for")


def _check_numbers(given: Mapping[str, float], tasks: Sequence[str], where: str) -> None:
    for task in tasks:
        if task not in given or not math.isfinite(given[task]):
            raise UserError(f"{where}: there is no finite number for task {task!r}")
