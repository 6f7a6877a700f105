"""Writes a job for a network and a data set by looking at them: ``mtlc init --from``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlc.errors import MtlcError, UserError, one_line
from mtlc.evaluation.given_data import first_sample
from mtlc.evaluation.sample_forms import Names, fields_of
from mtlc.evaluation.splits import Splits, fetch, load_splits, parts_of
from mtlc.log import Log, silent
from mtlc.program.modes import evaluating
from mtlc.program.outputs import flatten_outputs
from mtlc.program.program import ModelSource
from mtlc.references import call, resolve
from mtlc.workflows.guessed_tasks import GuessedTasks, guess_alone, guess_tasks, shapes_of

_LOOKED_AT = 16
"""Samples whose labels are looked at."""
_SIDES = (224, 256, 64, 128, 384, 512, 32, 28, 640, 96, 48)
_USUAL_INPUTS = ("image", "x", "input", "inputs", "img", "images", "pixel_values", "data")
_DTYPES = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32}


@dataclass(frozen=True)
class InitOptions:
    """What ``mtlc init --from`` was asked for. References are ``module:callable`` or ``path/to/file.py:callable``.

    `inputs` are texts ``NAME=3x256x256``, of which the name may be left out, and ``:int64`` may follow. `args` and
    `data_args` are keyword arguments of the two factories.
    """

    network: str
    data: str | None = None
    inputs: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)
    data_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Looked:
    """What was found of a network and its data: all that a job says of them."""

    factory: str
    args: Mapping[str, Any]
    weights_of_its_own: bool
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    guessed: GuessedTasks
    data: str | None
    data_args: Mapping[str, Any]
    label_names: bool
    channels: int
    samples: Mapping[str, int] | None = None
    notes: list[str] = field(default_factory=list)


def look(options: InitOptions, folder: Path, log: Log = silent) -> Looked:
    """Build the network, run it on a sample or on an input of the shape that is given or found, and guess its tasks.

    Modules are looked for in `folder` first, which the job will be in. Raises `UserError` naming the option.
    """
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
    network = reference_from(options.network, folder, "--from")
    data = None if options.data is None else reference_from(options.data, folder, "--data")
    log(f"building the network of {network}")
    module, own = _build(network, options)
    wanted = _wanted_inputs(module)
    shapes = [_input_of(text) for text in options.inputs]
    found = Looked(network, options.args, own, {}, {}, GuessedTasks(), data, options.data_args, True, _channels(module))
    if data is None:
        found.inputs = _given_inputs(shapes, wanted) if shapes else _tried_inputs(module, wanted, log)
        found.outputs = _outputs(module, found.inputs, "--input")
        found.guessed = guess_alone(found.outputs, _size(found.inputs))
        if not found.guessed.tasks:
            raise UserError(
                f"--from {options.network}: its outputs are {shapes_of(found.outputs) or 'none'}, which look like no "
                "task that mtlc knows: give data with --data, or write the job by hand"
            )
        return found
    if shapes:
        raise UserError("--input is for a network without data: the shapes of --data count")
    return _with_data(found, module, wanted, log)


def _with_data(found: Looked, module: nn.Module, wanted: Sequence[str], log: Log) -> Looked:
    assert found.data is not None
    log(f"reading samples of {found.data}")
    with _option("--data", "--data-arg"):
        _check_arguments(found.data, found.data_args, f"--data {found.data}", "--data-arg")
        parts, _ = parts_of(call(found.data, "--data", **found.data_args), f"--data {found.data} returned")
    raw, _ = first_sample(parts["validation"], "validation")
    inputs, labels, named, left = _named_parts(raw, wanted)
    if left:
        found.notes.append(
            f"a sample also holds {', '.join(map(repr, left))}, which are no numbers and are passed over"
        )
    splits = load_splits(found.data, Names(inputs, labels), **found.data_args)
    batch = _some(splits)
    missing = [name for name in inputs if name not in batch]
    if missing:
        raise UserError(f"--data {found.data}: a sample has no {missing[0]!r} that is a tensor")
    found.inputs = {name: batch[name] for name in inputs}
    found.label_names = named
    found.samples = {name: len(getattr(splits, name)) for name in ("train", "calibration", "validation")}
    found.outputs = _outputs(module, found.inputs, "--data")
    given = {name: batch[name] for name in labels if name in batch}
    found.guessed = guess_tasks(found.outputs, given, _size(found.inputs), named)
    seen = f"outputs {shapes_of(found.outputs)}; labels {_described(given)}"
    if not found.guessed.tasks:
        raise UserError(
            f"no label fits an output that mtlc has a loss for: {seen}; write the job by hand, or another label"
        )
    if found.guessed.unused_labels and not named:
        raise UserError(
            f"{len(found.guessed.unused_labels)} of the {len(given)} labels of a sample fit no output, and labels "
            f"without names need a task each: {seen}; give samples as dicts"
        )
    return found


def reference_from(text: str, folder: Path, option: str) -> str:
    """``module:callable`` of what was given, that works for a job in `folder`. Raises `UserError` naming `option`."""
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"{option} {text}: write module:factory or path/to/file.py:factory")
    if not (place.endswith(".py") or "/" in place or "\\" in place):
        return text
    path = Path(place)
    if not path.is_file():
        raise UserError(f"{option} {text}: no file {place}")
    if path.suffix != ".py":
        raise UserError(f"{option} {text}: {place} is no Python file")
    try:
        inside = path.resolve().relative_to(folder.resolve())
    except ValueError:
        raise UserError(
            f"{option} {text}: the file must lie in the folder of the job, {folder}, or below: give {path.parent} as "
            "FOLDER, or a module that can be imported"
        ) from None
    parts = (*inside.parent.parts, inside.stem)
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"{option} {text}: {inside} is no name of a module: letters, digits and underscores only")
    return f"{'.'.join(parts)}:{name}"


def default_folder(text: str) -> Path:
    """Where the job of ``--from TEXT`` goes if nothing is said: beside the file, or here."""
    place = text.rpartition(":")[0]
    return Path(place).parent if place.endswith(".py") else Path()


# -- the network ------------------------------------------------------------------------------------------------------


def _build(network: str, options: InitOptions) -> tuple[nn.Module, bool]:
    """The network, and whether the factory gives it weights: two of other seeds are then alike."""
    with _option("--from", "--arg"):
        _check_arguments(network, options.args, f"--from {options.network}", "--arg")
        made = []
        for seed in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                made.append(ModelSource(network, options.args).build())
    one, other = (dict(module.named_parameters()) for module in made)
    if not one:
        raise UserError(f"--from {options.network}: the network has no parameters")
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return made[0].eval(), same


@contextmanager
def _option(option: str, argument: str) -> Iterator[None]:
    """Name the option, where a message names the key of a job that it stands for."""
    try:
        yield
    except MtlcError as error:
        text = re.sub(r"^\[(model|data)\] factory", option, str(error))
        text = text.replace("looked beside the job file and on sys.path", "looked in the job's folder and on sys.path")
        raise type(error)(text) from error.__cause__


def _check_arguments(reference: str, given: Mapping[str, Any], where: str, option: str) -> None:
    """Raise `UserError` where a factory asks for an argument that nobody gives."""
    try:
        parameters = inspect.signature(resolve(reference, "--from" if option == "--arg" else "--data")).parameters
    except (TypeError, ValueError):  # written in C: it says itself what it wants
        return
    for name, one in parameters.items():
        by_name = one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        if by_name and one.default is one.empty and name not in given:
            raise UserError(f"{where}: the factory needs {name!r}: give it with {option} {name}=VALUE")


def _wanted_inputs(module: nn.Module) -> tuple[str, ...]:
    """The names of what a forward takes; of one argument that is enough to call it, of ``*args`` none."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(
        one.name
        for one in parameters
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) and one.default is one.empty
    )


