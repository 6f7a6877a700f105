"""``extract``: keeps of a network what a set of tasks needs: their gates and heads, and the experts that they use.

Exact: the gates and heads of the tasks that stay, and every layer in which none of their tokens goes to an expert that
was dropped; a router keeps all its columns, so the scores of the experts that stay do not change. Approximate: a token
keeps its other experts with their scores where one of its own was dropped (with `reroute` it goes to the next best
that is left, with ``handle = "merge"`` to a mean of experts). Which experts go follows from the calibration split,
either by use or by what they do to the losses under a budget. Refuses a network without a mixture of experts, and a
budget out of reach.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from mtlc.compress.compare_with_masked import SAMPLES, compare_with_masked, unmasked
from mtlc.compress.experts.extraction_report import layer_report, verdicts
from mtlc.compress.experts.harm import ExpertSearch, Kept, experts_of
from mtlc.compress.experts.usage import broken_limits, observe, saved_macs
from mtlc.compress.pass_interface import Budget, Context, Highlights, Pass, PassConfig, PassPlan, PassResult
from mtlc.compress.training.recovery import recover
from mtlc.compress.training.train_config import FineTuning
from mtlc.errors import UserError, VerificationError, nearest
from mtlc.evaluation.evaluate import Evaluation, evaluate
from mtlc.evaluation.splits import fetch
from mtlc.hw.cost.count import macs
from mtlc.moe.extraction import keep_experts
from mtlc.moe.layers import KeptExperts, MoeLayer, Routed, dropping, moe_layers, rows_left, sharing
from mtlc.moe.merging import Parameters, merged
from mtlc.moe.routing import Router
from mtlc.program.program import HistoryEntry, Program
from mtlc.results.masked_comparison import MaskedComparison
from mtlc.results.plan import PlannedExperts


class ExtractConfig(PassConfig):
    """Which tasks stay, and how the experts are chosen that go."""

    tasks: tuple[str, ...] | None = Field(None, description="the tasks that stay; default: all")
    by: Literal["usage", "budget"] = Field(
        "usage", description="drop what is little used, or what the budget can spare"
    )
    threshold: float = Field(
        0.01, ge=0, le=1, description="by usage: keep what a task sends at least this share of its tokens to"
    )
    handle: Literal["drop", "merge"] = Field("drop", description="leave dropped experts out, or merge them into others")
    reroute: bool = Field(False, description="tokens of a dropped expert go to the next best that is left")
    keep_at_least: int | None = Field(None, ge=1, description="experts that every layer keeps; default: its top_k")
    calibration_samples: int | None = Field(None, ge=1, description="default: the whole calibration split")
    trial_samples: int = Field(128, ge=1, description="by budget: samples that measure what one expert is worth")
    batch_size: int = Field(64, ge=1)
    finetune: FineTuning = Field(None, description="afterwards, distilling from the uncompressed network")

    @model_validator(mode="after")
    def _possible(self) -> ExtractConfig:
        if self.tasks is not None and not self.tasks:
            raise UserError("tasks = []: name at least one task to keep, or leave the key out to keep all")
        if self.handle == "merge" and self.reroute:
            raise UserError(
                'reroute = true with handle = "merge": a merged expert takes the tokens; leave one of them out'
            )
        return self


class Extract(Pass[ExtractConfig]):
    """Task-sparse experts: the part of a mixture of experts that some tasks need."""

    name = "extract"
    keeps_tasks = False

    def requires(self, program: Program, context: Context) -> None:
        layers = moe_layers(program.module)
        check_layers(layers, self.config, type(program.module).__name__)
        tasks = chosen_tasks(program, self.config)
        if self.config.by == "budget":
            self._check_budget(program, tasks, layers, context)

    def _check_budget(
        self, program: Program, tasks: Sequence[str], layers: Sequence[MoeLayer], context: Context
    ) -> None:
        config, budget = self.config, context.budget
        if budget is None:
            raise UserError('extract by = "budget" needs a [budget]: params, memory or macs')
        if budget.kind == "latency":
            raise UserError('extract by = "budget" takes params, memory or macs, not latency: set one, or by = "usage"')
        if budget.kind == "macs":
            if config.handle == "merge" or config.reroute:
                what = "reroute = true" if config.reroute else 'handle = "merge"'
                raise UserError(f"[budget] macs: {what} saves none, every token still goes to as many experts")
            if not any(layer.ours for layer in layers) and macs(program.restricted(tasks)) > budget.target:
                raise UserError(
                    f"[budget] macs: {type(layers[0].inner).__name__} does its work for empty places, too, "
                    "so dropping experts saves parameters only"
                )
            return
        least = least_parameters(program.restricted(tasks), config)
        if budget.target < least:
            whole = program.parameters_count()
            raise UserError(
                f"[budget] {budget.target:,.0f} parameters ({budget.target / whole:.1%}) are fewer than extraction can "
                f"reach: {least:,} ({least / whole:.1%}) with {', '.join(tasks)} and keep_at_least; "
                "raise the budget or keep fewer tasks"
            )

    def run(self, program: Program, context: Context) -> PassResult:
        return _Extraction(program, context, self.config).run()

    def ensures(self, before: Program, result: PassResult) -> None:
        asked = chosen_tasks(before, self.config)
        if result.program.task_names != tuple(asked):
            raise VerificationError(
                f"extract left the tasks {', '.join(result.program.task_names)}, not {', '.join(asked)}"
            )

    def plan(self, program: Program, tasks: Sequence[str], budget: Budget | None) -> PassPlan:
        """The layers that are chosen from, the tasks that stay, and the parameters with every layer at its fewest.

        How many MACs that saves follows from where the tokens go, which only a run tells.
        """
        layers = moe_layers(program.module)
        check_layers(layers, self.config, type(program.module).__name__)
        kept = chosen_tasks(program.restricted(tasks), self.config)
        if self.config.by == "budget" and budget is None:
            raise UserError('by = "budget" needs a [budget]: params, memory or macs')
        described = [
            PlannedExperts.Layer(
                layer=layer.path, experts=layer.count, top_k=layer.top_k, keeps=floor_of(layer, self.config)
            )
            for layer in layers
        ]
        least = {"params": least_parameters(program.restricted(kept), self.config)}
        return PassPlan(tuple(kept), least, experts=PlannedExperts(tasks=kept, layers=described))

    def results(self, report: Mapping[str, Any], artifacts: Mapping[str, Any]) -> Highlights:
        """The whole report: what stayed of each layer, and what of the result is exact."""
        return Highlights(experts=dict(report), compared=report.get("compared"))


def check_layers(layers: Sequence[MoeLayer], config: ExtractConfig, network: str) -> None:
    """Refuse a network without experts, and settings that one of its layers cannot follow."""
    if not layers:
        raise UserError(
            f"extract needs a mixture of experts, and {network} has none that mtlc knows: "
            "declare its layers with mtlc.moe.layers.declare, or leave out the pass"
        )
    for layer in layers:
        if config.reroute and not isinstance(layer.router, Router):
            raise UserError(
                f"reroute = true: layer {layer.path!r} has a router of its own ({type(layer.router).__name__}), "
                "which mtlc cannot have choose again; leave it out"
            )
        if config.reroute and floor_of(layer, config) < layer.top_k:
            raise UserError(
                f"reroute = true with keep_at_least = {config.keep_at_least}: layer {layer.path!r} sends a token to "
                f"{layer.top_k} experts; keep as many"
            )


def chosen_tasks(program: Program, config: ExtractConfig) -> list[str]:
    """The tasks that stay, in the program's order. Raises `UserError` for one that it does not have."""
    asked = program.task_names if config.tasks is None else config.tasks
    for name in asked:
        if name not in program.task_names:
            raise UserError(f"tasks: the network has no task {name!r}{nearest(name, program.task_names)}")
    return [name for name in program.task_names if name in asked]


