"""Counts the MACs and parameters of a bundle, from the ONNX programs that its default configuration runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mtlc.errors import UserError
from mtlc.hw.cost.count import onnx_workload
from mtlc.hw.cost.workload import Operator, Workload
from mtlc.runtime import OpenBundle
from mtlc.runtime.bundle.manifest import Manifest, ProgramInfo


def bundle_costs(bundle: OpenBundle, tasks: Iterable[str] | None = None) -> dict[str, Any]:
    """MACs of one sample, parameters and layers of `tasks` (None: all), modelled from the files of an open bundle.

    ``layers`` is a list of ``{"name", "macs", "parameters"}`` by module path in the order they run. A file that several
    programs share does its work once for each. Where a program cannot be costed, as one whose experts lie
    apart, ``macs`` and ``parameters`` are None, ``why`` names it, and ``layers`` are those of the other programs.
    """
    wanted = None if tasks is None else set(tasks)
    found: list[tuple[ProgramInfo, Workload]] = []
    refused = []
    for program in default_programs(bundle.manifest):
        if wanted is not None and wanted.isdisjoint(program.tasks):
            continue
        try:
            if program.experts is not None:
                raise UserError("its experts lie apart, and routing decides how many of them run")
            found.append((program, onnx_workload(bundle.program_path(program.name))))
        except UserError as error:
            refused.append(f"program {program.name!r}: {error}")
    layers: dict[str, dict[str, Any]] = {}
    for _, work in found:
        for name, layer in work.by_layer().items():
            row = layers.setdefault(name, {"name": name, "macs": 0, "parameters": 0})
            row["macs"] += layer.macs
            row["parameters"] = max(row["parameters"], layer.parameters)
    return {
        "kind": "modelled",
        "macs": None if refused else sum(work.macs for _, work in found),
        "parameters": None if refused else _parameters(found),
        "why": refused[0] if refused else None,
        "layers": list(layers.values()),
    }


def default_programs(manifest: Manifest) -> tuple[ProgramInfo, ...]:
    """The programs of the configuration that a session begins with, in their order."""
    named = next((one.programs for one in manifest.configurations if one.name == "default"), None)
    return tuple(program for program in manifest.programs if named is None or program.name in named)


def _parameters(found: Iterable[tuple[ProgramInfo, Workload]]) -> int:
    """Elements of the distinct weights. A constant without a module's path is one of its file."""
    weights = {}
    for program, work in found:
        for weight in _weights(work.operators):
            weights[weight.name if "." in weight.name else f"{program.file}:{weight.name}"] = weight.elements
    return sum(weights.values())


def _weights(operators: Iterable[Operator]) -> Iterable[Any]:
    return (weight for operator in operators for weight in operator.weights)
