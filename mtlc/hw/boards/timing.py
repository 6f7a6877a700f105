"""Times packages on a board, one measurement at a time, and reads what its clocks and temperatures were meanwhile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtlc.errors import Unavailable, UserError
from mtlc.hw.boards.ssh import Board

_WAIT = 600
"""Seconds to wait for somebody else's measurement there."""
_BUSY, _GONE = 75, 76

_RUN = """
cd "$1" || exit 76
base=$PWD
cd "packages/$2" || exit 76
shift 2
wait=$1
shift
if command -v flock > /dev/null 2>&1; then
  exec 9> "$base/lock"
  flock -w "$wait" 9 || exit 75
fi
exec ./run.sh "$@"
"""
_STATE = """
uname -m
uname -s
tell() { [ -r "$2" ] && echo "$1 $(cat "$2")"; }
for file in /sys/class/thermal/thermal_zone*/temp; do tell temperature "$file"; done
for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq; do tell clock "$file"; done
tell governor /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
for tool in sha256sum tar mktemp; do command -v "$tool" > /dev/null 2>&1 || echo "lacks $tool"; done
exit 0
"""

_Time = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]


class BoardState(BaseModel):
    """What a board says of itself; what it does not say is None or empty."""

    model_config = ConfigDict(frozen=True)

    machine: str
    system: str
    celsius: list[float]
    clock_mhz: list[float]
    governor: str | None
    lacks: list[str]


class Timing(BaseModel):
    """What ``mtlc-run bench --json`` prints: times in ms, `peak_rss_kb` in KiB."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    open_ms: _Time
    open_cpu_ms: _Time
    first_ms: _Time
    min_ms: _Time
    median_ms: _Time
    p95_ms: _Time
    cpu_ms: _Time
    runs: Annotated[int, Field(ge=1)]
    programs: Annotated[int, Field(ge=1)]
    peak_rss_kb: Annotated[int, Field(ge=0)]


def state(board: Board) -> BoardState:
    """Ask the board. Nothing there is changed."""
    answer = board.run(_STATE)
    lines = answer.said.splitlines()
    if answer.code or len(lines) < 2:
        raise Unavailable(f"board {board.name!r}: is no system with a POSIX shell ({answer.last_error})")
    told: dict[str, list[str]] = {}
    for line in lines[2:]:
        key, _, value = line.partition(" ")
        told.setdefault(key, []).append(value.strip())
    governor = told.get("governor", [None])[0]
    return BoardState(
        machine=_word(lines[0]), system=_word(lines[1]), celsius=_numbers(told.get("temperature", ())),
        clock_mhz=_numbers(told.get("clock", ())), governor=None if governor is None else _word(governor),
        lacks=[_word(one) for one in told.get("lacks", ())],
    )  # fmt: skip


def time_package(board: Board, folder: str, name: str, options: Sequence[str], seconds: float) -> Timing:
    """Run ``bench`` of a package that lies there. Waits while somebody else measures.

    Raises `UserError` with what the program there said, and `Unavailable` where it cannot run there.
    """
    answer = board.run(_RUN, folder, name, str(_WAIT), "bench", "--json", *options, seconds=seconds + _WAIT)
    if answer.code == _BUSY:
        raise Unavailable(f"board {board.name!r}: somebody else has been measuring there for {_WAIT} s")
    if answer.code == _GONE:
        raise Unavailable(f"board {board.name!r}: the package is not there any more; call again")
    if "GLIBC_" in answer.errors and "not found" in answer.errors:
        raise Unavailable(
            f"board {board.name!r}: its glibc is too old for what was built here ({answer.last_error}): "
            "pip install 'mtlc[package]' compiles for older ones"
        )
    if answer.code:
        kind = Unavailable if answer.code in (5, 126, 127) or answer.code > 128 else UserError
        raise kind(f"board {board.name!r}: {answer.last_error}")
    try:
        return Timing.model_validate(json.loads(answer.said))
    except (ValueError, ValidationError):
        raise UserError(f"board {board.name!r}: what it measured cannot be read") from None


def _word(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text.strip())[:64]


def _numbers(texts: Sequence[str]) -> list[float]:
    """Thousandths of a degree as degrees, kHz as MHz; what is no number is left out."""
    return [int(one) / 1000 for one in texts if one.lstrip("-").isdecimal() and len(one) < 12]
