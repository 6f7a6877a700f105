"""Describes a verb's work in plain values, so that another process or machine can do it, and does it there.

A work order names a job by its path, and what is set over it. ``python -m mtlc.workflows.work_order`` reads one from
stdin, as JSON, does it, and tells on stdout how it gets on, a JSON value a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mtlc.checksums import read_sealed, write_sealed
from mtlc.errors import MtlcError, UserError, one_line
from mtlc.files import one_at_a_time
from mtlc.log import Log, silent

DONE = "done.json"
"""In the folder of a finished order, sealed: its key. So it is known that nothing is left to do."""


@dataclass(frozen=True)
class WorkOrder:
    """What to do: the verb (``run`` or ``slim``), the job's path and the output folder, both absolute.

    `overrides` are texts ``KEY=VALUE``, `device` is what torch computes on (None: the job's), `threads` are those of
    torch (None: all). `key` names all that the result follows from: what was finished under it is not done again; None
    always does it. `options` are further arguments of the verb.
    """

    verb: str
    job: str
    out: str
    overrides: tuple[str, ...] = ()
    device: str | None = None
    threads: int | None = None
    key: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.out)

    def is_done(self) -> bool:
        """Whether its folder holds what it asks for."""
        kept = None if self.key is None else read_sealed(self.folder / DONE, silent)
        return kept is not None and kept.get("key") == self.key and (self.folder / _RESULTS[self.verb]).is_file()


class Failure(NamedTuple):
    """Why an order could not be done, in one line, and the exit code of it."""

    line: str
    exit_code: int

    def error(self) -> MtlcError:
        """The same as an error that the command line shows."""
        found = MtlcError(self.line)
        found.exit_code = self.exit_code
        return found

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        if isinstance(error, MtlcError):
            return cls(str(error), error.exit_code)
        return cls(f"{one_line(error)} (a fault in mtlc; `mtlc run` with --debug shows the traceback)", 1)


_RESULTS = {"run": "results.json", "slim": "slim.json"}
"""What a finished verb leaves in its folder."""


def do(order: WorkOrder, log: Log) -> None:
    """Do what is asked for, unless it is done. Raises what the verb raises.

    Where another process is at the same order, its end is waited for first: so nothing is computed twice, also where
    a machine that was given up still works.
    """
    import torch

    if order.threads is not None:
        torch.set_num_threads(order.threads)
    with one_at_a_time(order.folder):
        if order.is_done():
            return
        _verb(order)(log=log)
        if order.key is not None:
            write_sealed(order.folder / DONE, {"key": order.key})


def _verb(order: WorkOrder) -> Callable[..., Any]:
    from mtlc.job.job import load_job
    from mtlc.workflows.run import run_job
    from mtlc.workflows.slim import slim_job

    job = load_job(Path(order.job), order.overrides).on(order.device)
    options = {key: Path(value) if key == "trained" and value else value for key, value in order.options}
    verbs: dict[str, Callable[..., Any]] = {"run": run_job, "slim": slim_job}
    return partial(verbs[order.verb], job, order.folder, **options)


def result_of(order: WorkOrder) -> Any:
    """What the verb of a finished order returned, read from its folder."""
    from mtlc.results.run import RunResults
    from mtlc.results.slim import SlimResult

    path = order.folder / _RESULTS[order.verb]
    kinds: dict[str, type[RunResults | SlimResult]] = {"run": RunResults, "slim": SlimResult}
    try:
        return kinds[order.verb].read(json.loads(path.read_text()), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); is the folder shared by all machines?") from None


def main() -> int:
    """Do the order on stdin; 0 also where it failed, for that is told on stdout."""
    # What the user's code prints is not what is told: it goes where errors go.
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(**values: Any) -> None:
        told.write(json.dumps(values) + "\n")
        told.flush()

    given = json.load(sys.stdin)
    order = WorkOrder(**{**given, "overrides": tuple(given["overrides"]), "options": tuple(given["options"])})
    try:
        do(order, lambda line: tell(line=line))
        tell(done=True)
    except BrokenPipeError:  # nobody listens any more
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        tell(failed=list(Failure.of(error)))
    return 0


def as_json(order: WorkOrder) -> str:
    """The order as `main` reads it."""
    return json.dumps(asdict(order))


if __name__ == "__main__":
    sys.exit(main())
