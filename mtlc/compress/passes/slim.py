"""``slim``: trains a network so that its widths can be chosen afterwards, in the manner of ECMT.

Every channel group that the dependency graph finds follows the width of an encoder stage or of a task's decoder.
Channels are sorted by importance, so that a narrower network is the leading channels of the widest; all widths are
trained together. Preserves the network's structure, costs and outputs' shapes: what comes out is the widest network,
with a table of widths. Refuses a network in which nothing can be narrowed, and width sets without 1.0.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from pydantic import Field, field_validator

from mtlc.compress.channels.channel_groups import ChannelGroups
from mtlc.compress.channels.unit import LeftAlone
from mtlc.compress.pass_interface import Context, Pass, PassConfig, PassResult
from mtlc.compress.pruning.prune_config import unpacked
from mtlc.compress.slimmable.configuration import Configuration, checked_widths
from mtlc.compress.slimmable.importance import Importance, importances, sort_channels
from mtlc.compress.slimmable.layer_places import survey
from mtlc.compress.slimmable.sandwich_training import (
    SandwichTrainer,
    SlimRecoveryConfig,
    SlimTrainConfig,
    train_supernet,
)
from mtlc.compress.slimmable.searched_configurations import searched_configurations
from mtlc.compress.slimmable.supernet import Supernet, without_failing
from mtlc.compress.slimmable.width_table import WidthTable, build_table
from mtlc.compress.training.batch_norm import recalibrate_batchnorm
from mtlc.compress.training.recovery import kept_recipe
from mtlc.compress.training.train_config import TrainConfig
from mtlc.compress.training.trainer import untrained
from mtlc.errors import UserError
from mtlc.program.program import HistoryEntry, Program

_BARE = "it lies in tensors that have one width: no layer's weights, or parts of a convolution's groups"


class SlimConfig(PassConfig):
    """Which widths, of what, and how they are trained. `stages` names encoder stages by patterns of their layers."""

    widths: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75, 1.0), description="shares of the channels; 1.0 must be among them"
    )
    round_to: int = Field(8, ge=1, description="kept channels are a multiple of this")
    stages: dict[str, tuple[str, ...]] | None = Field(
        None, description="default: what runs at one resolution is a stage"
    )
    ignore: tuple[str, ...] = Field((), description="layers that keep their width, such as 'encoder.stem*'")
    importance: Importance = Field("taylor", description="what channels are sorted by")
    importance_samples: int = Field(256, ge=1, description="calibration samples for importance = 'taylor'")
    recalibrate: int = Field(512, ge=0, description="training samples for the widest network's batch-norm statistics")
    train: SlimRecoveryConfig = SlimRecoveryConfig()

    @field_validator("widths")
    @classmethod
    def _usable(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        return checked_widths(widths)


class Slim(Pass[SlimConfig]):
    """Conversion to a slimmable network, and its training."""

    name = "slim"
    plans_cost = False

    def requires(self, program: Program, context: Context) -> None:
        self.supernet(program)

    def run(self, program: Program, context: Context) -> PassResult:
        config = self.config
        program, unpacked_by = unpacked(program.clone())
        table = self._table(program)
        context.log(
            f"slim: {len(table.units)} channel groups in {len(table.stages)} encoder stages "
            f"and {len(table.tasks)} decoders"
        )
        if not is_slimmable(program):
            scores = importances(
                program, table.units, context.criteria, context.splits.calibration, config.importance,
                config.importance_samples,
            )  # fmt: skip
            sort_channels(program.module, table.units, scores)
        supernet = Supernet(program, table)
        pool: tuple[Configuration, ...] = ()
        if config.train.draw == "searched":
            pool = searched_configurations(
                supernet, context.splits, context.criteria, config.train.budgets, seed=context.seed,
                path=context.workdir / "evaluations.json",
                log=context.log,
            )  # fmt: skip
            context.log(f"slim: trains the widest network and {len(pool)} configurations that a search found")
        trained = self._trained(supernet, pool, context)
        if config.recalibrate:
            recalibrate_batchnorm(program, context.splits, config.recalibrate)
        report = self._report(supernet, trained, pool)
        entry = HistoryEntry(self.name, config.model_dump(mode="json"), [*unpacked_by, table.to_step()], report)
        return PassResult(program.after(program.module, entry), report)

    def _trained(self, supernet: Supernet, pool: tuple[Configuration, ...], context: Context) -> dict[str, Any]:
        """Train the supernet in place; the training's report with its ``recipe``."""
        config, checkpoint = self.config.train, context.workdir / "state"

        def trying(tried: Program, settings: TrainConfig) -> SandwichTrainer:
            assert isinstance(settings, SlimTrainConfig)
            return SandwichTrainer(
                Supernet(tried, supernet.table), context.splits, context.criteria, settings, context.seed, None, pool,
                context.reference,
            )  # fmt: skip

        if config.epochs == 0:
            return untrained(supernet.program)
        recipe = kept_recipe(supernet.program, context, config, context.seed, checkpoint, trying)
        if "auto" in (config.epochs, config.lr):
            context.log(f"slim: {recipe.line()}")
        report = train_supernet(
            supernet, context.splits, context.criteria, config.fixed(recipe.epochs, recipe.lr), pool=pool,
            teacher=context.reference, seed=context.seed, checkpoint=checkpoint,
            progress=context.progress, log=context.log,
        )  # fmt: skip
        if "more_epochs" in report:
            context.log(f"slim: {report['more_epochs']['line']}")
        return report | {"recipe": recipe.report()}

    def supernet(self, program: Program) -> Supernet:
        """The supernet that the pass would train, before any training. Raises `UserError` where nothing can narrow."""
        program, _ = unpacked(program)
        return Supernet(program, self._table(program))

    def _table(self, program: Program) -> WidthTable:
        """Which channels of the program follow which width, or would. Raises `UserError` where nothing can."""
        config = self.config
        if is_slimmable(program):
            return self._known_table(program, config)
        example = program.example_inputs()
        groups = ChannelGroups(program.module, example, config.ignore)
        units = [unit for unit in groups.units if unit.by_layers]
        alone = [*groups.left_alone, *(LeftAlone(u.name, u.channels, _BARE) for u in groups.units if not u.by_layers)]
        table = build_table(
            units, survey(program), program.task_names, config.widths, config.round_to, config.stages, alone
        )
        return without_failing(Supernet(program, table))

    def _known_table(self, program: Program, config: SlimConfig) -> WidthTable:
        """That of a network that is slimmable already: a further pass goes on training it."""
        table = Supernet.of(program).table
        for key in ("widths", "round_to"):
            if getattr(config, key) != getattr(table, key):
                raise UserError(
                    f"slim: the network is slimmable already, with {key} = {getattr(table, key)}: "
                    "a further pass goes on training it and takes the same"
                )
        if config.stages is not None or config.ignore:
            raise UserError("slim: the network is slimmable already: stages and ignore belong to the first pass")
        alone = tuple(LeftAlone(**item) for item in program.history[-1].report["left_alone"])
        return replace(table, left_alone=alone)

    def _report(self, supernet: Supernet, trained: dict[str, Any], pool: tuple[Configuration, ...]) -> dict[str, Any]:
        table = supernet.table
        return {
            "widths": list(table.widths),
            "groups": {
                group: {
                    "options": list(table.options(group)),
                    "units": {u.name: [table.kept(u, w) for w in table.options(group)] for u in table.of(group)},
                }
                for group in table.groups
            },
            "stages": list(table.stages),
            "tasks": list(table.tasks),
            "macs": {"widest": supernet.macs(supernet.largest), "narrowest": supernet.macs(supernet.smallest)},
            "left_alone": [asdict(item) for item in table.left_alone],
            "pool": [asdict(configuration) for configuration in pool],
            "training": trained,
        }


def is_slimmable(program: Program) -> bool:
    """Whether a program has a table of widths."""
    return any(step.get("kind") == "widths" for entry in program.history for step in entry.surgery)
