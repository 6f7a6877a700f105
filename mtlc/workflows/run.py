"""``mtlc run``: the whole way from a job to a bundle, its report and its numbers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mtlc.compress.pass_interface import Budget
from mtlc.compress.pipeline.identity import program_hash
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.pipeline.step_folder import disk_errors
from mtlc.evaluation.evaluate import evaluate
from mtlc.files import write_json
from mtlc.hw.devices.device import Device
from mtlc.job.job import Job
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.workflows.export_job import add_formats, export_program
from mtlc.workflows.opened_job import Opened, check_devices, open_job, read_baselines
from mtlc.workflows.output_folder import output_folder
from mtlc.workflows.quantize import quantize_with
from mtlc.workflows.report import report
from mtlc.workflows.run_on_fpga import fpga_results
from mtlc.workflows.run_results import refuse_nan, results, time_bundles
from mtlc.workflows.sample_pictures import draw
from mtlc.workflows.sample_pictures import save as save_pictures


def run_job(job: Job, out: Path, *, log: Log = silent, progress: bool = False) -> dict[str, Any]:
    """Compress the job's network and write everything to `out`; returns what ``results.json`` holds.

    ``results["missed"]`` lists, a line each, the budget and the limits that were not kept on the validation split; the
    best effort is written all the same. Finished passes are kept in `out` and not run again. Raises `UserError` for bad
    input, `VerificationError` when a pass or the export broke something.
    """
    devices = check_devices(job)
    baselines = read_baselines(job)
    log("reading the data and building the network")
    opened = open_job(job)
    with output_folder(out):
        budget = _budget(job, opened.program, out)
        log("evaluating the original network on the validation split")
        before = refuse_nan(evaluate(opened.program, opened.criteria, opened.splits.validation), "original")
        steps = run_passes(
            opened.program, job.steps, splits=opened.splits, criteria=opened.criteria, out=out, budget=budget,
            seed=job.seed, log=log, progress=progress,
        )  # fmt: skip
        compressed = steps[-1].program if steps else opened.program
        log("evaluating the compressed network on the validation split")
        criteria = opened.criteria.restricted(compressed.task_names)
        after = refuse_nan(evaluate(compressed, criteria, opened.splits.validation), "compressed")
        original_bundle, bundle = _export(opened, compressed, out, log)
        timed = any(isinstance(one, Device) for one in devices) or (budget is not None and budget.kind == "latency")
        paths = Path(original_bundle["path"]), Path(bundle["path"])
        latency = time_bundles(opened, compressed, paths, log) if timed else None
        found = results(
            opened, compressed, steps, budget, (before, after), baselines, (original_bundle, bundle), latency, devices
        )  # fmt: skip
        simulated = fpga_results(opened, compressed, log)
        found["fpga"] = None if simulated is None else [one.to_dict() for one in simulated]
        if job.file.quantize is not None:
            _quantize(opened, paths, out, found, log)
        with disk_errors(out / "program"):
            compressed.save(out / "program")
        save_pictures(draw(opened, compressed, job.file.report.pictures), out / "pictures.npz")
        write_json(out / "results.json", found)
        report(out)
    return found


def _quantize(opened: Opened, bundles: tuple[Path, Path], out: Path, found: dict[str, Any], log: Log) -> None:
    """The compressed bundle in INT8 beside it; limits are those of the original network, as for the compressed one."""
    section, (original, bundle) = opened.job.file.quantize, bundles
    assert section is not None
    target = out / f"bundle-int8{bundle.suffix}"
    made = quantize_with(section, bundle, target, opened.criteria, opened.splits, None, original, log)
    found["quantization"] = add_formats(opened.job.file.export, made)
    missed_before = {name for name, task in found["tasks"].items() if task["within"] is False}
    for name, task in made["tasks"].items():
        if name not in missed_before and task["missed"] is not None:
            found["missed"].append(task["missed"])


def _budget(job: Job, program: Program, out: Path) -> Budget | None:
    """The budget in numbers. A share of a measured latency is measured once per network and kept: measuring anew would
    give another budget, and every finished step would be run again.
    """
    section = job.file.budget
    if section is None or section.kind != "latency" or not section.quantity.relative:
        return job.budget(program)
    key = hashlib.sha256(f"{program_hash(program)}:{section.model_dump_json()}".encode()).hexdigest()
    path = out / "budget.json"
    try:
        kept = json.loads(path.read_text())
        if kept["key"] == key:
            return Budget("latency", float(kept["target_ms"]), kept["device"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not ours to trust: measure
    budget = job.budget(program)
    assert budget is not None
    write_json(path, {"key": key, "target_ms": budget.target, "device": budget.device})
    return budget


def _export(opened: Opened, compressed: Program, out: Path, log: Log) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both bundles, exported alike and verified, so that what is compared later differs in the network only."""
    log("exporting and verifying the original network")
    original = export_program(opened, opened.program, out / "reference-bundle")
    log("exporting and verifying the compressed network")
    return original, export_program(opened, compressed, out / "bundle")
