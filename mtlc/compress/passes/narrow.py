"""``narrow``: cuts the network of one configuration out of a slimmable one, to fit the budget.

Searches the configuration for the job's budget and a preference over the tasks
(`mtlc.compress.slimmable.width_search`), cuts it out and measures its batch-norm statistics. Needs no training; a
fine-tuning may follow. Refuses a network that is not slimmable, and a budget that is not in MACs.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from mtlc.compress.pass_interface import Context, Pass, PassConfig, PassResult
from mtlc.compress.slimmable.evaluations import Evaluations, Here, Measurer
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_search import Question, Search, Strategy
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.errors import UserError
from mtlc.program.program import Program
from mtlc.runtime.widths.width_choice import normalised_preference


class NarrowConfig(PassConfig):
    """What the tasks are worth to each other, and how the search measures."""

    prefer: dict[str, float] | None = Field(None, description="by task; those that are not named get 0; default: alike")
    strategy: Strategy = "joint"
    samples: int | None = Field(None, ge=1, description="calibration samples per measurement; default: all")
    recalibrate: int = Field(512, ge=2, description="training samples for batch-norm statistics")


class Narrow(Pass[NarrowConfig]):
    """One configuration of a slimmable network as a network of its own."""

    name = "narrow"
    plans_cost = False  # how narrow the network can get is known once `slim` has run

    def requires(self, program: Program, context: Context) -> None:
        Supernet.of(program)
        normalised_preference(self.config.prefer, program.task_names)
        if context.budget is None or context.budget.kind != "macs":
            raise UserError("narrow needs a [budget] in macs; for milliseconds use: mtlc search")

    def run(self, program: Program, context: Context) -> PassResult:
        config = self.config
        assert context.budget is not None
        supernet = Supernet.of(program.clone())
        measurer = Measurer(supernet, context.splits, context.criteria, config.samples, config.recalibrate)
        evaluations = Evaluations(Here(measurer), supernet.tasks)
        search = Search(supernet, evaluations, context.criteria.higher_is_better, seed=context.seed)
        preference = normalised_preference(config.prefer, supernet.tasks)
        found = search.find(Question(preference, context.budget.target), config.strategy)
        context.log(f"narrow: {found.configuration}: {found.cost:,.0f} MACs after {found.runs} measurements")
        cut = supernet.narrow(found.configuration)
        recalibrate_batchnorm(cut, context.splits, config.recalibrate)
        report = {
            "configuration": {
                "encoder": dict(zip(supernet.stages, found.configuration.encoder, strict=True)),
                "decoders": dict(zip(supernet.tasks, found.configuration.decoders, strict=True)),
            },
            "preference": preference,
            "metrics": found.metrics,
            "gain": found.gain,
            "measurements": found.runs,
        }
        entry = replace(cut.history[-1], name=self.name, config=config.model_dump(mode="json"), report=report)
        result = replace(cut, history=(*cut.history[:-1], entry))
        return PassResult(result, report, cost_claimed={"macs": supernet.macs(found.configuration)})
