"""Goes the whole way from a job to a bundle, its report and its numbers (``mtlc run``)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mtlc.compress.pass_interface import Budget, Context
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.pipeline.step_folder import disk_errors
from mtlc.hw.devices.device import Device
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.report.sections.registry import sections
from mtlc.results.quantize import QuantizeResult
from mtlc.results.run import RunResults
from mtlc.results.tasks import chance_warnings
from mtlc.workflows.bundle_latency import time_bundles
from mtlc.workflows.chances import few_labels
from mtlc.workflows.device_times import Found
from mtlc.workflows.evaluated import constants_of, evaluated, not_learned
from mtlc.workflows.export_job import add_formats, export_program, samples_of
from mtlc.workflows.job_as_run import write_job
from mtlc.workflows.job_device import on_the_jobs_device
from mtlc.workflows.opened_job import Opened, check_devices, open_job, read_baselines
from mtlc.workflows.output_folder import output_folder
from mtlc.workflows.preconditions import check_passes, check_preconditions, trainings
from mtlc.workflows.quantize import quantize_with
from mtlc.workflows.report import report
from mtlc.workflows.run_budget import read_budget
from mtlc.workflows.run_on_fpga import fpga_results
from mtlc.workflows.run_results import Work, results
from mtlc.workflows.sample_pictures import draw
from mtlc.workflows.sample_pictures import save as save_pictures
from mtlc.workflows.tracked_verb import tell_run, tracked, trackers_of


@on_the_jobs_device
def run_job(job: Job, out: Path, *, wait_quiet: bool = False, log: Log = silent, progress: bool = False) -> RunResults:
    """Compress the job's network and write everything to `out`; returns what ``results.json`` holds.

    ``missed`` lists, a line each, the budget and the limits that were not kept on the validation split; the best effort
    is written all the same. Finished passes are kept in `out` and not run again. With `wait_quiet` the latency is
    measured when other processes do little, or after five minutes. Raises `UserError` for bad input,
    `VerificationError` when a pass or the export broke something.
    """
    devices, baselines = check_devices(job), read_baselines(job)
    trackers = trackers_of(job)
    sections({})  # of installed packages: what is wrong with one is told before hours of work
    log("reading the data and building the network")
    opened = open_job(job, log=log)
    with output_folder(out), ExitStack() as stack:
        budget = read_budget(job, opened.program, out, log)
        context = Context(opened.splits, opened.criteria, opened.program, out, budget, job.seed)
        check_passes(job.steps, context)
        check_preconditions(opened, trainings(job.steps), log)
        stack.enter_context(tracked(job, "run", out, trackers, log))
        before = evaluated(opened, opened.program, "original", log)
        constants = constants_of(opened)
        if warning := not_learned(opened, before.metrics, constants):
            log(f"warning: {warning}")  # before hours of work
        for warning in few_labels(opened, before):
            log(f"warning: {warning}")
        steps = run_passes(
            opened.program, job.steps, splits=opened.splits, criteria=opened.criteria, out=out, budget=budget,
            seed=job.seed, log=log, progress=progress, train_lr=None if job.train is None else job.train.lr,
        )  # fmt: skip
        compressed = steps[-1].program if steps else opened.program
        after = evaluated(opened, compressed, "compressed", log)
        bundles = _export(opened, compressed, out, log)
        paths = Path(bundles[0]["path"]), Path(bundles[1]["path"])
        timed = _is_timed(devices, budget)
        latency = time_bundles(opened, compressed, paths, log, wait_quiet) if timed else None
        fpga = fpga_results(opened, compressed, log)
        quantization = _quantize(opened, paths, out, log)
        work = Work(
            compressed, steps, budget, (before, after), constants, baselines, bundles, latency, devices, fpga,
            quantization,
        )  # fmt: skip
        found = results(opened, work)
        for line in chance_warnings(found.tasks):
            log(f"warning: {line}")
        _write(opened, compressed, found, out)
        tell_run(found, out)
    return found


def _is_timed(devices: Sequence[Found], budget: Budget | None) -> bool:
    """Whether something asks for times of this machine: a local device in the report, or a budget in milliseconds."""
    return any(isinstance(one, Device) for one in devices) or (budget is not None and budget.kind == "latency")


def _export(opened: Opened, compressed: Program, out: Path, log: Log) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both bundles, exported alike and verified, so that what is compared later differs in the network only."""
    log("exporting and verifying the original network")
    original = export_program(opened, opened.program, out / "reference-bundle")
    log("exporting and verifying the compressed network")
    return original, export_program(opened, compressed, out / "bundle")


def _quantize(opened: Opened, bundles: tuple[Path, Path], out: Path, log: Log) -> QuantizeResult | None:
    """The compressed bundle in INT8 beside it, if the job asks for it.

    Limits are those of the original network, as for the compressed one.
    """
    section, (original, bundle) = opened.job.file.quantize, bundles
    if section is None:
        return None
    target = out / f"bundle-int8{bundle.suffix}"
    made = quantize_with(section, bundle, target, opened.criteria, opened.splits, None, original, log)
    return QuantizeResult.model_validate(add_formats(opened.job.file.export, made, samples_of(opened)))


def _write(opened: Opened, compressed: Program, found: RunResults, out: Path) -> None:
    """Write the checkpoint, the results and the report to `out`."""
    with disk_errors(out / "program"):
        compressed.save(out / "program")
    save_pictures(draw(opened, compressed, opened.job.file.report.pictures), out / "pictures.npz")
    write_job(opened.job, out)
    found.write(out / "results.json")
    report(out)
