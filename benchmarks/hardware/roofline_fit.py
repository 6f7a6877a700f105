"""Fits the efficiencies of the roofline to published times, and judges them on networks and boards held out.

    python -m benchmarks.hardware.roofline_fit [--seed 0] [--splits 20]

Reads ``roofline_times.toml`` and ``results/roofline_workloads.json``; writes ``mtlc/hw/devices/efficiencies.json``,
which mtlc reads, and ``results/roofline_fit.json`` with every row beside what was predicted for it.

The efficiencies that ship are fitted to the part of the networks that the seed drew. Their errors are printed on that
part, on the networks held out, and on the same rows for the peak rate and full bandwidth alone. Because one split of so
few networks says little, the median over many splits stands beside it; and where a class has several boards, so does
the error on each board when it is fitted on the others, which is what a board without published times gets.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from mtlc.hw.devices.catalogue import device
from mtlc.hw.devices.roofline import KERNEL_KINDS, Efficiencies, KernelWork, Machine, timings, total_s

HERE = Path(__file__).parent
TIMES = HERE / "roofline_times.toml"
WORKLOADS = HERE.parent / "results" / "roofline_workloads.json"
RESULTS = HERE.parent / "results" / "roofline_fit.json"
SHIPPED = HERE.parents[1] / "mtlc" / "hw" / "devices" / "efficiencies.json"
SAME_WORK = 0.15
HELD_OUT = 1 / 3
# Where the fit starts and what it is drawn to, weakly: a few percent of a prior's width weigh as much as one row's
# error.
PRIOR = {"share": 0.4, "launch_s": 1e-5, "run_s": 1e-4, "bandwidth": 1e9}
PRIOR_WIDTH, ROW_WIDTH = 1.5, 0.1
# What passes the memory: all; only weights that do not fit on the chip, at a rate to be fitted; or nothing that is
# known.
TRAFFIC = {"edge-tpu": "spilled weights", "hailo": "none"}
# A kind of operator is determined by the rows if half or twice its efficiency makes them fit worse by this much.
DETERMINED = 1.0


@dataclass(frozen=True)
class Row:
    board: str
    network: str
    seconds: float
    precision: str
    kernels: tuple[KernelWork, ...]
    machine: Machine

    @property
    def family(self) -> str:
        """The network without its size: what is held out is a network at every size and on every board."""
        return self.network.partition("@")[0]


@dataclass(frozen=True)
class Arrays:
    """A row's kernels as arrays: the same formula as `mtlc.hw.devices.roofline.timings`, fast enough to fit with."""

    kind: np.ndarray
    compute_s: np.ndarray
    memory_s: np.ndarray
    seconds: float

    @classmethod
    def of(cls, row: Row) -> Arrays:
        ideal = Efficiencies(dict.fromkeys(KERNEL_KINDS, 1.0), 1.0, 0.0, 0.0)
        found = timings(row.kernels, row.machine, ideal, row.precision)
        kind = [KERNEL_KINDS.index(k.kernel.kind) if k.kernel.kind in KERNEL_KINDS else 0 for k in found]
        return cls(
            np.array(kind), np.array([k.compute_s for k in found]), np.array([k.memory_s for k in found]), row.seconds
        )

    def predicted(self, p: np.ndarray) -> float:
        roof = np.maximum(self.compute_s / p[: len(KERNEL_KINDS)][self.kind], self.memory_s / p[-3])
        return float(roof.sum() + p[-2] * np.count_nonzero(self.compute_s) + p[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    classes, left_out = read_rows()
    shipped: dict[str, Any] = {
        "schema": 1,
        "made_by": "benchmarks/hardware/roofline_fit.py",
        "seed": options.seed,
        "classes": {},
    }
    report: dict[str, Any] = {"seed": options.seed, "splits": options.splits, "left_out": left_out, "classes": {}}
    for name, (rows, about) in classes.items():
        found = judged(rows, options.seed, options.splits)
        fitted = found.pop("fitted")
        shipped["classes"][name] = {
            **about,
            **as_json(fitted, about),
            **{key: found[key] for key in ("undetermined", "macs", "error", "boards")},
        }
        report["classes"][name] = {**about, **as_json(fitted, about), **found}
        print(name, json.dumps({"efficiencies": as_json(fitted, about), "error": found["error"]}, indent=1))
    SHIPPED.write_text(json.dumps(shipped, indent=1) + "\n")
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def read_rows() -> tuple[dict[str, tuple[list[Row], dict[str, Any]]], list[str]]:
    """The rows of each class of devices with what is told of them, and why rows were left out."""
    times = tomllib.loads(TIMES.read_text(encoding="utf-8"))
    networks = json.loads(WORKLOADS.read_text())["networks"]
    classes: dict[str, tuple[list[Row], dict[str, Any]]] = {}
    left_out = []
    for table in times["tables"]:
        board = times["boards"][table["board"]]
        rows, about = classes.setdefault(
            board["class"],
            ([], {"precision": table["precision"], "what": table["what"],
                  "traffic": TRAFFIC.get(board["class"], "all"), "devices": [], "sources": []}),
        )  # fmt: skip
        if "device" in board and board["device"] not in about["devices"]:
            about["devices"].append(board["device"])
        about["sources"].append(f"{table['source']} ({table['note']})")
        for network, value, gops in table["rows"]:
            work = networks[network]
            if gops and abs(2 * work["macs"] / 1e9 / gops - 1) > SAME_WORK:
                left_out.append(f"{table['board']} {network}: {2 * work['macs'] / 1e9:.2f} GOPS here, {gops} there")
                continue
            seconds = value / 1e3 if table["unit"] == "ms" else 1 / value
            found = tuple(KernelWork("", *kernel) for kernel in work["kernels"])
            rows.append(
                Row(table["board"], network, seconds, table["precision"], found, machine(board, table["precision"]))
            )
    return classes, left_out


def machine(board: dict[str, Any], precision: str) -> Machine:
    """What one inference has of the board: from its device file, else from the table itself."""
    if "device" not in board:
        return Machine(board["peak"], board["bandwidth"])
    known = device(board["device"])
    peak = known.peak(precision)
    assert peak is not None, board
    if board["class"] in TRAFFIC:
        return Machine(peak, 1.0, known.value("memory.on_chip") or float("inf"))
    bandwidth = known.bandwidth()
    assert bandwidth is not None, board
    return Machine(peak / (known.value("engines") or 1), bandwidth)


def fit(rows: Sequence[Row]) -> np.ndarray:
    """Efficiencies by kind, the share of the bandwidth (or a bandwidth), seconds of a launch and of a run."""
    arrays = [Arrays.of(row) for row in rows]
    absolute = rows[0].machine.bandwidth == 1.0
    start = np.log(
        [
            *[PRIOR["share"]] * len(KERNEL_KINDS),
            PRIOR["bandwidth" if absolute else "share"],
            PRIOR["launch_s"],
            PRIOR["run_s"],
        ]
    )
    bounds = np.full_like(start, 0.0)
    bounds[-3:] = [np.log(1e12) if absolute else 0.0, np.log(1e-2), np.log(1e-1)]

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.array([*misses(arrays, np.exp(logs)), *((logs - start) / PRIOR_WIDTH)])

    return np.exp(least_squares(residuals, start, bounds=(-40.0, bounds), loss="soft_l1").x)


def misses(arrays: Sequence[Arrays], p: np.ndarray) -> list[float]:
    return [float(np.log(row.predicted(p) / row.seconds)) / ROW_WIDTH for row in arrays]


def undetermined(rows: Sequence[Row], p: np.ndarray) -> list[str]:
    """The kinds of operators that these rows say nothing of: their efficiency is where the fit began."""
    arrays = [Arrays.of(row) for row in rows]

    def loss(q: np.ndarray) -> float:
        return sum(2 * ((1 + off**2) ** 0.5 - 1) for off in misses(arrays, q))

    found = []
    for index, kind in enumerate(KERNEL_KINDS):
        changed = [np.where(np.arange(len(p)) == index, p * factor, p) for factor in (0.5, 2.0)]
        if max(loss(q) for q in changed) < loss(p) + DETERMINED:
            found.append(kind)
    return found


def work(row: Row) -> int:
    return sum(kernel.macs for kernel in row.kernels)


def errors(rows: Sequence[Row], p: np.ndarray) -> dict[str, float]:
    """Relative errors of the predicted times: the median and the largest of their absolute values."""
    off = [abs(Arrays.of(row).predicted(p) / row.seconds - 1) for row in rows]
    return {"rows": len(off), "median": round(float(np.median(off)), 4), "largest": round(float(max(off)), 4)}


def spread(off: Sequence[float]) -> dict[str, float]:
    return {"median": round(float(np.median(off)), 4), "p90": round(float(np.percentile(off, 90)), 4)}


def split(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    families = sorted({row.family for row in rows})
    drawn = np.random.default_rng(seed).permutation(len(families))
    held = {families[index] for index in drawn[: round(HELD_OUT * len(families))]}
    return [row for row in rows if row.family not in held], [row for row in rows if row.family in held]


def judged(rows: list[Row], seed: int, splits: int) -> dict[str, Any]:
    """The fit of the drawn split with its errors, and those of other splits and of boards held out."""
    fitted, held = split(rows, seed)
    p = fit(fitted)
    alone = np.array([*[1.0] * len(KERNEL_KINDS), 1e12 if rows[0].machine.bandwidth == 1.0 else 1.0, 0.0, 0.0])
    others = [split(rows, seed + 1 + index) for index in range(splits)]
    off = [abs(Arrays.of(row).predicted(q) / row.seconds - 1) for a, b in others for q in [fit(a)] for row in b]
    boards = sorted({row.board for row in rows})
    by_board, missed = {}, []
    for board in boards if len(boards) > 1 else ():
        rest = fit([row for row in rows if row.board != board])
        alike = [row for row in rows if row.board == board]
        by_board[board] = errors(alike, rest)
        missed += [abs(Arrays.of(row).predicted(rest) / row.seconds - 1) for row in alike]
    check(rows, p)
    return {
        "fitted": p,
        "boards": boards,
        "undetermined": undetermined(fitted, p),
        "macs": [min(work(row) for row in rows), max(work(row) for row in rows)],
        "error": {
            "fitted": errors(fitted, p), "held_out": errors(held, p), "peak_alone_held_out": errors(held, alone),
            "held_out_over_splits": {"splits": splits, **spread(off)},
            "board_held_out": by_board,
            "boards_held_out": {"rows": len(missed), **spread(missed)} if missed else None,
        },
        "networks_held_out": sorted({row.family for row in held}),
        "rows": [
            {"board": row.board, "network": row.network, "published_ms": round(1e3 * row.seconds, 4),
             "predicted_ms": round(1e3 * Arrays.of(row).predicted(p), 4), "held_out": row in held}
            for row in rows
        ],
    }  # fmt: skip


def check(rows: Sequence[Row], p: np.ndarray) -> None:
    """The fast form must be the one that mtlc uses."""
    fitted = Efficiencies(dict(zip(KERNEL_KINDS, p, strict=False)), p[-3], p[-2], p[-1])
    for row in rows:
        slow = total_s(timings(row.kernels, row.machine, fitted, row.precision), fitted)
        assert np.isclose(slow, Arrays.of(row).predicted(p)), row.network


def as_json(p: np.ndarray, about: dict[str, Any]) -> dict[str, Any]:
    compute = {kind: float(f"{value:.4g}") for kind, value in zip(KERNEL_KINDS, p, strict=False)}
    rest = {key: float(f"{value:.4g}") for key, value in zip(("memory", "launch_s", "run_s"), p[-3:], strict=True)}
    return {"compute": compute, **rest}


if __name__ == "__main__":
    main()
