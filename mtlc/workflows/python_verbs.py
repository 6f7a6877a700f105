"""Does from Python, with live objects, what the command line does with a job: `mtlc.compress` and its like.

Each makes a `Job` of its arguments and hands it to the same workflow as the verb of the command line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlc.errors import UserError
from mtlc.evaluation.criteria import Criteria
from mtlc.evaluation.given_data import given_data
from mtlc.evaluation.sample_forms import Names
from mtlc.evaluation.splits import Splits, fetch
from mtlc.export import export_bundle
from mtlc.job.job import Job
from mtlc.job.python_job import is_whole, python_job
from mtlc.job.python_task import task_sections
from mtlc.job.schema import ExportSection, QuantizeSection
from mtlc.log import Log
from mtlc.program.live_source import LiveSource
from mtlc.program.program import Program
from mtlc.results.bench import BenchResult
from mtlc.results.plan import Plan
from mtlc.results.profile import ProfileResult
from mtlc.results.quantize import QuantizeResult
from mtlc.results.search import WidthSearchResult
from mtlc.toml_files import validated
from mtlc.workflows import bench as bench_workflow
from mtlc.workflows import profile as profile_workflow
from mtlc.workflows.compressed import Compressed, Slimmed
from mtlc.workflows.export_job import add_formats
from mtlc.workflows.one_at_a_time import one_at_a_time
from mtlc.workflows.opened_job import open_job
from mtlc.workflows.plan import plan_job
from mtlc.workflows.quantize import quantize as quantize_job
from mtlc.workflows.run import run_job
from mtlc.workflows.said_by import said_by
from mtlc.workflows.search import search_widths
from mtlc.workflows.slim import slim_job
from mtlc.workflows.verify import TOLERANCE

_VERIFIED = 8  # samples on which an export is compared with the network


@one_at_a_time
def compress(
    model: nn.Module,
    tasks: Mapping[str, Any],
    train: Any,
    validation: Any = None,
    calibration: Any = None,
    *,
    out: str | os.PathLike[str],
    budget: str | Mapping[str, Any] | None = None,
    passes: Sequence[Any] = ("prune",),
    inputs: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    ignore_outputs: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    train_lr: float | None = None,
    export: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    quantize: Mapping[str, Any] | None = None,
    track: Mapping[str, Any] | None = None,
    wait_quiet: bool = False,
    log: Log | None = None,
    progress: bool = False,
) -> Compressed:
    """Make `model` cheaper, each task within its limit; export, verify, measure and report it, as ``mtlc run`` does.

    Args:
        model: any `nn.Module`, trained. It is copied and stays as it is.
        tasks: `mtlc.Task` by name.
        train: what passes train on: a `DataLoader`, a data set, arrays ``(x, y)``, an iterable, or a function that
            returns one of these. Without `validation`, all splits: `mtlc.Splits`, or a dict or a tuple of them.
        validation: what the results quote. No pass reads it.
        calibration: what passes decide on. Without it, every tenth sample of `train`, which then is not trained on.
        out: the folder of everything. A call that was cut off goes on from what it finds there.
        budget: ``"40% MACs"``, ``"25 MMACs"``, ``"3M params"``, ``"2 MB"`` (parameters in float32), ``"12 ms"``
            (measured on this machine, batch 1), or a dict such as ``{"params": "3M"}``.
        passes: objects such as ``mtlc.Prune(round_to=16)``, names, or dicts as in a job.
        inputs: the keys of a sample that the network takes, in the order of its arguments. By default ``"image"``, or
            the one that is no label.
        preprocessing: how a uint8 picture becomes the input (scale, mean, std, color, layout); the bundle holds it.
        ignore_outputs: outputs that no task names, by key or pattern.
        seed: of everything that draws.
        device: what torch computes on: ``"auto"`` (the default: the first CUDA device, else the CPU), ``"cpu"``,
            ``"cuda:1"``, ``"mps"``.
        train_lr: the learning rate that the network was trained with, which fine-tuning may go back to.
        export, report, quantize, track: dicts with the keys of these sections of a job. `quantize` adds the bundle in
            INT8, `track` tells trackers of the run: ``{"trackers": ["mlflow"]}``.
        wait_quiet: measure latency when other processes do little, or after five minutes.
        log: takes lines about the progress; by default they go to stderr. `mtlc.silent` drops them.
        progress: show bars.

    Returns:
        The compressed network, its bundle and its numbers. Where the budget or a limit was not kept, ``missed`` says
        so, and the best effort is there all the same.

    Raises:
        UserError: for bad input, naming the argument; nothing is trained then.
        VerificationError: where a pass or the export broke something.
    """
    said = said_by(log)
    job = python_job(
        model, tasks, train, validation, calibration, verb="mtlc.compress", budget=budget, passes=passes, inputs=inputs,
        preprocessing=preprocessing, ignore_outputs=ignore_outputs, seed=seed, train_lr=train_lr,
        sections={"export": export, "report": report, "quantize": quantize, "track": track}, log=said,
    ).on(device)  # fmt: skip
    folder = _path(out, "out")
    results = run_job(job, folder, wait_quiet=wait_quiet, log=said, progress=progress)
    for line in results.missed:
        said(f"missed: {line}")
    return Compressed(folder, Program.load(folder / "program", job.source), results, job)


@one_at_a_time
def plan(
    model: nn.Module,
    tasks: Mapping[str, Any],
    train: Any,
    validation: Any = None,
    calibration: Any = None,
    *,
    budget: str | Mapping[str, Any] | None = None,
    passes: Sequence[Any] = ("prune",),
    inputs: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    ignore_outputs: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    log: Log | None = None,
) -> Plan:
    """Say what `compress` would do with these arguments: costs by layer, what can go, whether the budget is in reach.

    Nothing is trained. All that would stop `compress` is tried: the network, a training step, every label.
    Raises `UserError`.
    """
    said = said_by(log)
    job = python_job(
        model, tasks, train, validation, calibration, verb="mtlc.plan", budget=budget, passes=passes, inputs=inputs,
        preprocessing=preprocessing, ignore_outputs=ignore_outputs, seed=seed, log=said,
    ).on(device)  # fmt: skip
    return plan_job(job, log=said)


@one_at_a_time
def slim(
    model: nn.Module,
    tasks: Mapping[str, Any],
    train: Any,
    validation: Any = None,
    calibration: Any = None,
    *,
    out: str | os.PathLike[str],
    budgets: Sequence[str | float] = ("60%", "40%", "25%"),
    prefer: Mapping[str, float] | None = None,
    passes: Sequence[Any] = ("slim",),
    samples: int | None = None,
    recalibrate: int = 512,
    inputs: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    ignore_outputs: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    export: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    track: Mapping[str, Any] | None = None,
    log: Log | None = None,
    progress: bool = False,
) -> Slimmed:
    """Make a network that runs at many widths of `model`, chosen on the device, as ``mtlc slim`` does.

    Args:
        model, tasks, train, validation, calibration, out, inputs, preprocessing, seed, device, export, report, track,
            log: as those of `compress`.
        budgets: in MACs, ``"60%"`` or ``"25MMACs"``; an encoder is searched for each.
        prefer: what tasks are worth in the search, such as ``{"depth": 0.7, "semseg": 0.3}``; by default all alike.
        passes: the last is ``mtlc.Slim(…)``.
        samples: calibration samples of a measurement; by default all.
        recalibrate: training samples for the batch-norm statistics of each width.

    Raises `UserError` for bad input, `VerificationError` where the bundle and the network differ.
    """
    said, folder = said_by(log), _path(out, "out")
    section: dict[str, Any] = {"budgets": list(budgets), "recalibrate": recalibrate}
    section |= {} if prefer is None else {"prefer": {task: float(value) for task, value in prefer.items()}}
    section |= {} if samples is None else {"samples": samples}
    job = python_job(
        model, tasks, train, validation, calibration, verb="mtlc.slim", passes=passes, inputs=inputs,
        preprocessing=preprocessing, ignore_outputs=ignore_outputs, seed=seed,
        sections={"slim": section, "export": export, "report": report, "track": track}, log=said,
    ).on(device)  # fmt: skip
    results = slim_job(job, folder, log=said, progress=progress)
    return Slimmed(folder, Program.load(folder / "program", job.source), results, job)


@one_at_a_time
def search(
    target: str | os.PathLike[str] | Slimmed,
    budget: str,
    prefer: Mapping[str, float] | str | None = None,
    *,
    model: nn.Module | None = None,
    tasks: Mapping[str, Any] | None = None,
    train: Any = None,
    validation: Any = None,
    calibration: Any = None,
    strategy: str = "joint",
    samples: int | None = None,
    device: str | None = None,
    out: str | os.PathLike[str] | None = None,
    log: Log | None = None,
) -> WidthSearchResult:
    """Find the widths of a slimmable network for a budget, as ``mtlc search`` does.

    Args:
        target: what `slim` gave, or its folder, of which every width is measured; or a bundle, which is asked.
        budget: ``"40%"`` or ``"40% MACs"`` of the widest, ``"25MMACs"``, or ``"12ms"``.
        prefer: what tasks are worth, such as ``{"depth": 0.7, "semseg": 0.3}``; by default all alike.
        model, tasks, train, validation, calibration: with a folder, those that `slim` was called with.
        strategy: ``"joint"`` or another of `mtlc.compress.slimmable.width_search.STRATEGIES`.
        samples: calibration samples of a measurement; by default all.
        device: of a budget in ms; by default this machine.
        out: where to cut the configuration out, export and verify it.

    Raises `UserError` for what does not fit, and never returns a configuration over budget.
    """
    said = said_by(log)
    job = target.job if isinstance(target, Slimmed) else None
    if job is None and model is not None:
        job = _job_of_data("mtlc.search", tasks, train, validation, calibration, said, model=model)
    path = target.out if isinstance(target, Slimmed) else _path(target, "target")
    if not isinstance(budget, str):
        raise UserError(f'budget = {budget!r}: give "40%" (of the widest), "25MMACs" or "12ms"')
    return search_widths(
        path, budget.replace(" ", "").removesuffix("MACs") if "%" in budget else budget.replace(" ", ""), prefer,
        job=job, strategy=strategy, samples=samples, device=device, out=None if out is None else _path(out, "out"),
        log=said,
    )  # fmt: skip


@one_at_a_time
def quantize(
    bundle: str | os.PathLike[str] | Compressed,
    tasks: Mapping[str, Any] | None = None,
    train: Any = None,
    validation: Any = None,
    calibration: Any = None,
    *,
    out: str | os.PathLike[str],
    target: str = "cpu",
    backend: str = "onnxruntime",
    samples: int = 128,
    control: int | None = None,
    against: str | os.PathLike[str] | None = None,
    log: Log | None = None,
) -> QuantizeResult:
    """Write a bundle in INT8, each task within its limit, as ``mtlc quantize`` does.

    Args:
        bundle: what `compress` gave (then tasks and data are its own, and limits count from the original network), or
            a bundle.
        tasks, train, validation, calibration: with the path of a bundle, as those of `compress`.
        out: the new bundle; an archive if its name ends in ``.mtlc``.
        target: ``"cpu"``, ``"x86"``, ``"x86-vnni"``, ``"arm"`` or ``"tensorrt"``.
        backend: ``"onnxruntime"`` or ``"openvino"``, which computes the metrics.
        samples: calibration samples that ranges come from.
        control: calibration samples that decide what stays in floating point; by default all.
        against: the bundle that limits count from; by default `bundle`.

    Raises `UserError` for bad input.
    """
    said, section = said_by(log), {"target": target, "backend": backend, "samples": samples}
    section |= {} if control is None else {"control": control}
    if isinstance(bundle, Compressed):
        made = validated(lambda: QuantizeSection.model_validate(section), QuantizeSection, "mtlc.quantize:")
        job = replace(bundle.job, file=bundle.job.file.model_copy(update={"quantize": made}))
        path, reference = bundle.bundle, bundle.original_bundle if against is None else _path(against, "against")
        return quantize_job(path, job, _path(out, "out"), against=reference, log=said)
    job = _job_of_data("mtlc.quantize", tasks, train, validation, calibration, said, quantize=section)
    reference_path = None if against is None else _path(against, "against")
    return quantize_job(_path(bundle, "bundle"), job, _path(out, "out"), against=reference_path, log=said)


@one_at_a_time
def export(
    network: Program | nn.Module,
    out: str | os.PathLike[str],
    data: Any,
    *,
    tasks: Mapping[str, Any] | None = None,
    inputs: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    log: Log | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Write a network as a verified bundle.

    Args:
        network: a `Program`, or an `nn.Module` with `tasks`.
        out: a folder, or a file with ``archive=True``.
        data: samples that the bundle is compared with the network on: a tensor (N, C, H, W) of inputs, or any data set
            that `compress` takes; with an `nn.Module`, one with labels.
        tasks, inputs, preprocessing: of an `nn.Module`, as those of `compress`.
        settings: the keys of ``[export]`` in a job, such as ``formats=["onnx", "openvino"]`` or ``fuse=True``.

    Returns:
        The report of the export: ``path``, ``bytes``, ``programs``, ``verification`` by task.

    Raises:
        UserError: for a network that cannot be exported.
        VerificationError: where the bundle computes something else; then none is written.
    """
    if not isinstance(network, Program):
        if tasks is None:
            raise UserError('tasks is missing: an nn.Module is exported with them: tasks={"depth": mtlc.Task(…)}')
        network = from_model(network, tasks, data, inputs=inputs, preprocessing=preprocessing, log=log)
    section: ExportSection = validated(lambda: ExportSection.model_validate(settings), ExportSection, "mtlc.export:")
    samples = _samples(network, data)
    with torch.inference_mode():
        network.outputs_on_data(samples)
    made = export_bundle(
        network, _path(out, "out"), samples=samples, criteria=Criteria(network.tasks), fuse=section.fuse,
        archive=section.archive, tolerance=section.tolerance or TOLERANCE, experts=section.experts,
        backend=section.backend, batch=section.batch,
    )  # fmt: skip
    return add_formats(section, made, samples)


