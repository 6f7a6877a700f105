"""Reads a bundle's manifest strictly: everything in it is checked, by hand and by key.

Whatever does not fit is a `BundleError` that names the key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from mtlc.errors import BundleError
from mtlc.runtime.bundle.limits import MAX_DECODERS, MAX_ELEMENTS, MAX_ENCODERS, MAX_NAME, MAX_RANK
from mtlc.runtime.bundle.manifest import (
    COLORS,
    DTYPES,
    ENGINE_MODULES,
    KINDS,
    LAYOUTS,
    PRECISIONS,
    SCHEMA,
    WEIGHT_RANGES,
    Configuration,
    DecoderPoint,
    Dimension,
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

T = TypeVar("T")


def read_manifest(data: bytes) -> Manifest:
    """Parse and check a ``manifest.json``. Raises `BundleError` naming the key that does not fit."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json is damaged: {(str(error) or 'too deep').splitlines()[0]}") from None
    root = _mapping(value, "the manifest")
    schema = root.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise BundleError(
            f"manifest.json: schema {schema!r}, this mtlc reads {SCHEMA}: export the bundle again or update mtlc"
        )
    manifest = Manifest(
        tasks={_identifier(name, "tasks"): _task(name, raw) for name, raw in _get(root, "tasks", _mapping).items()},
        inputs=_get(root, "inputs", lambda raw, key: _list(raw, key, _input)),
        programs=_get(root, "programs", lambda raw, key: _list(raw, key, _program)),
        files={_file_name(path, "files"): _file(path, raw) for path, raw in _get(root, "files", _mapping).items()},
        preprocessing=_optional(root, "preprocessing", preprocessing),
        configurations=_get(root, "configurations", lambda raw, key: _list(raw, key, _configuration)),
        device=_optional(root, "device", _text),
        provenance=_get(root, "provenance", _anything),
        widths=_optional(root, "widths", _widths),
        dimensions=_by_name(_sizes, _table(root, "dimensions"), "dimensions"),
        engines=_by_name(_engine, _table(root, "engines"), "engines"),
        quantization=_optional(root, "quantization", _quantization),
        openvino=_optional(root, "openvino", _openvino),
    )
    check_manifest(manifest)
    return manifest


def preprocessing(raw: Any, key: str = "preprocessing") -> Preprocessing:
    """Read the preprocessing of a manifest, or of a data set at export: keys that are absent take their defaults."""
    values = _mapping(raw, key)
    for name in values:
        if name not in ("scale", "mean", "std", "color", "layout"):
            raise BundleError(f"manifest.json: {key}.{name} is unknown; it has scale, mean, std, color and layout")
    color = _choice(values.get("color", "RGB"), f"{key}.color", COLORS)
    channels = 1 if color == "L" else 3
    mean = _numbers(values.get("mean", [0.0]), f"{key}.mean", channels)
    std = _numbers(values.get("std", [1.0]), f"{key}.std", channels)
    if any(value <= 0 for value in std):
        raise BundleError(f"manifest.json: {key}.std must be above zero")
    scale = _number(values.get("scale", 1.0), f"{key}.scale")
    return Preprocessing(scale, mean, std, color, _choice(values.get("layout", "NCHW"), f"{key}.layout", LAYOUTS))


def _task(name: str, raw: Any) -> TaskInfo:
    key = f"tasks.{name}"
    values = _mapping(raw, key)
    classes = values.get("classes")
    return TaskInfo(
        name,
        _get(values, "output", _text, key),
        _get(values, "shape", _shape, key),
        _get(values, "dtype", lambda v, k: _choice(v, k, DTYPES), key),
        _get(values, "kind", lambda v, k: _choice(v, k, KINDS), key),
        _get(values, "metric", _text, key),
        _get(values, "unit", _text, key),
        None if classes is None else _list(classes, f"{key}.classes", _text),
    )


def _input(raw: Any, key: str) -> TensorInfo:
    values = _mapping(raw, key)
    return TensorInfo(
        _get(values, "name", _text, key),
        _get(values, "shape", _shape, key),
        _get(values, "dtype", lambda v, k: _choice(v, k, DTYPES), key),
    )


def _program(raw: Any, key: str) -> ProgramInfo:
    values = _mapping(raw, key)
    return ProgramInfo(
        _get(values, "name", _text, key),
        _get(values, "file", _file_name, key),
        _get(values, "inputs", _texts, key),
        _get(values, "outputs", _texts, key),
        _get(values, "tasks", _texts, key),
        _by_name(_whole, _table(values, "constants", key), f"{key}.constants"),
        _by_name(_text, _table(values, "names", key), f"{key}.names"),
        None if values.get("experts") is None else _experts(values["experts"], f"{key}.experts"),
        None if values.get("macs") is None else _whole(values["macs"], f"{key}.macs"),
    )


def _experts(raw: Any, key: str) -> ExpertLayer:
    values = _mapping(raw, key)
    numbers = (_get(values, name, _whole, key) for name in ("offset", "stride", "count", "width", "hidden"))
    layer = ExpertLayer(_get(values, "file", _file_name, key), *numbers)
    if min(layer.count, layer.width, layer.hidden) < 1 or layer.stride < layer.bytes:
        raise BundleError(f"manifest.json: {key}: {layer.count} experts of {layer.bytes} bytes do not fit their stride")
    return layer


