"""Training windows for pins: random crops of the originals, at about their own scale."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fastpose.crop import Window
from fastpose.geometry import Doubles, boxes_to_affines, points_to_boxes

ZOOM = (0.8, 1.25)  # picture pixels for a window pixel


def random_windows(
    points: npt.NDArray[np.floating],
    pictures: npt.NDArray[np.integer],
    window: Window,
    rng: np.random.Generator,
    *,
    zoom: tuple[float, float] = ZOOM,
    margin: float = 8.0,
    allow_truncation: bool = False,
) -> Doubles:
    """Random crops of pictures, for `fastpose.crop.crop_affines`.

    A crop lies in its picture where there is room for that, anywhere with the same chance. It
    holds all of the joints unless it may truncate them; a pin too long for a crop enlarges it.

    Args:
        points: [N, P, 2] (x, y) of the joints in picture pixels; NaN where one is not known; one of
            each sample is.
        pictures: [N, 2] (h, w) of the pictures.
        window: the network's; its padding is not used.
        rng: decides.
        zoom: least and largest number of picture pixels for a window pixel; any number between,
            on a logarithmic scale.
        margin: window pixels between a joint and the window's edge, at least; less than half of a
            side.
        allow_truncation: a crop may leave out a joint, or all.

    Returns:
        [N, 2, 3] window -> picture pixel.

    Raises:
        ValueError: `margin` leaves no room in the window, or `zoom` is not positive and ascending.
    """
    size = np.array(window.size[::-1], float)  # (w, h), as points are (x, y)
    if not 0 <= margin < min(size) / 2:
        raise ValueError(f"margin must be 0 to less than {min(size) / 2:g} pixels, got {margin}")
    if not 0 < zoom[0] <= zoom[1]:
        raise ValueError(f"zoom must be positive and ascending, got {zoom}")
    n = len(points)
    scale = np.exp(rng.uniform(math.log(zoom[0]), math.log(zoom[1]), (n, 1)))
    held = points_to_boxes(points, np.isfinite(points).all(axis=-1)).astype(float)
    low, high = held[:, :2], held[:, 2:]
    if not allow_truncation:
        needed = (high - low) / (size - 1 - 2 * margin)
        scale = np.maximum(scale, needed.max(axis=1, keepdims=True))
    half = scale * size / 2
    # centres of the crops that lie in the picture; its middle where the picture is too small
    first, last = half - 0.5, pictures[:, ::-1] - half - 0.5
    first, last = np.minimum(first, (first + last) / 2), np.maximum(last, (first + last) / 2)
    if not allow_truncation:
        # a joint's place in the window is from margin to size - 1 - margin
        reach = half - (margin + 0.5) * scale
        first, last = first.clip(high - reach, low + reach), last.clip(high - reach, low + reach)
    centre = rng.uniform(first, last)
    boxes = np.concatenate((centre - half, centre + half), axis=1)
    return boxes_to_affines(boxes, window.size, convention=window.convention)
