"""Bundles in one zip file: checked entry by entry, then unpacked so that the backend can map the weights."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mtlc.errors import BundleError, reason
from mtlc.files import new_scratch_folder
from mtlc.runtime.bundle.limits import (
    MAX_DIRECTORY_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    MAX_RATIO,
    MAX_TOTAL_BYTES,
)
from mtlc.runtime.bundle.manifest import Manifest
from mtlc.runtime.bundle.manifest_reader import read_manifest
from mtlc.runtime.bundle.payload_checks import (
    MANIFEST,
    check_limits,
    check_programs,
    copy,
)
from mtlc.runtime.bundle.refusals import Refusal

_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # the signature, and the lengths of the name and of the extra field


def unpack(path: Path) -> tuple[Path, Manifest, int]:
    """Check the zip at `path` and unpack its payloads into a temporary folder, which the caller removes.

    The descriptor that is given with it keeps others from taking the folder for abandoned: close it afterwards.
    """
    with _zip_errors(), _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        entries = _entries(archive)
        _check_places(file, entries)
        if MANIFEST not in entries:
            raise BundleError("not a bundle (no manifest.json)", code=Refusal.NOT_A_BUNDLE)
        if entries[MANIFEST].file_size > MAX_MANIFEST_BYTES:
            raise BundleError("manifest.json is too large", code=Refusal.MANIFEST_SIZE)
        with archive.open(entries[MANIFEST]) as stream:
            described = stream.read(MAX_MANIFEST_BYTES + 1)
        manifest = read_manifest(described)
        check_limits(manifest)
        for name, expected in manifest.files.items():
            if name not in entries:
                raise BundleError(f"{name} is missing", code=Refusal.FILE_MISSING)
            if entries[name].file_size != expected.bytes:
                raise BundleError(
                    f"{name} is {entries[name].file_size} bytes, the manifest says {expected.bytes}",
                    code=Refusal.FILE_SIZE,
                )
        folder, held = new_scratch_folder("bundle")
        try:
            (folder / MANIFEST).write_bytes(described)
            for name, expected in manifest.files.items():
                with archive.open(entries[name]) as source, (folder / name).open("xb") as target:
                    copy(source, target, name, expected)
            check_programs(folder, manifest)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
            raise
    return folder, manifest, held


class _BoundedFile(io.BufferedReader):
    """The zip, of which no more is read at once than its directory may have: `zipfile` reads that whole, and makes
    some hundred bytes of objects of each entry.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(MAX_DIRECTORY_BYTES + 1 if size is None or size < 0 else min(size, MAX_DIRECTORY_BYTES + 1))
        if len(data) > MAX_DIRECTORY_BYTES:
            raise BundleError(f"the zip's directory has more than {MAX_DIRECTORY_BYTES >> 20} MiB", code=Refusal.LIMIT)
        return data


def _check_places(file: _BoundedFile, entries: Mapping[str, zipfile.ZipInfo]) -> None:
    """Refuse entries that share bytes: each unpacks to little more than it has, and all of them to much more."""
    end, last = 0, ""
    for info in sorted(entries.values(), key=lambda info: info.header_offset):
        file.seek(info.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\3\4":
            raise BundleError(
                f"the entry {info.filename!r} does not begin where the zip says", code=Refusal.ZIP_DAMAGED
            )
        if info.header_offset < end:
            raise BundleError(f"the entries {last!r} and {info.filename!r} overlap", code=Refusal.ZIP_ENTRY)
        end, last = info.header_offset + _LOCAL_HEADER.size + name + extra + info.compress_size, info.filename


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name, after the checks that need no unpacking."""
    infos = archive.infolist()
    if len(infos) > MAX_FILES:
        raise BundleError(f"it holds {len(infos)} files, more than {MAX_FILES}", code=Refusal.LIMIT)
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or name.startswith(("/", "\\")) or ":" in name:
            raise BundleError(f"the entry {name!r} leads out of the bundle", code=Refusal.ZIP_ENTRY)
        if name in entries:
            raise BundleError(f"the entry {name!r} is there twice", code=Refusal.ZIP_ENTRY)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise BundleError(f"the entry {name!r} is a symbolic link", code=Refusal.ZIP_ENTRY)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(
                f"the entry {name!r} is compressed in a way that bundles are not: store or deflate it",
                code=Refusal.ZIP_ENTRY,
            )
        if info.flag_bits & 1:
            raise BundleError(f"the entry {name!r} is encrypted", code=Refusal.ZIP_ENTRY)
        if info.file_size > max(info.compress_size, 1) * MAX_RATIO:
            raise BundleError(
                f"the entry {name!r} unpacks to more than {MAX_RATIO} times its size", code=Refusal.ZIP_ENTRY
            )
        entries[name] = info
    if sum(info.file_size for info in infos) > MAX_TOTAL_BYTES:
        raise BundleError(f"it unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB", code=Refusal.LIMIT)
    return entries


@contextmanager
def _zip_errors() -> Iterator[None]:
    """Whatever a damaged zip makes `zipfile` and its decoders raise: NotImplementedError for a version that is unknown,
    RuntimeError for encryption, EOFError and zlib.error for cut or altered data, ValueError and OverflowError for
    offsets, struct.error for fields that are cut off.
    """
    try:
        yield
    except _DAMAGE as error:
        text = reason(error) if str(error) else "cut off"
        raise BundleError(f"not a bundle folder and not a whole zip file ({text})", code=Refusal.ZIP_DAMAGED) from error
