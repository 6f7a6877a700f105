"""Measures the time of one kernel in a graph of copies of it.

A kernel alone measures another time than in its network: its weights stay in the fastest cache, and the call of the
session is counted with it. So a graph holds copies of the kernel, each with weights of its own as the layers of a
network have, and the time of a graph with one copy is taken off. What is measured is the CPU time of the calling thread
with one thread, which other processes disturb little, and wall time with more.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtlc.errors import Unavailable, one_line
from mtlc.files import scratch_folder
from mtlc.hw.latency_table.kernels import Kernel, Operand
from mtlc.hw.latency_table.sessions import session_options
from mtlc.runtime.backends.onnxruntime_backend import onnxruntime

Clock = Callable[[], int]
"""Nanoseconds from any origin."""

_FOOTPRINT = 2 << 20  # bytes of weights and results that the copies of a kernel have together, if it takes few of them
_COPIES = (3, 24)
_TURNS = 3
_TURN_NS = 3_000_000
_REFERENCE_COPIES = 4
_REFERENCE_TURNS = 20
_TENSORS = {
    "float": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
_ARRAYS = {"float": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_}


class KernelTimer:
    """Times kernels with `threads`, at the speed that the machine had when `reference_ms` was measured.

    On a shared machine even CPU time drifts, by more than half where two tenants share a core. So a reference
    convolution is timed in turns with every kernel, and the kernel's time is scaled by what the reference took beside
    it.
    """

    def __init__(self, threads: int = 1, reference_ms: float | None = None, clock: Clock | None = None) -> None:
        self._threads = threads
        self._clock = clock or (time.thread_time_ns if threads == 1 else time.perf_counter_ns)
        self._reference = _runner(_REFERENCE, _REFERENCE_COPIES, threads)
        self.reference_ms = reference_ms or min(self.reference_now() for _ in range(_REFERENCE_TURNS))

    def reference_now(self) -> float:
        """The ms of the reference at this moment."""
        return _turn(self._reference, self._clock, _TURN_NS // 3)

    def __call__(self, kernel: Kernel) -> float:
        """The ms of one run of a kernel. Tens of milliseconds.

        Raises `Unavailable` for a kernel that cannot be run alone: one of a subgraph, or one that needs the values that
        its network computes.
        """
        operands = [*(o for o in kernel.inputs if o is not None), *kernel.outputs]
        if kernel.operator.startswith("inner:") or any(o.type not in _TENSORS for o in operands):
            raise Unavailable(f"{kernel.layer}: {kernel.operator} cannot be timed alone")
        # Bytes of float32 that each copy has to itself: its weights and its results, since all copies read one input.
        own = 4 * sum(math.prod(o.shape) for o in operands if o.weight or o in kernel.outputs)
        # One more than wanted, for the graph of one copy is taken off below.
        copies = min(max(_FOOTPRINT // max(own, 1), _COPIES[0]), _COPIES[1]) + 1
        try:
            one, many = (_runner(kernel, count, self._threads) for count in (1, copies))
        except Exception as error:
            raise Unavailable(f"{kernel.layer}: {kernel.operator} cannot be timed alone: {one_line(error)}") from error
        turns = []
        for _ in range(_TURNS):
            less, more = _turn(one, self._clock, _TURN_NS // 3), _turn(many, self._clock, _TURN_NS)
            # The call of the session is in both and drops out. The reference is timed in the same turn, so that it saw
            # the machine at the same speed.
            turns.append(max(more - less, 0.0) / (copies - 1) * self.reference_ms / self.reference_now())
        return statistics.median(turns)


def _turn(run: Callable[[], object], clock: Clock, nanoseconds: int) -> float:
    """The median ms of one call, over calls that take so long together."""
    # Once untimed: what the last graph left in the caches is not this one's affair.
    run()
    found: list[int] = []
    while len(found) < 3 or (sum(found) < nanoseconds and len(found) < 200):
        started = clock()
        run()
        found.append(clock() - started)
    return statistics.median(found) / 1e6


def _runner(kernel: Kernel, copies: int, threads: int) -> Callable[[], object]:
    session = onnxruntime.InferenceSession(_model(kernel, copies), session_options(threads), ["CPUExecutionProvider"])
    feeds = {
        f"x{place}": _values(operand) for place, operand in enumerate(kernel.inputs) if operand and not operand.weight
    }
    fetched = [session.get_outputs()[0].name]
    session.run(fetched, feeds)
    return lambda: session.run(fetched, feeds)


def _model(kernel: Kernel, copies: int) -> bytes:
    domain, name = kernel.operator.rsplit(":", 1)
    inputs, weights, nodes, outputs = [], [], [], []
    for place, operand in enumerate(kernel.inputs):
        if operand is not None and not operand.weight:
            inputs.append(helper.make_tensor_value_info(f"x{place}", _TENSORS[operand.type], operand.shape))
    for copy in range(copies):
        arguments = []
        for place, operand in enumerate(kernel.inputs):
            if operand is None or not operand.weight:
                arguments.append(f"x{place}" if operand is not None else "")
                continue
            arguments.append(f"w{copy}.{place}")
            known = kernel.constants.get(place)
            value = known if known is not None and known.shape == operand.shape else _values(operand)
            weights.append(numpy_helper.from_array(value, arguments[-1]))
        results = [f"y{copy}.{place}" for place in range(len(kernel.outputs))]
        nodes.append(
            helper.make_node(name, arguments, results, f"k{copy}", domain=domain, **json.loads(kernel.attributes))
        )
        for result, operand in zip(results, kernel.outputs, strict=True):
            # Every copy's result is an output of the graph: one that nobody reads might not be computed.
            outputs.append(helper.make_tensor_value_info(result, _TENSORS[operand.type], operand.shape))
    graph = helper.make_graph(nodes, "probe", inputs, outputs, weights)
    opsets = [("", 20), ("com.microsoft", 1), ("com.microsoft.nchwc", 1)]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=9)
    return bytes(model.SerializeToString())


def _values(operand: Operand) -> np.ndarray:
    if operand.type == "float":
        return np.random.default_rng(0).standard_normal(operand.shape, np.float32) * np.float32(0.05)
    return np.zeros(operand.shape, _ARRAYS[operand.type])


_REFERENCE = Kernel(
    "reference",
    ":Conv",
    json.dumps({"pads": [1, 1, 1, 1]}),
    (Operand("float", (1, 32, 16, 16)), Operand("float", (32, 32, 3, 3), weight=True)),
    (Operand("float", (1, 32, 16, 16)),),
    0.0,
)


@cache
def channel_block() -> int:
    """How many channels onnxruntime's blocked convolutions compute together on this CPU; 1 where it has none.

    Read off a convolution with one output channel: its weights are padded to the block.
    """
    weights = numpy_helper.from_array(np.zeros((1, 16, 3, 3), np.float32), "w")
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 6, 6])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "block", [image], [result], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with scratch_folder("block") as folder:
        options = session_options(1)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath)
    if not any(node.domain == "com.microsoft.nchwc" for node in optimised.graph.node):
        return 1
    found: int = max(tensor.dims[0] for tensor in optimised.graph.initializer if len(tensor.dims) == 4)
    return found
