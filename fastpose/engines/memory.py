"""Memory of a CUDA device for engines that work on addresses: torch's, or another's without torch.

All three work in the device's primary context, the one that torch and the CUDA runtime use, so that
they see each other's memory. None is imported before it is asked for.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import math
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.errors import BackendError, EngineError
from fastpose.ops.cubin import driver_version, synchronize_stream

HostArray = npt.NDArray[Any]

KINDS = {
    "torch": ("torch", "the extra fastpose-inference[torch]"),
    "pycuda": ("pycuda", "the extra fastpose-inference[pycuda]"),
    "cuda": ("cuda.bindings", "the extra fastpose-inference[cuda]"),
}
"""By the name in `Options.memory`: what is imported, and what brings it."""

BITS = np.dtype(np.int16)  # stands for bfloat16, which numpy does not have


def host_type(dtype: str) -> np.dtype[Any]:
    """The type of numpy for one of a device; of "bfloat16", int16 of the same bits."""
    return BITS if dtype == "bfloat16" else np.dtype(dtype)


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A dense array on a device. torch.as_tensor and others take it without a copy.

    Attributes:
        address: of its first byte.
        shape: of the array.
        dtype: in numpy's words, or "bfloat16", which others see as int16.
        owner: keeps the memory; it is free when nobody has it any more.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    owner: Any = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * host_type(self.dtype).itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; work on it must be ordered by the caller."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": host_type(self.dtype).str,
            "data": (self.address, False),
            "strides": None,
        }

    def part(self, start: int, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """An array inside this one, `start` bytes behind its beginning."""
        inner = DeviceArray(self.address + start, shape, dtype, self.owner)
        if start < 0 or start + inner.nbytes > self.nbytes:
            raise ValueError(
                f"a part must lie in {self.nbytes} bytes, got {start} + {inner.nbytes}"
            )
        return inner


class DeviceMemory(ABC):
    """Memory and order of work of one device; for one thread at a time.

    Attributes:
        kind: a name of `KINDS`.
        device: such as "cuda:0".
        gpu: its name, such as "NVIDIA H200".
        capability: (major, minor) compute capability.
    """

    kind: str
    device: str
    gpu: str
    capability: tuple[int, int]

    @property
    def driver(self) -> str:
        """The newest version of CUDA that the driver knows, such as "13.0"."""
        return driver_version()

    @property
    @abstractmethod
    def stream(self) -> int:
        """Handle of the stream that copies go to, and everything else has to be enqueued on.

        With torch its current one, which may be another at the next call; else one of its own,
        which waits for the device's default stream, where torch works unless it is told, as that
        waits for it.
        """

    @abstractmethod
    def current(self) -> AbstractContextManager[Any]:
        """In this context the device is the thread's current one, as launches need it.

        Raises:
            EngineError: something in it fails on the device; not with torch, which has its own.
        """

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array on the device, of any content.

        Raises:
            EngineError: there is not so much memory.
        """

    @abstractmethod
    def host(self, shape: tuple[int, ...], dtype: str) -> HostArray:
        """A new array of the host, page-locked, of any content.

        Copies to and from it run beside the host; those of other memory of the host wait.
        """

    def upload(self, given: HostArray, array: DeviceArray) -> None:
        """Enqueue the copy of a dense array to the device.

        Its content must stay until the copy is done.

        Raises:
            ValueError: the two are of different sizes, or the array is not dense.
        """
        if self._to_copy(given, array):
            with self.current():
                self._upload(given, array)

    def download(self, array: DeviceArray, out: HostArray) -> None:
        """Enqueue the copy to a dense array, which is filled after `synchronize`.

        Raises:
            ValueError: the two are of different sizes, or the array is not dense.
        """
        if self._to_copy(out, array):
            with self.current():
                self._download(array, out)

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for what is enqueued on `stream`."""

    def wait_for(self, stream: int) -> None:
        """Wait for what is enqueued on any stream of the device, by its handle.

        Raises:
            EngineError: something on it has failed.
        """
        with self.current():
            synchronize_stream(stream)

    def close(self) -> None:  # noqa: B027 -- what has nothing of its own has nothing to free
        """Let go of the stream and the context; arrays live on as long as somebody has them."""

    @abstractmethod
    def _upload(self, given: HostArray, array: DeviceArray) -> None: ...

    @abstractmethod
    def _download(self, array: DeviceArray, out: HostArray) -> None: ...

    def _to_copy(self, host: HostArray, array: DeviceArray) -> bool:
        """Whether there is anything."""
        if host.nbytes != array.nbytes or not host.flags.c_contiguous:
            dense = "" if host.flags.c_contiguous else " not dense"
            raise ValueError(
                f"the host's array must be {array.nbytes} bytes, dense, got {host.nbytes}{dense}"
            )
        return array.nbytes > 0


def open_memory(kind: str = "auto", device: str = "auto") -> DeviceMemory:
    """Memory of a device.

    Args:
        kind: a name of `KINDS`; "auto" takes torch where it is loaded, as its memory is then the
            one to share, else the first of pycuda, cuda and torch that is installed.
        device: "auto", "cuda" or "cuda:1".

    Raises:
        BackendError: it, its driver or the device is not there.
    """
    index = device_index(device)
    match _choose(kind):
        case "torch":
            return TorchMemory(index)
        case "pycuda":
            return PyCUDAMemory(index)
        case _:
            return BindingsMemory(index)


def device_index(device: str) -> int:
    """The number of a device in "cuda:1"; "auto" and "cuda" are the first.

    Raises:
        BackendError: it is no CUDA device.
    """
    place, _, number = device.partition(":")
    if device in ("auto", "cuda"):
        return 0
    if place != "cuda" or not number.isdecimal():
        raise BackendError(f"device must be cuda or cuda:NUMBER here, got {device!r}")
    return int(number)


def _choose(kind: str) -> str:
    if kind not in ("auto", *KINDS):
        raise BackendError(f"there is no memory {kind!r}; there is: {', '.join(KINDS)}")
    if kind == "auto":
        order = ["torch"] if "torch" in sys.modules else []
        order += ["pycuda", "cuda", "torch"]
        kind = next((name for name in order if _installed(KINDS[name][0])), "")
        if not kind:
            options = ", ".join(package for _, package in KINDS.values())
            raise BackendError(f"no memory of a CUDA device; needed is one of: {options}")
    module, package = KINDS[kind]
    if not _installed(module):
        raise BackendError(f"memory {kind!r} needs {package}, which is not installed")
    return kind


def _installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _check_index(index: int, count: int, kind: str) -> None:
    if index >= count:
        there = f"cuda:0 to cuda:{count - 1}" if count else "no CUDA device"
        raise BackendError(f"memory {kind!r} has no device cuda:{index}; it sees: {there}")


class TorchMemory(DeviceMemory):
    """Torch's own, in its caching allocator, on its current stream."""

    kind = "torch"

    def __init__(self, index: int) -> None:
        import torch

        _check_index(index, torch.cuda.device_count() if torch.cuda.is_available() else 0, "torch")
        self._torch: Any = torch
        self._device = torch.device("cuda", index)
        self.device = f"cuda:{index}"
        self.gpu = torch.cuda.get_device_name(self._device)
        self.capability = torch.cuda.get_device_capability(self._device)

    @property
    def stream(self) -> int:
        """See `DeviceMemory.stream`."""
        return int(self._torch.cuda.current_stream(self._device).cuda_stream)

    def current(self) -> AbstractContextManager[Any]:
        """See `DeviceMemory.current`."""
        device: AbstractContextManager[Any] = self._torch.cuda.device(self._device)
        return device

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `DeviceMemory.empty`."""
        size, torch = _bytes(shape, dtype), self._torch
        try:
            with torch.inference_mode(False):
                room = torch.empty(size, dtype=torch.uint8, device=self._device)
        except RuntimeError as error:
            raise EngineError(f"torch: {_first_line(error)}") from None
        return DeviceArray(room.data_ptr(), shape, dtype, room)

    def host(self, shape: tuple[int, ...], dtype: str) -> HostArray:
        """See `DeviceMemory.host`."""
        torch = self._torch
        with torch.inference_mode(False):
            room = torch.empty(_bytes(shape, dtype), dtype=torch.uint8, pin_memory=True)
        return _typed(room.numpy(), shape, dtype)

    def _upload(self, given: HostArray, array: DeviceArray) -> None:
        self._room(array).copy_(self._flat(given), non_blocking=True)

    def _download(self, array: DeviceArray, out: HostArray) -> None:
        self._flat(out).copy_(self._room(array), non_blocking=True)

    def synchronize(self) -> None:
        """See `DeviceMemory.synchronize`."""
        self._torch.cuda.current_stream(self._device).synchronize()

    def wait_for(self, stream: int) -> None:
        """See `DeviceMemory.wait_for`."""
        torch = self._torch
        try:
            torch.cuda.ExternalStream(stream, device=self._device).synchronize()
        except RuntimeError as error:
            raise EngineError(f"torch: {_first_line(error)}") from None

    def _flat(self, array: HostArray) -> Any:
        return self._torch.from_numpy(array.reshape(-1).view(np.uint8))

    def _room(self, array: DeviceArray) -> Any:
        start = array.address - array.owner.data_ptr()
        return array.owner[start : start + array.nbytes]


class PyCUDAMemory(DeviceMemory):
    """PyCUDA's, on a stream of its own.

    Its context is pushed for each call and popped after it, so that pycuda's idea of the current
    context and everybody else's are left as they were.
    """

    kind = "pycuda"

    def __init__(self, index: int) -> None:
        try:
            import pycuda.driver as driver
        except ImportError as error:
            raise BackendError(f"memory 'pycuda': pycuda does not load: {error}") from None
        self._driver: Any = driver
        try:
            driver.init()
            count = driver.Device.count()
        except driver.Error as error:
            raise BackendError(f"memory 'pycuda': {_first_line(error)}") from None
        _check_index(index, count, "pycuda")
        self.device, device = f"cuda:{index}", driver.Device(index)
        self.gpu = device.name()
        major, minor = device.compute_capability()
        self.capability = (major, minor)
        self._context = _pycuda_context(driver, index)
        with self.current():
            self._stream: Any = driver.Stream()

    @property
    def stream(self) -> int:
        """See `DeviceMemory.stream`."""
        return int(self._opened().handle)

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `DeviceMemory.current`."""
        self._context.push()
        try:
            yield
        except self._driver.Error as error:
            raise EngineError(f"pycuda: {_first_line(error)}") from None
        finally:
            self._driver.Context.pop()

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `DeviceMemory.empty`."""
        with self.current():
            room = self._driver.mem_alloc(_bytes(shape, dtype))
        return DeviceArray(int(room), shape, dtype, room)

    def host(self, shape: tuple[int, ...], dtype: str) -> HostArray:
        """See `DeviceMemory.host`."""
        with self.current():
            room = self._driver.pagelocked_empty((_bytes(shape, dtype),), np.uint8)
        return _typed(room, shape, dtype)

    def _upload(self, given: HostArray, array: DeviceArray) -> None:
        self._driver.memcpy_htod_async(array.address, given, self._opened())

    def _download(self, array: DeviceArray, out: HostArray) -> None:
        self._driver.memcpy_dtoh_async(out, array.address, self._opened())

    def synchronize(self) -> None:
        """See `DeviceMemory.synchronize`."""
        with self.current():
            self._opened().synchronize()

    def close(self) -> None:
        """See `DeviceMemory.close`."""
        with self.current():  # in another thread pycuda would not free it
            self._stream = None

    def _opened(self) -> Any:
        if self._stream is None:
            raise EngineError("memory 'pycuda' is closed")
        return self._stream


@functools.cache
def _pycuda_context(driver: Any, index: int) -> Any:
    """The device's primary context, retained once for the process, as the CUDA runtime does too.

    PyCUDA leaves a context that it releases on the thread's stack of contexts, so that is done at
    the end alone; without it, its destructor would take the context for another sort and fail.
    """
    context = driver.Device(index).retain_primary_context()
    atexit.register(context.detach)
    return context


class BindingsMemory(DeviceMemory):
    """That of cuda-bindings, on a stream of its own."""

    kind = "cuda"

    def __init__(self, index: int) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise BackendError(f"memory 'cuda': cuda-bindings do not load: {error}") from None
        self._driver: Any = driver
        try:
            _checked(driver, driver.cuInit(0))
            count = _checked(driver, driver.cuDeviceGetCount())
        except (RuntimeError, OSError) as error:  # without a driver nothing can be called
            raise BackendError(f"memory 'cuda': {_first_line(error)}") from None
        _check_index(index, count, "cuda")
        device = _checked(driver, driver.cuDeviceGet(index))
        self.device = f"cuda:{index}"
        name: bytes = _checked(driver, driver.cuDeviceGetName(256, device))
        self.gpu = name.partition(b"\0")[0].decode()
        self.capability = _capability(driver, device)
        self._primary: _Primary | None = _Primary(driver, device)
        with self.current():
            stream = _checked(driver, driver.cuStreamCreate(0))
        self._stream: _Owned | None = _Owned(self._primary, driver.cuStreamDestroy, stream)

    @property
    def stream(self) -> int:
        """See `DeviceMemory.stream`."""
        return int(self._opened())

    def current(self) -> AbstractContextManager[Any]:
        """See `DeviceMemory.current`."""
        return self._context().current()

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `DeviceMemory.empty`."""
        driver = self._driver
        with self.current():
            place = _checked(driver, driver.cuMemAlloc(_bytes(shape, dtype)))
        owner = _Owned(self._context(), driver.cuMemFree, place)
        return DeviceArray(int(place), shape, dtype, owner)

    def host(self, shape: tuple[int, ...], dtype: str) -> HostArray:
        """See `DeviceMemory.host`."""
        driver, size = self._driver, _bytes(shape, dtype)
        with self.current():
            place = _checked(driver, driver.cuMemHostAlloc(size, 0))
        room: Any = (ctypes.c_uint8 * size).from_address(int(place))
        room.owner = _Owned(self._context(), driver.cuMemFreeHost, place)  # as long as the array
        return _typed(np.frombuffer(room, np.uint8), shape, dtype)

    def _upload(self, given: HostArray, array: DeviceArray) -> None:
        driver, stream = self._driver, self._opened()
        place = given.ctypes.data
        _checked(driver, driver.cuMemcpyHtoDAsync(array.address, place, given.nbytes, stream))

    def _download(self, array: DeviceArray, out: HostArray) -> None:
        driver, stream = self._driver, self._opened()
        place = out.ctypes.data
        _checked(driver, driver.cuMemcpyDtoHAsync(place, array.address, out.nbytes, stream))

    def synchronize(self) -> None:
        """See `DeviceMemory.synchronize`."""
        with self.current():
            _checked(self._driver, self._driver.cuStreamSynchronize(self._opened()))

    def close(self) -> None:
        """See `DeviceMemory.close`."""
        self._stream = self._primary = None

    def _opened(self) -> Any:
        if self._stream is None:
            raise EngineError("memory 'cuda' is closed")
        return self._stream.handle

    def _context(self) -> _Primary:
        if self._primary is None:
            raise EngineError("memory 'cuda' is closed")
        return self._primary


