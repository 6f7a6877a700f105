"""Works out the key of a step: a hash of everything that its numbers follow from."""

from __future__ import annotations

import hashlib
import json
import platform
import random
import sys
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

import mtlc
from mtlc.compress.pass_interface import Budget, PassConfig
from mtlc.compress.passes.registry import pass_type
from mtlc.evaluation.splits import Splits
from mtlc.program.program import Program

# What no step's numbers follow from: changing it does not make anyone prune and train again.
_NOT_NUMBERS = {
    *("cli.py", "cli_bundle.py", "cli_fpga.py", "front.py", "compile", "export", "runtime", "job.py", "job_file.py"),
    *("toml.py", "validation.py", "files.py", "errors.py", "onnx_names.py"),
}


# Of the package that costs and reports, and of export, what passes ask.
_HW_NUMBERS = {
    f"hw/{name}.py"
    for name in ("__init__", "workload", "trace", "aten", "liveness", "active", "measure", "fpga/routing")
}


_EXPORT_NUMBERS = {"export/quantization/targets.py"}


_PACKAGES = ("torch", "torch-pruning", "numpy", "scipy", "nncf", "safetensors")


@dataclass(frozen=True)
class Step:
    """One pass of a job with its checked configuration; `where` says where it stands in the job file."""

    name: str
    config: PassConfig
    where: str


def step_key(
    program: Program,
    step: Step,
    *,
    budget: Budget | None,
    seed: int,
    splits: Splits,
    reference: Program,
) -> str:
    """SHA-256 over everything that the numbers of a step follow from."""
    described = {
        "program": program_hash(program),
        "reference": program_hash(reference),
        "pass": [step.name, step.config.model_dump(mode="json"), source_hash(pass_type(step.name))],
        "budget": asdict(budget) if budget else None,
        "tasks": [task.to_dict() for task in program.tasks],
        "seed": seed,
        "data": splits.identity,
        "code": code_version(),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def program_hash(program: Program) -> str:
    """The content of a program: its tensors, structure and forward code, not the times in its history."""
    described = {
        "tensors": tensors_hash(program),
        "factory": [program.source.factory, program.source.kwargs],
        "history": [[entry.name, entry.config, entry.surgery] for entry in program.history],
        "example": {name: [list(value.shape), str(value.dtype)] for name, value in program.example.items()},
        "ignored": program.ignored_outputs,
        "code": sorted({source_hash(type(module)) for module in program.module.modules()}),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def tensors_hash(program: Program) -> str:
    """SHA-256 over the names, shapes, types and bytes of the network's state."""
    digest = hashlib.sha256()
    for name, tensor in program.module.state_dict().items():
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def source_hash(cls: type) -> str:
    """SHA-256 of the file that defines a class; torch's own files are covered by its version."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None or cls.__module__.split(".")[0] == "torch":
        return ""
    return _file_hash(Path(file))


@cache
def code_version() -> str:
    """SHA-256 of mtlc's own code that numbers can depend on, and the versions of what it computes with."""
    root, digest = Path(mtlc.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _counts(relative):
            digest.update(f"{relative}:{_file_hash(path)};".encode())
    for package in _PACKAGES:
        try:
            digest.update(f"{package}={version(package)};".encode())
        except PackageNotFoundError:
            continue
    digest.update(f"{platform.machine()}:{torch.cuda.is_available()}".encode())
    return digest.hexdigest()


def _counts(file: Path) -> bool:
    """Whether numbers of a step can follow from this file of the package."""
    if file.as_posix() in _EXPORT_NUMBERS:
        return True
    if file.parts[0] == "hw":
        return file.as_posix() in _HW_NUMBERS or file.parts[1] == "latency"
    return file.parts[0] not in _NOT_NUMBERS


@cache
def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seed_everything(seed: int) -> None:
    """Seed every generator that a pass may draw from without saying so."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