def floor_of(layer: MoeLayer, config: ExtractConfig) -> int:
    """How many experts the layer keeps whatever happens."""
    return min(config.keep_at_least or layer.top_k, len(layer.present))


def least_parameters(program: Program, config: ExtractConfig) -> int:
    """Parameters with every layer down to what it keeps whatever happens."""
    spare = 0
    for together in sharing(moe_layers(program.module)):
        least = {layer.path: layer.present[: floor_of(layer, config)] for layer in together}
        spare += together[0].parameters_per_expert() * (together[0].rows - rows_left(together, least))
    return program.parameters_count() - spare


class _Extraction:
    """One run of the pass. `start` has the tasks that stay and all experts, `built` what is left of them."""

    def __init__(self, program: Program, context: Context, config: ExtractConfig) -> None:
        self.program, self.config, self.log = program, config, context.log
        tasks = chosen_tasks(program, config)
        self.start = program.restricted(tasks)
        if self.start is program:
            self.start = program.clone()
        criteria, reference = context.criteria.restricted(tasks), context.reference.restricted(tasks)
        self.context = replace(context, criteria=criteria, reference=reference)
        self.calibration = context.splits.calibration
        self.samples = min(config.calibration_samples or len(self.calibration), len(self.calibration))
        self.start.module.eval()
        self.layers = moe_layers(self.start.module)
        self.search: ExpertSearch | None = None
        self.notes: list[str] = []

    def run(self) -> PassResult:
        routed = observe(self.start, self.calibration, self.config.batch_size, self.samples)
        before, limits = self._evaluate(self.start), self._evaluate(self.context.reference)
        missed = None
        if self.config.by == "budget":
            kept, missed = self._by_budget(limits)
        else:
            kept = self._by_usage(routed)
        plans, parameters = self._plans(kept, routed)
        built = self.start.clone()
        plans = _carry_out(built, plans, parameters)
        compared = self._compared(built, kept, plans, parameters, routed)
        self.log(f"extract: compared with the network whose experts are masked: {compared.line()}")
        stages = {"before": before, "extracted": self._evaluate(built)}
        training = None
        if self.config.finetune is not None:
            training = self._finetune(built)
            stages["finetuned"] = self._evaluate(built)
        broken = broken_limits(self.context, self.start.tasks, limits, list(stages.values())[-1])
        for line in broken.values():
            self.log(f"extract: {line}")
        report = self._report(kept, plans, routed, built, stages)
        report |= {"broken_limits": list(broken.values()), "training": training, "missed": missed}
        report["compared"] = compared.to_dict()
        artifacts = {"experts": self.search.removed} if self.search is not None else {}
        claimed = {"params": float(self._claimed(kept, plans))}
        return PassResult(self._recorded(built, plans, report), report, artifacts, claimed, missed)

    # -- which experts stay ------------------------------------------------------------------------------------------

    def _by_usage(self, routed: Mapping[str, Routed]) -> Kept:
        """What any task sends its share of tokens to; an expert that none sends a token to goes at any threshold."""
        kept: Kept = {}
        for together in sharing(self.layers):
            most = torch.stack([one.usage(layer.path) for one in routed.values() for layer in together]).amax(0)
            used = {}
            for layer in together:
                used[layer.path] = [e for e in layer.present if most[e] > 0 and most[e] >= self.config.threshold]
                floor = floor_of(layer, self.config)
                if len(used[layer.path]) < floor:
                    self._note(
                        f"layer {layer.path!r}: {len(used[layer.path])} experts reach the threshold; its {floor} most "
                        "used are kept"
                    )
                    used[layer.path] = sorted(sorted(layer.present, key=lambda e: -float(most[e]))[:floor])
            either = experts_of(together, used)
            kept |= {layer.path: [e for e in either if e in layer.present] for layer in together}
        return kept

    def _by_budget(self, limits: Evaluation) -> tuple[Kept, str | None]:
        """What the budget leaves; and why it is missed, if so."""
        budget = self.context.budget
        assert budget is not None
        self.search = search = ExpertSearch(
            self.start, self.context.criteria, self.calibration, budget.kind, self.samples,
            min(self.config.trial_samples, self.samples), self.config.batch_size, self.log,
        )  # fmt: skip
        floor = {layer.path: floor_of(layer, self.config) for layer in self.layers}
        kept, cost = search.reach(budget.target, floor)
        why = "every layer is down to the experts that it keeps whatever happens"
        if self.config.finetune is None and any(task.max_drop for task in self.start.tasks):
            within = search.give_back(kept, lambda after: broken_limits(self.context, self.start.tasks, limits, after))
            if within != kept:
                kept, cost = within, search.cost(within, search.observe(within))
                back = sum(entry["expert"] in kept[entry["layer"]] for entry in search.removed)
                why = f"{back} experts had to come back for the tasks' limits"
                self._note(why)
        if cost <= budget.target:
            return kept, None
        return kept, f"[budget] {budget.kind} = {budget.target:,.0f} missed, {cost:,.0f} reached: {why}"

    def _note(self, line: str) -> None:
        self.notes.append(line)
        self.log(f"extract: {line}")

    # -- carrying it out ---------------------------------------------------------------------------------------------

    def _plans(self, kept: Kept, routed: Mapping[str, Routed]) -> tuple[dict[str, Any], dict[str, Parameters]]:
        """The surgery of every layer that loses an expert, and new parameters where experts are merged."""
        plans: dict[str, Any] = {}
        parameters: dict[str, Parameters] = {}
        distinct = {id(one): one for one in routed.values()}.values()
        for layer in self.layers:
            if len(kept[layer.path]) == len(layer.present):
                continue
            if self.config.handle == "merge":
                users = [other.path for other in self.layers if other.inner is layer.inner]
                usage = torch.stack([one.places(path) for one in distinct for path in users]).sum(0).tolist()
                groups, parameters[layer.path] = merged(layer, kept[layer.path], usage)
                plans[layer.path] = {"groups": groups, "reroute": False}
            else:
                plans[layer.path] = {"kept": kept[layer.path], "reroute": self.config.reroute}
        return plans, parameters

    def _compared(
        self,
        built: Program,
        kept: Kept,
        plans: Mapping[str, Any],
        parameters: Mapping[str, Parameters],
        routed: Mapping[str, Routed],
    ) -> MaskedComparison:
        """How far `built` is from the network whose experts are all there, those that go masked or as they merged.

        Where the report will call a result exact it is also compared with the network as it was given.
        """
        batch = fetch(self.calibration, range(min(SAMPLES, self.samples)))
        if self.config.handle == "merge":
            found = compare_with_masked(
                _all_merged(self.start, plans, parameters), unmasked, built, batch, experts=True
            )
        else:

            def masking(program: Program) -> AbstractContextManager[None]:
                return dropping(moe_layers(program.module), kept, self.config.reroute)

            found = compare_with_masked(self.start, masking, built, batch, experts=True)
        more = {}
        if self.start.task_names != self.program.task_names:
            more["without_dropped_tasks"] = compare_with_masked(self.program, unmasked, self.start, batch).tasks
        if not any(one.hit(layer.path, kept[layer.path]) for one in routed.values() for layer in self.layers):
            more["exact"] = compare_with_masked(self.program, unmasked, built, batch, experts=True).tasks
        return found.model_copy(update=more)

    def _finetune(self, built: Program) -> dict[str, Any]:
        assert self.config.finetune is not None
        context = self.context
        return recover(built, context, self.config.finetune, seed=context.seed, checkpoint=context.workdir / "training")

    def _evaluate(self, program: Program) -> Evaluation:
        return evaluate(program, self.context.criteria, self.calibration, self.config.batch_size, self.samples)

    def _claimed(self, kept: Kept, plans: Mapping[str, Any]) -> int:
        """What the tasks' network costs, less the experts that went."""
        gone = 0
        for together in sharing(self.layers):
            plan = plans.get(together[0].path, {})
            left = len(plan.get("groups") or ()) or rows_left(together, kept)
            gone += together[0].parameters_per_expert() * (together[0].rows - left)
        return self.start.parameters_count() - gone

    # -- what is told ------------------------------------------------------------------------------------------------

    def _report(
        self,
        kept: Kept,
        plans: Mapping[str, Any],
        routed: Mapping[str, Routed],
        built: Program,
        stages: Mapping[str, Evaluation],
    ) -> dict[str, Any]:
        config, dropped = self.config, [t for t in self.program.task_names if t not in self.start.task_names]
        layers = [layer_report(layer, kept[layer.path], plans.get(layer.path), routed) for layer in self.layers]
        after = observe(built, self.calibration, config.batch_size, self.samples)
        exact, approximate = verdicts(layers, dropped, config.handle, config.reroute)
        if dropped and self.start.ignored_outputs != self.program.ignored_outputs:
            self._note(
                f"{type(self.program.module).__name__} has no keep_tasks: the checkpoint still holds the heads of "
                f"{', '.join(dropped)}; a bundle does not"
            )
        return {
            "tasks": list(self.start.task_names),
            "dropped_tasks": dropped,
            "by": config.by,
            "threshold": config.threshold if config.by == "usage" else None,
            "handle": config.handle,
            "reroute": config.reroute,
            "samples": self.samples,
            "layers": layers,
            "exact": exact,
            "approximate": approximate,
            "notes": self.notes,
            "params": {"before": self.program.parameters_count(), "after": built.parameters_count()},
            "active_macs": {
                "kind": "measured",
                "before": macs(self.start) - saved_macs(self.start, routed, self.samples),
                "after": macs(built) - saved_macs(built, after, self.samples),
            },
            "calibration": {stage: _numbers(evaluation) for stage, evaluation in stages.items()},
        }

    def _recorded(self, built: Program, plans: Mapping[str, Any], report: Mapping[str, Any]) -> Program:
        steps = [step for entry in self.start.history[len(self.program.history) :] for step in entry.surgery]
        if plans:
            steps.append({"kind": "experts", "layers": dict(plans)})
        summary = {key: report[key] for key in ("tasks", "dropped_tasks", "exact", "approximate", "params", "missed")}
        entry = HistoryEntry(Extract.name, self.config.model_dump(mode="json"), steps, summary)
        return replace(built, history=(*self.program.history, entry))


