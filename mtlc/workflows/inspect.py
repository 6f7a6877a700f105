"""Tells what a checkpoint, a bundle, a job or an ONNX file holds: ``mtlc inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlc.errors import UserError
from mtlc.extras import missing_extra
from mtlc.results.inspect import InspectedBundle, InspectedCheckpoint, InspectedJob, InspectedOnnx

if TYPE_CHECKING:
    from mtlc.job.job import Job


def inspect(
    target: Path | Job, job: Path | Job | None = None
) -> InspectedCheckpoint | InspectedBundle | InspectedJob | InspectedOnnx:
    """The tasks, costs and history of `target`; its ``is_`` says what it is.

    A bundle needs the base install only. Raises `UserError` where `target` is none of these, and for an ONNX file in
    which an operator cannot be costed.
    """
    if not isinstance(target, str | Path):
        return _job(target)
    target = Path(target)
    if not target.exists():
        raise UserError(f"{target}: no such file or folder")
    if (target / "program.json").is_file():
        return _checkpoint(target, job)
    if (target / "program" / "program.json").is_file() and not (target / "manifest.json").exists():
        return _checkpoint(target / "program", job)  # the output folder of a run
    if target.suffix == ".toml":
        return _job(target)
    if target.suffix == ".onnx":
        return _onnx(target)
    return _bundle(target)


def _checkpoint(folder: Path, job: Path | Job | None) -> InspectedCheckpoint:
    from mtlc.hw.cost.count import workload
    from mtlc.job.job import load_job
    from mtlc.program.program import Program, is_zoo_network, read_description

    description = read_description(folder)
    found = {
        "is": "checkpoint",
        "path": str(folder),
        "factory": description["factory"],
        "tasks": {task["name"]: _task(task) for task in description["tasks"]},
        "inputs": description["inputs"],
        "history": [{key: entry[key] for key in ("name", "config", "report")} for entry in description["history"]],
        "versions": description["versions"],
        "cost": None,
    }
    # The description can be read without running code; the cost needs the network, so a factory that is trusted.
    if job is not None or is_zoo_network(description["factory"]):
        program = Program.load(folder, None if job is None else load_job(job).source)
        cost = workload(program)
        found["cost"] = {"kind": "modelled", "macs": cost.macs, "params": program.parameters_count()}
    return InspectedCheckpoint.read(found, str(folder / "program.json"))


def _onnx(path: Path) -> InspectedOnnx:
    """What one sample costs, layer by layer; any ONNX file will do."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise missing_extra("onnx") from None
    from mtlc.hw.cost.count import onnx_workload
    from mtlc.workflows.assumed_operators import assumed_operators

    cost = onnx_workload(path)
    layers = [
        {
            "name": name,
            "kind": layer.kind,
            "macs": layer.macs,
            "parameters": layer.parameters,
            "shape": layer.output_shape,
        }
        for name, layer in cost.by_layer().items()
    ]
    return InspectedOnnx.model_validate(
        {
            "is": "ONNX file",
            "path": str(path),
            "bytes": path.stat().st_size,
            "tasks": {},
            "cost": {
                "kind": "modelled",
                "macs": cost.macs,
                "params": cost.parameters,
                "peak_activation_bytes": cost.peak_activation_bytes,
            }
            | ({"assumed": assumed} if (assumed := assumed_operators(cost)) else {}),
            "layers": layers,
        }
    )


def _task(task: Mapping[str, Any]) -> dict[str, Any]:
    return {key: task[key] for key in ("loss", "metric", "weight", "max_drop")}


def _job(given: Path | Job) -> InspectedJob:
    from mtlc.job.job import load_job

    job = load_job(given)
    return InspectedJob.model_validate(
        {
            "is": "job",
            "path": str(job),
            "factory": job.file.model.factory,
            "weights": None if job.weights is None else str(job.weights),
            "tasks": {task.name: _task(task.to_dict()) for task in job.tasks},
            "budget": None if job.file.budget is None else job.file.budget.model_dump(exclude_none=True),
            "passes": [{"name": step.name, "config": step.config.model_dump(mode="json")} for step in job.steps],
        }
    )


def _bundle(path: Path) -> InspectedBundle:
    from mtlc.runtime import open_bundle

    with open_bundle(path) as bundle:
        manifest = bundle.manifest.to_dict()
    return InspectedBundle.model_validate(
        {
            "is": "bundle",
            "path": str(path),
            "bytes": sum(file["bytes"] for file in manifest["files"].values()),
            **{key: manifest[key] for key in ("tasks", "inputs", "preprocessing", "programs", "device", "provenance")},
            "configurations": manifest["configurations"],
            "widths": manifest.get("widths"),
        }
    )
