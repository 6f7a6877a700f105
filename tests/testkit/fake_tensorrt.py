"""A CUDA driver and a classic TensorRT in Python: what runs engines is tested where there is no GPU.

The driver's functions are C function pointers with the signatures that the caller declares, so arguments pass through
the C calling convention. "GPU" memory is main memory under other addresses; what is queued on a stream happens when the
stream is waited for, and while a stream records, nothing happens. An "engine" is the ONNX file that it was built from,
computed by onnxruntime. `test_the_fake_has_no_name_that_tensorrt_lacks` compares the names here with the real module's.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from mtlc.runtime.backends.cuda_driver import SIGNATURES

OFFSET = 1 << 52
"""What a GPU address is above the main memory that stands for it."""


class Stream:
    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None

    def put(self, work: Callable[[], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)


class Driver:
    """Stands for libcuda: `calls` counts every function, `status` makes one fail with that error."""

    def __init__(self, gpu: str = "Fake GPU", capability: tuple[int, int] = (8, 7)) -> None:
        self.gpu, self.capability = gpu, capability
        self.calls: dict[str, int] = {}
        self.status: dict[str, int] = {}
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = 1000
        for name, arguments in SIGNATURES.items():
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(self._call(name)))

    def _call(self, name: str) -> Callable[..., int]:
        function = getattr(self, "_" + name.removesuffix("_v2"))

        def call(*arguments: Any) -> int:
            self.calls[name] = self.calls.get(name, 0) + 1
            if self.status.get(name):
                return self.status[name]
            return function(*arguments) or 0

        return call

    def handle(self) -> int:
        self._next += 1
        return self._next

    def _cuInit(self, flags):  # noqa: N802
        assert flags == 0

    def _cuDriverGetVersion(self, number):  # noqa: N802
        number[0] = 12040

    def _cuGetErrorString(self, status, text):  # noqa: N802
        text[0] = f"fake error {status}".encode()

    def _cuDeviceGet(self, device, ordinal):  # noqa: N802
        assert ordinal == 0
        device[0] = 3

    def _cuDeviceGetName(self, text, size, device):  # noqa: N802
        assert device == 3
        ctypes.memmove(text, self.gpu.encode() + b"\0", len(self.gpu) + 1)

    def _cuDeviceGetAttribute(self, number, attribute, device):  # noqa: N802
        number[0] = self.capability[{75: 0, 76: 1}[attribute]]

    def _cuDevicePrimaryCtxRetain(self, context, device):  # noqa: N802
        context[0] = 77

    def _cuCtxSetCurrent(self, context):  # noqa: N802
        assert context == 77

    def _allocate(self, size: int, offset: int) -> int:
        memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(memory) + offset
        self.memory[address] = memory
        return address

    def _cuMemAlloc(self, pointer, size):  # noqa: N802
        pointer[0] = self._allocate(size, OFFSET)

    def _cuMemFree(self, pointer):  # noqa: N802
        del self.memory[pointer]

    def _cuMemAllocHost(self, pointer, size):  # noqa: N802
        pointer[0] = self._allocate(size, 0)

    def _cuMemFreeHost(self, pointer):  # noqa: N802
        del self.memory[pointer]

    def _cuMemcpyHtoDAsync(self, device, host, size, stream):  # noqa: N802
        assert {device, host} <= set(self.memory)
        self.streams[stream].put(lambda: ctypes.memmove(device - OFFSET, host, size))

    def _cuMemcpyDtoHAsync(self, host, device, size, stream):  # noqa: N802
        assert {device, host} <= set(self.memory)
        self.streams[stream].put(lambda: ctypes.memmove(host, device - OFFSET, size))

    def _cuStreamCreate(self, stream, flags):  # noqa: N802
        stream[0] = self.handle()
        self.streams[stream[0]] = Stream()

    def _cuStreamSynchronize(self, stream):  # noqa: N802
        assert self.streams[stream].recording is None
        queue, self.streams[stream].queue = self.streams[stream].queue, []
        for work in queue:
            work()

    def _cuStreamDestroy(self, stream):  # noqa: N802
        del self.streams[stream]

    def _cuStreamBeginCapture(self, stream, mode):  # noqa: N802
        assert mode == 1
        self.streams[stream].recording = []

    def _cuStreamEndCapture(self, stream, graph):  # noqa: N802
        graph[0] = self.handle()
        self.graphs[graph[0]] = self.streams[stream].recording
        self.streams[stream].recording = None

    def _cuGraphInstantiateWithFlags(self, executable, graph, flags):  # noqa: N802
        executable[0] = self.handle()
        self.graphs[executable[0]] = self.graphs[graph]

    def _cuGraphLaunch(self, executable, stream):  # noqa: N802
        for work in self.graphs[executable]:
            self.streams[stream].put(work)

    def _cuGraphDestroy(self, graph):  # noqa: N802
        del self.graphs[graph]

    def _cuGraphExecDestroy(self, executable):  # noqa: N802
        del self.graphs[executable]


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class TensorLocation(enum.Enum):
    DEVICE, HOST = 0, 1


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def __init__(self) -> None:
        pass


def make_module(driver: Driver, version: str = "11.0.1", hosted: tuple[str, ...] = ()) -> types.ModuleType:
    """The module ``tensorrt``, on that driver. The inputs in `hosted` are those that TensorRT wants in main memory."""

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine, self._shapes, self._addresses = engine, {}, {}
            module.contexts += 1

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._shapes[name] = tuple(shape)
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name not in self._shapes:
                self._shapes |= {n: a.shape for n, a in self._engine._run(self._zeros()).items()}
            return self._shapes[name]

        def _zeros(self) -> dict[str, np.ndarray]:
            return {n: np.zeros(self._shapes[n], self._engine._dtypes[n]) for n in self._engine._inputs}

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert address in driver.memory
            assert (address > OFFSET) == (name not in hosted)
            self._addresses[name] = address if name in hosted else address - OFFSET
            return True

        def is_stream_capturable(self, stream: int) -> bool:
            return module.capturable

        def execute_async_v3(self, stream: int) -> bool:
            module.enqueued += 1
            addresses = dict(self._addresses)

            def array(name: str) -> np.ndarray:
                shape, dtype = self._shapes[name], self._engine._dtypes[name]
                size = int(np.prod(shape)) * dtype.itemsize
                memory = (ctypes.c_char * size).from_address(addresses[name])
                return np.frombuffer(memory, dtype).reshape(shape)

            def compute() -> None:
                for name, made in self._engine._run({n: array(n) for n in self._engine._inputs}).items():
                    array(name)[...] = made

            driver.streams[stream].put(compute)
            return not module.failing

    class ICudaEngine:
        num_io_tensors = 0

        def __init__(self, data: bytes) -> None:
            described = json.loads(data)
            model = onnx.load_from_string(bytes.fromhex(described["model"]))
            self._profile = described["profile"]
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            self._inputs = [value.name for value in model.graph.input]
            self._names = [*(value.name for value in model.graph.output), *self._inputs]
            values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
            self._dtypes = {n: np.dtype(helper.tensor_dtype_to_np_dtype(t.elem_type)) for n, t in values.items()}
            self._static = {n: tuple(d.dim_value or -1 for d in t.shape.dim) for n, t in values.items()}
            self.num_io_tensors = len(self._names)

        def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = [name for name in self._names if name not in self._inputs]
            return dict(zip(outputs, self._session.run(outputs, feeds), strict=True))

        def get_tensor_name(self, place: int) -> str:
            return self._names[place]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._static[name]

        def get_tensor_profile_shape(self, name: str, place: int) -> list[tuple[int, ...]]:
            assert place == 0
            return [tuple(shape) for shape in self._profile[name]]

        def get_tensor_location(self, name: str) -> TensorLocation:
            return TensorLocation.HOST if name in hosted else TensorLocation.DEVICE

        def get_tensor_dtype(self, name: str) -> np.dtype:
            return self._dtypes[name]

        def create_execution_context(self) -> IExecutionContext:
            return IExecutionContext(self)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
            return ICudaEngine(data) if data.startswith(b"{") else None

    class ITensor:
        name, shape = "", ()

        def __init__(self, value: onnx.ValueInfoProto) -> None:
            self.name, self._dims = value.name, value.type.tensor_type.shape.dim
            self.shape = tuple(d.dim_value or -1 for d in self._dims)

        def get_dimension_name(self, axis: int) -> str:
            return self._dims[axis].dim_param

    class INetworkDefinition:
        num_layers = 1

        @property
        def num_inputs(self) -> int:
            return len(self._model.graph.input)

        def get_input(self, place: int) -> ITensor:
            return ITensor(self._model.graph.input[place])

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network = network

        def parse_from_file(self, path: str) -> bool:
            self._network._model = onnx.load(path)
            return True

        def get_error(self, place: int) -> Any:
            raise IndexError(place)

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            self._shapes[name] = shapes

    class ITimingCache:
        def __init__(self, data: bytes) -> None:
            self._data = data

        def serialize(self) -> bytes:
            return self._data + b"+"

    class IBuilderConfig:
        def __init__(self) -> None:
            self._profile: IOptimizationProfile | None = None
            self._cache: ITimingCache | None = None
            self._limits: dict[Any, int] = {}

        def clear_flag(self, flag: BuilderFlag) -> None:
            assert flag == BuilderFlag.TF32

        def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
            module.workspace = size

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self._profile = profile
            return 0

        def create_timing_cache(self, data: bytes) -> ITimingCache:
            return ITimingCache(data)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._cache = cache
            return cache._data.strip(b"+") == b""

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            pass

        def create_network(self, flags: int) -> INetworkDefinition:
            assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes:
            shapes = {} if config._profile is None else config._profile._shapes
            return json.dumps({"model": network._model.SerializeToString().hex(), "profile": shapes}).encode()

    module: Any = types.ModuleType("tensorrt")
    module.__version__, module.nptype = version, lambda dtype: dtype
    module.contexts = module.enqueued = module.workspace = 0
    module.capturable, module.failing = True, False
    for part in (
        BuilderFlag, Builder, IBuilderConfig, ICudaEngine, IExecutionContext, ILogger, INetworkDefinition,
        IOptimizationProfile,
        ITensor, ITimingCache, MemoryPoolType, NetworkDefinitionCreationFlag, OnnxParser, Runtime, TensorIOMode,
        TensorLocation,
    ):  # fmt: skip
        setattr(module, part.__name__, part)
    return module


def public_names(module: Any) -> list[tuple[str, str]]:
    """The public names of the fake's classes, each behind its class's."""
    return [
        (name, attribute)
        for name, part in vars(module).items()
        if isinstance(part, type)
        for attribute in vars(part)
        if not attribute.startswith("_")
    ]
