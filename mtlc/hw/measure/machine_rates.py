"""Measures what this machine does at best: matrix products per precision, memory bandwidth, the time a kernel costs.

Everything is measured through onnxruntime with the settings of the runtime, but for the bandwidth, which is numpy's.
The probes run in turns, so that a change of clock or load meets all of them; a figure is the median of its turns.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtlc.files import scratch_folder
from mtlc.hw.devices.device import PRECISIONS, Figure
from mtlc.hw.measure.in_turns import summary
from mtlc.log import Log, silent
from mtlc.runtime.backends.onnxruntime_backend import OnnxRuntime, onnxruntime

SIZE = 1024
"""Rows and columns of the matrices: large enough that the arithmetic and not the call is what takes the time."""
LEAST_TURNS = 3
_CHAIN = 200  # nodes of the graph that the launch floor is measured on
_CALLS = 20  # of that graph, in one turn
_BLOCK = 32 * 1024  # elements of the triad that are worked on at once: 128 KiB, which every core's own cache holds
_LEAST_TRIAD_BYTES = 96 * 2**20
_UNKNOWN_CACHE = 64 * 2**20  # assumed where the system does not tell: more than most edge devices have
_PRECISIONS = {"uint8": "int8", "float16": "fp16", "bfloat16": "bf16", "float": "fp32"}  # of onnxruntime's profile


@dataclass(frozen=True)
class Rates:
    """Figures by key as in a device file, and why the others are missing."""

    figures: dict[str, Figure]
    missing: dict[str, str]


@dataclass(frozen=True)
class _Probe:
    """`turn` does one measurement and gives it in `unit`."""

    key: str
    unit: str
    source: str
    turn: Callable[[], float]


class _NotMeasured(Exception):
    """Why a figure cannot be had here."""


def measure_rates(threads: Sequence[int], seconds: float, *, log: Log = silent, size: int | None = None) -> Rates:
    """Measure for about `seconds`, with each number of `threads`: ``threads.N.peak.…``, ``threads.N.bandwidth`` and
    ``launch_floor``.

    Every probe gets three turns, whatever that takes. `size` is that of the matrices (default `SIZE`). Needs onnx;
    raises `ModuleNotFoundError` without it.
    """
    probes: list[_Probe] = []
    missing: dict[str, str] = {}
    samples: dict[str, list[float]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("calibrate"))
        for make in _probes(folder, threads, size or SIZE):
            try:
                probes += stack.enter_context(make())
            except _NotMeasured as reason:
                key, _, why = str(reason).partition(": ")
                missing.setdefault(key, why)
        log(f"measuring {len(probes)} figures for {seconds:g} s; leave the machine alone")
        until = time.perf_counter() + seconds
        turns = 0
        while turns < LEAST_TURNS or time.perf_counter() < until:
            for probe in probes:
                samples.setdefault(probe.key, []).append(probe.turn())
            turns += 1
    figures = {}
    for probe in probes:
        found = summary(samples[probe.key])
        if found["median_ms"] <= 0:  # `summary` is of any numbers; the launch floor is a difference of two times
            missing[probe.key] = "lost in the noise of a busy machine"
            continue
        source = f"{probe.source}, median of {turns} turns"
        value, spread = float(f"{found['median_ms']:.5g}"), float(f"{found['spread']:.3g}")
        figures[probe.key] = Figure(value, probe.unit, source, "measured", spread=spread)
    return Rates(figures, missing)


def last_level_cache() -> int | None:
    """The bytes of all last-level caches that this process's cores have, or None where the system does not tell."""
    found: dict[tuple[int, str], int] = {}
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    for core in cores:
        for cache in Path(f"/sys/devices/system/cpu/cpu{core}/cache").glob("index*"):
            try:
                level = int((cache / "level").read_text())
                size = (cache / "size").read_text().strip()
                shared = (cache / "shared_cpu_list").read_text().strip()
                found[level, shared] = int(size.removesuffix("K")) * 1024
            except (OSError, ValueError):
                continue
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last) or None


def free_memory() -> int | None:
    """The bytes of memory that a process may still take, or None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _probes(
    folder: Path, threads: Sequence[int], size: int
) -> Iterator[Callable[[], AbstractContextManager[list[_Probe]]]]:
    for precision in PRECISIONS:
        yield partial(_products, folder, precision, threads, size)
    yield partial(_triads, threads)
    yield partial(_launch, folder)


@contextmanager
def _products(folder: Path, precision: str, threads: Sequence[int], size: int) -> Iterator[list[_Probe]]:
    """Products of two square matrices, the second of them a constant of the graph as a layer's weights are."""
    file = folder / f"product-{precision}.onnx"
    file.write_bytes(_product_model(precision, size))
    kind = np.uint8 if precision == "int8" else np.float32
    feeds = {"x": np.random.default_rng(0).integers(0, 255, (size, size)).astype(kind)}
    _check_kernel(file, precision, feeds)
    operator = "MatMulInteger (uint8 × int8 → int32)" if precision == "int8" else "MatMul"
    with ExitStack() as stack:
        probes = []
        for count in threads:
            program = OnnxRuntime().load(file, count, None)
            stack.callback(program.close)
            source = f"onnxruntime {onnxruntime.__version__} {operator} of {size}×{size} matrices, {_threads(count)}"
            run = partial(program.run, ["y"], feeds)
            key = f"threads.{count}.peak.{precision}.dense"
            probes.append(_Probe(key, "GMAC/s", source, partial(_product_rate, run, size)))
        yield probes


