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

DEVICES = {"cpp": "cpu", "cuda": "cuda", "triton": "cuda"}
"""For the arrays of which device a kernel is."""

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
        _check_named(backend, device, kernels, reference)
        return backend
    for name in kernels:  # the first ends the search: to look for all takes as long as a kernel
        if _is_fast(name, device) and not _obstacle(name, device):
            return name
    expected = next((name for name in kernels if DEVICES[name] == device), None)
    missing = _obstacle(expected, device) if expected else f"there is no kernel for {device}"
    if not _has(reference):
        raise BackendError(f"{missing}, and {reference} is not installed for the reference")
    if expected or (kernels and device == "cuda"):
        warnings.warn(f"{missing}: using the {reference} reference", stacklevel=3)
    return "reference"


def _check_named(backend: str, device: str, kernels: tuple[str, ...], reference: str) -> None:
    """Raise BackendError unless the backend can run there."""
    if backend not in (*DEVICES, "reference"):
        known = ", ".join((*kernels, "reference"))
        raise BackendError(f"there is no backend {backend!r}; there are: {known}")
    usable = [name for name in kernels if not _obstacle(name, device)]
    if _has(reference):
        usable.append("reference")
    if backend in usable:
        return
    if backend == "reference":
        reason = f"{reference} is not installed"
    elif backend not in kernels:
        reason = "there is no such kernel for this"
    else:
        reason = _obstacle(backend, device)
    options = ", ".join(usable) or "none"
    raise BackendError(f"backend {backend!r} cannot run on {device}; usable: {options} ({reason})")


def _obstacle(name: str, device: str) -> str:
    """Why a kernel cannot run on arrays of a device; "" where it can."""
    if name == "triton" and device == "cpu":
        needs = "Triton needs CUDA, or its interpreter: TRITON_INTERPRET=1"
        return _without_triton() if os.environ.get("TRITON_INTERPRET") == "1" else needs
    if DEVICES[name] != device:
        return f"{name} is for {DEVICES[name]}"
    match name:
        case "cpp":
            return "" if _has("fastpose._C") else _not_built()
        case "cuda":
            return _without_cuda()
        case _:
            return _without_triton()


def _is_fast(name: str, device: str) -> bool:
    # Triton's interpreter proves a kernel on the CPU and takes a thousand times as long.
    return name != "triton" or device == "cuda"


def _not_built() -> str:
    # Python that is started in a checkout takes the package from there, installed or not.
    folder = Path(__file__).parents[1]
    return f"fastpose._C is not built in {folder} (pip install -e . does, in a checkout)"


def _without_triton() -> str:
    if not _has("torch"):
        return "torch is not installed"
    return "" if _triton_loads() else "triton is not installed, or does not load"


@functools.cache
def _triton_loads() -> bool:
    # Made for another libc it is found and fails when it is loaded, as it soon would be.
    try:
        importlib.import_module("triton")
    except (ImportError, OSError):
        return False
    return True


@functools.cache
def _without_cuda() -> str:
    try:
        compiled = importlib.import_module("fastpose._C_cuda")
    except ImportError:
        return "fastpose._C_cuda is not built: that takes nvcc when fastpose is installed"
    if compiled.device_count() == 0:
        return "fastpose._C_cuda is built, and sees no GPU, or a driver that is too old for it"
    return ""


@functools.cache
def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def gpu_kernels() -> dict[str, str]:
    """Why kernels for CUDA cannot run here, by the ops that they are for; "" where they can."""
    return {"warp": _without_cuda(), "decode, render, propagate": _without_triton()}


def cpu_kernels() -> tuple[str, int]:
    """The instruction set that the C++ kernels chose, and the threads of their pool.

    Raises:
        ImportError: they were not built for this Python.
    """
    from fastpose import _C

    return _C.best_isa(), _C.get_num_threads()
