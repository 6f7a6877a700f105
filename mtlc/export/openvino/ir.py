"""Puts an OpenVINO IR beside the ONNX of every program of a bundle, reading the same weights.

OpenVINO writes an IR as XML and a file of constants. Here all IRs of a bundle read the bundle's one file of weights:
what lies there for ONNX already is used where it is, and what only an IR has is put behind it, once.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx

from mtlc.errors import UserError, VerificationError, reason
from mtlc.export.bundle import compare_programs
from mtlc.export.bundle.publish import check_target, file_info, publish, write_manifest
from mtlc.export.graph.weights_file import LINE, PAGE
from mtlc.extras import missing_extra
from mtlc.files import scratch_folder
from mtlc.log import Log, silent
from mtlc.runtime.bundle.manifest import Manifest, OpenVinoInfo
from mtlc.runtime.bundle.open_bundle import OpenBundle, open_bundle
from mtlc.runtime.bundle.payload_checks import MANIFEST
from mtlc.runtime.random_inputs import random_inputs
from mtlc.runtime.session import Session
from mtlc.telemetry import switch_off_openvino

WEIGHTS = "weights.bin"
TOLERANCE = 1e-5
_BATCH = 2


def write_ir(
    bundle: Path,
    out: Path,
    *,
    half: bool = False,
    samples: Sequence[Mapping[str, np.ndarray]] = (),
    tolerance: float = compare_programs.TOLERANCE,
    log: Log = silent,
) -> dict[str, Any]:
    """Write a bundle that holds the IR of every program of `bundle` at `out`, in the same form (folder or archive).

    `half` stores the constants in float16 (OpenVINO's ``compress_to_fp16``), which changes numbers; they are computed
    with in float32. An IR that the bundle has is replaced. Every program is compared with its ONNX in onnxruntime on
    `samples`, batches of inputs by name (random ones if there are none), as
    `mtlc.export.bundle.compare_programs` says; `tolerance` is for float32.

    Returns the report: ``out``, ``programs`` (file, ir, bytes of XML), ``shared_bytes`` and ``own_bytes`` of the
    weights, ``half``, the version, ``differences``: by task, from the ONNX in OpenVINO on random inputs, and
    ``from_onnxruntime``: by task, from the ONNX in onnxruntime. Raises `Unavailable` without OpenVINO, `UserError` for
    a program that it cannot convert, and `VerificationError` if an IR gives other numbers: nothing is written then.
    """
    switch_off_openvino()
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("openvino") from error
    with open_bundle(bundle) as opened:
        archive = not bundle.is_dir()
        check_target(out, archive, bundle)
        written: list[dict[str, Any]] = []
        expected: dict[str, np.ndarray] = {}

        def write(folder: Path) -> Manifest:
            _copy(opened, folder)
            _describe(folder, replace(opened.manifest, openvino=None))
            expected.update(_outputs(folder))
            weights = _Weights(folder / WEIGHTS, opened)
            files = {}
            for file in dict.fromkeys(program.file for program in opened.manifest.programs):
                log(f"converting {file}")
                files[file] = f"{Path(file).stem}.xml"
                text = _converted(openvino, opened.file(file), half, weights)
                (folder / files[file]).write_bytes(text)
                written.append({"program": file, "file": files[file], "bytes": len(text)})
            weights.close()
            info = OpenVinoInfo(files, WEIGHTS, weights.shared_bytes, half, openvino.get_version())
            return _describe(folder, replace(opened.manifest, openvino=info))

        precision = "fp16" if half and opened.manifest.quantization is None else None

        def check(made: Path) -> tuple[dict[str, float], dict[str, float]]:
            within = _compare(expected, made, half)
            log("comparing with onnxruntime")
            return within, compare_programs.compare_programs(
                made, "openvino", precision=precision, samples=samples, tolerance=tolerance
            )

        manifest, (differences, from_onnxruntime) = publish(out, archive, write, check)
    assert manifest.openvino is not None
    shared = manifest.openvino.shared_bytes
    return {
        "bundle": str(bundle),
        "out": str(out),
        "programs": written,
        "half": half,
        "shared_bytes": shared,
        "own_bytes": manifest.files[WEIGHTS].bytes - shared,
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "differences": differences,
        "from_onnxruntime": from_onnxruntime,
        "version": openvino.get_version(),
    }


def _describe(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of what lies in `folder`."""
    (folder / MANIFEST).unlink(missing_ok=True)
    manifest = replace(manifest, files={file.name: file_info(file) for file in sorted(folder.iterdir())})
    write_manifest(folder, manifest)
    return manifest


def _outputs(bundle: Path) -> dict[str, np.ndarray]:
    with Session(bundle, backend="openvino", threads=1) as session:
        return session.run(random_inputs(session.manifest, _BATCH))


def _compare(expected: Mapping[str, np.ndarray], made: Path, half: bool) -> dict[str, float]:
    """The largest difference of each task's output from the `expected` of the ONNX, relative to its largest value.

    Both run in one library, so in float32 they agree. Raises `VerificationError` where they do not.
    """
    worst, found = {}, _outputs(made)
    for task, array in expected.items():
        scale = float(np.abs(array).max()) or 1.0
        worst[task] = float(np.abs(found[task].astype(np.float64) - array).max()) / scale
        if not half and not worst[task] <= TOLERANCE:
            raise VerificationError(
                f"task {task!r}: the IR differs from the ONNX by {worst[task]:.1e} of the output's largest value"
            )
    return worst


def _copy(opened: OpenBundle, folder: Path) -> None:
    """Everything but an IR, and the weights without what only that IR reads."""
    before = opened.manifest.openvino
    for name in opened.manifest.files:
        if before is None or name not in before.files.values():
            shutil.copyfile(opened.file(name), folder / name)
    if before is not None:
        with (folder / before.weights).open("r+b") as file:
            file.truncate(before.shared_bytes)


class _Weights:
    """The bundle's file of weights, to find constants in and to put others behind."""

    def __init__(self, path: Path, opened: OpenBundle) -> None:
        path.touch()
        self.shared_bytes = path.stat().st_size
        self._file = path.open("r+b")
        self._places: dict[bytes, int] = {}
        for file in dict.fromkeys(program.file for program in opened.manifest.programs):
            for tensor in onnx.load(opened.file(file), load_external_data=False).graph.initializer:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                if entries.get("location") == WEIGHTS:
                    offset, length = int(entries["offset"]), int(entries["length"])
                    self._file.seek(offset)
                    self._places.setdefault(_key(self._file.read(length)), offset)

    def place(self, data: bytes) -> int:
        """Where these bytes lie, after they were put there if need be: pages on pages, the rest on cache lines."""
        key = _key(data)
        if key not in self._places:
            end = self._file.seek(0, 2)
            start = end + -end % (PAGE if len(data) >= PAGE else LINE)
            self._file.write(b"\0" * (start - end) + data)
            self._places[key] = start
        return self._places[key]

    def close(self) -> None:
        self._file.close()


def _key(data: bytes) -> bytes:
    return hashlib.sha256(data).digest() + len(data).to_bytes(8, "little")


def _converted(openvino: Any, source: Path, half: bool, weights: _Weights) -> bytes:
    """The XML of a program, its constants placed in `weights`."""
    with scratch_folder("ir") as scratch:
        target = Path(scratch) / "program.xml"
        try:
            openvino.save_model(openvino.Core().read_model(str(source)), str(target), compress_to_fp16=half)
        except Exception as error:
            raise UserError(f"{source.name}: OpenVINO cannot convert it: {reason(error)}") from error
        constants = target.with_suffix(".bin").read_bytes()
        tree = ElementTree.fromstring(target.read_bytes())
    for layer in tree.iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            start, size = int(data.attrib["offset"]), int(data.attrib["size"])
            data.set("offset", str(weights.place(constants[start : start + size])))
    return b'<?xml version="1.0"?>\n' + ElementTree.tostring(tree)
