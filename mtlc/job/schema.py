"""Defines the schema of the job file: its sections, and what a budget may say.

Everything that is not in it is an error that names the key. Nothing here reads a file or imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mtlc.detection import Detection
from mtlc.errors import UserError
from mtlc.quantity import BudgetKind, Quantity
from mtlc.tasks.task import Limit, check_names

FORMATS = ("onnx", "openvino")
"""What `[export] formats` may list."""

BUDGETS: tuple[BudgetKind, ...] = ("macs", "params", "memory", "latency")
"""What a budget may be in."""
PARAMETER_BYTES = 4  # of a parameter in float32


def _reference(text: str) -> str:
    if ":" in text and not all(text.partition(":")):
        raise ValueError("write a known name or module:callable")
    return text


def _factory(text: Any) -> Any:
    if isinstance(text, str) and not (text.count(":") == 1 and all(text.split(":"))):
        raise ValueError("write module:callable, such as 'mtlc.zoo:mtl_resnet'")
    return text


def _checked(parse: Callable[..., Any], *args: Any) -> None:
    """Call a parser of ours inside a validator: pydantic adds the place to a ValueError, not to other errors."""
    try:
        parse(*args)
    except UserError as error:
        raise ValueError(str(error)) from None


Reference = Annotated[
    str, Field(min_length=1), BeforeValidator(lambda value: _reference(value) if isinstance(value, str) else value)
]
Factory = Annotated[str, BeforeValidator(_factory)]


class Section(BaseModel):
    """A table of the job file: unknown keys are errors, no value is converted from another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelSection(Section):
    """`[model]`: where the network comes from and which keys of a sample it takes, in the order of its arguments."""

    factory: Factory
    weights: str | None = None
    ignore_outputs: list[str] = []
    inputs: list[str] = Field(default=["image"], min_length=1)
    args: dict[str, Any] = {}


class TaskSection(Section):
    """`[tasks.NAME]`: an output of the network, how it is scored and how much it may lose.

    One that is `training_only` has a loss and no metric: its output exists in training mode alone. `postprocess`
    declares how the output becomes boxes (`mtlc.detection`).
    """

    loss: Reference
    training_only: bool = False
    metric: Reference | None = Field(default=None, validate_default=True)
    output: str | None = None
    training_output: str | None = None
    target: str | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_drop: str | float | dict[str, Any] | None = None
    ignore: int | None = None
    loss_args: dict[str, Any] = {}
    metric_args: dict[str, Any] = {}
    postprocess: dict[str, Any] | None = None

    @field_validator("metric")
    @classmethod
    def _is_judged_or_not(cls, metric: str | None, info: ValidationInfo) -> str | None:
        only = info.data.get("training_only", False)
        if metric is None and not only:
            raise ValueError("this key is required")
        if metric is not None and only:
            raise ValueError("a task that is training_only has no output to judge afterwards: leave it out")
        return metric

    @model_validator(mode="after")
    def _trains_alone(self) -> TaskSection:
        if self.training_only:
            for key in ("max_drop", "training_output", "postprocess"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: does not go with training_only = true: leave it out")
            if self.metric_args:
                raise ValueError("metric_args: does not go with training_only = true: leave it out")
        return self

    @model_validator(mode="after")
    def _limit_is_readable(self) -> TaskSection:
        if self.max_drop is not None:
            _checked(Limit.parse, self.max_drop)
        if self.postprocess is not None:
            _checked(Detection.parse, self.postprocess)
        return self


class DataSection(Section):
    """`[data]`: the factory of the three splits."""

    factory: Factory
    root: str | None = None
    args: dict[str, Any] = {}


class BudgetSection(Section):
    """`[budget]`: what the compressed network may cost; exactly one of macs, params, memory and latency.

    `memory` is the bytes of its parameters in float32.
    """

    macs: str | float | None = None
    params: str | float | None = None
    latency: str | float | None = None
    memory: str | float | None = None
    device: str | None = None

    @model_validator(mode="after")
    def _one_budget(self) -> BudgetSection:
        given = [kind for kind in BUDGETS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of macs, params, memory and latency, not {' and '.join(given) or 'none'}"
            )
        if self.device is not None and given != ["latency"]:
            raise ValueError(f"device belongs to a latency budget; a budget in {given[0]} has none")
        _checked(Quantity.parse, self.kind, getattr(self, self.kind))
        return self

    @property
    def kind(self) -> BudgetKind:
        return next(kind for kind in BUDGETS if getattr(self, kind) is not None)

    @property
    def quantity(self) -> Quantity:
        return Quantity.parse(self.kind, getattr(self, self.kind))


class ExportSection(Section):
    """`[export]`: the bundle's format; `tolerance` bounds the difference from torch, relative to an output's size.

    `experts` is the form of mixture-of-experts layers; `backend` is what "auto" measures them on. `batch` is the
    smallest, usual and largest batch, for targets whose programs are built for sizes (TensorRT). `formats` are what the
    bundle holds: ONNX always, and OpenVINO IR, whose constants are stored in float16 with `half`.
    """

    experts: Literal["auto", "queue", "masked", "cached"] = "auto"
    backend: str = "auto"
    formats: list[str] = Field(default=["onnx"], min_length=1)
    fuse: bool = False
    archive: bool = False
    tolerance: float | None = Field(default=None, gt=0, lt=1)
    half: bool = False
    batch: list[int] | None = None

    @model_validator(mode="after")
    def _formats_exist(self) -> ExportSection:
        if self.batch is not None and (
            len(self.batch) != 3 or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]
        ):
            raise ValueError(f"batch: must be three rising sizes, smallest, usual and largest, it is {self.batch}")
        for name in self.formats:
            if name not in FORMATS:
                raise ValueError(
                    f"formats: {name!r} is unknown; known are {', '.join(FORMATS)}; for engines: mtlc build"
                )
        if "onnx" not in self.formats:
            raise ValueError("formats: a bundle always holds 'onnx', from which the others are made: list it too")
        if self.half and "openvino" not in self.formats:
            raise ValueError("half: is for the IR of formats = ['onnx', 'openvino']")
        return self


