"""The one module that cuts windows: people out of frames, and training's augmented views.

A cascade's windows on feature maps are cut here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.datasets import read_image
from fastpose.geometry import Doubles, boxes_to_affines, compose, frame_box
from fastpose.ops.choose import Array

if TYPE_CHECKING:
    from torch import Tensor

Frames: TypeAlias = "npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]]"

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
    frames: Frames,
    boxes: npt.NDArray[np.floating],
    window: Window,
    *,
    source: npt.NDArray[np.int32] | None = None,
    out: npt.NDArray[np.floating] | None = None,
) -> tuple[npt.NDArray[np.floating], Doubles]:
    """Cut one upright window round each box, normalised for the network.

    Args:
        frames: [H, W, 3] or [T, H, W, 3] uint8, BGR, or a sequence of [H, W, 3] of any sizes.
        boxes: [N, 4] (x0, y0, x1, y1) in frame pixels.
        window: what to cut.
        source: [N] int32, the frame of each box; may be None only for one frame.
        out: [N, 3, h, w], written in place, such as an engine's own input buffer.

    Returns:
        windows [N, 3, h, w] float32 and their affines [N, 2, 3] float64, window -> frame pixel.
    """
    affines = person_affines(boxes, window)
    return crop_affines(frames, affines, window, source=source, out=out), affines


@dataclass(frozen=True)
class Place:
    """Where in which picture a window is cut.

    Attributes:
        file: the picture.
        box: [4] (x0, y0, x1, y1) of the person in pixels; None is the whole picture, unpadded.
        rotation: degrees by which the window is turned, clockwise.
        flip: the window is mirrored.
        gain: the picture's brightness is multiplied by this.
    """

    file: Path
    box: npt.NDArray[np.floating] | None = None
    rotation: float = 0.0
    flip: bool = False
    gain: float = 1.0


def cut_places(
    places: Sequence[Place], window: Window, views: tuple[float, ...] = (1.0,)
) -> tuple[npt.NDArray[np.float32], Doubles]:
    """Cut all S views of N places; a picture is read once for places that follow each other.

    Args:
        places: at least one.
        window: what to cut.
        views: as `view_boxes`.

    Returns:
        windows [N * S, 3, h, w] float32 and their affines [N * S, 2, 3], window -> picture pixel.

    Raises:
        DataError: a picture is missing or cannot be read.
    """
    count = len(views)
    windows = np.empty((len(places) * count, 3, *window.size), np.float32)
    affines = np.empty((len(windows), 2, 3))
    read: Path | None = None
    for index, place in enumerate(places):
        if place.file != read:
            image, read = read_image(place.file), place.file
        rows = slice(index * count, (index + 1) * count)
        affines[rows] = place_affines(place, image.shape[:2], window, views)
        seen = image if place.gain == 1 else _brightened(image, place.gain)
        crop_affines(seen, affines[rows], window, out=windows[rows])
    return windows, affines


def place_affines(
    place: Place, size: tuple[int, ...], window: Window, views: tuple[float, ...] = (1.0,)
) -> Doubles:
    """[S, 2, 3] window -> picture pixel of the views of a place in a picture of `size` (h, w)."""
    whole = place.box is None
    boxes = frame_box(*size) if place.box is None else place.box[None]
    return boxes_to_affines(
        view_boxes(boxes, views),
        window.size,
        padding=1.0 if whole else window.padding,
        convention=window.convention,
        rotation=place.rotation,
        flip=place.flip,
    )


def _brightened(image: npt.NDArray[np.uint8], gain: float) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(image * np.float32(gain)), 0, 255).astype(np.uint8)


def person_affines(boxes: npt.NDArray[np.floating], window: Window) -> Doubles:
    """[N, 2, 3] window -> frame pixel, of an upright window round each box [N, 4]."""
    return boxes_to_affines(
        boxes, window.size, padding=window.padding, convention=window.convention
    )


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
    frames: Frames,
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
    small, areas = affines.astype(np.float32), sample_counts(affines)
    return cut_windows(frames, small, areas, window, source=source, out=out)


def cut_windows(
    frames: Frames | ops.FrameTable,
    affines: Array,
    areas: Array,
    window: Window,
    *,
    source: Array | None,
    out: Array | None,
    out_layout: str = "nchw",
) -> Array:
    """Cut windows as a network wants them, on the host or where the frames are.

    Args:
        frames: as `crop_people`, or by address.
        affines: [N, 2, 3] float32, window -> frame pixel.
        areas: [N] integers of `sample_counts`.
        window: what to cut.
        source: [N] integers, the frame of each window; may be None only for one frame.
        out: written in place: [N, 3, h, w], or [N, h, w, 3] for "nhwc".
        out_layout: "nchw" or "nhwc".

    Returns:
        The windows; `out` where it is given.
    """
    return ops.warp(
        frames,
        affines,
        window.size,
        source=source,
        mean=window.mean,
        std=window.std,
        swap_rb=window.rgb,
        border=window.border,
        area=areas,
        out_layout=out_layout,
        out=out,
    )


def cut_windows_at(
    at: ops.WindowAddresses, window: Window, *, dtype: str, out_layout: str, stream: int
) -> None:
    """`cut_windows` by addresses, on the current CUDA device: see `fastpose.ops.warp_at`."""
    ops.warp_at(
        at,
        window.size,
        mean=window.mean,
        std=window.std,
        swap_rb=window.rgb,
        border=window.border,
        dtype=dtype,
        out_layout=out_layout,
        stream=stream,
    )


def sample_counts(affines: Doubles) -> npt.NDArray[np.int64]:
    """[N] samples per axis for each window, from how much it shrinks its source."""
    x, y = np.asarray(affines, np.float64).transpose(1, 0, 2)
    shrink = np.sqrt(np.abs(x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]))
    # fmax and fmin take the other number in place of a NaN
    return np.fmin(np.fmax(np.rint(shrink), 1), MAX_AREA).astype(np.int64)


def crop_features(features: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut J square windows out of the feature maps of every picture, at whole cells.

    The gradient of a window is added to the cells that it was cut from; none flows to `corners`.
    In a graph that is being traced, and for types that have no kernel, the cells are gathered by
    plain torch operations with the same result.

    Args:
        features: [N, C, H, W], floating.
        corners: [N, J, 2] int64, (x, y) of the first cell of each window, inside the map or not.
        size: side of a window in cells.

    Returns:
        [N * J, C, size, size], the very values of `features`, 0 outside the maps.

    Raises:
        ValueError: an argument is not as above.
    """
    import torch

    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(
            f"features must be [N, C, H, W] floating, got {list(features.shape)} {features.dtype}"
        )
    n = features.shape[0]
    whole = not (corners.is_floating_point() or corners.is_complex())
    if corners.ndim != 3 or corners.shape[0] != n or corners.shape[2] != 2 or not whole:
        raise ValueError(
            f"corners must be [{n}, J, 2] whole numbers, got {list(corners.shape)} {corners.dtype}"
        )
    kernel = features.dtype in (torch.float32, torch.float16) and not features.is_meta
    if torch.compiler.is_compiling() or not kernel:
        return _gather_windows(features, corners, size)
    joints = corners.shape[1]
    affines = torch.eye(2, 3, device=features.device).repeat(n * joints, 1, 1)
    affines[:, :, 2] = corners.flatten(0, 1).to(affines)
    source = torch.arange(n, device=features.device).repeat_interleave(joints)
    name = str(features.dtype).removeprefix("torch.")
    windows: Tensor = ops.warp(
        features, affines, (size, size), source=source, layout="chw", dtype=name
    )
    return windows


