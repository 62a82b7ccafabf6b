"""Joints from heat-maps: the peak of every map, refined below a cell, in frame pixels."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastpose.ops.choose import (
    Array,
    check_array,
    check_stream,
    choose,
    device_kind,
    on_stream,
    type_name,
)

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

METHODS = ("argmax", "quarter", "parabola", "taylor", "dark", "udp", "soft", "cpn")
STAGES = ("last", "sum", "mean")
TYPES = ("float32", "float16", "bfloat16")

PEAK_DISTANCE = 3  # cells between two peaks of one map
LOG_FLOOR = 1e-10
UDP_RANGE = (1e-3, 50.0)
UDP_EPSILON = float(np.finfo(np.float32).eps)
FLAT = 1e-20  # a determinant below it is the rounding of a level map
SOFT_SHARPNESS = 10.0
CPN_RADIUS = 10


@dataclass(frozen=True)
class DecodeOptions:
    """What every implementation of `decode` is given besides the arrays, checked.

    Attributes:
        method, stages, flip_shift, peaks, peak_value: as in `decode`.
        partner: [K] int32, the channel that the mirrored input has in this channel's place.
        taps: [2 r + 1] float64, the blur of "dark", "udp" and "cpn", and the side of the window of
            "soft"; sum 1.
    """

    method: str
    stages: str
    flip_shift: int
    peaks: int
    peak_value: float
    partner: npt.NDArray[np.int32]
    taps: Doubles


def decode(
    heatmaps: Array,
    *,
    method: str = "dark",
    sigma: float = 2.0,
    stages: str = "last",
    flipped: Array | None = None,
    flip_pairs: Sequence[tuple[int, int]] | None = None,
    flip_shift: int = 0,
    peaks: int = 1,
    peak_value: float = 1.0,
    affines: Array | None = None,
    stream: int | None = None,
    backend: str | None = None,
) -> tuple[Array, Array]:
    """Find the peak of every heat-map, refine it, and map it into the frame, all in one pass.

    The maps are merged first, in float32: the stages, then the mirrored maps, then NaN becomes 0.
    m is the first maximum in row order and H(m) its merged value. From there, by `method`:

    - "argmax": m.
    - "quarter": 0.25 cells towards the higher neighbour on each axis, where both neighbours are in
      the map (Newell et al., Stacked Hourglass Networks, ECCV 2016).
    - "parabola": the vertex through m and its two neighbours, on each axis.
    - "taylor": one Newton step on log H with second differences of step 2; only where m is at
      least 2 cells from every border.
    - "dark": "taylor" on the map after a blur with zeros outside, scaled back to its old maximum
      (Zhang et al., Distribution-Aware Coordinate Representation, CVPR 2020).
    - "udp": one Newton step with second differences of step 1 on the log of the map, blurred with
      mirrored borders and cut to 0.001..50 (Huang et al., The Devil is in the Details, CVPR 2020).
    - "soft": the mean of the cells within 3 sigma of m, weighted by exp(10 H / H(m)).
    - "cpn": 0.25 cells from the highest towards the second highest cell of the map blurred by 21
      cells (sigma 3.5) with zeros outside, kept inside the map (Chen et al., Cascaded Pyramid
      Network, CVPR 2018).

    The blur of "dark" and "udp" has radius r = ceil(3 sigma) - 1, at least 1, and the standard
    deviation 0.3 (r - 1) + 0.8 that OpenCV gives such a kernel: 11 cells for sigma 2, 17 for sigma
    3. Maps are divided by `peak_value` before they are cut to a range. A step that is not finite
    is not made; otherwise the published rules are followed, which on a map without a clear peak
    may lead far from m.

    The score is H(m) / `peak_value`. For "cpn" m is the peak of the blurred map, the cell nearest
    to the point, and H is not blurred; the 0.5 that the released code adds to the score is left
    out, so that one threshold fits every method. Where H(m) is not finite or not above 0 the score
    is 0 and the point NaN.

    Args:
        heatmaps: [N, K, h, w], or [S, N, K, h, w] with S stages; float32 or float16, as torch also
            bfloat16. No gradient.
        method: as above.
        sigma: standard deviation of the Gaussians that the network learnt, in cells.
        stages: of [S, ...] maps: "last", or the "sum" or "mean" of all.
        flipped: maps of the mirrored input, same shape and type: columns are reversed, channels
            swapped, the result shifted, then averaged in.
        flip_pairs: channels that change places in `flipped`; () for none.
        flip_shift: 0, or 1 to shift the mirrored-back maps right by a cell, keeping the first
            column.
        peaks: with more than 1, that many local maxima (not below any of the 8 neighbours, above
            0), at least 3 cells apart, highest first; not for "cpn".
        peak_value: value of a perfect peak: 1, or 255 for CPN's own targets.
        affines: [N, 2, 3] float32 or float64, cell (x, y, 1) -> frame pixel.
        stream: CUDA stream handle, default the current one; only for CUDA tensors.
        backend: "cpp" (CPU), "triton" (CUDA) or "reference"; None means the fastest for the device.

    Returns:
        points: [N, K, 2] or [N, K, peaks, 2] float32, (x, y) in cells or, with `affines`, in frame
            pixels; centres at whole numbers. Missing joints are NaN.
        scores: [N, K] or [N, K, peaks] float32; 0 for a missing joint.
        Both are of the kind of `heatmaps` and on its device.

    Raises:
        ValueError: an argument is not as above.
        BackendError: `backend` was named and cannot run here.
    """
    check_array("heatmaps", heatmaps)
    pairs = tuple(map(tuple, flip_pairs)) if flip_pairs else ()
    options = _options(
        heatmaps.shape,
        heatmaps.dtype,
        method,
        sigma,
        stages,
        pairs,
        flip_shift,
        peaks,
        peak_value,
    )
    if flipped is not None or affines is not None:
        _check_companions(heatmaps, flipped, flip_pairs, affines)
    check_stream(stream, "heatmaps", heatmaps)
    match choose(backend, heatmaps, kernels=("cpp", "triton"), reference="numpy"):
        case "cpp":
            from fastpose.ops import cpp

            points, scores = cpp.decode(heatmaps, flipped, affines, options)
        case "triton":
            from fastpose.ops.triton.decode import decode as run

            with on_stream(stream, heatmaps):
                points, scores = run(heatmaps, flipped, affines, options)
        case _:
            with on_stream(stream, heatmaps):
                points, scores = decode_reference(heatmaps, flipped, affines, options)
    return (points, scores) if peaks > 1 else (points.squeeze(2), scores.squeeze(2))


@functools.lru_cache(maxsize=256)  # to check and make them takes as long as to decode a person
def _options(
    shape: tuple[int, ...],
    dtype: Hashable,
    method: str,
    sigma: float,
    stages: str,
    flip_pairs: tuple[tuple[int, ...], ...],
    flip_shift: int,
    peaks: int,
    peak_value: float,
) -> DecodeOptions:
    """Check the maps and the choices that `decode` was given."""
    _check_maps(shape, dtype)
    _check_choices(method, stages, flip_shift, peaks, sigma, peak_value)
    return DecodeOptions(
        method=method,
        stages=stages,
        flip_shift=int(flip_shift),
        peaks=int(peaks),
        peak_value=float(peak_value),
        partner=mirror_partners(flip_pairs, shape[-3]),
        taps=blur_taps(CPN_RADIUS if method == "cpn" else blur_radius(sigma)),
    )


def decode_reference(
    heatmaps: Array, flipped: Array | None, affines: Array | None, options: DecodeOptions
) -> tuple[Array, Array]:
    """`decode` in plain numpy, whole maps at a time: the definition every kernel is tested against.

    Returns:
        points [N, K, peaks, 2] and scores [N, K, peaks], of the kind of `heatmaps`.
    """
    merged = _merge(to_host(heatmaps), None if flipped is None else to_host(flipped), options)
    n, k, h, w = merged.shape
    maps = merged.reshape(n * k, h, w).astype(np.float64)
    searched = _blur(maps, options.taps, "constant") if options.method == "cpn" else maps
    # float32 again: what is level must stay level whatever the order of the sums.
    x, y = _find_peaks(searched.astype(np.float32), options.peaks)  # [M, P]
    value = _at(maps, x, y)
    found = np.isfinite(value) & (value > 0) & (x >= 0)
    found &= np.isfinite(maps.max(axis=(1, 2), initial=-np.inf, keepdims=True)[:, 0])
    with np.errstate(all="ignore"):  # steps that are not finite are not made
        points = _refine(maps, x, y, options)  # [M, P, 2]
        points[~found] = np.nan
        points = points.reshape(n, k, options.peaks, 2)
        if affines is not None:
            matrix = to_host(affines).astype(np.float64)[:, None, None]
            points = (matrix[..., :2] @ points[..., None])[..., 0] + matrix[..., 2]
        scores = np.where(found, value / options.peak_value, 0.0).reshape(points.shape[:-1])
        return to_kind(points, heatmaps), to_kind(scores, heatmaps)


def blur_radius(sigma: float) -> int:
    """Radius of the blur that undoes a network's noise: 11 cells wide for sigma 2, 17 for 3."""
    return max(1, math.ceil(3.0 * sigma) - 1)


