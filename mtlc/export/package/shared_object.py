"""Reads from a shared library or a program, in ELF, which machine it is for and which glibc it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mtlc.errors import UserError
from mtlc.extras import missing_extra


@dataclass(frozen=True)
class SharedObject:
    """`machine` is ELF's name of it, such as ``EM_AARCH64``. `glibc` is the least version, None where none is asked."""

    machine: str
    glibc: tuple[int, int] | None
    exported: frozenset[str]


def read_shared_object(path: Path) -> SharedObject:
    """What is in an ELF file. Raises `UserError` for another file, `Unavailable` without pyelftools."""
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
    except ImportError:
        raise missing_extra("elftools") from None
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            needs, names = elf.get_section_by_name(".gnu.version_r"), elf.get_section_by_name(".dynsym")
            versions = [] if needs is None else [one.name for _, every in needs.iter_versions() for one in every]
            exported = () if names is None else [one for one in names.iter_symbols() if one["st_shndx"] != "SHN_UNDEF"]
            return SharedObject(
                str(elf["e_machine"]), _newest_glibc(versions), frozenset(symbol.name for symbol in exported)
            )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ELFError, AssertionError, ValueError, KeyError, UnicodeDecodeError, OverflowError) as error:
        # What a damaged file makes of pyelftools is not only its own error.
        raise UserError(f"{path}: is no shared library for Linux") from error


def _newest_glibc(versions: list[str]) -> tuple[int, int] | None:
    """The newest of names such as ``GLIBC_2.34`` and ``GLIBC_2.2.5``; others are of other libraries."""
    found = []
    for name in versions:
        library, _, version = name.partition("_")
        parts = version.split(".")
        if library == "GLIBC" and len(parts) >= 2 and all(part.isdecimal() for part in parts):
            found.append((int(parts[0]), int(parts[1])))
    return max(found, default=None)
