"""Says what a compression pass must give: its work, its promises, its plan and what of it stands in the results.

A pass declares what it needs, does its work on a copy, and says what must hold afterwards; the pipeline, not the pass,
checks both (`mtlc.compress.pipeline.pipeline`). This module knows no pass. Ours are listed in
`mtlc.compress.passes.registry`; packages add theirs under the entry-point group ``mtlc.passes``
(``docs/extending.md``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Splits
from mtlc.log import Log, silent
from mtlc.program.program import Program
from mtlc.results.plan import PlannedChannels, PlannedExperts
from mtlc.toml_files import validated


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
    the program that the pass is given. `workdir` is the pass's own scratch folder; what it finds there from a killed
    run is its to resume. `log` takes lines for a person (stderr). `train_lr` is the learning rate of
    the job's ``[train]``, which fine-tuning may go back to.
    """

    splits: Splits
    criteria: Criteria
    reference: Program
    workdir: Path
    budget: Budget | None = None
    seed: int = 0
    log: Log = silent
    progress: bool = False
    train_lr: float | None = None


@dataclass
class PassResult:
    """A pass's new program and report. `artifacts` are JSON values that are written beside the step (sensitivity, …).

    `cost_claimed` maps "macs" and "params" to what the pass says the program costs; the pipeline measures it.
    `missed` says in one line why the budget or a limit was not met, if so; `program` is then the best one inside the
    limits.
    """

    program: Program
    report: dict[str, Any]
    artifacts: dict[str, Any] = field(default_factory=dict)
    cost_claimed: dict[str, float] = field(default_factory=dict)
    missed: str | None = None


@dataclass(frozen=True)
class PassPlan:
    """What a pass would do to a network, as far as that can be said before it runs.

    `tasks` are those that it keeps; None keeps all. `least` maps "macs" and "params" to the least cost that the pass
    can reach on the original network; empty where only a run can tell. `units` and `experts` are what it would choose
    from, and are shown as tables. `details` are JSON values of its own, shown beside its settings.
    """

    tasks: tuple[str, ...] | None = None
    least: Mapping[str, int] = field(default_factory=dict)
    units: PlannedChannels | None = None
    experts: PlannedExperts | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Highlights:
    """What of a pass's report stands at the top of ``results.json``, where sections of the report look for it.

    `sensitivity` is how much each task's loss grows if a channel group is cut alone (units × ratios × tasks, as
    `mtlc.compress.passes.prune` makes it); `experts` is what stayed of each layer of experts (as
    `mtlc.compress.passes.extract` reports it); `blocked` lists which task stopped which group from losing channels.
    `compared` is how far what the pass built is from the original with the removed parts masked, the JSON values of
    `mtlc.results.masked_comparison`; it stands with the pass.
    """

    sensitivity: dict[str, Any] | None = None
    experts: dict[str, Any] | None = None
    blocked: Sequence[dict[str, Any]] = ()
    compared: dict[str, Any] | None = None


ConfigT = TypeVar("ConfigT", bound=PassConfig)


class Pass(ABC, Generic[ConfigT]):
    """One transformation of a program, with settings of its own: ``class Prune(Pass[PruneConfig])``.

    `name` is what a job calls it. `exact` passes keep every output's numbers; the pipeline checks that. The result of
    a pass that `keeps_tasks` has all the tasks of its input; another's may have fewer. `plans_cost` is False for a pass
    that has no say in whether a budget can be reached, such as one that only trains. `trains_norms` is False for a pass
    that trains and leaves the statistics of batch norms alone meanwhile.
    """

    name: ClassVar[str]
    Config: ClassVar[type[PassConfig]]
    """The type of the settings. It is the one in the brackets and need not be written down again."""
    exact: ClassVar[bool] = False
    keeps_tasks: ClassVar[bool] = True
    plans_cost: ClassVar[bool] = True
    trains_norms: ClassVar[bool] = True

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for base in cls.__dict__.get("__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Pass) and isinstance(get_args(base)[0], type):
                cls.Config = get_args(base)[0]

    def __init__(self, config: ConfigT | None = None, /, **settings: Any) -> None:
        """A pass with its settings: `config`, or its fields as keywords. Raises `UserError` naming a wrong one."""
        if config is not None and settings:
            raise UserError(f"{type(self).__name__}: give a config or settings, not both")
        if config is None:
            config = validated(partial(self.Config.model_validate, settings), self.Config, f"{type(self).__name__}:")
        self.config = config

    def requires(self, program: Program, context: Context) -> None:
        """Raise `UserError` if the pass cannot run on this program with this context."""

    @abstractmethod
    def run(self, program: Program, context: Context) -> PassResult:
        """Do the work on a copy of the program."""

    def ensures(self, before: Program, result: PassResult) -> None:
        """Raise if the result breaks a promise that only this pass makes."""

    def plan(self, program: Program, tasks: Sequence[str], budget: Budget | None) -> PassPlan:
        """What the pass would do to `program`, without training or changing anything.

        `program` is the original network, which no pass has run on; `tasks` are those of it that the passes before
        keep. Raises `UserError` if the pass could not run. By default, what it can reach shows only as it runs.
        """
        return PassPlan()

    def results(self, report: Mapping[str, Any], artifacts: Mapping[str, Any]) -> Highlights:
        """What of a finished step's `report` and `artifacts` stands at the top of the results.

        By default nothing: the report is in the results all the same, in the list of passes.
        """
        return Highlights()
