"""Compares a slimmable network with networks of fixed width and with pruning at the same MACs.

    python -m benchmarks.slimmable.slimmable [--weights FOLDER] [--seeds 0 1 2] [--budgets 60% 40%]
        [--parts widest points pagcp]

For every seed: the job's start (8 epochs), the supernet trained from it (12 epochs; 6 with a low weight of the narrower
networks; 6 of the configurations that a search finds), and the same network trained alone (20 epochs in one schedule).
Δm is on the validation split, against the network trained alone.

- widest: the supernet at full width.
- points: what the search finds for each budget with all tasks alike, and a network of those widths trained alone from
  fresh weights for 20 epochs.
- pagcp: `prune` of the network trained alone to the MACs of the 40 % point, as examples/scenes/demo.toml prunes.

What is not in FOLDER is trained there: on one core about 6, 35, 14, 8 and 6 minutes for start, supernet, alone, a point
and pruning. Writes ``results/slimmable.json``, and replaces there only the seeds, budgets and parts that it was asked
for; the committed results are of ``--budgets 40%``, and of pruning for seeds 0 and 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mtlc.compress.pass_interface import Budget
from mtlc.compress.passes.prune import PruneConfig
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.pipeline.pipeline import run_passes
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations, Here, Measurer
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_search import Question, Search
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.compress.training.train_config import FinetuneConfig, TrainConfig
from mtlc.compress.training.trainer import train
from mtlc.evaluation.evaluate import evaluate
from mtlc.files import write_json
from mtlc.hw.cost.count import macs
from mtlc.job.job import Job, load_job
from mtlc.program.program import Program
from mtlc.program.tensors_file import load_tensors, save_tensors
from mtlc.runtime.widths.width_choice import normalised_preference
from mtlc.tasks.task import delta_m
from mtlc.workflows.opened_job import Opened, open_job
from mtlc.workflows.train import train_job

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "scenes"
RESULTS = Path(__file__).parents[1] / "results" / "slimmable.json"
EPOCHS = 20
PARTS = ("widest", "points", "pagcp")
SAMPLES, RECALIBRATE = 200, 512


def seeded(name: str, seed: int) -> Job:
    job = load_job(EXAMPLES / name)
    return Job(job.path, job.file.model_copy(update={"seed": seed}), job.steps, job.train)


def started(seed: int, folder: Path) -> Opened:
    """The network that the supernet starts from."""
    job, path = seeded("slim_start.toml", seed), folder / f"start_{seed}.safetensors"
    if not path.exists():
        train_job(job, path, log=print)
    one = open_job(job, weights=False)
    load_tensors(one.program.module, path)
    return one


def supernet(seed: int, folder: Path) -> tuple[Opened, Supernet]:
    """The slimmable network of a seed; seed 0's is shipped."""
    job = seeded("slim.toml", seed)
    shipped, path = EXAMPLES / "supernet", folder / f"net_{seed}" / "program"
    path = shipped if seed == 0 and shipped.exists() else path
    one = started(seed, folder)
    if not path.exists():
        done = run_passes(
            one.program, job.steps, splits=one.splits, criteria=one.criteria, out=path.parent, seed=seed, log=print
        )
        done[-1].program.save(path)
    return one, Supernet.of(Program.load(path))


def alone(seed: int, folder: Path, one: Opened) -> Program:
    """The same network trained by itself for as long as start and supernet together."""
    path = folder / f"alone_{seed}.safetensors"
    fresh = open_job(seeded("slim_start.toml", seed), weights=False).program
    if not path.exists():
        train(
            fresh, one.splits, one.criteria, TrainConfig(epochs=EPOCHS), seed=seed, checkpoint=folder / f"alone_{seed}"
        )
        save_tensors(fresh.module, path)
    load_tensors(fresh.module, path)
    return fresh


def narrow_alone(seed: int, folder: Path, one: Opened, net: Supernet, found: Configuration) -> Program:
    """A network of a configuration's widths, trained from fresh weights."""
    name = "-".join(f"{100 * width:.0f}" for width in (*found.encoder, *found.decoders))
    path = folder / f"narrow_{seed}_{name}.safetensors"
    program = net.narrow(found)
    if not path.exists():
        torch.manual_seed(seed)
        for module in program.module.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        train(program, one.splits, one.criteria, TrainConfig(epochs=EPOCHS), seed=seed, checkpoint=path.with_suffix(""))
        save_tensors(program.module, path)
    load_tensors(program.module, path)
    return program


