"""Windows out of frames or feature maps: the one resampling of the project."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastpose.errors import BackendError
from fastpose.ops.choose import (
    Array,
    check_array,
    check_stream,
    choose,
    device_kind,
    gpu_kernels,
    on_stream,
    type_name,
)
from fastpose.ops.constants import device_constant

if TYPE_CHECKING:
    import torch

LAYOUTS = {
    "hwc": ("uint8",),
    "nv12": ("uint8",),
    "chw": ("float32", "float16", "bfloat16"),
}
OUT_LAYOUTS = ("nchw", "nhwc")
TYPES = ("float32", "float16", "bfloat16")

# Limited range to full, rows B, G, R, columns Y - 16, U - 128, V - 128. From the luma weights of
# ITU-R BT.709 (0.2126, 0.0722) and BT.601 (0.299, 0.114).
MATRICES = {
    "bt709": ((1.164384, 2.112402, 0.0), (1.164384, -0.213249, -0.532909), (1.164384, 0, 1.792741)),
    "bt601": ((1.164384, 2.017232, 0.0), (1.164384, -0.391762, -0.812968), (1.164384, 0, 1.596027)),
}


MAX_AREA = 16


@dataclass(frozen=True)
class FrameTable:
    """Where frames of different sizes lie, for `warp`, as rows that a kernel reads.

    It keeps no frame alive. On CUDA the rows may be rewritten between two replays of a graph that
    has captured a `warp`.

    Attributes:
        rows: [T, 4] int64 on the device of the frames, C-contiguous, for each frame: address of its
            first byte, bytes between two rows, height, width; as `frame_rows` makes them. A row
            whose height or width is 0 stands for no frame.
    """

    rows: Array

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class WindowAddresses:
    """Where the arrays of `warp_at` lie on a CUDA device, dense.

    Attributes:
        rows: of a `FrameTable`, [count, 4] int64.
        affines: [count, 2, 3] float32, output pixel -> source pixel.
        areas: [count] int32, samples per axis of each window, 1 to 16.
        source: [count] int32, row of the frame of each window; -1 for one that is all border.
        out: the windows.
        count: of windows.
    """

    rows: int
    affines: int
    areas: int
    source: int
    out: int
    count: int


@dataclass(frozen=True)
class WarpOptions:
    """What every implementation of `warp` is given besides the arrays, checked.

    Attributes:
        size: (h, w) of a window.
        channels: C.
        mean, std: C numbers each, or None for 0 and 1.
        swap_rb, border, layout, out_layout, matrix: as in `warp`.
        area: of all windows, where they have no areas of their own.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    swap_rb: bool
    border: float
    layout: str
    out_layout: str
    area: int
    matrix: str

    def scale_shift(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(x - mean) / std as x * scale + shift, [C] float32 each."""
        return _scale_shift(self.channels, self.mean, self.std)

    def out_shape(self, count: int) -> tuple[int, int, int, int]:
        """Shape of the result for `count` windows."""
        h, w = self.size
        nchw = (count, self.channels, h, w)
        return nchw if self.out_layout == "nchw" else (count, h, w, self.channels)


def warp(
    frames: Array | Sequence[Array] | FrameTable,
    affines: Array,
    size: tuple[int, int],
    *,
    source: Array | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    swap_rb: bool = False,
    border: float = 0.0,
    layout: str = "hwc",
    out_layout: str = "nchw",
    dtype: str = "float32",
    area: int | Array = 1,
    matrix: str = "bt709",
    out: Array | None = None,
    stream: int | None = None,
    backend: str | None = None,
) -> Array:
    """Cut a window out of a frame for every affine, and normalise it.

    Output pixel (u, v) is the mean of `area` x `area` bilinear samples, spread evenly over the
    pixel, of the source around affine @ (u, v, 1), pixel centres being whole numbers. A tap outside
    the source is `border`; a tap of weight zero counts for nothing. Then red and blue are swapped
    if asked, then (value - mean) / std per output channel. With area=2 on feature maps this is
    RoIAlign (He et al., Mask R-CNN, ICCV 2017).

    The result is within 1e-4 of the source's range of exact arithmetic. Gradients flow to float
    `frames` that are torch tensors, by scatter-add, on CUDA in no fixed order unless torch is told
    to use deterministic algorithms; none flow to `affines`.

    Args:
        frames: "hwc": uint8 [H, W, 3] or [T, H, W, 3]; "nv12": uint8 [T, H * 3 // 2, W], on CUDA
            only, taken as BGR, each pixel with its own cell's chroma; "chw": float32, float16 or
            (torch only) bfloat16 [T, C, H, W]. Any strides; what is not dense along a row of pixels
            is copied. Frames of different sizes, "hwc" or "nv12": a list of [H, W, 3] or
            [H * 3 // 2, W], all of one kind on one device, or a `FrameTable`, with which `out` must
            be given.
        affines: [N, 2, 3] floating, used as float32, output pixel -> source pixel. A window whose
            affine is not finite is all border.
        size: (h, w) of a window.
        source: [N] integers, the frame of each window; may be left out only if T = 1. In a device
            tensor, and everywhere with a `FrameTable`, an index out of range gives a window of
            border.
        mean: C numbers in source units (0-255 for bytes), in output channel order.
        std: likewise, positive.
        swap_rb: reverse the three channels.
        border: value outside the source, in source units, before normalisation.
        layout: of `frames`, see there.
        out_layout: "nchw" or "nhwc".
        dtype: "float32", "float16" or (torch only) "bfloat16"; with `out`, its type counts.
        area: samples per axis for each output pixel, 1 to 16: one number, or [N] integers, one for
            each window, of the kind and on the device of `affines`.
        matrix: "bt709" or "bt601", the colours of "nv12", limited range.
        out: written in place and returned: of the result's shape, dense, on the device of `frames`.
        stream: CUDA stream handle; by default the current stream.
        backend: "cpp" (CPU), "cuda" or "reference"; by default the fastest for the device.

    Returns:
        [N, C, h, w] or [N, h, w, C], numpy or torch as `frames`.

    Raises:
        ValueError: an argument has another shape, type, device or range.
        BackendError: `backend` was named and cannot run here, or "nv12" is not on CUDA.
    """
    _check_layout(layout, matrix)
    stack, model = _check_frames(frames, layout, out)
    _check_affines(affines, model)
    one_area, areas = _check_area(area, affines)
    options = _make_options(
        _check_size(size),
        int(model.shape[1]) if layout == "chw" else 3,
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
        swap_rb,
        float(border),
        layout,
        out_layout,
        one_area,
        matrix,
    )
    _check_source(source, len(affines), stack, model)
    check_stream(stream, "frames", model)
    _check_out(out, model, options.out_shape(len(affines)), dtype)
    name = _choose(backend, model, layout)
    if isinstance(stack, Sequence):
        with on_stream(stream, model):
            dense = [_dense_rows(frame, layout) for frame in stack]  # copies live to the end
            stack = FrameTable(_beside(model, frame_rows(dense, layout)))
    if name == "reference":
        with on_stream(stream, model):
            return _by_reference(stack, model, affines, source, areas, out, dtype, options)
    if _needs_gradient(model):
        from fastpose.ops.scatter import warp_with_gradient

        run = functools.partial(_by_kernel, name, model, out, dtype, options, stream)
        return warp_with_gradient(stack, affines, source, areas, options, run)
    return _by_kernel(name, model, out, dtype, options, stream, stack, affines, source, areas)


def warp_at(
    at: WindowAddresses,
    size: tuple[int, int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    swap_rb: bool = False,
    border: float = 0.0,
    dtype: str = "float32",
    out_layout: str = "nchw",
    stream: int,
) -> None:
    """`warp` of frames of bytes that lie at addresses, on the current CUDA device, without torch.

    Args:
        at: the arrays. What lies at the addresses is not checked: a wrong one is undefined.
        size: as in `warp`, like mean, std, swap_rb, border and out_layout.
        mean: as there.
        std: as there.
        swap_rb: as there.
        border: as there.
        dtype: of the windows: "float32", "float16" or "bfloat16".
        out_layout: as there.
        stream: handle; the work is enqueued there.

    Raises:
        ValueError: an argument has another type or range.
        BackendError: the compiled kernels are not there, or there is no device.
    """
    if dtype not in TYPES:
        raise ValueError(f"dtype must be one of {', '.join(TYPES)}, got {dtype!r}")
    numbers = (None if values is None else tuple(values) for values in (mean, std))
    options = _make_options(
        _check_size(size), 3, *numbers, swap_rb, float(border), "hwc", out_layout, 1, "bt709"
    )
    obstacle = gpu_kernels()["warp"]
    if obstacle:
        raise BackendError(obstacle)
    from fastpose.ops.cuda import warp_at as run

    run(at, dtype, options, stream)


def frame_rows(frames: Sequence[Array], layout: str = "hwc") -> npt.NDArray[np.int64]:
    """The rows of a `FrameTable`, on the host.

    Args:
        frames: uint8, numpy or torch, all of one kind on one device: "hwc": [H, W, 3] each; "nv12":
            [H * 3 // 2, W] each. They must live as long as the rows are used.
        layout: "hwc" or "nv12".

    Returns:
        [T, 4]: address, bytes between two rows, height (of the luma), width.

    Raises:
        ValueError: a frame is of another shape, type, kind or device, or it is not dense along a
            row of pixels.
    """
    _check_layout(layout)
    _check_sequence(frames, layout)
    rows = np.empty((len(frames), 4), np.int64)
    for i, frame in enumerate(frames):
        if not _has_dense_rows(frame, layout):
            raise ValueError(f"frames[{i}] must be dense along a row of pixels")
        height, width = frame.shape[:2]
        if layout == "nv12":
            height = height * 2 // 3
        rows[i] = _address(frame), _byte_strides(frame)[0], height, width
    return rows


def _by_kernel(
    name: str,
    model: Array,
    out: Array | None,
    dtype: str,
    options: WarpOptions,
    stream: int | None,
    frames: Array | FrameTable,
    affines: Array,
    source: Array | None,
    areas: Array | None,
) -> Array:
    result = _empty(options.out_shape(len(affines)), dtype, model) if out is None else out
    if len(affines) == 0:
        return result
    if name == "cuda":
        from fastpose.ops.cuda import warp as run_cuda

        run_cuda(frames, affines, source, areas, result, options, stream)
    else:
        from fastpose.ops.cpp import warp as run_cpp

        run_cpp(frames, affines, source, areas, result, options)
    return result


def warp_reference(
    frames: torch.Tensor,
    affines: torch.Tensor,
    source: torch.Tensor,
    options: WarpOptions,
    areas: torch.Tensor | None = None,
) -> torch.Tensor:
    """`warp` in plain torch: the definition that every kernel is tested against.

    Args:
        frames: [T, C, H, W] float32 or float64, on any device.
        affines: [N, 2, 3]; positions are computed in float64.
        source: [N] int64; a window whose index is out of range is border.
        options: the rest; `layout` and `matrix` do not matter here.
        areas: [N] integers, in place of `options.area`.

    Returns:
        [N, C, h, w] or [N, h, w, C] in the type of `frames`, differentiable in `frames`.
    """
    import torch

    h, w = options.size
    device, real = frames.device, frames.dtype
    usable = usable_windows(affines, source, len(frames))
    index = source.where(usable, 0)[:, None, None]
    pixels = frames.permute(0, 2, 3, 1)  # [T, H, W, C]
    if options.swap_rb:
        pixels = pixels.flip(-1)
    total = torch.zeros((len(affines), h, w, options.channels), dtype=real, device=device)
    area = options.area if areas is None else areas
    for x, y, weight in sample_positions(affines, usable, area, options.size):
        sample = _bilinear(pixels, index, x, y, usable, options.border)
        weight = weight.to(real)[:, None, None, None]
        total = total + (weight * sample).where(weight > 0, 0.0)
    mean, std = (
        torch.tensor(values or (default,), dtype=real, device=device)
        for values, default in ((options.mean, 0.0), (options.std, 1.0))
    )
    result = (total - mean) / std
    return result.permute(0, 3, 1, 2) if options.out_layout == "nchw" else result


def usable_windows(affines: torch.Tensor, source: torch.Tensor, count: int) -> torch.Tensor:
    """[N] which windows are not all border, of `count` frames."""
    finite = affines.isfinite().flatten(1).all(1)
    return finite & (source >= 0) & (source < count)


def sample_positions(
    affines: torch.Tensor, usable: torch.Tensor, area: int | torch.Tensor, size: tuple[int, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The samples of every output pixel in turn.

    Args:
        affines: [N, 2, 3].
        usable: [N] where the affine counts.
        area: samples per axis, of all windows or [N] of each.
        size: (h, w) of a window.

    Yields:
        source x and y, [N, h, w] float64 each, and the weight of the sample in its pixel, [N]
        float64: 0 in a window that has fewer samples.
    """
    import torch

    count, (h, w), device = len(affines), size, affines.device
    matrices = affines.to(torch.float64).where(usable[:, None, None], 0.0)
    areas = torch.as_tensor(area, device=device).expand(count)
    most = area if isinstance(area, int) else int(areas.max()) if count else 0
    steps = areas.to(torch.float64)[:, None, None]
    u = torch.arange(w, dtype=torch.float64, device=device)
    v = torch.arange(h, dtype=torch.float64, device=device)[:, None]
    for dv in range(most):
        for du in range(most):
            column, row = (at + (d + 0.5) / steps - 0.5 for at, d in ((u, du), (v, dv)))
            weight = torch.where(areas > max(dv, du), 1 / areas.to(torch.float64) ** 2, 0.0)
            yield *_transform(matrices, column, row), weight


def _transform(
    matrices: torch.Tensor, u: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Source x and y, [N, h, w] each, of the positions u [N, 1, w] and v [N, h, 1]."""
    cells = matrices[:, :, :, None, None]
    x, y = (cells[:, i, 0] * u + cells[:, i, 1] * v + cells[:, i, 2] for i in (0, 1))
    return x, y


def _bilinear(
    pixels: torch.Tensor,
    index: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    usable: torch.Tensor,
    border: float,
) -> torch.Tensor:
    """[N, h, w, C] samples of pixels [T, H, W, C] at x, y [N, h, w]; border where not `usable`."""
    import torch

    height, width = pixels.shape[1:3]
    result = torch.zeros((), dtype=pixels.dtype, device=pixels.device)
    for weight, row, column, inside in taps(x, y, (height, width)):
        inside = inside & usable[:, None, None]
        weight = weight.to(pixels.dtype)[..., None]
        tap = pixels[index, row, column]
        tap = tap.where(inside[..., None], border).where(weight != 0, 0.0)
        result = result + weight * tap
    return result


def taps(
    x: torch.Tensor, y: torch.Tensor, size: tuple[int, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The four neighbours of positions x, y in a source of `size` (h, w).

    Yields:
        weight, row and column (brought inside), and whether the tap lies inside, shaped as x.
    """
    height, width = size
    # Far outside, positions are brought to where every tap is outside and integers are safe.
    x, y = x.clamp(-2, width + 1), y.clamp(-2, height + 1)
    left, top = x.floor(), y.floor()
    for dx, weight_x in ((0, 1 - (x - left)), (1, x - left)):
        for dy, weight_y in ((0, 1 - (y - top)), (1, y - top)):
            column, row = (left + dx).long(), (top + dy).long()
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            yield weight_x * weight_y, row.clamp(0, height - 1), column.clamp(0, width - 1), inside


def nv12_to_bgr(frames: torch.Tensor, matrix: str) -> torch.Tensor:
    """Video frames [T, H * 3 // 2, W] uint8, limited range, as [T, 3, H, W] float32 in 0-255."""
    import torch

    height, width = frames.shape[1] * 2 // 3, frames.shape[2]
    luma = frames[:, :height].float() - 16
    chroma = frames[:, height:].reshape(-1, height // 2, width // 2, 2).float() - 128
    chroma = chroma.repeat_interleave(2, 1).repeat_interleave(2, 2)
    yuv = torch.stack((luma, chroma[..., 0], chroma[..., 1]), dim=1)
    weights = _nv12_weights(matrix, frames.device)
    return torch.einsum("cd,tdhw->tchw", weights, yuv).clamp(0, 255)


@device_constant
def _nv12_weights(matrix: str, device: torch.device) -> torch.Tensor:
    """[3, 3] float32, a row for each of B, G and R."""
    import torch

    with torch.inference_mode(False):  # for calls in any mode
        return torch.tensor(MATRICES[matrix], device=device)


def _by_reference(
    frames: Array | FrameTable,
    model: Array,
    affines: Array,
    source: Array | None,
    areas: Array | None,
    out: Array | None,
    dtype: str,
    options: WarpOptions,
) -> Array:
    import torch

    device = _as_torch(model).device
    matrices = _as_torch(affines).to(device, torch.float32)
    index = torch.zeros(len(affines)) if source is None else _as_torch(source)
    index = index.to(device, torch.int64)
    counts = None if areas is None else _as_torch(areas).to(device, torch.int64)
    if isinstance(frames, FrameTable):
        result = _from_table(frames, matrices, index, options, counts)
    else:
        pixels = _as_maps(_as_torch(frames), options)
        result = warp_reference(pixels, matrices, index, options, counts)
    if out is not None:
        _as_torch(out).copy_(result)
        return out
    result = result.to(getattr(torch, dtype)).contiguous()
    return result.numpy() if isinstance(model, np.ndarray) else result


def _from_table(
    table: FrameTable,
    affines: torch.Tensor,
    source: torch.Tensor,
    options: WarpOptions,
    areas: torch.Tensor | None,
) -> torch.Tensor:
    """The reference, one frame after the other; windows of no frame are border."""
    import torch

    nowhere, device = torch.full_like(source, -1), affines.device
    dot = torch.zeros((1, options.channels, 1, 1), device=device)
    result = warp_reference(dot, affines, nowhere, options, areas)
    for i, row in enumerate(_as_torch(table.rows).tolist()):
        if min(row[2:]) < 1:
            continue
        pixels = _as_maps(_frame_at(row, options.layout, device)[None], options)
        cut = warp_reference(pixels, affines, torch.zeros_like(source), options, areas)
        result = torch.where((source == i)[:, None, None, None], cut, result)
    return result


class _Memory:
    """A frame at an address, for numpy and torch to look at without a copy."""

    def __init__(self, row: Sequence[int], layout: str) -> None:
        address, stride, height, width = row
        rows, pixel = (height, (3, 1)) if layout == "hwc" else (height * 3 // 2, (1,))
        shape = (rows, width, *pixel[:-1])
        place = {"data": (address, False), "shape": shape, "strides": (stride, *pixel)}
        self.__array_interface__ = {"version": 3, "typestr": "|u1", **place}
        self.__cuda_array_interface__ = self.__array_interface__


def _frame_at(row: Sequence[int], layout: str, device: torch.device) -> torch.Tensor:
    import torch

    memory = _Memory(row, layout)
    if device.type == "cpu":
        return _as_torch(np.asarray(memory))
    return torch.as_tensor(memory, device=device)


def _as_maps(frames: torch.Tensor, options: WarpOptions) -> torch.Tensor:
    """[T, C, H, W] float32 of frames of any layout."""
    if options.layout == "nv12":
        return nv12_to_bgr(frames, options.matrix)
    return (frames.permute(0, 3, 1, 2) if options.layout == "hwc" else frames).float()


def _as_torch(array: Array) -> torch.Tensor:
    import torch

    if not isinstance(array, np.ndarray):
        return array
    dense = array if all(stride >= 0 for stride in array.strides) else array.copy()
    return torch.from_numpy(dense)


def _beside(model: Array, rows: npt.NDArray[np.int64]) -> Array:
    """`rows` as the kind of array that `model` is, on its device."""
    if isinstance(model, np.ndarray):
        return rows
    import torch

    return torch.from_numpy(rows).to(model.device)


def _byte_strides(frame: Array) -> tuple[int, ...]:
    """Of a frame of bytes."""
    return frame.strides if isinstance(frame, np.ndarray) else tuple(frame.stride())


def _address(frame: Array) -> int:
    if isinstance(frame, np.ndarray):
        return int(frame.__array_interface__["data"][0])
    return int(frame.data_ptr())


def _has_dense_rows(frame: Array, layout: str) -> bool:
    return _byte_strides(frame)[1:] == ((3, 1) if layout == "hwc" else (1,))


def _dense_rows(frame: Array, layout: str) -> Array:
    if _has_dense_rows(frame, layout):
        return frame
    return np.ascontiguousarray(frame) if isinstance(frame, np.ndarray) else frame.contiguous()


def _choose(backend: str | None, frames: Array, layout: str) -> str:
    device = device_kind(frames)
    if layout == "nv12" and device != "cuda":
        raise BackendError(f'layout "nv12" needs frames on cuda, got {device}')
    return choose(backend, frames, ("cpp", "cuda"))


def _needs_gradient(frames: Array) -> bool:
    if isinstance(frames, np.ndarray) or not frames.requires_grad:
        return False
    import torch

    return torch.is_grad_enabled()


def _empty(shape: tuple[int, ...], dtype: str, frames: Array) -> Array:
    if isinstance(frames, np.ndarray):
        return np.empty(shape, dtype)
    import torch

    return torch.empty(shape, dtype=getattr(torch, dtype), device=frames.device)


@functools.lru_cache(maxsize=64)
def _scale_shift(
    channels: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    centre = np.array(mean or np.zeros(channels), np.float64)
    scale = 1 / np.array(std or np.ones(channels), np.float64)
    return scale.astype(np.float32), (-centre * scale).astype(np.float32)


def _check_layout(layout: str, matrix: str = "bt709") -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if matrix not in MATRICES:
        raise ValueError(f"matrix must be one of {', '.join(MATRICES)}, got {matrix!r}")


def _check_frames(
    frames: Array | Sequence[Array] | FrameTable, layout: str, out: Array | None
) -> tuple[Array | Sequence[Array] | FrameTable, Array]:
    """The frames with their axis T, and an array whose kind and device the result has."""
    if isinstance(frames, FrameTable):
        return frames, _check_table(frames, layout, out)
    if isinstance(frames, Sequence):
        _check_sequence(frames, layout)
        return frames, frames[0]
    check_array("frames", frames)
    _check_stack(frames.shape, type_name(frames), layout)
    return frames[None] if frames.ndim == 3 and layout == "hwc" else frames, frames


@functools.lru_cache(maxsize=64)  # a video's frames are alike
def _check_stack(shape: tuple[int, ...], kind: str, layout: str) -> None:
    """Frames that are one array of that shape and type."""
    _check_type("frames", kind, layout)
    match layout:
        case "hwc":
            expected = "[H >= 1, W >= 1, 3] or [T, H >= 1, W >= 1, 3]"
            fits = len(shape) in (3, 4) and shape[-1] == 3 and min(shape[-3:]) >= 1
        case "nv12":
            expected = "[T, H * 3 // 2, W], H and W even"
            fits = len(shape) == 3 and min(shape[1:]) >= 2 and shape[1] % 3 == shape[2] % 2 == 0
        case _:
            expected = "[T, C >= 1, H >= 1, W >= 1]"
            fits = len(shape) == 4 and min(shape[1:]) >= 1
    if not fits:
        raise ValueError(f"frames of layout {layout!r} must be {expected}, got {list(shape)}")


def _check_sequence(frames: Sequence[Array], layout: str) -> None:
    if layout == "chw":
        raise ValueError('frames of layout "chw" must be one array [T, C, H, W], got a sequence')
    if not len(frames):
        raise ValueError("frames must hold at least one frame, got none")
    for i, frame in enumerate(frames):
        name = f"frames[{i}]"
        check_array(name, frame)
        _check_type(name, type_name(frame), layout)
        first = _place(frames[0])
        if _place(frame) != first:
            raise ValueError(f"{name} must be {first} as the first is, got {_place(frame)}")
        shape = list(frame.shape)
        if layout == "hwc":
            expected = "[H >= 1, W >= 1, 3]"
            fits = len(shape) == 3 and shape[2] == 3 and min(shape) >= 1
        else:
            expected = "[H * 3 // 2, W], H and W even"
            fits = len(shape) == 2 and min(shape) >= 2 and shape[0] % 3 == shape[1] % 2 == 0
        if not fits:
            raise ValueError(f"{name} of layout {layout!r} must be {expected}, got {shape}")


def _check_table(table: FrameTable, layout: str, out: Array | None) -> Array:
    if layout == "chw":
        raise ValueError('frames of layout "chw" must be one array [T, C, H, W], got a FrameTable')
    rows = table.rows
    check_array("the rows of frames", rows)
    if rows.ndim != 2 or rows.shape[1] != 4 or type_name(rows) != "int64":
        came = f"{list(rows.shape)} {type_name(rows)}"
        raise ValueError(f"the rows of frames must be [T, 4] int64, got {came}")
    if out is None:
        raise ValueError("out must be given with a FrameTable, got None")
    check_array("out", out)
    if device_kind(rows) != device_kind(out):
        raise ValueError(f"out must be on {device_kind(rows)} as frames, got {device_kind(out)}")
    return out


def _check_type(name: str, kind: str, layout: str) -> None:
    if kind not in LAYOUTS[layout]:
        types = " or ".join(LAYOUTS[layout])
        raise ValueError(f"{name} of layout {layout!r} must be {types}, got {kind}")


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"size must be (h, w), whole numbers from 1, got {size}")
    return height, width


# One network asks for the same in every frame: for one person the checks would take as long as a
# quarter of the kernel.
@functools.lru_cache(maxsize=64)
def _make_options(
    size: tuple[int, int],
    channels: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    swap_rb: bool,
    border: float,
    layout: str,
    out_layout: str,
    area: int,
    matrix: str,
) -> WarpOptions:
    options = WarpOptions(
        size=size,
        channels=channels,
        mean=None if mean is None else tuple(map(float, mean)),
        std=None if std is None else tuple(map(float, std)),
        swap_rb=swap_rb,
        border=border,
        layout=layout,
        out_layout=out_layout,
        area=area,
        matrix=matrix,
    )
    _check_options(options)
    return options


def _check_options(options: WarpOptions) -> None:
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and len(values) != options.channels:
            raise ValueError(f"{name} must have {options.channels} numbers, got {len(values)}")
    if options.std is not None and not all(value > 0 for value in options.std):
        raise ValueError(f"std must be positive, got {options.std}")
    if options.swap_rb and options.channels != 3:
        raise ValueError(f"swap_rb needs 3 channels, got {options.channels}")
    if options.out_layout not in OUT_LAYOUTS:
        raise ValueError(f"out_layout must be nchw or nhwc, got {options.out_layout!r}")


def _check_device(name: str, array: Array, frames: Array) -> None:
    allowed = ("cpu", device_kind(frames))
    if device_kind(array) not in allowed:
        places = " or ".join(dict.fromkeys(allowed))
        raise ValueError(f"{name} must be on {places}, got {device_kind(array)}")


def _check_affines(affines: Array, frames: Array) -> None:
    check_array("affines", affines)
    _check_device("affines", affines, frames)
    if affines.ndim != 3 or tuple(affines.shape[1:]) != (2, 3):
        raise ValueError(f"affines must be [N, 2, 3], got {list(affines.shape)}")
    if type_name(affines) not in ("float32", "float64"):
        raise ValueError(f"affines must be float32 or float64, got {type_name(affines)}")


def _check_area(area: int | Array, affines: Array) -> tuple[int, Array | None]:
    """The area of all windows, and the array of each one's own."""
    if isinstance(area, (int, float, np.integer)):
        if area not in range(1, MAX_AREA + 1):
            raise ValueError(f"area must be a whole number from 1 to {MAX_AREA}, got {area}")
        return int(area), None
    check_array("area", area)
    _check_areas(area, affines)
    return 1, area


def _check_areas(areas: Array, affines: Array) -> None:
    count = len(affines)
    if tuple(areas.shape) != (count,) or "int" not in type_name(areas):
        came = f"{list(areas.shape)} {type_name(areas)}"
        raise ValueError(f"area must be a whole number or [{count}] integers, got {came}")
    if _place(areas) != _place(affines):
        raise ValueError(f"area must be {_place(affines)} as affines is, got {_place(areas)}")
    if device_kind(areas) == "cpu" and count:
        low, high = _extremes(areas)
        if low < 1 or high > MAX_AREA:
            raise ValueError(f"area must be from 1 to {MAX_AREA}, got {low} to {high}")


def _extremes(values: Array) -> tuple[int, int]:
    numbers = values.tolist()  # a tenth of the time of two reductions for one window
    return min(numbers), max(numbers)


def _check_source(
    source: Array | None, count: int, stack: Array | Sequence[Array] | FrameTable, model: Array
) -> None:
    if source is None:
        if len(stack) != 1 and count:
            raise ValueError(f"source must be given for {len(stack)} frames, got None")
        return
    check_array("source", source)
    _check_device("source", source, model)
    if tuple(source.shape) != (count,) or "int" not in type_name(source):
        raise ValueError(
            f"source must be [{count}] integers, got {list(source.shape)} {type_name(source)}"
        )
    if device_kind(source) == "cpu" and count and not isinstance(stack, FrameTable):
        low, high = _extremes(source)
        if low < 0 or high >= len(stack):
            raise ValueError(f"source must be from 0 to {len(stack) - 1}, got {low} to {high}")


def _check_out(out: Array | None, frames: Array, shape: tuple[int, ...], dtype: str) -> None:
    host = isinstance(frames, np.ndarray)
    if dtype not in TYPES:
        raise ValueError(f"dtype must be one of {', '.join(TYPES)}, got {dtype!r}")
    if out is None:
        if host and dtype == "bfloat16":
            raise ValueError('dtype "bfloat16" needs frames that are a torch tensor, got numpy')
        return
    check_array("out", out)
    if _place(out) != _place(frames):
        raise ValueError(f"out must be {_place(frames)} as frames is, got {_place(out)}")
    if tuple(out.shape) != shape or type_name(out) not in TYPES:
        raise ValueError(
            f"out must be {list(shape)} float32, float16 or bfloat16, "
            f"got {list(out.shape)} {type_name(out)}"
        )
    if not _is_dense(out):
        raise ValueError("out must be dense (C-contiguous) and writable")
    if _needs_gradient(frames):
        raise ValueError("out cannot be used where frames needs a gradient")


def _place(array: Array) -> str:
    return "a numpy array" if isinstance(array, np.ndarray) else f"a tensor on {array.device}"


def _is_dense(out: Any) -> bool:
    if isinstance(out, np.ndarray):
        return bool(out.flags.c_contiguous and out.flags.writeable)
    return bool(out.is_contiguous())