def _capability(driver: Any, device: Any) -> tuple[int, int]:
    kinds = driver.CUdevice_attribute
    major, minor = (
        int(_checked(driver, driver.cuDeviceGetAttribute(kind, device)))
        for kind in (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return major, minor


class _Primary:
    """A device's primary context, released when nothing that lives in it is left."""

    def __init__(self, driver: Any, device: Any) -> None:
        self.driver = driver
        self.context = _checked(driver, driver.cuDevicePrimaryCtxRetain(device))
        weakref.finalize(self, driver.cuDevicePrimaryCtxRelease, device)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Pushed, and popped again."""
        _checked(self.driver, self.driver.cuCtxPushCurrent(self.context))
        try:
            yield
        finally:
            _checked(self.driver, self.driver.cuCtxPopCurrent())


class _Owned:
    """What is freed, in its context, when nobody has it any more; then the context may go."""

    def __init__(self, primary: _Primary, free: Callable[[Any], Any], handle: Any) -> None:
        self.handle = handle
        weakref.finalize(self, _free, primary, free, handle)


def _free(primary: _Primary, free: Callable[[Any], Any], handle: Any) -> None:
    with primary.current():
        free(handle)


def _checked(driver: Any, answer: Any) -> Any:
    """What a function of cuda-bindings gives beside its status.

    Raises:
        EngineError: the status is an error.
    """
    status, *values = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(status)
        raise EngineError(f"cuda: {getattr(status, 'name', status)}: {(text or b'').decode()}")
    return values[0] if values else None


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Of an array; at least one, which no allocator refuses."""
    return max(1, math.prod(shape) * host_type(dtype).itemsize)


def _typed(room: HostArray, shape: tuple[int, ...], dtype: str) -> HostArray:
    size = math.prod(shape) * host_type(dtype).itemsize
    return room[:size].view(host_type(dtype)).reshape(shape)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
