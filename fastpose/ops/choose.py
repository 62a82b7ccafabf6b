"""Which kernel runs: the only place that knows what this machine has, and what an array is."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastpose.errors import BackendError

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"
"""What an op accepts and returns: a numpy array (host) or a torch tensor."""


def device_kind(array: Array) -> str:
    """Where the array lives: "cpu" (every numpy array) or the type of the tensor's device."""
    return "cpu" if isinstance(array, np.ndarray) else str(array.device.type)


def type_name(array: Array) -> str:
    """The type of the elements in numpy's words, such as "float32"; "bfloat16" for torch's."""
    return _dtype_name(array.dtype)


@functools.cache  # the text of a dtype takes longer to make than all other checks together
def _dtype_name(dtype: Hashable) -> str:
    return str(dtype).removeprefix("torch.")


def check_array(name: str, value: Any) -> None:
    """Raise ValueError unless the argument called `name` is a numpy array or a torch tensor."""
    if isinstance(value, np.ndarray):
        return
    torch = sys.modules.get("torch")  # without it there can be no tensor
    if not (torch and isinstance(value, torch.Tensor)):
        came = type(value).__name__
        raise ValueError(f"{name} must be a numpy array or a torch tensor, got {came}")


def check_stream(stream: int | None, name: str, array: Array) -> None:
    """Raise ValueError if a stream is given for an array, called `name`, that is not on CUDA."""
    if stream is not None and device_kind(array) != "cuda":
        raise ValueError(f"stream must be None for {name} on {device_kind(array)}, got {stream}")


def on_stream(stream: int | None, array: Array) -> AbstractContextManager[Any]:
    """In this context torch works on the CUDA stream of that handle; None changes nothing."""
    if stream is None:
        return nullcontext()
    import torch

    return torch.cuda.stream(torch.cuda.ExternalStream(stream, device=array.device))


def choose(
    backend: str | None, array: Array, kernels: tuple[str, ...], *, reference: str = "torch"
) -> str:
    """The kernel that works on `array`.

    Args:
        backend: a name from `kernels` or "reference"; None takes the first kernel that can, at
            last the reference, with a warning where a kernel was to be expected.
        array: the main argument; its device decides.
        kernels: what the op has besides its reference, fastest first.
        reference: the library in which the reference is written, "torch" or "numpy".

    Returns:
        `backend`, or for None the first usable name.

    Raises:
        BackendError: `backend` was named and cannot run on this array, or nothing can.
    """
    device = device_kind(array)
    if backend is not None:
        usable = [name for name in kernels if _usable(name, device)]
        if _has(reference):
            usable.append("reference")
        if backend not in usable:
            options = ", ".join(usable) or "none"
            raise BackendError(f"backend {backend!r} cannot run on {device}; usable: {options}")
        return backend
    for name in kernels:  # the first ends the search: to look for all takes as long as a kernel
        if _is_fast(name, device) and _usable(name, device):
            return name
    if not _has(reference):
        raise BackendError(
            f"{_missing(device, kernels)}, and {reference} is not installed for the reference"
        )
    if kernels and (device == "cuda" or "cpp" in kernels):
        warnings.warn(f"{_missing(device, kernels)}: using the {reference} reference", stacklevel=3)
    return "reference"


def _usable(name: str, device: str) -> bool:
    match name:
        case "cpp":
            return device == "cpu" and _has("fastpose._C")
        case "cuda":
            return device == "cuda" and _cuda_runs()
        case "triton":
            return (device == "cuda" or _interpreted()) and _has("torch") and _triton_loads()
        case _:
            return False


def _is_fast(name: str, device: str) -> bool:
    # Triton's interpreter proves a kernel on the CPU and takes a thousand times as long.
    return name != "triton" or device == "cuda"


def _missing(device: str, kernels: tuple[str, ...]) -> str:
    if device == "cuda" and "triton" in kernels:
        return "triton is not installed, or does not load"
    if device == "cuda" and "cuda" in kernels:
        return (
            "fastpose._C_cuda is not built (that takes nvcc, when fastpose is installed), or the "
            "driver is too old for it"
        )
    if device != "cpu":
        return f"there is no kernel for {device}"
    # Python that is started in a checkout takes the package from there, installed or not.
    folder = Path(__file__).parents[1]
    return f"fastpose._C is not built in {folder} (pip install -e . does, in a checkout)"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _triton_loads() -> bool:
    # Made for another libc it is found and fails when it is loaded, as it soon would be.
    try:
        importlib.import_module("triton")
    except (ImportError, OSError):
        return False
    return True


@functools.cache
def _cuda_runs() -> bool:
    try:
        from fastpose import _C_cuda
    except ImportError:
        return False
    return _C_cuda.device_count() > 0  # none for a driver that is older than the compiler


@functools.cache
def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def gpu_kernels() -> dict[str, bool]:
    """Which kernels for CUDA can run here, by the ops that they are for."""
    return {"warp": _cuda_runs(), "decode, render, propagate": _triton_loads()}


def cpu_kernels() -> tuple[str, int]:
    """The instruction set that the C++ kernels chose, and the threads of their pool.

    Raises:
        ImportError: they were not built for this Python.
    """
    from fastpose import _C

    return _C.best_isa(), _C.get_num_threads()
