"""Arrays in, arrays out: the Python side of the compiled CPU kernels."""

from __future__ import annotations

import numpy as np

from fastpose._C import best_isa, get_num_threads, set_num_threads
from fastpose.ops.choose import Array

__all__ = ["as_numpy", "best_isa", "get_num_threads", "like", "set_num_threads"]


def as_numpy(array: Array) -> np.ndarray:
    """The same memory as a numpy array; a torch tensor must be on the CPU."""
    return array if isinstance(array, np.ndarray) else array.detach().numpy()


def like(result: np.ndarray, array: Array) -> Array:
    """`result` as the kind of array that `array` is, on the same memory."""
    if isinstance(array, np.ndarray):
        return result
    import torch

    return torch.from_numpy(result)
