"""Writes what was found of a network and its data as a commented job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlc.errors import MtlcError, UserError
from mtlc.files import atomic_file, make_folder, remove_leftovers
from mtlc.job.job import load_job
from mtlc.log import Log, silent
from mtlc.toml_files import toml_key, toml_text
from mtlc.workflows.guessed_tasks import GuessedTask, shapes_of
from mtlc.workflows.init_from import InitOptions, Looked, look
from mtlc.workflows.opened_job import open_job

_WIDE = 64
"""Channels from which on a multiple of 8 is kept of them."""


def init_from(options: InitOptions, folder: Path, force: bool = False, log: Log = silent) -> Path:
    """Write ``job.toml`` into `folder` for the network and the data of `options`, and try the job; the path.

    An existing one is kept, with a `UserError`, unless `force`. What is not sure is said in comments, and to `log` as
    warnings; so is what keeps the job from being run as it is. Raises `UserError` where no job can be written.
    """
    target = Path(folder) / "job.toml"
    if target.exists() and not force:
        raise UserError(f"{target} exists; --force overwrites it")
    found = look(options, Path(folder), log)
    text = job_text(found)
    make_folder(target.parent)
    remove_leftovers(target.parent, target.name)
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    for task in found.guessed.tasks:
        log(f"{task.name}: {task.guess.loss}, {task.guess.metric} ({task.guess.why})")
    for line in doubts(found):
        log(f"warning: {line}")
    try:
        job = load_job(target)
        open_job(job, weights=job.weights is not None and job.weights.exists())
    except MtlcError as error:
        log(f"warning: the job does not run as it is: {error}")
    return target


def doubts(found: Looked) -> list[str]:
    """What was not sure, a line each."""
    lines = [f"{task.name}: {doubt}" for task in found.guessed.tasks for doubt in task.guess.doubts]
    lines += [f"the label {label!r} fits no output, and is not used" for label in found.guessed.unused_labels]
    if found.guessed.unused_outputs:
        lines.append(f"outputs without a task are ignored: {', '.join(map(repr, found.guessed.unused_outputs))}")
    if found.data is None:
        lines.append("the data are random: give yours, as module:callable, before anything is judged by them")
    return [*lines, *found.notes]


def job_text(found: Looked) -> str:
    """The text of the job."""
    weights = 'weights = "weights.safetensors"     # written by `mtlc train`'
    if found.weights_of_its_own:
        weights = '# weights = "weights.safetensors"   # the factory gives the network the same weights every time'
    lines = [
        "# A job that `mtlc init --from` wrote by looking at the network and the data. What it was not sure of is",
        '# marked with a question mark. The manual\'s page "job" explains every key.',
        "#",
        "#   mtlc plan job.toml       say what would happen, and whether the budget can be reached",
        *([] if found.weights_of_its_own else ["#   mtlc train job.toml      train the network and write its weights"]),
        "#   mtlc run job.toml        compress, export, verify, measure, report",
        "schema = 1",
        "seed = 0",
        "",
        "[model]",
        f"factory = {toml_text(found.factory)}",
        weights,
        f"# it takes {shapes_of(found.inputs)}",
    ]
    if list(found.inputs) != ["image"]:
        lines.append(f"inputs = {toml_text(list(found.inputs))}")
    if found.guessed.unused_outputs:
        ignored = toml_text(found.guessed.unused_outputs)
        lines.append(f"ignore_outputs = {ignored}    # ? no label fits these, or nothing that is known")
    lines += _table("model.args", found.args)
    lines += [
        "",
        '# One table for each task. `max_drop` is a hard limit on the validation split: a share of the metric ("2%"),',
        "# or a number in the metric's own unit.",
    ]
    for task in found.guessed.tasks:
        lines += _task(task, found.outputs[task.output], found.data is not None)
    lines += [f"# ? the label {label!r} fits no output" for label in found.guessed.unused_labels]
    lines += ["", "[data]", *_data(found)]
    lines += [
        "",
        "[train]                             # for `mtlc train`",
        "epochs = 30",
        f"batch_size = {_batch_size(found)}",
        "",
        "[budget]                            # one of macs, params, memory and latency",
        'macs = "60%"                        # of the original; or an absolute number such as "25MMACs"',
        "",
        "[[passes]]",
        'name = "prune"',
        f"round_to = {8 if found.channels >= _WIDE else 4}                        # channels stay a multiple of this",
        "",
        "[[passes]]",
        'name = "finetune"',
        "epochs = 5",
        "",
        "[export]",
        'formats = ["onnx"]',
        "",
        "[report]",
        'devices = ["local-cpu"]',
    ]
    return "\n".join(lines) + "\n"


def _task(task: GuessedTask, output: Tensor, found_data: bool) -> list[str]:
    guess = task.guess
    shape = "(" + ", ".join(["N", *map(str, output.shape[1:])]) + ")"
    label = f"; label: {guess.why}" if found_data else ""
    lines = ["", f"[tasks.{task.name}]", f"# output {shape}{label}"]
    lines += [f"# ? {doubt}" for doubt in guess.doubts]
    lines += [f"loss = {toml_text(guess.loss)}", f"metric = {toml_text(guess.metric)}", 'max_drop = "3%"']
    if task.output != task.name:
        lines.append(f"output = {toml_text(task.output)}")
    if task.target != task.name:
        lines.append(f"target = {toml_text(task.target)}")
    if guess.ignore is not None:
        lines.append(f"ignore = {guess.ignore}")
    if guess.postprocess is not None:
        lines.append(f"postprocess = {toml_text(guess.postprocess)}")
    return lines


def _data(found: Looked) -> list[str]:
    if found.data is not None and found.samples is not None:
        counts = ", ".join(f"{count} {name}" for name, count in found.samples.items())
        return [f"# {counts} samples", f"factory = {toml_text(found.data)}", *_table("data.args", found.data_args)]
    labels = {task.target: _drawn(task, found.outputs[task.output], found) for task in found.guessed.tasks}
    return [
        "# ? random numbers, to try the job with: costs and times are right, metrics say nothing. Put the factory of",
        '# your data here, module:callable; the manual\'s page "data" says what it returns.',
        'factory = "mtlc.zoo:random_samples"',
        *_table("data.args", {"inputs": _inputs(found), "labels": labels}),
    ]


def _inputs(found: Looked) -> dict[str, Any]:
    return {
        name: list(value.shape[1:])
        if value.is_floating_point()
        else {"shape": list(value.shape[1:]), "below": int(value.max()) + 2}
        for name, value in found.inputs.items()
    }


def _drawn(task: GuessedTask, output: Tensor, found: Looked) -> dict[str, Any]:
    """What `mtlc.zoo.random_samples` draws as the task's label."""
    shape, loss = list(output.shape[1:]), task.guess.loss
    if loss == "cross_entropy":
        return {"kind": "classes", "shape": shape[1:], "classes": shape[0]}
    if loss == "simota" and task.guess.postprocess is not None:
        table = task.guess.postprocess
        columns = 4 + bool(table.get("objectness", True))
        return {"kind": "boxes", "classes": shape[1] - columns, "size": table["size"]}
    kinds = {"normals_l1": "normals", "balanced_bce": "binary", "edge_bce": "binary"}
    return {"kind": kinds.get(loss, "numbers"), "shape": shape}


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    return ["", f"[{name}]", *(f"{toml_key(key)} = {toml_text(value)}" for key, value in values.items())]


def _batch_size(found: Looked) -> int:
    """Smaller where an input is large."""
    numbers = sum(torch.Size(value.shape[1:]).numel() for value in found.inputs.values())
    return 32 if numbers <= 3 * 128 * 128 else 8
