"""Renders a section of ours from its template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mtlc.report.parts.page import render
from mtlc.results.run import RunResults


@dataclass(frozen=True)
class TemplateSection:
    """The section whose template is ``templates/sections/NAME.html.j2``, whole with its heading.

    `view` makes of the results what the template shows, under the section's name: every number already words. What is
    empty leaves the section out.
    """

    name: str
    view: Callable[[RunResults], Any]

    def section(self, results: RunResults) -> str | None:
        """The section as HTML; None where there is nothing to show."""
        shown = self.view(results)
        return render(f"sections/{self.name}.html.j2", {self.name: shown}) if shown else None
