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

Indices = npt.NDArray[np.int64]

OVERLAP = 0.7  # two proposals of a level that overlap by more are one
SMALLEST = 2.0  # input pixels: the shortest side of a proposal
REGION_AREA = 2  # bilinear samples a cell of a window of features, on each axis


def select_proposals(
    logits: Floats,
    deltas: Floats,
    spec: DetectorSpec,
    size: tuple[int, int],
    limit: int,
    *,
    floor: float = 0.0,
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
        floor: their least score. What is below costs time, and changes nothing above.

    Returns:
        [P, 4] in input pixels from its outer edge, by falling score, and [P] scores from 0 to 1.
    """
    _, levels = anchors(spec, size)
    sound = np.isfinite(logits) & np.isfinite(deltas).all(axis=1)
    ranks = np.where(sound, logits, -np.inf)
    kept = np.concatenate(
        [start + _highest(ranks[start:stop], spec.per_level) for start, stop in _stretches(levels)]
    )
    kept = kept[sound[kept]]
    return choose_boxes(kept, logits[kept], deltas[kept], spec, size, limit, floor=floor)


def choose_boxes(
    kept: Indices,
    logits: Floats,
    deltas: Floats,
    spec: DetectorSpec,
    size: tuple[int, int],
    limit: int,
    *,
    floor: float = 0.0,
) -> tuple[Floats, Floats]:
    """`select_proposals` for those who have the highest anchors of each level already.

    Args:
        kept: [K] which anchors, rising.
        logits: [K] of these, finite.
        deltas: [K, 4] of these, finite.
        spec: as there.
        size: as there.
        limit: as there.
        floor: as there.

    Returns:
        As there.
    """
    around, levels = anchors(spec, size)
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes are dropped
        boxes = clip(decode(deltas, around[kept]), size)
        scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    sides = boxes[:, 2:] - boxes[:, :2]
    scores[~(np.isfinite(sides) & (sides >= SMALLEST)).all(axis=1)] = np.nan
    order, found = ops.suppress_boxes(
        boxes, scores.astype(np.float32), iou=OVERLAP, floor=floor, classes=levels[kept]
    )
    return boxes[order[:limit]], found[:limit]


def _highest(values: Floats, count: int) -> Indices:
    """Indices of the `count` highest, rising; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    least = np.partition(values, -count)[-count]
    above, level = np.flatnonzero(values > least), np.flatnonzero(values == least)
    return np.sort(np.concatenate((above, level[: count - len(above)])))


def _stretches(levels: Indices) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(levels, prepend=-1, append=-1))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def pool_regions(
    pyramid: Sequence[Array], boxes: Floats, source: Indices, spec: DetectorSpec
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
    level, affines = region_affines(boxes, spec)
    parts = []
    for index, features in enumerate(pyramid):
        rows = np.flatnonzero(level == index)
        parts.append(
            ops.warp(
                features,
                _like(features, affines[rows]),
                (spec.pool, spec.pool),
                source=_like(features, source[rows]),
                layout="chw",
                area=REGION_AREA,
            )
        )
    place = np.argsort(np.argsort(level, kind="stable"), kind="stable")
    if isinstance(pyramid[0], np.ndarray):
        return np.concatenate(parts)[place]
    import torch

    return torch.cat(parts)[torch.from_numpy(place).to(parts[0].device)]


def region_affines(boxes: Floats, spec: DetectorSpec) -> tuple[Indices, Floats]:
    """Where windows of features are cut from.

    Args:
        boxes: [R, 4] in input pixels from its outer edge, each with an area.
        spec: the detector.

    Returns:
        The pyramid's level [R] of each box, and affines [R, 2, 3], window -> cell of that level.
    """
    level = pooled_level(spec, boxes)
    # the input's edge is half a cell before the centre of a level's first cell
    cells = boxes / np.array(spec.strides, np.float32)[level, None] - 0.5
    affines = boxes_to_affines(cells, (spec.pool, spec.pool), aspect="stretch")
    return level, affines.astype(np.float32)


def _like(features: Array, values: npt.NDArray) -> Array:
    if isinstance(features, np.ndarray):
        return values
    import torch

    return torch.from_numpy(values).to(features.device)
