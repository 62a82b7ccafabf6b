"""Tensors in, tensors out: the Python side of the compiled CUDA kernels.

Given CUDA tensors of the types that the kernels read, nothing here copies from the host, waits or
allocates pinned memory, so that a CUDA graph can capture it. What a call's options need on the
device is made there once; a first call before the capture does that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastpose import _C_cuda
from fastpose.ops.choose import Array, on_stream, type_name
from fastpose.ops.constants import device_constant
from fastpose.ops.warp import MATRICES, FrameTable, WarpOptions, WindowAddresses

if TYPE_CHECKING:
    import torch


def warp(
    frames: torch.Tensor | FrameTable,
    affines: Array,
    source: Array | None,
    areas: Array | None,
    out: torch.Tensor,
    options: WarpOptions,
    stream: int | None,
) -> None:
    """`fastpose.ops.warp` into `out`, arguments checked; frames are [T, ...] on a CUDA device.

    What the kernels read as another type than it has, or from the host, is copied first, on the
    same stream.
    """
    import torch

    with torch.cuda.device(out.device), on_stream(stream, out):
        arrays = _window_arrays(affines, source, areas, out.device)
        common: dict[str, Any] = {
            **_windows(arrays, len(frames), options, out.device),
            "border": options.border,
            "out": out.data_ptr(),
            "out_type": type_name(out),
            "channels_last": options.out_layout == "nhwc",
        }
        if isinstance(frames, torch.Tensor) and options.layout == "chw":
            _warp_maps(frames, options, common)
        else:
            _warp_frames(frames, options, common)


def scatter(
    grad: torch.Tensor,
    affines: torch.Tensor,
    source: torch.Tensor | None,
    areas: torch.Tensor | None,
    total: torch.Tensor,
    options: WarpOptions,
) -> None:
    """Add to `total` the gradient in the source of `warp`.

    The order of the additions, and with it the rounding of their sums, differs from run to run.

    Args:
        grad: of the result, in the layout that `options` names; any strides.
        affines: as given to `warp`.
        source: as given to `warp`.
        areas: as given to `warp`.
        total: [T, C, H, W] float32 on a CUDA device, in any order of memory.
        options: as `warp` made them.
    """
    import torch

    with torch.cuda.device(total.device):
        arrays = _window_arrays(affines, source, areas, total.device)
        given = grad if options.out_layout == "nchw" else grad.permute(0, 3, 1, 2)
        _C_cuda.scatter_maps(
            grad=given.data_ptr(),
            grad_type=type_name(given),
            grad_strides=given.stride(),
            total=total.data_ptr(),
            strides=total.stride(),
            shape=tuple(total.shape[1:]),
            scale=_scale_shift(options, total.device)[0],
            **_windows(arrays, len(total), options, total.device),
        )


def _window_arrays(
    affines: Array, source: Array | None, areas: Array | None, device: torch.device
) -> dict[str, torch.Tensor | None]:
    """As the kernels read them; they must live until the launch."""
    import torch

    given = {
        "affines": (affines, torch.float32),
        "source": (source, torch.int32),
        "areas": (areas, torch.int32),
    }
    return {
        name: None if array is None else torch.as_tensor(array).to(device, kind).contiguous()
        for name, (array, kind) in given.items()
    }


def _windows(
    arrays: dict[str, torch.Tensor | None],
    sources: int,
    options: WarpOptions,
    device: torch.device,
) -> dict[str, Any]:
    """The arguments that every kernel has."""
    import torch

    affines = arrays["affines"]
    return {
        **{name: 0 if array is None else array.data_ptr() for name, array in arrays.items()},
        "sources": sources,
        "count": 0 if affines is None else len(affines),
        "size": options.size,
        "area": options.area,
        "swap_rb": options.swap_rb,
        "stream": torch.cuda.current_stream(device).cuda_stream,
    }


def _warp_frames(
    frames: torch.Tensor | FrameTable, options: WarpOptions, common: dict[str, Any]
) -> None:
    place: dict[str, Any] = {"data": 0, "strides": (0, 0), "shape": (0, 0), "table": 0}
    if isinstance(frames, FrameTable):
        rows: Any = frames.rows
        place["table"] = rows.data_ptr()
    else:
        nv12 = options.layout == "nv12"
        dense = frames.stride()[2:] == ((1,) if nv12 else (3, 1))
        frames = frames if dense else frames.contiguous()
        height, width = frames.shape[1:3]
        shape = (height * 2 // 3 if nv12 else height, width)
        place |= {"data": frames.data_ptr(), "strides": frames.stride()[:2], "shape": shape}
    _C_cuda.warp_frames(**_colours(options), **place, **common)


def warp_at(at: WindowAddresses, dtype: str, options: WarpOptions, stream: int) -> None:
    """As `fastpose.ops.warp.warp_at`, checked; the device is current."""
    _C_cuda.warp_frames(
        data=0,
        strides=(0, 0),
        shape=(0, 0),
        table=at.rows,
        affines=at.affines,
        source=at.source,
        areas=at.areas,
        sources=at.count,
        count=at.count,
        size=options.size,
        area=options.area,
        border=options.border,
        out=at.out,
        out_type=dtype,
        swap_rb=options.swap_rb,
        channels_last=options.out_layout == "nhwc",
        stream=stream,
        **_colours(options),
    )


def _colours(options: WarpOptions) -> dict[str, Any]:
    """What is done to the colours of frames of bytes."""
    scale, shift = options.scale_shift()
    nv12 = options.layout == "nv12"
    return {
        "scale": scale.tolist(),
        "shift": shift.tolist(),
        "nv12_matrix": [w for row in MATRICES[options.matrix] for w in row] if nv12 else None,
    }


def _warp_maps(maps: torch.Tensor, options: WarpOptions, common: dict[str, Any]) -> None:
    scale, shift = _scale_shift(options, maps.device)
    _C_cuda.warp_maps(
        data=maps.data_ptr(),
        maps_type=type_name(maps),
        strides=maps.stride(),
        shape=tuple(maps.shape[1:]),
        scale=scale,
        shift=shift,
        **common,
    )


def _scale_shift(options: WarpOptions, device: torch.device) -> tuple[int, int]:
    """Addresses of [C] float32 each, or 0 for no normalisation."""
    if options.mean is None and options.std is None:
        return 0, 0
    scale, shift = (_constant(values.tobytes(), device) for values in options.scale_shift())
    return scale.data_ptr(), shift.data_ptr()


@device_constant
def _constant(values: bytes, device: torch.device) -> torch.Tensor:
    """Float32 values on the device."""
    import torch

    return torch.frombuffer(bytearray(values), dtype=torch.float32).to(device)
