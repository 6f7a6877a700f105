"""The bundle's manifest: its schema as dataclasses, and the strict reading and writing of it.

Everything in a manifest that comes from a file is checked here, by hand and by key; whatever does not fit is a
`BundleError` that names the key. The format is described in ``docs/bundle.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from mtlc.errors import BundleError

SCHEMA = 1
KINDS = ("labels", "scalar", "normals", "probability", "unknown")
DTYPES = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
COLORS = ("RGB", "BGR", "L")
LAYOUTS = ("NCHW",)

Dimension = int | str
T = TypeVar("T")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor at the edge of the bundle. A dimension is a size, or a name such as ``"batch"`` that any size fits."""

    name: str
    shape: tuple[Dimension, ...]
    dtype: str


@dataclass(frozen=True)
class TaskInfo:
    """A task: the tensor `output` that holds its result, and what the numbers mean.

    `kind` is ``labels`` (one score per class), ``scalar``, ``normals``, ``probability`` or ``unknown``; `metric` and
    `unit` say how it was measured; `classes` names the classes of ``labels``.
    """

    name: str
    output: str
    shape: tuple[Dimension, ...]
    dtype: str
    kind: str = "unknown"
    metric: str = ""
    unit: str = ""
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Preprocessing:
    """How a picture (uint8, H×W×C) becomes the input: ``(pixel · scale − mean) / std`` per channel, in `color`."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: str = "RGB"
    layout: str = "NCHW"


@dataclass(frozen=True)
class ExpertLayer:
    """Where the experts of a layer lie: expert i is at ``offset + i · stride`` of `file`, float32, as fc1 weight (hidden,
    width), fc1 bias, fc2 weight (width, hidden), fc2 bias.

    The program's inputs are the tokens (n, width), the chosen experts (n, K) and their scores (n, K), its output (n, width).
    """

    file: str
    offset: int
    stride: int
    count: int
    width: int
    hidden: int

    @property
    def bytes(self) -> int:
        """Bytes of one expert."""
        return 4 * (2 * self.width * self.hidden + self.width + self.hidden)


@dataclass(frozen=True)
class ProgramInfo:
    """One program: its file, the tensors it reads and writes, and the tasks that need it.

    Programs may share a file: `constants` are what this one feeds to inputs of the file, int64 (1,), and `names` says
    how the file calls a tensor where that is not the tensor's name in the bundle. So a trunk that takes the task as an
    input serves every task from one file. With `experts` the program is an expert layer whose weights lie outside the
    graph, and `file` computes one expert.
    """

    name: str
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tasks: tuple[str, ...]
    constants: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    experts: ExpertLayer | None = None


@dataclass(frozen=True)
class Configuration:
    """A way to run the bundle: its name and the names of its programs, in the order they run."""

    name: str
    programs: tuple[str, ...]


@dataclass(frozen=True)
class FileInfo:
    """What a payload must be: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says of itself. `programs` is in topological order."""

    tasks: Mapping[str, TaskInfo]
    inputs: tuple[TensorInfo, ...]
    programs: tuple[ProgramInfo, ...]
    files: Mapping[str, FileInfo]
    preprocessing: Preprocessing | None = None
    configurations: tuple[Configuration, ...] = ()
    device: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON values, as `read_manifest` takes them."""
        tasks = {}
        for name, task in self.tasks.items():
            tasks[name] = {
                "output": task.output,
                "shape": list(task.shape),
                "dtype": task.dtype,
                "kind": task.kind,
                "metric": task.metric,
                "unit": task.unit,
                **({"classes": list(task.classes)} if task.classes is not None else {}),
            }
        return {
            "schema": self.schema,
            "tasks": tasks,
            "inputs": [{"name": i.name, "shape": list(i.shape), "dtype": i.dtype} for i in self.inputs],
            "preprocessing": None
            if self.preprocessing is None
            else {
                "scale": self.preprocessing.scale,
                "mean": list(self.preprocessing.mean),
                "std": list(self.preprocessing.std),
                "color": self.preprocessing.color,
                "layout": self.preprocessing.layout,
            },
            "programs": [
                {
                    "name": p.name,
                    "file": p.file,
                    "inputs": list(p.inputs),
                    "outputs": list(p.outputs),
                    "tasks": list(p.tasks),
                    **({"constants": dict(p.constants)} if p.constants else {}),
                    **({"names": dict(p.names)} if p.names else {}),
                    **({"experts": asdict(p.experts)} if p.experts is not None else {}),
                }
                for p in self.programs
            ],
            "configurations": [{"name": c.name, "programs": list(c.programs)} for c in self.configurations],
            "device": self.device,
            "provenance": dict(self.provenance),
            "files": {path: {"sha256": f.sha256, "bytes": f.bytes} for path, f in self.files.items()},
        }


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
        provenance=_get(root, "provenance", _mapping),
    )
    _check_programs(manifest)
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


