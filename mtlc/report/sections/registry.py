"""Lists the sections of a run's report in their order: ours, then those of installed packages."""

from __future__ import annotations

from mtlc.report.sections.added_section import AddedSection, added_sections
from mtlc.report.sections.blocked import blocked_section
from mtlc.report.sections.budget import budget_section
from mtlc.report.sections.changes import changes_section
from mtlc.report.sections.cost import cost_section
from mtlc.report.sections.devices import devices_section
from mtlc.report.sections.experts import experts_section
from mtlc.report.sections.fpga import fpga_sections
from mtlc.report.sections.int8 import quantization_section
from mtlc.report.sections.latency import latency_section
from mtlc.report.sections.layers import layers_section
from mtlc.report.sections.network import network_section
from mtlc.report.sections.passes import passes_section
from mtlc.report.sections.routing import routing_section
from mtlc.report.sections.samples import Pictures, samples_section
from mtlc.report.sections.sensitivity import sensitivity_section
from mtlc.report.sections.tasks import tasks_section
from mtlc.report.sections.template_section import TemplateSection


def sections(pictures: Pictures) -> list[TemplateSection | AddedSection]:
    """All sections, with what samples look like in `pictures`.

    Raises `UserError` for an installed package whose section cannot be imported or is none.
    """
    ours = [
        TemplateSection("samples", lambda _: samples_section(pictures)),
        TemplateSection("tasks", tasks_section),
        TemplateSection("latency", latency_section),
        TemplateSection("budget", budget_section),
        TemplateSection("cost", cost_section),
        TemplateSection("network", network_section),
        TemplateSection("devices", devices_section),
        TemplateSection("quantization", lambda results: quantization_section(results.quantization)),
        TemplateSection("experts", experts_section),
        TemplateSection("routing", routing_section),
        TemplateSection("fpga", lambda results: fpga_sections(results.fpga)),
        TemplateSection("changes", changes_section),
        TemplateSection("layers", layers_section),
        TemplateSection("sensitivity", sensitivity_section),
        TemplateSection("blocked", blocked_section),
        TemplateSection("passes", passes_section),
    ]
    return [*ours, *added_sections([one.name for one in ours])]
