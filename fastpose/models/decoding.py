"""Joints out of heat maps inside a network's graph, by operators that every runtime has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.geometry import grid
from fastpose.models.spec import ModelSpec
from fastpose.ops.decode import (
    CPN_RADIUS,
    FLAT,
    LOG_FLOOR,
    PEAK_DISTANCE,
    SOFT_SHARPNESS,
    UDP_EPSILON,
    UDP_RANGE,
    blur_radius,
    blur_taps,
)

LARGEST = torch.finfo(torch.float32).max
NAN = float("nan")


class Decode(nn.Module):
    """`ops.decode`, or `ops.decode_simcc`, as a module that can be traced; results are in cells.

    Reckoned in float32, whatever it is given. The first of equal maxima is looked for by comparing
    and taking the least place, which leaves no runtime a choice; and there is no convolution,
    which runtimes are free to make less precise. Points differ from `ops.decode` by rounding alone:
    in clear peaks by some 1e-5 cells; but where a map is all but level round its peak, or its two
    highest cells are all but equal, rounding decides. `ops.decode` cites the publications.

    Args:
        spec: of the network: `method`, `sigma`, `peak_value`, `peaks`, `background`, and for SimCC
            `split`, `convention` and `size`.

    Raises:
        ModelError: its joints are not peaks of its own results.
    """

    taps: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        check_decodable(spec)
        self.method, self.peaks, self.background = spec.method, spec.peaks, spec.background
        self.peak_value, self.split = spec.peak_value, spec.split
        radius = CPN_RADIUS if self.method == "cpn" else blur_radius(spec.sigma)
        taps = torch.tensor(blur_taps(radius), dtype=torch.float32)
        self.register_buffer("taps", taps, persistent=False)
        self.grid = grid(spec.convention, spec.size, spec.cells)

    def forward(self, results: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Heat maps [N, C, h, w], or SimCC's x and y [N, K, bins] -> joints [N, K, 3] float32.

        (x, y, score): x and y in cells of the maps, of SimCC those of a map as large as the input;
        NaN with score 0 for a missing joint. Several peaks of a map are side by side, highest
        first.
        """
        if isinstance(results, tuple):
            return self._read_vectors(*results)
        maps = _without_nan(results[:, :-1] if self.background else results)
        searched = _blur(maps, self.taps, "constant") if self.method == "cpn" else maps
        places = self._find_peaks(searched)
        x, y = (torch.cat(axis, dim=2) for axis in zip(*places, strict=True))  # [N, C, P]
        value = _Square(maps, x, y, 0).at(0, 0)
        found = (value > 0) & _finite(value) & _finite(maps.amax(dim=(2, 3)))[..., None] & (x >= 0)
        px, py = self._refine(maps, searched, x, y)
        return _joined(px, py, value / self.peak_value, found).flatten(1, 2)

    def _find_peaks(self, maps: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Column and row [N, C, 1] of each peak, highest first; -1 where a map has fewer."""
        if self.peaks == 1:
            return [_first_maximum(maps)]
        around = F.max_pool2d(maps, 3, 1, padding=1)
        left = torch.where((maps == around) & (maps > 0), maps, 0.0)
        column, row = _columns_and_rows(maps)
        places = []
        for _ in range(self.peaks):
            x, y = _first_maximum(left)
            there = left.amax(dim=(2, 3))[..., None] > 0
            away = (column - x[..., None]) ** 2 + (row - y[..., None]) ** 2
            left = torch.where(away >= PEAK_DISTANCE**2, left, 0.0)
            places.append((torch.where(there, x, -1.0), torch.where(there, y, -1.0)))
        return places

    def _refine(
        self, maps: Tensor, searched: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cells x, y [N, C, P] -> points."""
        h, w = maps.shape[2:]
        match self.method:
            case "argmax":
                return x, y
            case "cpn":
                return _refine_cpn(searched, x, y)
            case "soft":
                return _refine_soft(_Square(maps, x, y, len(self.taps) // 2 + 1), x, y)
            case "quarter" | "parabola":
                near = _Square(maps, x, y, 1)
                across, down = (x > 0) & (x < w - 1), (y > 0) & (y < h - 1)
                step_x = torch.where(across, self._step(near, 1, 0), 0.0)
                step_y = torch.where(down, self._step(near, 0, 1), 0.0)
            case "udp":
                step_x, step_y = _udp_step(_Square(self._udp_logs(maps), x, y, 1))
            case _:
                step_x, step_y = _taylor_step(_Square(self._logs(maps), x, y, 2))
                inside = (x > 1) & (x < w - 2) & (y > 1) & (y < h - 2)
                step_x, step_y = (torch.where(inside, step, 0.0) for step in (step_x, step_y))
        made = _finite(step_x) & _finite(step_y)
        return x + torch.where(made, step_x, 0.0), y + torch.where(made, step_y, 0.0)

    def _step(self, near: _Square, dx: int, dy: int) -> Tensor:
        """The way to go on one axis by "quarter" or "parabola"; 0 where it is not finite."""
        before, after = near.at(-dx, -dy), near.at(dx, dy)
        if self.method == "quarter":
            step = 0.25 * torch.sign(after - before)
        else:
            step = 0.5 * (before - after) / (before - 2.0 * near.at(0, 0) + after)
        return torch.where(_finite(step), step, 0.0)

    def _logs(self, maps: Tensor) -> Tensor:
        """The logarithms that "taylor" and "dark" take a Newton step on."""
        heights = maps / self.peak_value
        if self.method == "dark":
            highest = heights.amax(dim=(2, 3), keepdim=True)
            heights = _blur(heights, self.taps, "constant")
            blurred = heights.amax(dim=(2, 3), keepdim=True)
            heights = torch.where(blurred > 0, heights * (highest / blurred), heights)
        return heights.clamp(min=LOG_FLOOR).log()

    def _udp_logs(self, maps: Tensor) -> Tensor:
        return _blur(maps / self.peak_value, self.taps, "reflect").clamp(*UDP_RANGE).log()

    def _read_vectors(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = _without_nan(x), _without_nan(y)
        peaks = x.amax(dim=2), y.amax(dim=2)
        value = torch.minimum(*peaks)
        found = _finite(peaks[0]) & _finite(peaks[1]) & (value > 0)
        places = (_first_of_row(v)[..., 0] / self.split for v in (x, y))
        px, py = (
            (place - float(self.grid[axis, 2])) / float(self.grid[axis, axis])
            for axis, place in enumerate(places)
        )
        return _joined(px, py, value / self.peak_value, found)


def check_decodable(spec: ModelSpec) -> None:
    """Raise ModelError unless `Decode` can find the joints of that network."""
    reason = {
        "parts": "its parts are placed together, along a tree",
        "cascade": "its fine maps lie in windows",
    }.get(spec.output)
    if reason is None and (len(spec.views) > 1 or spec.enlarge > 1):
        reason = "its maps are enlarged, and those of several views joined, before a peak is sought"
    if reason:
        raise ModelError(f"{spec.name}: its joints cannot be found inside the graph: {reason}")


class _Square:
    """Values of [N, C, h, w] in the squares round the cells x, y [N, C, P].

    Attributes:
        values: [N, C, P, side * side], row by row; outside the map those of the nearest cells.
        inside: of the same shape, whether they are in the map.
        dx, dy: [side * side] from the middle.
    """

    def __init__(self, maps: Tensor, x: Tensor, y: Tensor, radius: int) -> None:
        height, width = maps.shape[2:]
        self._side, self._radius = 2 * radius + 1, radius
        number = torch.arange(self._side**2, device=maps.device)
        self.dx, self.dy = number % self._side - radius, number // self._side - radius
        column, row = x[..., None] + self.dx, y[..., None] + self.dy
        self.inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        values = maps.flatten(2).gather(2, place.flatten(2).long())
        self.values = values.reshape(place.shape)

    def at(self, dx: int, dy: int) -> Tensor:
        """[N, C, P] at x + dx, y + dy."""
        return self.values[..., (dy + self._radius) * self._side + dx + self._radius]


def _refine_soft(near: _Square, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    height = near.values / near.at(0, 0)[..., None]
    weight = torch.where(near.inside, torch.exp(SOFT_SHARPNESS * (height - 1.0)), 0.0)
    total = weight.sum(dim=3)
    return x + (weight * near.dx).sum(dim=3) / total, y + (weight * near.dy).sum(dim=3) / total


def _refine_cpn(searched: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    h, w = searched.shape[2:]
    column, row = _columns_and_rows(searched)
    here = (column == x[..., None]) & (row == y[..., None])
    second_x, second_y = _first_maximum(torch.where(here, 0.0, searched))
    dx, dy = second_x - x, second_y - y
    length = (dx * dx + dy * dy).sqrt().clamp(min=1.0)  # of whole cells: 0 or at least 1
    moved_x, moved_y = x + 0.25 * dx / length, y + 0.25 * dy / length
    return moved_x.clamp(0, w - 1), moved_y.clamp(0, h - 1)


def _taylor_step(logs: _Square) -> tuple[Tensor, Tensor]:
    at = logs.at
    gx, gy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
    xx = 0.25 * (at(2, 0) - 2.0 * at(0, 0) + at(-2, 0))
    yy = 0.25 * (at(0, 2) - 2.0 * at(0, 0) + at(0, -2))
    xy = 0.25 * (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1))
    return _newton(gx, gy, xx, xy, yy)


def _udp_step(logs: _Square) -> tuple[Tensor, Tensor]:
    at = logs.at
    gx, gy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
    xx = at(1, 0) - 2.0 * at(0, 0) + at(-1, 0)
    yy = at(0, 1) - 2.0 * at(0, 0) + at(0, -1)
    corners = at(1, 1) - at(1, 0) - at(0, 1) + 2.0 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)
    return _newton(gx, gy, xx + UDP_EPSILON, 0.5 * corners, yy + UDP_EPSILON)


def _newton(gx: Tensor, gy: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[Tensor, Tensor]:
    """-Hessian^-1 gradient; not finite where the Hessian has no inverse."""
    determinant = xx * yy - xy * xy
    determinant = torch.where(determinant.abs() < FLAT, 0.0, determinant)
    return (xy * gy - yy * gx) / determinant, (xy * gx - xx * gy) / determinant


def _first_maximum(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Column and row [N, C, 1] of the first maximum of [N, C, h, w], in row order."""
    width = maps.shape[3]
    place = _first_of_row(maps.flatten(2))
    # the middle of a cell, so that no way of dividing rounds it into the row before
    y = ((place + 0.5) / width).floor()
    return place - width * y, y


def _first_of_row(rows: Tensor) -> Tensor:
    """[N, C, M] -> [N, C, 1] the place of the first maximum."""
    count = rows.shape[2]
    places = torch.arange(count, dtype=torch.float32, device=rows.device)
    highest = rows.amax(dim=2, keepdim=True)
    first = torch.where(rows == highest, places, float(count)).amin(dim=2, keepdim=True)
    return first.clamp(max=count - 1)  # a row that became NaN has none


def _columns_and_rows(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [w] and rows [h, 1] of the cells."""
    h, w = maps.shape[2:]
    column = torch.arange(w, dtype=torch.float32, device=maps.device)
    return column, torch.arange(h, dtype=torch.float32, device=maps.device)[:, None]


def _blur(maps: Tensor, taps: Tensor, border: str) -> Tensor:
    """[N, C, h, w] blurred along rows, then columns; `border` as in `numpy.pad`."""
    count = len(taps)
    for axis in (3, 2):
        size = maps.shape[axis]
        cells = torch.arange(size * count, device=maps.device)
        seen = cells // count + cells % count  # from the first cell of the border on
        if border == "constant":
            around = (count // 2, count // 2)
            maps = F.pad(maps, around if axis == 3 else (0, 0, *around))
        else:
            period = max(1, 2 * size - 2)
            seen = (seen - count // 2) % period
            seen = torch.minimum(seen, period - seen)
        windows = maps.index_select(axis, seen).unflatten(axis, (size, count))
        weights = taps if axis == 3 else taps[:, None]
        maps = (windows * weights).sum(dim=axis + 1)
    return maps


def _without_nan(values: Tensor) -> Tensor:
    values = values.float()
    return torch.where(torch.isnan(values), 0.0, values)


def _finite(values: Tensor) -> Tensor:
    return values.abs() <= LARGEST  # false for NaN


def _joined(x: Tensor, y: Tensor, scores: Tensor, found: Tensor) -> Tensor:
    """[...] each -> [..., 3], NaN and 0 where nothing was found."""
    joints = (torch.where(found, value, NAN) for value in (x, y))
    return torch.stack((*joints, torch.where(found, scores, 0.0)), dim=-1)
