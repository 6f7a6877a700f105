"""Verifies a bundle of several widths: each pair of widths, and each configuration that has a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtlc.errors import VerificationError
from mtlc.export.bundle.publish import write_manifest
from mtlc.export.bundle.verify import in_backend, runs_onnx, verify_session
from mtlc.export.bundle.write_bundle import BATCH_SIZES
from mtlc.log import tracked
from mtlc.runtime.bundle.manifest import Configuration, EncoderPoint, Manifest
from mtlc.runtime.session import Session

if TYPE_CHECKING:
    from mtlc.export.widths.slimmable_network import SlimmableNetwork


def verify_pairs(
    folder: Path, manifest: Manifest, network: SlimmableNetwork, samples: Mapping[str, Tensor], tolerance: float,
    backend: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Verify every encoder with every width of decoders; the manifest in `folder` names each pair while that lasts.

    The numbers are those of onnxruntime; where `backend` computes the ONNX itself, it is verified as well.
    """
    pairs = {
        f"{encoder.name}.{decoders.width:g}": (encoder.name, dict.fromkeys(manifest.tasks, decoders.width))
        for encoder in network.encoders
        for decoders in encoder.decoders
    }
    assert manifest.widths is not None
    # A session is configured by name, so every pair gets one for the time of the check; the names are taken back at the
    # end, and on an error the bundle is not published at all.
    named = tuple(named_configuration(name, *pair, manifest.widths.encoders) for name, pair in pairs.items())
    write_manifest(folder, replace(manifest, configurations=(*manifest.configurations, *named)))
    checked = _verify_pairs(folder, network, samples, tolerance, "auto")
    if runs_onnx(backend):
        with in_backend(backend):
            _verify_pairs(folder, network, samples, tolerance, backend)
    write_manifest(folder, manifest)
    return checked


def _verify_pairs(
    folder: Path, network: SlimmableNetwork, samples: Mapping[str, Tensor], tolerance: float, backend: str
) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    with Session(folder, backend) as session:
        for encoder in tracked(network.encoders, "verifying encoders"):
            checked[encoder.name] = {}
            for decoders in encoder.decoders:
                width = f"{decoders.width:g}"
                session.configure(f"{encoder.name}.{width}")
                with _where(encoder.name, decoders.width):
                    checked[encoder.name][width] = verify_session(
                        session, folder, decoders.program, samples, BATCH_SIZES, tolerance
                    )
    return checked


def verify_configurations(
    path: Path, network: SlimmableNetwork, samples: Mapping[str, Tensor], tolerance: float
) -> None:
    """Verify each named configuration of the bundle as it is, each task against the network of its decoder's width."""
    encoders = {encoder.name: encoder for encoder in network.encoders}
    with Session(path) as session:
        for name, (encoder, chosen) in network.configurations.items():
            session.configure(name)
            for decoders in encoders[encoder].decoders:
                tasks = [task for task in session.tasks if chosen[task] == decoders.width]
                if tasks:
                    with _where(encoder, decoders.width):
                        verify_session(session, path, decoders.program, samples, (1,), tolerance, tasks)


@contextmanager
def _where(encoder: str, width: float) -> Iterator[None]:
    """Say in an error of verification which networks it is about."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(f"encoder {encoder!r}, decoders at {width:g}: {error}") from error


def named_configuration(
    name: str, encoder: str, chosen: Mapping[str, float], points: Sequence[EncoderPoint]
) -> Configuration:
    """A configuration of the manifest: the programs of an encoder and of each task's decoder at a width."""
    point = next(point for point in points if point.name == encoder)
    programs = list(point.programs)
    for task, decoders in point.decoders.items():
        programs += next(decoder.programs for decoder in decoders if decoder.width == chosen[task])
    return Configuration(name, tuple(programs), encoder, {task: chosen[task] for task in point.decoders})
