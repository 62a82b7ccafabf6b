"""Boxes, affines and heat-map grids: the only place that knows how conventions differ."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastpose.errors import ModelError

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Convention:
    """Two linear maps: box -> window, and heat-map cell -> input pixel.

    With box centre c, box size b and output size s, per axis, output pixel u lies at source pixel
    c + (u - (s - pivot) / 2) * b / (s - shrink). With stride t and n cells, cell p lies at input
    pixel scale * p + offset, where scale is t or, `spread`, (s - 1) / (n - 1).

    Attributes:
        pivot: 1 where pixel centres lie at whole numbers and the window is centred on them, 0
            where the window's corner is taken for a pixel centre.
        shrink: 1 where lengths are measured between the outer pixel centres, else 0.
        spread: first and last cell lie on first and last input pixel.
        offset: in strides, less `centred` / 2 pixels.
        centred: see `offset`.
        flip_shift: cells by which mirrored-back maps are shifted right before they are averaged.
    """

    pivot: int
    shrink: int
    spread: bool
    offset: float
    centred: int
    flip_shift: int


CONVENTIONS = {
    # ours: pixels and cells are areas, and everything mirrors exactly
    "symmetric": Convention(1, 0, False, 0.5, 1, 0),
    # Xiao et al., Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018
    "msra": Convention(0, 0, False, 0.0, 0, 1),
    # Huang et al., The Devil is in the Details: Delving into Unbiased Data Processing, CVPR 2020
    "udp": Convention(1, 1, True, 0.0, 0, 0),
    # Chen et al., Cascaded Pyramid Network for Multi-Person Pose Estimation, CVPR 2018
    "cpn": Convention(1, 0, False, 0.5, 0, 0),
    # Newell et al., Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016
    "hourglass": Convention(1, 0, False, 0.5, 0, 0),
    # Wei et al., Convolutional Pose Machines, CVPR 2016
    "caffe": Convention(1, 0, False, 0.5, 1, 0),
}


def _rule(name: str) -> Convention:
    """Return the convention called `name`.

    Raises:
        ModelError: there is none; the text lists those there are.
    """
    try:
        return CONVENTIONS[name]
    except KeyError:
        known = ", ".join(CONVENTIONS)
        raise ModelError(f"unknown convention {name!r}; known: {known}") from None


def frame_box(height: int, width: int) -> npt.NDArray[np.float32]:
    """[1, 4] the box round a whole frame: from the outer edge of its first pixel to the last's."""
    return np.array([[-0.5, -0.5, width - 0.5, height - 0.5]], np.float32)


