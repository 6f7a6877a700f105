"""``mtlc report``: the report of a finished run, rendered again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtlc.errors import UserError


def report(out: Path) -> Path:
    """Render ``<out>/report.html`` from ``<out>/results.json`` and the pictures beside it."""
    from mtlc.report.run_report import write_report
    from mtlc.workflows.sample_pictures import load

    results, target = read_results(out / "results.json"), out / "report.html"
    pictures = load(out / "pictures.npz")
    try:
        write_report(results, pictures, target)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{out / 'results.json'}: not what `mtlc run` wrote ({error!r})") from error
    return target


def read_results(path: Path) -> dict[str, Any]:
    """The results of a run. Raises `UserError` if there are none."""
    try:
        results = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: cannot be read; give the folder that `mtlc run` wrote") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]})") from None
    if not isinstance(results, dict) or "tasks" not in results:
        raise UserError(f"{path}: not the results of `mtlc run`")
    return results
