"""Collects what the suite found into one file, from which the tables of docs/networks.md are written.

    python -m conformance.collect [--work FOLDER] [--out FILE] [--add]

Prints every rule that a network breaks (`rules`); then the exit code is 1. The file is written all the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from testkit.places import ROOT

from conformance.case import Case
from conformance.catalogue import OF_OTHERS, collection, modules
from conformance.rules import VERBS, broken
from conformance.whole_suite import WORK, record
from mtlc.files import write_json

RESULTS = ROOT / "benchmarks" / "results" / "conformance.json"
OUTPUT = "an output of the network"
"""Why task heads are left alone, which needs no line for each network."""
KEPT = (
    "exit",
    "seconds",
    "cpu_seconds",
    "error",
    "macs",
    "parameters",
    "differs",
    "tolerance",
    "compared",
    "budget",
    "macs_int8",
)


def collected(record: Mapping[str, Any], case: Case, source: str) -> dict[str, Any]:
    """What the tables need of one network."""
    found: dict[str, Any] = {"name": case.name, "kind": case.kind, "about": case.about, "source": source}
    for verb in VERBS:
        if record.get(verb) is not None:
            found[verb] = {key: record[verb][key] for key in KEPT if record[verb].get(key) is not None}
            found[verb]["exit"] = record[verb]["exit"]
    plan = record.get("plan", {})
    if "units" in plan:
        reasons: dict[str, list[str]] = {}
        for name, _, why in plan["left_alone"]:
            if why != OUTPUT:
                reasons.setdefault(why, []).append(name)
        found["plan"] |= {"units": len(plan["units"]), "least": plan["least"], "left_alone": reasons}
    found["not_run"] = [verb for verb in VERBS if verb not in record]
    found.setdefault("plan", {"exit": 1, "error": record.get("facts", {}).get("error")})
    found["torch_pruning"] = _beside(record.get("torch_pruning"), plan)
    return found


def _beside(other: Mapping[str, Any] | None, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """Torch-pruning's groups: how many, how many the network runs without, which of these have no unit of ours."""
    if other is None:
        return None
    if "groups" not in other or other.get("error"):
        return {"error": other.get("error")}
    runs = [group for group in other["groups"] if group["why"] is None]
    ours = [name for name, _ in plan.get("units", ())]
    whys = {name: why for name, _, why in plan.get("left_alone", ())}
    missed = {
        group["name"]: next((whys[layer] for layer in group["layers"] if layer in whys), None)
        for group in runs
        if not any(_covers(unit, group["layers"]) for unit in ours)
    }
    return {"groups": len(other["groups"]), "runs": len(runs), "missed": missed}


def _covers(unit: str, layers: list[str]) -> bool:
    """Whether a unit, called after one of its layers or after the module of its heads, is about one of the layers."""
    return any(layer == unit or layer.startswith(f"{unit}.") for layer in layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK, help="where the suite's results lie")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="keep what FILE says of networks that FOLDER does not hold")
    options = parser.parse_args()
    known: dict[str, Any] = json.loads(options.out.read_text()) if options.add else {"networks": [], "broken": []}
    before = {row["name"]: row for row in known["networks"]}
    rows, faults, not_run = [], [], []
    packages = {module: package for package, module in OF_OTHERS.items()}
    for module in modules():
        for name, case in collection(module).items():
            # Messages may name files there, which are nobody else's.
            found = json.loads(json.dumps(record(options.work, name)).replace(f"{options.work}/", ""))
            if "plan" in found or "exit" in found.get("facts", {}):
                rows.append(collected(found, case, packages.get(module, "mtlc")))
                faults += [f"{name}: {line}" for line in broken(found, case)]
            elif name in before:
                rows.append(before[name])
                faults += [line for line in known["broken"] if line.startswith(f"{name}: ")]
            else:
                not_run.append(name)
    if not rows:
        raise SystemExit(f"{options.work} holds no results: run python -m conformance.whole_suite")
    write_json(options.out, {"versions": versions(), "broken": faults, "not_run": not_run, "networks": rows})
    for line in faults:
        print(line)
    print(f"{len(rows)} networks, {len(not_run)} not run, {len(faults)} broken rules: {options.out}")
    raise SystemExit(bool(faults))


def versions() -> dict[str, str]:
    """The versions that the results hang on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"torch": torch.__version__}
    for package in ("torchvision", "timm", "transformers", "torch-pruning", "onnxruntime", "openvino", "nncf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
