"""Checks of an OpenVINO IR file before OpenVINO sees it: its layers and where its weights lie."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from mtlc.errors import BundleError

MAX_BYTES = 256 << 20
_STANDARD = re.compile(r"opset\d{1,2}")
_DECLARATIONS = (b"<!DOCTYPE", b"<!ENTITY")  # the XML of an IR has none; entities can grow without bound


def check_ir(path: Path, weights: int) -> None:
    """Refuse an IR with layers outside OpenVINO's own sets, or that reads beyond `weights` bytes of the weights' file.

    Raises `BundleError`.
    """
    if path.stat().st_size > MAX_BYTES:
        raise BundleError(f"{path.name}: the file is larger than an IR can be")
    text = path.read_bytes()
    if any(mark in text for mark in _DECLARATIONS):
        raise BundleError(f"{path.name}: it declares entities, which an IR never does")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise BundleError(f"{path.name}: not a whole IR file") from None
    if root.tag != "net":
        raise BundleError(f"{path.name}: not an IR file")
    for layer in root.iter("layer"):
        kind, version = layer.get("type"), layer.get("version", "")
        if not _STANDARD.fullmatch(version):
            raise BundleError(
                f"{path.name}: layer {layer.get('name')!r} ({kind}) is of {version!r}, which is not OpenVINO's own"
            )
        if kind == "Const":
            _check_constant(path, layer, weights)


def _check_constant(path: Path, layer: ElementTree.Element, weights: int) -> None:
    data = layer.find("data")
    try:
        assert data is not None
        offset, size = int(data.attrib["offset"]), int(data.attrib["size"])
    except (AssertionError, KeyError, ValueError):
        raise BundleError(f"{path.name}: constant {layer.get('name')!r} does not say where it lies") from None
    if offset < 0 or size < 0 or offset + size > weights:
        raise BundleError(f"{path.name}: constant {layer.get('name')!r} lies beyond the end of the weights")
