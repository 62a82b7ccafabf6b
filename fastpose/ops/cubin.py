"""Kernels that were compiled ahead of time, launched by the CUDA driver: no triton, no torch.

`compile_decode` needs triton, once, on any machine; what it gives is kept beside an engine, and
`DecodeKernel` launches it where there is neither.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastpose.errors import BackendError, EngineError
from fastpose.ops.choose import _without_triton
from fastpose.ops.decode import Doubles, _options, blur_taps

ALIGNMENT = 16  # bytes: pointers are multiples of it, as the kernels are compiled for such
PLAIN_SHARED = 48 << 10  # bytes of shared memory that a kernel gets without being allowed more
_MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_C_TYPES = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
_LIBRARY = "libcuda.so.1"
_FUNCTIONS = (  # of the driver
    "cuDriverGetVersion", "cuGetErrorName", "cuModuleLoadData", "cuModuleUnload",
    "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel", "cuStreamSynchronize",
)  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """One that a compiled kernel takes.

    Attributes:
        name: in the source of the kernel.
        type: in Triton's words: "*fp32" for a pointer, "i32".
        value: of a number; a pointer is known at the launch.
    """

    name: str
    type: str
    value: int = 0


@dataclass(frozen=True)
class DecodeBinary:
    """`decode` of one shape of heat maps, dense [N, C, h, w], compiled for one architecture.

    Attributes:
        name: of the kernel in the binary.
        capability: compute capability that it is compiled for: 90 for 9.0.
        threads: of a program.
        shared: bytes of its shared memory.
        programs: for each N.
        arguments: in the order of the kernel; behind them come `hidden` null pointers, for
            scratch memory of Triton's that these kernels do not use.
        hidden: how many.
        maps: (K, h, w) that are decoded, the first K of the C.
        dtype: of the maps.
        peaks: found in each map.
        radius: of the blur.
        triton: the version that compiled it.
        cubin: the binary.
    """

    name: str
    capability: int
    threads: int
    shared: int
    programs: int
    arguments: tuple[Argument, ...]
    hidden: int
    maps: tuple[int, int, int]
    dtype: str
    peaks: int
    radius: int
    triton: str
    cubin: bytes = field(repr=False)

    @property
    def taps(self) -> Doubles:
        """[2 radius + 1] float64, what the argument "taps" points to."""
        return blur_taps(self.radius)

    def save(self, stem: Path) -> list[Path]:
        """Write NAME.decode.json and NAME.decode.cubin for a stem .../NAME; returns their paths."""
        launch, cubin = _files(stem)
        values = asdict(self)
        del values["cubin"]
        cubin.write_bytes(self.cubin)
        launch.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        return [launch, cubin]

    @classmethod
    def load(cls, stem: Path) -> DecodeBinary | None:
        """Read what `save` wrote; None where there is nothing.

        Raises:
            EngineError: one of the files is damaged.
        """
        launch, cubin = _files(stem)
        if not launch.exists():
            return None
        try:
            values = json.loads(launch.read_text(encoding="utf-8"))
            values["arguments"] = tuple(Argument(**one) for one in values["arguments"])
            values["maps"] = tuple(values["maps"])
            return cls(**values, cubin=cubin.read_bytes())
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EngineError(f"{launch}: not the launch data of a kernel: {error}") from None


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(f"{stem.name}.decode.json"), stem.with_name(f"{stem.name}.decode.cubin")


def compile_decode(
    maps: tuple[int, int, int],
    dtype: str,
    capability: tuple[int, int],
    *,
    channels: int | None = None,
    method: str = "dark",
    sigma: float = 2.0,
    peaks: int = 1,
    peak_value: float = 1.0,
) -> DecodeBinary:
    """Compile `fastpose.ops.decode` for maps of one shape; no GPU is needed.

    Args:
        maps: (K, h, w).
        dtype: of the maps: "float32", "float16" or "bfloat16".
        capability: compute capability of the device, such as (9, 0).
        channels: of the array, if it has more than K, which are left out; they come last.
        method: as in `decode`.
        sigma: as there.
        peaks: as there.
        peak_value: as there.

    Raises:
        ValueError: an argument is not as above.
        BackendError: triton is not there, or interprets its kernels in this process.
    """
    options = _options((1, *maps), dtype, method, sigma, "last", (), 0, peaks, peak_value)
    obstacle = _without_triton()
    if os.environ.get("TRITON_INTERPRET") == "1":
        obstacle = "Triton interprets its kernels in this process (TRITON_INTERPRET=1)"
    if obstacle:
        raise BackendError(f"the decoding kernel cannot be compiled: {obstacle}")
    from fastpose.ops.triton.decode import compile_ahead

    return compile_ahead(options, maps, channels or maps[0], dtype, capability)


class DecodeKernel:
    """A `DecodeBinary` in the memory of a device.

    Args:
        binary: what to load, into the CUDA context that is current.
        capability: of the device.

    Raises:
        EngineError: the binary is for another device, or the driver refuses it.
    """

    def __init__(self, binary: DecodeBinary, capability: tuple[int, int]) -> None:
        found = 10 * capability[0] + capability[1]
        if binary.capability != found:
            raise EngineError(
                f"compute capability of the decoding kernel: it was compiled for "
                f"{_dotted(binary.capability)}, this device has {_dotted(found)}; build it again"
            )
        self.binary = binary
        self._kernel = Kernel(binary.cubin, binary.name, binary.shared)

    def launch(self, count: int, addresses: Mapping[str, int], stream: int) -> None:
        """Enqueue it in the context in which it was loaded.

        Args:
            count: N.
            addresses: of "maps"; "affines" [N, 2, 3] float64, cell -> frame pixel; "taps", see
                `DecodeBinary.taps`; "points" [N, K, peaks, 2] and "scores" [N, K, peaks] float32,
                written; for several peaks "candidates" [N, K, h, w] float32, scratch.
            stream: handle.

        Raises:
            ValueError: an address is missing or no multiple of 16.
            EngineError: the launch failed.
        """
        if count:
            values = pack(self.binary, addresses)
            self._kernel.launch(count * self.binary.programs, self.binary.threads, values, stream)

    def close(self) -> None:
        """Unload it from the context that is current, in which it was loaded."""
        self._kernel.close()


def pack(binary: DecodeBinary, addresses: Mapping[str, int]) -> list[Any]:
    """The values of a launch, each of its type in C, in the order in which the kernel takes them.

    Raises:
        ValueError: an address is missing or no multiple of 16.
    """
    given = {"mirrored": addresses.get("maps"), **addresses}
    values: list[Any] = []
    for one in binary.arguments:
        if not one.type.startswith("*"):
            values.append(_C_TYPES[one.type](one.value))
            continue
        address = given.get(one.name)
        if not address or address % ALIGNMENT:
            raise ValueError(f"{one.name} must be an address, a multiple of 16, got {address}")
        values.append(ctypes.c_uint64(address))
    return [*values, *(ctypes.c_uint64(0) for _ in range(binary.hidden))]


class Kernel:
    """One kernel of a binary, loaded into the CUDA context that is current.

    Raises:
        BackendError: there is no driver.
        EngineError: the driver refuses the binary.
    """

    def __init__(self, cubin: bytes, name: str, shared: int) -> None:
        self._shared = shared
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(self._module), cubin)
        _call("cuModuleGetFunction", ctypes.byref(self._function), self._module, name.encode())
        if shared > PLAIN_SHARED:
            _call("cuFuncSetAttribute", self._function, _MOST_SHARED, shared)

    def launch(self, programs: int, threads: int, values: Sequence[Any], stream: int) -> None:
        """Enqueue it; `values` are of ctypes, and copied by the driver.

        Raises:
            EngineError: the launch failed.
        """
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        count = ctypes.c_uint
        _call(
            "cuLaunchKernel", self._function, count(programs), count(1), count(1), count(threads),
            count(1), count(1), count(self._shared), ctypes.c_void_p(stream), places, None,
        )  # fmt: skip

    def close(self) -> None:
        """Unload the binary from the context that is current."""
        module, self._module = self._module, ctypes.c_void_p()
        if module:
            _call("cuModuleUnload", module)


def driver_version() -> str:
    """The newest version of CUDA that the driver knows, such as "13.0".

    Raises:
        BackendError: there is no driver.
    """
    version = ctypes.c_int()
    _call("cuDriverGetVersion", ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def synchronize_stream(stream: int) -> None:
    """Wait for what is enqueued on a stream of the context that is current.

    Raises:
        BackendError: there is no driver.
        EngineError: something on it has failed.
    """
    _call("cuStreamSynchronize", ctypes.c_void_p(stream))


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
        for name in _FUNCTIONS:
            getattr(library, name).restype = ctypes.c_int
    except (OSError, AttributeError) as error:
        raise BackendError(f"the CUDA driver is not there: {error}") from None
    return library


def _call(function: str, *arguments: Any) -> None:
    """Call the driver.

    Raises:
        BackendError: there is none.
        EngineError: it returned an error.
    """
    driver = _driver()
    status = getattr(driver, function)(*arguments)
    if status:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(name))
        raise EngineError(f"{function}: {(name.value or b'unknown error').decode()}, {status}")


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"
