"""CUDA devices made of the host's memory: addresses are the host's own, copies are memmove.

With them the order of the calls and the arithmetic can be tested; not what a device does.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np

from fastpose import ops
from fastpose.engines.memory import DeviceArray, DeviceMemory, host_type
from fastpose.ops.cubin import Argument, DecodeBinary

GUARD = 64  # bytes behind an allocation that nobody may write
STREAM = 77


def at(address, shape, dtype):
    """The array of the host at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size == 0:
        return np.empty(shape, dtype)
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape)


class Rooms:
    """Allocations by address; what is freed twice, or written behind, fails."""

    def __init__(self):
        self.rooms = {}

    def allocate(self, size):
        room = np.full(size + GUARD + 256, 0xFF, np.uint8)  # NaN in every type
        start = -room.ctypes.data % 256
        self.rooms[room.ctypes.data + start] = room, start + size
        return room.ctypes.data + start

    def free(self, address):
        room, end = self.rooms.pop(address)
        assert (room[end : end + GUARD] == 0xFF).all(), "written behind the end"


class HostMemory(DeviceMemory):
    """Memory of a device that is none, in which launches must come while it is current."""

    kind = "cuda"

    def __init__(self):
        self.device, self.gpu, self.capability = "cuda:0", "a host", (9, 0)
        self.rooms, self.depth, self.closed = Rooms(), 0, False
        self.copies = []  # that a device might not have done yet

    @property
    def driver(self):
        return "13.0"

    @property
    def stream(self):
        return STREAM

    @contextmanager
    def current(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def empty(self, shape, dtype):
        size = int(np.prod(shape)) * host_type(dtype).itemsize
        return DeviceArray(self.rooms.allocate(size), shape, dtype, self.rooms)

    def host(self, shape, dtype):
        return np.empty(shape, host_type(dtype))

    def _upload(self, given, array):
        assert self.depth
        ctypes.memmove(array.address, given.ctypes.data, array.nbytes)
        expected = given.copy()

        def check():
            np.testing.assert_array_equal(given, expected, "written before it was read")

        self.copies.append(check)

    def _download(self, array, out):
        assert self.depth
        self.copies.append(lambda: ctypes.memmove(out.ctypes.data, array.address, array.nbytes))

    def synchronize(self):
        while self.copies:
            self.copies.pop(0)()

    def close(self):
        self.synchronize()
        for address in list(self.rooms.rooms):
            self.rooms.free(address)
        self.closed = True


# The compiled kernels


def warp_frames(**given):
    """`fastpose._C_cuda.warp_frames` of a table, by the kernel for the CPU."""
    count, (h, w) = given["count"], given["size"]
    assert given["stream"] == STREAM
    scale, shift = np.array(given["scale"]), np.array(given["shift"])
    last = given["channels_last"]
    ops.warp(
        ops.FrameTable(at(given["table"], (given["sources"], 4), np.int64)),
        at(given["affines"], (count, 2, 3), np.float32),
        (h, w),
        source=at(given["source"], (count,), np.int32),
        area=at(given["areas"], (count,), np.int32),
        mean=-shift / scale,
        std=1 / scale,
        swap_rb=given["swap_rb"],
        border=given["border"],
        out_layout="nhwc" if last else "nchw",
        out=at(given["out"], (count, h, w, 3) if last else (count, 3, h, w), given["out_type"]),
    )


def decode_binary(maps, *, channels=None, dtype="float32", peaks=1, radius=5, capability=90):
    """A DecodeBinary without code, with some of the arguments of a true one."""
    k, h, w = maps
    pointers = ["maps", "mirrored", "affines", "taps", "points", "scores"]
    pointers += ["candidates"] * (peaks > 1)
    sizes = {"k": k, "h": h, "w": w, "person": (channels or k) * h * w}
    return DecodeBinary(
        name="_decode",
        capability=capability,
        threads=32,
        shared=1024,
        programs=k,
        arguments=(
            *(Argument(name, "*fp32") for name in pointers),
            *(Argument(name, "i32", value) for name, value in sizes.items()),
        ),
        hidden=2,
        maps=maps,
        dtype=dtype,
        peaks=peaks,
        radius=radius,
        triton="3.7.1",
        cubin=b"\x7fELF",
    )


class Driver:
    """The functions of libcuda that `fastpose.ops.cubin` calls; a launch is a decode on the CPU.

    Attributes:
        calls: names, in order.
        fail: the name of a function that returns an error.
    """

    def __init__(self, binary=None, **choices):
        self.binary, self.choices, self.calls, self.fail = binary, choices, [], None

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*given):
            self.calls.append(name)
            if name == self.fail:
                return 1
            getattr(self, f"_{name}", lambda *_: None)(*given)
            return 0

        return call

    def _cuGetErrorName(self, status, name):  # noqa: N802
        name._obj.value = b"CUDA_ERROR_INVALID_VALUE"

    def _cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = 13020

    def _cuModuleLoadData(self, module, image):  # noqa: N802
        assert image.startswith(b"\x7fELF")
        module._obj.value = 1

    def _cuLaunchKernel(self, function, *given):  # noqa: N802
        *sizes, stream, places, extra = given
        grid, threads, shared = sizes[:3], sizes[3:6], sizes[6]
        binary = self.binary
        assert [one.value for one in threads] == [binary.threads, 1, 1]
        assert shared.value == binary.shared
        assert (stream.value, extra) == (STREAM, None)
        values = {}
        for one, place in zip(binary.arguments, places, strict=False):
            kind = ctypes.c_uint64 if one.type.startswith("*") else ctypes.c_int32
            values[one.name] = kind.from_address(place).value
        hidden = [ctypes.c_uint64.from_address(p).value for p in places[len(binary.arguments) :]]
        assert hidden == [0] * binary.hidden
        assert [one.value for one in grid[1:]] == [1, 1]
        self._decode(grid[0].value // binary.programs, values)

    def _decode(self, count, values):
        k, h, w = (values[name] for name in "khw")
        channels, peaks = values["person"] // (h * w), self.binary.peaks
        maps = at(values["maps"], (count, channels, h, w), self.binary.dtype)
        taps = at(values["taps"], self.binary.taps.shape, np.float64)
        np.testing.assert_array_equal(taps, self.binary.taps)
        affines = at(values["affines"], (count, 2, 3), np.float64)
        found = ops.decode(maps[:, :k], affines=affines, peaks=peaks, **self.choices)
        axes = (count, k, peaks) if peaks > 1 else (count, k)
        at(values["points"], (*axes, 2), np.float32)[:] = found[0]
        at(values["scores"], axes, np.float32)[:] = found[1]
        if peaks > 1:  # all of its scratch memory is written
            at(values["candidates"], (count, k, h, w), np.float32)[:] = 0


# Libraries


class PyCUDA:
    """`pycuda.driver`, which keeps a stack of contexts."""

    def __init__(self, devices=1):  # noqa: C901 -- classes, all of them small
        self.calls, self.stack, self.rooms = [], [], Rooms()
        self.fail = None
        outer = self

        class Error(Exception):
            pass

        class Device:
            def __init__(self, index):
                self.index = index

            @staticmethod
            def count():
                return devices

            def name(self):
                return "NVIDIA Fake"

            def compute_capability(self):
                return (9, 0)

            def retain_primary_context(self):
                outer.calls.append("retain")
                return Context()

        class Context:
            def push(self):
                outer.calls.append("push")
                outer.stack.append(self)

            def detach(self):
                outer.calls.append("detach")

            @staticmethod
            def pop():
                outer.calls.append("pop")
                outer.stack.pop()

        class Stream:
            handle = STREAM

            def __init__(self):
                outer.check("stream")

            def synchronize(self):
                outer.check("synchronize")

            def __del__(self):
                outer.calls.append("stream freed")

        class DeviceAllocation:
            def __init__(self, size):
                outer.check("mem_alloc")
                self.address = outer.rooms.allocate(size)

            def __int__(self):
                return self.address

            def __del__(self):
                if hasattr(self, "address"):
                    outer.rooms.free(self.address)

        self.module = ModuleType("pycuda.driver")
        self.module.__dict__.update(
            Error=Error,
            Device=Device,
            Context=Context,
            Stream=Stream,
            mem_alloc=DeviceAllocation,
            init=lambda: outer.calls.append("init"),
            pagelocked_empty=lambda shape, dtype: np.empty(shape, dtype),
            memcpy_htod_async=self._htod,
            memcpy_dtoh_async=self._dtoh,
        )

    def check(self, name):
        """Note a call, which must come while a context is pushed."""
        self.calls.append(name)
        assert self.stack, f"{name} without a context"
        if name == self.fail:
            raise self.module.Error(f"{name} failed: out of memory\nmore")

    def _htod(self, to, given, stream):
        self.check("htod")
        assert stream.handle == STREAM
        ctypes.memmove(to, given.ctypes.data, given.nbytes)

    def _dtoh(self, out, given, stream):
        self.check("dtoh")
        assert stream.handle == STREAM
        ctypes.memmove(out.ctypes.data, given, out.nbytes)

    def install(self, monkeypatch):
        package = ModuleType("pycuda")
        package.driver = self.module
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", self.module)
        return self


class Bindings:
    """`cuda.bindings.driver`, whose functions return a status before their values."""

    def __init__(self, devices=1):
        self.calls, self.stack, self.retained = [], [], 0
        self.rooms, self.fail, self.devices = Rooms(), None, devices
        self.module = SimpleNamespace(
            CUresult=SimpleNamespace(CUDA_SUCCESS=0),
            CUdevice_attribute=SimpleNamespace(
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
            ),
            **{
                name.removeprefix("_"): self._answering(name)
                for name in dir(type(self))
                if name.startswith("_cu")
            },
        )

    def _answering(self, name):
        def call(*given):
            self.calls.append(name.removeprefix("_cu"))
            if name == self.fail:
                return (2,)
            value = getattr(self, name)(*given)
            return (0,) if value is None else (0, value)

        return call

    def install(self, monkeypatch):
        for name in ("cuda", "cuda.bindings", "cuda.bindings.driver"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["cuda.bindings"].driver = self.module
        return self

    def _cuInit(self, flags):  # noqa: N802
        assert flags == 0

    def _cuGetErrorString(self, status):  # noqa: N802
        return b"out of memory"

    def _cuDeviceGetCount(self):  # noqa: N802
        return self.devices

    def _cuDeviceGet(self, index):  # noqa: N802
        return index

    def _cuDeviceGetName(self, length, device):  # noqa: N802
        return b"NVIDIA Fake\0\0\0"

    def _cuDeviceGetAttribute(self, kind, device):  # noqa: N802
        return {75: 9, 76: 0}[kind]

    def _cuDevicePrimaryCtxRetain(self, device):  # noqa: N802
        self.retained += 1
        return "context"

    def _cuDevicePrimaryCtxRelease(self, device):  # noqa: N802
        assert not self.stack
        self.retained -= 1

    def _cuCtxPushCurrent(self, context):  # noqa: N802
        assert self.retained > 0
        self.stack.append(context)

    def _cuCtxPopCurrent(self):  # noqa: N802
        return self.stack.pop()

    def _cuStreamCreate(self, flags):  # noqa: N802
        assert self.stack
        return STREAM

    def _cuStreamDestroy(self, stream):  # noqa: N802
        assert self.stack

    def _cuStreamSynchronize(self, stream):  # noqa: N802
        assert self.stack
        assert stream == STREAM

    def _cuMemAlloc(self, size):  # noqa: N802
        assert self.stack
        return self.rooms.allocate(size)

    def _cuMemHostAlloc(self, size, flags):  # noqa: N802
        assert self.stack
        return self.rooms.allocate(size)

    def _cuMemFree(self, address):  # noqa: N802
        assert self.stack
        self.rooms.free(address)

    def _cuMemFreeHost(self, address):  # noqa: N802
        self._cuMemFree(address)

    def _cuMemcpyHtoDAsync(self, to, given, size, stream):  # noqa: N802
        assert self.stack
        assert stream == STREAM
        ctypes.memmove(to, given, size)

    def _cuMemcpyDtoHAsync(self, to, given, size, stream):  # noqa: N802
        self._cuMemcpyHtoDAsync(to, given, size, stream)
