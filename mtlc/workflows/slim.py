"""``mtlc slim``: from a job to a slimmable network, its points, its bundle and its page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mtlc
from mtlc.compress.passes.slim import Slim, SlimConfig
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.pipeline.step_folder import disk_errors
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_search import Question, Search
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.errors import UserError
from mtlc.export.widths.slimmable_network import DecoderWidth, EncoderWidths, SlimmableNetwork
from mtlc.export.widths.write_widths import export_widths
from mtlc.files import write_json
from mtlc.hw.cost.count import onnx_workload
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.quantity import Quantity
from mtlc.report.widths_report import write_widths_report
from mtlc.runtime.widths.width_choice import normalised_preference
from mtlc.workflows.export_job import add_formats, export_program, samples_of
from mtlc.workflows.opened_job import Opened, check_devices, open_job, read_baselines
from mtlc.workflows.output_folder import output_folder
from mtlc.workflows.slim_results import DEFAULT, LEAST, _decoder_levels, _results, _uniform
from mtlc.workflows.supernet_measurements import evaluations_of
from mtlc.workflows.verify import TOLERANCE


def slim_job(
    job: Job, out: Path, *, trained: Path | None = None, log: Log = silent, progress: bool = False
) -> dict[str, Any]:
    """Train the job's network to run at many widths, choose encoders for its budgets, and write everything to `out`.

    With `trained`, the checkpoint of a slimmable network, nothing is trained.

    ``program/`` is the checkpoint that ``mtlc search`` takes, ``bundle`` runs every chosen encoder with every width of
    each decoder, ``slim.json`` and ``widths.html`` say what each costs and pays; the former is returned. What is finished
    is not done again. Raises `UserError` for bad input, `VerificationError` where the bundle and the network differ.
    """
    section = job.file.slim
    steps = _steps(job)
    check_devices(job)
    baselines = read_baselines(job)
    started = time.monotonic()
    log("reading the data and building the network")
    opened = open_job(job, weights=trained is None)
    normalised_preference(section.prefer, opened.program.task_names)
    program = opened.program if trained is None else Program.load(trained, job.source)
    if trained is not None:
        _targets(job, Supernet.of(program))
    elif steps[0].name == "slim":  # what passes before it leave of the network is not known yet
        _targets(job, Supernet(program, Slim(SlimConfig.model_validate(steps[0].config)).table(program)))
    with output_folder(out):
        if trained is None:
            program = run_passes(
                program, steps, splits=opened.splits, criteria=opened.criteria, out=out, seed=job.seed, log=log,
                progress=progress,
            )[-1].program  # fmt: skip
        supernet = Supernet.of(program)
        with disk_errors(out / "program"):
            program.save(out / "program")
        evaluations = evaluations_of(
            supernet,
            opened,
            out / "program",
            samples=section.samples,
            recalibrate=section.recalibrate,
            workers=section.workers,
            log=log,
        )
        try:
            points = _points(job, supernet, opened, evaluations, log)
            metrics = _measured(supernet, points, evaluations, log)
        finally:
            evaluations.executor.close()
        log("exporting and verifying the bundle")
        network = _network(supernet, opened, points, metrics, section.recalibrate)
        bundle = _export(opened, network, out)
        log("measuring the named configurations on the validation split")
        found = _results(opened, supernet, network, points, evaluations, bundle, baselines)
        found |= {key: program.history[-1].report[key] for key in ("training", "groups", "left_alone")}
        found["versions"] = {"mtlc": mtlc.__version__, "torch": torch.__version__}
        found["job"] = {"file": job.path.name, "seed": job.seed, "slim": section.model_dump()}
        found["seconds"] = time.monotonic() - started
        write_json(out / "slim.json", found)
        write_widths_report(found, out / "widths.html")
    return found


def _steps(job: Job) -> Sequence[Step]:
    """The job's passes, which end in ``slim``; without any, ``slim`` with its defaults."""
    if job.file.budget is not None:
        raise UserError("[budget] belongs to mtlc run; the budgets of a slimmable network are a list: [slim] budgets")
    if not job.steps:
        return [Step("slim", SlimConfig(), "the default pass 'slim'")]
    if job.steps[-1].name != "slim":
        named = ", ".join(step.name for step in job.steps)
        raise UserError(f"mtlc slim needs a pass 'slim' as the last of the job; its passes are {named}")
    return job.steps


