"""What a coarse-to-fine cascade's result means: where its fine windows lie, and so its joints.

The network and the reader of its results place the windows by the one rule that is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fastpose import ops
from fastpose.errors import ModelError
from fastpose.geometry import Doubles, compose
from fastpose.models.spec import ModelSpec
from fastpose.types import Floats

if TYPE_CHECKING:
    from torch import Tensor

Numbers = TypeVar("Numbers", Doubles, "Tensor")

FINE = 36  # cells of a fine map, a side
FINE_STRIDE = 2  # input pixels per cell of it
SNAP = 8  # windows start at multiples of this, the pixels per cell of the coarsest features


def place_windows(centres: Numbers) -> Numbers:
    """Corners of the windows nearest to being centred.

    Args:
        centres: (x, y) in input pixels, pixel centres at whole numbers, of any shape.

    Returns:
        likewise, in units of SNAP pixels and whole: a window spans the pixels from SNAP * corner
        on, FINE * FINE_STRIDE of them.
    """
    half = FINE * FINE_STRIDE / 2
    # to the nearest corner, upwards where two are as near: rounding to even would waver
    return (centres + (0.5 - half + SNAP / 2)) // SNAP


def locate_cascade(
    results: Floats, affines: Doubles, spec: ModelSpec, flipped: Floats | None
) -> tuple[Floats, Floats]:
    """The peak of each fine map, at its window's place; arguments as in `locate_joints`.

    Where it lies from the middle of its window is the paper's (dx, dy). The score is the height of
    the fine peak. A joint whose coarse or fine map has no peak, or is not finite, is missing.

    Raises:
        ModelError: a mirrored result was given. Its windows lie elsewhere, so that there are no
            two maps to average.
    """
    if flipped is not None:
        raise ModelError(f"{spec.name} has no flip test")
    n, joints = results.shape[:2]
    height, width = spec.cells
    coarse = results[..., : height * width].reshape(n, joints, height, width)
    fine = results[..., height * width :].reshape(n * joints, 1, spec.fine, spec.fine)
    cells, _ = ops.decode(coarse, method="argmax")
    corners = SNAP * place_windows((cells.astype(np.float64) + 0.5) * spec.stride - 0.5)
    points, scores = ops.decode(
        fine,
        method=spec.method,
        sigma=spec.sigma,
        peak_value=spec.peak_value,
        affines=_window_to_frame(corners, affines),
    )
    points, scores = points.reshape(n, joints, 2), scores.reshape(n, joints)
    found = np.asarray(np.isfinite(points).all(axis=2) & np.isfinite(results).all(axis=2))
    return np.where(found[..., None], points, np.nan), np.where(found, scores, 0.0)


def _window_to_frame(corners: Doubles, affines: Doubles) -> Doubles:
    """[N * K, 2, 3]: cell of a fine map -> frame pixel, of windows at `corners` [N, K, 2]."""
    grids = np.zeros((*corners.shape, 3))
    grids[..., 0, 0] = grids[..., 1, 1] = FINE_STRIDE
    grids[..., 2] = corners + (FINE_STRIDE - 1) / 2
    return compose(affines[:, None], grids).reshape(-1, 2, 3)
