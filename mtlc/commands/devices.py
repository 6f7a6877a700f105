"""Reads the options of ``mtlc devices``, calls it, and prints what it found for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import click

from mtlc.commands.device_table import device_text, figure_text
from mtlc.commands.group import Front
from mtlc.commands.options import DEBUG, JSON, LOG_LEVEL
from mtlc.commands.output import emit, listener
from mtlc.commands.tables import table
from mtlc.errors import UserError

if TYPE_CHECKING:
    from mtlc.results.known_devices import DeviceFigure, KnownDevice


def text(result: Iterable[KnownDevice]) -> str:
    """All devices, a line each. A figure that no document confirms is marked."""
    rows = []
    for device in result:
        figures = device.figures
        power = [figure_text(figures[f"power.{key}"]) for key in ("min", "typical", "max") if f"power.{key}" in figures]
        rows.append(
            (
                device.name, device.kind or "-", _peaks(figures, "int8"), _peaks(figures, "fp16", "bf16"),
                figure_text(figures.get("memory.bandwidth")), figure_text(figures.get("memory.capacity")),
                " to ".join(power) or "-",
            )
        )  # fmt: skip
    return table(("device", "kind", "int8 peak", "fp16 or bf16 peak", "bandwidth", "memory", "power"), rows)


def _peaks(figures: Mapping[str, DeviceFigure], *precisions: str) -> str:
    """The peak rates in these precisions, each with what it counts: ``20 TOPS dense, 40 TOPS sparse``."""
    shown = []
    for precision in precisions:
        for structure in ("dense", "sparse", "unstated"):
            figure = figures.get(f"peak.{precision}.{structure}")
            if figure is not None:
                words = {"unstated": "(dense or sparse: unstated)"}.get(structure, structure)
                shown.append(f"{figure_text(figure)} {words}" + (f" {precision}" if len(precisions) > 1 else ""))
    return ", ".join(shown) or "-"


@click.group(cls=Front, invoke_without_command=True)
@JSON
@DEBUG
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """List the devices that are known: peak rates, bandwidth, memory, power."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise UserError(f"--json goes behind the verb: mtlc devices {context.invoked_subcommand} … --json")
        return
    from mtlc.workflows.devices import list_devices

    emit(as_json, list_devices(), text)


@devices.command()
@click.argument("board")
@DEBUG
@LOG_LEVEL
def clean(board: str, log_level: str) -> None:
    """Remove what mtlc bench --on has copied to BOARD."""
    from mtlc.workflows.bench_on_board import clean_board

    freed = clean_board(board, listener(log_level)["log"])
    click.echo(f"{board}: {freed / 1e6:.1f} MB removed")


@devices.command()
@click.argument("name")
@JSON
@DEBUG
def show(name: str, as_json: bool) -> None:
    """Show every figure of the device NAME, or of the device file NAME, with its unit, source and confidence."""
    from mtlc.workflows.devices import show_device

    emit(as_json, show_device(name), device_text)
