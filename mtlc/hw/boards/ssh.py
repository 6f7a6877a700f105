"""Runs commands on a board through the system's ssh, with the keys and the configuration that the user has."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from mtlc.errors import Unavailable, UserError

OPTIONS = (
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
)  # fmt: skip
"""Nobody is asked for a password, and a board that went away is noticed within half a minute."""
_NO_CONNECTION = 255  # ssh's own exit code; others are the remote command's
_MOST = 4 << 20
"""What a command on a board may say, in bytes: more is no answer."""


@dataclass(frozen=True)
class Answer:
    """What a remote command gave."""

    code: int
    said: str
    errors: str

    @property
    def last_error(self) -> str:
        """The last line of its errors that says something."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return "".join(c if c.isprintable() else "?" for c in lines[-1])[:300] if lines else f"exit code {self.code}"


class ConnectionLost(Unavailable):
    """The board cannot be reached, or the connection ended before the command did."""


class Board:
    """The board at `place`, called `name` in messages."""

    def __init__(self, name: str, place: str) -> None:
        self.name, self.place = name, place
        self._ssh = _ssh_command()

    def run(
        self, script: str, *arguments: str, feed: Callable[[IO[bytes]], None] | None = None, seconds: float = 120
    ) -> Answer:
        """Run a script of POSIX sh there. `feed` writes its standard input.

        Raises `ConnectionLost` where there is no connection, or none any more, and `UserError` after `seconds`.
        """
        remote = " ".join(["sh", "-c", shlex.quote(script), "mtlc", *map(shlex.quote, arguments)])
        # Behind the place nothing is an option to ssh.
        command = [*self._ssh, *OPTIONS, "--", self.place, remote]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                if feed is not None and process.stdin is not None:
                    with _broken_pipe_is_told_by_the_end():
                        feed(process.stdin)
                said, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise UserError(f"board {self.name!r}: not done after {seconds:g} s") from None
            except BaseException:
                process.kill()
                raise
        answer = Answer(process.returncode, said[:_MOST].decode("utf-8", "replace"), errors.decode("utf-8", "replace"))
        if process.returncode == _NO_CONNECTION:
            # Without a word it was the command there that was killed, as by a board without memory.
            why = answer.last_error if answer.errors.strip() else "the command there was ended"
            raise ConnectionLost(f"board {self.name!r} ({self.place}): {why}")
        return answer


class _broken_pipe_is_told_by_the_end:  # noqa: N801 - reads as what it does
    """A remote command that ends early does not read all: its exit code says why, the broken pipe does not."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        return isinstance(error, BrokenPipeError | ConnectionResetError)


def _ssh_command() -> list[str]:
    """``ssh``, or the command in ``MTLC_SSH``."""
    given = os.environ.get("MTLC_SSH")
    try:
        command = shlex.split(given) if given else ["ssh"]
    except ValueError as error:
        raise UserError(f"MTLC_SSH = {given!r}: {error}") from error
    if not command or shutil.which(command[0]) is None:
        raise Unavailable(
            f"{command[0] if command else 'ssh'} is not installed: install OpenSSH's client, or set MTLC_SSH"
        )
    return command
