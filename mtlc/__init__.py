"""Compiles multi-task networks for edge devices.

Importing the package imports neither torch nor onnxruntime; the parts do that when they are used.
"""

from mtlc import moved
from mtlc.lazy import lazy_names

__version__ = "0.1.0"

_HOMES = {
    "Limit": "mtlc.tasks.task",
    "Metric": "mtlc.tasks.metrics",
    "MtlcError": "mtlc.errors",
    "Pass": "mtlc.compress.pass_interface",
    "Program": "mtlc.program.program",
    "Session": "mtlc.runtime.session",
    "Splits": "mtlc.evaluation.splits",
    "TaskSpec": "mtlc.tasks.task",
    "export_bundle": "mtlc.export.bundle.write_bundle",
    "load_job": "mtlc.job.job",
    "open_bundle": "mtlc.runtime.bundle.open_bundle",
    "plan_job": "mtlc.workflows.plan",
    "run_job": "mtlc.workflows.run",
    "slim_job": "mtlc.workflows.slim",
    "verify_bundle": "mtlc.export.bundle.verify",
}

__all__ = ["__version__", *_HOMES]  # their types are in __init__.pyi

__getattr__ = lazy_names(__name__, _HOMES)
moved.install()
