"""Measures what bundles cost on this machine: ``mtlc profile``. Needs the base install, and onnx for times by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtlc.errors import UserError
from mtlc.hw.measure.in_turns import Effort, Setting, measure
from mtlc.hw.measure.memory_and_start import footprint
from mtlc.log import Log, silent
from mtlc.results.profile import ProfileResult
from mtlc.runtime import open_bundle
from mtlc.runtime.random_inputs import random_inputs
from mtlc.workflows.profile_baseline import compare_with_baseline, parse_growth, read_baseline


def profile(
    bundle: Path,
    against: Path | None = None,
    *,
    tasks: Sequence[str] = (),
    batch: int = 1,
    rounds: int | None = None,
    threads: int = 1,
    backend: str = "auto",
    layers: bool = False,
    operators: bool = False,
    configuration: str | None = None,
    baseline: Path | None = None,
    max_growth: str | None = None,
    wait_quiet: bool = False,
    log: Log = silent,
) -> ProfileResult:
    """What `mtlc.hw.measure.in_turns.measure` finds for bundles by path, on random inputs, in ms and instructions.

    Each bundle also has ``memory``, what `mtlc.hw.measure.memory_and_start.footprint` finds. With `against`, both are
    measured in turns, and ``speedup`` says how much faster than `against` the bundle is. With `layers` or `operators`,
    ``layers`` or ``operators`` and ``attributed`` are those of `profile_layers` for `bundle`. `configuration` is what
    `bundle` runs in, if not its default. With `baseline`, the JSON of an earlier profile, ``regression`` is what
    `compare_with_baseline` finds. Without `rounds` as many are run as `Effort.asked` says; with `wait_quiet` it is
    measured when other processes do little.
    """
    bundles = [against, bundle] if against is not None else [bundle]
    if against is not None and Path(against).resolve() == Path(bundle).resolve():
        raise UserError(f"--against {against}: is the same bundle")
    if max_growth is not None and baseline is None:
        raise UserError("--max-growth needs --baseline: the profile to compare with")
    allowed = None if max_growth is None else parse_growth(max_growth)
    earlier = None if baseline is None else read_baseline(baseline)
    inputs = None
    for path in bundles:
        with open_bundle(path) as opened:
            made = random_inputs(opened.manifest, batch)
        if inputs is not None and {n: a.shape for n, a in made.items()} != {n: a.shape for n, a in inputs.items()}:
            raise UserError(f"{path}: takes other inputs than {bundles[0]}: their times do not compare")
        inputs = made
    assert inputs is not None
    if (layers or operators) and configuration is not None:
        raise UserError(
            "--layers, --operators: their times are those of the default configuration; leave out --configuration"
        )
    wanted = tuple(tasks) or None
    configured = {} if configuration is None else {str(bundle): configuration}
    result = measure(
        {str(path): path for path in bundles}, inputs, wanted, threads, configurations=configured, backend=backend,
        effort=Effort.asked(rounds, wait_quiet, log=log),
    )  # fmt: skip
    result |= {"bundle": str(bundle), "configuration": configuration}
    for path in bundles:
        setting = Setting(path, backend, threads, configured.get(str(path)))
        result["bundles"][str(path)]["memory"] = footprint(setting, inputs, wanted)
    if layers or operators:
        from mtlc.hw.measure.layer_profile import profile_layers

        found = profile_layers(bundle, inputs, threads, wanted, backend=backend)
        result["attributed"] = found["attributed"]
        result |= {key: found[key] for key, asked in (("layers", layers), ("operators", operators)) if asked}
    measured = ProfileResult.model_validate(result)
    if earlier is None or baseline is None:
        return measured
    return measured.model_copy(update={"regression": compare_with_baseline(measured, earlier, baseline, allowed)})
