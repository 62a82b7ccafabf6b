"""Several views of a person, joined on one fine grid, as convolutional pose machines do."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastpose.geometry import CONVENTIONS, Doubles, grid
from fastpose.types import Floats

REDUCES = ("mean", "sum", "max")


def merge_views(
    maps: Floats,
    views: tuple[float, ...],
    convention: str,
    size: tuple[int, int],
    *,
    enlarge: int = 1,
    reduce: str = "mean",
) -> tuple[Floats, Doubles]:
    """Join the maps that a network gave for views of one person which differ in size alone.

    Each view's map is enlarged by cubic convolution (Keys, Cubic Convolution Interpolation for
    Digital Image Processing, 1981; a = -0.5, borders mirrored, as in MATLAB) and laid on a grid
    that covers the widest view; outside its own window a view counts 0. Wei et al., Convolutional
    Pose Machines, CVPR 2016, do the same in two steps, by way of the picture's own pixels.

    Without rotation this is a product of matrices, rows @ map @ columns, and a sum of such
    products is one product of matrices set side by side.

    Args:
        maps: [S, C, h, w] float32; a value that is not finite counts as 0.
        views: S factors by which the box was enlarged about its centre.
        convention: a name of `fastpose.geometry.CONVENTIONS`, by which the windows were cut.
        size: (h, w) of the windows in pixels.
        enlarge: cells of the grid per cell of a view of factor 1, on each axis.
        reduce: "mean", "sum" or "max" of the views.

    Returns:
        merged [C, H, W] float32 and the affine [2, 3] from its cells to pixels of the first view's
        window.

    Raises:
        ValueError: an argument is not as above.
    """
    if maps.ndim != 4 or len(maps) != len(views) or not views:
        raise ValueError(
            f"maps must be [{len(views)}, C, h, w] with at least one view, got {list(maps.shape)}"
        )
    if enlarge < 1 or reduce not in REDUCES:
        raise ValueError(
            f"enlarge must be at least 1 and reduce one of {', '.join(REDUCES)}, "
            f"got {enlarge!r} and {reduce!r}"
        )
    cells = maps.shape[2:]
    rows, columns = (
        _axis_weights(axis, views, convention, size, cells, enlarge) for axis in (1, 0)
    )
    maps = np.where(np.isfinite(maps), maps, np.float32(0))
    wide = maps @ columns.weights.transpose(0, 2, 1)[:, None]  # [S, C, h, W]
    if reduce == "max":
        parts = (a @ b for a, b in zip(rows.weights, wide, strict=True))
        merged = functools.reduce(np.maximum, parts)
    else:
        count, channels, h, width = wide.shape
        beside = rows.weights.transpose(1, 0, 2).reshape(-1, count * h)
        merged = beside @ wide.transpose(1, 0, 2, 3).reshape(channels, count * h, width)
        if reduce == "mean":
            merged /= np.float32(count)
    affine = np.array([[columns.pitch, 0, columns.start], [0, rows.pitch, rows.start]])
    return merged, affine


@dataclass(frozen=True)
class _Axis:
    """One axis of the merged grid.

    Attributes:
        weights: [S, cells of the grid, cells of a view] float32.
        pitch, start: a cell of the grid lies at pitch * cell + start in the first view's window.
    """

    weights: Floats
    pitch: float
    start: float


@functools.lru_cache(maxsize=32)
def _axis_weights(
    axis: int,
    views: tuple[float, ...],
    convention: str,
    size: tuple[int, int],
    cells: tuple[int, int],
    enlarge: int,
) -> _Axis:
    """Weights along x (axis 0) or y (axis 1)."""
    affine = grid(convention, size, cells)
    scale, offset = affine[axis, axis], affine[axis, 2]  # cell of a view -> pixel of its window
    count = cells[1 - axis]
    middle = ((size[1 - axis] - CONVENTIONS[convention].pivot) / 2 - offset) / scale
    # a view of factor f has at `middle` + d what factor 1 would have at `middle` + f * d
    widest = max(views)
    low, high = (middle + widest * (edge - middle) for edge in (-0.5, count - 0.5))
    first = math.ceil((low + 0.5) * enlarge - 0.5)
    last = math.floor((high + 0.5) * enlarge - 0.5)
    places = (np.arange(first, last + 1) + 0.5) / enlarge - 0.5
    seen = [middle + (places - middle) / factor for factor in views]  # in cells of each view
    weights = np.stack([_cubic(cell, count) for cell in seen])
    pitch = scale / (enlarge * views[0])
    return _Axis(weights.astype(np.float32), pitch, scale * seen[0][0] + offset)


def _cubic(places: Doubles, count: int) -> Doubles:
    """[M, count] weights that read a row of `count` cells at M places; 0 beyond its edges."""
    taps = np.floor(places)[:, None] + np.arange(-1.0, 3.0)  # [M, 4]
    distance = np.abs(places[:, None] - taps)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    values = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    values *= ((places >= -0.5) & (places <= count - 0.5))[:, None]
    weights = np.zeros((len(places), count))
    np.add.at(weights, (np.arange(len(places))[:, None], _mirrored(taps, count)), values)
    return weights


def _mirrored(cells: Doubles, count: int) -> npt.NDArray[np.int64]:
    """Indices beyond the borders reflected, the outer cells counted twice."""
    index = cells.astype(np.int64) % (2 * count)
    return np.minimum(index, 2 * count - 1 - index)