def _gather_windows(features: Tensor, corners: Tensor, size: int) -> Tensor:
    """`crop_features` as one lookup of whole cells, which every runtime can do."""
    import torch

    n, channels, height, width = features.shape
    step = torch.arange(size, device=features.device)
    columns = (corners[..., 0, None] + step)[..., None, :]  # [N, J, 1, size]
    rows = (corners[..., 1, None] + step)[..., :, None]
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    picture = torch.arange(n, device=features.device)[:, None, None, None]
    row = picture * height + rows.clamp(0, height - 1)
    place = row * width + columns.clamp(0, width - 1)
    cells = features.permute(0, 2, 3, 1).reshape(-1, channels)
    windows = cells.index_select(0, place.flatten()).unflatten(0, (-1, size, size))
    windows = torch.where(inside.reshape(-1, size, size, 1), windows, 0.0)
    return windows.permute(0, 3, 1, 2)


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
        shear: largest shear, uniform: by so many pixels to the side for each pixel down.
        turn: largest rotation in degrees, uniform, in place of `rotation`.
        widen: the box is made so many times as large, between two factors, uniform, in place of
            `scale`.
        enlarge: as `widen`, but the picture is made so many times as large.
        crops: in place of all views of boxes, crops of the picture at random, of so many picture
            pixels for a window pixel, between two factors: see `fastpose.train.pins`.
    """

    rotation: float = 30.0
    rotated: float = 0.6
    scale: float = 0.2
    shift: float = 0.05
    flip: float = 0.5
    half_body: float = 0.15
    gain: float = 0.4
    grey: float = 0.1
    shear: float = 0.0
    turn: float | None = None
    widen: tuple[float, float] | None = None
    enlarge: tuple[float, float] | None = None
    crops: tuple[float, float] | None = None


def augment_boxes(
    boxes: npt.NDArray[np.floating],
    size: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    padding: float | tuple[float, float],
    convention: str,
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Random views round boxes: rotation, zoom, shift, shear and mirror in one affine each.

    Returns:
        affines [N, 2, 3] window -> source pixel, and [N] which windows are mirrored.
    """
    n = len(boxes)
    turned = rng.random(n) < augmentation.rotated
    angle = _angles(augmentation, n, rng) * turned
    zoom = _zooms(augmentation, n, rng)
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
    if augmentation.shear:
        limit = augmentation.shear
        affines = compose(affines, _shears(rng.uniform(-limit, limit, n), size))
    return affines, flips


def _angles(augmentation: Augmentation, count: int, rng: np.random.Generator) -> Doubles:
    """[N] degrees by which views are turned."""
    if augmentation.turn is not None:
        return rng.uniform(-augmentation.turn, augmentation.turn, count)
    limit = 2 * augmentation.rotation
    return np.clip(rng.normal(0, augmentation.rotation, count), -limit, limit)


def _zooms(augmentation: Augmentation, count: int, rng: np.random.Generator) -> Doubles:
    """[N] factors by which boxes are enlarged, and so the people in their windows made smaller."""
    if augmentation.widen is not None:
        return rng.uniform(*augmentation.widen, count)
    if augmentation.enlarge is not None:
        return 1 / rng.uniform(*augmentation.enlarge, count)
    limit = 2 * augmentation.scale
    zooms: Doubles = np.exp(np.clip(rng.normal(0, augmentation.scale, count), -limit, limit))
    return zooms


def _shears(factors: Doubles, size: tuple[int, int]) -> Doubles:
    """[N, 2, 3] that move a window's rows sideways, the more the farther from its middle row."""
    shears = np.tile(np.eye(2, 3), (len(factors), 1, 1))
    shears[:, 0, 1] = factors
    shears[:, 0, 2] = -factors * (size[0] - 1) / 2
    return shears
