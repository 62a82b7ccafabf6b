"""Between the two halves of the detector: which boxes go on, and their windows of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.geometry import boxes_to_affines
from fastpose.models.anchors import anchors, clip, decode, pooled_level
from fastpose.models.spec import DetectorSpec
from fastpose.ops.choose import Array
from fastpose.types import Floats

OVERLAP = 0.7  # two proposals of a level that overlap by more are one
SMALLEST = 2.0  # input pixels: the shortest side of a proposal


def select_proposals(
    logits: Floats, deltas: Floats, spec: DetectorSpec, size: tuple[int, int], limit: int
) -> tuple[Floats, Floats]:
    """The boxes of one picture that are worth a closer look.

    Of each level the anchors of the highest scores are moved to where their deltas say, cut off at
    the input's edges, and freed of duplicates (Ren et al., Faster R-CNN, NIPS 2015).

    Args:
        logits: [M] objectness of every anchor before the sigmoid.
        deltas: [M, 4] of every anchor; one with a number that is not finite is none.
        spec: the detector.
        size: (h, w) of the input.
        limit: most boxes.

    Returns:
        [P, 4] in input pixels from its outer edge, by falling score, and [P] scores from 0 to 1.
    """
    around, levels = anchors(spec, size)
    sound = np.isfinite(logits) & np.isfinite(deltas).all(axis=1)
    ranks = np.where(sound, logits, -np.inf)
    kept = np.concatenate(
        [start + _highest(ranks[start:stop], spec.per_level) for start, stop in _stretches(levels)]
    )
    kept = kept[sound[kept]]
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes are dropped
        boxes = clip(decode(deltas[kept], around[kept]), size)
        scores = 1 / (1 + np.exp(-logits[kept].astype(np.float64)))
    sides = boxes[:, 2:] - boxes[:, :2]
    scores[~(np.isfinite(sides) & (sides >= SMALLEST)).all(axis=1)] = np.nan
    order, found = ops.suppress_boxes(
        boxes, scores.astype(np.float32), iou=OVERLAP, floor=0.0, classes=levels[kept]
    )
    return boxes[order[:limit]], found[:limit]


def _highest(values: Floats, count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` highest, in no order."""
    if len(values) <= count:
        return np.arange(len(values))
    return np.argpartition(-values, count)[:count]


def _stretches(levels: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(levels, prepend=-1, append=-1))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def pool_regions(
    pyramid: Sequence[Array], boxes: Floats, source: npt.NDArray[np.int64], spec: DetectorSpec
) -> Array:
    """A window of features for every box: RoIAlign (He et al., Mask R-CNN, ICCV 2017).

    2 x 2 bilinear samples a cell. What lies outside a picture counts as 0.

    Args:
        pyramid: the levels that are pooled, [T, C, h / s, w / s] float32 each, numpy or torch.
        boxes: [R, 4] in input pixels from its outer edge, each with an area.
        source: [R] the picture of each.
        spec: the detector.

    Returns:
        [R, C, pool, pool], numpy or torch as the pyramid, differentiable in it.
    """
    size = (spec.pool, spec.pool)
    level = pooled_level(spec, boxes)
    parts = []
    for index, features in enumerate(pyramid):
        rows = np.flatnonzero(level == index)
        affines = boxes_to_affines(boxes[rows] / spec.strides[index] - 0.5, size, aspect="stretch")
        parts.append(
            ops.warp(
                features,
                _like(features, affines.astype(np.float32)),
                size,
                source=_like(features, source[rows]),
                layout="chw",
                area=2,
            )
        )
    place = np.argsort(np.argsort(level, kind="stable"), kind="stable")
    if isinstance(pyramid[0], np.ndarray):
        return np.concatenate(parts)[place]
    import torch

    return torch.cat(parts)[torch.from_numpy(place).to(parts[0].device)]


def _like(features: Array, values: npt.NDArray) -> Array:
    if isinstance(features, np.ndarray):
        return values
    import torch

    return torch.from_numpy(values).to(features.device)
