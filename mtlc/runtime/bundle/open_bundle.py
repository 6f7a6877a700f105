"""Opens a bundle, a folder or one zip file, without trusting anything in it."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from types import TracebackType

from mtlc.errors import BundleError, UserError, check_utf8, nearest, reason
from mtlc.runtime.bundle.manifest import Manifest
from mtlc.runtime.bundle.manifest_reader import read_manifest
from mtlc.runtime.bundle.payload_checks import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    _regular,
    check_limits,
    check_programs,
    copy,
)


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
    check_utf8(path)
    try:
        if path.is_dir():
            manifest = _open_folder(path)
            return OpenBundle(path, path, manifest, temporary=False)
        if path.exists():
            from mtlc.runtime.bundle.archive import unpack  # what unpacks zips is slow to import

            folder, manifest = unpack(path)
            return OpenBundle(path, folder, manifest, temporary=True)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or reason(error)})") from error
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


def read_beside(file: Path) -> Manifest | None:
    """The manifest of the bundle whose program `file` is, None where the file is in none."""
    path = file.parent / MANIFEST
    return read_manifest(path.read_bytes()) if path.is_file() else None