def search_of(one: Opened, net: Supernet, folder: Path, seed: int) -> Search:
    measurer = Measurer(net, one.splits, one.criteria, SAMPLES, RECALIBRATE)
    evaluations = Evaluations(Here(measurer), net.tasks, folder / f"evaluations_{seed}.json", f"seed {seed}")
    return Search(net, evaluations, one.criteria.higher_is_better, seed=seed)


def validated(one: Opened, program: Program) -> dict[str, float]:
    return evaluate(program, one.criteria, one.splits.validation).metrics


def of_seed(seed: int, folder: Path, budgets: list[str], parts: list[str], before: Mapping[str, Any]) -> dict[str, Any]:
    one, net = supernet(seed, folder)
    higher = one.criteria.higher_is_better
    reference = validated(one, alone(seed, folder, one))
    found: dict[str, Any] = {**before, "alone": reference}

    def row(program: Program) -> dict[str, Any]:
        metrics = validated(one, program)
        return {"macs": macs(program), "metrics": metrics, "delta_m": delta_m(metrics, reference, higher)}

    whole = net.macs(net.largest)
    if "widest" in parts:
        found["start"] = row(one.program)
        found["widest"] = row(net.program)
        print(seed, "widest", found["widest"]["delta_m"], flush=True)
    search = search_of(one, net, folder, seed)
    equal = normalised_preference(None, net.tasks)
    for label in budgets:
        if "points" not in parts and "pagcp" not in parts:
            break
        point = search.find(Question(equal, float(label.rstrip("%")) / 100 * whole))
        cut = net.narrow(point.configuration)
        recalibrate_batchnorm(cut, one.splits, RECALIBRATE)
        entry = found.setdefault("points", {}).setdefault(label, {})
        entry["configuration"] = {"encoder": point.configuration.encoder, "decoders": point.configuration.decoders}
        entry["searched"] = row(cut)
        print(seed, label, "searched", entry["searched"]["delta_m"], flush=True)
        if "points" in parts:
            entry["alone"] = row(narrow_alone(seed, folder, one, net, point.configuration))
            entry["delta_m_against_alone"] = delta_m(entry["searched"]["metrics"], entry["alone"]["metrics"], higher)
            print(seed, label, "alone", entry["alone"]["delta_m"], entry["delta_m_against_alone"], flush=True)
        if "pagcp" in parts and label == "40%":
            config = PruneConfig(sensitivity=(), finetune=FinetuneConfig(epochs=4, lr=1e-3, distill=0.5))
            budget = Budget("macs", float(point.cost))
            trained = alone(seed, folder, one)
            done = run_passes(
                trained, [Step("prune", config, "prune")], splits=one.splits, criteria=one.criteria,
                out=folder / f"pagcp_{seed}", budget=budget, seed=seed, log=print,
            )  # fmt: skip
            entry["pagcp"] = {**row(done[-1].program), "missed": done[-1].missed}
            print(seed, label, "pagcp", entry["pagcp"]["delta_m"], flush=True)
    return found


def summary(seeds: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation of every Δm over the seeds that have it."""
    rows: dict[str, list[float]] = {}
    for found in seeds.values():
        if "widest" in found:
            rows.setdefault("widest", []).append(found["widest"]["delta_m"])
        for label, entry in found.get("points", {}).items():
            for kind in ("searched", "alone", "pagcp"):
                if kind in entry:
                    rows.setdefault(f"{kind} {label}", []).append(entry[kind]["delta_m"])
            if "delta_m_against_alone" in entry:
                rows.setdefault(f"searched against alone {label}", []).append(entry["delta_m_against_alone"])
    return {
        name: {"mean": sum(v) / len(v), "std": float(torch.tensor(v).std()) if len(v) > 1 else None, "seeds": len(v)}
        for name, v in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "data" / "slimmable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", default=["60%", "40%"], help="shares of the widest network's MACs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.weights.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        kept = json.loads(RESULTS.read_text())["seeds"] if RESULTS.exists() else {}
        kept[str(seed)] = of_seed(seed, given.weights, given.budgets, given.parts, kept.get(str(seed), {}))
        seeds = dict(sorted(kept.items()))
        write_json(
            RESULTS,
            {"epochs": {"start": 8, "supernet": 24, "alone": EPOCHS}, "seeds": seeds, "summary": summary(seeds)},
        )


if __name__ == "__main__":
    main()
