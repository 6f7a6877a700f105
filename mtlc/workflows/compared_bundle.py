"""Reads a side of ``mtlc compare``: a bundle, with the results of the run that made it where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlc.errors import UserError
from mtlc.hw.cost.bundle_costs import default_programs
from mtlc.runtime import Manifest, open_bundle
from mtlc.workflows.report import read_results

RESULTS = "results.json"


@dataclass(frozen=True)
class ComparedBundle:
    """A bundle's path and manifest, and `results`, what ``mtlc run`` wrote beside it (None for a bundle alone)."""

    given: Path
    bundle: Path
    manifest: Manifest
    results: Mapping[str, Any] | None

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.manifest.files.values())

    def as_json(self) -> dict[str, Any]:
        """What the side is, without its figures."""
        manifest = self.manifest
        passes = [{"name": name, "config": {}} for name in _passes(manifest)]
        if self.results is not None:
            passes = [{"name": entry["name"], "config": entry["config"]} for entry in self.results["passes"]]
        return {
            "path": str(self.given),
            "bundle": str(self.bundle),
            "results": None if self.results is None else str(self.given / RESULTS),
            "programs": len(manifest.programs),
            "configurations": [one.name for one in manifest.configurations],
            "device": manifest.device,
            "passes": passes,
            "versions": _versions(manifest.provenance),
            "network": str(manifest.provenance.get("factory")),
        }

    def metrics(self) -> dict[str, dict[str, Any]]:
        """By task, its metric: of a run before and after, on its validation split; of a bundle of several widths what
        its manifest has for the default configuration. ``after`` is None where nothing is known.
        """
        known = {task: {"metric": info.metric, "unit": info.unit} for task, info in self.manifest.tasks.items()}
        if self.results is not None:
            keys = ("metric", "unit", "higher_is_better", "before", "after")
            run = {task: {key: one[key] for key in keys} for task, one in self.results["tasks"].items()}
            return {task: run.get(task, {**blank, **_UNKNOWN}) for task, blank in known.items()}
        return {task: {**blank, **self._of_widths(task)} for task, blank in known.items()}

    def _of_widths(self, task: str) -> dict[str, Any]:
        widths = self.manifest.widths
        default = next((one for one in self.manifest.configurations if one.name == "default"), None)
        if widths is None or default is None:
            return dict(_UNKNOWN)
        encoder = next((one for one in widths.encoders if one.name == default.encoder), None)
        points = () if encoder is None else encoder.decoders.get(task, ())
        metric = next((point.metric for point in points if point.width == default.decoders.get(task)), None)
        return {"higher_is_better": widths.higher_is_better[task], "before": None, "after": metric}


_UNKNOWN: dict[str, Any] = {"higher_is_better": None, "before": None, "after": None}


def open_compared(path: Path) -> ComparedBundle:
    """The bundle at `path`, or the compressed one of the run whose folder that is.

    Raises `UserError` if it is neither, `BundleError` for a bundle that is not whole.
    """
    results, bundle = None, path
    if (path / RESULTS).is_file():
        results = read_results(path / RESULTS)
        try:
            bundle = path / Path(results["bundles"]["after"]["path"]).name
        except (KeyError, TypeError):
            raise UserError(f"{path / RESULTS}: names no bundle; give the bundle itself") from None
    with open_bundle(bundle) as opened:
        side = ComparedBundle(path, bundle, opened.manifest, results)
    try:
        for describe in (side.as_json, side.metrics):
            describe()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / RESULTS}: not what `mtlc run` wrote ({error!r})") from error
    return side


def differences(a: ComparedBundle, b: ComparedBundle) -> list[dict[str, Any]]:
    """What the two manifests say differently: ``{"what", "a", "b"}`` with values as text, None where one has none."""
    rows = []
    for what, describe in _ASPECTS.items():
        old, new = describe(a.manifest), describe(b.manifest)
        rows += [
            {"what": f"{what} {name}".strip(), "a": old.get(name), "b": new.get(name)}
            for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name)
        ]
    return rows


def _versions(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The versions in a bundle's provenance, which is free to say anything."""
    found = provenance.get("versions")
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, Mapping) else {}


def _passes(manifest: Manifest) -> list[str]:
    found = manifest.provenance.get("passes")
    return [str(name) for name in found] if isinstance(found, list) else []


def _inputs(manifest: Manifest) -> dict[str, str]:
    return {one.name: f"{one.dtype} {list(one.shape)}" for one in manifest.inputs}


def _outputs(manifest: Manifest) -> dict[str, str]:
    return {name: f"{task.kind} {task.dtype} {list(task.shape)}" for name, task in manifest.tasks.items()}


def _whole(manifest: Manifest) -> dict[str, str]:
    return {
        "programs": str(len(default_programs(manifest))),
        "configurations": ", ".join(one.name for one in manifest.configurations),
        "preprocessing": str(manifest.to_dict()["preprocessing"]),
        "device": str(manifest.device),
        "network": str(manifest.provenance.get("factory")),
        "versions": ", ".join(f"{name} {version}" for name, version in _versions(manifest.provenance).items()),
        "passes": " → ".join(_passes(manifest)) or "none",
    }


_ASPECTS = {"input": _inputs, "task": _outputs, "": _whole}
