"""Anchors, and boxes as steps from them: numpy alone, for prediction and training alike.

Boxes are (x0, y0, x1, y1) in pixels of the detector's input, counted from the outer edge of its
first pixel.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastpose.types import Floats

if TYPE_CHECKING:
    from fastpose.models.spec import DetectorSpec

LARGEST_STEP = math.log(1000 / 16)  # of a side's logarithm: keeps an untrained network finite
HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # the head's deltas are small; so scaled they are about 1
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@functools.lru_cache(maxsize=16)
def anchors(spec: DetectorSpec, size: tuple[int, int]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Every anchor of an input of `size` (h, w).

    Returns:
        boxes [M, 4] by level, row, column, then size and ratio as the spec lists them, centred on
        the cells; and the level [M] of each.
    """
    boxes, levels = [], []
    for level, (stride, scales) in enumerate(zip(spec.strides, spec.anchors, strict=True)):
        shapes = np.array(
            [(s / math.sqrt(r), s * math.sqrt(r)) for s in scales for r in spec.ratios]
        )
        y, x = np.meshgrid(
            (np.arange(-(-size[0] // stride)) + 0.5) * stride,
            (np.arange(-(-size[1] // stride)) + 0.5) * stride,
            indexing="ij",
        )
        centre = np.stack((x, y), -1)[:, :, None]
        around = np.concatenate((centre - shapes / 2, centre + shapes / 2), -1).reshape(-1, 4)
        boxes.append(around.astype(np.float32))
        levels.append(np.full(len(around), level))
    return np.concatenate(boxes), np.concatenate(levels)


def encode(boxes: Floats, references: Floats, weights: tuple[float, ...] = RPN_WEIGHTS) -> Floats:
    """Boxes [..., 4] as deltas from references [..., 4]: shifts in their sizes, logs of ratios.

    Girshick et al., Rich Feature Hierarchies, CVPR 2014. Both need an area.
    """
    centre, extent = _split(boxes)
    origin, unit = _split(references)
    deltas = np.concatenate(((centre - origin) / unit, np.log(extent / unit)), -1)
    return (deltas * np.array(weights)).astype(np.float32)


def decode(deltas: Floats, references: Floats, weights: tuple[float, ...] = RPN_WEIGHTS) -> Floats:
    """The inverse of `encode`; no side grows by more than 1000 / 16."""
    steps = deltas / np.array(weights, np.float32)
    origin, unit = _split(references)
    centre = origin + steps[..., :2] * unit
    half = unit * np.exp(np.minimum(steps[..., 2:], LARGEST_STEP)) / 2
    return np.concatenate((centre - half, centre + half), -1).astype(np.float32)


def _split(boxes: Floats) -> tuple[Floats, Floats]:
    """Centres and sides."""
    centre: Floats = (boxes[..., :2] + boxes[..., 2:]) / np.float32(2)
    return centre, boxes[..., 2:] - boxes[..., :2]


def clip(boxes: Floats, size: tuple[int, int]) -> Floats:
    """The part of boxes [..., 4] inside an input of `size` (h, w)."""
    limits = np.array([size[1], size[0]] * 2, np.float32)
    return np.clip(boxes, 0, limits)


def overlaps(boxes: Floats, others: Floats) -> tuple[Floats, Floats]:
    """What boxes [N, 4] and others [M, 4] share.

    Returns:
        intersection over union, and intersection over the area of `boxes`, [N, M] each.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared: Floats = (high - low).clip(min=0).prod(-1)
    area: Floats = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(-1)[:, None]
    union = area + (others[:, 2:] - others[:, :2]).clip(min=0).prod(-1)[None] - shared
    iou: Floats = shared / np.maximum(union, np.float32(1e-6))
    inside: Floats = shared / np.maximum(area, np.float32(1e-6))
    return iou, inside


def pooled_level(spec: DetectorSpec, boxes: Floats) -> npt.NDArray[np.int64]:
    """[N] the pyramid's level that a box is read from: the larger, the coarser.

    A box whose area is `spec.canonical` squared is read at stride 16 (Lin et al., Feature Pyramid
    Networks, CVPR 2017).
    """
    area = (boxes[:, 2:] - boxes[:, :2]).clip(min=1e-3).prod(axis=1)
    level = np.floor(np.log2(np.sqrt(area) / spec.canonical) + 1e-6) + spec.strides.index(16)
    return np.clip(level, 0, spec.pooled - 1).astype(np.int64)