def points_to_boxes(
    points: npt.NDArray[np.floating], valid: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Smallest boxes round points.

    Args:
        points: [N, K, 2] (x, y).
        valid: [N, K] which points count.

    Returns:
        [N, 4] (x0, y0, x1, y1); NaN where no point of a row counts.
    """
    low = np.where(valid[..., None], points, np.inf).min(axis=1)
    high = np.where(valid[..., None], points, -np.inf).max(axis=1)
    boxes = np.concatenate((low, high), axis=1)
    boxes[~valid.any(axis=1)] = np.nan
    return boxes.astype(np.float32)


def boxes_to_affines(
    boxes: npt.NDArray[np.floating],
    size: tuple[int, int],
    *,
    padding: float | tuple[float, float] = 1.0,
    aspect: str = "fit",
    convention: str = "symmetric",
    rotation: float | npt.NDArray[np.floating] = 0.0,
    flip: bool | npt.NDArray[np.bool_] = False,
) -> Doubles:
    """Affines that cut one window of `size` round each box.

    Args:
        boxes: [N, 4] (x0, y0, x1, y1) in source pixels.
        size: (h, w) of the windows in pixels.
        padding: the box is enlarged by this about its centre; a pair is for (x, y).
        aspect: "fit" then grows the box's shorter side to the window's aspect, so that nothing is
            distorted; "stretch" leaves it.
        convention: a name of `CONVENTIONS`.
        rotation: degrees, one number or [N]: the window is turned clockwise (as seen on a screen)
            about the box's centre, so the person in it turns counter-clockwise.
        flip: one bool or [N]: the window is mirrored, its columns reversed.

    Returns:
        [N, 2, 3] float64, window pixel (u, v, 1) -> source pixel (x, y). A box that is not finite
        or has no area gives an affine of NaN, for which `ops.warp` returns border.

    Raises:
        ValueError: an argument is not as above.
        ModelError: no convention has that name.
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [N, 4], got {list(boxes.shape)}")
    if not isinstance(padding, (int, float, tuple)):
        padding = tuple(np.ravel(padding).tolist())
    height, width = size
    choices = (height, width), padding, aspect, convention
    if isinstance(rotation, (int, float)) and isinstance(flip, (bool, int)):
        per_pixel, layout = _plan_of_numbers(*choices, rotation, flip)
    else:
        for name, value in (("rotation", rotation), ("flip", flip)):
            if np.shape(value) not in ((), (len(boxes),)):
                came = list(np.shape(value))
                raise ValueError(f"{name} must be one value or [{len(boxes)}], got {came}")
        per_pixel, layout = _plan(*choices, rotation, flip)
    # For a few people this takes as long as numpy's calls, so there are few: what is NaN makes its
    # whole row NaN in both products. A box has the same bits alone and among others.
    measures = np.where(np.isfinite(boxes), boxes, np.nan) @ _MEASURES
    sides = measures[:, :2]
    sides *= per_pixel
    sides[sides <= 0] = np.nan
    if aspect == "fit":
        sides[:] = np.maximum.reduce(sides, axis=1, keepdims=True)
    parts = sides[:, :, None] * layout
    affines: Doubles = parts[:, 0] + parts[:, 1]
    affines[:, 2::3] += measures[:, 2:]
    return affines.reshape(-1, 2, 3)


# (x0, y0, x1, y1) -> width, height and centre
_MEASURES = np.array(((-1, 0, 0.5, 0), (0, -1, 0, 0.5), (1, 0, 0.5, 0), (0, 1, 0, 0.5)))


def _plan(
    size: tuple[int, int],
    padding: float | tuple[float, ...],
    aspect: str,
    convention: str,
    rotation: float | npt.NDArray[np.floating],
    flip: bool | npt.NDArray[np.bool_],
) -> tuple[Doubles, Doubles]:
    """How `boxes_to_affines` gets from a box to its window.

    Returns:
        [2] source pixels per window pixel, along x and y, for each pixel of the box's width and
        height; and [2, 6] or [N, 2, 6], of which these are the weights in the sum that is, with the
        box's centre, the affine.
    """
    if aspect not in ("fit", "stretch"):
        raise ValueError(f"aspect must be fit or stretch, got {aspect!r}")
    pad_x, pad_y = np.broadcast_to(padding, 2).tolist()
    if not (0 < pad_x < np.inf and 0 < pad_y < np.inf):
        raise ValueError(f"padding must be positive and finite, got {padding}")
    rule = _rule(convention)
    height, width = size
    across, scale_y = width / (width - rule.shrink), height / (height - rule.shrink)
    middle, pivot_y = (width - rule.pivot) / 2, (height - rule.pivot) / 2
    # a mirrored window counts its columns from the other end
    scale_x = np.where(flip, -across, across)
    pivot_x = np.where(flip, width - 1 - middle, middle)
    angle = np.deg2rad(np.asarray(rotation, np.float64))
    cos, sin = np.cos(angle), np.sin(angle)
    layout = np.zeros((*np.broadcast(angle, scale_x).shape, 2, 6))
    layout[..., 0, 0], layout[..., 0, 3] = cos * scale_x, sin * scale_x
    layout[..., 1, 1], layout[..., 1, 4] = -sin * scale_y, cos * scale_y
    layout[..., 0, 2::3] = -layout[..., 0, ::3] * np.expand_dims(pivot_x, -1)
    layout[..., 1, 2::3] = -layout[..., 1, 1::3] * pivot_y
    return np.array((pad_x / width, pad_y / height)), layout


_plan_of_numbers = functools.lru_cache(maxsize=64)(_plan)  # the same for a network's every frame


def compose(outer: Doubles, inner: Doubles) -> Doubles:
    """The affine that applies `inner`, then `outer`: [..., 2, 3] each, broadcast."""
    linear = outer[..., :2] @ inner[..., :2]
    offset = outer[..., :2] @ inner[..., 2:] + outer[..., 2:]
    return np.concatenate((linear, offset), axis=-1)


def invert(affines: Doubles) -> Doubles:
    """The inverse affines, [..., 2, 3] float64; NaN where there is none."""
    a, b, c, d = (affines[..., i, j].astype(np.float64) for i in (0, 1) for j in (0, 1))
    determinant = a * d - b * c
    determinant = np.where(determinant == 0, np.nan, determinant)
    linear = np.stack((np.stack((d, -b), -1), np.stack((-c, a), -1)), -2)
    linear = linear / determinant[..., None, None]
    return np.concatenate((linear, -(linear @ affines[..., 2:])), axis=-1)


def apply(affines: Doubles, points: npt.NDArray[np.floating]) -> Doubles:
    """Map points [..., P, 2] by affines [..., 2, 3] of the same leading shape."""
    return points @ np.swapaxes(affines[..., :2], -1, -2) + affines[..., None, :, 2]


def grid(convention: str, size: tuple[int, int], cells: tuple[int, int]) -> Doubles:
    """[2, 3] affine: heat-map cell -> input pixel.

    Args:
        convention: a name of `CONVENTIONS`.
        size: (h, w) of the network's input in pixels.
        cells: (h, w) of its heat maps.
    """
    rule = _rule(convention)
    affine = np.zeros((2, 3))
    for axis, (s, n) in enumerate(((size[1], cells[1]), (size[0], cells[0]))):
        stride = s / n
        affine[axis, axis] = (s - 1) / (n - 1) if rule.spread and n > 1 else stride
        affine[axis, 2] = rule.offset * stride - rule.centred / 2
    return affine


def cells_to_frame(
    affines: Doubles, convention: str, size: tuple[int, int], cells: tuple[int, int]
) -> Doubles:
    """[N, 2, 3]: heat-map cell -> source pixel, for windows cut by `affines` [N, 2, 3]."""
    return compose(np.asarray(affines, np.float64), grid(convention, size, cells))
