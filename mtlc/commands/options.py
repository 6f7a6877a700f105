"""The arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
DEBUG = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
QUIET = click.option("--quiet", is_flag=True, help="No progress on stderr.")
PATH = click.Path(path_type=Path)
JOB = click.argument("job", type=PATH)
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
CONFIGURATION = click.option("--configuration", metavar="NAME", help="What to run a bundle of several widths in.")