@functools.lru_cache(maxsize=32)
def blur_taps(radius: int) -> Doubles:
    """[2 radius + 1] float64: a Gaussian with OpenCV's automatic sigma for that size, sum 1."""
    width = 0.3 * (radius - 1) + 0.8
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2)
    taps /= taps.sum()
    taps.flags.writeable = False  # every call shares it
    return taps


def _merge(
    maps: npt.NDArray, flipped: npt.NDArray | None, options: DecodeOptions
) -> npt.NDArray[np.float32]:
    """Stages, mirrored maps and NaN: [(S,) N, K, h, w] -> [N, K, h, w] float32."""
    with np.errstate(all="ignore"):
        merged = _join_stages(maps, options.stages)
        if flipped is not None:
            back = _join_stages(flipped, options.stages)[:, options.partner, :, ::-1].copy()
            if options.flip_shift:
                back[..., 1:] = back[..., :-1].copy()
            merged = (merged + back) * np.float32(0.5)
    return np.where(np.isnan(merged), np.float32(0), merged)


def _join_stages(maps: npt.NDArray, stages: str) -> npt.NDArray[np.float32]:
    maps = maps.astype(np.float32)
    if maps.ndim == 4:
        return maps
    if stages == "last":
        return maps[-1]
    total = maps[0].copy()
    for stage in maps[1:]:
        total += stage
    return total / np.float32(len(maps)) if stages == "mean" else total