@one_at_a_time
def from_model(
    model: nn.Module,
    tasks: Mapping[str, Any],
    data: Any,
    *,
    inputs: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    ignore_outputs: Sequence[str] = (),
    log: Log | None = None,
) -> Program:
    """The `Program` of a network and its tasks: what passes by hand, such as `mtlc.prune`, take and give.

    Args:
        model, tasks, inputs, preprocessing, ignore_outputs: as those of `compress`. `model` is copied.
        data: a data set, or all splits. The network is tried on a sample; its inputs' sizes are those of the sample.

    Raises `UserError` naming the argument, the task, or the output that does not fit.
    """
    said = said_by(log)
    if not is_whole(data):
        targets = tuple(dict.fromkeys(one.get("target", name) for name, one in task_sections(tasks).items()))
        one = given_data(data, Names(tuple(inputs or ()), targets), "data", said)
        data = Splits(one, one, one)
    job = python_job(
        model, tasks, data, verb="mtlc.from_model", inputs=inputs, preprocessing=preprocessing,
        ignore_outputs=ignore_outputs, log=said,
    )  # fmt: skip
    return open_job(job, log=said).program


@one_at_a_time
def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> Program:
    """Read a network that was compressed or saved: ``program.save(path)``, or the folder of `compress`.

    Args:
        path: the folder of a checkpoint, or of a call that wrote one.
        model: a fresh network, made as the original one was, of the same layers and sizes; its weights do not matter,
            and it stays as it is. Networks of `mtlc.zoo` need none.

    Returns:
        The program; ``.module`` is the network, cut and with its weights, in evaluation mode.

    Raises `UserError` where there is no checkpoint, it is damaged, or `model` is of other layers or sizes.
    """
    folder = _path(path, "path")
    if (folder / "program" / "program.json").is_file():
        folder = folder / "program"
    return Program.load(folder, None if model is None else LiveSource.of(model))


