"""Defines the settings of training and of fine-tuning, as jobs write them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from mtlc.compress.pass_interface import PassConfig
from mtlc.moe.losses import RoutingLoss


class TrainingSettings(PassConfig):
    """What trainings of every kind have in common; `warmup` is a share of the steps."""

    batch_size: int = Field(32, ge=1)
    final_lr: float = Field(0.01, ge=0, le=1, description="the schedule ends at lr × final_lr")
    weight_decay: float = Field(0.02, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the moving average of the weights; 0 switches it off")
    clip: float = Field(5.0, gt=0, description="largest norm of the gradient")
    distill: float = Field(0.0, ge=0, description="weight of the distillation from the uncompressed network")
    distill_features: float = Field(0.0, ge=0, description="weight of the pull towards its encoder's features")
    augment: bool = True
    tasks_per_sample: int | None = Field(
        None, ge=1, description="tasks that each sample trains, drawn anew each step; for networks that run tasks apart"
    )
    routing: RoutingLoss = Field("none", description="what shapes the routing of a mixture of experts")
    routing_weight: float = Field(0.01, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    accumulate: int = Field(1, ge=1, description="micro-batches of a step, one after the other, to save memory")
    gradient_checkpointing: bool = Field(
        False, description="keep fewer activations, and compute the others again in the backward pass"
    )
    # Not among what results follow from: the samples are the same, whoever reads them.
    workers: int = Field(0, ge=0, exclude=True, description="processes that read samples ahead; 0 reads in the loop")
    checkpoint_seconds: float = Field(60.0, gt=0)


class TrainConfig(TrainingSettings):
    """How to train. `lr` is the peak of the schedule."""

    epochs: float = Field(30, ge=0, description="0 trains nothing")
    lr: float = Field(2e-3, gt=0)


def _number_or_auto(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value != "auto" and not (number and value > 0):
        raise ValueError('must be a finite number above 0, or "auto"')
    return value


def _epochs(value: Any) -> Any:
    if type(value) in (int, float) and value == 0:
        return 0
    try:
        return _number_or_auto(value)
    except ValueError as error:
        raise ValueError(f"{error}; 0 trains nothing") from None


NumberOrAuto = Annotated[int | float | Literal["auto"], BeforeValidator(_number_or_auto)]


Epochs = Annotated[int | float | Literal["auto"], BeforeValidator(_epochs)]
"""The same, or 0 for none."""


class RecoveryConfig(TrainingSettings):
    """How a training goes on from trained weights: what the passes that train have in common.

    `epochs` and `lr` may be ``"auto"``: `mtlc.compress.training.recovery` says what is taken then.
    """

    epochs: Epochs = 5
    lr: NumberOrAuto = Field("auto", description="that of the job's [train], or what a range test finds")

    def fixed(self, epochs: float, lr: float) -> TrainConfig:
        """The training with these numbers in the place of ``"auto"``."""
        settings = {name: getattr(self, name) for name in TrainingSettings.model_fields}
        return TrainConfig(**settings, epochs=epochs, lr=lr)


class FinetuneConfig(RecoveryConfig):
    """How to make up for what a compression lost."""

    distill: float = Field(0.5, ge=0)
    distill_features: float = Field(1.0, ge=0)
    recalibrate: int = Field(
        512, ge=0, description="training samples for batch-norm statistics afterwards, kept where they serve better"
    )


def _spelt_out(value: Any) -> Any:
    if value is False:
        return None
    if isinstance(value, str | int | float | list) and value != "auto":
        raise ValueError(f'must be a table such as {{ epochs = 10 }}, "auto", or false for none, not {value!r}')
    return {"epochs": "auto", "lr": "auto"} if value == "auto" else value


def _unless_none(config: FinetuneConfig | None) -> FinetuneConfig | None:
    return None if config is None or config.epochs == 0 else config


FineTuning = Annotated[FinetuneConfig | None, BeforeValidator(_spelt_out), AfterValidator(_unless_none)]
"""A table of `FinetuneConfig`; ``"auto"`` in its place is one with ``epochs`` and ``lr`` both ``"auto"``.

``false``, and a table with ``epochs = 0``, is no fine-tuning: None.
"""


def fine_tuning_of(config: BaseModel) -> RecoveryConfig | None:
    """The fine-tuning in a pass's settings, they themselves or one of their values; None for one of no epochs."""
    if isinstance(config, RecoveryConfig):
        return None if config.epochs == 0 else config
    values = (getattr(config, name) for name in type(config).model_fields)
    return next((value for value in values if isinstance(value, RecoveryConfig)), None)