def _find_peaks(maps: npt.NDArray[np.float32], peaks: int) -> tuple[Indices, Indices]:
    """Peaks of [M, h, w] -> x, y [M, P]; -1 where a map has fewer."""
    m, h, w = maps.shape
    if peaks == 1:
        best = maps.reshape(m, h * w).argmax(axis=1)[:, None]
        return best % w, best // w
    found = np.full((2, m, peaks), -1, np.int64)
    around = np.pad(maps, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    shifted = [around[:, dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)]
    local = (maps == np.maximum.reduce(shifted)) & (maps > 0)
    for i in range(m):
        rows, columns = np.nonzero(local[i])
        kept: list[tuple[int, int]] = []
        for j in np.argsort(-maps[i, rows, columns], kind="stable"):
            x, y = int(columns[j]), int(rows[j])
            apart = all((x - a) ** 2 + (y - b) ** 2 >= PEAK_DISTANCE**2 for a, b in kept)
            if apart and len(kept) < peaks:
                kept.append((x, y))
        for rank, place in enumerate(kept):
            found[:, i, rank] = place
    return found[0], found[1]


def _at(maps: npt.NDArray, x: Indices, y: Indices) -> npt.NDArray:
    """Values of [M, h, w] at x, y [M, P], which are moved into the map."""
    h, w = maps.shape[1:]
    return maps[np.arange(len(maps))[:, None], y.clip(0, h - 1), x.clip(0, w - 1)]


def _refine(maps: Doubles, x: Indices, y: Indices, options: DecodeOptions) -> Doubles:
    """Cells [M, P] -> points [M, P, 2]."""
    whole = np.stack((x, y), axis=-1).astype(np.float64)
    match options.method:
        case "argmax":
            return whole
        case "cpn":
            return _refine_cpn(maps, whole, options.taps)
        case "soft":
            return _refine_soft(maps, x, y, len(options.taps) // 2 + 1)
        case "quarter" | "parabola":
            step = _refine_by_axis(maps, x, y, options.method)
        case "udp":
            step = _refine_udp(maps, x, y, options)
        case _:
            step = _refine_taylor(maps, x, y, options)
    return whole + np.where(np.isfinite(step).all(axis=-1, keepdims=True), step, 0.0)


def _refine_by_axis(maps: Doubles, x: Indices, y: Indices, method: str) -> Doubles:
    h, w = maps.shape[1:]

    def step(dx: int, dy: int, inside: npt.NDArray[np.bool_]) -> Doubles:
        before, after = _at(maps, x - dx, y - dy), _at(maps, x + dx, y + dy)
        if method == "quarter":
            move = 0.25 * np.sign(after - before)
        else:
            move = 0.5 * (before - after) / (before - 2.0 * _at(maps, x, y) + after)
        return np.where(inside & np.isfinite(move), move, 0.0)

    across, down = (x > 0) & (x < w - 1), (y > 0) & (y < h - 1)
    return np.stack((step(1, 0, across), step(0, 1, down)), axis=-1)


def _refine_taylor(maps: Doubles, x: Indices, y: Indices, options: DecodeOptions) -> Doubles:
    h, w = maps.shape[1:]
    heights = maps / options.peak_value
    if options.method == "dark":
        highest = heights.max(axis=(1, 2), keepdims=True, initial=-np.inf)
        heights = _blur(heights, options.taps, "constant")
        blurred = heights.max(axis=(1, 2), keepdims=True, initial=-np.inf)
        heights = np.where(blurred > 0, heights * (highest / blurred), heights)
    logs = np.log(np.maximum(heights, LOG_FLOOR))

    def at(dx: int, dy: int) -> Doubles:
        return _at(logs, x + dx, y + dy)

    gx, gy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
    xx = 0.25 * (at(2, 0) - 2.0 * at(0, 0) + at(-2, 0))
    yy = 0.25 * (at(0, 2) - 2.0 * at(0, 0) + at(0, -2))
    xy = 0.25 * (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1))
    inside = (x > 1) & (x < w - 2) & (y > 1) & (y < h - 2)
    return np.where(inside[..., None], _newton(gx, gy, xx, xy, yy), 0.0)


def _refine_udp(maps: Doubles, x: Indices, y: Indices, options: DecodeOptions) -> Doubles:
    blurred = _blur(maps / options.peak_value, options.taps, "reflect")
    logs = np.log(blurred.clip(*UDP_RANGE))

    def at(dx: int, dy: int) -> Doubles:
        return _at(logs, x + dx, y + dy)  # outside the map: the nearest cell

    gx, gy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
    xx = at(1, 0) - 2.0 * at(0, 0) + at(-1, 0)
    yy = at(0, 1) - 2.0 * at(0, 0) + at(0, -1)
    corners = at(1, 1) - at(1, 0) - at(0, 1) + 2.0 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)
    return _newton(gx, gy, xx + UDP_EPSILON, 0.5 * corners, yy + UDP_EPSILON)


