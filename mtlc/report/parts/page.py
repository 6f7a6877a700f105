"""Renders templates to pages: a page is one file, written at once or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlc.files import atomic_file

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_JSON = 6000


def write_page(template: str, view: Mapping[str, Any], path: Path) -> None:
    """Render `template` with `view` to `path`, atomically. Raises `UserError` if the file cannot be written."""
    page = render(template, view, **_script())
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(template: str, view: Mapping[str, Any], **more: Any) -> str:
    """`template` of the folder ``templates`` with `view`, as HTML: what the view holds is escaped."""
    return _templates().get_template(template).render(view, **more)


@cache
def _script() -> dict[str, str]:
    """The pages' script, and its hash by which a page's policy knows it: a browser runs no other script in them."""
    text = resources.files("mtlc.report").joinpath("templates", "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": text, "script_hash": f"sha256-{digest}"}


@cache
def _templates() -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("mtlc.report"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def tile(label: str, value: str, note: str, kind: str | None, tone: str = "") -> dict[str, Any]:
    """A figure of the summary, with its kind (None where it has none) and "good" or "bad" as its tone."""
    return {"label": label, "value": value, "note": note, "kind": kind, "tone": tone}


def json_text(value: Any, source: str = "results.json") -> str | None:
    """`value` as indented JSON, cut where it is long with a pointer to `source`; None for nothing."""
    if not value:
        return None
    text = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False, default=str)
    return (
        text
        if len(text) <= MAX_JSON
        else f"{text[:MAX_JSON]}\n… {len(text) - MAX_JSON} more characters are in {source}"
    )