def _channels(module: nn.Module) -> int:
    """The channels of a layer in the middle, by width."""
    widths = sorted(one.out_channels for one in module.modules() if isinstance(one, nn.Conv2d))
    return widths[len(widths) // 2] if widths else 0


def _input_of(text: str) -> tuple[str | None, Tensor]:
    name, equals, shape = text.rpartition("=")
    shape, colon, dtype = shape.partition(":")
    sizes = re.split("[x×,]", shape.strip().lower())
    right = all(size.isascii() and size.isdigit() and 0 < int(size) < 1 << 20 for size in sizes)
    if not right or (colon and dtype not in _DTYPES) or (equals and not name.isidentifier()):
        raise UserError(
            f"--input {text}: write NAME=SIZES of one sample, such as image=3x256x256; :int64 may follow, "
            f"one of {', '.join(_DTYPES)}"
        )
    kind = _DTYPES.get(dtype, torch.float32)
    full = (2, *map(int, sizes))
    made = torch.randn(full) if kind is torch.float32 else torch.zeros(full, dtype=kind)
    return (name if equals else None), made


def _given_inputs(given: Sequence[tuple[str | None, Tensor]], wanted: Sequence[str]) -> dict[str, Tensor]:
    names = ("image",) if len(given) == 1 else wanted if len(wanted) == len(given) else ()
    if not names and any(name is None for name, _ in given):
        raise UserError(f"--input: name each: the network takes {', '.join(wanted) or 'several'}")
    found = {name or names[place]: tensor for place, (name, tensor) in enumerate(given)}
    if len(found) != len(given):
        raise UserError("--input: two inputs have one name")
    return found


def _tried_inputs(module: nn.Module, wanted: Sequence[str], log: Log) -> dict[str, Tensor]:
    """An input that the network runs on: by what its first layers take, pictures of usual sizes and rows of numbers."""
    if len(wanted) > 1:
        raise UserError(
            f"--input: the network takes {', '.join(wanted)}: say the shape of each, such as "
            + " ".join(f"--input {name}=3x256x256" for name in wanted)
        )
    tried: list[str] = []
    first = ""
    for shape in _likely_shapes(module):
        given = {"image": torch.randn(2, *shape)}
        try:
            _run(module, given)
        except Exception as error:  # the network is the user's; the next shape may be right
            tried.append("x".join(map(str, shape)))
            first = first or one_line(error)
            continue
        log(f"the network runs on {'x'.join(map(str, shape))}; --input says another")
        return given
    shown = ", ".join(tried[:6]) + (" …" if len(tried) > 6 else "")
    raise UserError(f"--input is missing: the network ran on none of {shown} ({first}); say it: --input 3x256x256")


def _likely_shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            yield from ((layer.in_channels, side, side) for side in _SIDES)
            return
        if isinstance(layer, nn.Conv1d):
            yield from ((layer.in_channels, length) for length in (128, 256, 1024, 64))
            return
        if isinstance(layer, nn.Conv3d):
            yield from ((layer.in_channels, 16, side, side) for side in _SIDES[:4])
            return
        if isinstance(layer, nn.Linear):
            yield (layer.in_features,)
            break
    yield from ((channels, side, side) for channels in (3, 1) for side in _SIDES)


def _run(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    with torch.inference_mode(), evaluating(module):
        return module(*inputs.values())


def _outputs(module: nn.Module, inputs: Mapping[str, Tensor], option: str) -> dict[str, Tensor]:
    taken = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
    try:
        made = _run(module, inputs)
    except Exception as error:
        raise UserError(f"{option}: the network does not run on {taken}: {one_line(error)}") from error
    return flatten_outputs(made)


def _size(inputs: Mapping[str, Tensor]) -> tuple[int, int] | None:
    first = next(iter(inputs.values()))
    return (first.shape[-2], first.shape[-1]) if first.ndim == 4 else None


# -- the data ---------------------------------------------------------------------------------------------------------


def _named_parts(raw: Any, wanted: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], bool, list[str]]:
    """Of a sample: the names of its inputs, those of its labels, whether the labels have names of their own, and what
    is no number.
    """
    fields = fields_of(raw)
    if fields is not None:
        inputs = _inputs_among(fields, wanted)
        others = {name: value for name, value in fields.items() if name not in inputs}
        return inputs, *_labels_among(others)
    if not isinstance(raw, tuple | list) or len(raw) < 2:
        count = f" of {len(raw)}" if isinstance(raw, tuple | list) else ""
        raise UserError(
            f"--data: a sample is a {type(raw).__name__}{count}: give (x, y), (x, {{...}}) or a dict with labels"
        )
    inputs = tuple(wanted) if len(wanted) > 1 else ("image",)
    labels = raw[1] if len(raw) == 2 else tuple(raw[len(inputs) :])
    if isinstance(labels, Mapping):
        return inputs, *_labels_among(labels)
    several = len(raw) > 2 or (isinstance(labels, tuple | list) and any(isinstance(one, Tensor) for one in labels))
    unnamed = range(1, 1 + (len(labels) if several else 1))
    return inputs, tuple(f"label{number}" for number in unnamed), False, []


def _labels_among(fields: Mapping[str, Any]) -> tuple[tuple[str, ...], bool, list[str]]:
    numeric = [name for name, value in fields.items() if not isinstance(value, str | bytes | Path | Mapping)]
    return tuple(numeric), True, [name for name in fields if name not in numeric]


def _inputs_among(fields: Mapping[str, Any], wanted: Sequence[str]) -> tuple[str, ...]:
    if len(wanted) > 1:
        missing = [name for name in wanted if name not in fields]
        if missing:
            raise UserError(
                f"--data: the network takes {', '.join(wanted)}, and a sample has {', '.join(map(repr, fields))}: name "
                "them alike, or write [model] inputs by hand"
            )
        return tuple(wanted)
    usual = [name for name in (*_USUAL_INPUTS[:1], *wanted, *_USUAL_INPUTS[1:]) if name in fields]
    if usual:
        return (usual[0],)
    pictured = next((name for name, value in fields.items() if hasattr(value, "shape") and len(value.shape) > 1), None)
    if pictured is None:
        raise UserError(
            f"--data: a sample has {', '.join(map(repr, fields))}: none looks like a picture; call the input 'image'"
        )
    return (pictured,)


def _some(splits: Splits) -> dict[str, Tensor]:
    """Some samples of the validation split; fewer where the labels of several do not stack."""
    count = min(_LOOKED_AT, len(splits.validation))
    batch = fetch(splits.validation, range(count))
    return batch if count > 1 else {name: torch.cat([value, value]) for name, value in batch.items()}


def _described(labels: Mapping[str, Tensor]) -> str:
    def one(name: str, value: Tensor) -> str:
        finite = value[torch.isfinite(value)] if value.is_floating_point() else value
        between = f", {float(finite.min()):.4g} to {float(finite.max()):.4g}" if finite.numel() else ""
        kind = str(value.dtype).removeprefix("torch.")
        return f"{name!r} (N, {', '.join(map(str, value.shape[1:]))}) {kind}{between}".replace("(N, )", "(N,)")

    return ", ".join(one(name, value) for name, value in labels.items()) or "none"
