"""Checks a request for INT8 before any data are read, which may take long."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mtlc.errors import UserError, nearest
from mtlc.evaluation.criteria import Criteria
from mtlc.export.bundle.publish import check_target
from mtlc.export.quantization.execution import ONNXRUNTIME, OPENVINO, check_backend
from mtlc.export.quantization.targets import Target, resolve_target
from mtlc.export.quantization.width_points import check_widths
from mtlc.extras import missing_extra
from mtlc.runtime.backends.processor import cpu_flags, saturates
from mtlc.runtime.bundle.open_bundle import OpenBundle, open_bundle


def check_request(
    bundle: Path, out: Path, criteria: Criteria, target: str, reference: Path | None, backend: str, archive: bool
) -> Target:
    """What `quantize_bundle` can tell to be wrong before it sees any data; the target that `target` means.

    Raises `UserError` and `Unavailable` as that does.
    """
    check_target(out, archive, bundle)
    if find_spec("nncf") is None:
        raise missing_extra("nncf")
    aim = resolve_target(target)
    check_backend(backend)
    if backend == OPENVINO and wrong_here(aim):
        raise UserError(
            f"backend = {OPENVINO!r}: OpenVINO's kernels on this processor saturate for target {aim.name!r}, "
            "so nothing "
            f"can be decided by them here: take backend = {ONNXRUNTIME!r}, or target = 'x86'"
        )
    with open_bundle(bundle) as opened:
        _refuse(opened)
        names = criteria.restricted(opened.manifest.tasks).units
        for name in opened.manifest.tasks:
            if name not in names:
                raise UserError(f"{bundle}: its task {name!r} is not one of the job{nearest(name, criteria.units)}")
        check_widths(opened.manifest, criteria.restricted(opened.manifest.tasks), aim, reference is not None)
    if reference is not None:
        with open_bundle(reference) as opened:
            for name in names:
                if name not in opened.manifest.tasks:
                    raise UserError(f"--against {reference}: has no task {name!r} to measure limits against")
    return aim


def wrong_here(aim: Target) -> bool:
    """Whether INT8 kernels of this processor give wrong results for bundles that are made for `aim`."""
    return aim.weights == "full" and saturates(cpu_flags())


def _refuse(opened: OpenBundle) -> None:
    manifest = opened.manifest
    if manifest.quantization is not None:
        raise UserError(f"{opened.path}: is in {manifest.quantization.precision} already: quantise the float bundle")
    if manifest.engines or manifest.openvino is not None:
        built = "TensorRT engines" if manifest.engines else "OpenVINO IR"
        raise UserError(
            f"{opened.path}: holds {built} of the float graphs: quantise the bundle that `mtlc build` was given"
        )
    if any(program.experts is not None for program in manifest.programs):
        raise UserError(
            f'{opened.path}: its experts lie outside the graphs in float32: export with experts = "queue" or '
            '"masked" in [export]'
        )
