"""Makes damaged and hostile bundles out of whole ones, by seed: the same seed gives the same bytes.

Checksums and sizes are repaired after each change, so that it reaches the parser behind them. A mutation changes bytes
of a payload, values of the manifest, fields of a protobuf message or of an IR's XML, or the structure of the zip.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"

NUMBERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = (
    b"", b"x", b"t", b"weights.bin", b"trunk.onnx", b"../../etc/passwd", b"/etc/passwd", b"/dev/zero", b"a" * 3000,
    b"\xff\xfe", b"\0", b"\x1b[31m\nerror: ", "٤".encode(), b"1_0", b"-1", b"9" * 25, b"Evil", b"EPContext", b"MoE",
    b"com.microsoft", b"ai.onnx.ml", b"my.domain", b"location", b"offset", b"length", b"ort_config",
)  # fmt: skip
OPERATORS = (
    b"Add", b"Mul", b"Sub", b"Div", b"Pow", b"Max", b"Relu", b"Neg", b"Exp", b"Identity", b"Sigmoid", b"Softmax",
    b"Where", b"MatMul", b"Gemm", b"Conv", b"If", b"Loop", b"Scan", b"Reshape", b"Tile", b"Expand", b"Range",
    b"ConstantOfShape", b"Gather", b"Slice", b"Cast", b"Greater", b"NonZero", b"TopK", b"Resize", b"Einsum",
)  # fmt: skip
"""Operators that take each other's places: a graph that still loads computes something else."""
Fields = list[tuple[int, int, Any]]
"""(number, wire type, value) of each field of a message; the value is a number or bytes."""


@dataclass(frozen=True)
class Mutant:
    """A changed bundle: what was done to it, and the files of a folder or the bytes of one zip."""

    kind: str
    files: Mapping[str, bytes] | None
    archive: bytes | None

    def write(self, path: Path) -> None:
        """Write it at `path`, where nothing is."""
        if self.archive is not None:
            path.write_bytes(self.archive)
            return
        path.mkdir()
        for name, data in (self.files or {}).items():
            (path / name).write_bytes(data)


def read_folder(path: Path) -> dict[str, bytes]:
    """The files of a bundle that is a folder."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}


def mutate(files: Mapping[str, bytes], seed: int, kind: str | None = None) -> Mutant:
    """A mutant of the bundle with these files, of one kind in `KINDS`; of any, as often as of any other, if None."""
    draw = random.Random(seed)
    drawn = draw.choice(sorted(KINDS))
    kind = drawn if kind is None else kind
    changed = dict(files)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        KINDS[kind](changed, draw)
    if kind.startswith("zip"):
        return Mutant(kind, None, changed.pop(""))
    return Mutant(kind, changed, packed(changed, draw) if draw.random() < 0.1 else None)


def repaired(files: dict[str, bytes]) -> None:
    """Put the payloads' true sizes and checksums into the manifest, for those that it lists."""
    described = json.loads(files[MANIFEST])
    for name, entry in described["files"].items():
        if name in files and isinstance(entry, dict):
            entry |= {"sha256": hashlib.sha256(files[name]).hexdigest(), "bytes": len(files[name])}
    files[MANIFEST] = json.dumps(described).encode()


def packed(files: Mapping[str, bytes], draw: random.Random) -> bytes:
    """The files as one zip, in one of the two compressions that bundles have."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def flipped(data: bytes, draw: random.Random) -> bytes:
    """The bytes with a few of them changed, put in, taken out or doubled."""
    at, size = draw.randrange(len(data) + 1), draw.choice((1, 1, 1, 2, 4, 16, 200))
    how = draw.randrange(5)
    if how == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if how == 1:
        return data[:at] + draw.randbytes(size) + data[at + size :]
    if how == 2:
        return data[:at] + draw.choice((draw.randbytes(size), draw.choice(TEXTS))) + data[at:]
    if how == 3:
        return data[:at] + data[at + size :]
    return data[:at] + data[max(at - size, 0) : at] * draw.choice((1, 1, 50)) + data[at:]


def _payload(files: Mapping[str, bytes], draw: random.Random, suffix: str = "") -> str:
    return draw.choice([name for name in sorted(files) if name != MANIFEST and name.endswith(suffix)] or [MANIFEST])


def _flip_payload(files: dict[str, bytes], draw: random.Random) -> None:
    name = _payload(files, draw)
    files[name] = flipped(files[name], draw)
    repaired(files)


def _flip_manifest(files: dict[str, bytes], draw: random.Random) -> None:
    files[MANIFEST] = flipped(files[MANIFEST], draw)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place inside a JSON value: the table or list, and the key or index."""
    found = []
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *_places(value[key])]
    return found


