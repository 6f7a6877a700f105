"""Renders the report of a finished run again (``mtlc report``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtlc.errors import UserError, reason
from mtlc.results.run import RunResults


def report(out: Path, page: Path | None = None) -> Path:
    """Render `page`, or ``<out>/report.html``, from ``<out>/results.json`` and the pictures beside it; the page's path.

    Raises `UserError` if the files are not what a run wrote, the page cannot be written, or a section that a package
    adds fails.
    """
    from mtlc.report.run_report import write_report
    from mtlc.workflows.sample_pictures import load

    source, target = out / "results.json", page or out / "report.html"
    results, pictures = (
        RunResults.read(read_results(source), f"{source}: not what `mtlc run` wrote"),
        load(out / "pictures.npz"),
    )
    try:
        write_report(results, pictures, target)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:  # right in type, and no run writes such numbers
        raise UserError(f"{source}: not what `mtlc run` wrote ({error!r})") from error
    return target


def read_results(path: Path) -> dict[str, Any]:
    """The JSON of the results of a run, of this version or an earlier one; `RunResults.read` makes the type of it.

    Raises `UserError` if there are none.
    """
    try:
        results = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: cannot be read; give the folder that `mtlc run` wrote") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({reason(error)})") from None
    if not isinstance(results, dict) or "tasks" not in results:
        raise UserError(f"{path}: not the results of `mtlc run`")
    return results
