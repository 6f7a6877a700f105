"""Finds the candidate that is best after recovery: all get a little of it, the better half gets more.

Successive halving (Jamieson and Talwalkar, AISTATS 2016) over allocations: each heat trains what is left for the same
total number of samples, so that fewer candidates are trained longer. A candidate keeps what it has learnt. With eight::

    heat 1   a b c d e f g h      1/8 of the heat's samples each
    heat 2   b e f g              1/4
    heat 3   b f                  1/2
    then     f                    goes on with the rest of the round's training
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtlc.compress.pruning.candidates import Candidate
from mtlc.compress.training.shared_training import Diverged
from mtlc.evaluation.evaluate import Evaluation
from mtlc.log import Log
from mtlc.program.program import Program
from mtlc.program.surgery import Step
from mtlc.results.masked_comparison import MaskedComparison


@dataclass
class Runner:
    """A candidate with its network, what that was worth before any training, and what the heats have found."""

    candidate: Candidate
    cost: float
    program: Program
    steps: Sequence[Step]
    compared: MaskedComparison
    pruned: Evaluation
    samples: int = 0
    heats: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.candidate.name

    def report(self) -> dict[str, Any]:
        kept = self.candidate.kept
        before = {"losses": self.pruned.losses, "metrics": self.pruned.metrics}
        return {
            "name": self.name,
            "kept": kept,
            "cost": self.cost,
            **before,
            "samples": self.samples,
            "heats": self.heats,
        }


_NOTHING = 1e-3  # of the loss right after a cut: an original loss below that is as good as none

Train = Callable[[Runner, float, int], int]
"""Trains a runner in place for so many epochs in the heat of that number; returns the samples it was shown."""


def race(
    runners: Sequence[Runner],
    epochs: float,
    least: float,
    train: Train,
    worth: Callable[[Program], Evaluation],
    score: Callable[[Evaluation], tuple[float, float]],
    log: Log,
) -> Runner:
    """The runner with the lowest score after heats that together take `epochs` epochs.

    No heat gives a runner less than `least` epochs: where there are too few for that, there are fewer heats, or none,
    and the networks are compared as they are. `score` gives how far past its limits a network is, and its loss; the
    limits decide before the loss does. A runner whose training diverges is out; `Diverged` is raised where all do.
    """
    left = list(runners)
    heats = min(math.ceil(math.log2(len(left))), int(epochs / (least * len(left))))
    if heats == 0:
        epochs, heats = 0.0, min(1, len(left) - 1)
    for heat in range(heats):
        scores: dict[str, tuple[float, float]] = {}
        failed: Diverged | None = None
        for runner in left:
            try:
                if epochs:
                    runner.samples += train(runner, epochs / heats / len(left), heat)
            except Diverged as error:
                # One that cannot be trained has lost; the others go on.
                scores[runner.name], failed = (math.inf, math.inf), error
                runner.heats.append({"losses": {}, "metrics": {}, "score": None, "diverged": str(error)})
                continue
            found = worth(runner.program)
            scores[runner.name] = score(found)
            loss = scores[runner.name][1]
            told = loss if math.isfinite(loss) else None
            runner.heats.append({"losses": found.losses, "metrics": found.metrics, "score": told})
        if failed is not None and all(past == math.inf for past, _ in scores.values()):
            raise failed
        # Python's sort is stable: of equals the one that was proposed first stays.
        left.sort(key=lambda runner: scores[runner.name])
        log(f"prune: heat {heat + 1} of {heats}: " + "; ".join(f"{r.name} {scores[r.name][1]:.4f}" for r in left))
        left = left[: math.ceil(len(left) / 2) if heat + 1 < heats else 1]
    return left[0]


def relative_loss(losses: Mapping[str, float], original: Mapping[str, float], cut: Mapping[str, float]) -> float:
    """The mean over tasks of the loss as a share of the uncompressed network's: 1 where nothing was lost.

    It is counted from the original's up, so that losses below zero are ordered too. An original loss next to nothing,
    as on labels that the network made itself, is no measure: the growth is then told in shares of the loss right after
    the `cut`. A loss that is no number is infinite.
    """
    growth = 0.0
    for task, before in original.items():
        measure = abs(before) if abs(before) > _NOTHING * abs(cut[task]) else abs(cut[task])
        growth += (losses[task] - before) / max(measure, 1e-12)
    return 1 + growth / len(original) if math.isfinite(growth) else math.inf
