"""Gives modules that have moved under the names that earlier documentation gave them.

Users' own code names them: the data code of a job says ``from mtlc.data import Splits``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # `typing` takes longer to import than this file
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "mtlc.data": ("mtlc.evaluation.splits",),
    "mtlc.labels": ("mtlc.tasks.labels",),
    "mtlc.losses": ("mtlc.tasks.losses",),
    "mtlc.metrics": ("mtlc.tasks.metrics",),
    "mtlc.surgery": ("mtlc.program.surgery",),
    "mtlc.compress.calibrate": ("mtlc.compress.training.batch_norm", "mtlc.compress.passes.calibrate"),
    "mtlc.hw.active": ("mtlc.hw.routing.active_macs",),
    "mtlc.hw.footprint": ("mtlc.hw.measure.memory_and_start",),
    "mtlc.hw.fpga.network": ("mtlc.hw.routing.moe_vit_shape",),
    "mtlc.hw.fpga.routing": ("mtlc.hw.routing.routing_trace",),
    "mtlc.hw.fpga.search": ("mtlc.hw.fpga.design_search",),
    "mtlc.hw.fpga.simulator": ("mtlc.hw.fpga.event_simulation",),
    "mtlc.hw.fpga.timeline": ("mtlc.report.figures.fpga_timeline",),
    "mtlc.hw.instructions": ("mtlc.hw.measure.instructions",),
    "mtlc.hw.latency": ("mtlc.hw.latency_table",),
    "mtlc.hw.latency.table": ("mtlc.hw.latency_table.table",),
    "mtlc.hw.layer_profile": ("mtlc.hw.measure.layer_profile",),
    "mtlc.hw.report": ("mtlc.report.run_report", "mtlc.report.result_parts"),
    "mtlc.hw.report_quantization": ("mtlc.report.sections.int8",),
    "mtlc.hw.report_widths": ("mtlc.report.widths_report",),
    "mtlc.hw.rtl.simulator": ("mtlc.hw.rtl.verilator",),
    "mtlc.hw.width_plots": ("mtlc.report.figures.widths",),
    "mtlc.hw.workload": ("mtlc.hw.cost.count", "mtlc.hw.cost.workload"),
    "mtlc.runtime.choose": ("mtlc.runtime.widths.width_choice",),
}
"""Each old name, and the modules where its contents are now."""

RENAMED = {"mtlc.hw.fpga.search.search": "explore_designs", "mtlc.runtime.choose.Budget": "WidthBudget"}
"""What has another name there: one word for one thing."""


class _Moved:
    """Finds and loads the old names.

    It has no base class, as `importlib.abc` takes 10 ms. It stands last among Python's finders: modules that exist
    never come here.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        import warnings

        new = " and ".join(MOVED[fullname])
        warnings.warn(f"{fullname} is now {new}", DeprecationWarning, stacklevel=2)
        # Each may be a package, as `mtlc.hw.latency` was: its empty path leads nowhere but to this table.
        return ModuleSpec(fullname, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave making the module to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Let `module` look its names up in the new modules, which are imported only now."""
        homes = [import_module(new) for new in MOVED[module.__name__]]

        def find(name: str) -> Any:
            name = RENAMED.get(f"{module.__name__}.{name}", name)
            for home in homes:
                if hasattr(home, name):
                    return getattr(home, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = find  # type: ignore[method-assign]


def install() -> None:
    """Make the old names importable. A second call does nothing."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
