"""``prune``: removes channels to a budget by PAGCP, in rounds with fine-tuning and a hard limit for every task.

PAGCP is performance-aware global channel pruning (Ye et al., TPAMI 2023). Channels of convolutions and linear layers
go, heads of attention, and hidden channels of all experts of a layer jointly.

Preserves the shapes of all outputs (task heads are never cut). Approximates: the network computes something else
afterwards, and says what each task paid. Refuses a network in which no channel can be followed, a budget that no
pruning can reach, and a tolerance without a solution (T ≤ 1 + d0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mtlc.compress.channels.channel_costs import ChannelCosts
from mtlc.compress.pass_interface import Budget, Context, Highlights, Pass, PassPlan, PassResult
from mtlc.compress.pruning.prune_config import PruneConfig, channel_groups, narrowest, unpacked
from mtlc.compress.pruning.rounds import NAME, Rounds
from mtlc.errors import UserError
from mtlc.hw.cost.count import macs, parameters
from mtlc.program.program import Program
from mtlc.results.plan import LeastCost, PlannedChannels

__all__ = ["Prune", "PruneConfig"]

_NO_BUDGET = "prune needs a [budget]: macs, params or latency"


class Prune(Pass[PruneConfig]):
    """Performance-aware global channel pruning."""

    name = NAME

    def requires(self, program: Program, context: Context) -> None:
        if context.budget is None:
            raise UserError(_NO_BUDGET)
        program, _ = unpacked(program)
        groups = channel_groups(program, self.config)
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
        return Rounds(program, context, self.config).run()

    def plan(self, program: Program, tasks: Sequence[str], budget: Budget | None) -> PassPlan:
        """The channel groups, what is left alone and why, and the cost with every group at its narrowest.

        That cost is a floor: no pruning with this configuration goes below it, and a task's limit usually stops it
        before.
        """
        copied = unpacked(program.clone())[0]
        groups = channel_groups(copied, self.config)
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


def _worst(rounds: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The comparison of the round that differs most."""
    return max(rounds, key=lambda entry: max(entry["tasks"].values()), default=None)
