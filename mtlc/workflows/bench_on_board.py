"""Measures bundles on a board that is reached from here: ``mtlc bench --on`` and ``mtlc devices clean``."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mtlc
from mtlc.checksums import file_checksum
from mtlc.errors import Unavailable, UserError
from mtlc.export.package.library import SOURCES, find_compiler
from mtlc.export.package.target import TARGETS, Target
from mtlc.files import cache_folder, one_at_a_time
from mtlc.hw.boards import copying, timing
from mtlc.hw.boards.reach import Reach
from mtlc.hw.boards.ssh import Board
from mtlc.hw.devices.catalogue import device
from mtlc.log import Log, silent
from mtlc.results.board_bench import BoardBenchResult, BoardRow, BoardState
from mtlc.results.package import PackageResult
from mtlc.runtime import open_bundle
from mtlc.runtime.bundle.payload_checks import MANIFEST
from mtlc.workflows.package import DESCRIPTION, package

TURNS = 5
RUNS = 100
_SECONDS_A_RUN = 60
"""No call of a network that is worth a measurement takes longer."""


@dataclass(frozen=True)
class _Setting:
    bundle: Path
    configuration: str | None
    threads: int
    name: str  # of its package on the board


def bench_on_board(
    bundles: Sequence[Path], board: str, *, threads: Sequence[int] = (), configurations: Sequence[str] = (),
    tasks: Sequence[str] = (), batch: int = 1, runs: int | None = None, log: Log = silent,
) -> BoardBenchResult:  # fmt: skip
    """A row per combination of bundle, configuration and number of threads, measured on `board` in turns.

    `board` is a device, or the path of a device file, with a table ``[reach]``. What each bundle needs is packaged
    (`mtlc.workflows.package`), copied if it is not there yet, and run by the C library, on zeros. Nothing else on the
    board is changed: clocks and temperatures are read and told.

    Raises `UserError` for what does not fit, `Unavailable` where the board cannot be reached or cannot run it.
    """
    reach, reached = _reach(board)
    before = timing.state(reached)
    target = _target(reached, before)
    runs = RUNS if runs is None else runs
    packages = {path: _packaged(path, target, log) for path in bundles}
    names, sent = {}, 0
    for path, (folder, name) in packages.items():
        sent += copying.send(reached, reach.folder, folder, name, log).sent
        names[path] = name
    settings = [
        _Setting(path, configuration, count, names[path])
        for path in packages
        for configuration in dict.fromkeys(configurations or (None,))
        for count in dict.fromkeys(threads or (1,))
    ]
    found: list[list[timing.Timing]] = [[] for _ in settings]
    for turn in range(TURNS):
        log(f"{board}: turn {turn + 1} of {TURNS}")
        for place, setting in enumerate(settings):
            options = _options(setting, tasks, batch, runs)
            seconds = float(_SECONDS_A_RUN * (runs + 1))
            found[place].append(timing.time_package(reached, reach.folder, setting.name, options, seconds))
    first = PackageResult.read(_described(packages[bundles[0]][0]), DESCRIPTION)
    return BoardBenchResult(
        kind="measured", board=board, place=reach.ssh, target=target.name, engine=first.engine,
        before=_shown(before), after=_shown(timing.state(reached)), sent_bytes=sent, batch=batch, runs=runs,
        tasks=list(tasks) or None, rows=[_row(*one, found[0]) for one in zip(settings, found, strict=True)],
    )  # fmt: skip


def clean_board(board: str, log: Log = silent) -> int:
    """Remove what mtlc keeps on a board. Returns how many bytes went."""
    reach, reached = _reach(board)
    freed = copying.clean(reached, reach.folder)
    log(f"{board}: {reach.folder} is gone from {reach.ssh}")
    return freed


def _reach(name: str) -> tuple[Reach, Board]:
    found = device(name)
    if found.reach is None:
        raise UserError(
            f"device {name!r}: does not say where a board is; write a device file of your own with [reach] ssh = "
            '"user@host" (docs/boards.md)'
        )
    return found.reach, Board(name, found.reach.ssh)


def _target(board: Board, state: timing.BoardState) -> Target:
    if state.lacks:
        raise Unavailable(f"board {board.name!r}: has no {', '.join(state.lacks)}")
    for target in TARGETS.values():
        if state.system == "Linux" and target.machine == state.machine:
            return target
    known = " or ".join(target.machine for target in TARGETS.values())
    raise Unavailable(f"board {board.name!r}: is {state.system} on {state.machine}; packages are for Linux on {known}")


def _packaged(bundle: Path, target: Target, log: Log) -> tuple[Path, str]:
    """The package of a bundle for a target, from the cache if it is there, and its name on boards."""
    with open_bundle(bundle) as opened:
        key = [mtlc.__version__, version("onnxruntime"), target.name, file_checksum(opened.file(MANIFEST))]
    # The sources too: in a checkout they change within a version. And the compiler: one may bring an older glibc.
    key += find_compiler(target)
    key += [file_checksum(path) for path in sorted(SOURCES.rglob("*")) if path.is_file()]
    name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
    folder = cache_folder("packages") / name
    with one_at_a_time(folder):
        if not (folder / DESCRIPTION).is_file():
            package(bundle, folder, target.name, log=log)
    return folder, name


def _described(folder: Path) -> object:
    described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return {"bundle": "", "out": str(folder), **described}


def _options(setting: _Setting, tasks: Sequence[str], batch: int, runs: int) -> list[str]:
    options = ["--runs", str(runs), "--batch", str(batch), "--threads", str(setting.threads)]
    if setting.configuration is not None:
        options += ["--configuration", setting.configuration]
    return [*options, "--tasks", ",".join(tasks)] if tasks else options


def _row(setting: _Setting, turns: Sequence[timing.Timing], first: Sequence[timing.Timing]) -> BoardRow:
    def middle(key: str) -> float:
        return float(statistics.median(getattr(turn, key) for turn in turns))

    faster = [one.median_ms / own.median_ms for one, own in zip(first, turns, strict=True) if own.median_ms > 0]
    return BoardRow(
        bundle=str(setting.bundle), configuration=setting.configuration, threads=setting.threads,
        median_ms=middle("median_ms"), turns_ms=[turn.median_ms for turn in turns],
        min_ms=min(turn.min_ms for turn in turns), p95_ms=middle("p95_ms"), cpu_ms=middle("cpu_ms"),
        open_ms=middle("open_ms"), first_ms=middle("first_ms"),
        peak_bytes=1024 * max(turn.peak_rss_kb for turn in turns), faster=None if turns is first else faster,
    )  # fmt: skip


def _shown(state: timing.BoardState) -> BoardState:
    return BoardState(machine=state.machine, celsius=state.celsius, clock_mhz=state.clock_mhz, governor=state.governor)
