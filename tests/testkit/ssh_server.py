"""Starts OpenSSH's server on loopback, with keys of its own, as the board of a test."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SshServer:
    """`command` is what `MTLC_SSH` takes to reach it, `user` who may come in."""

    command: str
    user: str
    port: int
    process: subprocess.Popen[bytes]
    folder: Path

    def hang_up(self) -> None:
        """End all connections, as a cable that is pulled does; the server goes on."""
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        for child in listed.stdout.split():
            os.kill(int(child), signal.SIGKILL)


def _key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def need_ssh() -> str:
    """The server's path; skip without it, fail where CI is set."""
    server = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    missing = [name for name, found in (("sshd", server), ("ssh", shutil.which("ssh"))) if found is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"no {missing[0]} found: boards must be tested (apt-get install openssh-server openssh-client)")
    if missing:
        pytest.skip(f"no {missing[0]} found: install openssh-server to test boards")
    return str(server)


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """A server that ends with the block; its files are in `folder`, which nobody else may write to."""
    server = need_ssh()
    folder.mkdir(mode=0o700)
    host, user_key = _key(folder / "host"), _key(folder / "user")
    shutil.copy(user_key.with_suffix(".pub"), folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
        f"PermitRootLogin yes\nPidFile {folder / 'pid'}\nMaxStartups 100\n"
    )
    kind, public = host.with_suffix(".pub").read_text().split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {public}\n")
    command = [
        "ssh", "-F", "/dev/null", "-p", str(port), "-i", str(user_key), "-o", "IdentitiesOnly=yes",
        "-o", f"UserKnownHostsFile={folder / 'known'}", "-o", "StrictHostKeyChecking=yes",
    ]  # fmt: skip
    with subprocess.Popen([server, "-D", "-f", folder / "sshd_config", "-E", folder / "log"]) as process:
        try:
            _wait(port)
            yield SshServer(shlex.join(command), getpass.getuser(), port, process, folder)
        finally:
            process.terminate()


def _wait(port: int) -> None:
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd does not listen")
