"""Checks a bundle's files before anything reads them: sizes, counts, checksums, and names that leave the bundle."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import IO

from mtlc.errors import BundleError
from mtlc.runtime.bundle.graph_check import check_graph
from mtlc.runtime.bundle.limits import MAX_FILES, MAX_TOTAL_BYTES
from mtlc.runtime.bundle.manifest import FileInfo, Manifest
from mtlc.runtime.bundle.refusals import Refusal
from mtlc.runtime.bundle.work_check import check_work

MANIFEST = "manifest.json"
_CHUNK = 1 << 20


def check_limits(manifest: Manifest) -> None:
    """Refuse manifests with too many or too large files, or with names that differ in case only."""
    if len(manifest.files) > MAX_FILES or sum(file.bytes for file in manifest.files.values()) > MAX_TOTAL_BYTES:
        raise BundleError(f"it has more than {MAX_FILES} files or {MAX_TOTAL_BYTES >> 30} GiB", code=Refusal.LIMIT)
    folded: dict[str, str] = {}
    for name in manifest.files:
        if folded.setdefault(name.casefold(), name) != name:
            raise BundleError(
                f"files {folded[name.casefold()]!r} and {name!r} are one file where case is ignored", code=Refusal.TWICE
            )


def check_programs(folder: Path, manifest: Manifest) -> None:
    """Check the ONNX files of all programs, each once however many share it, their IR, and decoders of outputs."""
    sizes = {name: file.bytes for name, file in manifest.files.items()}
    decoders = (task.decoder for task in manifest.tasks.values() if task.decoder is not None)
    for file in dict.fromkeys((*(program.file for program in manifest.programs), *decoders)):
        check_graph(folder / file, sizes)
        check_work(folder / file)
    if manifest.openvino is not None:
        from mtlc.runtime.bundle.ir_check import check_ir  # a parser of XML that few bundles need

        for name in manifest.openvino.files.values():
            check_ir(folder / name, sizes[manifest.openvino.weights])


def copy(source: IO[bytes], target: IO[bytes] | None, name: str, expected: FileInfo) -> None:
    """Read `source` to its end, at most one byte past what it should hold, and compare its checksum."""
    digest, left = hashlib.sha256(), expected.bytes
    while chunk := source.read(min(_CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            break
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    if left != 0:
        raise BundleError(
            f"{name} does not have the {expected.bytes} bytes that the manifest says", code=Refusal.FILE_SIZE
        )
    if digest.hexdigest() != expected.sha256:
        raise BundleError(f"{name} was altered or damaged: its SHA-256 is not the manifest's", code=Refusal.FILE_DIGEST)


def file_identity(file: IO[bytes]) -> tuple[int, ...]:
    """What of an open file changes when another takes its place or somebody writes to it."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _regular(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise BundleError(f"{path.name} is missing", code=Refusal.FILE_MISSING) from None
    if not stat.S_ISREG(mode):
        raise BundleError(f"{path.name} is not a plain file", code=Refusal.FILE_KIND)
