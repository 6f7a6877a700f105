"""``qat``: fine-tunes with the rounding that INT8 inference will do.

Quantisation-aware training (Jacob et al., CVPR 2018). Preserves the structure: a network in floating point comes out,
and export and `mtlc quantize` treat it as any other. Approximates: `mtlc.compress.training.int8_rounding` rounds
weights and inputs of the layers that multiply; what INT8 rounds besides (operands of additions and resizes,
attention's products, the experts' hidden values) is not rounded in training. Batch norms keep their statistics: what is
trained is the function that will be folded and rounded. Ranges are those of calibration samples and stay during
training. They are not learned (LSQ, arXiv 1902.08153), since INT8 export measures ranges itself. Refuses a network
without a layer that can be rounded.

The trained network is taken only if, rounded, the worst-off task of the calibration split is not worse off than
before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mtlc.compress.pass_interface import Context, Pass, PassResult
from mtlc.compress.training.batch_norm import freeze_norms
from mtlc.compress.training.int8_rounding import Rounded, rounded, unrounded
from mtlc.compress.training.recovery import kept_recipe
from mtlc.compress.training.train_config import Epochs, NumberOrAuto, RecoveryConfig, TrainConfig
from mtlc.compress.training.trainer import Trainer, untrained
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.evaluate import evaluate
from mtlc.program.program import HistoryEntry, Program
from mtlc.tasks.task import TaskSpec


class QatConfig(RecoveryConfig):
    """`RecoveryConfig` with the defaults of adapting to rounding, and what is rounded for which target."""

    epochs: Epochs = 2
    lr: NumberOrAuto = 3e-4
    distill: float = Field(0.5, ge=0)
    target: str = Field("cpu", validate_default=True, description="of INT8, as in [quantize]")
    calibration_samples: int = Field(128, ge=1, description="of the calibration split, for the ranges")

    @field_validator("target")
    @classmethod
    def _resolved(cls, name: str) -> str:
        """The target's own name: what is computed must not depend on the machine that reads the job."""
        from mtlc.export.quantization.targets import resolve_target  # imports onnx, which few jobs need

        return resolve_target(name).name


class Qat(Pass[QatConfig]):
    """Quantisation-aware fine-tuning: a network in floating point that loses less in INT8."""

    name = "qat"
    plans_cost = False
    trains_norms = False

    def run(self, program: Program, context: Context) -> PassResult:
        config, criteria, calibration = self.config, context.criteria, context.splits.calibration
        rounding = self._rounded(program, context)
        metrics = {
            "reference": evaluate(context.reference, criteria, calibration).metrics,
            "float_before": evaluate(program, criteria, calibration).metrics,
            "int8_before": evaluate(rounding.program, criteria, calibration).metrics,
        }
        context.log(f"qat: INT8 for {config.target} in {len(rounding.layers)} layers, then fine-tuning")
        training = adapt(rounding.program, context, config)
        tuned = unrounded(rounding, program)
        metrics["float_after"] = evaluate(tuned, criteria, calibration).metrics
        metrics["int8_after"] = evaluate(self._rounded(tuned, context).program, criteria, calibration).metrics
        before, after = (
            worst_off(criteria, metrics["reference"], metrics[key]) for key in ("int8_before", "int8_after")
        )
        kept = after.harm <= before.harm
        if not kept:
            context.log(
                f"qat: task {after.task!r} is worse off than {before.task!r} was before: the weights stay as they were"
            )
        report = {
            "kept": kept,
            "target": config.target,
            "kind": "simulated",
            "layers": len(rounding.layers),
            "left_alone": rounding.left_alone,
            "samples": min(config.calibration_samples, len(calibration)),
            "worst_off": {"before": before.to_dict(), "after": after.to_dict()},
            "tasks": {
                task.name: {"metric": task.metric, "unit": criteria.units[task.name]}
                | {key: _number(values[task.name]) for key, values in metrics.items()}
                for task in program.tasks
            },
            "training": training,
        }  # fmt: skip
        entry = HistoryEntry(self.name, config.model_dump(mode="json"), [], report)
        return PassResult(program.after((tuned if kept else program.clone()).module, entry), report)

    def _rounded(self, program: Program, context: Context) -> Rounded:
        from mtlc.export.quantization.targets import TARGETS

        target = TARGETS[self.config.target]
        samples = self.config.calibration_samples
        return rounded(program, context.splits.calibration, samples, target.weights, target.symmetric)


def adapt(program: Program, context: Context, config: QatConfig) -> dict[str, Any]:
    """Train the rounding `program` in place; the training's report with its ``recipe``.

    What is left to ``"auto"`` is settled on the network as it rounds, with its norms frozen.
    """

    def trying(tried: Program, settings: TrainConfig) -> Trainer:
        return _with_frozen_norms(tried, context, settings, None)

    if config.epochs == 0:
        return untrained(program)
    recipe = kept_recipe(program, context, config, context.seed, context.workdir / "training", trying)
    if "auto" in (config.epochs, config.lr):
        context.log(f"qat: {recipe.line()}")
    report = train_with_frozen_norms(program, context, config.fixed(recipe.epochs, recipe.lr))
    if "more_epochs" in report:
        context.log(f"qat: {report['more_epochs']['line']}")
    return report | {"recipe": recipe.report()}


def train_with_frozen_norms(program: Program, context: Context, config: TrainConfig) -> dict[str, Any]:
    """Train in place, batch norms normalising with their running statistics and keeping them; the training's report."""
    if config.epochs == 0:
        return untrained(program)
    trainer = _with_frozen_norms(program, context, config, context.workdir / "training")
    return trainer.go(context.progress, context.log)


def _with_frozen_norms(program: Program, context: Context, config: TrainConfig, checkpoint: Path | None) -> Trainer:
    trainer = Trainer(program, context.splits, context.criteria, config, context.seed, checkpoint, context.reference)
    freeze_norms(trainer.module)
    return trainer


@dataclass(frozen=True)
class WorstOff:
    """The task that lost most: `harm` is that as a share of its ``max_drop``, or of its metric if no task has one."""

    task: str
    harm: float

    def to_dict(self) -> dict[str, Any]:
        return {"task": self.task, "harm": _number(self.harm)}


def worst_off(criteria: Criteria, reference: dict[str, float], metrics: dict[str, float]) -> WorstOff:
    """The worst-off of the tasks that have a limit, of all where none has. A metric that is NaN is infinite harm."""
    limited = [task for task in criteria.tasks if task.max_drop is not None]
    harms = {
        task.name: _harm(task, reference[task.name], metrics[task.name], criteria.higher_is_better[task.name])
        for task in limited or criteria.tasks
    }
    task = max(harms, key=harms.__getitem__)
    return WorstOff(task, harms[task])


def _harm(task: TaskSpec, reference: float, metric: float, higher_is_better: bool) -> float:
    lost = reference - metric if higher_is_better else metric - reference
    if not math.isfinite(lost):
        return math.inf
    allowed = abs(reference if task.max_drop is None else task.max_drop.bound(reference, higher_is_better) - reference)
    return lost / max(allowed, 1e-12)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
