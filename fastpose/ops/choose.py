"""Which kernel runs: the only place that knows what this machine has."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fastpose.errors import BackendError

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"
"""What an op accepts and returns: a numpy array (host) or a torch tensor."""


def device_kind(array: Array) -> str:
    """Where the array lives: "cpu" (every numpy array) or the type of the tensor's device."""
    return "cpu" if isinstance(array, np.ndarray) else str(array.device.type)


def choose(backend: str | None, array: Array, kernels: tuple[str, ...]) -> str:
    """The kernel that works on `array`.

    Args:
        backend: a name from `kernels` or "reference"; None takes the first kernel that can.
        array: the main argument; its device decides.
        kernels: what the op has besides its torch reference, fastest first.

    Returns:
        `backend`, or for None the first usable name, at last "reference".

    Raises:
        BackendError: `backend` was named and cannot run on this array.
    """
    device = device_kind(array)
    if backend is None:
        usable = [name for name in kernels if _usable(name, device) and _is_fast(name, device)]
        if not usable and device == "cuda":
            warnings.warn("no kernel for cuda: using the torch reference", stacklevel=3)
        return usable[0] if usable else "reference"
    usable = [name for name in (*kernels, "reference") if _usable(name, device)]
    if backend not in usable:
        options = ", ".join(usable)
        raise BackendError(f"backend {backend!r} cannot run on {device}; usable: {options}")
    return backend


@functools.cache
def _usable(name: str, device: str) -> bool:
    match name:
        case "cpp":
            return device == "cpu" and _has("fastpose._C")
        case "cuda":
            return device == "cuda" and _has("fastpose._C_cuda")
        case "triton":
            return _has("triton") and (device == "cuda" or _interpreted())
        case _:
            return _has("torch")


def _is_fast(name: str, device: str) -> bool:
    # Triton's interpreter proves a kernel on the CPU and takes a thousand times as long.
    return name != "triton" or device == "cuda"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def cpu_kernels() -> tuple[str, int]:
    """The instruction set that the C++ kernels chose, and the threads of their pool.

    Raises:
        ImportError: they were not built for this Python.
    """
    from fastpose import _C

    return _C.best_isa(), _C.get_num_threads()
