"""Kills each verb that writes at random moments, runs it again, and compares what comes out with an undisturbed run.

    python scripts/kill_verbs.py [--verb NAME]... [--kills N] [--of-run N] [--seed N] [--out FILE.json]

A verb runs on copies of one small folder: twice undisturbed, then killed (SIGKILL, with its children) and run again to
its end, N times. Every other kill comes at a moment drawn from the processor time of the undisturbed run, the others
right before a call that changes a file, drawn from all of them. After a kill nothing may be half there; after the run
that follows all must be there that the undisturbed run leaves, nothing else, and the same;
`left_files.py` says what counts as the same.

Verbs run in processes that are forked from one which has imported what they need. With --out, what was found is
written after each kill, and a run that was cut off goes on with the next one. Exit code 1 if anything differs.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import atexit
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from left_files import LeftFiles, Snapshot, snapshot

from mtlc.files import scratch_folder, write_json

JOB = """\
schema = 1
[model]
factory = "mtlc.zoo:mtl_resnet"
args = { tasks = { depth = 1, semseg = 13 }, widths = [8, 16], depths = [1, 1], decoder_width = 8 }
weights = "w.safetensors"
[tasks.depth]
loss = "l1"
metric = "rmse"
[tasks.semseg]
loss = "cross_entropy"
metric = "miou"
[data]
factory = "mtlc.zoo:scenes"
args = { train = 24, val = 4, size = 16, tasks = ["semseg", "depth"] }
root = "data"
[train]
epochs = 2
batch_size = 4
checkpoint_seconds = 1e-6
"""
PRUNE = """\
[budget]
macs = "80%"
[[passes]]
name = "prune"
round_to = 4
sensitivity = []
finetune = { epochs = 1, batch_size = 4, checkpoint_seconds = 1e-6 }
[[passes]]
name = "calibrate"
"""
SLIM = """\
[slim]
budgets = ["70%"]
recalibrate = 8
[[passes]]
name = "slim"
widths = [0.5, 1.0]
round_to = 2
importance_samples = 4
recalibrate = 8
train = { epochs = 1, batch_size = 4, checkpoint_seconds = 1e-6 }
"""
SEARCH = ("search", "slim-out/program", "--job", "slim.toml", "--budget", "70%", "--out", "found")
QUANTIZE = ("quantize", "job-out/bundle", "--job", "job.toml", "--out", "int8")
VERBS: dict[str, tuple[str, ...]] = {
    "init": ("init", "new", "--force"),
    "train": ("train", "job.toml"),
    "run": ("run", "job.toml"),
    "slim": ("slim", "slim.toml"),
    "search": SEARCH,
    "export": ("export", "job.toml", "--out", "b.mtlc"),
    "quantize": (*QUANTIZE, "--html", "int8.html"),
    "build": ("build", "job-out/bundle", "--target", "openvino", "--out", "ir"),
    "infer": ("infer", "b.mtlc", "data/images/val_000000.png", "--out", "pictures", "--raw"),
    "report": ("report", "job-out"),
    "compare": ("compare", "job-out/reference-bundle", "job-out/bundle", "--rounds", "2", "--html", "c.html"),
    "calibrate": ("calibrate", "--out", "here.toml", "--seconds", "0.2", "--threads", "1"),
}
"""A verb that writes -> its arguments. Each finds what those before it leave, where they are in `BEFORE`."""
BEFORE = {
    "run": ("train",), "slim": ("train",), "export": ("train",), "search": ("train", "slim"),
    "quantize": ("train", "run"), "build": ("train", "run"), "infer": ("train", "export"),
    "report": ("train", "run"), "compare": ("train", "run"),
}  # fmt: skip
_CHANGES = {
    "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree", "ctypes.dlsym",
}  # fmt: skip
"""What Python says it is about to do (`sys.addaudithook`), beside opening files to write. Folders change places through
`ctypes`."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

Left = tuple[Snapshot, tuple[int, float]]
"""What a run leaves, its calls that change a file, and its seconds of processor time."""


