"""Copies packages to a board by content: what is there is not sent again, also after a connection that was cut.

FOLDER/
├── .mtlc-board             mtlc's: the folder was empty
├── files/SHA256            each file once, whole or not there
├── packages/NAME/…         links to them, under their own names
└── lock                    held while something is measured
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mtlc.checksums import file_checksum
from mtlc.errors import UserError
from mtlc.hw.boards.ssh import Board, ConnectionLost
from mtlc.log import Log

TRIES = 3
_HOUR = 3600.0

# A device file from somebody else may name any folder: one with files in it is not taken, and not cleaned.
_MISSING = """
umask 022
mkdir -p "$1" && cd "$1" || exit 9
if [ ! -f .mtlc-board ]; then
  if [ -n "$(ls -A)" ]; then echo "it has other files in it" >&2; exit 9; fi
  : > .mtlc-board || exit 9
fi
mkdir -p files packages && cd files || exit 9
find . -maxdepth 1 -name "part.*" -mmin +120 -exec rm -rf {} +
while read -r name; do [ -f "$name" ] || echo "$name"; done
"""
# A cut connection ends the stream and may send a hang-up: what has arrived whole by then is kept all the same.
_RECEIVE = """
trap "" HUP PIPE
umask 022
cd "$1/files" || exit 9
part=$(mktemp -d part.XXXXXX) || exit 8
tar -xf - -C "$part"
code=$?
for file in "$part"/*; do
  [ -f "$file" ] || continue
  sum=$(sha256sum < "$file")
  [ "${sum%% *}" = "${file##*/}" ] && mv "$file" "${file##*/}"
done
rm -rf "$part"
exit $code
"""
_ASSEMBLE = """
umask 022
cd "$1" || exit 9
made=packages/$2
[ -d "$made" ] && exit 0
new=$(mktemp -d "packages/part.XXXXXX") || exit 8
while read -r sum mode name; do
  case $name in */*) mkdir -p "$new/${name%/*}" || exit 8 ;; esac
  ln "files/$sum" "$new/$name" 2>/dev/null || cp "files/$sum" "$new/$name" || exit 8
  chmod "$mode" "$new/$name"
done
chmod 755 "$new"
mv "$new" "$made" 2>/dev/null || { rm -rf "$new"; [ -d "$made" ]; }
"""
_CLEAN = """
cd "$1" 2>/dev/null || exit 0
if [ ! -f .mtlc-board ]; then echo "it is not mtlc's" >&2; exit 7; fi
du -sk files packages 2>/dev/null | { total=0; while read -r size _; do total=$((total + size)); done; echo "$total"; }
rm -rf files packages lock .mtlc-board
cd && rmdir "$1" 2>/dev/null
exit 0
"""


@dataclass(frozen=True)
class Sent:
    """How much of a package was sent, in bytes, and how much was there."""

    sent: int
    there: int


def send(board: Board, folder: str, package: Path, name: str, log: Log) -> Sent:
    """Have the package on the board as ``FOLDER/packages/NAME``.

    A connection that is cut is taken up again, twice. Raises `ConnectionLost` after that, and `UserError` for a board
    that is full.
    """
    files = {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*")) if path.is_file()}
    sums = {inside: file_checksum(path) for inside, path in files.items()}
    by_sum = {sums[inside]: path for inside, path in files.items()}
    total, sent = sum(path.stat().st_size for path in by_sum.values()), 0
    for attempt in range(TRIES + 1):
        try:
            missing = _missing(board, folder, by_sum)
            if not missing:
                _assemble(board, folder, name, files, sums)
                return Sent(sent, total - sent)
            if attempt == TRIES:
                break
            left = sum(by_sum[one].stat().st_size for one in missing)
            log(f"{board.name}: sending {left / 1e6:.1f} MB, {(total - left) / 1e6:.1f} MB are there")
            sent = sent or left
            _send_files(board, folder, {one: by_sum[one] for one in missing})
        except ConnectionLost as error:
            if attempt + 1 >= TRIES:
                raise
            log(f"{error}; trying again")
    raise UserError(f"board {board.name!r}: {len(missing)} files do not arrive as they were sent")


def clean(board: Board, folder: str) -> int:
    """Remove what is kept on the board, and `folder` if nothing else is in it. Returns how many bytes went."""
    answer = board.run(_CLEAN, folder)
    if answer.code:
        raise UserError(f"board {board.name!r}: {folder} cannot be removed ({answer.last_error})")
    said = answer.said.strip()
    return 1024 * int(said) if said.isdecimal() else 0


def _missing(board: Board, folder: str, by_sum: Mapping[str, Path]) -> list[str]:
    def names(stream: IO[bytes]) -> None:
        stream.write("".join(f"{one}\n" for one in by_sum).encode())

    answer = board.run(_MISSING, folder, feed=names)
    if answer.code:
        raise UserError(f"board {board.name!r}: {folder} cannot be written ({answer.last_error})")
    asked = set(answer.said.split())
    # The smallest first: what arrives before a cut need not be sent again.
    return sorted((one for one in by_sum if one in asked), key=lambda one: (by_sum[one].stat().st_size, one))


def _send_files(board: Board, folder: str, files: Mapping[str, Path]) -> None:
    def archive(stream: IO[bytes]) -> None:
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for name, path in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = path.stat().st_size, 0o644
                with path.open("rb") as content:
                    tar.addfile(entry, content)

    answer = board.run(_RECEIVE, folder, feed=archive, seconds=_HOUR)
    if answer.code:
        needed = sum(path.stat().st_size for path in files.values())
        raise UserError(
            f"board {board.name!r}: {needed / 1e6:.1f} MB cannot be kept in {folder} there ({answer.last_error}); "
            "mtlc devices clean removes what earlier runs left"
        )


def _assemble(board: Board, folder: str, name: str, files: Mapping[str, Path], sums: Mapping[str, str]) -> None:
    def listed(stream: IO[bytes]) -> None:
        for inside, path in files.items():
            mode = "755" if path.stat().st_mode & 0o100 else "644"
            stream.write(f"{sums[inside]} {mode} {inside}\n".encode())

    answer = board.run(_ASSEMBLE, folder, name, feed=listed)
    if answer.code:
        raise UserError(f"board {board.name!r}: the package cannot be laid out in {folder} ({answer.last_error})")
