"""Renders the sections that installed packages add to the report, and says in one line what is wrong with one."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from html import escape

from mtlc.entry_points import Addition, added_names, find_addition
from mtlc.errors import one_line
from mtlc.report.sections.section import Section
from mtlc.results.run import RunResults

GROUP = "mtlc.report_sections"


@dataclass(frozen=True)
class AddedSection:
    """A section of an installed package, in a frame of ours: its title above, an anchor of the entry point's name."""

    addition: Addition
    of: Section

    def section(self, results: RunResults) -> str | None:
        """The section as HTML; None where there is nothing to show.

        Raises `UserError` naming the package and the entry point for one that fails, or gives something else than text.
        """
        try:
            body = self.of.html(results)
        except Exception as error:  # a stranger's code may raise anything
            raise self.addition.refused(f"html() raised {one_line(error)}") from error
        if body is None:
            return None
        if not isinstance(body, str):
            raise self.addition.refused(f"html() gave {type(body).__name__}: give the section's HTML as str, or None")
        name, title = escape(self.addition.name, quote=True), escape(self.of.title)
        return f'\n<section id="{name}"><h2>{title}</h2>\n{body}\n</section>'


def added_sections(ours: Container[str]) -> list[AddedSection]:
    """The sections of installed packages, by name.

    Raises `UserError` naming the package and the entry point for one that cannot be imported or is no section, and for
    a name that is one of `ours` or that two packages have: it is the section's anchor in the page.
    """
    found = [find_addition(GROUP, name, ours) for name in added_names(GROUP)]
    return [AddedSection(addition, _made(addition)) for addition in found if addition is not None]


def _made(addition: Addition) -> Section:
    named = addition.load()
    try:
        section = named() if isinstance(named, type) else None
    except Exception as error:
        raise addition.refused(f"{named.__name__}() raised {one_line(error)}") from error
    if not isinstance(section, Section) or not isinstance(section.title, str) or not callable(section.html):
        raise addition.refused("must name a class with a `title` and `html(results)`, like `Section`")
    return section
