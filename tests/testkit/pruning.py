"""Begins tests of pruning: a context with a budget, and a run of the pass."""

from __future__ import annotations

from pathlib import Path

from mtlc.compress.pass_interface import Budget, Context, PassResult
from mtlc.compress.passes.prune import Prune, PruneConfig
from mtlc.compress.training.train_config import FinetuneConfig
from mtlc.evaluation.criteria import Criteria
from mtlc.hw.cost.count import workload
from mtlc.program.program import Program

TUNE = FinetuneConfig(epochs=2, batch_size=8, lr=2e-3, ema=0.5, checkpoint_seconds=1e-9)


def context(program: Program, splits, workdir: Path, kind="macs", share=0.6, lines=None) -> Context:
    whole = {"macs": workload(program).macs, "params": program.parameters_count(), "latency": 1.0}[kind]
    budget = Budget(kind, share * whole)
    log = (lambda line: None) if lines is None else lines.append
    return Context(splits, Criteria(program.tasks), program, workdir, budget, log=log)


def run(program: Program, given: Context, **config) -> PassResult:
    one = Prune(PruneConfig(**{"finetune": TUNE, **config}))
    one.requires(program, given)
    result = one.run(program, given)
    one.ensures(program, result)
    return result
