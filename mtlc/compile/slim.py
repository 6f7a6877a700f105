"""``mtlc slim``: from a job to a slimmable network, its points, its bundle and its page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mtlc
from mtlc.compile.formats import add_formats
from mtlc.compile.run import export_program, samples_of
from mtlc.compile.supernets import evaluations_of
from mtlc.compile.verify import TOLERANCE
from mtlc.compile.workspace import Opened, check_devices, open_job, output_folder, read_baselines
from mtlc.compress.calibrate import recalibrate_batchnorm
from mtlc.compress.pipeline import Step, disk_errors, run_passes
from mtlc.compress.slim import Slim, SlimConfig
from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations
from mtlc.compress.slimmable.search import Question, Search
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.errors import UserError
from mtlc.evaluation import evaluate
from mtlc.export.widths import DecoderWidth, EncoderWidths, SlimmableNetwork, export_widths
from mtlc.files import write_json
from mtlc.hw.report_widths import write_widths_report
from mtlc.hw.workload import onnx_workload
from mtlc.job import Job
from mtlc.job_file import Quantity
from mtlc.program import Program
from mtlc.runtime.choose import Chooser, Decoder, Encoder, normalised_preference, relative_gain
from mtlc.tasks import delta_m

Log = Callable[[str], None]
DEFAULT, LEAST = "default", "low-power"
_PREFERENCES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def slim_job(
    job: Job, out: Path, *, trained: Path | None = None, log: Log = lambda line: None, progress: bool = False
) -> dict[str, Any]:
    """Train the job's network to run at many widths, choose encoders for its budgets, and write everything to `out`.

    With `trained`, the checkpoint of a slimmable network, nothing is trained.

    ``program/`` is the checkpoint that ``mtlc search`` takes, ``bundle`` runs every chosen encoder with every width of
    each decoder, ``slim.json`` and ``widths.html`` say what each costs and pays; the former is returned. What is finished
    is not done again. Raises `UserError` for bad input, `VerificationError` where the bundle and the network differ.
    """
    section = job.file.slim
    steps = _steps(job)
    check_devices(job)
    baselines = read_baselines(job)
    started = time.monotonic()
    log("reading the data and building the network")
    opened = open_job(job, weights=trained is None)
    normalised_preference(section.prefer, opened.program.task_names)
    program = opened.program if trained is None else Program.load(trained, job.source)
    if trained is not None:
        _targets(job, Supernet.of(program))
    elif steps[0].name == "slim":  # what passes before it leave of the network is not known yet
        _targets(job, Supernet(program, Slim(steps[0].config).table(program)))
    with output_folder(out):
        if trained is None:
            program = run_passes(
                program, steps, splits=opened.splits, criteria=opened.criteria, out=out, seed=job.seed, log=log,
                progress=progress,
            )[-1].program  # fmt: skip
        supernet = Supernet.of(program)
        with disk_errors(out / "program"):
            program.save(out / "program")
        evaluations = evaluations_of(
            supernet,
            opened,
            out / "program",
            samples=section.samples,
            recalibrate=section.recalibrate,
            workers=section.workers,
            log=log,
        )
        try:
            points = _points(job, supernet, opened, evaluations, log)
            metrics = _measured(supernet, points, evaluations, log)
        finally:
            evaluations.executor.close()
        log("exporting and verifying the bundle")
        network = _network(supernet, opened, points, metrics, section.recalibrate)
        bundle = _export(opened, network, out)
        log("measuring the named configurations on the validation split")
        found = _results(opened, supernet, network, points, evaluations, bundle, baselines)
        found |= {key: program.history[-1].report[key] for key in ("training", "groups", "left_alone")}
        found["versions"] = {"mtlc": mtlc.__version__, "torch": torch.__version__}
        found["job"] = {"file": job.path.name, "seed": job.seed, "slim": section.model_dump()}
        found["seconds"] = time.monotonic() - started
        write_json(out / "slim.json", found)
        write_widths_report(found, out / "widths.html")
    return found


def _steps(job: Job) -> Sequence[Step]:
    """The job's passes, which end in ``slim``; without any, ``slim`` with its defaults."""
    if job.file.budget is not None:
        raise UserError("[budget] belongs to mtlc run; the budgets of a slimmable network are a list: [slim] budgets")
    if not job.steps:
        return [Step("slim", SlimConfig(), "the default pass 'slim'")]
    if job.steps[-1].name != "slim":
        named = ", ".join(step.name for step in job.steps)
        raise UserError(f"mtlc slim needs a pass 'slim' as the last of the job; its passes are {named}")
    return job.steps


