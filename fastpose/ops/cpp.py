"""Arrays in, arrays out: the Python side of the compiled CPU kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastpose import _C
from fastpose._C import best_isa, get_num_threads, set_num_threads
from fastpose.ops.choose import Array, type_name
from fastpose.ops.warp import FrameTable

if TYPE_CHECKING:
    from fastpose.ops.decode import DecodeOptions
    from fastpose.ops.simcc import SimccOptions
    from fastpose.ops.warp import WarpOptions

__all__ = [
    "as_numpy",
    "best_isa",
    "decode",
    "decode_simcc",
    "get_num_threads",
    "like",
    "set_num_threads",
    "warp",
]


def as_numpy(array: Array) -> np.ndarray:
    """The same memory as a numpy array; a torch tensor must be on the CPU."""
    return array if isinstance(array, np.ndarray) else array.detach().numpy()


def like(result: np.ndarray, array: Array) -> Array:
    """`result` as the kind of array that `array` is, on the same memory."""
    if isinstance(array, np.ndarray):
        return result
    import torch

    return torch.from_numpy(result)


def warp(
    frames: Array | FrameTable,
    affines: Array,
    source: Array | None,
    areas: Array | None,
    out: Array,
    options: WarpOptions,
    isa: str = "auto",
) -> None:
    """`fastpose.ops.warp` into `out`, arguments checked; frames are [T, ...] or a table."""
    scale, shift = options.scale_shift()
    arguments = (
        np.ascontiguousarray(as_numpy(affines), np.float32),
        None if source is None else np.ascontiguousarray(as_numpy(source), np.int32),
        None if areas is None else np.ascontiguousarray(as_numpy(areas), np.int32),
        _memory(out),
        scale,
        shift,
        options.border,
        options.area,
        options.swap_rb,
        options.out_layout == "nhwc",
        isa,
    )
    if isinstance(frames, FrameTable):
        _C.warp_table(np.ascontiguousarray(as_numpy(frames.rows)), *arguments)
    elif options.layout == "chw":
        maps = _floats(frames)
        dense = all(step % 4 == 0 for step in maps.strides) and maps.strides[3] == 4
        _C.warp_maps(maps if dense else np.ascontiguousarray(maps), *arguments)
    else:
        pixels = as_numpy(frames)
        dense = pixels.strides[2:] == (3, 1)
        _C.warp_bytes(pixels if dense else np.ascontiguousarray(pixels), *arguments)


def _memory(array: Array) -> np.ndarray:
    """As `as_numpy`; bfloat16, which numpy lacks, as its bits."""
    if isinstance(array, np.ndarray) or type_name(array) != "bfloat16":
        return as_numpy(array)
    import torch

    return as_numpy(array.detach().view(torch.int16)).view(np.uint16)


def decode(
    heatmaps: Array,
    flipped: Array | None,
    affines: Array | None,
    options: DecodeOptions,
    isa: str = "auto",
) -> tuple[Array, Array]:
    """As `fastpose.ops.decode.decode_reference`; `isa` forces an instruction set."""
    maps = _stages(heatmaps, options.stages)
    n, k = maps.shape[1:3]
    points = np.empty((n, k, options.peaks, 2), np.float32)
    scores = np.empty((n, k, options.peaks), np.float32)
    _C.decode(
        maps,
        None if flipped is None else _stages(flipped, options.stages),
        options.partner,
        options.stages == "mean",
        options.flip_shift,
        options.method,
        options.taps,
        options.peak_value,
        None if affines is None else np.ascontiguousarray(as_numpy(affines), np.float64),
        points,
        scores,
        isa,
    )
    return like(points, heatmaps), like(scores, heatmaps)


def _stages(maps: Array, stages: str) -> np.ndarray:
    """[(S,) N, K, h, w] -> the stages that count, [S, N, K, h, w], contiguous."""
    memory = _memory(maps)  # first, because torch takes ten times as long for a view as numpy
    if memory.ndim == 4:
        memory = memory[None]
    elif stages == "last":
        memory = memory[-1:]
    return np.ascontiguousarray(memory)


def decode_simcc(
    vectors: tuple[Array, Array],
    flipped: tuple[Array, Array] | None,
    affines: Array | None,
    options: SimccOptions,
    isa: str = "auto",
) -> tuple[Array, Array]:
    """As `fastpose.ops.simcc.decode_simcc_reference`; `isa` forces an instruction set."""
    x, y = map(_bins, vectors)
    back_x, back_y = (None, None) if flipped is None else map(_bins, flipped)
    points = np.empty((*x.shape[:2], 2), np.float32)
    scores = np.empty(x.shape[:2], np.float32)
    _C.decode_simcc(
        x,
        y,
        back_x,
        back_y,
        options.partner,
        options.split,
        options.flip_shift,
        options.peak_value,
        None if affines is None else np.ascontiguousarray(as_numpy(affines), np.float64),
        points,
        scores,
        isa,
    )
    return like(points, vectors[0]), like(scores, vectors[0])


def _bins(vectors: Array) -> np.ndarray:
    """As float32, the bins side by side: without a copy for one half of a row that holds both."""
    bins = _floats(vectors)
    dense = all(step % 4 == 0 for step in bins.strides) and bins.strides[2] == 4
    return bins if dense else np.ascontiguousarray(bins)


def _floats(array: Array) -> np.ndarray:
    """As float32, without a copy where it is."""
    if not isinstance(array, np.ndarray):
        array = array.detach().float()
    return as_numpy(array).astype(np.float32, copy=False)