def edited_json(data: bytes, draw: random.Random) -> bytes:
    """JSON in which a value or a key is changed, taken out, doubled or moved."""
    try:
        described = json.loads(data)
    except (ValueError, RecursionError):
        return flipped(data, draw)
    places = _places(described)
    if not places:
        return flipped(data, draw)
    inside, key = draw.choice(places)
    _, other = draw.choice(places)
    elsewhere = copy.deepcopy(draw.choice(places)[0])
    how = draw.randrange(6)
    if how == 0:
        del inside[key]
    elif how == 1:
        inside[key] = elsewhere
    elif how == 2:
        inside[key] = draw.choice((*NUMBERS, 0.5, 1e308, 1e-320, True, None, [], {}, [[]], {"a": 1}))
    elif how == 3:
        inside[key] = draw.choice(TEXTS).decode("utf-8", "surrogateescape")
    elif how == 4 and isinstance(inside, list):
        inside += [copy.deepcopy(inside[key])] * draw.choice((1, 1, 300))
    elif isinstance(inside, dict):
        text = draw.choice((str(other), draw.choice(TEXTS).decode("utf-8", "surrogateescape")))
        inside[text] = inside.pop(key) if how == 4 else copy.deepcopy(inside[key])
    return json.dumps(described).encode()


def _edit_manifest(files: dict[str, bytes], draw: random.Random) -> None:
    files[MANIFEST] = edited_json(files[MANIFEST], draw)


def parse(data: bytes) -> Fields | None:
    """The fields of a protobuf message; None if it is none."""
    found: Fields = []
    at = 0
    try:
        while at < len(data):
            tag, at = _read_number(data, at)
            kind = tag & 7
            if kind == 0:
                value, at = _read_number(data, at)
                found.append((tag >> 3, kind, value))
                continue
            if kind not in (1, 2, 5):
                return None
            size = 8 if kind == 1 else 4
            if kind == 2:
                size, at = _read_number(data, at)
            if at + size > len(data):
                return None
            found.append((tag >> 3, kind, data[at : at + size]))
            at += size
    except IndexError:
        return None
    return found


def serialised(fields: Fields) -> bytes:
    """The message of these fields."""
    data = b""
    for number, kind, value in fields:
        data += _number(number << 3 | kind)
        if kind == 0:
            data += _number(value)
        else:
            data += (_number(len(value)) if kind == 2 else b"") + value
    return data


def edited_message(data: bytes, draw: random.Random, depth: int = 0) -> bytes:
    """A message in which one field is changed, here or in a message within it."""
    fields = parse(data)
    if not fields:
        return flipped(data, draw)
    # Large fields more often: a graph is one field of its model beside five of no consequence.
    sizes = [1 + (len(value) if kind == 2 else 1) ** 0.5 for _, kind, value in fields]
    place = draw.choices(range(len(fields)), sizes)[0]
    number, kind, value = fields[place]
    if kind == 2 and value and depth < 12 and draw.random() < 0.9 and parse(value):
        fields[place] = (number, kind, edited_message(value, draw, depth + 1))
        return serialised(fields)
    _edit_field(fields, place, draw)
    return serialised(fields)


def _edit_field(fields: Fields, place: int, draw: random.Random) -> None:
    number, kind, value = fields[place]
    other = draw.choice(fields)
    how = draw.randrange(8 if value not in OPERATORS else 24)
    if how == 0:
        del fields[place]
    elif how == 1:
        fields.insert(draw.randrange(len(fields) + 1), fields[place])
    elif how == 2:
        fields[place] = (
            draw.choice((number + 1, draw.randrange(40), number | 1 << draw.choice((29, 30, 33)))),
            kind,
            value,
        )
    elif how == 3:
        fields.insert(place, (draw.randrange(1, 40), 2, draw.choice(TEXTS)))
    elif how == 4:
        fields[place] = (number, other[1], other[2])
    elif how == 5:
        fields.insert(place, (draw.randrange(1, 30), 0, draw.choice(NUMBERS)))
    elif kind == 0:
        fields[place] = (number, 0, draw.choice((*NUMBERS, value + 1)))
    elif value in OPERATORS:
        fields[place] = (number, 2, draw.choice(OPERATORS))
    elif kind in (1, 5):
        fields[place] = (number, kind, draw.randbytes(len(value)))
    else:
        size = len(value)
        same = (draw.randbytes(size), value[::-1], bytes(size), b"\xff" * size)
        fields[place] = (number, 2, draw.choice((*TEXTS, *same * 5, flipped(value, draw), value * 2)))


