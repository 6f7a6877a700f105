"""Compares forms of configuration-invariant distillation: leading channels, similarities of samples, none.

    python -m benchmarks.slimmable.feature_distillation [--weights FOLDER] [--seeds 0 1 2]

From the start of every seed (see benchmarks/slimmable/slimmable.py), two epochs of supernet training with each form,
all else equal (3 configurations a step, narrow_weight 0.33, learning rate 1e-3), then the metrics of five
configurations on the calibration split, with statistics of their own. Δm is against the start at full width. Two epochs
are far from the end of a training: the narrow networks are still poor, and what is compared is how fast they come. Five
minutes a run on a core. Writes ``results/feature_distillation.json`` and replaces there only what it ran.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.slimmable.slimmable import started  # this folder's
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.importance import importances, sort_channels
from mtlc.compress.slimmable.layer_places import survey
from mtlc.compress.slimmable.sandwich_training import SlimTrainConfig, train_supernet
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_table import build_table
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.evaluation.evaluate import evaluate
from mtlc.files import write_json
from mtlc.tasks.task import delta_m

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results" / "feature_distillation.json"
FORMS = ("leading", "similarity", "none")
CONFIGURATIONS = {
    "widest": Configuration((1.0,) * 4, (1.0,) * 5),
    "0.75": Configuration((0.75,) * 4, (0.75,) * 5),
    "0.5": Configuration((0.5,) * 4, (0.5,) * 5),
    "narrowest": Configuration((0.25,) * 4, (0.25,) * 5),
    "mixed": Configuration((0.5, 1.0, 0.75, 0.25), (0.5, 0.25, 1.0, 0.75, 0.25)),
}


def trained(seed: int, form: str, folder: Path) -> dict[str, float]:
    """Δm in percent by configuration."""
    one = started(seed, folder)
    program, example = one.program, one.program.example_inputs()
    before = evaluate(program, one.criteria, one.splits.calibration).metrics
    groups = ChannelGroups(program.module, example)
    widths = (0.25, 0.5, 0.75, 1.0)
    table = build_table(groups.units, survey(program), program.task_names, widths, 8)
    scores = importances(program, table.units, one.criteria, one.splits.calibration, "taylor", 256)
    sort_channels(program.module, table.units, scores)
    net = Supernet(program, table)
    config = SlimTrainConfig(epochs=2, lr=1e-3, configurations=3, narrow_weight=0.33, feature_distillation=form)  # type: ignore[arg-type]
    train_supernet(net, one.splits, one.criteria, config, seed=seed)
    found = {}
    for name, configuration in CONFIGURATIONS.items():
        with net.at(configuration):
            recalibrate_batchnorm(program, one.splits, 512)
            metrics = evaluate(program, one.criteria, one.splits.calibration).metrics
        found[name] = delta_m(metrics, before, one.criteria.higher_is_better)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "data" / "slimmable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for form in FORMS:
            kept: dict[str, Any] = json.loads(RESULTS.read_text())["delta_m"] if RESULTS.exists() else {}
            kept.setdefault(form, {})[str(seed)] = trained(seed, form, given.weights)
            print(form, seed, kept[form][str(seed)], flush=True)
            write(kept)


def write(found: dict[str, dict[str, dict[str, float]]]) -> None:
    summary = {
        form: {
            name: {"mean": mean(v), "std": stdev(v) if len(v) > 1 else None, "seeds": len(v)}
            for name in CONFIGURATIONS
            for v in [[of[name] for of in seeds.values()]]
        }
        for form, seeds in found.items()
    }
    write_json(RESULTS, {"delta_m": found, "summary": summary})


if __name__ == "__main__":
    main()
