"""``mtlc run``: the whole way from a job to a bundle, its report and its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

import mtlc
from mtlc.compile.plan import unreachable
from mtlc.compile.workspace import Opened, open_job, output_folder
from mtlc.compress.passes import Budget
from mtlc.compress.pipeline import Finished, program_hash, run_passes
from mtlc.data import fetch
from mtlc.errors import UserError
from mtlc.evaluation import Evaluation, evaluate
from mtlc.export import export_bundle
from mtlc.files import write_json
from mtlc.hw.workload import macs, parameters
from mtlc.job import Job
from mtlc.program import Program
from mtlc.tasks import delta_m

Log = Callable[[str], None]
SCHEMA = 1
_VERIFIED_SAMPLES = 8


def run_job(
    job: Job, out: Path, *, log: Log = lambda line: None, progress: bool = False
) -> dict[str, Any]:
    """Compress the job's network and write everything to `out`; returns what ``results.json`` holds.

    ``results["missed"]`` lists, a line each, the budget and the limits that were not kept on the validation split; the
    best effort is written all the same. Finished passes are kept in `out` and not run again. Raises `UserError` for bad
    input, `VerificationError` when a pass or the export broke something.
    """
    log("reading the data and building the network")
    opened = open_job(job)
    baselines = _baselines(job)
    with output_folder(out):
        budget = _budget(job, opened.program, out)
        _refuse_unreachable(job, budget, opened.program)
        log("evaluating the original network on the validation split")
        before = evaluate(opened.program, opened.criteria, opened.splits.validation)
        steps = run_passes(
            opened.program, job.steps, splits=opened.splits, criteria=opened.criteria, out=out, budget=budget,
            seed=job.seed, finetune=job.file.train, log=log, progress=progress,
        )  # fmt: skip
        compressed = steps[-1].program if steps else opened.program
        log("evaluating the compressed network on the validation split")
        after = evaluate(compressed, opened.criteria, opened.splits.validation)
        bundles = _export(opened, compressed, out, log)
        results = _results(opened, compressed, steps, budget, before, after, baselines, bundles)
        compressed.save(out / "program")
        _finish(opened, compressed, results, out, log)
    return results


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


def _refuse_unreachable(job: Job, budget: Budget | None, program: Program) -> None:
    """Refuse now what no pruning can reach, rather than after hours of it."""
    prunes = [step for step in job.steps if step.name == "prune"]
    if budget is None or len(prunes) != 1:
        return
    error = unreachable(budget, program, prunes[0].config.model_dump())
    if error is not None:
        raise error


def _baselines(job: Job) -> dict[str, float] | None:
    """The metrics of single-task networks by task: ``{"depth": 0.6}``, or the same under a key ``"metrics"``."""
    if job.file.report.baselines is None:
        return None
    path = job.resolve_path(job.file.report.baselines)
    try:
        values = json.loads(path.read_text())
        values = values.get("metrics", values)
        found = {task.name: float(values[task.name]) for task in job.tasks}
    except FileNotFoundError:
        raise UserError(f"[report] baselines: {path} does not exist") from None
    except KeyError as error:
        raise UserError(f"[report] baselines: {path} has no metric for task {error}") from None
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f'[report] baselines: {path} must be JSON such as {{"depth": 0.6}}') from None
    return found


def _samples(opened: Opened) -> dict[str, Tensor]:
    """Real inputs for verification, from the calibration split; a small split is gone through again."""
    split = opened.splits.calibration
    batch = fetch(split, [index % len(split) for index in range(_VERIFIED_SAMPLES)])
    return {name: batch[name] for name in opened.program.inputs}


def _export(opened: Opened, compressed: Program, out: Path, log: Log) -> dict[str, dict[str, Any]]:
    """Both bundles, exported alike and verified, so that what is compared later differs in the network only."""
    section, job = opened.job.file.export, opened.job
    suffix = ".mtlc" if section.archive else ""
    settings: dict[str, Any] = {"fuse": section.fuse, "archive": section.archive}
    if section.tolerance is not None:
        settings["tolerance"] = section.tolerance
    samples, reports = _samples(opened), {}
    for role, program, name in (
        ("original", opened.program, f"reference-bundle{suffix}"),
        ("compressed", compressed, f"bundle{suffix}"),
    ):
        log(f"exporting and verifying the {role} network")
        reports[role] = export_bundle(
            program, out / name, samples=samples, criteria=opened.criteria,
            provenance={"job": job.path.name, "seed": job.seed}, **settings,
        )  # fmt: skip
    return reports


def _results(
    opened: Opened,
    compressed: Program,
    steps: list[Finished],
    budget: Budget | None,
    before: Evaluation,
    after: Evaluation,
    baselines: Mapping[str, float] | None,
    bundles: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    criteria, job = opened.criteria, opened.job
    tasks, missed = {}, [step.missed for step in steps if step.missed]
    for task in job.tasks:
        name, better = task.name, criteria.higher_is_better[task.name]
        old, new = before.metrics[name], after.metrics[name]
        kept = None if task.max_drop is None else task.max_drop.allows(old, new, better)
        if kept is False and task.max_drop is not None:
            bound = task.max_drop.bound(old, better)
            missed.append(
                f"task {name!r}: {task.metric} is {new:.4g} on validation, its limit is {bound:.4g} "
                f"({old:.4g} before, max_drop {task.max_drop})"
            )
        tasks[name] = {
            "metric": task.metric,
            "unit": criteria.units[name],
            "kind": criteria.kinds[name],
            "higher_is_better": better,
            "before": old,
            "after": new,
            "limit": None if task.max_drop is None else str(task.max_drop),
            "bound": None if task.max_drop is None else task.max_drop.bound(old, better),
            "kept": kept,
            "baseline": None if baselines is None else baselines[name],
            "loss": {"before": before.losses[name], "after": after.losses[name]},
            "details": {"before": before.details[name], "after": after.details[name]},
        }
    cost = {
        role: {"macs": macs(program), "params": parameters(program), "bundle_bytes": bundles[role]["bytes"]}
        for role, program in (("original", opened.program), ("compressed", compressed))
    }
    if budget is not None and budget.kind != "latency" and cost["compressed"][budget.kind] > budget.target:
        line = f"[budget] {budget.kind} = {budget.target:,.0f}: the network has {cost['compressed'][budget.kind]:,}"
        if not any(step.missed for step in steps):
            missed.append(line)
    change = {"original": delta_m(after.metrics, before.metrics, criteria.higher_is_better)}
    if baselines is not None:
        change["baselines"] = delta_m(after.metrics, baselines, criteria.higher_is_better)
        change["original_to_baselines"] = delta_m(before.metrics, baselines, criteria.higher_is_better)
    return {
        "schema": SCHEMA,
        "mtlc": mtlc.__version__,
        "job": job.path.name,
        "seed": job.seed,
        "tasks": tasks,
        "delta_m": change,
        "cost": cost,
        "budget": None if budget is None else asdict(budget),
        "missed": missed,
        "passes": [
            {
                "name": step.name, "config": opened_config(job, step), "report": step.report, "cost": step.cost,
                "missed": step.missed, "seconds": step.seconds,
            }
            for step in steps
        ],
        "artifacts": {f"{step.index:02d}-{step.name}": step.artifacts for step in steps if step.artifacts},
        "bundles": dict(bundles),
    }  # fmt: skip


def opened_config(job: Job, step: Finished) -> dict[str, Any]:
    """The configuration of a finished step, defaults included."""
    return job.steps[step.index - 1].config.model_dump(mode="json")


def _finish(opened: Opened, compressed: Program, results: dict[str, Any], out: Path, log: Log) -> None:
    raise NotImplementedError
