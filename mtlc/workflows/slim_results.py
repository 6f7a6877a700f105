"""Puts together what `mtlc slim` found, for ``slim.json`` and its page.

From the measured configurations: what each named one costs and is worth, the best for every budget, and how far each
task can be steered by preferring it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtlc.compress.slimmable.configuration import Configuration
from mtlc.compress.slimmable.evaluations import Evaluations
from mtlc.compress.slimmable.supernet import Supernet
from mtlc.evaluation.constant_predictor import constant_metrics
from mtlc.evaluation.evaluate import Evaluation, evaluate
from mtlc.export.widths.slimmable_network import SlimmableNetwork
from mtlc.program.program import Program
from mtlc.results.slim import (
    Controllability,
    FrontPoint,
    MeasuredPoint,
    PreferencePoint,
    SlimBundle,
    SlimPoint,
    SlimResult,
    TaskMetric,
    WidthCosts,
)
from mtlc.runtime.widths.width_choice import Chooser, Decoder, Encoder, normalised_preference, relative_gain
from mtlc.tasks.task import delta_m
from mtlc.workflows.chances import Draws, delta_m_intervals
from mtlc.workflows.opened_job import Opened

DEFAULT, LOW_POWER = "default", "low-power"
"""Names of the widest and the narrowest configuration."""
_PREFERENCES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Preferences for one task at which its controllability is worked out."""


def decoder_levels(supernet: Supernet) -> list[tuple[float, ...]]:
    """Decoder widths for each of the trained widths: a task without such a width takes the next wider one."""
    return list(dict.fromkeys(one.decoders for one in uniform_configurations(supernet)))


def uniform_configurations(supernet: Supernet) -> list[Configuration]:
    """One width for all stages and decoders, for each trained width: what the searched ones are compared with."""
    return list(dict.fromkeys(supernet.table.uniform(width) for width in supernet.table.widths))


def slim_results(
    opened: Opened,
    supernet: Supernet,
    network: SlimmableNetwork,
    named: Mapping[str, Configuration],
    evaluations: Evaluations,
    bundle: Mapping[str, Any],
    baselines: Mapping[str, float] | None,
) -> SlimResult:
    """What was found, without what only the caller knows: training, groups, versions, the job, and the time.

    Measures the `named` configurations on the validation split, with the networks that were exported. `bundle` is what
    the export reports, `baselines` each task's metric with a network of its own.
    """
    higher, reference = network.higher_is_better, network.reference
    equal = normalised_preference(None, supernet.tasks)

    def gain(metrics: Mapping[str, float]) -> float:
        return sum(p * relative_gain(metrics[t], reference[t], higher[t]) for t, p in equal.items())

    choices = _choices(supernet, network)
    widths = {e.name: dict(zip(supernet.stages, e.widths, strict=True)) for e in network.encoders}
    constants = constant_metrics(
        opened.criteria.restricted(supernet.tasks), opened.splits.calibration, opened.splits.validation
    )
    return SlimResult(
        title=f"Slimmable {type(supernet.program.module).__name__}",
        tasks={
            t.name: TaskMetric(
                metric=t.metric,
                unit=opened.criteria.units[t.name],
                higher_is_better=higher[t.name],
                constant=constants[t.name],
            )
            for t in supernet.program.tasks
        },
        stages=list(supernet.stages),
        widths=list(supernet.table.widths),
        cost=WidthCosts(widest=supernet.macs(supernet.largest), narrowest=supernet.macs(supernet.smallest)),
        reference=dict(reference),
        points=_points(opened, supernet, network, named, evaluations, gain),
        front=[
            FrontPoint(macs=round(c.cost), gain=c.gain, encoder=widths[c.encoder], decoders=dict(c.decoders))
            for c in Chooser(choices).front(equal)
        ],
        measured=_all_measured(supernet, evaluations, gain),
        controllability=controllability(choices, supernet.tasks, reference, higher),
        single_task=None if baselines is None else dict(baselines),
        bundle=SlimBundle(
            path=bundle["path"],
            bytes=bundle["bytes"],
            widest_bytes=bundle["widest_bytes"],
            encoders=len(network.encoders),
            programs=bundle["programs"],
            verification=bundle["verification"],
        ),
        measurements=evaluations.runs,
    )


def _points(
    opened: Opened,
    supernet: Supernet,
    network: SlimmableNetwork,
    named: Mapping[str, Configuration],
    evaluations: Evaluations,
    gain: Callable[[Mapping[str, float]], float],
) -> list[SlimPoint]:
    """The named configurations, with their metrics on both splits."""
    programs = {(e.widths, d.width): d.program for e in network.encoders for d in e.decoders}
    validation = {name: _validated(supernet, opened, one, programs) for name, one in named.items()}
    higher, widest = network.higher_is_better, validation[DEFAULT]
    found = []
    for name, configuration in named.items():
        metrics = evaluations.of([configuration])[0]
        found.append(
            SlimPoint(
                name=name,
                encoder=dict(zip(supernet.stages, configuration.encoder, strict=True)),
                decoders=dict(zip(supernet.tasks, configuration.decoders, strict=True)),
                macs=supernet.macs(configuration),
                gain=gain(metrics),
                metrics=dict(metrics),
                validation=dict(validation[name].metrics),
                delta_m=delta_m(validation[name].metrics, widest.metrics, higher),
                **({} if name == DEFAULT else _intervals((widest, validation[name]), higher, opened.job.seed)),
            )
        )
    return found


