"""Measures what each task keeps of M³ViT micro when its experts are extracted, after both trainings.

    python -m benchmarks.experts.extraction [--weights FOLDER] [--seeds 0 1 2]

For each training (load balancing as in the paper, task–expert dependence), seed and task: the experts that the pass
keeps at a usage of 1 % on the calibration split, parameters, bytes on disk, active MACs, latency, and the metric on the
validation split beside the whole network's. For seed 0 also a sweep of thresholds, merging and re-routing instead of
dropping, and half the expert parameters by measured harm against by usage. Seed 0's weights are shipped; others are
looked for in FOLDER as ``<training>_<seed>.safetensors`` and trained there where missing (17 minutes each on a core).
Writes ``results/extraction.json``, and replaces there only the seeds that it was asked for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mtlc.compress.pass_interface import Budget, Context, PassResult
from mtlc.compress.passes.extract import Extract, ExtractConfig
from mtlc.evaluation.evaluate import evaluate
from mtlc.evaluation.splits import fetch
from mtlc.export import export_bundle
from mtlc.hw.measure.in_turns import measure
from mtlc.hw.measure.this_machine import this_machine
from mtlc.job.job import Job, load_job
from mtlc.moe.layers import moe_layers
from mtlc.program.program import Program
from mtlc.program.tensors_file import load_tensors
from mtlc.workflows.opened_job import Opened, open_job
from mtlc.workflows.train import train_job

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "scenes"
RESULTS = Path(__file__).parents[1] / "results" / "extraction.json"
TRAININGS = ("balance", "dependence")


def opened(training: str, seed: int, weights: Path) -> Opened:
    """The trained network of a seed, trained now if there is none."""
    job = load_job(EXAMPLES / f"moe_{training}.toml")
    job = Job(job.path, job.file.model_copy(update={"seed": seed}), job.steps, job.train)
    path = (
        EXAMPLES / "weights" / f"moe_{training}.safetensors"
        if seed == 0
        else weights / f"{training}_{seed}.safetensors"
    )
    if not path.exists():
        train_job(job, path, half=True, log=print)
    found = open_job(job, weights=False)
    load_tensors(found.program.module, path)
    return found


def extract(one: Opened, folder: Path, budget: Budget | None = None, **config: Any) -> PassResult:
    context = Context(one.splits, one.criteria, one.program, folder, budget, one.job.seed)
    step = Extract(ExtractConfig(**config))
    step.requires(one.program, context)
    return step.run(one.program, context)


def drop(one: Opened, program: Program, whole: dict[str, float]) -> dict[str, dict[str, float]]:
    """By task the metric on validation, and by how many percent it is worse than the whole network's."""
    criteria = one.criteria.restricted(program.task_names)
    metrics = evaluate(program, criteria, one.splits.validation).metrics
    found = {}
    for task, after in metrics.items():
        worse = (whole[task] - after) if criteria.higher_is_better[task] else (after - whole[task])
        found[task] = {"whole": whole[task], "extracted": after, "drop_percent": 100 * worse / whole[task]}
    return found


def expert_parameters(program: Program) -> int:
    return sum(layer.parameters_per_expert() * layer.rows for layer in moe_layers(program.module))