def _targets(job: Job, supernet: Supernet) -> dict[str, float]:
    """The job's budgets in MACs. Raises `UserError` for one that not even the narrowest network keeps."""
    widest, least = supernet.macs(supernet.largest), supernet.macs(supernet.smallest)
    targets = {str(text): Quantity.parse("macs", text).absolute(widest) for text in job.file.slim.budgets}
    for text, target in targets.items():
        if target < least:
            raise UserError(
                f"[slim] budgets: {text!r} is under the least that this network can run: {least / 1e6:.4g} MMACs, "
                f"{least / widest:.1%} of the widest; raise it, or lower round_to"
            )
    return targets


def _points(
    job: Job, supernet: Supernet, opened: Opened, evaluations: Evaluations, log: Log
) -> dict[str, Configuration]:
    """The named configurations, the widest first: a search for each budget of the job, and the narrowest.

    Two budgets may end at the same configuration; each name can be asked for.
    """
    search = Search(supernet, evaluations, opened.criteria.higher_is_better, seed=job.seed)
    preference = normalised_preference(job.file.slim.prefer, supernet.tasks)
    named: dict[str, Configuration] = {DEFAULT: supernet.largest}
    for text, target in sorted(_targets(job, supernet).items(), key=lambda item: -item[1]):
        found = search.find(Question(preference, target))
        log(
            f"{text}: {found.configuration}, {found.cost / 1e6:.4g} MMACs, {100 * found.gain:+.2f} % after {found.runs} measurements"
        )
        named[text] = found.configuration
    named[LEAST] = supernet.smallest
    return named


def _decoder_levels(supernet: Supernet) -> list[tuple[float, ...]]:
    """Decoder widths for each of the trained widths: a task without such a width takes the next wider one."""
    return list(dict.fromkeys(c.decoders for c in _uniform(supernet)))


def _uniform(supernet: Supernet) -> list[Configuration]:
    """One width for all stages and decoders, for each of the trained widths: what the searched ones are compared with."""
    return list(dict.fromkeys(supernet.table.uniform(width) for width in supernet.table.widths))


def _measured(
    supernet: Supernet, points: Mapping[str, Configuration], evaluations: Evaluations, log: Log
) -> dict[tuple[float, ...], dict[tuple[float, ...], dict[str, float]]]:
    """By encoder and level of decoders, the metrics of all tasks."""
    encoders = list(dict.fromkeys(point.encoder for point in points.values()))
    levels = _decoder_levels(supernet)
    log(f"measuring {len(encoders)} encoders with decoders at {len(levels)} widths")
    asked = [Configuration(encoder, level) for encoder in encoders for level in levels]
    evaluations.of(_uniform(supernet))
    metrics = evaluations.of(asked)
    found: dict[tuple[float, ...], dict[tuple[float, ...], dict[str, float]]] = {}
    for configuration, of in zip(asked, metrics, strict=True):
        found.setdefault(configuration.encoder, {})[configuration.decoders] = of
    return found