@dataclass(frozen=True)
class Killed:
    """One kill. `where` is seconds of processor time, or the number of the call that changes a file."""

    verb: str
    number: int
    how: str
    where: float
    ended_before: bool
    wrong: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--verb", action="append", choices=list(VERBS), help="a verb to kill; default: all")
    parser.add_argument("--kills", type=int, default=10, help="of each verb but run")
    parser.add_argument("--of-run", type=int, default=100, help="of run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file; if it is there, go on after it")
    given = parser.parse_args(arguments)
    counts = {verb: given.of_run if verb == "run" else given.kills for verb in given.verb or VERBS}
    found = kill_all(counts, given.seed, given.out, lambda line: print(line, file=sys.stderr, flush=True))
    wrong = [line for one in found for line in one["wrong"]]
    print(f"{len(found)} kills, {len(wrong)} differences")
    return 1 if wrong else 0


def kill_all(
    counts: Mapping[str, int], seed: int, out: Path | None = None, log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Kill each verb so many times. `out` keeps what was found; the kills that it has are not done again.

    Returns a `Killed` for each kill, as a dict.
    """
    _import_what_verbs_need()
    found: list[dict[str, Any]] = []
    if out is not None and out.exists():
        kept = json.loads(out.read_text())
        found = kept["kills"] if kept["seed"] == seed else []
    with scratch_folder("kills") as scratch:
        bases = _Bases(scratch)
        for verb, count in counts.items():
            left = sorted(set(range(count)) - {one["number"] for one in found if one["verb"] == verb})
            if not left:
                continue
            undisturbed = Undisturbed(verb, bases.of(verb), scratch)
            for number in left:
                one = undisturbed.kill(number, seed)
                log(f"{verb} {number}: {one.how} {one.where:g}: {'; '.join(one.wrong) or 'as undisturbed'}")
                found.append(asdict(one))
                if out is not None:
                    write_json(out, {"kind": "simulated kills (SIGKILL)", "seed": seed, "kills": found})
    return found


class _Bases:
    """Folders with what a verb needs before it: made once, and copied for every run."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._made = scratch, dict[tuple[str, ...], Path]()

    def of(self, verb: str) -> Path:
        return self._after(BEFORE.get(verb, ()))

    def _after(self, verbs: tuple[str, ...]) -> Path:
        if verbs not in self._made:
            folder = self._scratch / "-".join(("base", *verbs))
            if verbs:
                _copy(self._after(verbs[:-1]), folder)
                code, log = Run(folder, VERBS[verbs[-1]]).end()
                assert code in (0, 3), log
            else:
                folder.mkdir()
                (folder / "job.toml").write_text(JOB + PRUNE)
                (folder / "slim.toml").write_text(JOB + SLIM)
            self._made[verbs] = folder
        return self._made[verbs]


class Run:
    """A verb in a process of its own, in `folder`, with temporary files and caches in it.

    `die_at` kills it right before its call of that number, from 1, that changes a file.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], die_at: int = 0) -> None:
        self._log = folder.with_name(f"{folder.name}.log")
        self._count = folder.with_name(f"{folder.name}.count")
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if self.process == 0:
            _child(folder, arguments, die_at, self._log, self._count)

    def end(self) -> tuple[int, str]:
        """Wait for its end: the exit code, negative for a signal, and what it printed."""
        _, status = os.waitpid(self.process, 0)
        self._kill_children()
        return os.waitstatus_to_exitcode(status), self._log.read_text(errors="replace")[-2000:]

    def kill_after(self, seconds: float) -> int:
        """Kill it after these seconds of processor time, and give its exit code: it may have ended before."""
        while self.seconds() < seconds:
            if os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)
        return self.end()[0]

    def seconds(self) -> float:
        """Processor time so far."""
        try:
            fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def changes(self) -> int:
        """How many calls it made that change a file, and the processor time it took."""
        return int(self._count.read_text().split()[0])

    def total_seconds(self) -> float:
        """The processor time of a run that ended by itself."""
        return float(self._count.read_text().split()[1])

    def _kill_children(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process, signal.SIGKILL)


def _child(folder: Path, arguments: Sequence[str], die_at: int, log: Path, count: Path) -> None:
    """What the forked process does: never returns."""
    code = 1
    try:
        with suppress(PermissionError):
            os.setsid()
        os.chdir(folder)
        for name in ("tmp", "cache", "config"):
            (folder / name).mkdir(exist_ok=True)
        os.environ |= {
            "TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_CONFIG_HOME": str(folder / "config"), "HOME": str(folder / "config"),
        }  # fmt: skip
        tempfile.tempdir = None
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        counted = _count_changes(die_at)
        from mtlc.cli import main as mtlc

        begun = time.process_time()
        try:
            mtlc([*arguments])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        atexit._run_exitfuncs()
        total, seconds = counted(), time.process_time() - begun
        count.write_text(f"{total} {seconds}")
    finally:
        os._exit(code)


def _count_changes(die_at: int) -> Callable[[], int]:
    """Count this process's calls that change a file, and kill it before the one with the number `die_at`."""
    seen = [0]

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and isinstance(values[2], int) and values[2] & _WRITES):
            seen[0] += 1
            if seen[0] == die_at:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen[0]


