"""Compares bundles, their configurations, backends and numbers of threads, all in turns: ``mtlc bench``.

Needs the base install.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtlc.errors import MtlcError, UserError, nearest
from mtlc.hw.measure.in_turns import Effort, Inputs, Setting, backend_version, measure_settings
from mtlc.hw.measure.memory_and_start import footprint
from mtlc.log import Log, silent
from mtlc.results.bench import BenchResult
from mtlc.runtime import Manifest, open_bundle
from mtlc.runtime.random_inputs import random_inputs
from mtlc.runtime.widths.configurations import check_configuration

_ROUNDS = 200


def bench(
    bundles: Sequence[Path],
    *,
    backends: Sequence[str] = (),
    threads: Sequence[int] = (),
    configurations: Sequence[str] = (),
    tasks: Sequence[str] = (),
    batch: int = 1,
    rounds: int | None = None,
    fixed_batch: bool = False,
    wait_quiet: bool = False,
    log: Log = silent,
) -> BenchResult:
    """A row per combination of bundle, configuration, backend and number of threads per program, on random inputs.

    A row is what `measure_settings` finds of it (ms), with ``throughput``: samples per second of the timed calls, one
    after the other; ``memory``, what `footprint` finds (bytes, ms); ``faster``: how many times as fast as the first row
    it is, the median over the rounds with p10 and p90 (None for the first row). Defaults: onnxruntime, one thread, all
    tasks, and what a bundle runs in where nothing is said (``configuration`` is None). With `fixed_batch` every session
    is told its batch. Without `rounds` there are 200, and up to 1600 until every figure is known to within ±5 %; with
    `wait_quiet` it is measured when other processes do little.

    Raises `UserError` naming the row for what does not compare or does not run, `Unavailable` for a backend that is not
    here.
    """
    versions = dict(map(backend_version, backends or ("auto",)))
    manifests = _manifests(bundles)
    for path, manifest in manifests.items():
        for configuration in configurations:
            check_configuration(path, manifest, configuration)
    names = tuple(tasks) or _all_tasks(manifests)
    _check_tasks(manifests, names)
    inputs = random_inputs(next(iter(manifests.values())), batch)
    settings = {
        label(path, configuration, backend, count): Setting(
            path, backend, count, configuration, batch if fixed_batch else None
        )
        for path in manifests
        for configuration in dict.fromkeys(configurations or (None,))
        for backend in versions
        for count in dict.fromkeys(threads or (1,))
    }
    for name, setting in settings.items():
        _try(name, setting, inputs, names)
    found = measure_settings(settings, inputs, names, effort=Effort.asked(rounds, wait_quiet, _ROUNDS, log))
    rows = []
    for name, setting in settings.items():
        manifest, timing = manifests[Path(setting.path)], found["bundles"][name]
        rows.append(
            {
                "bundle": str(setting.path),
                "configuration": setting.configuration,
                "precision": manifest.precision(setting.backend),
                "bytes": sum(file.bytes for file in manifest.files.values()),
                "backend": setting.backend,
                "version": versions[setting.backend],
                "threads": setting.threads,
                **timing,
                "throughput": 1e3 * found["batch"] / timing["mean_ms"],
                "memory": footprint(setting, inputs, names),
                "faster": found["speedup"].get(name),
            }
        )
    shared = ("kind", "device", "batch", "rounds", "warmup", "tasks", "instructions_why", "load", "doubts")
    return BenchResult.model_validate({**{key: found[key] for key in shared}, "fixed_batch": fixed_batch, "rows": rows})


def label(bundle: str | Path, configuration: str | None, backend: str, threads: int) -> str:
    """What a row is called: ``model.mtlc, half, openvino, 2 threads``."""
    named = "" if configuration is None else f", {configuration}"
    return f"{bundle}{named}, {backend}, {threads} thread{'s' if threads > 1 else ''}"


def _manifests(bundles: Sequence[Path]) -> dict[Path, Manifest]:
    """The manifest of each bundle. Raises `UserError` for one given twice or with other inputs than the first."""
    found: dict[Path, Manifest] = {}
    for path in bundles:
        if path.resolve() in [known.resolve() for known in found]:
            raise UserError(f"{path}: is given twice")
        with open_bundle(path) as opened:
            found[path] = opened.manifest
        if found[path].inputs != found[bundles[0]].inputs:
            raise UserError(f"{path}: takes other inputs than {bundles[0]}: their times do not compare")
    return found


def _all_tasks(manifests: dict[Path, Manifest]) -> tuple[str, ...]:
    first, *others = manifests
    tasks = tuple(manifests[first].tasks)
    for path in others:
        if set(manifests[path].tasks) != set(tasks):
            raise UserError(f"{path}: has other tasks than {first}: say with --task what to run in all of them")
    return tasks


def _check_tasks(manifests: dict[Path, Manifest], tasks: Sequence[str]) -> None:
    for path, manifest in manifests.items():
        for task in tasks:
            if task not in manifest.tasks:
                raise UserError(f"{path}: no task {task!r}{nearest(task, manifest.tasks)}")


def _try(name: str, setting: Setting, inputs: Inputs, tasks: tuple[str, ...]) -> None:
    """Run the setting once: what cannot run is refused by name, before the others are measured."""
    try:
        with setting.session() as session:
            session.run(inputs, tasks)
    except MtlcError as error:
        raise type(error)(f"{name}: {error}") from error
