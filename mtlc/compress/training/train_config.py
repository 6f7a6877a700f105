"""Defines the settings of training and of fine-tuning, as jobs write them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

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
    checkpoint_seconds: float = Field(60.0, gt=0)


class TrainConfig(TrainingSettings):
    """How to train. `lr` is the peak of the schedule."""

    epochs: float = Field(30, gt=0)
    lr: float = Field(2e-3, gt=0)


def _number_or_auto(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value != "auto" and not (number and value > 0):
        raise ValueError('must be a finite number above 0, or "auto"')
    return value


NumberOrAuto = Annotated[int | float | Literal["auto"], BeforeValidator(_number_or_auto)]


class FinetuneConfig(TrainingSettings):
    """How to make up for what a compression lost.

    `epochs` and `lr` may be ``"auto"``: `mtlc.compress.training.recovery` says what is taken then.
    """

    epochs: NumberOrAuto = 5
    lr: NumberOrAuto = Field("auto", description="that of the job's [train], or what a range test finds")
    distill: float = Field(0.5, ge=0)
    distill_features: float = Field(1.0, ge=0)
    recalibrate: int = Field(
        512, ge=0, description="training samples for batch-norm statistics afterwards, kept where they serve better"
    )

    def fixed(self, epochs: float, lr: float) -> TrainConfig:
        """The training with these numbers in the place of ``"auto"``."""
        settings = {name: getattr(self, name) for name in TrainingSettings.model_fields}
        return TrainConfig(**settings, epochs=epochs, lr=lr)


def _spelt_out(value: Any) -> Any:
    if isinstance(value, str | int | float | list) and value != "auto":
        raise ValueError(f'must be a table such as {{ epochs = 10 }}, or "auto", not {value!r}')
    return {"epochs": "auto", "lr": "auto"} if value == "auto" else value


FineTuning = Annotated[FinetuneConfig, BeforeValidator(_spelt_out)]
"""A table of `FinetuneConfig`; ``"auto"`` in its place is one with ``epochs`` and ``lr`` both ``"auto"``."""


def fine_tuning_of(config: BaseModel) -> FinetuneConfig | None:
    """The fine-tuning in a pass's settings: they themselves, or one of their values."""
    if isinstance(config, FinetuneConfig):
        return config
    values = (getattr(config, name) for name in type(config).model_fields)
    return next((value for value in values if isinstance(value, FinetuneConfig)), None)