def _number(value: int) -> bytes:
    value &= 2**64 - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise IndexError


def _edit_graph(files: dict[str, bytes], draw: random.Random) -> None:
    name = _payload(files, draw, ".onnx")
    files[name] = edited_message(files[name], draw)
    repaired(files)


_XML_TEXT = re.compile(rb'="[^"]*"|<[^>]*>')


def edited_xml(data: bytes, draw: random.Random) -> bytes:
    """XML in which an attribute's value or a tag is changed, taken out, doubled or another's."""
    spans = list(_XML_TEXT.finditer(data))
    if not spans:
        return flipped(data, draw)
    span, other = draw.choice(spans), draw.choice(spans).group()
    text = span.group()
    if text.startswith(b"="):
        new = draw.choice((b'="%d"' % draw.choice(NUMBERS), b'="' + draw.choice(TEXTS) + b'"', other))
    else:
        new = draw.choice((b"", text * 2, other, b"<layer xmlns='x'>", b"<!-- -->"))
    return data[: span.start()] + new + data[span.end() :]


def _edit_xml(files: dict[str, bytes], draw: random.Random) -> None:
    """Of an IR; where a bundle has none, a field of a graph."""
    if not any(name.endswith(".xml") for name in files):
        _edit_graph(files, draw)
        return
    name = _payload(files, draw, ".xml")
    files[name] = edited_xml(files[name], draw)
    repaired(files)


_ZIP_HEAD = b"PK(?:\1\2|\3\4|\5\6)"


def _zipped(files: dict[str, bytes], draw: random.Random) -> bytes:
    """The zip that earlier changes made, or that the files make."""
    return files[""] if "" in files else packed(files, draw)


def _zip_bytes(files: dict[str, bytes], draw: random.Random) -> None:
    files[""] = flipped(_zipped(files, draw), draw)


def edited_zip(data: bytes, draw: random.Random) -> bytes:
    """A zip in which a number is changed: in the header of an entry, in the directory or at its end."""
    changed = bytearray(data)
    heads = [found.start() for found in re.finditer(_ZIP_HEAD, data)]
    if heads:
        at, size = draw.choice(heads) + draw.randrange(4, 44), draw.choice((1, 2, 4))
        if at + size <= len(data):
            changed[at : at + size] = struct.pack("<Q", draw.choice(NUMBERS) % 2**64)[:size]
    return bytes(changed)


def _zip_fields(files: dict[str, bytes], draw: random.Random) -> None:
    files[""] = edited_zip(_zipped(files, draw), draw)


def _zip_entries(files: dict[str, bytes], draw: random.Random) -> None:
    """Entries in another order; one of them gone, twice, with another name, content, compression or attribute."""
    whole = {name: data for name, data in files.items() if name}
    names = draw.sample(sorted(whole), len(whole))
    odd = draw.choice(names)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name in names:
            _write_entry(archive, name, whole, draw if name == odd else None)
    files[""] = buffer.getvalue()


def _write_entry(archive: zipfile.ZipFile, name: str, whole: Mapping[str, bytes], draw: random.Random | None) -> None:
    """An entry as it is, or changed by `draw`."""
    info = zipfile.ZipInfo(name)
    if draw is None:
        archive.writestr(info, whole[name])
        return
    how = draw.randrange(6)
    if how == 0:
        return
    if how == 1:
        info.filename = draw.choice(("../" + name, name.upper(), "a/" + name, name + "\n", "/" + name, name + "/", ""))
    elif how == 2:
        info.external_attr = draw.choice((0o120777 << 16, 0o010644 << 16, 0o040755 << 16, 0o060644 << 16))
    elif how == 3:
        info.compress_type = draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif how == 4:
        archive.writestr(copy.copy(info), whole[name])
    archive.writestr(info, whole[draw.choice(sorted(whole))] if how == 5 else whole[name])


KINDS: Mapping[str, Callable[[dict[str, bytes], random.Random], None]] = {
    "bytes of a payload": _flip_payload,
    "bytes of the manifest": _flip_manifest,
    "values of the manifest": _edit_manifest,
    "fields of a graph": _edit_graph,
    "text of an IR": _edit_xml,
    "zip, its bytes": _zip_bytes,
    "zip, its fields": _zip_fields,
    "zip, its entries": _zip_entries,
}
"""What is done to a bundle's files, in place; the key ``""`` holds the zip that they became."""
