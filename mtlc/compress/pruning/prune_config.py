"""Holds the settings of pruning: PAGCP's parameters under the paper's names, and those of the rounds."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.pagcp.sweep import Rules, kept_counts, solve_decay
from mtlc.compress.pass_interface import PassConfig
from mtlc.compress.training.train_config import FinetuneConfig, FineTuning
from mtlc.errors import UserError
from mtlc.program.program import Program
from mtlc.program.surgery import Step
from mtlc.program.unpacking import unpack

_HARDLY_BOUNDED = 1000.0
_LARGEST_CUT = 0.6  # a round of its own for every factor of 0.6 in cost: small cuts are easier to mend


class PruneConfig(PassConfig):
    """PAGCP's parameters under the paper's names, and those of the rounds."""

    method: Literal["pagcp", "recovered", "tilted", "uniform"] = Field(
        "pagcp", description="what says how much of each goes"
    )
    race: float = Field(0.2, ge=0, lt=1, description="share of a round's training that chooses between candidates")
    initial_rate: float = Field(0.05, gt=0, description="d0: the loss growth that the first unit may cause")
    initial_thres: float | None = Field(
        None, gt=1, description="T: the loss growth that a round may cause before fine-tuning; 5 with method = 'pagcp'"
    )
    top_p: float = Field(0.8, gt=0, le=1, description="share of a sweep's units that stay pruned")
    round_to: int = Field(8, ge=1, description="kept channels are a multiple of this")
    rank: Literal["reconstruction", "norm"] = Field("reconstruction", description="what the others make up for, or |w|")
    norm: int = Field(1, ge=1, le=2, description="with rank = 'norm': mean L1 or L2 norm of the filters")
    reconstruct: bool = Field(True, description="let the kept channels make up for the removed ones, by least squares")
    rounds: int | None = Field(None, ge=1, le=20, description="default: one for every factor of 0.6")
    ignore: tuple[str, ...] = Field((), description="layers that are left alone, such as 'decoders.depth.*'")
    residual: bool = Field(False, description="whether the width that all blocks of a transformer share may go too")
    calibration_samples: int | None = Field(None, ge=1, description="default: the whole calibration split")
    batch_size: int = Field(64, ge=1)
    cache_mb: int = Field(2048, ge=0, description="memory for kept activations")
    recalibrate: int = Field(512, ge=0, description="training samples for batch-norm statistics; 0 leaves them")
    sensitivity: tuple[float, ...] = Field((0.25, 0.5, 0.75), description="ratios of the sensitivity map; empty: none")
    finetune: FineTuning = Field(FinetuneConfig(), description="after every round")

    @model_validator(mode="after")
    def _solvable(self) -> PruneConfig:
        if self.rank == "reconstruction" and not self.reconstruct:
            raise UserError('rank = "reconstruction" needs reconstruct = true; or set rank = "norm"')
        solve_decay(self.initial_rate, self.growth(), 2)
        return self

    def growth(self) -> float:
        """T. Where candidates are judged after recovery, what a cut costs before it hardly bounds them."""
        return self.initial_thres or (5.0 if self.method == "pagcp" else _HARDLY_BOUNDED)

    def rounds_for(self, share: float) -> int:
        """The rounds in which a network goes to `share` of its cost, if no task stops one."""
        return self.rounds or max(1, math.ceil(round(math.log(share) / math.log(_LARGEST_CUT), 6)))

    def rules(self) -> Rules:
        return Rules(
            self.initial_rate, self.growth(), self.top_p, round_to=self.round_to, norm=self.norm, rank=self.rank
        )


def narrowest(groups: ChannelGroups, config: PruneConfig) -> dict[str, int]:
    """How many channels every group keeps whatever happens."""
    rules = config.rules()
    return {u.name: min(kept_counts(u.channels, rules, u.multiple, u.width), default=u.channels) for u in groups.units}


def unpacked(program: Program) -> tuple[Program, list[Step]]:
    """A copy whose layers can all lose channels, and the surgery that makes it; the program itself if they can."""
    copied = program.clone()
    step = unpack(copied.module)
    return (program, []) if step is None else (copied, [step])


def channel_groups(program: Program, config: PruneConfig) -> ChannelGroups:
    example = program.example_inputs()
    return ChannelGroups(program.module, example, config.ignore, config.residual)