def _validated(
    supernet: Supernet,
    opened: Opened,
    configuration: Configuration,
    programs: Mapping[tuple[tuple[float, ...], float], Program],
) -> Evaluation:
    """A configuration on the validation split, with the networks that were exported: each task's losses and metrics
    from the one with its decoder's width.
    """
    parts = {}
    for width in dict.fromkeys(configuration.decoders):
        criteria = opened.criteria.restricted(supernet.tasks)
        parts[width] = evaluate(programs[configuration.encoder, width], criteria, opened.splits.validation, keep=True)
    of = {task: parts[width] for task, width in zip(supernet.tasks, configuration.decoders, strict=True)}
    return Evaluation(
        losses={task: one.losses[task] for task, one in of.items()},
        metrics={task: one.metrics[task] for task, one in of.items()},
        details={task: one.details[task] for task, one in of.items() if task in one.details},
        labelled={task: one.labelled[task] for task, one in of.items()},
        statistics={task: one.statistics[task] for task, one in of.items() if task in one.statistics},
    )


def _intervals(evaluations: tuple[Evaluation, Evaluation], higher: Mapping[str, bool], seed: int) -> dict[str, Any]:
    """The intervals of a point's changes against the widest, as fields of `SlimPoint`; those that are not known are
    left out.
    """
    draws = Draws(evaluations, list(higher), seed)
    changes = {task: change for task in higher if (change := draws.change(task)) is not None}
    together = delta_m_intervals(draws, None, higher).get("vs_original_interval")
    return {"change_intervals": changes} | ({} if together is None else {"delta_m_interval": together})


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


def _all_measured(
    supernet: Supernet, evaluations: Evaluations, gain: Callable[[Mapping[str, float]], float]
) -> list[MeasuredPoint]:
    """Every configuration whose decoders all were measured at one width with one encoder."""
    encoders, uniforms = {encoder for encoder, _, _ in evaluations.entries()}, uniform_configurations(supernet)
    found = []
    for encoder in sorted(encoders):
        for level in decoder_levels(supernet):
            configuration = Configuration(encoder, level)
            metrics = evaluations.known(configuration)
            if metrics is not None:
                kind = "uniform" if configuration in uniforms else "other"
                found.append(MeasuredPoint(macs=supernet.macs(configuration), gain=gain(metrics), kind=kind))
    return found


def controllability(
    choices: Sequence[Encoder],
    tasks: Sequence[str],
    reference: Mapping[str, float],
    higher: Mapping[str, bool],
    share: float = 0.4,
) -> Controllability:
    """Each task's change against the widest network as its preference goes from 0 to 1 at a fixed budget.

    The other tasks share the rest alike. The budget is `share` of the widest configuration's cost, or the cheapest
    configuration's cost where that is more. The range is in percent points, the monotonicity is Spearman's; our
    measure.
    """
    chooser = Chooser(choices)
    least = min(e.cost + sum(rows[0].cost for rows in e.decoders.values()) for e in choices)
    budget = max(share * chooser.widest, least)
    by_name = {encoder.name: encoder for encoder in choices}
    lines: dict[str, list[PreferencePoint]] = {}
    for task in tasks:
        others = [t for t in tasks if t != task]
        lines[task] = []
        for p in _PREFERENCES if others else (1.0,):
            asked = {task: p, **{t: (1 - p) / len(others) for t in others}}
            choice = chooser.choose(normalised_preference(asked, tasks), budget)
            width = choice.decoders[task]
            gain = next(d.gain for d in by_name[choice.encoder].decoders[task] if d.width == width)
            sign = 1 if higher[task] else -1
            metric = reference[task] + sign * gain * abs(reference[task])
            lines[task].append(PreferencePoint(preference=p, gain=gain, metric=metric))
    gains = {task: [point.gain for point in line] for task, line in lines.items()}
    return Controllability(
        budget=budget,
        share=budget / chooser.widest,
        tasks=lines,
        range={task: 100 * (max(values) - min(values)) for task, values in gains.items()},
        monotonicity={task: _rank_correlation(values) for task, values in gains.items()},
    )


def _rank_correlation(values: Sequence[float]) -> float | None:
    """Spearman's, of the values with their places; None where all are the same, which have no ranks."""
    from scipy.stats import spearmanr

    if len(set(values)) < 2:
        return None
    return float(spearmanr(range(len(values)), values).statistic)
