"""Reads a bundle's manifest strictly: everything in it is checked, by hand and by key.

Whatever does not fit is a `BundleError` that names the key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mtlc.detection import Detection
from mtlc.errors import BundleError, UserError
from mtlc.runtime.bundle import manifest_values as read
from mtlc.runtime.bundle.limits import MAX_DECODERS, MAX_ENCODERS
from mtlc.runtime.bundle.manifest import (
    COLORS,
    DTYPES,
    ENGINE_MODULES,
    KINDS,
    LAYOUTS,
    PRECISIONS,
    RESIZES,
    SCHEMA,
    WEIGHT_RANGES,
    Configuration,
    DecoderPoint,
    EncoderPoint,
    EngineInfo,
    ExpertLayer,
    FileInfo,
    Manifest,
    OpenVinoInfo,
    Preprocessing,
    ProgramInfo,
    Quantization,
    Sizes,
    TaskInfo,
    TensorInfo,
    Widths,
)
from mtlc.runtime.bundle.manifest_check import check_manifest
from mtlc.runtime.bundle.refusals import Refusal
from mtlc.runtime.bundle.strict_json import parse


def read_manifest(data: bytes) -> Manifest:
    """Parse and check a ``manifest.json``. Raises `BundleError` naming the key that does not fit."""
    root = read.mapping(parse(data), "the manifest")
    schema = root.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise BundleError(
            f"manifest.json: schema {schema!r}, this mtlc reads {SCHEMA}: export the bundle again or update mtlc",
            code=Refusal.MANIFEST_SCHEMA,
        )
    manifest = Manifest(
        tasks={
            read.identifier(name, "tasks"): _task(name, raw)
            for name, raw in read.get(root, "tasks", read.mapping).items()
        },
        inputs=read.get(root, "inputs", lambda raw, key: read.entries(raw, key, _input)),
        programs=read.get(root, "programs", lambda raw, key: read.entries(raw, key, _program)),
        files={
            _file_name(path, "files"): _file(path, raw) for path, raw in read.get(root, "files", read.mapping).items()
        },
        preprocessing=read.optional(root, "preprocessing", preprocessing),
        configurations=read.get(root, "configurations", lambda raw, key: read.entries(raw, key, _configuration)),
        device=read.optional(root, "device", read.text),
        provenance=read.get(root, "provenance", read.anything),
        widths=read.optional(root, "widths", _widths),
        dimensions=read.by_name(_sizes, read.table(root, "dimensions"), "dimensions"),
        engines=read.by_name(_engine, read.table(root, "engines"), "engines"),
        quantization=read.optional(root, "quantization", _quantization),
        openvino=read.optional(root, "openvino", _openvino),
    )
    check_manifest(manifest)
    return manifest


_PREPROCESSING = ("scale", "mean", "std", "color", "layout", "resize", "fill")


def preprocessing(raw: Any, key: str = "preprocessing") -> Preprocessing:
    """Read the preprocessing of a manifest, or of a data set at export: keys that are absent take their defaults."""
    values = read.mapping(raw, key)
    for name in values:
        if name not in _PREPROCESSING:
            raise BundleError(
                f"manifest.json: {key}.{name} is unknown; it has {', '.join(_PREPROCESSING)}", code=Refusal.KEY_UNKNOWN
            )
    color = read.choice(values.get("color", "RGB"), f"{key}.color", COLORS)
    channels = 1 if color == "L" else 3
    mean = read.numbers(values.get("mean", [0.0]), f"{key}.mean", channels)
    std = read.numbers(values.get("std", [1.0]), f"{key}.std", channels)
    if any(value <= 0 for value in std):
        raise BundleError(f"manifest.json: {key}.std must be above zero", code=Refusal.KEY_VALUE)
    scale = read.number(values.get("scale", 1.0), f"{key}.scale")
    fill = read.number(values.get("fill", Preprocessing.fill), f"{key}.fill")
    if not 0 <= fill <= 255:
        raise BundleError(
            f"manifest.json: {key}.fill = {fill:g}: must be the value of a pixel, from 0 to 255", code=Refusal.KEY_VALUE
        )
    layout = read.choice(values.get("layout", "NCHW"), f"{key}.layout", LAYOUTS)
    resize = read.choice(values.get("resize", "stretch"), f"{key}.resize", RESIZES)
    return Preprocessing(scale, mean, std, color, layout, resize, fill)


def _task(name: str, raw: Any) -> TaskInfo:
    key = f"tasks.{name}"
    values = read.mapping(raw, key)
    classes = values.get("classes")
    return TaskInfo(
        name,
        read.get(values, "output", read.text, key),
        read.get(values, "shape", read.shape, key),
        read.get(values, "dtype", lambda v, k: read.choice(v, k, DTYPES), key),
        read.get(values, "kind", lambda v, k: read.choice(v, k, KINDS), key),
        read.get(values, "metric", read.text, key),
        read.get(values, "unit", read.text, key),
        None if classes is None else read.entries(classes, f"{key}.classes", read.text),
        None if values.get("postprocess") is None else _postprocess(values["postprocess"], f"{key}.postprocess"),
        None if values.get("decoder") is None else _file_name(values["decoder"], f"{key}.decoder"),
    )


def _postprocess(raw: Any, key: str) -> Detection:
    values = read.mapping(raw, key)
    try:
        return Detection.parse(values)
    except UserError as error:
        raise BundleError(
            f"manifest.json: {key.removesuffix('.postprocess')}.{error}", code=Refusal.POSTPROCESS
        ) from None


def _input(raw: Any, key: str) -> TensorInfo:
    values = read.mapping(raw, key)
    return TensorInfo(
        read.get(values, "name", read.text, key),
        read.get(values, "shape", read.shape, key),
        read.get(values, "dtype", lambda v, k: read.choice(v, k, DTYPES), key),
    )


def _program(raw: Any, key: str) -> ProgramInfo:
    values = read.mapping(raw, key)
    return ProgramInfo(
        read.get(values, "name", read.text, key),
        read.get(values, "file", _file_name, key),
        read.get(values, "inputs", read.texts, key),
        read.get(values, "outputs", read.texts, key),
        read.get(values, "tasks", read.texts, key),
        read.by_name(read.whole, read.table(values, "constants", key), f"{key}.constants"),
        read.by_name(read.text, read.table(values, "names", key), f"{key}.names"),
        None if values.get("experts") is None else _experts(values["experts"], f"{key}.experts"),
        None if values.get("macs") is None else read.whole(values["macs"], f"{key}.macs"),
    )


def _experts(raw: Any, key: str) -> ExpertLayer:
    values = read.mapping(raw, key)
    numbers = (read.get(values, name, read.whole, key) for name in ("offset", "stride", "count", "width", "hidden"))
    layer = ExpertLayer(read.get(values, "file", _file_name, key), *numbers)
    if min(layer.count, layer.width, layer.hidden) < 1 or layer.stride < layer.bytes:
        raise BundleError(
            f"manifest.json: {key}: {layer.count} experts of {layer.bytes} bytes do not fit their stride",
            code=Refusal.EXPERTS,
        )
    return layer


def _engine(raw: Any, key: str) -> EngineInfo:
    values = read.mapping(raw, key)
    capabilities = read.get(values, "compute_capabilities", read.texts, key)
    if not capabilities or not all(re.fullmatch(r"\d{1,2}\.\d", capability) for capability in capabilities):
        raise BundleError(
            f"manifest.json: {key}.compute_capabilities must be one or more such as '8.6'", code=Refusal.KEY_VALUE
        )
    return EngineInfo(
        read.get(values, "file", _file_name, key),
        read.get(values, "precision", lambda v, k: read.choice(v, k, PRECISIONS), key),
        read.get(values, "module", lambda v, k: read.choice(v, k, ENGINE_MODULES), key),
        read.get(values, "version", read.text, key),
        None if values.get("gpu") is None else read.text(values["gpu"], f"{key}.gpu"),
        capabilities,
        read.by_name(_sizes, read.table(values, "dimensions", key), f"{key}.dimensions"),
    )


def _sizes(raw: Any, key: str) -> Sizes:
    sizes = read.entries(raw, key, read.whole)
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise BundleError(
            f"manifest.json: {key} must be three rising sizes, smallest, usual and largest, it is {raw!r}",
            code=Refusal.KEY_VALUE,
        )
    return Sizes(*sizes)


def _configuration(raw: Any, key: str) -> Configuration:
    values = read.mapping(raw, key)
    encoder = values.get("encoder")
    if (encoder is None) != (values.get("decoders") is None):
        raise BundleError(
            f"manifest.json: {key} has one of encoder and decoders: it needs both or neither", code=Refusal.KEY_MISSING
        )
    return Configuration(
        read.get(values, "name", read.text, key),
        read.get(values, "programs", read.texts, key),
        None if encoder is None else read.text(encoder, f"{key}.encoder"),
        read.by_name(read.number, read.table(values, "decoders", key), f"{key}.decoders"),
    )


def _widths(raw: Any, key: str) -> Widths:
    values = read.mapping(raw, key)
    return Widths(
        read.get(values, "widths", _rising, key),
        read.get(values, "stages", read.texts, key),
        read.get(values, "reference", lambda v, k: read.by_name(read.number, v, k), key),
        read.get(values, "higher_is_better", lambda v, k: read.by_name(read.truth, v, k), key),
        read.get(values, "encoders", lambda v, k: read.entries(v, k, _encoder, MAX_ENCODERS), key),
    )


def _quantization(raw: Any, key: str) -> Quantization:
    values = read.mapping(raw, key)
    return Quantization(
        read.get(values, "precision", lambda v, k: read.choice(v, k, ("int8",)), key),
        read.get(values, "target", read.text, key),
        read.get(values, "weights", lambda v, k: read.choice(v, k, WEIGHT_RANGES), key),
    )


def _openvino(raw: Any, key: str) -> OpenVinoInfo:
    values = read.mapping(raw, key)
    return OpenVinoInfo(
        read.by_name(_file_name, read.table(values, "files", key), f"{key}.files"),
        read.get(values, "weights", _file_name, key),
        read.get(values, "shared_bytes", read.whole, key),
        read.get(values, "half", read.truth, key),
        read.get(values, "version", read.text, key),
    )


def _encoder(raw: Any, key: str) -> EncoderPoint:
    values = read.mapping(raw, key)
    return EncoderPoint(
        read.get(values, "name", read.text, key),
        read.get(values, "widths", lambda v, k: read.entries(v, k, _width), key),
        read.get(values, "programs", read.texts, key),
        read.get(values, "decoders", lambda v, k: read.by_name(_decoders, v, k), key),
    )


def _decoders(raw: Any, key: str) -> tuple[DecoderPoint, ...]:
    points = read.entries(raw, key, _decoder, MAX_DECODERS)
    _check_rising([point.width for point in points], key)
    return points


def _decoder(raw: Any, key: str) -> DecoderPoint:
    values = read.mapping(raw, key)
    return DecoderPoint(
        read.get(values, "width", _width, key),
        read.get(values, "programs", read.texts, key),
        read.get(values, "metric", read.number, key),
    )


def _rising(raw: Any, key: str) -> tuple[float, ...]:
    widths = read.entries(raw, key, _width)
    _check_rising(widths, key)
    return widths


def _check_rising(widths: Sequence[float], key: str) -> None:
    if not widths or any(narrow >= wide for narrow, wide in pairwise(widths)):
        raise BundleError(
            f"manifest.json: {key}: must be one or more widths, from narrow to wide, each once", code=Refusal.KEY_VALUE
        )


def _width(raw: Any, key: str) -> float:
    width = read.number(raw, key)
    if not 0 < width <= 1:
        raise BundleError(f"manifest.json: {key} must be above 0 and at most 1, it is {raw!r}", code=Refusal.KEY_VALUE)
    return width


def _file(path: str, raw: Any) -> FileInfo:
    key = f"files.{path}"
    values = read.mapping(raw, key)
    sha256, size = read.get(values, "sha256", read.text, key), values.get("bytes")
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise BundleError(
            f"manifest.json: {key}.sha256 is not a SHA-256 in lower-case hexadecimal", code=Refusal.KEY_VALUE
        )
    if type(size) is not int or size < 0:
        raise BundleError(f"manifest.json: {key}.bytes must be a whole number, zero or more", code=Refusal.KEY_VALUE)
    return FileInfo(sha256, size)


def _file_name(raw: Any, key: str) -> str:
    """A payload lies in the bundle's top folder: a name with a path in it could lead elsewhere."""
    name = read.text(raw, key)
    if name in ("", ".", "..", "manifest.json") or any(c in name for c in '/\\:\0"') or not name.isprintable():
        raise BundleError(
            f"manifest.json: {key}: {name!r} is not a plain file name inside the bundle", code=Refusal.FILE_NAME
        )
    return name
