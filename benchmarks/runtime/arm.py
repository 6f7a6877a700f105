"""Compares the runtime's outputs on an emulated Arm core with this machine's, by bundle and task.

    python -m benchmarks.runtime.arm [--cpu cortex-a76 cortex-a72] [--folder FOLDER]

The shipped networks as bundles (`scripts/arm_bundles.py`), run by `scripts/run_on_arm.py` on scenes that none was
trained on. Beside M³ViT stands how near two experts come to a tie on these scenes: where they tie, rounding decides
which of them runs. Bundles that FOLDER holds already are not made again. Emulation says nothing about time, and no time
is written. Writes ``results/arm.json``. Needs qemu-user-static.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mtlc.files import write_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "arm.json"
BUNDLES = {name: name for name in ("cnn", "cnn-pruned", "m3vit-queue", "m3vit-masked", "m3vit-cached")}
BUNDLES["cnn-slimmable"] = "slim/bundle"
sys.path.insert(0, str(ROOT / "scripts"))

from arm_bundles import cnn_bundles, least_margins, m3vit_bundles, pictures, slimmable_bundle  # noqa: E402
from run_on_arm import KIND, check_on_arm, text  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", nargs="+", default=["cortex-a76", "cortex-a72"])
    parser.add_argument("--folder", type=Path, help="keep the bundles here; default: a temporary folder")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        bundles = {name: folder / path for name, path in BUNDLES.items()}
        if not all(path.exists() for path in bundles.values()):
            assert cnn_bundles(folder) | m3vit_bundles(folder) | slimmable_bundle(folder) == bundles
        cores = {}
        for core in options.cpu:
            found = check_on_arm(bundles, inputs=pictures(), core=core)
            print(text(found), flush=True)
            cores[core] = {key: found[key] for key in ("host", "arm", "tolerance", "bundles")}
            cores[core]["equal_messages"] = len(found["messages"])
        margins = least_margins(folder / "data")
    write_json(RESULTS, {"kind": KIND, "cores": cores, "m3vit_least_routing_margin": margins})


if __name__ == "__main__":
    main()
