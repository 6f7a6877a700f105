"""Training a supernet: several configurations a step, the narrower ones taught by the widest.

The sandwich rule and in-place distillation are those of universally slimmable networks (Yu and Huang, ICCV 2019); the
distillation of the encoder's features follows ECMT's CI-KD (Aich et al., ICCV 2023) in two forms of our own, as no
formula was at hand: `leading_match` and `similarity_match`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional as F

from mtlc.compress.channels.slicing import inputs_of
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.layer_places import decoder_layers, survey
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.compress.slimmable.width_table import WidthTable
from mtlc.compress.training.distillation import weighted_distillation
from mtlc.compress.training.features import channel_dimension
from mtlc.compress.training.memory_layout import image_layout
from mtlc.compress.training.seeds import seeded
from mtlc.compress.training.shared_training import Maker
from mtlc.compress.training.train_config import Epochs, NumberOrAuto, RecoveryConfig, TrainConfig, TrainingSettings
from mtlc.compress.training.trainer import Trainer, untrained
from mtlc.errors import MtlcError, UserError, one_line
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.splits import Batch, Splits
from mtlc.log import Log, silent
from mtlc.program.program import Program

FeatureDistillation = Literal["leading", "similarity", "none"]
Draw = Literal["all", "searched"]


class SlimSettings(TrainingSettings):
    """Which configurations of a supernet a step trains, and what teaches them."""

    configurations: int = Field(
        4, ge=2, description="widths trained per step: the widest, the narrowest, others at random"
    )
    draw: Draw = Field(
        "all", description="what they are drawn from; 'searched': what a search finds for the network as it is"
    )
    budgets: tuple[float, ...] = Field(
        (0.25, 0.4, 0.6, 0.8), min_length=1, description="shares of the widest one's MACs that draw = 'searched' is for"
    )
    narrow_weight: float = Field(
        0.5, gt=0, description="weight of each narrower configuration's loss; the widest has 1"
    )
    labels: float = Field(0.0, ge=0, description="weight of the labels for all but the widest, beside its outputs")
    feature_distillation: FeatureDistillation = Field("leading", description="CI-KD's form: how the encoder is pulled")
    feature_weight: float = Field(1.0, ge=0, description="β: the weight of that pull")

    @field_validator("budgets")
    @classmethod
    def _are_shares(cls, budgets: tuple[float, ...]) -> tuple[float, ...]:
        for share in budgets:
            if not 0 < share < 1:
                raise UserError(f"budgets: {share:g} must be a share of the widest network's MACs, above 0 and under 1")
        return budgets

    @model_validator(mode="after")
    def _trains_all_tasks(self) -> SlimSettings:
        if self.tasks_per_sample:
            raise UserError(
                f"train.tasks_per_sample = {self.tasks_per_sample}: all widths train all tasks, taught by the widest; "
                "leave it out"
            )
        return self


class SlimTrainConfig(SlimSettings, TrainConfig):
    """A supernet's training in numbers."""


class SlimRecoveryConfig(SlimSettings, RecoveryConfig):
    """How to train a supernet; the defaults are for going on from trained weights."""

    epochs: Epochs = 10
    lr: NumberOrAuto = 1e-3

    def fixed(self, epochs: float, lr: float) -> SlimTrainConfig:
        settings = {name: getattr(self, name) for name in SlimSettings.model_fields}
        return SlimTrainConfig(**settings, epochs=epochs, lr=lr)


def train_supernet(
    supernet: Supernet,
    splits: Splits,
    criteria: Criteria,
    config: SlimTrainConfig,
    *,
    pool: Sequence[Configuration] = (),
    teacher: Program | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    log: Log = silent,
) -> dict[str, Any]:
    """Train the widths of a supernet together, in place; see `mtlc.compress.training.trainer.train`.

    With a `pool`, the configurations beside the widest are drawn from it; without, they are the narrowest and random
    ones. The `teacher` is the widest one's, as far as the settings ask for distillation.
    """
    if config.epochs == 0:
        return untrained(supernet.program)
    return SandwichTrainer(supernet, splits, criteria, config, seed, checkpoint, pool, teacher).go(progress, log)


