"""The kernels: each a function with its reference beside it and a `backend=` argument."""

from fastpose.errors import BackendError
from fastpose.ops.cubin import DecodeBinary, DecodeKernel, compile_decode
from fastpose.ops.decode import decode
from fastpose.ops.fit_tree import fit_tree
from fastpose.ops.propagate import propagate
from fastpose.ops.render import render
from fastpose.ops.simcc import decode_simcc
from fastpose.ops.suppress import suppress_boxes, suppress_poses
from fastpose.ops.warp import FrameTable, WindowAddresses, frame_rows, warp, warp_at

__all__ = [
    "DecodeBinary",
    "DecodeKernel",
    "FrameTable",
    "WindowAddresses",
    "compile_decode",
    "decode",
    "decode_simcc",
    "fit_tree",
    "frame_rows",
    "propagate",
    "render",
    "set_num_threads",
    "suppress_boxes",
    "suppress_poses",
    "warp",
    "warp_at",
]


def set_num_threads(threads: int) -> None:
    """Let the C++ kernels of this process use so many threads, the caller's own counted.

    Args:
        threads: at least 1. The default is the number of cores this process may use, at most 8.

    Raises:
        ValueError: less than 1.
        BackendError: the compiled kernels are not installed.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    try:
        from fastpose.ops import cpp
    except ImportError as error:
        raise BackendError(f"the C++ kernels do not load: {error}") from None
    cpp.set_num_threads(threads)
