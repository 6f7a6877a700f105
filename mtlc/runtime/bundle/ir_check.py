"""Checks of an OpenVINO IR file before OpenVINO sees it: its layers and where its weights lie."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from mtlc.errors import BundleError
from mtlc.runtime.bundle.refusals import Refusal

MAX_BYTES = 256 << 20
MAX_DEPTH = 128  # a graph within a graph takes three or four
_STANDARD = re.compile(r"opset[0-9]{1,2}")
_SIZE = re.compile(r"[0-9]{1,19}")  # Python's `int` reads more than OpenVINO does: 1_0, spaces, Arabic digits
_DECLARATIONS = (b"<!DOCTYPE", b"<!ENTITY")  # the XML of an IR has none; entities can grow without bound


def check_ir(path: Path, weights: int) -> None:
    """Refuse an IR with layers outside OpenVINO's own sets, or that reads beyond `weights` bytes of the weights' file.

    Raises `BundleError`.
    """
    if path.stat().st_size > MAX_BYTES:
        raise BundleError(f"{path.name}: the file is larger than an IR can be", code=Refusal.IR)
    text = path.read_bytes()
    if any(mark in text for mark in _DECLARATIONS):
        raise BundleError(f"{path.name}: it declares entities, which an IR never does", code=Refusal.IR)
    try:
        # Whatever encoding the file says: in another one the declarations above would look different.
        root = ElementTree.fromstring(text.decode("utf-8"))
    except (ElementTree.ParseError, UnicodeDecodeError):
        raise BundleError(f"{path.name}: not a whole IR file", code=Refusal.IR) from None
    if root.tag != "net":
        raise BundleError(f"{path.name}: not an IR file", code=Refusal.IR)
    _check_elements(path, root)
    for layer in root.iter("layer"):
        kind, version = layer.get("type"), layer.get("version", "")
        if not _STANDARD.fullmatch(version):
            raise BundleError(
                f"{path.name}: layer {layer.get('name')!r} ({kind}) is of {version!r}, which is not OpenVINO's own",
                code=Refusal.IR,
            )
        if kind in ("Const", "Constant"):
            _check_constant(path, layer, weights)


def _check_elements(path: Path, root: ElementTree.Element) -> None:
    """Refuse elements that OpenVINO would see in another way, or could not nest."""
    waiting = [(root, 0)]
    while waiting:
        element, depth = waiting.pop()
        # OpenVINO's parser knows no namespaces: what has another name here could be a layer there.
        if "{" in element.tag or any("{" in key for key in element.attrib):
            raise BundleError(f"{path.name}: it declares namespaces, which an IR never does", code=Refusal.IR)
        if depth > MAX_DEPTH:
            raise BundleError(f"{path.name}: its elements are nested more than {MAX_DEPTH} deep", code=Refusal.IR)
        waiting += ((inner, depth + 1) for inner in element)


def _check_constant(path: Path, layer: ElementTree.Element, weights: int) -> None:
    data = layer.find("data")
    written = ["" if data is None else data.get(key, "") for key in ("offset", "size")]
    if not all(_SIZE.fullmatch(number) for number in written):
        raise BundleError(f"{path.name}: constant {layer.get('name')!r} does not say where it lies", code=Refusal.IR)
    if sum(map(int, written)) > weights:
        raise BundleError(
            f"{path.name}: constant {layer.get('name')!r} lies beyond the end of the weights", code=Refusal.IR
        )
