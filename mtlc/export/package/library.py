"""Builds the C library, its headers and `mtlc-run` for a target, from the sources that come with mtlc."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from mtlc.errors import Unavailable, UserError
from mtlc.export.package.target import Target
from mtlc.extras import install_extra
from mtlc.log import Log

SOURCES = Path(__file__).parents[2] / "native"
"""In a checkout a link to the folder ``native`` at its top; in a wheel the files themselves."""
_MINUTES = 10
"""Longer than any machine that compiles should take; a compiler that waits for something would wait for ever."""


def build_library(target: Target, into: Path, work: Path, compiler: str | None, log: Log) -> str:
    """Build for `target` and install into the empty folder `into`; `work` is a folder for what is left over.

    `compiler` is a command that makes programs for the target; None for `find_compiler`. Returns the command that was
    used. Raises `Unavailable` without CMake or a compiler, and `UserError` with the first error of a build that fails.
    """
    cmake = _find("cmake")
    if cmake is None:
        raise Unavailable(f"CMake is not installed: {install_extra('package')}")
    command = find_compiler(target) if compiler is None else _given_compiler(compiler)
    log(f"building libmtlc for {target.name} with {_named(command)}")
    tools = work / "tools"
    tools.mkdir()
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_C_COMPILER": _script(tools / "cc", command),
        "CMAKE_INSTALL_PREFIX": into,
        "CMAKE_INSTALL_LIBDIR": "lib",
        "MTLC_WERROR": "OFF",  # a compiler that nobody tried may warn of more
    }
    if not target.is_this_machine():
        options |= {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": target.machine}
    if _is_zig(command):
        for name in ("ar", "ranlib"):
            options[f"CMAKE_{name.upper()}"] = _script(tools / name, [*_zig(), name])
    configured = [f"-D{key}={value}" for key, value in options.items()]
    _run([cmake, "-S", SOURCES, "-B", work / "build", *configured], command)
    _run([cmake, "--build", work / "build", "--parallel", str(os.cpu_count() or 1)], command)
    _run([cmake, "--install", work / "build"], command)
    _without_links(into)
    return _named(command)


def find_compiler(target: Target) -> list[str]:
    """The command of a C compiler for `target`: Zig's, which can link for an old glibc; else the system's.

    Raises `Unavailable` where there is none, naming what to install.
    """
    if find_spec("ziglang") is not None:
        return [*_zig(), "cc", "-target", f"{target.triple}.{target.oldest}"]
    names = ("cc", "clang", "gcc") if target.is_this_machine() else (f"{target.triple}-gcc",)
    for name in names:
        if (found := shutil.which(name)) is not None:
            return [found]
    raise Unavailable(
        f"no C compiler for {target.name}: {install_extra('package')}, or install {names[-1]}, or name one with "
        "--compiler"
    )


def _given_compiler(text: str) -> list[str]:
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--compiler {text}: {error}") from error
    if not command or shutil.which(command[0]) is None:
        raise UserError(f"--compiler {text}: no such program")
    return command


def _zig() -> list[str]:
    return [sys.executable, "-m", "ziglang"]


def _is_zig(command: list[str]) -> bool:
    return command[:3] == _zig()


def _named(command: list[str]) -> str:
    """The command as people know it, without the place of this Python."""
    return shlex.join(["zig", *command[len(_zig()) :]] if _is_zig(command) else command)


def _find(program: str) -> str | None:
    """A program on the path, or beside this Python, where a package of PyPI puts it."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), beside)))


def _script(path: Path, command: list[str]) -> Path:
    """A program that is `command`: CMake takes the path of one, without arguments."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)
    return path


def _run(command: list[str | Path], compiler: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60 * _MINUTES)
    except subprocess.TimeoutExpired:
        raise UserError(f"{_named(compiler)}: not done after {_MINUTES} minutes") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        first = next((line for line in said if "error" in line.lower()), said[-1] if said else "it said nothing")
        raise UserError(f"{_named(compiler)}: cannot build libmtlc: {first}")


def _without_links(folder: Path) -> None:
    """Replace links by copies of their files: cards and sticks with FAT have none."""
    for link in [path for path in folder.rglob("*") if path.is_symlink()]:
        file = link.resolve()
        link.unlink()
        shutil.copy2(file, link)
