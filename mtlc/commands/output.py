"""Prints: results on stdout, progress and logs on stderr, colour on a terminal only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from mtlc.log import silent


def log_line(line: str) -> None:
    click.secho(f"  {line}", dim=True, err=True, color=colour())


def colour() -> bool | None:
    """None: click colours what goes to a terminal and nothing else. https://no-color.org"""
    return False if os.environ.get("NO_COLOR") else None


def emit(as_json: bool, result: Any, text: Callable[[Any], str]) -> None:
    """The result on stdout: JSON for programs, or what `text` makes of it for people."""
    click.echo(json.dumps(_values(result), indent=1) if as_json else text(result))


def _values(result: Any) -> Any:
    """JSON values of a result, or of a list of results."""
    if isinstance(result, list):
        return [_values(one) for one in result]
    return result.to_dict() if hasattr(result, "to_dict") else result


def listener(quiet: bool) -> dict[str, Any]:
    """The arguments `log` and `progress` of a verb's call: on stderr, or none if `quiet`."""
    return {"log": silent if quiet else log_line, "progress": not quiet and sys.stderr.isatty()}
