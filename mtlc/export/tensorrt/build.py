"""Builds TensorRT engines from ONNX files, as strongly typed networks: the types are those of the graph.

A builder knows where it is: classic TensorRT measures on the GPU at hand, and its engines fit that GPU alone;
tensorrt_rtx builds without a GPU for all compute capabilities from 8.0 that it knows, and specialises on the device.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mtlc.errors import UserError
from mtlc.files import atomic_file
from mtlc.runtime.backends.cuda_driver import Cuda
from mtlc.runtime.backends.tensorrt_module import find_tensorrt, logger
from mtlc.runtime.bundle.manifest import Sizes

_RTX = "tensorrt_rtx"
_OLDEST = 80  # Ampere: for Turing (SM75) tensorrt_rtx refuses float32 matrix products


@dataclass(frozen=True)
class Engine:
    """A built engine, not run: its bytes, the layers of the network that it was built from, and what building took."""

    data: bytes
    layers: int
    parse_seconds: float
    build_seconds: float


class EngineBuilder:
    """Builds engines with the TensorRT that is here.

    `timing_cache` is a file of classic TensorRT's measurements, read if it is there and written after each engine;
    `workspace_bytes` bounds the memory that an engine may use beside its activations. `module`, `version`, `gpu` (None
    where engines fit any GPU of the `compute_capabilities`) say what the engines are built by and for.

    Raises `Unavailable` without TensorRT or, for the classic one, without a GPU; `UserError` for a timing cache that
    this TensorRT does not take.
    """

    def __init__(self, timing_cache: Path | None = None, workspace_bytes: int | None = None) -> None:
        self._trt = find_tensorrt()
        self.module, self.version = str(self._trt.__name__), str(self._trt.__version__)
        self._listener, self._messages = logger(self._trt)
        self._timing_cache, self._workspace = timing_cache, workspace_bytes
        self._targets: list[Any] = []
        self.gpu: str | None = None
        if self.module == _RTX:
            if timing_cache is not None:
                raise UserError("--timing-cache: tensorrt_rtx measures nothing when it builds: leave it out")
            known = self._trt.ComputeCapability.__members__
            numbered = {name: int(name[2:]) for name in known if re.fullmatch(r"SM\d+", name)}
            self._targets = [known[name] for name, number in numbered.items() if number >= _OLDEST]
            self.compute_capabilities = tuple(f"{t.name[2:-1]}.{t.name[-1]}" for t in self._targets)
        else:
            cuda = Cuda()
            cuda.use()
            self.gpu, self.compute_capabilities = cuda.gpu, (cuda.capability,)
        self._builder = self._trt.Builder(self._listener)

    def build(self, file: Path, dimensions: Mapping[str, Sizes], label: str) -> Engine:
        """The engine of the ONNX `file`, with one optimisation profile: `dimensions` says what named dimensions take.

        `label` names the file in messages. Raises `UserError` for an operator that TensorRT does not take, with its
        place in the network, and for a dimension without sizes.
        """
        trt = self._trt
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # what 11 takes for granted
        network = self._builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, self._listener)
        self._messages.clear()
        started = time.perf_counter()
        if not parser.parse_from_file(str(file)):
            raise UserError(f"{label}: {self._refused(parser)}")
        parsed = time.perf_counter()
        config = self._config(network, dimensions, label)
        made = self._builder.build_serialized_network(network, config)
        if made is None:
            raise UserError(f"{label}: TensorRT cannot build it: {self._messages.first()}")
        self._keep_timings(config)
        return Engine(bytes(memoryview(made)), network.num_layers, parsed - started, time.perf_counter() - parsed)

    def _config(self, network: Any, dimensions: Mapping[str, Sizes], label: str) -> Any:
        trt = self._trt
        config = self._builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 means 24 bits
        if self._workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self._workspace)
        if self._targets:
            config.num_compute_capabilities = len(self._targets)
            for place, target in enumerate(self._targets):
                config.set_compute_capability(target, place)
        self._take_timings(config)
        profile, free = self._builder.create_optimization_profile(), False
        for place in range(network.num_inputs):
            tensor = network.get_input(place)
            shape = tuple(tensor.shape)
            if -1 in shape:
                free = True
                names = [tensor.get_dimension_name(axis) if n == -1 else str(n) for axis, n in enumerate(shape)]
                profile.set_shape(tensor.name, *profile_shapes(names, dimensions, f"{label}: input {tensor.name!r}"))
        if free:
            config.add_optimization_profile(profile)
        return config

    def _refused(self, parser: Any) -> str:
        """The parser's first error in one line, with the operator and where it is."""
        if parser.num_errors == 0:
            return f"TensorRT cannot read it: {self._messages.first()}"
        error = parser.get_error(0)
        operator = error.node_operator()
        if not operator:
            return f"TensorRT cannot read it: {error.desc().splitlines()[0]}"
        path, _, name = error.node_name().rpartition("/")
        where = f"in module {path} (node {name})" if path else f"(node {name or error.node()})"
        hint = ""
        if operator == "NonZero":
            hint = '; experts in queues need it: export again with [export] experts = "masked"'
        return f"TensorRT does not take the operator {operator} {where}: {error.desc().splitlines()[0]}{hint}"

    def _take_timings(self, config: Any) -> None:
        path = self._timing_cache
        if path is None:
            return
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise UserError(f"{path}: is no timing cache of this TensorRT and GPU: remove it, or name another file")

    def _keep_timings(self, config: Any) -> None:
        if self._timing_cache is not None:
            data = bytes(memoryview(config.get_timing_cache().serialize()))
            with atomic_file(self._timing_cache) as temporary:
                temporary.write_bytes(data)


def profile_shapes(names: list[str], dimensions: Mapping[str, Sizes], where: str) -> list[tuple[int, ...]]:
    """The smallest, usual and largest shape. A dimension is a size, a name, or a product such as ``65*batch``.

    Raises `UserError`, beginning with `where`, for a dimension without sizes.
    """
    for name in names:
        for factor in name.split("*"):
            if not factor.strip().isdecimal() and factor.strip() not in dimensions:
                what = repr(factor.strip()) if factor.strip() else "without a name"
                hint = (
                    "--batch MIN,OPT,MAX"
                    if factor.strip() == "batch"
                    else "only the batch may be free: export it fixed"
                )
                raise UserError(f"{where} has a dynamic dimension {what}, which has no profile: {hint}")

    def shape(which: str) -> tuple[int, ...]:
        factors = ([factor.strip() for factor in name.split("*")] for name in names)
        return tuple(
            prod(int(f) if f.isdecimal() else int(getattr(dimensions[f], which)) for f in found) for found in factors
        )

    return [shape(which) for which in ("smallest", "usual", "largest")]
