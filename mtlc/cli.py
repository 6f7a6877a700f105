"""Runs the command line: reads the verb and its arguments, and imports a verb's code when it is asked for.

Results go to stdout, progress and logs to stderr. Exit codes: 0 done; 1 a fault in mtlc; 2 usage or bad input; 3 budget
or limits missed, best effort written; 4 verification failed; 5 a backend or device is not available; 130 interrupted.
Whatever happens is one line, or a traceback with ``--debug``. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import click

import mtlc
from mtlc.commands.group import Front

VERBS = {
    "bench": "bench",
    "build": "build",
    "calibrate": "calibrate",
    "compare": "compare",
    "devices": "devices",
    "doctor": "doctor",
    "export": "export",
    "fpga": "fpga",
    "import": "import_checkpoint:import_",
    "infer": "infer",
    "init": "init",
    "inspect": "inspect",
    "package": "package",
    "plan": "plan",
    "profile": "profile",
    "quantize": "quantize",
    "report": "report",
    "run": "run",
    "search": "search",
    "slim": "slim",
    "sweep": "sweep",
    "trace": "trace",
    "train": "train",
    "verify": "verify",
}
"""Verb -> its module in `mtlc.commands`, and the name of its command there where that is not the module's."""


@click.group(cls=Front, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(mtlc.__version__, prog_name="mtlc", message="%(prog)s %(version)s")
def main() -> None:
    """Compile a multi-task network for a small device: prune, export, verify, measure, task by task.

    Start with: mtlc init, mtlc train job.toml, mtlc run job.toml.
    """


if __name__ == "__main__":
    main()
