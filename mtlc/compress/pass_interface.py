"""What a compression pass is.

A pass declares what it needs, does its work on a copy, and says what must hold afterwards; the pipeline, not the pass,
checks both (`mtlc.compress.pipeline.pipeline`). Third parties register passes under the entry-point group ``mtlc.passes``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.log import Log, silent
from mtlc.program.program import Program


class PassConfig(BaseModel):
    """Base of pass configurations: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Budget:
    """What the compressed network may cost: `target` in MACs, parameters or milliseconds (batch 1)."""

    kind: Literal["macs", "params", "latency"]
    target: float
    device: str | None = None


@dataclass
class Context:
    """What a pass may use besides the program.

    `reference` is the uncompressed program: limits and distillation refer to it. It and `criteria` have the tasks of
    the program that the pass is given. `workdir` is the pass's own scratch folder; what it finds there from a killed run
    is its to resume. `log` takes lines for a person (stderr).
    """

    splits: Splits
    criteria: Criteria
    reference: Program
    workdir: Path
    budget: Budget | None = None
    seed: int = 0
    log: Log = silent
    progress: bool = False


@dataclass
class PassResult:
    """A pass's new program and report. `artifacts` are JSON values that are written beside the step (sensitivity, …).

    `cost_claimed` maps "macs" and "params" to what the pass says the program costs; the pipeline measures it.
    `missed` says in one line why the budget or a limit was not met, if so; `program` is then the best one inside the limits.
    """

    program: Program
    report: dict[str, Any]
    artifacts: dict[str, Any] = field(default_factory=dict)
    cost_claimed: dict[str, float] = field(default_factory=dict)
    missed: str | None = None


class Pass(ABC):
    """One transformation of a program. `exact` passes keep every output's numbers; the pipeline checks that.

    The result of a pass that `keeps_tasks` has all the tasks of its input; another's may have fewer.
    """

    name: ClassVar[str]
    Config: ClassVar[type[PassConfig]]
    exact: ClassVar[bool] = False
    keeps_tasks: ClassVar[bool] = True

    def __init__(self, config: PassConfig) -> None:
        self.config = config

    def requires(self, program: Program, context: Context) -> None:  # noqa: B027 - optional hook
        """Raise `UserError` if the pass cannot run on this program with this context."""

    @abstractmethod
    def run(self, program: Program, context: Context) -> PassResult:
        """Do the work on a copy of the program."""

    def ensures(self, before: Program, result: PassResult) -> None:  # noqa: B027 - optional hook
        """Raise if the result breaks a promise that only this pass makes."""
