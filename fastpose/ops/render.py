"""Heat-maps from joints: the targets that a network learns, in the styles of six code bases."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from fastpose.ops.choose import choose

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STYLES = ("exact", "msra", "udp", "caffe", "megvii", "hourglass")
PEOPLE = ("max", "sum-clamped")

CAFFE_CUT = 4.6052  # ln 100, with the digits of the released code: values under 1 % are dropped


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
    obstacle = _triton_obstacle(points, visible, sigma, style)
    if obstacle and backend == "triton":
        raise ValueError(f"backend must not be 'triton' {obstacle}")
    match choose(backend, points, kernels=() if obstacle else ("triton",)):
        case "triton":
            from fastpose.ops.triton.render import render as run
        case _:
            run = render_reference
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

    if points.ndim == 3:
        points, visible = points[:, None], visible[:, None]
    points = points.to(torch.float32)
    drawn = torch.isfinite(points).all(dim=-1)
    points = torch.where(drawn[..., None], points, 0.0)
    spread = torch.as_tensor(sigma, dtype=torch.float32, device=points.device)
    spread = spread.expand(points.shape[-2])
    sound = torch.isfinite(spread) & (spread > 0)
    spread = torch.where(sound, spread, 1.0)
    weight = torch.nan_to_num(visible.to(torch.float32)).clamp(0.0, 1.0)
    height = weight * (drawn & sound) * peak_value

    h, w = size
    columns = _profile(points[..., 0], w, spread, style)  # [N, P, K, w]
    rows = _profile(points[..., 1], h, spread, style) * height[..., None]  # [N, P, K, h]

    def draw(person: int) -> Tensor:
        one = rows[:, person, :, :, None] * columns[:, person, :, None, :]
        # the one support that is round
        return one * _caffe_support(points[:, person], size, spread) if style == "caffe" else one

    join = torch.maximum if people == "max" else torch.add
    empty = points.new_zeros((points.shape[0], points.shape[2], h, w))
    maps = functools.reduce(join, map(draw, range(points.shape[1]))) if points.shape[1] else empty
    if people == "sum-clamped":
        maps = maps.clamp(max=peak_value)
    if background:
        rest = (peak_value - maps.amax(dim=1, keepdim=True)).clamp(min=0.0)
        maps = torch.cat((maps, rest), dim=1)
    return maps if out is None else out.copy_(maps)


def _profile(centre: Tensor, cells: int, sigma: Tensor, style: str) -> Tensor:
    """Values of one axis: centre [N, P, K], sigma [K] -> [N, P, K, cells], peak 1."""
    import torch

    grid = torch.arange(cells, dtype=torch.float32, device=centre.device)
    nearest = torch.floor(centre + 0.5)
    if style == "megvii":
        return megvii_profile(nearest, cells, sigma)
    window = torch.floor(3.0 * sigma)
    if style == "hourglass":
        sigma = 0.25 * (2.0 * window + 1.0)
    middle = nearest if style in ("msra", "hourglass") else centre
    profile = torch.exp(-0.5 * ((grid - middle[..., None]) / sigma[:, None]) ** 2)
    if style == "exact":
        reach = 3.0 * sigma
        near = (centre >= -reach - 1.0) & (centre < cells + reach)
        return profile * near[..., None]
    if style == "caffe":
        return profile
    return profile * ((grid - nearest[..., None]).abs() <= window[:, None])


def _caffe_support(points: Tensor, size: tuple[int, int], sigma: Tensor) -> Tensor:
    """Where the exponent is small enough: points [N, K, 2] -> [N, K, h, w] of bool."""
    import torch

    h, w = size
    dx = torch.arange(w, device=points.device) - points[..., 0, None]
    dy = torch.arange(h, device=points.device) - points[..., 1, None]
    square = dy[..., :, None] ** 2 + dx[..., None, :] ** 2
    return square / (2.0 * sigma[:, None, None] ** 2) <= CAFFE_CUT


def megvii_profile(nearest: Tensor, cells: int, sigma: Tensor) -> Tensor:
    """A blurred delta per axis: nearest [..., K], sigma [K] -> [..., K, cells], highest value 1.

    A border mirrored without repeating the edge adds two deltas, at -c and 2 (cells - 1) - c.
    """
    import torch

    grid = torch.arange(cells, device=nearest.device)
    profiles = []
    for joint, width in enumerate(sigma.tolist()):
        kernel = torch.tensor(_megvii_kernel(width), device=nearest.device)
        radius = len(kernel) // 2
        if radius >= cells:
            raise ValueError(
                f"size must be above {radius} cells for megvii's kernel of {len(kernel)}, "
                f"got {cells}"
            )
        centre = nearest[..., joint, None].long()

        def tap(distance: Tensor, kernel: Tensor = kernel, radius: int = radius) -> Tensor:
            value = kernel[(distance + radius).clamp(0, 2 * radius)]
            return value * (distance.abs() <= radius)

        profile = tap(grid - centre)
        profile = profile + tap(grid + centre) * (centre != 0)
        profile = profile + tap(2 * (cells - 1) - centre - grid) * (centre != cells - 1)
        inside = (centre >= 0) & (centre < cells)
        profile = profile * inside
        profiles.append(profile / profile.amax(dim=-1, keepdim=True).clamp(min=1e-12))
    if not profiles:
        return nearest.new_zeros((*nearest.shape, cells))
    return torch.stack(profiles, dim=-2)


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
    shape = list(points.shape)
    fits = len(shape) in (3, 4) and shape[-1] == 2 and shape[-2] >= 1
    if not fits or not points.is_floating_point():
        raise ValueError(
            "points must be [N, K, 2] or [N, P, K, 2], K at least 1, and floating, "
            f"got {shape} {points.dtype}"
        )
    if visible.shape != points.shape[:-1] or visible.device != points.device:
        raise ValueError(
            f"visible must be {list(points.shape[:-1])} on {points.device} like points, "
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
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "in what torch traces, which is to be of its own operations"
    if style == "megvii" and isinstance(sigma, torch.Tensor) and sigma.is_cuda:
        return "for megvii with sigma on a CUDA device: its tables need the values on the host"
    return None


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


def _check_out(
    out: torch.Tensor | None, points: Tensor, size: tuple[int, int], background: bool
) -> None:
    shape = [points.shape[0], points.shape[-2] + int(background), *size]
    if out is not None and (
        list(out.shape) != shape or out.device != points.device or not out.is_floating_point()
    ):
        raise ValueError(
            f"out must be {shape}, floating, on {points.device}, "
            f"got {list(out.shape)} {out.dtype} on {out.device}"
        )
