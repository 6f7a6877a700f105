"""Moves a finished and checked bundle to its final path, as a folder or one zip file, whole or not at all.

The bundle is written and checked under a temporary name beside its path, and then renamed. If anything fails on the
way, what was at the path before stays as it was. Nothing here needs torch or onnx.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mtlc.errors import UserError
from mtlc.files import atomic_file, atomic_folder, check_writable
from mtlc.runtime.bundle.manifest import FileInfo, Manifest
from mtlc.runtime.bundle.manifest_reader import read_manifest
from mtlc.runtime.bundle.payload_checks import MANIFEST

Checked = TypeVar("Checked")


def publish(
    path: Path, archive: bool, write: Callable[[Path], Manifest], check: Callable[[Path], Checked]
) -> tuple[Manifest, Checked]:
    """Write a bundle with `write`, check it with `check`, and move it to `path`.

    `write` gets an empty folder to fill and returns the manifest. `check` gets the finished folder, or the zip file if
    `archive`, and raises what speaks against it. Returns what the two return. After an error of either, what was at
    `path` before is still there.
    """
    if not archive:
        with atomic_folder(path) as folder:
            return write(folder), check(folder)
    with atomic_file(path) as temporary:
        unpacked = temporary.with_name("unpacked" if path.name != "unpacked" else "folder")
        unpacked.mkdir()
        manifest = write(unpacked)
        _archive(unpacked, manifest, temporary)
        return manifest, check(temporary)


def check_target(path: Path, archive: bool, source: Path | None = None) -> None:
    """Raise `UserError` if a bundle must not or cannot be written to `path`.

    Only a bundle or an empty folder is replaced: ``--out ~`` must not cost anyone a home folder. A path inside
    `source`, the bundle that the new one is made from, is refused as well.
    """
    check_writable(path)
    if source is not None:
        check_outside(path, source)
    if archive and path.is_dir():
        raise UserError(f"{path}: is a folder; name a file, such as {path.name}.mtlc, for an archive")
    if not archive and path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; name a folder, or ask for an archive")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise UserError(f"{path}: is a folder with other files in it; choose a new or empty one")


def check_outside(path: Path, bundle: Path) -> None:
    """Raise `UserError` if `path`, which is to be written, lies in `bundle`, which is read."""
    if bundle.resolve() in path.resolve().parents:
        raise UserError(f"{path}: lies in the bundle {bundle}: name another place")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, after reading it as a device would. Raises `BundleError` for one that does not fit."""
    text = json.dumps(manifest.to_dict(), indent=1, allow_nan=False, default=str) + "\n"
    read_manifest(text.encode())
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def file_info(path: Path) -> FileInfo:
    """Checksum and size of a payload."""
    with path.open("rb") as file:
        return FileInfo(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _archive(folder: Path, manifest: Manifest, target: Path) -> None:
    """One zip, without compression and with fixed dates: weights hardly shrink, and equal exports are equal files."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in (MANIFEST, *manifest.files):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            with (folder / name).open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                while chunk := source.read(1 << 20):
                    sink.write(chunk)