def _engine(raw: Any, key: str) -> EngineInfo:
    values = _mapping(raw, key)
    capabilities = _get(values, "compute_capabilities", _texts, key)
    if not capabilities or not all(re.fullmatch(r"\d{1,2}\.\d", capability) for capability in capabilities):
        raise BundleError(f"manifest.json: {key}.compute_capabilities must be one or more such as '8.6'")
    return EngineInfo(
        _get(values, "file", _file_name, key),
        _get(values, "precision", lambda v, k: _choice(v, k, PRECISIONS), key),
        _get(values, "module", lambda v, k: _choice(v, k, ENGINE_MODULES), key),
        _get(values, "version", _text, key),
        None if values.get("gpu") is None else _text(values["gpu"], f"{key}.gpu"),
        capabilities,
        _by_name(_sizes, _table(values, "dimensions", key), f"{key}.dimensions"),
    )


def _sizes(raw: Any, key: str) -> Sizes:
    sizes = _list(raw, key, _whole)
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise BundleError(
            f"manifest.json: {key} must be three rising sizes, smallest, usual and largest, it is {raw!r}"
        )
    return Sizes(*sizes)


def _configuration(raw: Any, key: str) -> Configuration:
    values = _mapping(raw, key)
    encoder = values.get("encoder")
    if (encoder is None) != (values.get("decoders") is None):
        raise BundleError(f"manifest.json: {key} has one of encoder and decoders: it needs both or neither")
    return Configuration(
        _get(values, "name", _text, key),
        _get(values, "programs", _texts, key),
        None if encoder is None else _text(encoder, f"{key}.encoder"),
        _by_name(_number, _table(values, "decoders", key), f"{key}.decoders"),
    )


def _widths(raw: Any, key: str) -> Widths:
    values = _mapping(raw, key)
    return Widths(
        _get(values, "widths", _rising, key),
        _get(values, "stages", _texts, key),
        _get(values, "reference", lambda v, k: _by_name(_number, v, k), key),
        _get(values, "higher_is_better", lambda v, k: _by_name(_truth, v, k), key),
        _get(values, "encoders", lambda v, k: _list(v, k, _encoder, MAX_ENCODERS), key),
    )


def _quantization(raw: Any, key: str) -> Quantization:
    values = _mapping(raw, key)
    return Quantization(
        _get(values, "precision", lambda v, k: _choice(v, k, ("int8",)), key),
        _get(values, "target", _text, key),
        _get(values, "weights", lambda v, k: _choice(v, k, WEIGHT_RANGES), key),
    )


def _openvino(raw: Any, key: str) -> OpenVinoInfo:
    values = _mapping(raw, key)
    return OpenVinoInfo(
        _by_name(_file_name, _table(values, "files", key), f"{key}.files"),
        _get(values, "weights", _file_name, key),
        _get(values, "shared_bytes", _whole, key),
        _get(values, "half", _truth, key),
        _get(values, "version", _text, key),
    )


def _encoder(raw: Any, key: str) -> EncoderPoint:
    values = _mapping(raw, key)
    return EncoderPoint(
        _get(values, "name", _text, key),
        _get(values, "widths", lambda v, k: _list(v, k, _width), key),
        _get(values, "programs", _texts, key),
        _get(values, "decoders", lambda v, k: _by_name(_decoders, v, k), key),
    )


def _decoders(raw: Any, key: str) -> tuple[DecoderPoint, ...]:
    points = _list(raw, key, _decoder, MAX_DECODERS)
    _check_rising([point.width for point in points], key)
    return points


def _decoder(raw: Any, key: str) -> DecoderPoint:
    values = _mapping(raw, key)
    return DecoderPoint(
        _get(values, "width", _width, key), _get(values, "programs", _texts, key), _get(values, "metric", _number, key)
    )


def _rising(raw: Any, key: str) -> tuple[float, ...]:
    widths = _list(raw, key, _width)
    _check_rising(widths, key)
    return widths


def _check_rising(widths: Sequence[float], key: str) -> None:
    if not widths or any(narrow >= wide for narrow, wide in pairwise(widths)):
        raise BundleError(f"manifest.json: {key}: must be one or more widths, from narrow to wide, each once")


def _width(raw: Any, key: str) -> float:
    width = _number(raw, key)
    if not 0 < width <= 1:
        raise BundleError(f"manifest.json: {key} must be above 0 and at most 1, it is {raw!r}")
    return width


def _file(path: str, raw: Any) -> FileInfo:
    key = f"files.{path}"
    values = _mapping(raw, key)
    sha256, size = _get(values, "sha256", _text, key), values.get("bytes")
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise BundleError(f"manifest.json: {key}.sha256 is not a SHA-256 in lower-case hexadecimal")
    if type(size) is not int or size < 0:
        raise BundleError(f"manifest.json: {key}.bytes must be a whole number, zero or more")
    return FileInfo(sha256, size)


