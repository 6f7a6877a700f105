"""Reads and writes device files: TOML with a device's figures. Reading gives one clear line per mistake.

Every figure is a table with ``value``, ``unit``, ``source`` and ``confidence``, and may have a ``note`` and a
``spread``. Where a table stands says what it is: ``[memory.bandwidth]``, ``[peak.int8.dense]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from mtlc.errors import UserError, nearest
from mtlc.files import atomic_file
from mtlc.hw.boards.reach import FOLDER, Reach, check_folder, check_place
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
from mtlc.toml_files import parse_toml, read_text, toml_text

SCHEMA = 1
_PEAK = {
    precision: dict.fromkeys(STRUCTURES, INTEGER_RATE if precision.startswith("int") else FLOAT_RATE)
    for precision in PRECISIONS
}
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
    "threads": {_NUMBER: {"peak": _PEAK, "bandwidth": BANDWIDTH}},
}
_HEADER = ("title", "kind", "notes", "local", "backend", "roofline")
_MEASURED_ON = "measured_on"
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
        table = _DeviceTable.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_described(error)}") from None
    header = {key: value for key in _HEADER if (value := getattr(table, key)) is not None}
    figures = dict(_figures({key: content[key] for key in content if key in _FIGURES}))
    reach = None if table.reach is None else Reach(table.reach.ssh, table.reach.folder)
    return Device(name, **header, figures=figures, measured_on=table.measured_on, origin=where, reach=reach)


def device_text(device: Device) -> str:
    """The content of a file that `parse_device` reads the same device from."""
    lines = [f"schema = {SCHEMA}"]
    for key in _HEADER:
        if value := getattr(device, key):
            lines.append(f"{key} = {toml_text(value)}")
    if device.measured_on:
        lines += ["", f"[{_MEASURED_ON}]"]
        lines += [f"{key} = {toml_text(value)}" for key, value in device.measured_on.items() if value is not None]
    if device.reach is not None:
        lines += ["", "[reach]", *(f"{key} = {toml_text(value)}" for key, value in asdict(device.reach).items())]
    for key, figure in device.figures.items():
        lines += ["", f"[{key}]"]
        told = ((name, getattr(figure, name)) for name in _FigureTable.model_fields)
        lines += [f"{name} = {toml_text(value)}" for name, value in told if value is not None]
    return "\n".join(lines) + "\n"


def write_device_file(device: Device, path: Path) -> None:
    """Write `device` to `path`, whole or not at all. Raises `UserError` if it cannot be written or read back."""
    text = device_text(device)
    parse_device(device.name, text, str(path))
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# -- the model of a file ----------------------------------------------------------------------------------------------
# A validator's message begins with what stands between its place and the reason: " = VALUE: why", ": why", or, where
# the place is a table, " KEY: why". One that begins otherwise names its place itself.


def _line(value: Any) -> str:
    """A line of text. What does not print could do anything to the terminal that it is shown on."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f" = {_shown(value)}: must be one line of text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f" = {_shown(value)}: must be a number")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f": a number of {len(str(value))} digits is not plausible")
    return value


def _spread(value: Any) -> float:
    if not 0 <= _number(value) < 1e6:
        raise ValueError(f" = {value!r}: must be (p90 − p10) / median, 0 or more")
    return float(value)


def _schema(value: Any) -> int:
    if value != SCHEMA or isinstance(value, bool):
        raise ValueError(f" = {_shown(value)}: this mtlc reads schema {SCHEMA}")
    return SCHEMA


def _plain(value: Any) -> str | int | float:
    if not isinstance(value, str | int | float):
        raise ValueError(": must be a text or a number")
    return value


def _threads(key: str) -> str:
    if not (key.isascii() and key.isdigit() and key[0] != "0"):
        raise ValueError(f"[threads.{key}]: {key!r} is no number of threads: write [threads.4]")
    return key


def _one_of(known: tuple[str, ...]) -> AfterValidator:
    def check(word: str) -> str:
        if word not in known:
            hint = nearest(word, known)
            close = hint if "did you mean" in hint else ""
            raise ValueError(f" = {word!r}: must be one of {', '.join(known)}{close}")
        return word

    return AfterValidator(check)


_Line = Annotated[Any, AfterValidator(_line)]