def _network(
    supernet: Supernet,
    opened: Opened,
    points: Mapping[str, Configuration],
    metrics: Mapping[tuple[float, ...], Mapping[tuple[float, ...], Mapping[str, float]]],
    recalibrate: int,
) -> SlimmableNetwork:
    """What is exported: each encoder with every level of decoders, cut out, with statistics of its own.

    All are measured alike, the widest too: an encoder's do not depend on the decoders.
    """
    names = {encoder: f"e{number}" for number, encoder in enumerate(metrics, 1)}

    def cut_out(configuration: Configuration) -> Program:
        program = supernet.narrow(configuration)
        recalibrate_batchnorm(program, opened.splits, recalibrate)
        return program

    encoders = []
    for encoder, levels in metrics.items():
        decoders = []
        for level, of in levels.items():
            configuration = Configuration(encoder, level)
            decoders.append(DecoderWidth(max(level), cut_out(configuration), supernet.kept_indices(configuration), of))
        encoders.append(EncoderWidths(names[encoder], encoder, tuple(decoders)))
    configurations = {
        name: (names[point.encoder], dict(zip(supernet.tasks, point.decoders, strict=True)))
        for name, point in points.items()
    }
    higher = {task: bool(opened.criteria.higher_is_better[task]) for task in supernet.tasks}
    reference = metrics[supernet.largest.encoder][supernet.largest.decoders]
    return SlimmableNetwork(
        supernet.program, supernet.stages, supernet.table.widths, tuple(encoders), configurations, reference, higher
    )


def _export(opened: Opened, network: SlimmableNetwork, out: Path) -> dict[str, Any]:
    """The bundle of all widths, and for its size that of the widest network alone."""
    section = opened.job.file.export
    suffix = ".mtlc" if section.archive else ""
    criteria = opened.criteria.restricted(network.widest.task_names)
    whole = export_program(opened, network.widest, out / "widest-bundle")
    report = export_widths(
        network, out / f"bundle{suffix}", samples=samples_of(opened), count_macs=lambda model: onnx_workload(model).macs,
        criteria=criteria, archive=section.archive, tolerance=section.tolerance or TOLERANCE,
        provenance={"job": opened.job.path.name, "seed": opened.job.seed}, experts=section.experts, backend=section.backend,
        batch=section.batch,
    )  # fmt: skip
    return {**add_formats(section, report), "widest_bytes": whole["bytes"]}


def _results(
    opened: Opened,
    supernet: Supernet,
    network: SlimmableNetwork,
    points: Mapping[str, Configuration],
    evaluations: Evaluations,
    bundle: Mapping[str, Any],
    baselines: Mapping[str, float] | None,
) -> dict[str, Any]:
    higher, reference = network.higher_is_better, network.reference
    programs = {(e.widths, d.width): d.program for e in network.encoders for d in e.decoders}
    equal = normalised_preference(None, supernet.tasks)

    def gain(metrics: Mapping[str, float], preference: Mapping[str, float] = equal) -> float:
        return sum(p * relative_gain(metrics[t], reference[t], higher[t]) for t, p in preference.items())

    described = []
    validation: dict[str, dict[str, float]] = {}
    for name, point in points.items():
        metrics = evaluations.of([point])[0]
        validation[name] = _validated(supernet, opened, point, programs)
        described.append(
            {
                "name": name,
                "encoder": dict(zip(supernet.stages, point.encoder, strict=True)),
                "decoders": dict(zip(supernet.tasks, point.decoders, strict=True)),
                "macs": supernet.macs(point),
                "gain": gain(metrics),
                "metrics": metrics,
                "validation": validation[name],
                "delta_m": delta_m(validation[name], validation[DEFAULT], higher),
            }
        )
    choices = _choices(supernet, network)
    widths = {e.name: dict(zip(supernet.stages, e.widths, strict=True)) for e in network.encoders}
    return {
        "title": f"Slimmable {type(supernet.program.module).__name__}",
        "tasks": {
            t.name: {"metric": t.metric, "unit": opened.criteria.units[t.name], "higher_is_better": higher[t.name]}
            for t in supernet.program.tasks
        },
        "stages": list(supernet.stages),
        "widths": list(supernet.table.widths),
        "cost": {"widest": supernet.macs(supernet.largest), "narrowest": supernet.macs(supernet.smallest)},
        "reference": dict(reference),
        "points": described,
        "front": [
            {"macs": round(c.cost), "gain": c.gain, "encoder": widths[c.encoder], "decoders": dict(c.decoders)}
            for c in Chooser(choices).front(equal)
        ],
        "measured": _all_measured(supernet, evaluations, gain),
        "controllability": controllability(choices, supernet.tasks, reference, higher),
        "single_task": None if baselines is None else dict(baselines),
        "bundle": {
            "path": bundle["path"],
            "bytes": bundle["bytes"],
            "widest_bytes": bundle["widest_bytes"],
            "encoders": len(network.encoders),
            "programs": bundle["programs"],
            "verification": bundle["verification"],
        },
        "measurements": evaluations.runs,
    }


