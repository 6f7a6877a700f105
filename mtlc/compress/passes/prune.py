"""``prune``: removes channels to a budget by PAGCP, in rounds with fine-tuning and a hard limit for every task.

PAGCP is performance-aware global channel pruning (Ye et al., TPAMI 2023). Channels of convolutions and linear layers
go, heads of attention, and hidden channels of all experts of a layer jointly.

Preserves the shapes of all outputs (task heads are never cut). Approximates: the network computes something else
afterwards, and says what each task paid. Refuses a network that torch-pruning cannot trace, a budget that no pruning
can reach, and a tolerance without a solution (T ≤ 1 + d0).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mtlc.checksums import is_whole, read_sealed, say_damaged, seal_folder, write_sealed
from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.latency_costs import LATENCY_TOLERANCE, LatencyCosts, latency_costs
from mtlc.compress.compare_with_masked import SAMPLES, compare_with_masked
from mtlc.compress.pagcp.oracle import Oracle
from mtlc.compress.pagcp.sensitivity import sensitivity
from mtlc.compress.pagcp.sweep import Costs, Rules, Sweep, kept_counts, reach, solve_decay
from mtlc.compress.pass_interface import Budget, Context, Highlights, Pass, PassConfig, PassPlan, PassResult
from mtlc.compress.training.batch_norm import recalibrate_where_better
from mtlc.compress.training.recovery import recover
from mtlc.compress.training.train_config import FinetuneConfig, FineTuning
from mtlc.errors import UserError, VerificationError
from mtlc.evaluation.evaluate import Evaluation, evaluate
from mtlc.evaluation.splits import fetch
from mtlc.hw.cost.count import macs, parameters, workload
from mtlc.hw.measure.program_latency import latency_ms
from mtlc.program.program import HistoryEntry, Program
from mtlc.program.surgery import Step, dependency_graph
from mtlc.results.masked_comparison import MaskedComparison
from mtlc.results.plan import LeastCost, PlannedChannels

_LARGEST_CUT = 0.6  # a round of its own for every factor of 0.6 in cost: small cuts are easier to mend
_RETRIES = 2  # how often a round that breaks a task's limit is tried again with half the cut
_LATENCY_AIM = 0.98  # of a budget in ms: a network that is measured a little over it costs another round
_COMPARED = 1e-4  # of the largest value: to this a unit's zeros are known to be the network without it
_NO_BUDGET = "prune needs a [budget]: macs, params or latency"


class PruneConfig(PassConfig):
    """PAGCP's parameters under the paper's names, and those of the rounds."""

    initial_rate: float = Field(0.05, gt=0, description="d0: the loss growth that the first unit may cause")
    initial_thres: float = Field(5.0, gt=1, description="T: the loss growth that a round may cause before fine-tuning")
    top_p: float = Field(0.8, gt=0, le=1, description="share of a sweep's units that stay pruned")
    round_to: int = Field(8, ge=1, description="kept channels are a multiple of this")
    rank: Literal["reconstruction", "norm"] = Field("reconstruction", description="what the others make up for, or |w|")
    norm: int = Field(1, ge=1, le=2, description="with rank = 'norm': mean L1 or L2 norm of the filters")
    reconstruct: bool = Field(True, description="let the kept channels make up for the removed ones, by least squares")
    rounds: int | None = Field(None, ge=1, le=20, description="default: one for every factor of 0.6")
    ignore: tuple[str, ...] = Field((), description="layers that are left alone, such as 'decoders.depth.*'")
    calibration_samples: int | None = Field(None, ge=1, description="default: the whole calibration split")
    batch_size: int = Field(64, ge=1)
    cache_mb: int = Field(2048, ge=0, description="memory for kept activations")
    recalibrate: int = Field(512, ge=0, description="training samples for batch-norm statistics; 0 leaves them")
    sensitivity: tuple[float, ...] = Field((0.25, 0.5, 0.75), description="ratios of the sensitivity map; empty: none")
    finetune: FineTuning | None = Field(FinetuneConfig(), description="after every round")

    @model_validator(mode="after")
    def _solvable(self) -> PruneConfig:
        if self.rank == "reconstruction" and not self.reconstruct:
            raise UserError('rank = "reconstruction" needs reconstruct = true; or set rank = "norm"')
        solve_decay(self.initial_rate, self.initial_thres, 2)
        return self

    def rules(self) -> Rules:
        return Rules(
            self.initial_rate, self.initial_thres, self.top_p, round_to=self.round_to, norm=self.norm, rank=self.rank
        )


class Prune(Pass[PruneConfig]):
    """Performance-aware global channel pruning."""

    name = "prune"

    def requires(self, program: Program, context: Context) -> None:
        if context.budget is None:
            raise UserError(_NO_BUDGET)
        groups = _groups(program, self.config)
        least_channels = narrowest(groups, self.config)
        gone = {u.name: list(range(u.channels - least_channels[u.name])) for u in groups.units}
        if not any(gone.values()):
            raise UserError(
                f"no layer of the network can lose channels at round_to = {self.config.round_to} and "
                f"ignore = {list(self.config.ignore)}; lower round_to, ignore less, or leave out the pass"
            )
        if context.budget.kind == "latency":
            return
        costs = ChannelCosts(program, {u.name: u for u in groups.units}, context.budget.kind)
        least = costs.cost(gone)
        if context.budget.target < least:
            whole = costs.cost({})
            raise UserError(
                f"[budget] {context.budget.kind} = {context.budget.target:,.0f} ({context.budget.target / whole:.1%}) "
                f"is under what pruning can reach: {least:,.0f} ({least / whole:.1%}) at "
                f"round_to = {self.config.round_to}; raise the budget or lower round_to"
            )

    def run(self, program: Program, context: Context) -> PassResult:
        assert context.budget is not None
        return _Rounds(program, context, self.config).run()

    def plan(self, program: Program, tasks: Sequence[str], budget: Budget | None) -> PassPlan:
        """The channel groups, what is left alone and why, and the cost with every group at its narrowest.

        That cost is a floor: no pruning with this configuration goes below it, and a task's limit usually stops it
        before.
        """
        copied = replace(program, module=copy.deepcopy(program.module))
        groups = _groups(copied, self.config)
        least = narrowest(groups, self.config)
        prunable = [
            PlannedChannels.Group(name=u.name, channels=u.channels, narrowest=least[u.name]) for u in groups.units
        ]
        left_alone = [PlannedChannels.LeftAlone(name=u.name, channels=u.channels, why=u.why) for u in groups.left_alone]
        with torch.no_grad():
            groups.prune({u.name: list(range(least[u.name], u.channels)) for u in groups.units})
        cost = {"macs": macs(copied), "params": parameters(copied)}
        if budget is None:
            raise UserError(_NO_BUDGET)
        units = PlannedChannels(prunable=prunable, left_alone=left_alone, least=LeastCost(**cost))
        return PassPlan(least=cost, units=units)

    def results(self, report: Mapping[str, Any], artifacts: Mapping[str, Any]) -> Highlights:
        """The sensitivity of every group, and which task stopped which group."""
        rounds = [entry["compared"] for entry in report.get("rounds", ()) if entry["kept"] and "compared" in entry]
        return Highlights(
            sensitivity=artifacts.get("sensitivity"), blocked=report.get("blocked") or (), compared=_worst(rounds)
        )


class _Rounds:
    """The rounds of one job.

    Every attempt is written down when it ends, so that a killed job goes on with the next one.
    `best` is the network of the last round that kept every limit.
    """

    def __init__(self, program: Program, context: Context, config: PruneConfig) -> None:
        assert context.budget is not None
        self.context, self.config, self.budget = context, config, context.budget
        self.log, self.criteria, self.calibration = context.log, context.criteria, context.splits.calibration
        self.start, self.best = program, program
        self.steps: list[Step] = []
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
        sweeps = reach(oracle, costs, self.config.rules(), target)
        if isinstance(costs, LatencyCosts):
            costs.keep()
        removed = {name: channels for name, channels in oracle.removed.items() if channels}
        share = costs.cost(removed) / costs.cost({})
        blocked = [asdict(b) for s in sweeps for b in s.blocked]
        if share > 0.99 and costs.cost(removed) > target:
            return f"no layer can lose more channels within the tolerance{_most_blocking(blocked)}"
        before, after = (self._amount(costs.cost(gone)) for gone in ({}, removed))
        self.log(f"prune: round {number + 1}: {costs.kind} {before} → {after}, then fine-tuning")
        built, steps = self._built(removed, oracle.reconstructed())
        compared = self._compared(oracle, built, removed)
        pruned = evaluate(
            built, self.criteria, self.calibration, self.config.batch_size, self.config.calibration_samples
        )
        training = self._mend(built, number, again)
        mended = evaluate(built, self.criteria, self.calibration, self.config.batch_size)
        broken = self._broken(mended)
        record = {
            "kept": broken is None,
            "missed": None if broken is None else self._limit_broken(broken, mended, sweeps),
            "target": target,
            "cost": {"kind": costs.kind, "before": costs.cost({}), "after": costs.cost(removed)},
            "kept_channels": {n: oracle.units[n].channels - len(c) for n, c in removed.items()},
            "sweeps": [s.report() for s in sweeps],
            "losses": {
                "start": oracle.original,
                "oracle": oracle.losses,
                "pruned": pruned.losses,
                "mended": mended.losses,
            },
            "metrics": {"pruned": pruned.metrics, "mended": mended.metrics},
            "blocked": blocked,
            "training": training,
            "compared": compared.to_dict(),
            "effort": asdict(oracle.effort),
            "notes": oracle.notes,
        }
        self.attempts.append(record)
        if broken is None:
            self.steps += steps
            self.best = built
            self.present = self._cost(built)
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
        groups = _groups(program, config)
        oracle = Oracle(
            program, groups, self.criteria, self.calibration,
            samples=config.calibration_samples, batch_size=config.batch_size, cache_bytes=config.cache_mb << 20,
            reconstruct=config.reconstruct,
        )  # fmt: skip
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
        ratio = self.budget.target / self.whole
        return self.config.rounds or max(1, math.ceil(round(math.log(ratio) / math.log(_LARGEST_CUT), 6)))

    def _built(self, removed: Mapping[str, list[int]], weights: Mapping[str, Tensor]) -> tuple[Program, list[Step]]:
        """A copy of the best network with `weights` instead of its own, without the channels.

        Beside it the surgery that replays the cut.
        """
        built = self.best.clone()
        present = dict(built.module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, weight in weights.items():
                present[name].copy_(weight)
        groups = _groups(built, self.config)
        return built, groups.prune(removed)

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

    def _mend(self, built: Program, number: int, again: int) -> dict[str, Any] | None:
        """Measure batch-norm statistics anew and fine-tune; the training's report."""
        config, context = self.config, self.context
        if config.recalibrate:
            # The old ones sometimes serve better right after a cut: the channels were chosen under them.
            recalibrate_where_better(built, context.splits, self.criteria, config.recalibrate, config.batch_size)
        if config.finetune is None:
            return None
        return recover(
            built, context, config.finetune, seed=context.seed + 100 * number + again,
            checkpoint=context.workdir / f"training-{number}-{again}",
        )  # fmt: skip

    def _broken(self, after: Evaluation) -> str | None:
        """The task that is furthest past its limit on the calibration split."""
        past: dict[str, float] = {}
        for task in self.start.tasks:
            before, higher = self.reference.metrics[task.name], self.criteria.higher_is_better[task.name]
            if task.max_drop is not None and not task.max_drop.allows(before, after.metrics[task.name], higher):
                past[task.name] = abs(after.metrics[task.name] - task.max_drop.bound(before, higher)) / max(
                    abs(before), 1e-12
                )
        return max(past, key=past.__getitem__) if past else None

    def _limit_broken(self, task: str, after: Evaluation, sweeps: list[Sweep]) -> str:
        """Which task stopped the round, by how much, and at which layer most of its loss arose."""
        spec = next(t for t in self.start.tasks if t.name == task)
        changes = [c for s in sweeps for c in s.changes]
        worst = max(changes, key=lambda c: c.task_growth.get(task, 0.0)).unit if changes else "?"
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
            self.best.module, HistoryEntry(Prune.name, self.config.model_dump(mode="json"), self.steps, summary)
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


def _worst(rounds: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The comparison of the round that differs most."""
    return max(rounds, key=lambda entry: max(entry["tasks"].values()), default=None)


def _most_blocking(blocked: list[dict[str, Any]]) -> str:
    """The task that stopped most units, and the last of them: for the message."""
    if not blocked:
        return ""
    tasks = [b["task"] for b in blocked]
    task = max(sorted(set(tasks)), key=tasks.count)
    unit = next(b["unit"] for b in reversed(blocked) if b["task"] == task)
    return f": task {task!r} stopped {tasks.count(task)} of {len(tasks)} trials, the last at layer {unit!r}"


def narrowest(groups: ChannelGroups, config: PruneConfig) -> dict[str, int]:
    """How many channels every group keeps whatever happens."""
    rules = config.rules()
    return {u.name: min(kept_counts(u.channels, rules, u.multiple, u.width), default=u.channels) for u in groups.units}


def _groups(program: Program, config: PruneConfig) -> ChannelGroups:
    example = program.example_inputs()
    return ChannelGroups(program.module, example, dependency_graph(program.module, example), config.ignore)
