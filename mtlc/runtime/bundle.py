"""Opening a bundle, a folder or one zip file, without trusting anything in it."""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from pathlib import Path
from types import TracebackType
from typing import IO

from mtlc.errors import BundleError, UserError, nearest
from mtlc.runtime.graph_check import check_graph
from mtlc.runtime.manifest import FileInfo, Manifest
from mtlc.runtime.manifest_reader import read_manifest

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 8 << 20
MAX_TOTAL_BYTES = 8 << 30
MAX_FILES = 10_000
_CHUNK = 1 << 20


class OpenBundle:
    """A checked bundle. `close` removes what was unpacked from a zip; the bundle itself is never written to."""

    def __init__(self, path: Path, folder: Path, manifest: Manifest, temporary: bool) -> None:
        self.path, self.folder, self.manifest = path, folder, manifest
        self._remove = _remover(self, folder) if temporary else None

    def program_path(self, name: str) -> Path:
        """The file of the program called `name`."""
        for program in self.manifest.programs:
            if program.name == name:
                return self.folder / program.file
        raise UserError(f"{self.path}: no program {name!r}{nearest(name, [p.name for p in self.manifest.programs])}")

    def close(self) -> None:
        """Remove unpacked files, if any. May be called twice."""
        if self._remove is not None:
            self._remove()

    def __enter__(self) -> OpenBundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_bundle(path: str | os.PathLike[str]) -> OpenBundle:
    """Open the bundle at `path`.

    Checked before anything is used: the manifest's schema, every payload's size and SHA-256, that payloads are plain
    files inside the bundle, sizes and compression ratio of a zip, the operators and weight locations of every program.
    Raises `BundleError`, or `UserError` if there is nothing at `path`.
    """
    path = Path(path)
    try:
        if path.is_dir():
            manifest = _open_folder(path)
            return OpenBundle(path, path, manifest, temporary=False)
        if path.exists():
            from mtlc.runtime.archive import unpack  # what unpacks zips is slow to import

            folder, manifest = unpack(path)
            return OpenBundle(path, folder, manifest, temporary=True)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from error
    raise UserError(f"{path}: no such bundle")


def _remover(bundle: OpenBundle, folder: Path) -> weakref.finalize[..., OpenBundle]:
    """Removes `folder` when called, when `bundle` is forgotten without having been closed, or when Python ends."""
    import shutil

    return weakref.finalize(bundle, shutil.rmtree, folder, True)


def _open_folder(folder: Path) -> Manifest:
    if not (folder / MANIFEST).exists():
        inner = next((name for name in ("bundle", "bundle.mtlc") if (folder / name).exists()), None)
        raise BundleError("not a bundle (no manifest.json)" + (f"; {folder / inner} may be one" if inner else ""))
    _regular(folder / MANIFEST)
    if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError("manifest.json is too large")
    manifest = read_manifest((folder / MANIFEST).read_bytes())
    check_limits(manifest)
    for name, expected in manifest.files.items():
        _regular(folder / name)
        with (folder / name).open("rb") as file:
            if os.fstat(file.fileno()).st_size != expected.bytes:
                raise BundleError(
                    f"{name} is {os.fstat(file.fileno()).st_size} bytes, the manifest says {expected.bytes}"
                )
            copy(file, None, name, expected)
    check_programs(folder, manifest)
    return manifest


def check_limits(manifest: Manifest) -> None:
    """Refuse manifests with too many or too large files, or with names that differ in case only."""
    if len(manifest.files) > MAX_FILES or sum(file.bytes for file in manifest.files.values()) > MAX_TOTAL_BYTES:
        raise BundleError(f"it has more than {MAX_FILES} files or {MAX_TOTAL_BYTES >> 30} GiB")
    folded: dict[str, str] = {}
    for name in manifest.files:
        if folded.setdefault(name.casefold(), name) != name:
            raise BundleError(f"files {folded[name.casefold()]!r} and {name!r} are one file where case is ignored")


def check_programs(folder: Path, manifest: Manifest) -> None:
    """Check the ONNX files of all programs, and their IR."""
    sizes = {name: file.bytes for name, file in manifest.files.items()}
    for program in manifest.programs:
        check_graph(folder / program.file, sizes)
    if manifest.openvino is not None:
        from mtlc.runtime.ir_check import check_ir  # a parser of XML that few bundles need

        for name in manifest.openvino.files.values():
            check_ir(folder / name, sizes[manifest.openvino.weights])


def read_beside(file: Path) -> Manifest | None:
    """The manifest of the bundle whose program `file` is, None where the file is in none."""
    path = file.parent / MANIFEST
    return read_manifest(path.read_bytes()) if path.is_file() else None


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
        raise BundleError(f"{name} does not have the {expected.bytes} bytes that the manifest says")
    if digest.hexdigest() != expected.sha256:
        raise BundleError(f"{name} was altered or damaged: its SHA-256 is not the manifest's")


def _regular(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise BundleError(f"{path.name} is missing") from None
    if not stat.S_ISREG(mode):
        raise BundleError(f"{path.name} is not a plain file")