def _newton(gx: Doubles, gy: Doubles, xx: Doubles, xy: Doubles, yy: Doubles) -> Doubles:
    """-Hessian^-1 gradient -> [M, P, 2]; not finite where the Hessian has no inverse."""
    determinant = xx * yy - xy * xy
    determinant = np.where(np.abs(determinant) < FLAT, 0.0, determinant)
    return np.stack((xy * gy - yy * gx, xy * gx - xx * gy), axis=-1) / determinant[..., None]


def _refine_soft(maps: Doubles, x: Indices, y: Indices, radius: int) -> Doubles:
    h, w = maps.shape[1:]
    peak = _at(maps, x, y)
    total, sum_x, sum_y = np.zeros(x.shape), np.zeros(x.shape), np.zeros(x.shape)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            inside = (x + dx >= 0) & (x + dx < w) & (y + dy >= 0) & (y + dy < h)
            height = _at(maps, x + dx, y + dy) / peak
            weight = np.where(inside, np.exp(SOFT_SHARPNESS * (height - 1.0)), 0.0)
            total, sum_x, sum_y = total + weight, sum_x + weight * dx, sum_y + weight * dy
    return np.stack((x + sum_x / total, y + sum_y / total), axis=-1)


def _refine_cpn(maps: Doubles, first: Doubles, taps: Doubles) -> Doubles:
    m, h, w = maps.shape
    searched = _blur(maps, taps, "constant").astype(np.float32)
    x, y = first[..., 0].astype(np.int64), first[..., 1].astype(np.int64)
    searched[np.arange(m)[:, None], y, x] = 0.0
    towards = np.stack(_find_peaks(searched, 1), axis=-1) - first
    length = np.linalg.norm(towards, axis=-1, keepdims=True)
    moved = first + np.where(length > 0, 0.25 * towards / length, 0.0)
    return moved.clip(0.0, (w - 1, h - 1))


