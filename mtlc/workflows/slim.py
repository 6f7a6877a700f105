"""Makes a network that runs at many widths of a job's network: ``mtlc slim``.

It trains the widths together, searches a configuration for each of the job's budgets, exports one bundle of them all,
and writes what each costs and is worth. A *configuration* is a width for every encoder stage and every task's decoder;
an exported bundle holds a few encoders, each with every width of each decoder:

    encoder e1  (1, 1, 1)     ── decoders at 0.5, 0.75, 1     "default": e1 with all decoders at 1
    encoder e2  (1, 0.75, 1)  ── decoders at 0.5, 0.75, 1     "60%":     e2 with decoders as the search chose them
    …

So a session can still trade one task for another within a budget after export.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
from mtlc.hw.cost.count import onnx_workload
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.quantity import Quantity
from mtlc.report.widths_report import write_widths_report
from mtlc.results.slim import SlimResult
from mtlc.runtime.widths.width_choice import normalised_preference
from mtlc.workflows.export_job import add_formats, export_program, samples_of
from mtlc.workflows.job_as_run import overrides_of, write_job
from mtlc.workflows.job_device import on_the_jobs_device
from mtlc.workflows.opened_job import Opened, check_devices, open_job, read_baselines
from mtlc.workflows.output_folder import output_folder
from mtlc.workflows.preconditions import check_preconditions, trainings
from mtlc.workflows.slim_results import DEFAULT, LOW_POWER, decoder_levels, slim_results, uniform_configurations
from mtlc.workflows.supernet_measurements import evaluations_of
from mtlc.workflows.tracked_verb import tell_slim, tracked, trackers_of
from mtlc.workflows.verify import TOLERANCE

Levels = Mapping[tuple[float, ...], Mapping[tuple[float, ...], dict[str, float]]]
"""By an encoder's widths, then by the widths of the decoders: each task's metric."""


@on_the_jobs_device
def slim_job(
    job: Job, out: Path, *, trained: Path | None = None, log: Log = silent, progress: bool = False
) -> SlimResult:
    """Train the job's network to run at many widths, choose encoders for its budgets, and write everything to `out`.

    With `trained`, the checkpoint of a slimmable network, nothing is trained.

    ``program/`` is the checkpoint that ``mtlc search`` takes, ``bundle`` runs every chosen encoder with every width of
    each decoder, ``slim.json`` and ``widths.html`` say what each costs and is worth; the former is returned. What is
    finished is not done again. Raises `UserError` for bad input, `VerificationError` where the bundle and the network
    differ.
    """
    section = job.file.slim
    steps = _steps(job)
    check_devices(job)
    baselines = read_baselines(job)
    trackers = trackers_of(job)
    started = time.monotonic()
    log("reading the data and building the network")
    opened = open_job(job, weights=trained is None, log=log)
    program = _untrained(job, opened, steps) if trained is None else _checkpoint(job, opened, trained)
    with output_folder(out), ExitStack() as stack:
        check_preconditions(opened, trainings(steps) if trained is None else [], log)
        stack.enter_context(tracked(job, "slim", out, trackers, log))
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
            named = _named_configurations(job, supernet, opened, evaluations, log)
            metrics = _measure_every_level(supernet, named, evaluations, log)
        finally:
            evaluations.executor.close()
        log("exporting and verifying the bundle")
        network = _cut_out(supernet, opened, named, metrics, section.recalibrate)
        bundle = _export(opened, network, out)
        log("measuring the named configurations on the validation split")
        found = slim_results(opened, supernet, network, named, evaluations, bundle, baselines)
        trained_with = program.history[-1].report
        found = SlimResult.model_validate(
            dict(found)
            | {key: trained_with[key] for key in ("training", "groups", "left_alone")}
            | {
                "versions": {"mtlc": mtlc.__version__, "torch": torch.__version__},
                "job": {
                    "file": job.path.name,
                    "seed": job.seed,
                    "slim": section.model_dump(mode="json"),
                    **overrides_of(job),
                },
                "seconds": time.monotonic() - started,
            }
        )
        write_job(job, out)
        found.write(out / "slim.json")
        write_widths_report(found, out / "widths.html")
        tell_slim(found, out)
    return found


def _untrained(job: Job, opened: Opened, steps: Sequence[Step]) -> Program:
    """The job's network. Its budgets are checked before anything is trained, where that can be."""
    normalised_preference(job.file.slim.prefer, opened.program.task_names)
    # What passes before `slim` leave of the network is not known yet: then budgets are checked after them.
    if steps[0].name == "slim":
        _targets(job, Slim(SlimConfig.model_validate(steps[0].config)).supernet(opened.program))
    return opened.program