def _file_name(raw: Any, key: str) -> str:
    """A payload lies in the bundle's top folder: a name with a path in it could lead elsewhere."""
    name = _text(raw, key)
    if name in ("", ".", "..", "manifest.json") or any(c in name for c in '/\\:\0"') or not name.isprintable():
        raise BundleError(f"manifest.json: {key}: {name!r} is not a plain file name inside the bundle")
    return name


def _get(values: Mapping[str, Any], name: str, read: Callable[[Any, str], T], inside: str = "") -> T:
    key = f"{inside}.{name}" if inside else name
    if name not in values:
        raise BundleError(f"manifest.json: {key} is missing")
    return read(values[name], key)


def _table(values: Mapping[str, Any], name: str, inside: str = "") -> dict[str, Any]:
    return {} if values.get(name) is None else _mapping(values[name], f"{inside}.{name}" if inside else name)


def _whole(raw: Any, key: str) -> int:
    if type(raw) is not int or not 0 <= raw < 2**62:
        raise BundleError(f"manifest.json: {key} must be a whole number, zero or more, it is {raw!r}")
    return raw


def _optional(values: Mapping[str, Any], name: str, read: Callable[[Any, str], T]) -> T | None:
    return None if values.get(name) is None else read(values[name], name)


def _mapping(raw: Any, key: str) -> dict[str, Any]:
    values = _anything(raw, key)
    for name in values:
        _check_length(name, key)
    return values


def _anything(raw: Any, key: str) -> dict[str, Any]:
    """A table that is not looked into."""
    if not isinstance(raw, Mapping):
        raise BundleError(f"manifest.json: {key} must be a table, it is {_type(raw)}")
    return dict(raw)


def _check_length(text: str, key: str) -> None:
    """Names are in the key of all that is inside them: long ones would be copied again and again."""
    if len(text) > MAX_NAME:
        raise BundleError(
            f"manifest.json: {key}: {text[:20]!r}… has {len(text)} characters, more than the {MAX_NAME} of a name"
        )


def _list(raw: Any, key: str, read: Callable[[Any, str], T], most: int | None = None) -> tuple[T, ...]:
    if not isinstance(raw, list | tuple):
        raise BundleError(f"manifest.json: {key} must be a list, it is {_type(raw)}")
    if most is not None and len(raw) > most:
        raise BundleError(f"manifest.json: {key} has {len(raw)} entries, more than {most}")
    return tuple(read(item, f"{key}[{index}]") for index, item in enumerate(raw))


def _by_name(read: Callable[[Any, str], T], raw: Any, key: str) -> dict[str, T]:
    return {name: read(value, f"{key}.{name}") for name, value in _mapping(raw, key).items()}


def _texts(raw: Any, key: str) -> tuple[str, ...]:
    return _list(raw, key, _text)


def _truth(raw: Any, key: str) -> bool:
    if not isinstance(raw, bool):
        raise BundleError(f"manifest.json: {key} must be true or false, it is {raw!r}")
    return raw


def _text(raw: Any, key: str) -> str:
    if not isinstance(raw, str):
        raise BundleError(f"manifest.json: {key} must be text, it is {_type(raw)}")
    _check_length(raw, key)
    return raw


def _identifier(raw: str, key: str) -> str:
    if not raw.isidentifier():
        raise BundleError(f"manifest.json: {key}: {raw!r} cannot be a task's name")
    return raw


def _choice(raw: Any, key: str, known: tuple[str, ...]) -> str:
    if raw not in known:
        raise BundleError(f"manifest.json: {key} = {raw!r}: must be one of {', '.join(known)}")
    return str(raw)


def _number(raw: Any, key: str) -> float:
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        try:
            number = float(raw)
        except OverflowError:  # a whole number beyond what a float holds
            number = math.inf
        if math.isfinite(number):
            return number
    raise BundleError(f"manifest.json: {key} must be a finite number, it is {raw!r}")


def _numbers(raw: Any, key: str, channels: int) -> tuple[float, ...]:
    values = _list(raw if isinstance(raw, list | tuple) else [raw], key, _number)
    if len(values) not in (1, channels):
        raise BundleError(
            f"manifest.json: {key} has {len(values)} values: give one, or one for each of {channels} channels"
        )
    return values


def _shape(raw: Any, key: str) -> tuple[Dimension, ...]:
    def dimension(value: Any, where: str) -> Dimension:
        if isinstance(value, str) and value:
            return _text(value, where)
        if type(value) is not int or value < 0:
            raise BundleError(f"manifest.json: {where} must be a size or a name, it is {value!r}")
        return value

    shape = _list(raw, key, dimension)
    if len(shape) > MAX_RANK:
        raise BundleError(f"manifest.json: {key} has {len(shape)} dimensions, more than {MAX_RANK}")
    if math.prod(size for size in shape if isinstance(size, int)) > MAX_ELEMENTS:
        raise BundleError(f"manifest.json: {key} = {list(shape)}: more than {MAX_ELEMENTS} elements")
    return shape


def _type(raw: Any) -> str:
    return "nothing" if raw is None else f"a {type(raw).__name__}"


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values
