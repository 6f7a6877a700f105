"""Runs a verb and reports every error as one line with its exit code. Imports a verb only when it is asked for.

Whatever happens is one line, or a traceback with ``--debug``. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, cast

import click

from mtlc.commands.output import colour
from mtlc.errors import MtlcError, UserError, check_utf8, escaped, nearest, one_line, shortened
from mtlc.extras import BY_MODULE, missing_extra
from mtlc.telemetry import switch_off_onnxruntime, switch_off_openvino


class Front(click.Group):
    """A group that reports every error as one line, and a misspelt verb with the nearest name.

    `verbs` are commands that are imported when they are asked for: name -> module in `mtlc.commands`, with
    ``:attribute`` where the command is not called as its module is.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, str] | None = None, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self._verbs = dict(verbs or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self._verbs, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._verbs:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._verbs[cmd_name].partition(":")
        return cast("click.Command", getattr(import_module(f"mtlc.commands.{module}"), attribute or module))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            raise UserError(f"no such verb {args[0]!r}{nearest(args[0], names)}")
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        debug = "--debug" in (sys.argv[1:] if args is None else args)
        _quiet_dependencies()
        try:
            for argument in sys.argv[1:] if args is None else args:
                check_utf8(argument)
            code = super().main(args, prog_name, standalone_mode=False, **extra)
        except Exception as error:
            if debug and not isinstance(error, click.ClickException):
                for line in traceback.format_exc().splitlines():
                    click.echo(escaped(line), err=True)
            code = _report(error, debug)
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, debug: bool) -> int:
    """Print the one line for `error`, and give its exit code."""
    if isinstance(error, click.exceptions.Abort):
        _fail("interrupted; the same command goes on from the last finished step")
        return 130
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return 2
    if isinstance(error, click.UsageError):
        verb = error.ctx.command_path if error.ctx else "mtlc"
        _fail(f"{error.format_message()} (see: {verb} --help)")
        return 2
    if isinstance(error, click.ClickException):
        _fail(error.format_message())
        return 2
    if isinstance(error, ModuleNotFoundError) and (module := (error.name or "").split(".")[0]) in BY_MODULE:
        error = missing_extra(module)
    if isinstance(error, MtlcError):
        _fail(str(error))
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains on its way out
        return 141
    _fail(f"{one_line(error)} (a fault in mtlc" + (")" if debug else "; run with --debug for the traceback)"))
    return 1


def _fail(message: str) -> None:
    click.secho(f"error: {shortened(' '.join(message.split()))}", fg="red", err=True, color=colour())


def _quiet_dependencies() -> None:
    """No telemetry, and no warnings of libraries between our lines (-W or PYTHONWARNINGS brings them back)."""
    switch_off_onnxruntime()
    switch_off_openvino()
    # Threads that spin while they wait are many times slower on a machine that does something else as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.warnoptions and "PYTHONWARNINGS" not in os.environ:
        import warnings

        warnings.simplefilter("ignore")