class _Table(BaseModel):
    """A table of the file. A field's description is what a person is asked to give where its key is missing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _FigureTable(_Table):
    """A figure, of no dimension yet."""

    value: Annotated[Any, AfterValidator(_number)] = Field(description="the number")
    unit: _Line = Field(description="the unit of the value")
    source: _Line = Field(description="the document or page that the figure is from")
    confidence: Annotated[_Line, _one_of(tuple(CONFIDENCE))] = Field(description=f"one of {', '.join(CONFIDENCE)}")
    note: _Line | None = None
    spread: Annotated[Any, AfterValidator(_spread)] = None


def _measuring(dimension: Dimension) -> type[_FigureTable]:
    """The table of a figure of `dimension`."""

    class Measured(_FigureTable):
        unit: _Line = Field(description=f"the unit of the value ({', '.join(dimension.units)})")

        @model_validator(mode="after")
        def _is_plausible(self) -> Self:
            key = "unit"
            try:
                dimension.to_base(1, self.unit)
                key = "value"
                dimension.check(self.value, self.unit)
            except UserError as error:
                raise ValueError(f" {key}: {error}") from None
            return self

    return Measured


def _section(name: str, schema: Mapping[str, Any]) -> Any:
    """The type of a section: a model of what may stand in it, or a map by number of threads."""
    if _NUMBER in schema:
        return dict[Annotated[str, AfterValidator(_threads)], _section(name, schema[_NUMBER])]  # type: ignore[misc]
    inside = {key: _measuring(one) if isinstance(one, Dimension) else _section(key, one) for key, one in schema.items()}
    fields: dict[str, Any] = {key: (one | None, None) for key, one in inside.items()}
    return create_model(name, __base__=_Table, **fields)


_Figures: type[_Table] = _section("_Figures", _FIGURES)


class _ReachTable(_Table):
    """Where a board is."""

    ssh: Annotated[Any, AfterValidator(check_place)] = Field(description="the host, such as pi@raspberrypi")
    folder: Annotated[Any, AfterValidator(check_folder)] = FOLDER


class _DeviceTable(_Figures):  # type: ignore[misc, valid-type]  # made from _FIGURES, so no name that mypy can follow
    """A device file."""

    file_schema: Annotated[Any, AfterValidator(_schema)] = Field(SCHEMA, alias="schema")
    title: _Line = Field(description="what to call the device")
    kind: Annotated[_Line, _one_of(KINDS)] = Field(description=f"one of {', '.join(KINDS)}")
    notes: _Line | None = None
    local: bool = False
    backend: _Line | None = None
    roofline: _Line | None = None
    reach: _ReachTable | None = None
    measured_on: dict[str, Annotated[Any, AfterValidator(_plain)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _local_has_a_backend(self) -> Self:
        if self.local and self.backend is None:
            raise ValueError('backend: missing; a local device is measured through one: backend = "onnxruntime"')
        if self.backend is not None and not self.local:
            raise ValueError("backend: belongs to a local device; leave it out")
        return self

    @model_validator(mode="after")
    def _figures_agree(self) -> Self:
        figures = dict(_figures(self.model_dump(exclude_none=True, include=set(_FIGURES))))
        for key in figures:
            if key.startswith("fpga.") and self.kind != "fpga":
                raise ValueError(f"[{key}]: belongs to a device of kind 'fpga', and this one is of kind {self.kind!r}")
        ordered = [("power.min", "power.typical"), ("power.typical", "power.max"), ("power.min", "power.max")]
        ordered += [(f"peak.{precision}.dense", f"peak.{precision}.sparse") for precision in PRECISIONS]
        for low, high in ordered:
            if low in figures and high in figures and figures[low].base > figures[high].base:
                raise ValueError(f"[{low}] value: is above that of [{high}]; are they swapped?")
        return self


def _figures(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Figure]]:
    """The figures under `path` of a file that the model has let through, with the key of each."""
    for key, value in table.items():
        if "value" in value:
            yield ".".join((*path, key)), Figure(**value)
        else:
            yield from _figures(value, (*path, key))


# -- what a mistake is told -------------------------------------------------------------------------------------------


def _described(error: ValidationError) -> str:
    """One line for pydantic's complaints: the first, but an unknown key before all, as it explains a missing one."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    path, kind, value = [str(part) for part in first["loc"] if part != "[key]"], first["type"], first["input"]
    section, key = f"[{'.'.join(path[:-1])}] " if len(path) > 1 else "", path[-1] if path else ""
    if kind == "extra_forbidden":
        return f"{section}{key}: {_unknown(path)}"
    if kind == "missing":
        return f"{section}{key}: missing; give {_table_at(path[:-1]).model_fields[key].description}"
    if kind in ("model_type", "dict_type"):
        example = '{value = …, unit = "…", source = "…", confidence = "…"}'
        wanted = f"a figure is a table: {key} = {example}" if _is_figure(_table_at(path)) else "must be a table"
        return f"{'.'.join(path)} = {_shown(value)}: {wanted}"
    if kind == "bool_type":
        return f"{section}{key} = {_shown(value)}: must be true or false"
    reason = str(first["msg"]).removeprefix("Value error, ")
    if reason.startswith((" = ", ": ")):
        return f"{section}{key}{reason}"
    return f"[{'.'.join(path)}]{reason}" if reason.startswith(" ") else reason


def _unknown(path: list[str]) -> str:
    """Why a key is unknown: misspelt, or a part of a figure where only sections stand."""
    table = _table_at(path[:-1])
    known = [field.alias or name for name, field in table.model_fields.items()]
    if len(path) > 1 and path[-1] in _FigureTable.model_fields and not _is_figure(table):
        below = " or ".join(f"[{'.'.join((*path[:-1], name))}]" for name in known)
        return f"is no figure by itself; write {below}"
    return f"unknown key{nearest(path[-1], known)}"


def _table_at(path: list[str]) -> Any:
    """The model of the table at `path`: where a section is a map by number, that of its values."""
    table: Any = _DeviceTable
    for key in path:
        if get_origin(table) is dict:
            table = get_args(table)[1]
            continue
        annotation = table.model_fields[key].annotation
        table = next((one for one in get_args(annotation) if one is not type(None)), annotation)
        if get_origin(annotation) is dict:
            table = annotation
    return table


def _is_figure(table: Any) -> bool:
    return isinstance(table, type) and issubclass(table, _FigureTable)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
