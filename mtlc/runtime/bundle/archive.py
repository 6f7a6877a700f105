"""Bundles in one zip file: checked entry by entry, then unpacked so that the backend can map the weights."""

from __future__ import annotations

import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtlc.errors import BundleError, reason
from mtlc.runtime.bundle.manifest import Manifest
from mtlc.runtime.bundle.manifest_reader import read_manifest
from mtlc.runtime.bundle.payload_checks import (
    MANIFEST,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    MAX_TOTAL_BYTES,
    check_limits,
    check_programs,
    copy,
)

try:
    from lzma import LZMAError
except ImportError:  # a Python without it refuses such entries with NotImplementedError
    LZMAError = zlib.error  # type: ignore[misc, assignment]

_DAMAGE = (
    zipfile.BadZipFile, zlib.error, LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip

MAX_RATIO = 100  # mtlc stores without compression; deflate of real weights gains a few percent


def unpack(path: Path) -> tuple[Path, Manifest]:
    """Check the zip at `path` and unpack its payloads into a temporary folder, which the caller removes."""
    with _zip_errors(), zipfile.ZipFile(path) as archive:
        entries = _entries(archive)
        if MANIFEST not in entries:
            raise BundleError("not a bundle (no manifest.json)")
        if entries[MANIFEST].file_size > MAX_MANIFEST_BYTES:
            raise BundleError("manifest.json is too large")
        with archive.open(entries[MANIFEST]) as file:
            described = file.read(MAX_MANIFEST_BYTES + 1)
        manifest = read_manifest(described)
        check_limits(manifest)
        for name, expected in manifest.files.items():
            if name not in entries:
                raise BundleError(f"{name} is missing")
            if entries[name].file_size != expected.bytes:
                raise BundleError(f"{name} is {entries[name].file_size} bytes, the manifest says {expected.bytes}")
        folder = Path(tempfile.mkdtemp(prefix="mtlc-bundle-"))
        try:
            (folder / MANIFEST).write_bytes(described)
            for name, expected in manifest.files.items():
                with archive.open(entries[name]) as source, (folder / name).open("xb") as target:
                    copy(source, target, name, expected)
            check_programs(folder, manifest)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder, manifest


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name, after the checks that need no unpacking."""
    infos = archive.infolist()
    if len(infos) > MAX_FILES:
        raise BundleError(f"it holds {len(infos)} files, more than {MAX_FILES}")
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or name.startswith(("/", "\\")) or ":" in name:
            raise BundleError(f"the entry {name!r} leads out of the bundle")
        if name in entries:
            raise BundleError(f"the entry {name!r} is there twice")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise BundleError(f"the entry {name!r} is a symbolic link")
        if info.flag_bits & 1:
            raise BundleError(f"the entry {name!r} is encrypted")
        if info.file_size > max(info.compress_size, 1) * MAX_RATIO:
            raise BundleError(f"the entry {name!r} unpacks to more than {MAX_RATIO} times its size")
        entries[name] = info
    if sum(info.file_size for info in infos) > MAX_TOTAL_BYTES:
        raise BundleError(f"it unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB")
    return entries


@contextmanager
def _zip_errors() -> Iterator[None]:
    """Whatever a damaged zip makes `zipfile` and its decoders raise: NotImplementedError for a compression or version
    that is unknown, RuntimeError for encryption, EOFError and the decoders' own for cut or altered data, ValueError for
    offsets, struct.error for fields that are cut off. bz2 raises an OSError that is not the system's: it has no number.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(error) from error
    except _DAMAGE as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> BundleError:
    text = reason(error) if str(error) else "cut off"
    return BundleError(f"not a bundle folder and not a whole zip file ({text})")
