"""Reads the options of ``mtlc bench``, calls it, and prints what it found for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.board_table import board_text
from mtlc.commands.options import DEBUG, JSON, LOG_LEVEL, PATH, WAIT_QUIET
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import IN_DOUBT, count, cpu_ratio_text, doubts_text, ratio_text, table
from mtlc.errors import UserError

if TYPE_CHECKING:
    from mtlc.results.bench import BenchResult

MIB = 2**20


def text(result: BenchResult) -> str:
    """The setting, and a line for each row: latency, throughput, memory, start, and how it compares with the first."""
    from mtlc.results.latency import said_doubts
    from mtlc.workflows.bench import label

    device, names = result.device, ", ".join(result.tasks or [])
    configured = any(row.configuration is not None for row in result.rows)
    rows = []
    for row in result.rows:
        memory, faster = row.memory, row.faster
        mark = IN_DOUBT if result.doubts or (faster is not None and faster.doubt) else ""
        added = "-" if memory.added_bytes is None else f"{memory.added_bytes / MIB:.1f}"
        rows.append(
            (
                row.bundle, *([row.configuration] if configured else []), row.precision, row.backend, row.threads,
                f"{mark}{row.median_ms:.3f}", *(f"{ms:.3f}" for ms in (row.p90_ms, row.p99_ms, row.cpu_median_ms)),
                f"{mark}{row.throughput:.4g}", added, f"{memory.cold_ms:.0f}", count(row.bytes, "B"),
                cpu_ratio_text(faster), ratio_text(faster, bool(result.doubts)),
            )
        )  # fmt: skip
    header = (
        "bundle", *(["configuration"] if configured else []), "precision", "backend", "threads", "median ms", "p90 ms",
        "p99 ms", "cpu ms", "samples/s", "adds MiB", "cold start ms", "size", "faster by cpu", "faster",
    )  # fmt: skip
    versions = {row.backend: row.version for row in result.rows}
    used = ", ".join(f"{name} {version or ''}".rstrip() for name, version in versions.items())
    ratios = {
        label(row.bundle, row.configuration, row.backend, row.threads): row.faster
        for row in result.rows
        if row.faster is not None
    }
    doubts = said_doubts(result.doubts, ratios)
    return "\n".join(
        [
            f"measured on {device.cpu}, {used}, batch {result.batch}, {result.rounds} rounds in turns"
            + (f"; {doubts_text(doubts)}" if doubts else ""),
            f"tasks: {names}",
            table(header, rows),
        ]
    )


@click.command()
@click.argument("bundles", type=PATH, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--backend", "backends", multiple=True, help="May be given again. Default: onnxruntime.")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    multiple=True,
    help="Threads per program; may be given again. Default: 1.",
)
@click.option(
    "--configuration",
    "configurations",
    metavar="NAME",
    multiple=True,
    help="What to run bundles of several widths in; may be given again.",
)
@click.option("--task", "tasks", multiple=True, help="A task to run; may be given again. Default: all.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True)
@click.option(
    "--fixed-batch", is_flag=True, help="Tell the sessions that the batch is always this: OpenVINO is faster for it."
)
@click.option(
    "--rounds",
    type=click.IntRange(2, 1_000_000),
    help="Timed calls. Default: 200, and up to 1600 until the figures are known to within 5%.",
)
@click.option("--on", "board", metavar="BOARD", help="Measure on a board: a device, or a device file, with [reach].")
@WAIT_QUIET
@JSON
@DEBUG
@LOG_LEVEL
def bench(
    bundles: tuple[Path, ...],
    backends: tuple[str, ...],
    threads: tuple[int, ...],
    configurations: tuple[str, ...],
    tasks: tuple[str, ...],
    batch: int,
    fixed_batch: bool,
    rounds: int | None,
    board: str | None,
    wait_quiet: bool,
    as_json: bool,
    log_level: str,
) -> None:
    """Measure every BUNDLE in every --configuration and --backend with all --threads, in turns: latency, throughput,
    memory, start.
    """
    if board is not None:
        from mtlc.workflows.bench_on_board import bench_on_board

        for option, given in {"--backend": backends, "--fixed-batch": fixed_batch, "--wait-quiet": wait_quiet}.items():
            if given:
                raise UserError(f"{option}: is for measurements on this machine; a board runs the C library")
        measured = bench_on_board(
            bundles, board, threads=threads, configurations=configurations, tasks=tasks, batch=batch, runs=rounds,
            log=listener(log_level)["log"],
        )  # fmt: skip
        emit(as_json, measured, board_text)
        return
    from mtlc.workflows.bench import bench as measure

    result = measure(
        bundles, backends=backends, threads=threads, configurations=configurations, tasks=tasks, batch=batch,
        rounds=rounds, fixed_batch=fixed_batch, wait_quiet=wait_quiet, log=listener(log_level)["log"],
    )  # fmt: skip
    emit(as_json, result, text)
