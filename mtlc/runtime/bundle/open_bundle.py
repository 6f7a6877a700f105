"""Opens a bundle, a folder or one zip file, without trusting anything in it."""

from __future__ import annotations

import hashlib
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import IO

from mtlc.errors import BundleError, UserError, check_utf8, nearest, reason
from mtlc.runtime.bundle.limits import MAX_MANIFEST_BYTES
from mtlc.runtime.bundle.manifest import Manifest
from mtlc.runtime.bundle.manifest_reader import read_manifest
from mtlc.runtime.bundle.payload_checks import (
    MANIFEST,
    _regular,
    check_limits,
    check_programs,
    copy,
    file_identity,
)
from mtlc.runtime.bundle.refusals import Refusal


class OpenBundle:
    """A checked bundle. `close` removes what was unpacked from a zip; the bundle itself is never written to.

    `held` is the descriptor that goes with an unpacked folder; None for a bundle that is a folder itself, which others
    may replace at any time: ask for its files by `file`.
    """

    def __init__(self, path: Path, folder: Path, manifest: Manifest, manifest_sha256: str, held: int | None) -> None:
        self.path, self.folder, self.manifest = path, folder, manifest
        self._sums = {name: info.sha256 for name, info in manifest.files.items()} | {MANIFEST: manifest_sha256}
        self._seen: dict[str, tuple[int, ...]] = {}
        programs = {program.file for program in manifest.programs}
        self._ir = {} if manifest.openvino is None else dict(manifest.openvino.files)
        decoders = {task.decoder for task in manifest.tasks.values() if task.decoder is not None}
        self._shared = tuple(self._sums.keys() - programs - decoders - set(self._ir.values()))
        self._remove = None if held is None else _remover(self, folder, held)

    def program_path(self, name: str) -> Path:
        """The file of the program called `name`, after `check_unchanged`."""
        for program in self.manifest.programs:
            if program.name == name:
                return self.file(program.file)
        raise UserError(f"{self.path}: no program {name!r}{nearest(name, [p.name for p in self.manifest.programs])}")

    def file(self, name: str) -> Path:
        """The payload called `name`, after `check_unchanged`."""
        self.check_unchanged(name)
        return self.folder / name

    def check_unchanged(self, name: str) -> None:
        """Refuse the payload `name`, and what it reads beside it, if they are not what was checked when it was opened.

        Files with the same content that took the place of others are fine. Contents are read again where the size, the
        times or the identity of a file are others than before. Raises `BundleError`.
        """
        for used in (name, *([self._ir[name]] if name in self._ir else ()), *self._shared):
            try:
                with (self.folder / used).open("rb") as file:
                    known = file_identity(file)
                    if self._seen.get(used) == known:
                        continue
                    if hashlib.file_digest(file, "sha256").hexdigest() == self._sums[used]:
                        self._seen[used] = known
                        continue
            except OSError:
                pass
            raise BundleError(
                f"{self.path}: {used} is not what it was when the bundle was opened: it was replaced or changed; "
                "open it again",
                code=Refusal.FILE_CHANGED,
            )

    def note(self, name: str, file: IO[bytes]) -> None:
        """Take down that what this open file holds is about to be checked: it need not be read again for that."""
        self._seen[name] = file_identity(file)

    def close(self) -> None:
        """Remove unpacked files, if any. May be called twice. In a forked child nothing is removed."""
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
            return _open_folder(path)
        if path.exists():
            if not path.is_file():  # reading a pipe or a device waits or does not end
                raise BundleError("not a bundle: neither a folder nor a plain file", code=Refusal.NOT_A_BUNDLE)
            from mtlc.runtime.bundle.archive import unpack  # what unpacks zips is slow to import

            folder, manifest, held = unpack(path)
            described = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
            bundle = OpenBundle(path, folder, manifest, described, held)
            for name in (MANIFEST, *manifest.files):
                with (folder / name).open("rb") as file:
                    bundle.note(name, file)
            return bundle
    except BundleError as error:
        raise BundleError(f"{path}: {error}", code=error.code) from error.__cause__
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or reason(error)})", code=Refusal.UNREADABLE
        ) from error
    raise UserError(f"{path}: no such bundle", code=Refusal.NOT_FOUND)


def _remover(bundle: OpenBundle, folder: Path, held: int) -> weakref.finalize[..., OpenBundle]:
    """Removes `folder` when called, when `bundle` is forgotten without having been closed, or when Python ends.

    A process that was forked from this one has the same finalizer, and the folder is not its own.
    """
    import shutil

    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(held)

    return weakref.finalize(bundle, remove)


def _open_folder(folder: Path) -> OpenBundle:
    if not (folder / MANIFEST).exists():
        inner = next((name for name in ("bundle", "bundle.mtlc") if (folder / name).exists()), None)
        raise BundleError(
            "not a bundle (no manifest.json)" + (f"; {folder / inner} may be one" if inner else ""),
            code=Refusal.NOT_A_BUNDLE,
        )
    _regular(folder / MANIFEST)
    if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError("manifest.json is too large", code=Refusal.MANIFEST_SIZE)
    with (folder / MANIFEST).open("rb") as file:
        described = file.read()
        manifest = read_manifest(described)
        bundle = OpenBundle(folder, folder, manifest, hashlib.sha256(described).hexdigest(), None)
        bundle.note(MANIFEST, file)
    check_limits(manifest)
    for name, expected in manifest.files.items():
        _regular(folder / name)
        with (folder / name).open("rb") as file:
            bundle.note(name, file)
            if os.fstat(file.fileno()).st_size != expected.bytes:
                raise BundleError(
                    f"{name} is {os.fstat(file.fileno()).st_size} bytes, the manifest says {expected.bytes}",
                    code=Refusal.FILE_SIZE,
                )
            copy(file, None, name, expected)
    check_programs(folder, manifest)
    return bundle


def read_beside(file: Path) -> Manifest | None:
    """The manifest of the bundle whose program `file` is, None where the file is in none."""
    path = file.parent / MANIFEST
    return read_manifest(path.read_bytes()) if path.is_file() else None
