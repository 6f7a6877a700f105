"""Runs every verb on one network of the suite, and keeps after each what came of it.

`FOLDER/NAME.json` holds what is known, a key for each verb; what is there is not done again. `whole_suite` calls this
in a process of its own, whose time and memory it watches: ``now`` in the file says what is being done and since when.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BUDGET = 0.7
"""What pruning is asked to leave of the MACs."""
LEAST_CUT = 0.03
"""Where not even this share of the MACs can go, nothing is pruned."""


class Network:
    """One network of the suite with its folder; `record` is what was found so far."""

    def __init__(self, name: str, folder: Path) -> None:
        from conformance.catalogue import build, case
        from conformance.jobs import outputs

        self.case, self.folder, self.path = case(name), folder / name, folder / f"{name}.json"
        self.record: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.module = build(name)
        self.outputs = outputs(self.module, self.case)

    def step(self, verb: str, do: Callable[[], dict[str, Any] | None]) -> None:
        """Do what belongs to a verb unless it was done, and keep what it gives; None where it does not apply."""
        if verb in self.record:
            return
        self._write({"verb": verb, "since": time.time(), "spent": time.process_time()})
        self.record[verb] = do()
        self._write(None)

    def _write(self, now: dict[str, Any] | None) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps({**self.record, **({} if now is None else {"now": now})}, indent=1) + "\n")
        temporary.replace(self.path)

    def job(self, name: str, *more: str) -> Path:
        from conformance.jobs import write_job

        return write_job(self.folder, self.case, self.outputs, name, *more)

    def facts(self) -> dict[str, Any]:
        return {
            "kind": self.case.kind,
            "about": self.case.about,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "outputs": {key: list(shape) for key, shape in self.outputs.tasks.items()},
        }

    def plan(self) -> dict[str, Any]:
        """What can be pruned, to which MACs, and what is left alone."""
        from conformance.jobs import PRUNE
        from conformance.verbs import call

        found = call("plan", self.job("plan", PRUNE.format(budget="99%")))
        result = found.pop("result")
        if result is None:
            return found
        units = result.get("units", {"prunable": [], "left_alone": [], "least": {"macs": result["cost"]["macs"]}})
        return found | {
            "macs": result["cost"]["macs"],
            "least": units["least"]["macs"],
            "units": [[one["name"], one["channels"]] for one in units["prunable"]],
            "left_alone": [[one["name"], one["channels"], one["why"]] for one in units["left_alone"]],
        }

    def cut(self) -> float | None:
        """The share of the MACs that pruning is asked to leave; None where there is nothing to cut."""
        plan = self.record.get("plan") or {}
        if "least" not in plan or plan["least"] > (1 - LEAST_CUT) * plan["macs"]:
            return None
        least = plan["least"] / plan["macs"]
        return BUDGET if least < BUDGET - 0.05 else least + 0.4 * (1 - least)

    def prune(self) -> dict[str, Any] | None:
        """Prune to a budget in reach, export, verify in onnxruntime: what ``mtlc run`` does."""
        from conformance.jobs import PRUNE

        share = self.cut()
        if share is None:
            return None
        return {"budget": share, **self._run("prune", PRUNE.format(budget=f"{100 * share:.2f}%"))}

    def export(self) -> dict[str, Any] | None:
        """The network as it is, where there is no pruned one."""
        return None if self.bundle() is not None else self._run("export")

    def _run(self, name: str, *more: str) -> dict[str, Any]:
        from conformance.compress_and_export import compress_and_export
        from conformance.verbs import attempt

        job, out = self.job(name, *more), self.folder / f"{name}-out"
        shutil.rmtree(out, ignore_errors=True)
        return attempt(lambda: compress_and_export(job, out))

    def bundle(self) -> Path | None:
        """The bundle of the pruned network, or of the network as it is."""
        made = (self.folder / f"{name}-out" / "bundle" for name in ("prune", "export"))
        return next((path for path in made if path.exists()), None)

    def openvino(self) -> dict[str, Any] | None:
        """The same bundle in OpenVINO, against onnxruntime."""
        from conformance.verbs import call

        if self.bundle() is None:
            return None
        job = self.job("bundle")
        found = call("verify", self.bundle(), "--backend", "openvino", "--job", job, "--samples", 4)
        result = found.pop("result")
        if result is not None:
            found["differs"] = max(row["max_rel"] for row in result["tasks"].values())
            found["tolerance"] = result["tolerance"]
        return found

    def quantize(self) -> dict[str, Any] | None:
        """The bundle in INT8, and how far its outputs are from those in floating point."""
        from conformance.jobs import QUANTIZE
        from conformance.verbs import call

        if self.bundle() is None:
            return None
        out = self.folder / "bundle-int8"
        shutil.rmtree(out, ignore_errors=True)
        found = call("quantize", self.bundle(), "--job", self.job("int8", QUANTIZE), "--out", out)
        result = found.pop("result")
        if result is not None:
            found["macs_int8"] = result["macs_int8"]
            found["operators"] = [result["operators"]["int8"], len(result["operators"]["float"])]
        return found

    def slim(self) -> dict[str, Any] | None:
        """Train a step at two widths; the narrowest, cut out, against the same widths inside the widest."""
        from conformance.jobs import SLIM
        from conformance.narrowest_width import narrowest_width
        from conformance.verbs import attempt

        if "units" not in (self.record.get("plan") or {}):
            return None
        job, work = self.job("slim", SLIM), self.folder / "slim-out"
        shutil.rmtree(work, ignore_errors=True)
        return attempt(lambda: narrowest_width(job, work))

    def extract(self) -> dict[str, Any] | None:
        """The experts of the first task within most of the parameters."""
        from conformance.jobs import EXTRACT, task_name

        if not self.case.experts:
            return None
        task = task_name(next(iter(self.outputs.tasks)))
        return self._run("extract", EXTRACT.format(task=task, budget="85%"))

    def torch_pruning(self) -> dict[str, Any]:
        """The channel groups that torch-pruning finds in the same network, and which of them mtlc has no unit for."""
        import torch

        from conformance.torch_pruning_units import groups_of
        from conformance.verbs import Clock

        clock = Clock()
        found = groups_of(self.module, torch.randn(2, *self.case.shape))
        return {**clock.read(), **found}


VERBS = ("plan", "prune", "export", "openvino", "quantize", "slim", "extract", "torch_pruning")
"""What is done with a network, in this order."""


def run_verbs(name: str, folder: Path, verbs: Sequence[str] = VERBS) -> None:
    """Run the verbs that are left for the network `name`; results lie in `folder`."""
    network = Network(name, folder)
    network.step("facts", network.facts)
    for verb in verbs:
        network.step(verb, getattr(network, verb))
