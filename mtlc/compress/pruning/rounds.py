"""Prunes to a budget in rounds: allocate, cut, compare, mend, check every task's limit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtlc.checksums import is_whole, read_sealed, say_damaged, seal_folder, write_sealed
from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import slice_step
from mtlc.compress.channels.latency_costs import LATENCY_TOLERANCE, LatencyCosts, latency_costs
from mtlc.compress.compare_with_masked import SAMPLES, compare_with_masked
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.compress.pagcp.sensitivity import sensitivity
from mtlc.compress.pagcp.sweep import Costs, Sweep, reach
from mtlc.compress.pass_interface import Context, PassResult
from mtlc.compress.pruning.candidates import Candidate, propose, swept, tilted, uniform
from mtlc.compress.pruning.prune_config import PruneConfig, channel_groups, unpacked
from mtlc.compress.pruning.race import Runner, race, relative_loss
from mtlc.compress.pruning.training_branches import fit_training_branches
from mtlc.compress.training.batch_norm import recalibrate_where_better
from mtlc.compress.training.recovery import Recipe, kept_recipe, recover
from mtlc.compress.training.trainer import train
from mtlc.errors import VerificationError
from mtlc.evaluation.bootstrap import keeps_limit
from mtlc.evaluation.evaluate import Evaluation, evaluate
from mtlc.evaluation.splits import fetch
from mtlc.hw.cost.count import workload
from mtlc.hw.measure.program_latency import latency_ms
from mtlc.program.program import HistoryEntry, Program
from mtlc.program.surgery import Step, cut, keeping_frozen
from mtlc.results.masked_comparison import MaskedComparison

NAME = "prune"
_RETRIES = 2  # how often a round that breaks a task's limit is tried again with half the cut
_LATENCY_AIM = 0.98  # of a budget in ms: a network that is measured a little over it costs another round
_SHORTEST_HEAT = 8  # steps: fewer say nothing about how a network recovers
_COMPARED = 1e-4  # of the largest value: to this a unit's zeros are known to be the network without it


class Rounds:
    """The rounds of one job.

    Every attempt is written down when it ends, so that a killed job goes on with the next one.
    `best` is the network of the last round that kept every limit.
    """

    def __init__(self, program: Program, context: Context, config: PruneConfig) -> None:
        assert context.budget is not None
        self.context, self.config, self.budget = context, config, context.budget
        self.log, self.criteria, self.calibration = context.log, context.criteria, context.splits.calibration
        program, self.steps = unpacked(program)
        self.start, self.best = program, program
        for step in self.steps:
            self.log(f"prune: {_made_plain(step)}")
        self.attempts: list[dict[str, Any]] = []
        self.survey: dict[str, Any] = {}
        self.reference = evaluate(context.reference, self.criteria, self.calibration, config.batch_size)
        self._restore()
        self.whole, self.present = self._cost(self.start), self._cost(self.best)

    def run(self) -> PassResult:
        if self.present <= self.budget.target:
            self.log(
                f"prune: the network is within its budget already ({self.budget.kind} {self._amount(self.present)})"
            )
        missed = None
        while self.present > self.budget.target and missed is None:
            missed = self._attempt()
        return self._result(missed)

    def _attempt(self) -> str | None:
        """Prune, recalibrate, fine-tune; keep the result if every task keeps its limit. Returns why to stop, if so."""
        number = sum(1 for a in self.attempts if a["kept"])
        again = len(self.attempts) - next((i + 1 for i, a in reversed(list(enumerate(self.attempts))) if a["kept"]), 0)
        if again > _RETRIES:
            return str(self.attempts[-1]["missed"])
        oracle, costs, target = self._prepare(number, again)
        if number >= 2 * self._planned() + 2:
            return f"{number} rounds did not reach the budget{_most_blocking(self._blocked())}"
        candidates, sweeps = self._candidates(oracle, costs, target)
        if isinstance(costs, LatencyCosts):
            costs.keep()
        blocked = [asdict(b) for s in sweeps for b in s.blocked]
        # A sweep that the tolerance stopped short of the target is a round all the same, if it bought anything.
        candidates = [c for c in candidates if costs.cost(c.removed) <= max(target, 0.99 * costs.cost({}))]
        if not candidates:
            why = "within the tolerance" if sweeps else f"that bring it to {self._amount(target)}"
            return f"no layer can lose more channels {why}{_most_blocking(blocked)}"
        runners = [self._runner(oracle, costs, candidate) for candidate in candidates]
        recipe = self._settled(runners[0].program, number, again)
        winner = self._race(runners, recipe, number, again)
        removed = winner.candidate.removed
        predicted = oracle.reset(removed)
        before, after = (self._amount(costs.cost(gone)) for gone in ({}, removed))
        self.log(f"prune: round {number + 1}: {costs.kind} {before} → {after} ({winner.name}), then fine-tuning")
        raced = sum(runner.samples for runner in runners)
        training = self._mend(winner, recipe, raced, number, again)
        mended = evaluate(winner.program, self.criteria, self.calibration, self.config.batch_size)
        broken = self._broken(mended)
        record = {
            "kept": broken is None,
            "missed": None if broken is None else self._limit_broken(broken, mended, oracle, removed),
            "target": target,
            "cost": {"kind": costs.kind, "before": costs.cost({}), "after": winner.cost},
            "allocation": winner.name,
            "candidates": [runner.report() for runner in runners],
            "samples": raced + (0 if training is None else training["samples"]),
            "kept_channels": {n: oracle.units[n].channels - len(c) for n, c in removed.items()},
            "sweeps": [s.report() for s in sweeps],
            "losses": {
                "start": oracle.original,
                "oracle": predicted,
                "pruned": winner.pruned.losses,
                "mended": mended.losses,
            },
            "metrics": {"pruned": winner.pruned.metrics, "mended": mended.metrics},
            "blocked": blocked,
            "training": training,
            "compared": winner.compared.to_dict(),
            "effort": asdict(oracle.effort),
            "notes": oracle.notes,
        }
        self.attempts.append(record)
        if broken is None:
            self.steps += winner.steps
            self.best = winner.program
            self.present = self._cost(winner.program)
            if self.budget.kind == "latency":
                self._compare(record)
        else:
            self.log(
                f"prune: {record['missed']}; trying half the cut" if again < _RETRIES else f"prune: {record['missed']}"
            )
        self._save()
        return None

    def _compare(self, record: dict[str, Any]) -> None:
        """Put the measured latency beside the predicted one, and say so where they differ."""
        predicted = record["cost"]["after"]
        record["cost"]["measured"] = self.present
        if abs(self.present / predicted - 1) > LATENCY_TOLERANCE:
            self.log(f"prune: measured are {self.present:.4g} ms where the latency table said {predicted:.4g}")

    def _amount(self, cost: float) -> str:
        return f"{cost:.4g} ms" if self.budget.kind == "latency" else f"{cost:,.0f}"

    # -- the parts of an attempt -----------------------------------------------------------------------------------

    def _prepare(self, number: int, again: int) -> tuple[Oracle, Costs, float]:
        program, config = self.best, self.config
        groups = self._groups = channel_groups(program, config)
        oracle = Oracle(
            program, groups, self.criteria, self.calibration,
            samples=config.calibration_samples, batch_size=config.batch_size, cache_bytes=config.cache_mb << 20,
            reconstruct=config.reconstruct,
        )  # fmt: skip
        for note in oracle.notes:
            self.log(f"prune: {note}")
        costs: Costs
        if self.budget.kind == "latency":
            self.log(f"prune: the latency of operators of the network, which takes {self.present:.4g} ms")
            costs = latency_costs(program, oracle.units, self.present, self.log)
        else:
            costs = ChannelCosts(program, oracle.units, self.budget.kind)
        if not self.survey:
            self.survey = {"left_alone": [asdict(item) for item in oracle.left_alone], "sensitivity": None}
            if config.sensitivity:
                self.log(f"prune: how much every task needs each of {len(oracle.units)} units")
                self.survey["sensitivity"] = sensitivity(oracle, config.sensitivity, config.rules())
        return oracle, costs, self._round_target(costs.cost({}), number, again)

    def _round_target(self, present: float, number: int, again: int) -> float:
        """What this round aims at.

        An equal factor for each round that is left; a retry takes half of it in the logarithm.
        """
        aim = self.budget.target * (_LATENCY_AIM if self.budget.kind == "latency" else 1)
        factor = (aim / self.present) ** (1 / max(1, self._planned() - number))
        return float(present * factor ** (0.5**again))

    def _planned(self) -> int:
        return self.config.rounds_for(self.budget.target / self.whole)

    def _built(self, removed: Mapping[str, list[int]], weights: Mapping[str, Tensor]) -> tuple[Program, list[Step]]:
        """A copy of the best network with `weights` instead of its own, without the channels.

        Beside it the surgery that replays the cut.
        """
        built = self.best.clone()
        present = dict(built.module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, weight in weights.items():
                present[name].copy_(weight)
        # The copy is the network that the units were found in, with other numbers.
        step = slice_step({unit.name: unit for unit in self._groups.units}, removed, built.module)
        with keeping_frozen(built.module):
            cut(built.module, step)
        return built, [step]

    def _compared(self, oracle: Oracle, built: Program, removed: Mapping[str, list[int]]) -> MaskedComparison:
        """How far `built` is from the network with the channels masked. An error names the unit that differs alone."""
        batch = fetch(self.calibration, range(min(SAMPLES, len(self.calibration))))

        def masking(program: Program, gone: Mapping[str, list[int]] = removed) -> AbstractContextManager[None]:
            return oracle.masking(program, gone)

        try:
            found = compare_with_masked(self.best, masking, built, batch, tolerance=_COMPARED)
        except VerificationError as error:
            for name, channels in removed.items():
                one = {name: channels}
                alone, _ = self._built(one, oracle.reconstructed(one))
                try:
                    compare_with_masked(self.best, partial(masking, gone=one), alone, batch, tolerance=_COMPARED)
                except VerificationError as reason:
                    raise VerificationError(f"layer {name!r}: {reason}; leave it out: ignore = [{name!r}]") from error
            raise
        self.log(f"prune: compared with the network whose channels are masked: {found.line()}")
        return found

    def _fit(self, oracle: Oracle, built: Program, removed: Mapping[str, list[int]], steps: list[Step]) -> int:
        """Let layers that run in training only follow a cut; the parameters that they lost, if these are the budget."""
        before, batch = built.parameters_count(), fetch(self.calibration, range(min(SAMPLES, len(self.calibration))))
        steps += fit_training_branches(self.best, partial(oracle.masking, removed=removed), built, batch)
        return before - built.parameters_count() if self.budget.kind == "params" else 0

    def _candidates(self, oracle: Oracle, costs: Costs, target: float) -> tuple[list[Candidate], list[Sweep]]:
        if self.config.method == "recovered":
            return propose(self.best, oracle, costs, self.config.rules(), target)
        if self.config.method == "uniform":
            return uniform(oracle, costs, self.config.rules(), target), []
        if self.config.method == "tilted":
            return tilted(self.best, oracle, costs, self.config.rules(), target), []
        sweeps = reach(oracle, costs, self.config.rules(), target)
        return [swept(oracle)], sweeps

    def _runner(self, oracle: Oracle, costs: Costs, candidate: Candidate) -> Runner:
        """The network of an allocation, compared with the masked one, before any training."""
        oracle.reset(candidate.removed)
        built, steps = self._built(candidate.removed, oracle.reconstructed())
        compared = self._compared(oracle, built, candidate.removed)
        cost = costs.cost(candidate.removed) - self._fit(oracle, built, candidate.removed, steps)
        config = self.config
        pruned = evaluate(built, self.criteria, self.calibration, config.batch_size, config.calibration_samples)
        if config.recalibrate:
            # The old ones sometimes serve better right after a cut: the channels were chosen under them.
            recalibrate_where_better(built, self.context.splits, self.criteria, config.recalibrate, config.batch_size)
        return Runner(candidate, cost, built, steps, compared, pruned)

    def _race(self, runners: Sequence[Runner], recipe: Recipe | None, number: int, again: int) -> Runner:
        """The runner that is best after a short recovery; where nothing is trained, the best as it is."""
        per_epoch = self._steps_per_epoch()

        def train_a_little(runner: Runner, epochs: float, heat: int) -> int:
            assert recipe is not None
            assert self.config.finetune is not None
            context, place = self.context, runners.index(runner)
            # Whole steps, not rounded up: together the heats must not take more than their share.
            settings = self.config.finetune.fixed(max(1, int(epochs * per_epoch + 1e-6)) / per_epoch, recipe.lr)
            # The same seed for all: they see the same samples in the same order.
            report = train(
                runner.program, context.splits, self.criteria, settings,
                seed=self._seed(number, again) + 10_000 * (heat + 1), progress=context.progress, log=self.log,
                checkpoint=context.workdir / f"race-{number}-{again}-{heat}-{place}", teacher=context.reference,
            )  # fmt: skip
            return int(report["samples"])

        cut = {t: statistics.median(abs(r.pruned.losses[t]) for r in runners) for t in self.reference.losses}
        return race(
            runners,
            0.0 if recipe is None else self.config.race * recipe.epochs,
            _SHORTEST_HEAT / per_epoch,
            train_a_little,
            lambda program: evaluate(program, self.criteria, self.calibration, self.config.batch_size),
            partial(self._score, cut),
            self.log,
        )

    def _score(self, cut: Mapping[str, float], found: Evaluation) -> tuple[float, float]:
        """How far past its limits a network is, in shares of the metrics, and its loss relative to the original's;
        `cut` has the usual losses before any recovery.
        """
        return sum(self._past(found).values()), relative_loss(found.losses, self.reference.losses, cut)

    def _mend(
        self, winner: Runner, recipe: Recipe | None, raced: int, number: int, again: int
    ) -> dict[str, Any] | None:
        """Train the winner with what a race of so many samples has left; the training's report."""
        finetune = self.config.finetune
        if finetune is None or recipe is None:
            return None
        per_epoch = self._steps_per_epoch()
        # An epoch leaves out the odd rest of the samples, so what the race took is counted in steps.
        left = max(1 / per_epoch, recipe.epochs - raced / self._batch() / per_epoch)
        return recover(
            winner.program, self.context, finetune, seed=self._seed(number, again),
            checkpoint=self.context.workdir / f"training-{number}-{again}", recipe=recipe, epochs=left,
        )  # fmt: skip

    def _settled(self, program: Program, number: int, again: int) -> Recipe | None:
        """The round's fine-tuning in numbers, so that the race and what follows it share one recipe."""
        finetune = self.config.finetune
        if finetune is None:
            return None
        place = self.context.workdir / f"race-{number}-{again}"
        recipe = kept_recipe(program, self.context, finetune, self._seed(number, again), place)
        if "auto" in (finetune.epochs, finetune.lr):
            self.log(f"fine-tuning: {recipe.line()}")
        return recipe

    def _batch(self) -> int:
        """Samples of a training step."""
        samples = len(self.context.splits.train)
        return samples if self.config.finetune is None else min(self.config.finetune.batch_size, samples)

    def _steps_per_epoch(self) -> int:
        return max(1, len(self.context.splits.train) // max(1, self._batch()))

    def _seed(self, number: int, again: int) -> int:
        return self.context.seed + 100 * number + again

    def _past(self, after: Evaluation) -> dict[str, float]:
        """By task that is past its limit on the calibration split, how far, as a share of the original's metric."""
        past: dict[str, float] = {}
        for task in self.start.tasks:
            before, higher = self.reference.metrics[task.name], self.criteria.higher_is_better[task.name]
            if task.max_drop is not None and not keeps_limit(task, self.reference, after, higher, self.context.seed):
                over = abs(after.metrics[task.name] - task.max_drop.bound(before, higher)) / max(abs(before), 1e-12)
                past[task.name] = over if math.isfinite(over) else math.inf
        return past

    def _broken(self, after: Evaluation) -> str | None:
        """The task that is furthest past its limit."""
        past = self._past(after)
        return max(past, key=past.__getitem__) if past else None

    def _limit_broken(self, task: str, after: Evaluation, oracle: Oracle, removed: Mapping[str, Sequence[int]]) -> str:
        """Which task stopped the round, by how much, and at which layer, cut alone, it loses most."""
        spec = next(t for t in self.start.tasks if t.name == task)
        oracle.reset({})
        alone = {unit: oracle.trial(unit, channels)[task] for unit, channels in removed.items() if channels}
        worst = max(alone, key=alone.__getitem__)
        before, now = self.reference.metrics[task], after.metrics[task]
        return (
            f"task {task!r} stopped it: {spec.metric} {before:.4g} → {now:.4g} on the calibration split is past "
            f"max_drop = {spec.max_drop}; most of its loss arose at layer {worst!r}"
        )

    def _cost(self, program: Program) -> float:
        if self.budget.kind == "latency":
            return latency_ms(program, self.budget.device or "local-cpu")
        return float(workload(program).macs if self.budget.kind == "macs" else program.parameters_count())

    def _blocked(self) -> list[dict[str, Any]]:
        return self.attempts[-1]["blocked"] if self.attempts else []

    # -- result and resumption -------------------------------------------------------------------------------------

    def _result(self, missed: str | None) -> PassResult:
        report = {
            "rounds": self.attempts,
            "reached": self.present,
            "left_alone": self.survey.get("left_alone", []),
            "blocked": self._blocked(),
            "missed": missed,
        }
        if missed is not None:
            target, present = (
                f"{value:.4g}" if self.budget.kind == "latency" else f"{value:,.0f}"
                for value in (self.budget.target, self.present)
            )
            missed = f"[budget] {self.budget.kind} = {target} missed, {present} reached: {missed}"
        claimed: dict[str, float] = {}
        if self.attempts and self.budget.kind != "latency":
            claimed[self.budget.kind] = self._claimed()
        artifacts = {"sensitivity": self.survey["sensitivity"]} if self.survey.get("sensitivity") else {}
        return PassResult(self._recorded(report), report, artifacts, claimed, missed)

    def _claimed(self) -> float:
        """What the last kept round said that its network costs."""
        kept = [a for a in self.attempts if a["kept"]]
        return float(kept[-1]["cost"]["after"]) if kept else self.whole

    def _recorded(self, report: Mapping[str, Any]) -> Program:
        summary = {key: report[key] for key in ("reached", "missed")}
        return self.start.after(
            self.best.module, HistoryEntry(NAME, self.config.model_dump(mode="json"), self.steps, summary)
        )

    def _save(self) -> None:
        folder = self.context.workdir / f"round-{len(self.attempts)}"
        self._recorded({"reached": self.present, "missed": None}).save(folder)
        seal_folder(folder)
        write_sealed(
            self.context.workdir / "rounds.json",
            {"folder": folder.name, "attempts": self.attempts, "survey": self.survey},
        )

    def _restore(self) -> None:
        """Go on from the attempts of a killed run."""
        saved = read_sealed(self.context.workdir / "rounds.json", self.log)
        if saved is None:
            return
        folder = self.context.workdir / str(saved["folder"])
        if not is_whole(folder):
            say_damaged(folder, self.log)
            return
        loaded = Program.load(folder, self.start.source)
        self.best = replace(self.start, module=loaded.module)
        self.steps = list(loaded.history[-1].surgery)
        self.attempts, self.survey = saved["attempts"], saved["survey"]
        self.log(f"prune: goes on after round {len(self.attempts)}")


def _made_plain(step: Step) -> str:
    """What was unpacked, for the log."""
    folded = [f"{path}.{name}" for path, name in step["folded"]]
    parts = [f"{', '.join(folded)}: computed weights are folded to plain ones, and stay so"] if folded else []
    if step["attention"]:
        parts.append(f"{', '.join(step['attention'])}: nn.MultiheadAttention gets layers of its own for its heads")
    return "; ".join(parts)


def _most_blocking(blocked: list[dict[str, Any]]) -> str:
    """The task that stopped most units, and the last of them: for the message."""
    if not blocked:
        return ""
    tasks = [b["task"] for b in blocked]
    task = max(sorted(set(tasks)), key=tasks.count)
    unit = next(b["unit"] for b in reversed(blocked) if b["task"] == task)
    return f": task {task!r} stopped {tasks.count(task)} of {len(tasks)} trials, the last at layer {unit!r}"