class Undisturbed:
    """What two undisturbed runs of a verb leave, and comparisons with it."""

    def __init__(
        self, verb: str, base: Path, scratch: Path, one: Left | None = None, other: Left | None = None
    ) -> None:
        self._verb, self._base, self._scratch = verb, base, scratch
        left, first = one or self._run("one")
        again, second = other or self._run("other")
        self._left = LeftFiles(left, again)
        self._changes, self._seconds = min(first[0], second[0]), max(first[1], second[1])

    def kill(self, number: int, seed: int) -> Killed:
        """Kill a run, run it again, and compare."""
        draw = random.Random(f"{seed}/{self._verb}/{number}")
        folder = _copy(self._base, self._scratch / "killed")
        try:
            if number % 2:
                how, where = "before change", float(draw.randint(1, self._changes))
                code = Run(folder, VERBS[self._verb], int(where)).end()[0]
            else:
                how, where = "after seconds", draw.uniform(0, self._seconds)
                code = Run(folder, VERBS[self._verb]).kill_after(where)
            ended = code != -signal.SIGKILL
            wrong = [] if code in (-signal.SIGKILL, 0, 3) else [f"it ended with {code}"]
            wrong += [f"after the kill: {line}" for line in self._half_written(folder)]
            code, log = Run(folder, VERBS[self._verb]).end()
            wrong += [] if code in (0, 3) else [f"the run after it ended with {code}: {log[-300:]}"]
            wrong += self.differences(snapshot(folder))
            return Killed(self._verb, number, how, where, ended, wrong)
        finally:
            shutil.rmtree(folder)

    def _run(self, name: str) -> Left:
        folder = _copy(self._base, self._scratch / name)
        run = Run(folder, VERBS[self._verb])
        code, log = run.end()
        assert code in (0, 3), f"{self._verb}: {log}"
        found = snapshot(folder), (run.changes(), run.total_seconds())
        shutil.rmtree(folder)
        return found

    def _half_written(self, folder: Path) -> Iterator[str]:
        """Files at their final places that are neither as before nor whole. JSON that grows while a verb runs is."""
        before = snapshot(self._base)
        for path, data in snapshot(folder).items():
            if path not in self._left or data == before.get(path):
                continue
            if path.endswith(".json"):
                with suppress(ValueError):
                    json.loads(data)
                    continue
            yield from self._left.difference(path, data)

    def differences(self, found: Snapshot) -> list[str]:
        """What of this is not as undisturbed, a line each."""
        return self._left.differences(found)


def _copy(base: Path, folder: Path) -> Path:
    """A copy with the files' times, which are in the identity of data."""
    shutil.copytree(base, folder)
    return folder


def _import_what_verbs_need() -> None:
    """Once, for all that are forked. No session is opened here: a fork has none of its threads."""
    import onnx  # noqa: F401
    import torch

    import mtlc.compress.pipeline.own_code
    import mtlc.runtime.backends.onnxruntime_backend
    import mtlc.workflows.run
    import mtlc.workflows.train  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
