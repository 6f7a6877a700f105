"""Finds onnxruntime's shared library for a target, with its licence: here, in a wheel, or at a package index."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from mtlc.errors import Unavailable, UserError, reason
from mtlc.export.package.shared_object import read_shared_object
from mtlc.export.package.target import Target
from mtlc.log import Log

LIBRARY = "libonnxruntime.so"
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
"""onnxruntime is under the MIT licence, which asks that it goes with every copy."""
_ENTRY = "OrtGetApiBase"
_MOST = 2 << 30
"""More than any build of the library has, in bytes."""
_MINUTES = 10


@dataclass(frozen=True)
class Engine:
    """What was found: where it came from, and the least glibc that it runs with."""

    source: str
    glibc: tuple[int, int] | None


def fetch_engine(target: Target, given: Path | None, into: Path, licences: Path, work: Path, log: Log) -> Engine:
    """Put the library into the folder `into` as ``libonnxruntime.so``, and its licence into `licences`.

    Args:
        given: a library, or a wheel of onnxruntime for the target. None: the wheel that is installed here if this
            machine is of that kind, else pip is asked for the wheel of the same version.
        work: a folder for what is left over.

    Raises `UserError` for what is not onnxruntime for `target`, `Unavailable` where pip cannot get it.
    """
    library = into / LIBRARY
    if given is not None:
        if not given.is_file():
            raise UserError(f"--engine {given}: no such file; name {LIBRARY} or a wheel of onnxruntime")
        if given.suffix == ".whl":
            _from_wheel(given, library, licences)
        else:
            _copy(given, library)
            for name in LICENCES:  # a release for C has them one folder up
                for folder in (given.parent, given.parent.parent):
                    if (folder / name).is_file() and not (licences / name).exists():
                        _copy(folder / name, licences / name)
        source = given.name
    elif target.is_this_machine():
        source = _installed(library, licences)
    else:
        wheel = _download(target, work, log)
        _from_wheel(wheel, library, licences)
        source = wheel.name
    found = read_shared_object(library)
    if found.machine != target.elf_machine:
        raise UserError(f"{given or source}: is for another processor ({found.machine}) than {target.name}")
    if _ENTRY not in found.exported:
        raise UserError(f"{given or source}: is not onnxruntime: it has no {_ENTRY}")
    library.chmod(0o755)
    return Engine(source, found.glibc)


def _installed(library: Path, licences: Path) -> str:
    spec = find_spec("onnxruntime")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    found = [] if folder is None else sorted(folder.glob(f"capi/{LIBRARY}*"))
    if folder is None or not found:
        raise Unavailable(f"no {LIBRARY} in the onnxruntime that is installed here: name one with --engine")
    _copy(found[0], library)
    for name in LICENCES:
        if (folder / name).is_file():
            _copy(folder / name, licences / name)
    return f"onnxruntime {version('onnxruntime')}, as it is installed here"


def _download(target: Target, work: Path, log: Log) -> Path:
    """The wheel for `target` in the version that is installed here, from the index that pip is set to."""
    wanted = f"onnxruntime=={version('onnxruntime')}"
    log(f"fetching {wanted} for {target.name}")
    folder = work / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11", "--dest", str(folder)]
    for glibc in ("2_28", "2_27", "2_17"):
        command += ["--platform", f"manylinux_{glibc}_{target.machine}"]
    try:
        done = subprocess.run([*command, wanted], capture_output=True, text=True, timeout=60 * _MINUTES)
        said = [f"pip ended with {done.returncode}"]
        said += [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    except subprocess.TimeoutExpired:
        said = [f"pip was not done after {_MINUTES} minutes"]
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise Unavailable(
            f"{wanted} for {target.name} cannot be had ({said[-1].removeprefix('ERROR: ')}): name its wheel or library "
            "with --engine, or leave it out with --no-engine"
        )
    return found[0]


def _from_wheel(wheel: Path, library: Path, licences: Path) -> None:
    """Take what is needed out of a wheel, by names; nothing else of it is unpacked, and no path of it is followed."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = {PurePosixPath(entry.filename): entry for entry in archive.infolist()}
            names = [path for path in entries if path.parent.name == "capi" and path.name.startswith(LIBRARY)]
            if not names:
                raise UserError(f"{wheel}: has no {LIBRARY}: is it a wheel of onnxruntime for Linux?")
            wanted = {names[0]: library} | {
                path: licences / path.name for path in entries if path.name in LICENCES and len(path.parts) == 2
            }
            for path, target in wanted.items():
                if entries[path].file_size > _MOST:
                    raise UserError(f"{wheel}: {path} would have {entries[path].file_size} bytes")
                with archive.open(entries[path]) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{wheel}: cannot be read as a wheel ({reason(error)})") from error


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error