class ReportSection(Section):
    """`[report]`: devices to cost on, a JSON file of single-task metrics for Δm, and how many pictures to show."""

    devices: list[str] = ["local-cpu"]
    baselines: str | None = None
    pictures: int = Field(default=4, ge=0, le=64)


class QuantizeSection(Section):
    """`[quantize]`: the bundle in INT8 as well, for the processors of `target`; ``"cpu"`` is the one that runs the job.

    Ranges come from `samples` of the calibration split, and what stays in floating point is decided on `control` of
    them (default: all), by the tasks' ``max_drop`` as `backend` computes the metrics.
    """

    target: Literal["cpu", "x86", "x86-vnni", "arm", "tensorrt"] = "cpu"
    backend: Literal["onnxruntime", "openvino"] = "onnxruntime"
    samples: int = Field(default=128, ge=1)
    control: int | None = Field(default=None, ge=1)


class TrackSection(Section):
    """`[track]`: the trackers that are told of a run, and by the name of each its `options` (``[track.options.NAME]``).

    It stands in no results: what runs compute does not depend on it, and addresses are nobody else's business.
    """

    trackers: list[str] = []
    options: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _options_are_of_trackers(self) -> TrackSection:
        for name in self.trackers:
            if self.trackers.count(name) > 1:
                raise ValueError(f"trackers: {name!r} is there twice")
        for name in self.options:
            if name not in self.trackers:
                raise ValueError(f"options: {name!r} is none of trackers = {self.trackers}: list it there")
        return self


class SlimSection(Section):
    """`[slim]`: what ``mtlc slim`` puts into the bundle: an encoder for each of the `budgets`, in MACs.

    `prefer` weighs the tasks in the search of these (default: alike). A measurement runs `samples` of the calibration
    split (default: all) with statistics from `recalibrate` training samples, in `workers` processes.
    """

    budgets: list[str | float] = Field(default=["60%", "40%", "25%"], min_length=1)
    prefer: dict[str, float] | None = None
    samples: int | None = Field(default=None, ge=1)
    recalibrate: int = Field(default=512, ge=2)
    workers: int = Field(default=1, ge=1, le=1024)

    @field_validator("budgets")
    @classmethod
    def _in_macs(cls, budgets: list[str | float]) -> list[str | float]:
        for text in budgets:
            _checked(Quantity.parse, "macs", text)
        return budgets


class JobFile(Section):
    """The whole file. `passes` and `train` are validated by the passes and the trainer themselves."""

    version: Literal[1] = Field(alias="schema")
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = "auto"
    model: ModelSection
    tasks: dict[str, TaskSection] = Field(min_length=1)
    data: DataSection
    budget: BudgetSection | None = None
    passes: list[dict[str, Any]] = []
    train: dict[str, Any] | None = None
    slim: SlimSection = SlimSection()
    export: ExportSection = ExportSection()
    report: ReportSection = ReportSection()
    quantize: QuantizeSection | None = None
    track: TrackSection = TrackSection()

    @field_validator("tasks")
    @classmethod
    def _names_are_usable(cls, tasks: dict[str, TaskSection]) -> dict[str, TaskSection]:
        _checked(check_names, tasks)
        if all(task.training_only for task in tasks.values()):
            raise ValueError("every task is training_only: nothing is left to export; name a task that stays")
        return tasks
