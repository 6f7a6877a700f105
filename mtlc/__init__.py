"""Compiles multi-task networks for edge devices.

Importing the package imports neither torch nor onnxruntime; the parts do that when they are used.
"""

from mtlc import moved
from mtlc.lazy import lazy_names

__version__ = "0.1.0"

_PASSES = "mtlc.compress.passes"
_VERBS = "mtlc.workflows.python_verbs"
_BY_HAND = "mtlc.workflows.passes_by_hand"
_HOMES = {
    "Calibrate": f"{_PASSES}.calibrate",
    "Compressed": "mtlc.workflows.compressed",
    "Extract": f"{_PASSES}.extract",
    "Finetune": f"{_PASSES}.finetune",
    "Limit": "mtlc.tasks.task",
    "Metric": "mtlc.tasks.metrics",
    "MtlcError": "mtlc.errors",
    "Narrow": f"{_PASSES}.narrow",
    "Pass": "mtlc.compress.pass_interface",
    "Program": "mtlc.program.program",
    "Prune": f"{_PASSES}.prune",
    "Qat": f"{_PASSES}.qat",
    "Session": "mtlc.runtime.session",
    "Slim": f"{_PASSES}.slim",
    "Slimmed": "mtlc.workflows.compressed",
    "Splits": "mtlc.evaluation.splits",
    "Task": "mtlc.job.python_task",
    "TaskSpec": "mtlc.tasks.task",
    "bench": _VERBS,
    "calibrate": _BY_HAND,
    "export_bundle": "mtlc.export.bundle.write_bundle",
    "extract": _BY_HAND,
    "finetune": _BY_HAND,
    "from_model": _VERBS,
    "load": _VERBS,
    "load_job": "mtlc.job.job",
    "open_bundle": "mtlc.runtime.bundle.open_bundle",
    "package": "mtlc.workflows.package",
    "plan": _VERBS,
    "plan_job": "mtlc.workflows.plan",
    "profile": _VERBS,
    "prune": _BY_HAND,
    "quantize": _VERBS,
    "run_job": "mtlc.workflows.run",
    "run_pass": _BY_HAND,
    "search": _VERBS,
    "silent": "mtlc.log",
    "slim": _VERBS,
    "sweep": "mtlc.workflows.python_sweep",
    "slim_job": "mtlc.workflows.slim",
    "verify_bundle": "mtlc.export.bundle.verify",
}
_CALLED = {name: f"mtlc.{name}" for name in ("compress", "export")}
"""Verbs that are called as the packages that do their work: see `mtlc.lazy.callable_package`."""

__all__ = ["__version__", *_HOMES, *_CALLED]  # their types are in __init__.pyi

__getattr__ = lazy_names(__name__, _HOMES, _CALLED)
moved.install()
