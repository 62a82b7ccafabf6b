"""The one module that cuts windows: people out of frames, and training's augmented views."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.geometry import Doubles, boxes_to_affines

MAX_AREA = 4  # 16 samples an output pixel: beyond a reduction of 4 the eye and the network agree


@dataclass(frozen=True)
class Window:
    """How a network wants its windows.

    Attributes:
        size: (h, w) in pixels.
        mean, std: per channel, in units of 0-255, after `rgb`.
        rgb: channels are swapped, frames being BGR.
        convention: name of the rule from box to affine, `fastpose.geometry`.
        padding: a box is enlarged by this; a pair is for (x, y).
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rgb: bool
    convention: str
    padding: float | tuple[float, float]

    @property
    def border(self) -> float:
        """What is taken for pixels outside the frame: grey, as bright as the data set's mean."""
        return sum(self.mean) / len(self.mean)


def crop_people(
    frames: npt.NDArray[np.uint8],
    boxes: npt.NDArray[np.floating],
    window: Window,
    *,
    source: npt.NDArray[np.int32] | None = None,
    out: npt.NDArray[np.floating] | None = None,
) -> tuple[npt.NDArray[np.floating], Doubles]:
    """Cut one upright window round each box, normalised for the network.

    Args:
        frames: [H, W, 3] or [T, H, W, 3] uint8, BGR.
        boxes: [N, 4] (x0, y0, x1, y1) in frame pixels.
        window: what to cut.
        source: [N] int32, the frame of each box; may be None only for one frame.
        out: [N, 3, h, w], written in place, such as an engine's own input buffer.

    Returns:
        windows [N, 3, h, w] float32 and their affines [N, 2, 3] float64, window -> frame pixel.
    """
    affines = boxes_to_affines(
        boxes, window.size, padding=window.padding, convention=window.convention
    )
    return crop_affines(frames, affines, window, source=source, out=out), affines


def view_boxes(
    boxes: npt.NDArray[np.floating], views: tuple[float, ...]
) -> npt.NDArray[np.floating]:
    """Boxes [N, 4] enlarged about their centres by each of S factors, [N * S, 4], box by box."""
    if views == (1.0,):
        return boxes
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    reach = half[:, None] * np.asarray(views, boxes.dtype)[:, None]  # [N, S, 2]
    corners = np.concatenate((centre[:, None] - reach, centre[:, None] + reach), axis=2)
    return corners.reshape(-1, 4)


def crop_affines(
    frames: npt.NDArray[np.uint8],
    affines: Doubles,
    window: Window,
    *,
    source: npt.NDArray[np.int32] | None = None,
    out: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.floating]:
    """Cut windows by affines of any kind: turned, mirrored, sheared.

    A window that shrinks its source by f is sampled round(f) x round(f) times a pixel, 4 x 4 at
    most, so that people close to the camera are not aliased. Each window's number of samples
    depends on that window alone, never on the others of its batch.

    Args, returns: as `crop_people`.
    """
    batch = np.empty((len(affines), 3, *window.size), np.float32) if out is None else out
    areas = sample_counts(affines)
    small = affines.astype(np.float32)
    for rows in runs(areas):
        ops.warp(
            frames,
            small[rows],
            window.size,
            source=None if source is None else source[rows],
            mean=window.mean,
            std=window.std,
            swap_rb=window.rgb,
            border=window.border,
            area=int(areas[rows.start]),
            out=batch[rows],
        )
    return batch


def runs(keys: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Cut [N] keys into stretches of equal neighbours; no keys, no stretch."""
    edges = np.flatnonzero(np.diff(keys, prepend=np.nan, append=np.nan) != 0)
    yield from (slice(int(a), int(b)) for a, b in itertools.pairwise(edges))


def sample_counts(affines: Doubles) -> npt.NDArray[np.int64]:
    """[N] samples per axis for each window, from how much it shrinks its source."""
    linear = affines[:, :, :2].astype(np.float64)
    determinant = linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0]
    shrink = np.sqrt(np.abs(np.nan_to_num(determinant, nan=1.0, posinf=1.0, neginf=1.0)))
    return np.clip(np.rint(shrink), 1, MAX_AREA).astype(np.int64)


@dataclass(frozen=True)
class Augmentation:
    """Ranges of training's random views.

    Attributes:
        rotation: standard deviation in degrees, clipped at twice that.
        rotated: share of views that are turned at all.
        scale: standard deviation of the logarithm of the zoom, clipped at twice that.
        shift: largest shift, in box sizes, uniform.
        flip: share of mirrored views.
        half_body: share of views cut round the upper or the lower body alone, so that the other
            joints lie outside the window and must score low.
        gain: each channel is multiplied by a number from 1 - gain to 1 + gain.
        grey: share of views without colour.
    """

    rotation: float = 30.0
    rotated: float = 0.6
    scale: float = 0.2
    shift: float = 0.05
    flip: float = 0.5
    half_body: float = 0.15
    gain: float = 0.4
    grey: float = 0.1


def augment_boxes(
    boxes: npt.NDArray[np.floating],
    size: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    padding: float | tuple[float, float],
    convention: str,
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Random views round boxes: rotation, zoom, shift and mirror in one affine each.

    Returns:
        affines [N, 2, 3] window -> source pixel, and [N] which windows are mirrored.
    """
    n = len(boxes)
    turned = rng.random(n) < augmentation.rotated
    limit = 2 * augmentation.rotation
    angle = np.clip(rng.normal(0, augmentation.rotation, n), -limit, limit) * turned
    limit = 2 * augmentation.scale
    zoom = np.exp(np.clip(rng.normal(0, augmentation.scale, n), -limit, limit))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    extent = boxes[:, 2:] - boxes[:, :2]
    reach = extent.max(axis=1, keepdims=True) * augmentation.shift
    centre = centre + rng.uniform(-1, 1, (n, 2)) * reach
    half = extent * zoom[:, None] / 2
    flips = rng.random(n) < augmentation.flip
    affines = boxes_to_affines(
        np.concatenate((centre - half, centre + half), axis=1),
        size,
        padding=padding,
        convention=convention,
        rotation=angle,
        flip=flips,
    )
    return affines, flips
