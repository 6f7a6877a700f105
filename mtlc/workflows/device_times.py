"""Times networks on each of several devices: measured on this machine, modelled elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mtlc.errors import UserError
from mtlc.hw.cost.count import onnx_workload
from mtlc.hw.cost.workload import Workload
from mtlc.hw.devices.catalogue import device as find
from mtlc.hw.devices.device import Device
from mtlc.hw.devices.device_model import DeviceModel, described, device_model, modelled
from mtlc.results.devices import DeviceLayer, DeviceResult
from mtlc.results.latency import LatencyResult, LayerTimes
from mtlc.results.profile import ProfileResult

Found = Device | DeviceModel


def costed_devices(names: Sequence[str | Path]) -> list[Found]:
    """Devices by name: local ones as they are, others as models. Raises `UserError` for one that cannot be costed."""
    found = [find(name) for name in names]
    return [one if one.local else device_model(name) for one, name in zip(found, names, strict=True)]


def profile_devices(
    bundle: Path,
    names: Sequence[str],
    measure: Callable[[], ProfileResult],
    *,
    against: Path | None = None,
    tasks: Sequence[str] = (),
    batch: int = 1,
    configuration: str | None = None,
    local_only: Sequence[str] = (),
) -> ProfileResult:
    """What `measure` finds, if a local device is among `names` or none is named, and ``devices``: the modelled ones.

    A modelled time is of one sample that runs `tasks` of `bundle` (all, if none are named), from its ONNX files. With
    `against`, ``before_ms`` is that of the other bundle. Raises `UserError` for a device that cannot be modelled, a
    batch of more than one sample, an operator that has no cost, and for options of `local_only` without a local device.
    """
    found = costed_devices(names)
    models = [one for one in found if isinstance(one, DeviceModel)]
    if models and batch != 1:
        raise UserError(f"--batch {batch}: modelled times are of one sample; leave it out, or the device")
    pairs = [bundle_workloads(bundle, tasks, configuration)] if models else []
    if models and against is not None:
        pairs.insert(0, bundle_workloads(against, tasks))
    local = not names or len(models) < len(found)
    if local_only and not local:
        raise UserError(f"{local_only[0]}: is for what is measured here; add --device local-cpu, or leave it out")
    result = measure() if local else ProfileResult(bundle=str(bundle))
    if models:
        before = pairs[0] if against is not None else None
        found_there = [_modelled(model, pairs[-1], before) for model in models]
        result = result.model_copy(update={"devices": found_there})
    return result


def compared(
    found: Sequence[Found], works: tuple[Workload, Workload], latency: LatencyResult | None
) -> list[DeviceResult]:
    """The ``devices`` of a report: what the network before and after takes on each device.

    `latency` is what was measured on this machine, of both networks; a local device shows it.
    """
    before, after = works
    results = []
    for one in found:
        if isinstance(one, DeviceModel):
            results.append(_modelled(one, [after], [before]))
        elif latency is not None:
            results.append(_measured(one, after, latency))
    return results


def bundle_workloads(bundle: Path, tasks: Sequence[str] = (), configuration: str | None = None) -> list[Workload]:
    """The workloads of the programs that a call of `bundle` runs for one sample, in order."""
    from mtlc.runtime.bundle.open_bundle import open_bundle
    from mtlc.runtime.session import Session

    with Session(bundle) as session:
        if configuration is not None:
            session.configure(configuration)
        names = session.programs(tuple(tasks) or None)
    with open_bundle(bundle) as opened:
        return [onnx_workload(opened.program_path(name)) for name in names]


def _modelled(model: DeviceModel, after: Sequence[Workload], before: Sequence[Workload] | None) -> DeviceResult:
    result = modelled(model, after)
    after_ms = result.pop("ms")
    before_ms = None if before is None else modelled(model, before)["ms"]
    speedup = None if before_ms is None else before_ms / after_ms
    times = {"before_ms": before_ms, "after_ms": after_ms, "speedup": speedup}
    return DeviceResult.model_validate({**described(model), **times, **result})


def _measured(device: Device, work: Workload, latency: LatencyResult) -> DeviceResult:
    """A local device: measured times by layer, against the roof of its rates where it has been calibrated."""
    assert latency.before is not None
    assert latency.after is not None
    peak = device.peak("fp32", threads=latency.threads) or device.peak("fp32")
    bandwidth = device.bandwidth(latency.threads) or device.bandwidth()
    layers = _layers(work, latency.layers, peak, bandwidth)
    total = sum(layer.ms for layer in layers)
    known = bool(peak and bandwidth and total)
    waits = {bound: sum(layer.ms for layer in layers if layer.bound == bound) for bound in ("compute", "memory")}
    unknown = "This machine's peak rate and bandwidth are not known: run mtlc calibrate, then mtlc run."
    return DeviceResult(
        device=device.name,
        title=latency.device.cpu or device.title,
        kind="measured",
        what="latency",
        precision="fp32",
        error=None,
        peak=peak,
        bandwidth=bandwidth,
        peak_bandwidth=bandwidth,
        ceilings={},
        before_ms=latency.before.median_ms,
        after_ms=latency.after.median_ms,
        speedup=latency.speedup,
        run_ms=None,
        bounds={bound: ms / total for bound, ms in waits.items()} if known else None,
        layers=layers,
        notes=[] if known else [unknown],
    )


def _layers(
    work: Workload, times: Sequence[LayerTimes], peak: float | None, bandwidth: float | None
) -> list[DeviceLayer]:
    """The layers that took time after the compression, each with what it waits for where both rates are known."""
    by_layer, layers = work.by_layer(), []
    for row in times:
        operator, ms = by_layer.get(row.name), row.after_ms
        if ms is None:
            continue
        moved = 0 if operator is None else operator.parameter_bytes + operator.activation_bytes
        macs = 0 if operator is None else operator.macs
        bound = None
        if operator is not None and peak and bandwidth:
            bound = "compute" if macs / peak > moved / bandwidth else "memory"
        layers.append(
            DeviceLayer(
                name=row.name,
                ms=ms,
                bound=bound,
                kernel=None,
                intensity=macs / moved if moved else None,
                rate=1e3 * macs / ms if ms else 0.0,
            )
        )
    return layers
