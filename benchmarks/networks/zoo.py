"""Measures what the shipped networks learnt, beside single-task networks and a constant predictor.

    python -m benchmarks.networks.zoo

Writes ``results/zoo.json``, and ``examples/scenes/baselines.json`` with the single-task metrics that reports compare
with.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mtlc.evaluation.constant_predictor import constant_metrics
from mtlc.evaluation.evaluate import evaluate
from mtlc.job.job import load_job
from mtlc.program.tensors_file import load_tensors
from mtlc.tasks.task import delta_m
from mtlc.workflows.opened_job import open_job

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "scenes"


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    opened = open_job(load_job(EXAMPLES / "prune.toml"))
    criteria = opened.criteria
    multi = evaluate(opened.program, criteria, opened.splits.validation).metrics
    constant = constant_metrics(criteria, opened.splits.calibration, opened.splits.validation)
    single = {}
    for task in opened.program.task_names:
        alone = open_job(load_job(EXAMPLES / f"single_{task}.toml"), weights=False)
        load_tensors(alone.program.module, EXAMPLES / "weights" / f"single_{task}.safetensors")
        single[task] = evaluate(alone.program, alone.criteria, alone.splits.validation).metrics[task]
    tasks = {
        task.name: {
            "metric": task.metric, "unit": criteria.units[task.name],
            "higher_is_better": criteria.higher_is_better[task.name],
            "constant": constant[task.name], "single_task": single[task.name], "multi_task": multi[task.name],
        }
        for task in opened.program.tasks
    }  # fmt: skip
    found = {"tasks": tasks, "delta_m": delta_m(multi, single, criteria.higher_is_better)}
    (ROOT / "benchmarks" / "results" / "zoo.json").write_text(json.dumps(found, indent=1) + "\n")
    (EXAMPLES / "baselines.json").write_text(json.dumps({"metrics": single}, indent=1) + "\n")


if __name__ == "__main__":
    main()
