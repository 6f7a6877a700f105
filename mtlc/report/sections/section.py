"""Defines what a section of a run's report is, for ours and for those of other packages."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from mtlc.results.run import RunResults


@runtime_checkable
class Section(Protocol):
    """A part of the report with a heading of its own.

    A package adds one with an entry point of the group ``mtlc.report_sections`` that names a class without constructor
    arguments: ``docs/extending.md`` shows how.
    """

    title: str
    """The heading, as plain text."""

    def html(self, results: RunResults) -> str | None:
        """The body as HTML, everything in it escaped; None where there is nothing to show: the section is left out.

        The page loads nothing from elsewhere: pictures are inline SVG or data URIs.
        """