class SandwichTrainer(Trainer):
    """A step runs the widest configuration and narrower ones, the narrowest and random ones if no pool is given, and
    adds up their gradients.
    """

    def __init__(
        self,
        supernet: Supernet,
        splits: Splits,
        criteria: Criteria,
        config: SlimTrainConfig,
        seed: int,
        checkpoint: Path | None,
        pool: Sequence[Configuration] = (),
        teacher: Program | None = None,
    ) -> None:
        # Before the trainer moves the network to its device: it is run once on the example to find these layers.
        features = [] if config.feature_distillation == "none" else read_by_decoders(supernet)
        self.supernet, self.slim, self._pool = supernet, config, tuple(pool)
        super().__init__(supernet.program, splits, criteria, config, seed, checkpoint, teacher)
        self._features = features

    def _image_layout(self, program: Program) -> torch.memory_format:
        narrowest = self.supernet.narrow(self.supernet.smallest)  # whose convolutions have the fewest channels
        return image_layout(narrowest.module, self.device)

    def for_others(self) -> Maker:
        return partial(
            _made,
            self.supernet.program,
            self.supernet.table,
            self.criteria,
            self.slim,
            self.seed,
            self._pool,
            self._guide,
        )

    def _fingerprint(self) -> str:
        pool = [[c.encoder, c.decoders] for c in self._pool]
        text = json.dumps([super()._fingerprint(), self.supernet.table.to_step(), pool])
        return hashlib.sha256(text.encode()).hexdigest()

    def learn(self, batch: Batch, inputs: list[Tensor]) -> dict[str, float]:
        program, guide = self.program, self.teacher
        looked_at = [*self._features, *(guide.features if guide else ())]
        with inputs_of(self.module, dict.fromkeys(looked_at)) as seen:
            outputs = self.outputs(tuple(inputs))
            part = self._part
            found = self.labelled_losses(outputs, batch)
            total = found.total
            if guide is not None:
                said = self._ask(*inputs) if self._said is None else self._said
                total = total + guide.loss(said, outputs, seen, part, self._apart)
            values = found.values
            if self.config.routing != "none":
                routing = self.module.routing_loss(self.config.routing)
                total = total + self.config.routing_weight * part.share * routing
                values["routing"] = float(routing.detach())
            if found.values or total.requires_grad:  # not where the batch has no label and there is no teacher
                total.backward()
            # The widest network teaches the narrower ones of the same step, and does not learn from them.
            targets = {t.name: outputs[t.name].detach() for t in program.tasks}
            features = {layer: seen[layer].detach() for layer in self._features}
        # Each configuration has its own backward pass, and its activations are freed with it: memory does not grow with
        # their number. Gradients add up in the shared weights; the optimiser steps once for all.
        for configuration in self._sandwich():
            with self.supernet.at(configuration), inputs_of(self.module, self._features) as seen:
                outputs = self._narrow_outputs(configuration, inputs)
                total = weighted_distillation(program.tasks, outputs, targets, part, self._apart)
                if self.slim.labels:
                    total = total + self.slim.labels * self.labelled_losses(outputs, batch, auxiliary=False).total
                if self._features:
                    total = total + self.slim.feature_weight * part.share * self._pull(configuration, seen, features)
                (self.slim.narrow_weight * total).backward()
        return values

    def _narrow_outputs(self, configuration: Configuration, inputs: list[Tensor]) -> dict[str, Tensor]:
        """The outputs at a width. Raises `UserError` for a network that runs narrower in evaluation mode only."""
        try:
            return self.outputs(tuple(inputs))
        except MtlcError:
            raise
        except Exception as error:  # whatever a layer says of sizes that do not fit
            raise UserError(
                f"slim: in training mode the network does not run at {configuration}: {one_line(error)}; a part that "
                "runs in training only reads channels that are narrowed: name these layers in ignore, or run the part "
                "in evaluation mode too"
            ) from error

    def _sandwich(self) -> list[Configuration]:
        """The narrowest configuration and random ones, or some of the pool; the same at every run of a seed."""
        table, count = self.supernet.table, self.slim.configurations - 1
        generator = seeded(self.seed, "widths", self.state.step)
        if self._pool:
            order = torch.randperm(len(self._pool), generator=generator)
            return [self._pool[int(place)] for place in order[:count]]

        def drawn(group: str) -> float:
            options = table.options(group)
            return options[int(torch.randint(len(options), (), generator=generator))]

        def any_of_them() -> Configuration:
            return Configuration(tuple(drawn(s) for s in table.stages), tuple(drawn(t) for t in table.tasks))

        # The sandwich: its two outer slices are trained in every step, since all other widths lie between them.
        return [table.smallest, *(any_of_them() for _ in range(count - 1))]

    def _pull(self, configuration: Configuration, seen: Mapping[str, Tensor], widest: Mapping[str, Tensor]) -> Tensor:
        """CI-KD: the mean over the tensors that decoders read of how far the encoder's are from the widest one's."""
        terms = []
        for layer in self._features:
            narrow, wide = seen[layer].float(), widest[layer].float()
            if self.slim.feature_distillation == "similarity":
                terms.append(similarity_match(narrow, wide))
            else:
                dimension = channel_dimension(self.module.get_submodule(layer))
                terms.append(
                    leading_match(narrow, self.supernet.read(layer, configuration, wide, dimension), dimension)
                )
        return torch.stack(terms).mean()


