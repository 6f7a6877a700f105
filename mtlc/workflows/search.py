"""Finds the widths of a slimmable network for a budget and a preference over its tasks: ``mtlc search``.

A bundle is asked, for its widths are fixed; a checkpoint is searched, and its configurations are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mtlc.errors import UserError
from mtlc.log import Log, silent
from mtlc.results.search import WidthChange, WidthSearchResult
from mtlc.runtime import Session
from mtlc.runtime.widths.width_choice import WidthBudget, normalised_preference

if TYPE_CHECKING:
    from mtlc.compress.slimmable.configuration import Configuration
    from mtlc.compress.slimmable.evaluations import Evaluations, Metrics
    from mtlc.compress.slimmable.supernet import Supernet
    from mtlc.compress.slimmable.width_search import Found, Question, Strategy
    from mtlc.evaluation.evaluate import Evaluation
    from mtlc.job.job import Job
    from mtlc.workflows.opened_job import Opened

RECALIBRATE = 512
"""Training samples for the batch-norm statistics of every configuration that is measured."""


def read_preference(text: str | None) -> dict[str, float] | None:
    """``"depth=0.7,semseg=0.3"`` by task. Raises `UserError` for what does not read so."""
    if text is None:
        return None
    found: dict[str, float] = {}
    for part in text.split(","):
        task, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            if not equals or not task or task in found:
                raise ValueError
            found[task] = float(value)
        except ValueError:
            why = "is named twice" if task in found and equals else "is not TASK=NUMBER"
            raise UserError(f"--prefer {text}: {part.strip()!r} {why}; write it as depth=0.7,semseg=0.3") from None
    return found


def search_widths(
    target: Path, budget: str, prefer: str | Mapping[str, float] | None = None, *, job: Path | Job | None = None,
    strategy: str = "joint",
    samples: int | None = None, workers: int = 1, ray: str | None = None, device: str | None = None,
    out: Path | None = None, log: Log = silent,
) -> WidthSearchResult:  # fmt: skip
    """Search `target`: a bundle of several widths, which is asked, or a slimmable checkpoint, which is measured.

    Args:
        target: a bundle has the widths that it was exported with, a checkpoint every width that was trained.
        budget: such as ``"40%"`` of the widest's MACs, ``"25MMACs"`` or ``"12ms"``.
        prefer: what tasks are worth, as ``"depth=0.7,semseg=0.3"`` or by name; by default all alike.
        job: the job, or its file, whose data a checkpoint is measured on.
        strategy: a name of `mtlc.compress.slimmable.width_search.STRATEGIES`.
        samples: calibration samples per measurement; by default all.
        workers: processes that measure.
        ray: the address of a Ray cluster that measures, ``"local"`` for one on this machine.
        device: the device of a budget in ms; by default this machine.
        out: where to cut the checkpoint's configuration out, export and verify it.

    Raises `UserError` for what does not fit, and never returns a configuration over budget.
    """
    target, asked = Path(target), WidthBudget.parse(budget)
    preference = dict(prefer) if isinstance(prefer, Mapping) else read_preference(prefer)
    if not target.exists():
        raise UserError(f"{target}: no such file or folder")
    checkpoint = next((p for p in (target, target / "program") if (p / "program.json").is_file()), None)
    if checkpoint is None:
        unusable = {"--job": job, "--ray": ray, "--device": device, "--out": out}
        given = [name for name, value in unusable.items() if value is not None]
        if given:
            raise UserError(
                f"{given[0]} belongs to the search of a checkpoint; {target} is a bundle, whose widths are fixed"
            )
        return _ask_bundle(target, budget, asked, preference)
    if device is not None:
        from mtlc.hw.devices.catalogue import local_device

        local_device(device)
    if job is None:
        raise UserError(f"{target}: is a checkpoint: name the job whose data it is measured on (--job)")
    return _search_checkpoint(
        checkpoint, asked, preference, job, strategy, samples, workers, ray, device, out, log
    )  # fmt: skip


def _ask_bundle(path: Path, text: str, budget: WidthBudget, prefer: Mapping[str, float] | None) -> WidthSearchResult:
    with Session(path) as session:
        if budget.unit == "ms":
            import numpy as np

            inputs = {
                i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], i.dtype)
                for i in session.manifest.inputs
            }
            session.calibrate(inputs)
        active = session.configure(budget=text, prefer=prefer)
        widest = session.configure("default") if "default" in session.configurations else active
    return WidthSearchResult(
        of="bundle",
        path=str(path),
        encoder=dict(active.encoder or {}),
        decoders=dict(active.decoders or {}),
        macs=active.macs,
        share=None if not (active.macs and widest.macs) else active.macs / widest.macs,
        metrics=dict(active.metrics or {}),
    )


def _search_checkpoint(
    checkpoint: Path, budget: WidthBudget, prefer: Mapping[str, float] | None, given: Path | Job, strategy: str,
    samples: int | None, workers: int, ray: str | None, device: str | None, out: Path | None, log: Log,
) -> WidthSearchResult:  # fmt: skip
    from mtlc.compress.slimmable.supernet import Supernet
    from mtlc.compress.slimmable.width_search import STRATEGIES, Question, Search
    from mtlc.errors import nearest
    from mtlc.job.job import load_job
    from mtlc.program.program import Program
    from mtlc.workflows.chances import gain_interval
    from mtlc.workflows.opened_job import open_job
    from mtlc.workflows.supernet_measurements import evaluations_of, measured_by_sample

    if strategy not in STRATEGIES:
        raise UserError(f"--strategy {strategy}: must be one of {', '.join(STRATEGIES)}{nearest(strategy, STRATEGIES)}")
    job = load_job(given)
    supernet = Supernet.of(Program.load(checkpoint, job.source))
    preference = normalised_preference(prefer, supernet.tasks)
    log("reading the data")
    opened = open_job(job, weights=False, log=log)
    evaluations = evaluations_of(
        supernet, opened, checkpoint, samples=samples, recalibrate=RECALIBRATE, workers=workers, ray=ray, log=log
    )
    try:
        if budget.unit == "ms":
            question = Question(preference, budget.value)
            found = _within_ms(supernet, opened, evaluations, question, strategy, device, log)
        else:
            widest = supernet.macs(supernet.largest)
            target = budget.value * widest if budget.unit == "share" else budget.value
            finder = Search(supernet, evaluations, opened.criteria.higher_is_better, seed=job.seed)
            found = finder.find(Question(preference, target), strategy)
        widest_metrics = evaluations.of([supernet.largest])[0]
    finally:
        evaluations.executor.close()
    log("measuring it and the widest once more, sample by sample")
    pair = measured_by_sample(supernet, opened, (supernet.largest, found.configuration), samples, RECALIBRATE)
    result = WidthSearchResult(
        of="checkpoint",
        path=str(checkpoint),
        strategy=strategy,
        preference=preference,
        encoder=dict(zip(supernet.stages, found.configuration.encoder, strict=True)),
        decoders=dict(zip(supernet.tasks, found.configuration.decoders, strict=True)),
        macs=supernet.macs(found.configuration),
        share=supernet.macs(found.configuration) / supernet.macs(supernet.largest),
        latency_ms=found.cost if budget.unit == "ms" else None,
        metrics=found.metrics,
        gain=found.gain,
        changes=_changes(opened, pair, (widest_metrics, found.metrics)),
        gain_interval=gain_interval(pair, opened.criteria.higher_is_better, preference, job.seed),
        runs=found.runs,
        seconds=found.seconds,
    )
    if out is None:
        return result
    return result.model_copy(update={"bundle": _cut_out(supernet, found.configuration, opened, out, log)})


def _changes(
    opened: Opened, evaluations: tuple[Evaluation, Evaluation], metrics: tuple[Metrics, Metrics]
) -> dict[str, WidthChange]:
    """By task, how far the `metrics` of the configuration that was found are from those of the widest, which comes
    first, and by how much of chance.
    """
    from mtlc.workflows.chances import Draws, change_chances

    widest, reached = metrics
    criteria = opened.criteria.restricted(widest)
    draws, found = Draws(evaluations, list(widest), opened.job.seed), {}
    for task in criteria.tasks:
        name, better = task.name, criteria.higher_is_better[task.name]
        chances = change_chances(replace(task, max_drop=None), draws, better, "calibration")
        found[name] = WidthChange(
            metric=task.metric, unit=criteria.units[name], higher_is_better=better, widest=widest[name],
            change=reached[name] - widest[name], **chances.found,
        )  # fmt: skip
    return found


def _within_ms(
    supernet: Supernet, opened: Opened, evaluations: Evaluations, question: Question, strategy: Strategy,
    device: str | None, log: Log,
) -> Found:  # fmt: skip
    """Search within a latency: few configurations are timed, a model predicts the others, and what is chosen is
    timed.
    """
    from mtlc.compress.slimmable.width_latency import LatencyModel, find_within_ms, table_of
    from mtlc.compress.slimmable.width_search import Search
    from mtlc.hw.measure.program_latency import latency_ms

    log("measuring the latency of four configurations")
    timer = partial(latency_ms, device=device or "local-cpu")
    model = LatencyModel(supernet, timer, table_of(supernet, log))
    by = "the latency table" if model.uses_table else "a line in MACs: the latency table misses one by over 10 %"
    log(f"the others are predicted by {by}")
    finder = Search(supernet, evaluations, opened.criteria.higher_is_better, model, "ms", opened.job.seed)
    return find_within_ms(finder, model, question, strategy)


def _cut_out(supernet: Supernet, configuration: Configuration, opened: Opened, out: Path, log: Log) -> str:
    """The configuration as a network of its own: checkpoint and verified bundle in `out`. Returns the bundle's path."""
    from mtlc.compress.training.batch_norm import recalibrate_batchnorm
    from mtlc.workflows.export_job import export_program
    from mtlc.workflows.output_folder import output_folder

    log("cutting the configuration out, exporting and verifying it")
    program = supernet.narrow(configuration)
    recalibrate_batchnorm(program, opened.splits, RECALIBRATE)
    with output_folder(out):
        report = export_program(opened, program, out / "bundle")
        program.save(out / "program")
    return str(report["path"])