def bench(bundles: Any, **options: Any) -> BenchResult:
    """Compare how fast bundles are in backends, with numbers of threads, all in turns, as ``mtlc bench`` does.

    `bundles` is one or several of: what `compress` or `slim` gave, paths. `options` are those of
    `mtlc.workflows.bench.bench`, such as ``threads=[1, 2]`` and ``backends=["openvino"]``.
    """
    several = bundles if isinstance(bundles, list | tuple) else [bundles]
    return bench_workflow.bench([_bundle(one) for one in several], **options)


def profile(bundle: Any, against: Any = None, **options: Any) -> ProfileResult:
    """Measure what a bundle costs on this machine, as ``mtlc profile`` does: milliseconds, memory, time to start.

    `bundle` and `against` are what `compress` or `slim` gave, or paths; with `against` both are measured in turns.
    `options` are those of `mtlc.workflows.profile.profile`, such as ``layers=True`` and ``threads=2``.
    """
    return profile_workflow.profile(_bundle(bundle), None if against is None else _bundle(against), **options)


def _bundle(given: Any) -> Path:
    return given.bundle if isinstance(given, Compressed | Slimmed) else _path(given, "bundle")


def _job_of_data(
    verb: str, tasks: Any, train: Any, validation: Any, calibration: Any, log: Log, model: Any = None, **sections: Any
) -> Job:
    for name, value in (("tasks", tasks), ("train", train)):
        if value is None:
            raise UserError(f"{name} is missing: {verb} needs tasks and data, as mtlc.compress takes them")
    return python_job(model, tasks, train, validation, calibration, verb=verb, sections=sections, log=log)


def _samples(program: Program, data: Any) -> dict[str, Tensor]:
    """Real inputs of the program out of `data`, a small set gone through again."""
    if isinstance(data, Tensor | np.ndarray):
        data = {program.inputs[0]: data}
    if isinstance(data, Mapping) and set(program.inputs) <= set(data) and "train" not in data:
        arrays = {name: torch.as_tensor(data[name]) for name in program.inputs}
        count = min(len(one) for one in arrays.values())
        return {name: one[[index % count for index in range(_VERIFIED)]] for name, one in arrays.items()}
    names = Names(program.inputs, tuple(dict.fromkeys(task.target_key for task in program.tasks)))
    split = data["validation"] if isinstance(data, Mapping) and "validation" in data else data
    split = split.validation if isinstance(split, Splits) else split
    given = given_data(split, names, "data")
    batch = fetch(given, [index % len(given) for index in range(_VERIFIED)])
    return {name: batch[name] for name in program.inputs}


def _path(given: Any, what: str) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise UserError(f"{what} is a {type(given).__name__}: give a path")
    return Path(given).expanduser()
