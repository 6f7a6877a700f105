"""Zips that would cost more than they have: entries that share bytes, endless directories, other compressions."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtlc.cli import main
from mtlc.errors import BundleError
from mtlc.runtime import open_bundle

Entry = tuple[str, int, bytes, int]
"""Name, offset of its local header, content as its checksum has it, bytes that it takes in the file."""


def local(name: str, content: bytes, size: int, extra: int = 0) -> bytes:
    """A stored entry's local header, for `size` bytes of content, and `extra` bytes of an extra field before them."""
    fields = (b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(content), size, size, len(name), extra)
    return struct.pack("<4s5H3I2H", *fields) + name.encode()


def directory(entries: list[Entry], offset: int) -> bytes:
    rows = []
    for name, place, content, size in entries:
        fields = (b"PK\1\2", 20, 20, 0, 0, 0, 0, zlib.crc32(content), size, size, len(name), 0, 0, 0, 0, 0, place)
        rows.append(struct.pack("<4s6H3I5H2I", *fields) + name.encode())
    found = b"".join(rows)
    return found + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(rows), len(rows), len(found), offset, 0)


def refused(path: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("quoted_by", ["content", "extra field"])
def test_entries_that_share_bytes(tmp_path, quoted_by):
    """The second entry lies in the first, as that one's content or as its extra field, so that one kernel of bytes is
    unpacked by each. https://www.usenix.org/conference/woot19/presentation/fifield
    """
    kernel = bytes(range(256)) * 4
    inner = local("b", kernel, len(kernel)) + kernel
    if quoted_by == "content":
        body, entries = local("a", inner, len(inner)), [("a", 0, inner, len(inner))]
    else:
        body, entries = local("a", kernel, len(kernel), 31), [("a", 0, kernel, len(kernel))]
    entries.append(("b", len(body), kernel, len(kernel)))
    path = tmp_path / "b.mtlc"
    path.write_bytes(body + inner + directory(entries, len(body + inner)))
    with zipfile.ZipFile(path) as archive:  # whole to Python's own reader
        assert [archive.read(name) for name in ("a", "b")] == [entries[0][2], kernel]
    refused(path, "the entries 'a' and 'b' overlap")


def test_an_entry_that_begins_elsewhere(tmp_path):
    path = tmp_path / "b.mtlc"
    body = local("a", b"x", 1) + b"x"
    path.write_bytes(body + directory([("a", 1, b"x", 1)], len(body)))
    refused(path, "the entry 'a' does not begin where the zip says")


def test_a_directory_without_an_end(tmp_path):
    """`zipfile` makes objects of the whole directory before anybody can count them."""
    entries = [(f"{i:05}{'x' * 60}", 0, b"", 0) for i in range(30_000)]
    path = tmp_path / "b.mtlc"
    path.write_bytes(local("a", b"", 0) + directory(entries, 31))
    tracemalloc.start()
    try:
        refused(path, "the zip's directory has more than 2 MiB")
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(bundle, tmp_path, how):
    path = tmp_path / "b.mtlc"
    with zipfile.ZipFile(path, "w", how) as archive:
        for file in sorted(bundle.iterdir()):
            archive.write(file, file.name)
    refused(path, "is compressed in a way that bundles are not: store or deflate it")


def test_a_deflated_bundle_opens(bundle, tmp_path):
    path = tmp_path / "b.mtlc"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(bundle.iterdir()):
            archive.write(file, file.name)
    with open_bundle(path) as opened:
        assert "plus" in opened.manifest.tasks


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_read(tmp_path, kind):
    path = tmp_path / "b.mtlc"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    refused(path, "not a bundle: neither a folder nor a plain file")
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


def test_a_pipe_in_a_bundle_is_not_read(bundle):
    (bundle / "weights.bin").unlink()
    os.mkfifo(bundle / "weights.bin")
    refused(bundle, "weights.bin is not a plain file")