def _checkpoint(job: Job, opened: Opened, trained: Path) -> Program:
    """The slimmable network of the checkpoint `trained`, which the job's budgets fit."""
    normalised_preference(job.file.slim.prefer, opened.program.task_names)
    program = Program.load(trained, job.source)
    _targets(job, Supernet.of(program))
    return program


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


def _named_configurations(
    job: Job, supernet: Supernet, opened: Opened, evaluations: Evaluations, log: Log
) -> dict[str, Configuration]:
    """The configurations that have a name, the widest first: a search for each budget of the job, and the narrowest.

    Two budgets may end at the same configuration; each name can be asked for.
    """
    search = Search(supernet, evaluations, opened.criteria.higher_is_better, seed=job.seed)
    preference = normalised_preference(job.file.slim.prefer, supernet.tasks)
    named: dict[str, Configuration] = {DEFAULT: supernet.largest}
    for text, target in sorted(_targets(job, supernet).items(), key=lambda item: -item[1]):
        found = search.find(Question(preference, target))
        log(
            f"{text}: {found.configuration}, {found.cost / 1e6:.4g} MMACs, {100 * found.gain:+.2f} % after "
            f"{found.runs} measurements"
        )
        named[text] = found.configuration
    named[LOW_POWER] = supernet.smallest
    return named


def _measure_every_level(
    supernet: Supernet, named: Mapping[str, Configuration], evaluations: Evaluations, log: Log
) -> Levels:
    """The metrics of every named encoder with the decoders at every width: all that the bundle can run.

    A task's metric depends on the encoder and its own decoder only, so mixed decoders need no measurement. Uniform
    configurations are measured too, for the page to compare with.
    """
    encoders = list(dict.fromkeys(one.encoder for one in named.values()))
    levels = decoder_levels(supernet)
    log(f"measuring {len(encoders)} encoders with decoders at {len(levels)} widths")
    asked = [Configuration(encoder, level) for encoder in encoders for level in levels]
    evaluations.of(uniform_configurations(supernet))
    found: dict[tuple[float, ...], dict[tuple[float, ...], dict[str, float]]] = {}
    for configuration, metrics in zip(asked, evaluations.of(asked), strict=True):
        found.setdefault(configuration.encoder, {})[configuration.decoders] = metrics
    return found


def _cut_out(
    supernet: Supernet, opened: Opened, named: Mapping[str, Configuration], metrics: Levels, recalibrate: int
) -> SlimmableNetwork:
    """What is exported: each encoder with every level of decoders, cut out, with batch-norm statistics of its own.

    All are measured alike, the widest too: an encoder's statistics do not depend on the decoders.
    """
    names = {encoder: f"e{number}" for number, encoder in enumerate(metrics, 1)}

    def narrowed(configuration: Configuration) -> Program:
        program = supernet.narrow(configuration)
        recalibrate_batchnorm(program, opened.splits, recalibrate)
        return program

    encoders = []
    for encoder, levels in metrics.items():
        decoders = []
        for level, of in levels.items():
            configuration = Configuration(encoder, level)
            kept = supernet.kept_indices(configuration)
            decoders.append(DecoderWidth(max(level), narrowed(configuration), kept, of))
        encoders.append(EncoderWidths(names[encoder], encoder, tuple(decoders)))
    configurations = {
        name: (names[one.encoder], dict(zip(supernet.tasks, one.decoders, strict=True))) for name, one in named.items()
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
        network, out / f"bundle{suffix}", samples=samples_of(opened),
        count_macs=lambda model: onnx_workload(model).macs, criteria=criteria, archive=section.archive,
        tolerance=section.tolerance or TOLERANCE, experts=section.experts, backend=section.backend, batch=section.batch,
        provenance={"job": opened.job.path.name, "seed": opened.job.seed},
    )  # fmt: skip
    return {**add_formats(section, report, samples_of(opened)), "widest_bytes": whole["bytes"]}
