"""Prints: results on stdout, progress and logs on stderr, colour on a terminal only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import click

from mtlc.errors import escaped
from mtlc.log import Level, LevelledLog, between_bars


def log_line(line: str) -> None:
    """A line of progress on stderr, above the bars that are shown there."""
    with between_bars():
        click.secho(f"  {escaped(line)}", dim=True, err=True, color=colour())


def colour() -> bool | None:
    """None: click colours what goes to a terminal and nothing else. https://no-color.org"""
    return False if os.environ.get("NO_COLOR") else None


def emit(as_json: bool, result: Any, text: Callable[[Any], str]) -> None:
    """The result on stdout: JSON for programs, or what `text` makes of it for people.

    For people every text in the result is `escaped` first: names in it may come from a stranger's bundle or checkpoint.
    In JSON control characters are escaped as well.
    """
    click.echo(json.dumps(_values(result), indent=1) if as_json else text(_shown(result)))


def _shown(value: Any) -> Any:
    """A result of the same type in which every text can go to a terminal."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, Path):
        return Path(escaped(str(value)))
    if isinstance(value, Mapping):
        return {_shown(key): _shown(one) for key, one in value.items()}
    if isinstance(value, list | set | frozenset) or type(value) is tuple:
        return type(value)(_shown(one) for one in value)
    if hasattr(value, "model_copy"):  # a model of pydantic, which is not imported for this
        given = value.model_fields_set  # copying a default would make it look given
        return value.model_copy(update={name: _shown(getattr(value, name)) for name in given})
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: _shown(getattr(value, one.name)) for one in fields(value) if one.init})
    return value


def _values(result: Any) -> Any:
    """JSON values of a result, or of a list of results."""
    if isinstance(result, list):
        return [_values(one) for one in result]
    return result.to_dict() if hasattr(result, "to_dict") else result


def listener(level: str) -> dict[str, Any]:
    """The arguments `log` and `progress` of a verb's call: on stderr what `level` asks for, bars on a terminal only."""
    log = LevelledLog(log_line, cast("Level", level))
    return {"log": log, "progress": level in ("debug", "info") and sys.stderr.isatty()}