def _check_programs(manifest: Manifest) -> None:
    """The programs form a DAG in their order, and running those that name a task computes that task."""
    if not manifest.tasks or not manifest.inputs:
        raise BundleError(f"manifest.json: {'inputs' if manifest.tasks else 'tasks'} is empty")
    every = frozenset(manifest.tasks)
    needed_by: dict[str, frozenset[str]] = {}
    for tensor in manifest.inputs:
        if tensor.name in needed_by:
            raise BundleError(f"manifest.json: inputs: {tensor.name!r} is listed twice")
        needed_by[tensor.name] = every
    names = set()
    for program in manifest.programs:
        where = f"manifest.json: program {program.name!r}"
        if program.name in names:
            raise BundleError(f"{where} is listed twice")
        names.add(program.name)
        if program.file not in manifest.files:
            raise BundleError(f"{where}: its file {program.file!r} is not in files")
        tasks = frozenset(program.tasks)
        if not tasks or not tasks <= every:
            raise BundleError(f"{where}: tasks must name one or more of {', '.join(sorted(every))}")
        for tensor_name in program.inputs:
            if tensor_name not in needed_by:
                raise BundleError(f"{where}: no earlier program makes its input {tensor_name!r}")
            if not tasks <= needed_by[tensor_name]:
                raise BundleError(f"{where}: its input {tensor_name!r} is not made for all of its tasks")
        for tensor_name in program.outputs:
            if tensor_name in needed_by:
                raise BundleError(f"{where}: its output {tensor_name!r} is made twice")
            needed_by[tensor_name] = tasks
        unknown = [name for name in program.names if name not in {*program.inputs, *program.outputs}]
        if unknown:
            raise BundleError(f"{where}: names: it neither reads nor writes {unknown[0]!r}")
        if program.experts is not None:
            _check_experts(program, program.experts, manifest, where)
    made = {name for program in manifest.programs for name in program.outputs}
    for task in manifest.tasks.values():
        if task.output not in made or task.name not in needed_by[task.output]:
            raise BundleError(f"manifest.json: tasks.{task.name}.output: no program of the task makes {task.output!r}")
    for configuration in manifest.configurations:
        if not set(configuration.programs) <= names:
            raise BundleError(
                f"manifest.json: configurations: {configuration.name!r} names a program that is not there"
            )
    if "default" not in {configuration.name for configuration in manifest.configurations}:
        raise BundleError("manifest.json: configurations: there is no 'default'")


def _check_experts(program: ProgramInfo, layer: ExpertLayer, manifest: Manifest, where: str) -> None:
    if len(program.inputs) != 3 or len(program.outputs) != 1:
        raise BundleError(f"{where}: an expert layer reads tokens, choices and scores, and writes one tensor")
    if layer.file not in manifest.files:
        raise BundleError(f"{where}: its expert file {layer.file!r} is not in files")
    if layer.offset + layer.count * layer.stride > manifest.files[layer.file].bytes:
        raise BundleError(f"{where}: its experts lie beyond the end of {layer.file!r}: the file is truncated")


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
    texts = lambda v, k: _list(v, k, _text)  # noqa: E731
    return ProgramInfo(
        _get(values, "name", _text, key),
        _get(values, "file", _file_name, key),
        _get(values, "inputs", texts, key),
        _get(values, "outputs", texts, key),
        _get(values, "tasks", texts, key),
        {name: _whole(value, f"{key}.constants.{name}") for name, value in _table(values, "constants", key).items()},
        {name: _text(value, f"{key}.names.{name}") for name, value in _table(values, "names", key).items()},
        None if values.get("experts") is None else _experts(values["experts"], f"{key}.experts"),
    )


def _experts(raw: Any, key: str) -> ExpertLayer:
    values = _mapping(raw, key)
    numbers = (_get(values, name, _whole, key) for name in ("offset", "stride", "count", "width", "hidden"))
    layer = ExpertLayer(_get(values, "file", _file_name, key), *numbers)
    if min(layer.count, layer.width, layer.hidden) < 1 or layer.stride < layer.bytes:
        raise BundleError(f"manifest.json: {key}: {layer.count} experts of {layer.bytes} bytes do not fit their stride")
    return layer


def _configuration(raw: Any, key: str) -> Configuration:
    values = _mapping(raw, key)
    return Configuration(
        _get(values, "name", _text, key), _get(values, "programs", lambda v, k: _list(v, k, _text), key)
    )


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


def _table(values: Mapping[str, Any], name: str, inside: str) -> dict[str, Any]:
    return {} if values.get(name) is None else _mapping(values[name], f"{inside}.{name}")


def _whole(raw: Any, key: str) -> int:
    if type(raw) is not int or not 0 <= raw < 2**62:
        raise BundleError(f"manifest.json: {key} must be a whole number, zero or more, it is {raw!r}")
    return raw


def _optional(values: Mapping[str, Any], name: str, read: Callable[[Any, str], T]) -> T | None:
    return None if values.get(name) is None else read(values[name], name)


def _mapping(raw: Any, key: str) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise BundleError(f"manifest.json: {key} must be a table, it is {_type(raw)}")
    return dict(raw)


def _list(raw: Any, key: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
    if not isinstance(raw, list | tuple):
        raise BundleError(f"manifest.json: {key} must be a list, it is {_type(raw)}")
    return tuple(read(item, f"{key}[{index}]") for index, item in enumerate(raw))


def _text(raw: Any, key: str) -> str:
    if not isinstance(raw, str):
        raise BundleError(f"manifest.json: {key} must be text, it is {_type(raw)}")
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
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not math.isfinite(raw):
        raise BundleError(f"manifest.json: {key} must be a finite number, it is {raw!r}")
    return float(raw)


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
            return value
        if type(value) is not int or value < 0:
            raise BundleError(f"manifest.json: {where} must be a size or a name, it is {value!r}")
        return value

    return _list(raw, key, dimension)


def _type(raw: Any) -> str:
    return "nothing" if raw is None else f"a {type(raw).__name__}"


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values
