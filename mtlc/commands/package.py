"""Reads the options of ``mtlc package``, calls it, and prints what it made for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlc.commands.options import BUNDLE, DEBUG, JSON, LOG_LEVEL, PATH
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import table

if TYPE_CHECKING:
    from mtlc.results.package import PackageResult


def text(result: PackageResult) -> str:
    """What is in the folder, and what to do with it."""
    rows = [(name, f"{size / 1e6:.2f}") for name, size in result.bytes.items() if size]
    needs = "" if result.glibc is None else f"; it needs glibc {result.glibc} or later"
    lines = [f"{result.out}: for {result.target}, {result.files} files{needs}", "", table(("part", "MB"), rows), ""]
    if result.tried is not None:
        worst = max(result.tried.values(), default=0.0)
        same = "gives the same bits as the Python runtime" if worst == 0 else f"differs from Python's by {worst:.1e}"
        lines.append(f"run here: {same}")
    else:
        lines.append("not run here: " + ("it has no engine" if result.engine is None else "it is for another machine"))
    lines.append(f"copy it to the board and start {Path(result.out).name}/run.sh check")
    return "\n".join(lines)


@click.command()
@BUNDLE
@click.option("--out", type=PATH, required=True, help="The folder to make.")
@click.option("--target", metavar="NAME", help="linux-x86_64 or linux-aarch64. Default: this machine's.")
@click.option(
    "--engine", metavar="FILE",
    help="onnxruntime's library for the target, or its wheel. Default: that installed here, or pip's.",
)  # fmt: skip
@click.option("--no-engine", is_flag=True, help="Leave the engine out: the board has one.")
@click.option("--compiler", metavar="COMMAND", help="A C compiler for the target. Default: Zig's, else the system's.")
@JSON
@DEBUG
@LOG_LEVEL
def package(
    bundle: Path,
    out: Path,
    target: str | None,
    engine: str | None,
    no_engine: bool,
    compiler: str | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Make a folder that a board runs without Python: BUNDLE, the C library, its engine, a start script."""
    from mtlc.workflows.package import package as make

    result = make(
        bundle,
        out,
        target,
        engine=engine,
        with_engine=not no_engine,
        compiler=compiler,
        log=listener(log_level)["log"],
    )
    emit(as_json, result, text)