def _validated(
    supernet: Supernet,
    opened: Opened,
    point: Configuration,
    programs: Mapping[tuple[tuple[float, ...], float], Program],
) -> dict[str, float]:
    """The metrics of a configuration on the validation split, with the networks that were exported: each task's from the
    one with its decoder's width.
    """
    found: dict[str, float] = {}
    for width in dict.fromkeys(point.decoders):
        program = programs[point.encoder, width]
        metrics = evaluate(program, opened.criteria.restricted(supernet.tasks), opened.splits.validation).metrics
        found |= {t: metrics[t] for t, w in zip(supernet.tasks, point.decoders, strict=True) if w == width}
    return {task: found[task] for task in supernet.tasks}


def _choices(supernet: Supernet, network: SlimmableNetwork) -> list[Encoder]:
    """What the bundle can run, with MACs as costs."""
    found = []
    for encoder in network.encoders:
        decoders = {
            task: [
                Decoder(
                    width.width,
                    supernet.decoder_macs(task, encoder.widths, width.width),
                    relative_gain(width.metrics[task], network.reference[task], network.higher_is_better[task]),
                )
                for width in sorted(encoder.decoders, key=lambda d: d.width)
                if width.width in supernet.decoder_options(task)
            ]
            for task in supernet.tasks
        }
        found.append(Encoder(encoder.name, supernet.encoder_macs(encoder.widths), decoders))
    return found


def _all_measured(supernet: Supernet, evaluations: Evaluations, gain: Callable[..., float]) -> list[dict[str, Any]]:
    """Every configuration whose decoders all were measured at one width with one encoder."""
    encoders, uniforms = {encoder for encoder, _, _ in evaluations.entries()}, _uniform(supernet)
    found = []
    for encoder in sorted(encoders):
        for level in _decoder_levels(supernet):
            configuration = Configuration(encoder, level)
            metrics = evaluations.known(configuration)
            if metrics is not None:
                uniform = configuration in uniforms
                macs = supernet.macs(configuration)
                found.append({"macs": macs, "gain": gain(metrics), "kind": "uniform" if uniform else "other"})
    return found


def controllability(
    choices: Sequence[Encoder],
    tasks: Sequence[str],
    reference: Mapping[str, float],
    higher: Mapping[str, bool],
    share: float = 0.4,
) -> dict[str, Any]:
    """Each task's change against the widest network as its preference goes from 0 to 1 at a fixed budget.

    The other tasks share the rest alike. The range is in percent points, the monotonicity is Spearman's; our measure.
    """
    from scipy.stats import spearmanr

    chooser = Chooser(choices)
    least = min(e.cost + sum(rows[0].cost for rows in e.decoders.values()) for e in choices)
    budget = max(share * chooser.widest, least)
    by_name = {encoder.name: encoder for encoder in choices}
    lines: dict[str, list[dict[str, float]]] = {}
    for task in tasks:
        others = [t for t in tasks if t != task]
        lines[task] = []
        for p in _PREFERENCES if others else (1.0,):
            asked = {task: p, **{t: (1 - p) / len(others) for t in others}}
            choice = chooser.choose(normalised_preference(asked, tasks), budget)
            width = choice.decoders[task]
            gain = next(d.gain for d in by_name[choice.encoder].decoders[task] if d.width == width)
            sign = 1 if higher[task] else -1
            lines[task].append(
                {"preference": p, "gain": gain, "metric": reference[task] + sign * gain * abs(reference[task])}
            )
    gains = {task: [point["gain"] for point in line] for task, line in lines.items()}

    def rank(values: list[float]) -> float | None:
        if len(set(values)) < 2:
            return None
        return float(spearmanr(range(len(values)), values).statistic)

    return {
        "budget": budget,
        "share": budget / chooser.widest,
        "tasks": lines,
        "range": {task: 100 * (max(values) - min(values)) for task, values in gains.items()},
        "monotonicity": {task: rank(values) for task, values in gains.items()},
    }