def _targets(job: Job, supernet: Supernet) -> dict[str, float]:
    """The job's budgets in MACs. Raises `UserError` for one that not even the narrowest network keeps."""
    widest, least = supernet.macs(supernet.largest), supernet.macs(supernet.smallest)
    targets = {str(text): Quantity.parse("macs", text).absolute(widest) for text in job.file.slim.budgets}
    for text, target in targets.items():
        if target < least:
            raise UserError(
                f"[slim] budgets: {text!r} is under the least that this network can run: {least / 1e6:.4g} MMACs, "
                f"{least / widest:.1%} of the widest; raise it, or lower round_to"
            )
    return targets


def _points(
    job: Job, supernet: Supernet, opened: Opened, evaluations: Evaluations, log: Log
) -> dict[str, Configuration]:
    """The named configurations, the widest first: a search for each budget of the job, and the narrowest.

    Two budgets may end at the same configuration; each name can be asked for.
    """
    search = Search(supernet, evaluations, opened.criteria.higher_is_better, seed=job.seed)
    preference = normalised_preference(job.file.slim.prefer, supernet.tasks)
    named: dict[str, Configuration] = {DEFAULT: supernet.largest}
    for text, target in sorted(_targets(job, supernet).items(), key=lambda item: -item[1]):
        found = search.find(Question(preference, target))
        log(
            f"{text}: {found.configuration}, {found.cost / 1e6:.4g} MMACs, {100 * found.gain:+.2f} % after {found.runs} measurements"
        )
        named[text] = found.configuration
    named[LEAST] = supernet.smallest
    return named


def _measured(
    supernet: Supernet, points: Mapping[str, Configuration], evaluations: Evaluations, log: Log
) -> dict[tuple[float, ...], dict[tuple[float, ...], dict[str, float]]]:
    """By encoder and level of decoders, the metrics of all tasks."""
    encoders = list(dict.fromkeys(point.encoder for point in points.values()))
    levels = _decoder_levels(supernet)
    log(f"measuring {len(encoders)} encoders with decoders at {len(levels)} widths")
    asked = [Configuration(encoder, level) for encoder in encoders for level in levels]
    evaluations.of(_uniform(supernet))
    metrics = evaluations.of(asked)
    found: dict[tuple[float, ...], dict[tuple[float, ...], dict[str, float]]] = {}
    for configuration, of in zip(asked, metrics, strict=True):
        found.setdefault(configuration.encoder, {})[configuration.decoders] = of
    return found


def _network(
    supernet: Supernet,
    opened: Opened,
    points: Mapping[str, Configuration],
    metrics: Mapping[tuple[float, ...], Mapping[tuple[float, ...], Mapping[str, float]]],
    recalibrate: int,
) -> SlimmableNetwork:
    """What is exported: each encoder with every level of decoders, cut out, with statistics of its own.

    All are measured alike, the widest too: an encoder's do not depend on the decoders.
    """
    names = {encoder: f"e{number}" for number, encoder in enumerate(metrics, 1)}

    def cut_out(configuration: Configuration) -> Program:
        program = supernet.narrow(configuration)
        recalibrate_batchnorm(program, opened.splits, recalibrate)
        return program

    encoders = []
    for encoder, levels in metrics.items():
        decoders = []
        for level, of in levels.items():
            configuration = Configuration(encoder, level)
            decoders.append(DecoderWidth(max(level), cut_out(configuration), supernet.kept_indices(configuration), of))
        encoders.append(EncoderWidths(names[encoder], encoder, tuple(decoders)))
    configurations = {
        name: (names[point.encoder], dict(zip(supernet.tasks, point.decoders, strict=True)))
        for name, point in points.items()
    }
    higher = {task: bool(opened.criteria.higher_is_better[task]) for task in supernet.tasks}
    reference = metrics[supernet.largest.encoder][supernet.largest.decoders]
    return SlimmableNetwork(
        supernet.program, supernet.stages, supernet.table.widths, tuple(encoders), configurations, reference, higher
    )


def _export(opened: Opened, network: SlimmableNetwork, out: Path) -> dict[str, Any]:
    """The bundle of all widths, and for its size that of the widest network alone."""
    section = opened.job.file.export
    suffix = ".mtlc" if section.archive else ""
    criteria = opened.criteria.restricted(network.widest.task_names)
    whole = export_program(opened, network.widest, out / "widest-bundle")
    report = export_widths(
        network, out / f"bundle{suffix}", samples=samples_of(opened), count_macs=lambda model: onnx_workload(model).macs,
        criteria=criteria, archive=section.archive, tolerance=section.tolerance or TOLERANCE,
        provenance={"job": opened.job.path.name, "seed": opened.job.seed}, experts=section.experts, backend=section.backend,
        batch=section.batch,
    )  # fmt: skip
    return {**add_formats(section, report), "widest_bytes": whole["bytes"]}
