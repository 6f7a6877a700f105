"""Compares the cycles of the engine's Verilog with its closed form and with the published formula.

    python -m benchmarks.fpga.rtl_cycles [--arrays 8,16,32] [--shapes 120]

For each array random layers: 1 to 8 experts, 1 to 200 tokens, 1 to 400 features, queues of which some are empty, a
weight port from half a byte to a whole beat a cycle. Every output is compared with numpy to the bit. Then some layers
that people run. Writes ``results/rtl_cycles.json``. Needs Verilator.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np

from mtlc.hw.measure.this_machine import this_machine
from mtlc.hw.rtl.cycles import cycles, overlapped
from mtlc.hw.rtl.engine import Engine
from mtlc.hw.rtl.reference import QuantisedLinear, by_queues, fixed_point
from mtlc.hw.rtl.verilator import build, simulate

RESULTS = Path(__file__).parents[1] / "results" / "rtl_cycles.json"
# The work of a random shape, at most, in MACs: a simulated cycle of a large array costs more.
MACS = 6_000_000


def layer(rng: np.random.Generator, outputs: int, k: int) -> QuantisedLinear:
    multiplier, shift = fixed_point(rng.uniform(0.5, 2.0, outputs) / (100 * math.sqrt(k)))
    weight = rng.integers(-128, 128, (outputs, k), dtype=np.int8)
    return QuantisedLinear(weight, rng.integers(-5000, 5000, outputs).astype(np.int32), multiplier, shift)


def measured(
    engine: Engine,
    rng: np.random.Generator,
    tokens: int,
    k: int,
    outputs: list[int],
    places: list[int],
    limit: float | None,
) -> dict[str, object]:
    """One shape, simulated and worked out. Raises `AssertionError` if an output is not numpy's."""
    x = rng.integers(-128, 128, (tokens, k), dtype=np.int8)
    queues = [rng.integers(0, tokens, count) for count in places]
    layers = [layer(rng, count, k) for count in outputs]
    run = simulate(engine, x, queues, layers, bytes_per_cycle=limit)
    assert all(np.array_equal(a, b) for a, b in zip(run.outputs, by_queues(x, queues, layers), strict=True)), (
        "an output differs from numpy's"
    )
    exact, published = cycles(engine, k, outputs, places, limit), overlapped(engine, k, outputs, places, limit)
    macs = sum(p * n * k for p, n in zip(places, outputs, strict=True))
    return {
        "array": f"{engine.rows}x{engine.columns}", "tokens": tokens, "k": k, "outputs": outputs, "queues": places,
        "bytes_per_cycle": limit, "simulated": run.cycles, "closed_form": exact, "error": exact / run.cycles - 1,
        "published_form": round(published, 1), "published_error": published / run.cycles - 1,
        "utilisation": macs / (engine.rows * engine.columns * run.cycles),
        "waited_for_weights": run.waited_for_weights,
    }  # fmt: skip


def random_shape(engine: Engine, rng: np.random.Generator) -> dict[str, object]:
    while True:
        experts, tokens, k = (int(rng.integers(1, high)) for high in (9, 201, 401))
        outputs = [int(rng.integers(1, 200)) for _ in range(experts)]
        places = [int(rng.integers(0, 100) * (rng.random() < 0.75)) for _ in range(experts)]
        fits = tokens * engine.words(k) * engine.rows <= engine.token_bytes
        if fits and any(places) and sum(p * n * k for p, n in zip(places, outputs, strict=True)) <= MACS:
            break
    limit = None if rng.random() < 0.2 else round(float(np.exp(rng.uniform(np.log(0.5), np.log(engine.columns)))), 2)
    return measured(engine, rng, tokens, k, outputs, places, limit)


def summary(errors: list[float]) -> dict[str, float]:
    size = np.abs(errors)
    return {"median": float(np.median(size)), "p90": float(np.quantile(size, 0.9)), "worst": float(size.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arrays", default="8,16")
    parser.add_argument("--shapes", type=int, default=120)
    options = parser.parse_args()
    results: dict[str, object] = {}
    for size in map(int, options.arrays.split(",")):
        engine, rng = Engine(size, size), np.random.default_rng(size)
        started = time.monotonic()
        build(engine)
        built = time.monotonic() - started
        count = options.shapes * 8 // size
        shapes = [random_shape(engine, rng) for _ in range(count)]
        known = [
            {"name": name, **measured(engine, rng, tokens, k, outputs, places, limit)}
            for name, tokens, k, outputs, places, limit in (
                ("128 x 192 x 768", 128, 192, [768], [128], None),
                ("128 x 192 x 768, 16 B/cycle", 128, 192, [768], [128], 16.0),
                ("128 x 192 x 768, 8 B/cycle", 128, 192, [768], [128], 8.0),
                ("128 x 192 x 768, 2 B/cycle", 128, 192, [768], [128], 2.0),
                ("8 experts of 192, 129 tokens, 2 each", 129, 192, [192] * 8, [61, 12, 0, 33, 57, 4, 80, 11], 8.0),
            )
        ]
        results[f"{size}x{size}"] = {
            "shapes": count, "closed_form": summary([float(str(s["error"])) for s in shapes + known]),
            "published_form": summary([float(str(s["published_error"])) for s in shapes + known]),
            "known": known, "random": shapes,
        }  # fmt: skip
        took = time.monotonic() - started
        shown = {key: results[f"{size}x{size}"][key] for key in ("shapes", "closed_form", "published_form")}  # type: ignore[index]
        print(size, f"built in {built:.0f} s, all in {took:.0f} s", json.dumps(shown))
        for one in known:
            print(
                "  ",
                one["name"],
                one["simulated"],
                one["closed_form"],
                one["published_form"],
                f"{one['utilisation']:.3f}",
            )
    version = subprocess.run(["verilator", "--version"], capture_output=True, text=True).stdout.split()[:2]
    RESULTS.write_text(
        json.dumps({"kind": "simulated", "verilator": " ".join(version), "host": this_machine(), "arrays": results})
        + "\n"
    )


if __name__ == "__main__":
    main()
