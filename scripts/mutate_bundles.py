"""Opens thousands of damaged and hostile bundles, and counts how each fared.

    python scripts/mutate_bundles.py --backend onnxruntime --count 20000 --out benchmarks/results/hostile_bundles.json

Each mutant (see `bundle_mutations`) is shown as ``mtlc inspect`` does, opened and run in a process that has little
memory and little time. It is refused in one line, or runs, with the numbers of the bundle that it was made of (equal)
or with others (other). Anything else is a fault: an error that is no line of ours (raw), the process's death (crash),
no answer in time (timeout). Running out of the process's memory (memory) is counted, and is one where it is raw.

The mutant of a seed is always the same: ``--first SEED --count 1 --keep FOLDER`` makes one again. Result: JSON with the
counts by backend and by kind of mutation, and each fault with its source and seed. Exits with 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle_mutations import KINDS, mutate, read_folder

ROOT = Path(__file__).parent.parent
BACKENDS = ("onnxruntime", "openvino", "tensorrt")
OUTCOMES = ("refused", "equal", "other", "memory", "raw", "crash", "timeout")
FAULTS = ("raw", "crash", "timeout")
ROUNDS = 500
"""Mutants that one process opens, unless it dies: a backend keeps some memory of each."""


@dataclass
class Tally:
    """How mutants fared: by kind of mutation and outcome, and the faults."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: str, outcome: str, detail: str, source: str, seed: int) -> None:
        """Count one; keep what is needed to make it again where it is a fault."""
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome in FAULTS:
            self.faults.append({"source": source, "seed": seed, "kind": kind, "outcome": outcome, "detail": detail})

    def to_dict(self) -> dict[str, Any]:
        """JSON values: ``mutants``, ``outcomes``, ``by_kind`` and ``faults``."""
        total = sum(self.counts.values(), Counter())
        return {
            "mutants": total.total(),
            "outcomes": {name: total[name] for name in OUTCOMES},
            "by_kind": {kind: {n: counts[n] for n in OUTCOMES if counts[n]} for kind, counts in self.counts.items()},
            "faults": self.faults,
        }


class Child:
    """The process that opens bundles; a new one takes its place when it dies, is late, or has opened many."""

    def __init__(self, backend: str, megabytes: int, seconds: float) -> None:
        self._command = [sys.executable, str(Path(__file__).parent / "bundle_trial.py"), backend, str(megabytes)]
        self._seconds, self._left = seconds, 0
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, path: Path, source: Path) -> tuple[str, str]:
        """The outcome for the bundle at `path`, a mutant of `source`, and its words."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"path": str(path), "source": str(source)}).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], self._seconds)
            line = process.stdout.readline() if ready else None
        except BrokenPipeError:
            line = b""
        if line:
            self._left -= 1
            answer = json.loads(line)
            return answer["outcome"], answer["detail"]
        code = self.stop(kill=line is None)
        return ("timeout", f"no answer in {self._seconds:g} s") if line is None else ("crash", f"exit code {code}")

    def stop(self, kill: bool = False) -> int | None:
        """End the process; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        if kill:
            process.kill()
        process.communicate()
        return process.returncode

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._left <= 0:
            self.stop()
            paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
            limited = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": os.pathsep.join(paths)}
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=os.environ | limited,
            )  # fmt: skip
            self._left = ROUNDS
        return self._process


def trials(
    sources: Sequence[Path], child: Child, seeds: Iterable[int], keep: Path | None = None, kind: str | None = None
) -> Iterator[tuple[int, Path, str, str, str]]:
    """Open the mutant of each seed; sources take turns. With `keep` the mutants stay there.

    `kind` is the only kind of mutation, if given. Gives for each its seed, its source, its kind, the outcome and the
    words.
    """
    whole = [read_folder(source) for source in sources]
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        folder = Path(scratch) if keep is None else keep
        folder.mkdir(exist_ok=True)
        try:
            for seed in seeds:
                source = sources[seed % len(sources)]
                mutant = mutate(whole[seed % len(sources)], seed, kind)
                path = folder / f"mutant-{seed}"
                mutant.write(path)
                yield seed, source, mutant.kind, *child.ask(path, source)
                if keep is None:
                    path.unlink() if path.is_file() else shutil.rmtree(path)
        finally:
            child.stop()


def own_sources(folder: Path, backend: str) -> list[Path]:
    """Whole bundles to start from, written into `folder` by what the tests have."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if backend == "tensorrt":
        importlib.import_module("bundle_trial").install_fake_tensorrt()
    found: list[Path] = importlib.import_module("testkit.hostile_sources").write_sources(folder, backend)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run it, write the result, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, help="folders to start from; small ones of our own if none")
    parser.add_argument("--backend", choices=BACKENDS, default="onnxruntime")
    parser.add_argument("--count", type=int, default=1000, help="how many mutants")
    parser.add_argument("--kind", choices=sorted(KINDS), help="one kind of mutation alone")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--megabytes", type=int, default=4096, help="address space of the process that opens them")
    parser.add_argument("--seconds", type=float, default=60, help="that a mutant may take, with a backend's start")
    parser.add_argument("--keep", type=Path, help="a folder in which the mutants stay")
    parser.add_argument("--out", type=Path, help="a JSON file; other backends' results in it stay")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sources-") as scratch:
        sources = asked.bundles or own_sources(Path(scratch), asked.backend)
        child, tally = Child(asked.backend, asked.megabytes, asked.seconds), Tally()
        about = {"first_seed": asked.first, "sources": [source.name for source in sources]}
        seeds = range(asked.first, asked.first + asked.count)
        tried = trials(sources, child, seeds, asked.keep, asked.kind)
        for done, (seed, source, kind, outcome, detail) in enumerate(tried, 1):
            tally.add(kind, outcome, detail, source.name, seed)
            if asked.out is not None and (done % ROUNDS == 0 or done == asked.count):
                _write(asked.out, asked.backend, about | tally.to_dict())
    print(json.dumps({asked.backend: about | tally.to_dict()}, indent=1))
    return 1 if tally.faults else 0


def _write(path: Path, backend: str, result: Mapping[str, Any]) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    versions = {name: importlib.import_module(name).__version__ for name in ("mtlc", "onnxruntime")}
    path.write_text(json.dumps(found | {backend: {"versions": versions, **result}}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