def _made(
    program: Program, table: WidthTable, criteria: Criteria, config: SlimTrainConfig, seed: int,
    pool: Sequence[Configuration], teacher: Program | None, splits: Splits,
) -> SandwichTrainer:  # fmt: skip
    return SandwichTrainer(Supernet(program, table), splits, criteria, config, seed, None, pool, teacher)


def read_by_decoders(supernet: Supernet) -> list[str]:
    """The layers through which decoders read the encoder's tensors, one layer for each tensor."""
    program, table = supernet.program, supernet.table
    encoder_units = {unit.name for stage in table.stages for unit in table.of(stage)}
    candidates = []
    for layers in decoder_layers(program, survey(program)).values():
        fed = {m.layer for unit in table.units if unit.name in encoder_units for m in unit.consumers}
        # Where no unit says what a decoder reads (its input has no width of its own), its first layer is taken.
        candidates += [layer for layer in layers if layer in fed] or layers[:1]
    with torch.no_grad(), inputs_of(program.module, candidates) as seen:
        program.module.eval()
        program.outputs(program.example)
    # Layers that read one tensor have its address in common. Of these the first is to stay: a dictionary keeps the
    # last, hence the turn before and after.
    return list({tensor.data_ptr(): layer for layer, tensor in reversed(seen.items())}.values())[::-1]


def leading_match(narrow: Tensor, wide: Tensor, dimension: int) -> Tensor:
    """‖n/‖n‖ − w/‖w‖‖² with norms over channels, averaged over positions; `wide` has the same leading channels."""
    # For unit vectors ‖a − b‖² = 2 − 2·a·b.
    return 2 * (1 - F.cosine_similarity(narrow, wide, dim=dimension, eps=1e-6)).mean()


def similarity_match(narrow: Tensor, wide: Tensor) -> Tensor:
    """‖G(n) − G(w)‖²_F / N with G the row-normalised Gram matrix of a batch of N samples: any number of channels.

    Similarity-preserving distillation (Tung and Mori, ICCV 2019, eq. 2–3), with its 1/N² times N.
    """

    def gram(features: Tensor) -> Tensor:
        rows = features.flatten(1)
        return F.normalize(rows @ rows.T, dim=1)

    # Samples are compared with samples, not channels with channels, so the widths may differ.
    return (gram(narrow) - gram(wide)).square().sum() / len(narrow)
