"""Heat-maps from joints: the targets that a network learns, in the styles of six code bases."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastpose.ops.choose import choose
from fastpose.ops.constants import device_constant

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STYLES = ("exact", "msra", "udp", "caffe", "megvii", "hourglass")
PEOPLE = ("max", "sum-clamped")

CAFFE_CUT = 4.6052  # ln 100, with the digits of the released code: values under 1 % are dropped
PREVIOUS = 1.0 - 2.0**-24  # times a positive float32: the next lower one
FAR = 1e18  # cells: what lies there is not drawn, and its square is finite


def render(
    points: Tensor,
    visible: Tensor,
    size: tuple[int, int],
    *,
    sigma: float | Tensor,
    style: str = "exact",
    people: str = "max",
    background: bool = False,
    peak_value: float = 1.0,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw a Gaussian at every visible joint.

    With m the joint and c = floor(m + 0.5) its nearest cell, r = floor(3 * sigma):

    - "exact": exp(-|p - m|^2 / (2 sigma^2)) in every cell p (Zhang et al., Distribution-Aware
      Coordinate Representation, CVPR 2020). A joint whose neighbourhood of 3 sigma + 1 cells lies
      outside the map draws nothing.
    - "msra": around c instead of m, in the window of r cells round c (Xiao et al., Simple
      Baselines, ECCV 2018).
    - "udp": around m, in the window of r cells round c (Huang et al., The Devil is in the Details,
      CVPR 2020).
    - "caffe": around m, where the value is at least 1 % (Wei et al., Convolutional Pose Machines,
      CVPR 2016; there several people are "sum-clamped" and sigma is 7 / 8 of a cell).
    - "megvii": one at c, blurred by OpenCV's kernel for that sigma with mirrored borders, then
      scaled to the peak (Chen et al., Cascaded Pyramid Network, CVPR 2018). The side of the kernel
      is the odd number whose automatic sigma is nearest: 1.4 is 7, 2.0 is 11, 3.5 is 21.
    - "hourglass": a patch of 2 r + 1 cells round c whose standard deviation is a quarter of its
      side, whatever sigma is (Newell et al., Stacked Hourglass Networks, ECCV 2016).

    c is the cell that holds the joint. Code that truncates instead of rounding counts cells from
    their corner: the grids with offset t / 2, see `fastpose.geometry`.

    Args:
        points: [N, K, 2] or, for several people in a map, [N, P, K, 2]; floating, (x, y) in
            heat-map cells, cell centres at whole numbers. A joint that is not finite is not drawn.
        visible: weights, [N, K] or [N, P, K], any type: the height of the Gaussian is the weight
            clamped to 0..1 times `peak_value`, so COCO's flags 1 and 2 both draw it in full.
        size: (h, w) of the maps in cells.
        sigma: standard deviation in cells, or one for each joint, [K]. "megvii" and "hourglass"
            take the nearest kernel they have. Values on a CUDA device are not read back (except by
            the reference of "megvii"): one that is not positive and finite draws nothing.
        style: as above.
        people: how the people of one map join: "max", or "sum-clamped", the sum cut at the peak.
        background: add a last channel, `peak_value` minus the highest joint, at least 0.
        peak_value: height of a Gaussian in its centre, above 0.
        out: floating tensor of the result's shape, written in place and returned.
        backend: "triton" or "reference"; None means the fastest there is. Triton carries no
            gradient, is not traced (`torch.export`, `torch.compile`) and needs the sigmas of
            "megvii" on the host: None takes the reference then.

    Returns:
        [N, K (+ 1), h, w], float32 on the device of `points` (or `out`). Differentiable in
        `points`, `visible` and `sigma`.

    Raises:
        ValueError: an argument is not as above.
        BackendError: `backend` was named and cannot run here.
    """
    _check(points, visible, size, style, people)
    _check_sigma(sigma, points.shape[-2])
    _check_peak(peak_value)
    _check_out(out, points, size, background)
    run = render_reference
    if backend or points.is_cuda:  # elsewhere there is nothing to choose
        obstacle = _triton_obstacle(points, visible, sigma, style)
        if obstacle and backend == "triton":
            raise ValueError(f"backend must not be 'triton' {obstacle}")
        if choose(backend, points, kernels=() if obstacle else ("triton",)) == "triton":
            from fastpose.ops.triton.render import render as run
    return run(
        points,
        visible,
        size,
        sigma=sigma,
        style=style,
        people=people,
        background=background,
        peak_value=peak_value,
        out=out,
    )


