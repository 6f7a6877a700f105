"""Prepares an Arm system for qemu's user emulation: Debian's Python for arm64 and the aarch64 wheels of mtlc.

Nothing on this machine changes: apt works in folders of its own, and packages are unpacked, not installed, so no root
rights are needed. apt checks their signatures and sums as it does for this machine, and asks the mirror that is set
here; pip does the same with its index.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from mtlc.errors import MtlcError, Unavailable, UserError, nearest
from mtlc.files import atomic_folder, make_folder

PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
"""With what they depend on: an interpreter, its library, and the C++ library that the wheels are linked with."""

GLIBC = (36, 34, 31, 28, 27, 26, 24, 17)
"""The second numbers of the glibc 2.x whose wheels run on Debian 12 or later (PEP 600)."""


@dataclass(frozen=True)
class Core:
    """An Arm core as ``-cpu`` of qemu has it, with its MIDR_EL1, and `features` as in /proc/cpuinfo."""

    name: str
    part: int
    variant: int
    revision: int
    features: str


CORES = {
    # Raspberry Pi 5: Armv8.2, half precision and dot products.
    "cortex-a76": Core(
        "cortex-a76", 0xD0B, 4, 1,
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs",
    ),
    # Raspberry Pi 4: Armv8.0. Its own silicon has no aes, pmull and sha; the emulated core does.
    "cortex-a72": Core("cortex-a72", 0xD08, 0, 3, "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
}  # fmt: skip
"""Figures: the cores' technical reference manuals (MIDR_EL1) and qemu's target/arm/cpu64.c."""


@dataclass(frozen=True)
class Arm:
    """An emulated machine. `root`: its files. `emulator` and `python`: programs. `site`: the folder of its wheels."""

    core: Core
    emulator: Path
    root: Path
    python: Path
    site: Path

    def command(self, *arguments: str | Path) -> list[str]:
        """What runs the emulated Python with `arguments` on this machine."""
        prefix = [self.emulator, "-cpu", self.core.name, "-L", self.root, self.python]
        return [str(part) for part in (*prefix, *arguments)]

    def emulator_version(self) -> str:
        """Such as ``7.2.22``."""
        said = subprocess.run([self.emulator, "--version"], capture_output=True, text=True, check=True).stdout
        return said.split("version", 1)[1].split()[0]


def cache_folder() -> Path:
    """Where prepared roots are kept: ``$XDG_CACHE_HOME/mtlc/arm-root``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtlc" / "arm-root"


def emulator() -> Path:
    """qemu's user emulator. Raises `Unavailable` if there is none."""
    return _tool(("qemu-aarch64-static", "qemu-aarch64"), "qemu-user-static")


def find_core(name: str) -> Core:
    """The core of that name. Raises `UserError` with the nearest name if there is none."""
    if name not in CORES:
        raise UserError(f"no such core {name!r}{nearest(name, CORES)}")
    return CORES[name]


def prepare(folder: Path, core: str, log: Callable[[str], None] = lambda line: None) -> Arm:
    """The machine with this `core` of `CORES`, made in `folder` unless it is there already.

    Its packages have the versions that are installed here, so that a difference is not one of versions. Raises
    `UserError` for an unknown core, `Unavailable` for a tool that is missing or a package that cannot be had.
    """
    described, program = find_core(core), emulator()
    wheels = base_install()
    base = folder.absolute() / f"base-{hashlib.sha256(' '.join((*PACKAGES, *wheels)).encode()).hexdigest()[:12]}"
    if not base.exists():
        _tool(("apt-get",), "apt, on Debian or what is derived from it,")
        _tool(("dpkg-deb",), "dpkg")
        log(f"preparing {base}: about 200 MB, once")
        with atomic_folder(base) as fresh:
            _unpack_packages(fresh)
            _install_wheels(fresh, wheels)
    root = folder.absolute() / f"{base.name}-{core}"
    _describe(root, base, described)
    return Arm(described, program, root, root / "usr" / "bin" / _python(base), base / "site")


def base_install() -> tuple[str, ...]:
    """What mtlc needs without any extra, each pinned to the version that is installed here: ``numpy==2.4.6``.

    Raises `UserError` where mtlc is not installed.
    """
    try:
        always = [line for line in requires("mtlc") or () if ";" not in line]
        names = sorted(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in always)
        return tuple(f"{name}=={version(name)}" for name in names)
    except PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed in this Python: pip install -e .") from None


def cpuinfo(core: Core) -> str:
    """/proc/cpuinfo of one such core. onnxruntime 1.28 and later crash at import if it is not the emulated core's."""
    return (
        f"processor\t: 0\nBogoMIPS\t: 100.00\nFeatures\t: {core.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: {core.variant:#x}\nCPU part\t: {core.part:#x}\n"
        f"CPU revision\t: {core.revision}\n\n"
    )


def _describe(root: Path, base: Path, core: Core) -> None:
    """A root for one core: the folders of `base`, and the files of the kernel that name the core."""
    if root.exists():
        return
    with atomic_folder(root) as fresh:
        for name in ("usr", "lib", "etc"):
            (fresh / name).symlink_to(base / name)
        cpus = fresh / "sys" / "devices" / "system" / "cpu"
        cpus.mkdir(parents=True)
        for name in ("possible", "present", "online"):
            (cpus / name).write_text("0\n")
        (fresh / "proc").mkdir()
        (fresh / "proc" / "cpuinfo").write_text(cpuinfo(core))


def _unpack_packages(root: Path) -> None:
    state, cache = root / "apt" / "state", root / "apt" / "cache"
    for folder in (state / "lists" / "partial", cache / "archives" / "partial"):
        make_folder(folder)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",  # that user may not write here
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-q", "-y", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    _run([*apt, "update"], "the list of Debian's arm64 packages")
    _run([*apt, "install", "--no-install-recommends", "--download-only", *PACKAGES], "Debian's arm64 packages")
    for package in sorted((cache / "archives").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(root)], package.name)
    if not (root / "lib").exists():  # from Debian 13 on, packages hold /usr/lib only
        (root / "lib").symlink_to("usr/lib")
    shutil.rmtree(root / "apt")


def _install_wheels(root: Path, wheels: Sequence[str]) -> None:
    platforms = [word for minor in GLIBC for word in ("--platform", f"manylinux_2_{minor}_aarch64")]
    platforms += ["--platform", "manylinux2014_aarch64"]
    target = ["--target", str(root / "site"), "--python-version", _python(root).removeprefix("python")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    _run([*pip, *target, *platforms, *wheels], f"the aarch64 wheels of {', '.join(wheels)}")


def _python(root: Path) -> str:
    """The name of the interpreter under `root`, such as ``python3.11``."""
    found = sorted(path.name for path in (root / "usr" / "bin").glob("python3.[0-9]*") if path.name[8:].isdigit())
    if not found:
        raise MtlcError(f"{root}: holds no Python; remove the folder and run again")
    return found[-1]


def _tool(names: Sequence[str], package: str) -> Path:
    for name in names:
        if path := shutil.which(name):
            return Path(path)
    raise Unavailable(
        f"{names[0]} is not installed: install {package} (Debian: apt-get install {package.split(',')[0]})"
    )


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith(("E: ", "ERROR: "))), lines[-1] if lines else "")
        raise Unavailable(f"{what} cannot be had: {Path(command[0]).name}: {said.strip()}")
