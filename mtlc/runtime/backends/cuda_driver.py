"""Calls the few functions of CUDA's driver library that an engine needs, through ctypes: no package is needed.

The library comes with NVIDIA's driver. TensorRT works in a device's primary context, and so does this.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from mtlc.errors import Unavailable

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_OUT = POINTER(c_void_p)
# cuda.h; all return CUresult. Handles are pointers, CUdeviceptr is 64 bits, CUdevice and enumerations are int.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_void_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemAllocHost_v2": (_OUT, c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (_OUT, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _OUT),
    "cuGraphInstantiateWithFlags": (_OUT, c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
}
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads allocate does not break a capture
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


class CudaError(Exception):
    """A call of the driver that failed, with the driver's words."""


class Cuda:
    """The first GPU that the process sees, and its driver. Pointers and handles are plain numbers.

    `gpu` is its name, `capability` its compute capability such as ``"8.6"``, `driver` the CUDA version that the driver
    is for, such as ``"12.4"``. Raises `Unavailable` without a driver or a GPU.
    """

    def __init__(self, library: Any | None = None) -> None:
        if library is None:
            try:
                library = ctypes.CDLL(LIBRARY)
            except OSError:
                raise Unavailable(
                    f"no NVIDIA driver is here ({LIBRARY} is missing): engines run on NVIDIA GPUs"
                ) from None
        self._calls: dict[str, Any] = {}
        for name, arguments in SIGNATURES.items():
            try:
                call = getattr(library, name)
            except AttributeError:
                raise Unavailable(f"the NVIDIA driver has no {name}: it is older than CUDA 11.4") from None
            call.argtypes, call.restype = arguments, c_int
            self._calls[name] = call
        number, device = c_int(), c_int()
        try:
            self._call("cuInit", 0)
            self._call("cuDeviceGet", ctypes.byref(device), 0)
            self._call("cuDriverGetVersion", ctypes.byref(number))
            self.driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
            text = ctypes.create_string_buffer(256)
            self._call("cuDeviceGetName", text, len(text), device.value)
            self.gpu = text.value.decode(errors="replace")
            digits = []
            for attribute in (_MAJOR, _MINOR):
                self._call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device.value)
                digits.append(str(number.value))
            self.capability = ".".join(digits)
            self._context = self._new("cuDevicePrimaryCtxRetain", device.value)
        except CudaError as error:
            raise Unavailable(f"no GPU can be used here: {error}") from None

    def use(self) -> None:
        """Make the calling thread work on this GPU."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """`size` bytes on the GPU."""
        pointer = c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), size)
        return pointer.value

    def free(self, pointer: int) -> None:
        self._call("cuMemFree_v2", pointer)

    def allocate_host(self, size: int) -> int:
        """`size` bytes in main memory that the GPU copies from and to by itself (pinned)."""
        return self._new("cuMemAllocHost_v2", size)

    def free_host(self, pointer: int) -> None:
        self._call("cuMemFreeHost", pointer)

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """Queue a copy to the GPU."""
        self._call("cuMemcpyHtoDAsync_v2", device, host, size, stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """Queue a copy from the GPU."""
        self._call("cuMemcpyDtoHAsync_v2", host, device, size, stream)

    def stream(self) -> int:
        """A queue of work that waits for no other."""
        return self._new("cuStreamCreate", _NON_BLOCKING)

    def wait(self, stream: int) -> None:
        """Until all that was queued is done."""
        self._call("cuStreamSynchronize", stream)

    def free_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def begin_capture(self, stream: int) -> None:
        """What is queued from here on is recorded, not run."""
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The recording, ready to `launch`. Raises `CudaError` if something in it cannot be recorded."""
        graph = self._new_after("cuStreamEndCapture", stream)
        try:
            return self._new("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, recording: int, stream: int) -> None:
        self._call("cuGraphLaunch", recording, stream)

    def free_recording(self, recording: int) -> None:
        self._call("cuGraphExecDestroy", recording)

    def _new(self, name: str, *arguments: Any) -> int:
        """Call a function whose first argument takes a pointer or a handle."""
        made = c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return made.value or 0

    def _new_after(self, name: str, *arguments: Any) -> int:
        """Call a function whose last argument takes a handle."""
        made = c_void_p()
        self._call(name, *arguments, ctypes.byref(made))
        if not made.value:
            raise CudaError(f"{name} gave nothing")
        return made.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = self._calls[name](*arguments)
        if status:
            text = c_char_p()
            self._calls["cuGetErrorString"](status, ctypes.byref(text))
            words = text.value.decode(errors="replace") if text.value else "unknown error"
            raise CudaError(f"{name}: {words} (CUDA error {status})")
