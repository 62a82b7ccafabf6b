"""Tensors in, tensors out: the Python side of the compiled CUDA kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastpose import _C_cuda
from fastpose.ops.choose import Array, on_stream

if TYPE_CHECKING:
    import torch

    from fastpose.ops.warp import WarpOptions


def warp(
    frames: torch.Tensor,
    affines: Array,
    source: Array | None,
    out: torch.Tensor,
    options: WarpOptions,
    stream: int | None,
) -> None:
    """`fastpose.ops.warp` into `out`, arguments checked; frames are [T, ...] on a CUDA device.

    Affines and source may be on the host; they are copied to the device on the same stream.
    """
    import torch

    device = frames.device
    with torch.cuda.device(device), on_stream(stream, frames):
        pixels = _dense(frames, options.layout)
        matrices = torch.as_tensor(affines).to(device, torch.float32).contiguous()
        index = None
        if source is not None:
            index = torch.as_tensor(source).to(device, torch.int32).contiguous()
        common: dict[str, Any] = {
            "data": pixels.data_ptr(),
            "affines": matrices.data_ptr(),
            "source": 0 if index is None else index.data_ptr(),
            "sources": len(pixels),
            "count": len(matrices),
            "size": options.size,
            "area": options.area,
            "border": options.border,
            "out": out.data_ptr(),
            "out_type": str(out.dtype).removeprefix("torch."),
            "swap_rb": options.swap_rb,
            "channels_last": options.out_layout == "nhwc",
            "stream": torch.cuda.current_stream(device).cuda_stream,
        }
        if options.layout == "chw":
            _warp_maps(pixels, options, common)
        else:
            _warp_frames(pixels, options, common)


def _dense(frames: torch.Tensor, layout: str) -> torch.Tensor:
    """`frames` as the kernel reads them: float32 maps; dense along x. Copied only if need be."""
    if layout == "chw":
        frames = frames.float()
        return frames if frames.stride(3) == 1 else frames.contiguous()
    dense = frames.stride()[2:] == ((3, 1) if layout == "hwc" else (1,))
    return frames if dense else frames.contiguous()


def _warp_frames(pixels: torch.Tensor, options: WarpOptions, common: dict[str, Any]) -> None:
    from fastpose.ops.warp import MATRICES

    height, width = pixels.shape[1:3]
    matrix = None
    if options.layout == "nv12":
        height = height * 2 // 3
        matrix = [weight for row in MATRICES[options.matrix] for weight in row]
    scale, shift = options.scale_shift()
    _C_cuda.warp_frames(
        strides=pixels.stride()[:2],
        shape=(height, width),
        scale=scale.tolist(),
        shift=shift.tolist(),
        nv12_matrix=matrix,
        **common,
    )


def _warp_maps(pixels: torch.Tensor, options: WarpOptions, common: dict[str, Any]) -> None:
    import torch

    normalised = options.mean is not None or options.std is not None
    scale_shift = [
        torch.as_tensor(values).to(pixels.device) for values in options.scale_shift() if normalised
    ]
    scale, shift = (values.data_ptr() for values in scale_shift) if normalised else (0, 0)
    _C_cuda.warp_maps(
        strides=pixels.stride()[:3],
        shape=tuple(pixels.shape[1:]),
        scale=scale,
        shift=shift,
        **common,
    )
