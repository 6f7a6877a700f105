"""Reads and writes device files: TOML with a device's figures. Reading gives one clear line per mistake.

Every figure is a table with ``value``, ``unit``, ``source`` and ``confidence``, and may have a ``note`` and a
``spread``. Where a table stands says what it is: ``[memory.bandwidth]``, ``[peak.int8.dense]``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlc.errors import UserError, nearest
from mtlc.files import atomic_file
from mtlc.hw.devices.device import CONFIDENCE, KINDS, PRECISIONS, STRUCTURES, Device, Figure
from mtlc.hw.devices.physical_units import (
    BANDWIDTH,
    CLOCK,
    COUNT,
    FLOAT_RATE,
    INTEGER_RATE,
    MEMORY,
    ON_CHIP,
    POWER,
    TIME,
    Dimension,
)
from mtlc.toml_files import parse_toml, read_text

SCHEMA = 1
_PEAK = {
    precision: dict.fromkeys(STRUCTURES, INTEGER_RATE if precision.startswith("int") else FLOAT_RATE)
    for precision in PRECISIONS
}
_ONE_THREAD_COUNT = {"peak": _PEAK, "bandwidth": BANDWIDTH}
_NUMBER = "N"
# Sections of a file; a Dimension is where a figure stands, and under _NUMBER any whole number above 0 may.
_FIGURES: dict[str, Any] = {
    "cores": COUNT,
    "engines": COUNT,
    "clock": CLOCK,
    "peak": _PEAK,
    "memory": {"bandwidth": BANDWIDTH, "capacity": MEMORY, "on_chip": ON_CHIP},
    "power": {"min": POWER, "typical": POWER, "max": POWER},
    "fpga": dict.fromkeys(("lut", "ff", "dsp", "bram36", "uram"), COUNT),
    "launch_floor": TIME,
    "threads": {_NUMBER: _ONE_THREAD_COUNT},
}
_SCALARS = ("schema", "title", "kind", "notes", "local", "backend", "roofline")
_MEASURED_ON = "measured_on"
_FIGURE_KEYS = ("value", "unit", "source", "confidence", "note", "spread")
_REQUIRED = {
    "value": "the number",
    "unit": "the unit of the value",
    "source": "the document or page that the figure is from",
    "confidence": f"one of {', '.join(CONFIDENCE)}",
}
_LARGEST = 10**30  # Python's integers have no bound, its floats do


def read_device_file(path: Path) -> Device:
    """The device in the file at `path`, named after it. Raises `UserError`, one line with the file and the key."""
    text = read_text(path, "no such device file")
    return parse_device(path.name.removesuffix(".toml"), text, str(path))


def parse_device(name: str, text: str, where: str) -> Device:
    """The device that `text`, the content of a device file, describes. `where` is what messages call the file.

    Raises `UserError`, one line with the file and the key.
    """
    content = parse_toml(text, where)
    try:
        return _device(name, content, where)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def device_text(device: Device) -> str:
    """The content of a file that `parse_device` reads the same device from."""
    lines = [f"schema = {SCHEMA}"]
    for key in ("title", "kind", "notes", "local", "backend", "roofline"):
        if value := getattr(device, key):
            lines.append(f"{key} = {_toml(value)}")
    if device.measured_on:
        lines += ["", f"[{_MEASURED_ON}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in device.measured_on.items() if value is not None]
    for key, figure in device.figures.items():
        lines += ["", f"[{key}]"]
        told = ((name, getattr(figure, name)) for name in _FIGURE_KEYS)
        lines += [f"{name} = {_toml(value)}" for name, value in told if value is not None]
    return "\n".join(lines) + "\n"


def write_device_file(device: Device, path: Path) -> None:
    """Write `device` to `path`, whole or not at all. Raises `UserError` if it cannot be written or read back."""
    text = device_text(device)
    parse_device(device.name, text, str(path))
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _toml(value: Any) -> str:
    """A TOML value. What JSON escapes in strings TOML reads alike; DEL is the one that only TOML wants escaped."""
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _device(name: str, content: Mapping[str, Any], where: str) -> Device:
    known = (*_SCALARS, _MEASURED_ON, *_FIGURES)
    for key in content:
        if key not in known:
            raise UserError(f"{key}: unknown key{nearest(key, known)}")
    if content.get("schema", SCHEMA) != SCHEMA or isinstance(content.get("schema"), bool):
        raise UserError(f"schema = {_shown(content['schema'])}: this mtlc reads schema {SCHEMA}")
    title = _text(content, "title", "what to call the device")
    kind = _text(content, "kind", f"one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise UserError(f"kind = {kind!r}: must be one of {', '.join(KINDS)}{_hint(kind, KINDS)}")
    local = content.get("local", False)
    if not isinstance(local, bool):
        raise UserError(f"local = {_shown(local)}: must be true or false")
    backend = _text(content, "backend", "") if "backend" in content else None
    if local and backend is None:
        raise UserError('backend: missing; a local device is measured through one: backend = "onnxruntime"')
    if backend is not None and not local:
        raise UserError("backend: belongs to a local device; leave it out")
    figures: dict[str, Figure] = {}
    _collect({key: content[key] for key in content if key in _FIGURES}, _FIGURES, (), figures)
    _consistent(figures, kind)
    return Device(
        name,
        title,
        local,
        backend,
        kind,
        _text(content, "notes", "") if "notes" in content else "",
        figures,
        _measured_on(content.get(_MEASURED_ON, {})),
        where,
        _text(content, "roofline", "") if "roofline" in content else None,
    )


def _collect(
    table: Mapping[str, Any], schema: Mapping[str, Any], path: tuple[str, ...], figures: dict[str, Figure]
) -> None:
    """Add the figures under `path` of the file to `figures`."""
    for key, value in table.items():
        place = (*path, key)
        expected = schema.get(key)
        if _NUMBER in schema:
            if not (key.isascii() and key.isdigit() and key[0] != "0"):
                raise UserError(f"[{'.'.join(place)}]: {key!r} is no number of threads: write [threads.4]")
            expected = schema[_NUMBER]
        if expected is None:
            section = f"[{'.'.join(path)}] "
            if key in _FIGURE_KEYS:
                below = " or ".join(f"[{'.'.join(path)}.{name}]" for name in schema)
                raise UserError(f"{section}{key}: is no figure by itself; write {below}")
            raise UserError(f"{section}{key}: unknown key{nearest(key, schema)}")
        if not isinstance(value, dict):
            example = '{value = …, unit = "…", source = "…", confidence = "…"}'
            wanted = f"a figure is a table: {key} = {example}" if isinstance(expected, Dimension) else "must be a table"
            raise UserError(f"{'.'.join(place)} = {_shown(value)}: {wanted}")
        if isinstance(expected, Dimension):
            figures[".".join(place)] = _figure(value, expected, f"[{'.'.join(place)}]")
        else:
            _collect(value, expected, place, figures)


def _figure(table: Mapping[str, Any], dimension: Dimension, place: str) -> Figure:
    for key in table:
        if key not in _FIGURE_KEYS:
            raise UserError(f"{place} {key}: unknown key{nearest(key, _FIGURE_KEYS)}")
    for key, meaning in _REQUIRED.items():
        if key not in table:
            example = f" ({', '.join(dimension.units)})" if key == "unit" else ""
            raise UserError(f"{place} {key}: missing; give {meaning}{example}")
    texts = {key: _text(table, key, "", place) for key in ("unit", "source", "confidence", "note") if key in table}
    if texts["confidence"] not in CONFIDENCE:
        hint = _hint(texts["confidence"], CONFIDENCE)
        raise UserError(f"{place} confidence = {texts['confidence']!r}: must be {_REQUIRED['confidence']}{hint}")
    value, spread = table["value"], table.get("spread")
    for key, number in (("value", value), ("spread", spread)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise UserError(f"{place} {key} = {_shown(number)}: must be a number")
        if isinstance(number, int) and abs(number) > _LARGEST:
            raise UserError(f"{place} {key}: a number of {len(str(number))} digits is not plausible")
    try:
        dimension.to_base(1, texts["unit"])
    except UserError as error:
        raise UserError(f"{place} unit: {error}") from None
    try:
        dimension.check(value, texts["unit"])
    except UserError as error:
        raise UserError(f"{place} value: {error}") from None
    if spread is not None and not 0 <= spread < 1e6:
        raise UserError(f"{place} spread = {spread!r}: must be (p90 − p10) / median, 0 or more")
    return Figure(value, texts["unit"], texts["source"], texts["confidence"], texts.get("note"), spread)


def _consistent(figures: Mapping[str, Figure], kind: str) -> None:
    """Refuse figures that contradict each other."""
    for key in figures:
        if key.startswith("fpga.") and kind != "fpga":
            raise UserError(f"[{key}]: belongs to a device of kind 'fpga', and this one is of kind {kind!r}")
    ordered = [("power.min", "power.typical"), ("power.typical", "power.max"), ("power.min", "power.max")]
    ordered += [(f"peak.{precision}.dense", f"peak.{precision}.sparse") for precision in PRECISIONS]
    for low, high in ordered:
        if low in figures and high in figures and figures[low].base > figures[high].base:
            raise UserError(f"[{low}] value: is above that of [{high}]; are they swapped?")


def _measured_on(table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UserError(f"{_MEASURED_ON} = {_shown(table)}: must be a table")
    for key, value in table.items():
        if not isinstance(value, str | int | float):
            raise UserError(f"[{_MEASURED_ON}] {key}: must be a text or a number")
    return dict(table)


def _text(table: Mapping[str, Any], key: str, meaning: str, place: str = "") -> str:
    """A line of text in `table`. What does not print could do anything to the terminal that it is shown on."""
    name = f"{place} {key}".strip()
    if key not in table:
        raise UserError(f"{name}: missing; give {meaning}")
    value = table[key]
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise UserError(f"{name} = {_shown(value)}: must be one line of text")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(word: str, known: Any) -> str:
    """`nearest`, where the message has the known words already."""
    hint = nearest(word, known)
    return hint if "did you mean" in hint else ""
