"""Defines a task: an output of the network with its loss, its metric and the harm that its owner tolerates.

A leaf of the package: no torch here. Losses live in `mtlc.tasks.losses`, metrics in `mtlc.tasks.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mtlc.errors import UserError, nearest


@dataclass(frozen=True)
class Limit:
    """How far a metric may get worse: `value` in the metric's unit, or as a share of the metric if `relative`.

    With a `confidence`, from 0 to 1, that share of draws from the samples must keep the limit too
    (`mtlc.evaluation.bootstrap`).
    """

    value: float
    relative: bool
    confidence: float | None = None

    @classmethod
    def parse(cls, text: str | float | Mapping[str, Any]) -> Limit:
        """Read ``"1.0%"`` (relative) or ``0.02`` (absolute, in the metric's own unit), or a table of one of these and
        a confidence: ``{"drop": "1.0%", "confidence": 0.95}``. Raises `UserError` for anything else.
        """
        if isinstance(text, Mapping):
            return cls._parse_table(text)
        relative = isinstance(text, str) and text.strip().endswith("%")
        try:
            value = float(text.strip().removesuffix("%")) if isinstance(text, str) else float(text)
        except ValueError:
            raise UserError(
                f'max_drop = {text!r}: write a share such as "1.0%" or a number in the metric\'s unit'
            ) from None
        if not math.isfinite(value) or value < 0:
            raise UserError(f"max_drop = {text!r}: must be a finite number, zero or more")
        return cls(value / 100 if relative else value, relative)

    @classmethod
    def _parse_table(cls, table: Mapping[str, Any]) -> Limit:
        form = 'write { drop = "1.0%", confidence = 0.95 }'
        for key in table:
            if key not in ("drop", "confidence"):
                raise UserError(f"max_drop has no key {key!r}{nearest(key, ['drop', 'confidence'])}; {form}")
        drop, confidence = table.get("drop"), table.get("confidence")
        if isinstance(drop, bool) or not isinstance(drop, str | int | float):
            raise UserError(f"max_drop.drop = {drop!r}; {form}")
        if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
            raise UserError(f"max_drop.confidence = {confidence!r}: must lie between 0 and 1; {form}")
        return replace(cls.parse(drop), confidence=float(confidence))

    def allowance(self, before: float) -> float:
        """How far the metric may get worse, in its unit, given the metric `before` compression."""
        return abs(before) * self.value if self.relative else self.value

    def bound(self, before: float, higher_is_better: bool) -> float:
        """The worst metric that still keeps the limit, given the metric `before` compression."""
        allowance = self.allowance(before)
        return before - allowance if higher_is_better else before + allowance

    def allows(self, before: float, after: float, higher_is_better: bool) -> bool:
        """Whether `after` keeps the limit, whatever the confidence. A NaN never does."""
        bound = self.bound(before, higher_is_better)
        slack = 1e-9 * max(1.0, abs(before))
        return after >= bound - slack if higher_is_better else after <= bound + slack

    def __str__(self) -> str:
        drop = f"{self.value * 100:g}%" if self.relative else f"{self.value:g}"
        return drop if self.confidence is None else f"{drop} at {self.confidence * 100:g}% confidence"


@dataclass(frozen=True)
class TaskSpec:
    """One task of a network.

    `output` is the key of the task's tensor in the model's outputs ("depth"), its position in a tuple ("0"), or ""
    for a model that returns one tensor; `training_output` is that in training mode, where it has another name there.
    A task that is `training_only` has no output but in training mode, and no metric. `target` is the key of its
    labels in a sample of the data set. Labels of the value `ignore` count in neither the loss nor the metric; None
    leaves the value to them. `postprocess` says how the output becomes boxes (`mtlc.detection.Detection`); None for
    an output that is the answer itself.
    """

    name: str
    loss: str
    metric: str
    output: str | None = None
    target: str | None = None
    weight: float = 1.0
    max_drop: Limit | None = None
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    metric_args: Mapping[str, Any] = field(default_factory=dict)
    ignore: int | None = None
    training_output: str | None = None
    training_only: bool = False
    postprocess: Mapping[str, Any] | None = None

    @property
    def training_key(self) -> str:
        return self.output_key if self.training_output is None else self.training_output

    @property
    def output_key(self) -> str:
        return self.name if self.output is None else self.output

    @property
    def target_key(self) -> str:
        return self.name if self.target is None else self.target

    def to_dict(self) -> dict[str, Any]:
        """JSON values; without the keys that earlier versions did not write, where they are not set."""
        values = asdict(self)
        for key in ("ignore", "training_output", "training_only", "postprocess"):
            if values[key] in (None, False):
                del values[key]
        if values["max_drop"] is not None and values["max_drop"]["confidence"] is None:
            del values["max_drop"]["confidence"]
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskSpec:
        limit = data.get("max_drop")
        return cls(**{**data, "max_drop": Limit(**limit) if limit else None})


def delta_m(metrics: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]) -> float:
    """Δm in percent: the mean relative gain over the tasks (negative is worse).

    Δm = 100/T · Σ_i (−1)^{l_i} (M_i − B_i)/B_i with l_i = 1 where lower is better (Maninis et al., CVPR 2019, eq. 1).
    The tasks are those of `baseline`; one that `metrics` lacks is an error.
    """
    if not baseline:
        raise UserError("Δm needs at least one task in the baseline")
    gains = []
    for task, before in baseline.items():
        if task not in metrics:
            raise UserError(f"Δm: task {task!r} of the baseline has no metric")
        if before == 0:
            raise UserError(f"Δm: the baseline of task {task!r} is 0, a relative change is undefined")
        gain = (metrics[task] - before) / abs(before)
        gains.append(gain if higher_is_better[task] else -gain)
    return 100 * math.fsum(gains) / len(gains)


def check_names(names: Iterable[str]) -> None:
    """Refuse two tasks of one name, and names that cannot be file names or graph inputs."""
    seen: set[str] = set()
    for name in names:
        if not name.isidentifier():
            raise UserError(f"task {name!r}: a name is letters, digits and underscores, and starts with a letter")
        if name in seen:
            raise UserError(f"task {name!r} is named twice")
        seen.add(name)