def render_reference(
    points: Tensor,
    visible: Tensor,
    size: tuple[int, int],
    *,
    sigma: float | Tensor,
    style: str,
    people: str,
    background: bool,
    peak_value: float,
    out: Tensor | None,
) -> Tensor:
    """`render` in plain torch: every style is a product of a row and a column profile."""
    import torch

    points, (h, w), shared = points.float(), size, points.ndim == 4
    scale = _scale(sigma, size, style, points.device)
    columns, rows = _profiles(points, size, scale, style)
    height = visible.float().nan_to_num().clamp(0.0, 1.0)
    if peak_value != 1.0:
        height = height * peak_value
    rows = rows * height.unsqueeze(-1)
    alone = not (shared or background)  # the product may be made where the result belongs
    target = out if alone and out is not None and _takes(out, rows) else None

    def draw(points: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        maps = torch.mul(rows.unsqueeze(-1), columns.unsqueeze(-2), out=target)
        if style == "caffe":  # the one support that is round
            maps = torch.where(_caffe_support(points, size, scale), maps, 0.0)
        return maps

    if not shared:
        maps = draw(points, rows, columns)
    elif points.shape[1] == 0:
        maps = rows.new_zeros((len(points), points.shape[2], h, w))
    else:
        join = torch.maximum if people == "max" else torch.add
        each = (part.unbind(1) for part in (points, rows, columns))
        maps = functools.reduce(join, map(draw, *each))
        if people == "sum-clamped":
            maps = maps.clamp(max=peak_value)
    if background:
        rest = (peak_value - maps.amax(dim=1, keepdim=True)).clamp(min=0.0)
        maps = torch.cat((maps, rest), dim=1)
    return maps if out is None or maps is out else out.copy_(maps)


def _takes(out: Tensor, rows: Tensor) -> bool:
    """Whether a product with `rows` may be written into `out` as it is made."""
    return out.dtype is rows.dtype and not rows.requires_grad


@dataclass(frozen=True)
class _Scale:
    """What follows from sigma, style and size alone, for [1] or all [K] joints.

    Where sigma is not positive and finite the limits are NaN, within which nothing lies.

    Attributes:
        grid: [max(h, w)], 0, 1, 2, ...
        far: [K, 1], FAR.
        slope: [K, 1, 1], -1 / (2 sigma^2 ln 2), for the exponential of base 2: that of base e takes
            ten times as long where the result is next to 0, as most of a profile is.
        low, high: [K, 1] and [K, 2], the first and the last place where "exact" draws a joint.
        window: [K, 1, 1], cells from c that a window reaches.
        support: [K, 1, 1], the highest |p - m|^2 that "caffe" draws.
        tables: [K, w, w] and [K, h, h], the profiles of "megvii"; none for the other styles.
    """

    grid: Tensor
    far: Tensor
    slope: Tensor
    low: Tensor
    high: Tensor
    window: Tensor
    support: Tensor
    tables: tuple[Tensor, ...]


def _scale(
    sigma: float | Tensor, size: tuple[int, int], style: str, device: torch.device
) -> _Scale:
    if isinstance(sigma, (int, float)) and not _is_traced():
        return _scale_of_number(float(sigma), *size, style, device)
    import torch

    return _make_scale(torch.as_tensor(sigma, dtype=torch.float32, device=device), size, style)


@device_constant  # to make these takes as long as to draw a person
def _scale_of_number(sigma: float, h: int, w: int, style: str, device: torch.device) -> _Scale:
    import torch

    with torch.inference_mode(False), torch.no_grad():  # for calls in any mode
        return _make_scale(
            torch.as_tensor(sigma, dtype=torch.float32, device=device), (h, w), style
        )


def _make_scale(sigma: Tensor, size: tuple[int, int], style: str) -> _Scale:
    import torch

    h, w = size
    sigma = sigma.reshape(-1, 1)
    spread = torch.where(torch.isfinite(sigma) & (sigma > 0), sigma, math.nan)
    reach = 3.0 * spread
    window = torch.floor(reach)
    deviation = 0.25 * (2.0 * window + 1.0) if style == "hourglass" else spread
    # Beyond these bounds no map changes, but the square would not be finite.
    deviation = torch.nan_to_num(deviation, nan=1.0).clamp(1e-18, 1e15)
    tables: tuple[Tensor, ...] = ()
    if style == "megvii":
        sigmas = spread[:, 0].tolist()
        across, down = (megvii_tables(sigmas, cells) for cells in (w, h))
        tables = torch.tensor(across, device=sigma.device), torch.tensor(down, device=sigma.device)
    return _Scale(
        grid=torch.arange(max(h, w), dtype=torch.float32, device=sigma.device),
        far=torch.full_like(sigma, FAR),
        slope=(-0.5 / math.log(2.0) / (deviation * deviation))[..., None],
        low=-reach - 1.0,
        high=torch.cat((w + reach, h + reach), dim=1) * PREVIOUS,
        window=window[..., None],
        support=(2.0 * CAFFE_CUT * spread * spread)[..., None],
        tables=tables,
    )


def _profiles(
    points: Tensor, size: tuple[int, int], scale: _Scale, style: str
) -> tuple[Tensor, Tensor]:
    """Values along x [..., K, w] and along y [..., K, h] of points [..., K, 2], peak 1."""
    if style == "exact":
        near = points.clamp(scale.low, scale.high) == points
        centre = points.where(near, scale.far).unsqueeze(-1)
    else:
        centre = points.nan_to_num(FAR, FAR, -FAR).unsqueeze(-1)
    if style == "megvii":
        cell = (centre[..., 0] + 0.5).floor()
        across, down = map(_look_up, scale.tables, cell.unbind(-1))
        return across, down
    if style in ("exact", "caffe"):
        distance = scale.grid - centre
        values = (distance * distance * scale.slope).exp2()
    else:
        cells = scale.grid - (centre + 0.5).floor()
        distance = scale.grid - centre if style == "udp" else cells
        values = (distance * distance * scale.slope).exp2()
        values = values.where(cells.abs() <= scale.window, 0.0)
    across, down = values.unbind(-2)
    h, w = size  # one of them is all of the grid, and a view takes as long as a sum
    return across if w >= h else across.narrow(-1, 0, w), down if h >= w else down.narrow(-1, 0, h)


def _look_up(tables: Tensor, cell: Tensor) -> Tensor:
    """Rows of tables [1 or K, cells, cells] at cell [..., K]: [..., K, cells], 0 outside."""
    import torch

    joint = torch.arange(cell.shape[-1], device=cell.device).clamp(max=len(tables) - 1)
    inside = (cell >= 0) & (cell < tables.shape[2])
    return tables[joint, torch.where(inside, cell, 0.0).long()] * inside[..., None]


def _caffe_support(points: Tensor, size: tuple[int, int], scale: _Scale) -> Tensor:
    """Cells near enough to points [N, K, 2]: [N, K, h, w] of bool."""
    h, w = size
    distance = scale.grid - points[..., None]
    square = distance * distance
    return square[..., 1, :h, None] + square[..., 0, None, :w] <= scale.support


def megvii_tables(sigmas: Iterable[float], cells: int) -> npt.NDArray[np.float32]:
    """Profiles of "megvii" for each sigma and each cell that a joint may be in, highest value 1.

    Returns:
        [sigmas, cells, cells]; 0 for a sigma that is not positive and finite.
    """
    return np.stack([_megvii_table(sigma, cells) for sigma in sigmas])


@functools.lru_cache(maxsize=64)
def _megvii_table(sigma: float, cells: int) -> npt.NDArray[np.float32]:
    """[cells, cells], a blurred delta in each row.

    A border mirrored without repeating the edge adds two deltas, at -c and 2 (cells - 1) - c.
    """
    if not 0 < sigma < math.inf:
        return np.zeros((cells, cells), np.float32)
    kernel = np.array(_megvii_kernel(sigma), np.float32)
    radius = len(kernel) // 2
    if radius >= cells:
        raise ValueError(
            f"size must be above {radius} cells for megvii's kernel of {len(kernel)}, got {cells}"
        )
    grid = np.arange(cells)
    centre = grid[:, None]

    def tap(distance: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return np.where(abs(distance) <= radius, kernel.take(distance + radius, mode="clip"), 0)

    table = tap(grid - centre)
    table += tap(grid + centre) * (centre != 0)
    table += tap(2 * (cells - 1) - centre - grid) * (centre != cells - 1)
    return table / table.max(axis=1, keepdims=True)


@functools.lru_cache(maxsize=32)
def _megvii_kernel(sigma: float) -> tuple[float, ...]:
    # OpenCV's automatic sigma is 0.3 * ((k - 1) / 2 - 1) + 0.8; its small kernels are tables, so
    # they are asked for and not computed.
    import cv2

    radius = max(1, math.floor((sigma - 0.8) / 0.3 + 1.5))
    return tuple(cv2.getGaussianKernel(2 * radius + 1, 0).ravel().astype("float32").tolist())


def _check(points: Tensor, visible: Tensor, size: tuple[int, int], style: str, people: str) -> None:
    import torch

    for name, value in (("points", points), ("visible", visible)):
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} must be a torch tensor, got {type(value).__name__}")
    shape = points.shape
    fits = len(shape) in (3, 4) and shape[-1] == 2 and shape[-2] >= 1
    if not fits or not points.is_floating_point():
        raise ValueError(
            "points must be [N, K, 2] or [N, P, K, 2], K at least 1, and floating, "
            f"got {list(shape)} {points.dtype}"
        )
    if visible.shape != shape[:-1] or visible.device != points.device:
        raise ValueError(
            f"visible must be {list(shape[:-1])} on {points.device} like points, "
            f"got {list(visible.shape)} on {visible.device}"
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (h, w), at least 1 cell each, got {tuple(size)}")
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    if people not in PEOPLE:
        raise ValueError(f"people must be one of {', '.join(PEOPLE)}, got {people!r}")


def _triton_obstacle(
    points: Tensor, visible: Tensor, sigma: float | Tensor, style: str
) -> str | None:
    """Why these arguments are for the reference alone, or None."""
    import torch

    tensors = [value for value in (points, visible, sigma) if isinstance(value, torch.Tensor)]
    if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
        return "for arguments that require a gradient, which only the reference carries"
    if _is_traced():
        return "in what torch traces, which is to be of its own operations"
    if style == "megvii" and isinstance(sigma, torch.Tensor) and sigma.is_cuda:
        return "for megvii with sigma on a CUDA device: its tables need the values on the host"
    return None


def _is_traced() -> bool:
    import torch

    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _check_peak(peak_value: float) -> None:
    if not (math.isfinite(peak_value) and peak_value > 0):
        raise ValueError(f"peak_value must be positive and finite, got {peak_value}")


def _check_sigma(sigma: float | Tensor, joints: int) -> None:
    import torch

    if isinstance(sigma, (int, float)):  # without a tensor, which has no value on "meta"
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be positive and finite, got {sigma}")
        return
    values = torch.as_tensor(sigma)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != joints):
        raise ValueError(f"sigma must be a number or [{joints}], got {list(values.shape)}")
    # Reading a value back from the GPU would wait for it, and no graph capture allows that.
    if not values.is_cuda and not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ValueError(f"sigma must be positive and finite, got {values.tolist()}")


def _check_out(out: Tensor | None, points: Tensor, size: tuple[int, int], background: bool) -> None:
    if out is None:
        return
    import torch

    if not isinstance(out, torch.Tensor):
        raise ValueError(f"out must be a torch tensor, got {type(out).__name__}")
    shape = [points.shape[0], points.shape[-2] + int(background), *size]
    if list(out.shape) != shape or out.device != points.device or not out.is_floating_point():
        raise ValueError(
            f"out must be {shape}, floating, on {points.device}, "
            f"got {list(out.shape)} {out.dtype} on {out.device}"
        )
