"""The arguments and options that several verbs share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mtlc.errors import UserError
from mtlc.log import LEVELS, shown_bars

F = TypeVar("F", bound=Callable[..., Any])

JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
DEBUG = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
PATH = click.Path(path_type=Path)
JOB = click.argument("job", type=PATH)
SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Set a key of the job, such as passes.0.round_to=16, or remove one: '~passes.1'; may be given again.",
)  # fmt: skip
BUNDLE = click.argument("bundle", type=PATH)
THREADS = click.option("--threads", type=click.IntRange(1, 1024), help="Threads per program. Default: the backend's.")
BACKEND = click.option("--backend", default="auto", show_default=True, help="onnxruntime, openvino or tensorrt.")
ROUNDS = click.option(
    "--rounds",
    type=click.IntRange(2, 1_000_000),
    help="Timed calls. Default: 50, and up to 400 until the figures are known to within 5%.",
)
WAIT_QUIET = click.option(
    "--wait-quiet", is_flag=True, help="Measure when other processes do little; wait at most 5 minutes."
)
COMPUTE_DEVICE = click.option(
    "--device", metavar="NAME", help="What torch computes on: auto, cpu, cuda, cuda:1 or mps. Default: the job's."
)
RAY = click.option("--ray", metavar="ADDRESS", help="Run on a Ray cluster; 'local' for one on this machine.")
_QUIET = "mtlc.quiet"


def _is_quiet(context: click.Context, _: click.Parameter, quiet: bool) -> None:
    context.meta[_QUIET] = quiet


def _level(context: click.Context, _: click.Parameter, given: str | None) -> str:
    """The level, with bars on a terminal while the verb runs where it tells of progress."""
    quiet = context.meta.get(_QUIET, False)
    if quiet and given not in (None, "error"):
        raise UserError(f"--quiet is --log-level error: leave it out, or --log-level {given}")
    level = given or ("error" if quiet else "info")
    if not context.resilient_parsing:
        context.with_resource(shown_bars(level in ("debug", "info") and sys.stderr.isatty()))
    return level


def LOG_LEVEL(command: F) -> F:  # noqa: N802 - a decorator beside the others, of two options
    """Add ``--log-level`` and ``--quiet``; the command gets `log_level`."""
    command = click.option(
        "--log-level", type=click.Choice(LEVELS), callback=_level,
        help="What to tell on stderr: debug, info (default), warning or error.",
    )(command)  # fmt: skip
    return click.option(
        "--quiet", is_flag=True, is_eager=True, expose_value=False, callback=_is_quiet,
        help="As --log-level error: no progress on stderr.",
    )(command)  # fmt: skip


CONFIGURATION = click.option("--configuration", metavar="NAME", help="What to run a bundle of several widths in.")