def per_task(one: Opened, whole: dict[str, float], folder: Path, timed: bool) -> dict[str, Any]:
    """The extracted network of every task alone."""
    found: dict[str, Any] = {}
    samples = fetch(one.splits.calibration, range(8))["image"]
    every = expert_parameters(one.program)
    if timed:
        export_bundle(one.program, folder / "whole", samples={"image": samples})
    for task in one.program.task_names:
        result = extract(one, folder / "work", tasks=(task,))
        layers = result.report["layers"]
        found[task] = {
            **drop(one, result.program, whole)[task],
            "kept_experts": [len(layer["kept"]) for layer in layers],
            "expert_parameters_gone": 1 - expert_parameters(result.program) / every,
            "parameters": result.report["params"],
            "active_macs": result.report["active_macs"],
            "coverage": [layer["tasks"][task]["coverage"] for layer in layers],
            "hit_a_dropped_expert": [layer["tasks"][task]["hit_dropped"] for layer in layers],
        }
        fewer = extract(one, folder / "work", tasks=(task,), threshold=0.05)
        found[task]["at_5_percent"] = {
            "kept_experts": [len(layer["kept"]) for layer in fewer.report["layers"]],
            "expert_parameters_gone": 1 - expert_parameters(fewer.program) / every,
            "drop_percent": drop(one, fewer.program, whole)[task]["drop_percent"],
        }
        if timed:
            path = folder / task
            report = export_bundle(result.program, path, samples={"image": samples})
            latency = measure(
                {"whole": folder / "whole", "extracted": path}, samples[:1].numpy(), tasks=task, rounds=200
            )
            found[task]["bytes"] = report["bytes"]
            found[task]["forms"] = sorted(report["experts"]["forms"].values())
            found[task]["latency"] = {key: latency[key] for key in ("bundles", "speedup")}
    return found


def variants(one: Opened, whole: dict[str, float], folder: Path) -> dict[str, Any]:
    """Other settings: the share of expert parameters gone, and each task's drop in percent on validation.

    What goes is decided on 128 calibration samples, by harm on 64 of them.
    """
    every = expert_parameters(one.program)

    def row(result: PassResult) -> dict[str, Any]:
        metrics = drop(one, result.program, whole)
        return {
            "expert_parameters_gone": 1 - expert_parameters(result.program) / every,
            "drop_percent": {task: entry["drop_percent"] for task, entry in metrics.items()},
        }

    found: dict[str, Any] = {}
    for task in ("semseg", "depth"):
        for threshold in (0.05, 0.2, 0.25, 0.3):
            for handle, reroute in (("drop", False), ("drop", True), ("merge", False)):
                name = "reroute" if reroute else handle
                result = extract(
                    one,
                    folder,
                    tasks=(task,),
                    threshold=threshold,
                    handle=handle,
                    reroute=reroute,
                    calibration_samples=128,
                )
                found[f"{task}, threshold {threshold:g}, {name}"] = row(result)
    # A budget that leaves a quarter and a half of the expert parameters, for all tasks in one network.
    rest = one.program.parameters_count() - every
    for share in (0.5, 0.25):
        target = rest + round(share * every)
        budget = Budget("params", float(target))
        result = extract(one, folder, budget, by="budget", calibration_samples=128, trial_samples=64)
        found[f"all tasks, {share:.0%} of the experts, by measured harm"] = row(result)
        found[f"all tasks, {share:.0%} of the experts, by usage"] = row(by_usage(one, folder, target))
        print("  ", found[f"all tasks, {share:.0%} of the experts, by measured harm"], flush=True)
    return found


def by_usage(one: Opened, folder: Path, target: int) -> PassResult:
    """The usage threshold that just meets the target: what the budget mode is compared with."""
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        result = extract(one, folder, threshold=middle, calibration_samples=128)
        low, high = (low, middle) if result.program.parameters_count() <= target else (middle, high)
    return extract(one, folder, threshold=high, calibration_samples=128)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, default=ROOT / "data" / "moe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"threshold": 0.01, "runs": {}, "variants": {}}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text())
    for seed in options.seeds:
        for training in TRAININGS:
            one = opened(training, seed, options.weights)
            whole = evaluate(one.program, one.criteria, one.splits.validation).metrics
            with TemporaryDirectory() as folder:
                tasks = per_task(one, whole, Path(folder), timed=seed == 0)
                found["runs"][f"{training}_{seed}"] = {"device": this_machine(), "whole": whole, "tasks": tasks}
                if seed == 0:
                    found["variants"][training] = variants(one, whole, Path(folder) / "variants")
            for task, entry in tasks.items():
                gone, worse = entry["expert_parameters_gone"], entry["drop_percent"]
                print(training, seed, task, entry["kept_experts"], f"{gone:.1%} gone, {worse:+.2f} % worse", flush=True)
            found["runs"] = dict(sorted(found["runs"].items()))
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
