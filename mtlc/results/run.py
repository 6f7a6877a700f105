"""Describes what `mtlc run` finds: the whole of ``results.json``, which the report and the command line show."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mtlc.results.base import Result
from mtlc.results.cost import AssumedOperator, BudgetResult, CostPair, LayerPair
from mtlc.results.devices import DeviceResult
from mtlc.results.fpga import FpgaComparison
from mtlc.results.graph import NetworkGraph
from mtlc.results.latency import LatencyResult
from mtlc.results.masked_comparison import MaskedComparison
from mtlc.results.quantize import QuantizeResult
from mtlc.results.routing import ExpertsResult, RoutingResult
from mtlc.results.tasks import DeltaM, TaskResult

SCHEMA = 1


class PassRun(Result):
    """One pass of the run, in the order of the job."""

    name: str
    """Name of the pass."""
    config: dict[str, Any] | None = None
    """Its settings; every pass, also a stranger's, has keys of its own."""
    report: dict[str, Any] | None = None
    """What it says of its work; every pass, also a stranger's, has keys of its own."""
    cost: dict[str, int] | None = None
    """What the network costs after it: ``macs`` and ``params``."""
    missed: str | None = None
    """What it could not reach, in a line."""
    compared: MaskedComparison | None = None
    """How far what it built is from the original with the removed parts masked; None where it removed none."""
    seconds: float | None = None
    """Time that it took when it ran, in s."""


class ChannelUnit(Result):
    """Layers whose channels go together."""

    name: str
    """Module path of the first of them."""
    channels: int | None = None
    """Channels before pruning."""


class SensitivityResult(Result):
    """How much each task's loss grows on the calibration split when one unit alone loses some of its channels."""

    units: list[ChannelUnit] = []
    """The units."""
    ratios: list[float] = []
    """Shares of its channels that a unit loses."""
    tasks: list[str] = []
    """The tasks."""
    growth: list[list[list[float | None]]] = []
    """Units × ratios × tasks: relative growth of the loss, 0.02 is 2 %; None where it was not measured."""


class BlockedUnit(Result):
    """A unit that would have been pruned further, and the task whose allowance stopped it."""

    unit: str
    """Name of the unit."""
    task: str
    """The task that stopped it."""
    ratio: float | None = None
    """Share of its channels that would have gone."""
    growth: float | None = None
    """Growth of the task's loss that this would have brought; 0.02 is 2 %."""
    allowed: float | None = None
    """Growth that was allowed."""


class BundleProgram(Result):
    """One ONNX program of a bundle."""

    name: str
    """Its name."""
    file: str
    """Its file in the bundle."""
    tasks: list[str]
    """The tasks that it is for."""
    nodes: int
    """Operators of its graph."""
    weights_bytes: int
    """Weights that it uses, in bytes."""


class BundleResult(Result):
    """A bundle that the run wrote."""

    path: str
    """Where it is."""
    bytes: int
    """Its size on disk, in bytes."""
    weights_bytes: int | None = None
    """Size of the weights, in bytes."""
    programs: list[BundleProgram] = []
    """Its programs, in the order in which they run."""
    experts: dict[str, Any] | None = None
    """How its experts compute, by layer (``forms``), and what that was chosen by (``measured_ms``, in ms)."""
    tolerance: float | None = None
    """Largest difference from the network, relative to the output's range, that was allowed."""
    verification: dict[str, dict[str, Any]] | None = None
    """By task: the largest difference from the network (``max_abs``, and relative: ``max_rel``) by batch size, the
    samples that rounding may route otherwise (``near_ties``), and why a check says nothing (``vacuous``)."""
    openvino: dict[str, Any] | None = None
    """What the export to OpenVINO says; only where the job asks for it."""


class BundlePair(Result):
    """Both bundles, exported and verified alike."""

    before: BundleResult | None = None
    """The original network's."""
    after: BundleResult | None = None
    """The compressed network's."""


class RunResults(Result):
    """What `run_job` returns and ``results.json`` holds.

    Of two networks, ``before`` is the original and ``after`` the compressed one. All sections are optional, so that
    files of earlier versions are read too; the report leaves out those that are not there.
    """

    schema_version: int = Field(default=SCHEMA, alias="schema")
    """Version of this schema."""
    title: str | None = None
    """What the report is called."""
    tasks: dict[str, TaskResult] = {}
    """What the compression did to each task that the compressed network has, by name."""
    dropped_tasks: list[str] = []
    """Tasks of the job that the compressed network no longer has."""
    delta_m: DeltaM = DeltaM()
    """The mean change over the tasks."""
    cost: CostPair = CostPair()
    """What both networks cost."""
    assumed: list[AssumedOperator] = []
    """Operators of them without a rule, counted as if they multiplied nothing. Left out where there are none."""
    budget: BudgetResult | None = None
    """The budget of the job; None without one."""
    latency: LatencyResult | None = None
    """The latency on this machine; None where nothing asked for it."""
    layers: list[LayerPair] = []
    """Every layer that multiplies, before and after."""
    graph: NetworkGraph | None = None
    """How the layers hang together. Left out where that is not known, and in files of earlier versions."""
    devices: list[DeviceResult] = []
    """Both networks on each device of the report."""
    passes: list[PassRun] = []
    """What was done, in order."""
    sensitivity: SensitivityResult | None = None
    """How tasks depend on layers, from the first pass that measured it."""
    experts: ExpertsResult | None = None
    """What the last extraction took out; None without one."""
    routing: RoutingResult | None = None
    """Where tokens go; None without a mixture of experts."""
    blocked: list[BlockedUnit] = []
    """Which task stopped which unit from being pruned further, pass by pass."""
    artifacts: dict[str, dict[str, Any]] = {}
    """What passes leave for programs, by number and name of the pass; every pass has keys of its own."""
    bundles: BundlePair = BundlePair()
    """What was exported."""
    versions: dict[str, str] = {}
    """Versions of mtlc and of the packages that computed, by name."""
    seed: int | None = None
    """Seed of the job."""
    job: dict[str, Any] | None = None
    """The job as it was read: the schema of a job is its own (``docs/job.md``), and an old one is shown as it was."""
    overrides: dict[str, Any] | None = None
    """What was set over the job's file, by key in dots; ``job`` has it too. Left out where nothing was."""
    missed: list[str] = []
    """A line for the budget and for each limit that were not kept on the validation split."""
    fpga: list[FpgaComparison] | None = None
    """Both networks on each described accelerator of an FPGA; None without one, or without a mixture of experts."""
    quantization: QuantizeResult | None = None
    """The bundle in INT8; only where the job asks for it."""