def _product_rate(run: Callable[[], Any], size: int) -> float:
    run()  # brings the matrices back into the caches
    return size**3 / _seconds(run) / 1e9


def _product_model(precision: str, size: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(1).integers(-60, 60, (size, size))
    if precision == "int8":
        constant = numpy_helper.from_array(weights.astype(np.int8), "w")
        nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="product")]
        given, made = TensorProto.UINT8, TensorProto.INT32
        return _model(nodes, given, made, [size, size], [constant])
    constant = numpy_helper.from_array(weights.astype(np.float32), "w")
    given = TensorProto.FLOAT
    if precision == "fp32":
        return _model(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], given, given, [size, size], [constant]
        )
    # numpy has no bfloat16, so the graph casts: n² of its operations against n³ of the product.
    half = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["xh"], to=half),
        helper.make_node("Cast", ["w"], ["wh"], to=half),
        helper.make_node("MatMul", ["xh", "wh"], ["yh"], name="product"),
        helper.make_node("Cast", ["yh"], ["y"], to=given),
    ]
    return _model(nodes, given, given, [size, size], [constant])


def _model(nodes: list[Any], given: int, made: int, shape: list[int], constants: Sequence[Any] = ()) -> bytes:
    from onnx import helper

    inputs = [helper.make_tensor_value_info("x", given, shape)]
    outputs = [helper.make_tensor_value_info("y", made, shape)]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, list(constants))
    # Versions that every onnxruntime that mtlc supports can read.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _check_kernel(file: Path, precision: str, feeds: Mapping[str, np.ndarray]) -> None:
    """Refuse a precision that onnxruntime does not compute in: it casts silently where it has no kernel."""
    key = f"peak.{precision}"
    name = f"onnxruntime {onnxruntime.__version__}"
    try:
        program = OnnxRuntime().load(file, 1, str(file.with_suffix("")))
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        raise _NotMeasured(f"{key}: {name} has no kernel for it on this CPU") from None
    try:
        program.run(["y"], dict(feeds))
        profile = program.end_profile()
    finally:
        program.close()
    assert profile is not None
    events = json.loads(profile.read_text())
    products = [event["args"] for event in events if "MatMul" in str(event.get("args", {}).get("op_name"))]
    taken = {kind for product in products for kind in product["input_type_shape"][0]}
    used = {_PRECISIONS.get(kind, kind) for kind in taken}
    if used != {precision}:
        raise _NotMeasured(f"{key}: {name} computes it in {', '.join(sorted(used)) or 'another operator'} on this CPU")


@contextmanager
def _triads(threads: Sequence[int]) -> Iterator[list[_Probe]]:
    """a = s·b + c over arrays that together are four times the last-level caches, so that each byte comes from memory.

    Counted are the bytes of the three arrays, as STREAM counts them (McCalpin, 1995).
    """
    cache = last_level_cache()
    total = max(4 * (cache or _UNKNOWN_CACHE), _LEAST_TRIAD_BYTES)
    free = free_memory()
    if free is not None and total > free // 2:
        raise _NotMeasured(
            f"memory.bandwidth: arrays larger than the caches take {total >> 20} MiB, too much of the free memory"
        )
    blocks = -(-total // (3 * 4 * _BLOCK))
    a, b, c = (np.full((blocks, _BLOCK), value, np.float32) for value in (0.0, 1.0, 2.0))
    scale = np.float32(3.0)

    def work(part: range) -> None:
        # Block by block, the product is still in the core's cache when the sum is added to it.
        for i in part:
            np.multiply(b[i], scale, out=a[i])
            np.add(a[i], c[i], out=a[i])

    def rate(pool: ThreadPoolExecutor, parts: Sequence[range]) -> float:
        return 3 * a.nbytes / _seconds(lambda: list(pool.map(work, parts))) / 1e9

    known = f"{cache >> 20} MiB of last-level cache" if cache else "a cache of unknown size"
    source = f"numpy {np.__version__} triad over {3 * a.nbytes >> 20} MiB against {known}"
    with ExitStack() as stack:
        probes = []
        for count in threads:
            pool = stack.enter_context(ThreadPoolExecutor(count))
            parts = [range(blocks * part // count, blocks * (part + 1) // count) for part in range(count)]
            turn = partial(rate, pool, parts)
            probes.append(_Probe(f"threads.{count}.bandwidth", "GB/s", f"{source}, {_threads(count)}", turn))
        yield probes


@contextmanager
def _launch(folder: Path) -> Iterator[list[_Probe]]:
    """The time of one operator that has next to nothing to do, on one thread: many of them less one, divided."""
    from onnx import TensorProto, helper

    with ExitStack() as stack:
        runs = []
        for nodes in (1, 1 + _CHAIN):
            names = ["x", *(f"t{i}" for i in range(1, nodes)), "y"]
            chain = [helper.make_node("Add", [names[i], "x"], [names[i + 1]]) for i in range(nodes)]
            file = folder / f"chain-{nodes}.onnx"
            file.write_bytes(_model(chain, TensorProto.FLOAT, TensorProto.FLOAT, [1]))
            program = OnnxRuntime().load(file, 1, None)
            stack.callback(program.close)
            runs.append(partial(program.run, ["y"], {"x": np.zeros(1, np.float32)}))
            runs[-1]()

        def turn() -> float:
            one, many = (float(np.median([_seconds(run) for _ in range(_CALLS)])) for run in runs)
            return (many - one) / _CHAIN * 1e6

        source = f"onnxruntime {onnxruntime.__version__}, {_CHAIN} additions of one number, 1 thread"
        yield [_Probe("launch_floor", "us", source, turn)]


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e9