def _blur(maps: Doubles, taps: Doubles, border: str) -> Doubles:
    """[M, h, w] blurred along rows, then columns; `border` as in numpy.pad."""
    radius = len(taps) // 2
    h, w = maps.shape[1:]
    for axis, size in ((2, w), (1, h)):
        margin = [(0, 0)] * 3
        margin[axis] = (radius, radius)
        padded = np.pad(maps, margin, mode=border)  # type: ignore[call-overload]
        taken = (padded.take(range(i, i + size), axis) for i in range(len(taps)))
        maps = sum(tap * part for tap, part in zip(taps, taken, strict=True))
    return maps


def to_host(array: Array) -> npt.NDArray:
    """A numpy array of the same values; bfloat16, which numpy lacks, becomes float32."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    return (array.float() if type_name(array) == "bfloat16" else array).numpy()


def to_kind(result: npt.NDArray, array: Array) -> Array:
    """`result` as float32, of the kind of `array` and on its device."""
    result = result.astype(np.float32)
    if isinstance(array, np.ndarray):
        return result
    import torch

    return torch.from_numpy(result).to(array.device)


def mirror_partners(pairs: Sequence[Sequence[int]], joints: int) -> npt.NDArray[np.int32]:
    """[joints] the channel whose place each one takes in the mirrored input."""
    partner = np.arange(joints, dtype=np.int32)
    for a, b in pairs:
        if not (0 <= a < joints and 0 <= b < joints):
            raise ValueError(f"flip_pairs must name channels 0 to {joints - 1}, got {(a, b)}")
        if partner[a] not in (a, b) or partner[b] not in (a, b):
            raise ValueError(f"flip_pairs must give a channel one partner, got {(a, b)} as well")
        partner[[a, b]] = b, a
    partner.flags.writeable = False  # every call shares it
    return partner


def _check_maps(shape: tuple[int, ...], dtype: Hashable) -> None:
    if len(shape) not in (4, 5) or min(shape[-2:]) < 1 or (len(shape) == 5 and shape[0] < 1):
        raise ValueError(
            "heatmaps must be [N, K, h, w] or [S, N, K, h, w] with at least one cell and stage, "
            f"got {list(shape)}"
        )
    if str(dtype).removeprefix("torch.") not in TYPES:
        raise ValueError(f"heatmaps must be {', '.join(TYPES)}, got {dtype}")


def _check_choices(
    method: str, stages: str, flip_shift: int, peaks: int, sigma: float, peak_value: float
) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if stages not in STAGES:
        raise ValueError(f"stages must be one of {', '.join(STAGES)}, got {stages!r}")
    if flip_shift not in (0, 1):
        raise ValueError(f"flip_shift must be 0 or 1, got {flip_shift!r}")
    if peaks != int(peaks) or peaks < 1 or (peaks > 1 and method == "cpn"):
        raise ValueError(f"peaks must be whole, at least 1, and 1 for method 'cpn', got {peaks!r}")
    for name, value in (("sigma", sigma), ("peak_value", peak_value)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")


def _check_companions(
    heatmaps: Array,
    flipped: Array | None,
    flip_pairs: Sequence[tuple[int, int]] | None,
    affines: Array | None,
) -> None:
    """`flipped` and `affines` must fit `heatmaps`."""
    if flipped is not None:
        kind, device = type(heatmaps), device_kind(heatmaps)
        if not isinstance(flipped, kind) or device_kind(flipped) != device:
            raise ValueError(f"flipped must be a {kind.__name__} on {device} like heatmaps")
        if flipped.shape != heatmaps.shape or flipped.dtype != heatmaps.dtype:
            raise ValueError(
                f"flipped must be {list(heatmaps.shape)} {heatmaps.dtype} like heatmaps, "
                f"got {list(flipped.shape)} {flipped.dtype}"
            )
        if flip_pairs is None:
            raise ValueError("flip_pairs must be given with flipped, () for none, got None")
    check_affines("heatmaps", heatmaps, heatmaps.shape[-4], affines)


def check_affines(name: str, array: Array, windows: int, affines: Array | None) -> None:
    """Raise ValueError unless there are none or one for each window of the array called `name`."""
    if affines is None:
        return
    kind, device = type(array), device_kind(array)
    if not isinstance(affines, kind) or device_kind(affines) != device:
        raise ValueError(f"affines must be a {kind.__name__} on {device} like {name}")
    expected = [windows, 2, 3]
    if list(affines.shape) != expected or type_name(affines) not in ("float32", "float64"):
        raise ValueError(
            f"affines must be {expected} float32 or float64, "
            f"got {list(affines.shape)} {affines.dtype}"
        )