def _all_merged(start: Program, plans: Mapping[str, Any], parameters: Mapping[str, Parameters]) -> Program:
    """The program with an expert for each that it has, those that merge with the same parameters."""
    made = start.clone()
    for layer in moe_layers(made.module):
        if layer.path not in plans:
            continue
        group = {expert: number for number, one in enumerate(plans[layer.path]["groups"]) for expert in one}
        inner, position = copy.deepcopy(layer.inner), torch.full((layer.count,), -1)
        position[layer.present] = torch.arange(len(layer.present))
        for name, parameter in list(inner.named_parameters()):
            owner = inner.get_submodule(name.rpartition(".")[0])
            rows = parameters[layer.path][name][[group[expert] for expert in layer.present]]
            setattr(owner, name.rpartition(".")[2], nn.Parameter(rows.clone(), parameter.requires_grad))
        setattr(layer.module, layer.declaration.experts, KeptExperts(inner, position))
    return made


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {"losses": evaluation.losses, "metrics": evaluation.metrics, "labelled": evaluation.labelled}


def _carry_out(
    built: Program, plans: Mapping[str, Any], parameters: Mapping[str, Parameters]
) -> dict[str, Mapping[str, Any]]:
    """Take the experts out, in place; returns the plans with what trials found out about another's experts."""
    with torch.no_grad():
        carried_out = keep_experts(built.module, plans)
        for layer in moe_layers(built.module):
            for name, parameter in layer.inner.named_parameters():
                if layer.path in parameters:
                    parameter.copy_(parameters[layer.path][name])
    return carried_out
