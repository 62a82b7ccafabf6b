"""`ops.decode` as one writes it in torch without a kernel: all joints of all people at once."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR, WIDE = 5, 10  # radius in cells of the blur of "dark" and "udp", and of that of "cpn"
SOFT = 6  # cells


def decode(maps: Tensor, method: str) -> Tensor:
    """Joints of [N, K, h, w] float32 maps, learnt with sigma 2.

    Args:
        maps: with a clear peak in each, as is expected of them: nothing is made of a flat one.
        method: as in `fastpose.ops.decode`.

    Returns:
        [N, K, 2] (x, y) in cells.
    """
    if method == "cpn":
        return _towards_second(maps)
    w = maps.shape[-1]
    peak = maps.flatten(2).argmax(dim=-1)
    x, y = peak % w, peak // w
    step = {
        "argmax": _stay,
        "quarter": _quarter,
        "parabola": _parabola,
        "taylor": _taylor,
        "dark": _dark,
        "udp": _udp,
        "soft": _soft,
    }[method](maps, x, y)
    return torch.stack((x, y), dim=-1) + step


def _at(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values at [N, K] cells, which are moved into the map."""
    h, w = maps.shape[-2:]
    index = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    return maps.flatten(2).gather(-1, index[..., None])[..., 0]


def _stay(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return maps.new_zeros(())


def _neighbours(maps: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Before and after the peak, [N, K, 2] for both axes, and whether both are in the map."""
    h, w = maps.shape[-2:]
    before = torch.stack((_at(maps, x - 1, y), _at(maps, x, y - 1)), dim=-1)
    after = torch.stack((_at(maps, x + 1, y), _at(maps, x, y + 1)), dim=-1)
    inside = torch.stack(((x > 0) & (x < w - 1), (y > 0) & (y < h - 1)), dim=-1)
    return before, after, inside


def _quarter(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    before, after, inside = _neighbours(maps, x, y)
    return 0.25 * torch.sign(after - before) * inside


def _parabola(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    before, after, inside = _neighbours(maps, x, y)
    step = 0.5 * (before - after) / (before - 2 * _at(maps, x, y)[..., None] + after)
    return torch.where(inside, step, 0.0)


def _taylor(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    h, w = maps.shape[-2:]
    logs = maps.clamp(min=1e-10).log_()

    def at(dx: int, dy: int) -> Tensor:
        return _at(logs, x + dx, y + dy)

    gx, gy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
    middle = 2 * at(0, 0)
    xx, yy = 0.25 * (at(2, 0) - middle + at(-2, 0)), 0.25 * (at(0, 2) - middle + at(0, -2))
    xy = 0.25 * (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1))
    inside = (x > 1) & (x < w - 2) & (y > 1) & (y < h - 2)
    return torch.where(inside[..., None], _newton(gx, gy, xx, xy, yy), 0.0)


def _dark(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    blurred = _blur(maps, BLUR, "constant")
    blurred *= maps.amax(dim=(2, 3), keepdim=True) / blurred.amax(dim=(2, 3), keepdim=True)
    return _taylor(blurred, x, y)


def _udp(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    logs = _blur(maps, BLUR, "reflect").clamp_(1e-3, 50.0).log_()

    def at(dx: int, dy: int) -> Tensor:
        return _at(logs, x + dx, y + dy)

    gx, gy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
    here, left, up, right, down = at(0, 0), at(-1, 0), at(0, -1), at(1, 0), at(0, 1)
    xx, yy = right - 2 * here + left, down - 2 * here + up
    xy = 0.5 * (at(1, 1) - right - down + 2 * here - left - up + at(-1, -1))
    epsilon = torch.finfo(torch.float32).eps
    return _newton(gx, gy, xx + epsilon, xy, yy + epsilon)


def _newton(gx: Tensor, gy: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    determinant = xx * yy - xy * xy
    return torch.stack((xy * gy - yy * gx, xy * gx - xx * gy), dim=-1) / determinant[..., None]


def _soft(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The mean of the cells round the peak, [N, K, 2 SOFT + 1, 2 SOFT + 1] of them at once."""
    h, w = maps.shape[-2:]
    window = torch.arange(-SOFT, SOFT + 1)
    columns, rows = x[..., None] + window, y[..., None] + window
    index = rows.clamp(0, h - 1)[..., :, None] * w + columns.clamp(0, w - 1)[..., None, :]
    cells = maps.flatten(2).gather(-1, index.flatten(2)).view(index.shape)
    weight = torch.exp(10.0 * (cells / _at(maps, x, y)[..., None, None] - 1.0))
    across = ((columns >= 0) & (columns < w))[..., None, :]
    weight *= across & ((rows >= 0) & (rows < h))[..., :, None]
    total = weight.sum(dim=(2, 3))
    moved = (weight * window).sum(dim=(2, 3)), (weight * window[:, None]).sum(dim=(2, 3))
    return torch.stack(moved, dim=-1) / total[..., None]


def _towards_second(maps: Tensor) -> Tensor:
    h, w = maps.shape[-2:]
    blurred = _blur(maps, WIDE, "constant").flatten(2)
    index = blurred.topk(2).indices
    first, second = torch.stack((index % w, index // w), dim=-1).float().unbind(dim=2)
    towards = second - first
    points = first + 0.25 * towards / towards.norm(dim=-1, keepdim=True)
    return points.clamp_(min=0.0).minimum(torch.tensor([w - 1.0, h - 1.0]))


def _blur(maps: Tensor, radius: int, border: str) -> Tensor:
    """With OpenCV's automatic sigma for that size, along rows and then columns.

    As products with banded matrices: convolutions of one channel take several times as long.
    """
    h, w = maps.shape[-2:]
    return _blur_matrix(h, radius, border).T @ (maps @ _blur_matrix(w, radius, border))


@functools.cache
def _blur_matrix(size: int, radius: int, border: str) -> Tensor:
    """[size, size]: what each cell (first) gives to each other."""
    cells = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (cells / (0.3 * (radius - 1) + 0.8)) ** 2)
    single = F.pad(torch.eye(size, dtype=torch.float64)[None], (radius, radius), mode=border)[0]
    return (single.unfold(1, 2 * radius + 1, 1) @ (taps / taps.sum())).float()
