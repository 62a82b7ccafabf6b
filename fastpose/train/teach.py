"""Boxes for pictures whose joints alone are annotated: from the joints, and from a teacher."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastpose.datasets import BoxData, BoxSample, PoseData, read_image
from fastpose.detect import Detector
from fastpose.geometry import points_to_boxes
from fastpose.models.anchors import clip, overlaps
from fastpose.types import Boxes, Floats

CLASSES = ("person",)  # of what is taught
SURE, DOUBTFUL = 0.5, 0.15  # of a teacher's score: a person; perhaps one, and then ignored
SAME = 0.5  # overlap from which on a taught box is the annotated person
PERHAPS = 0.3  # overlap from which on it may be, and is no second person
MARGIN = 0.1  # of the extent of the joints, which lie inside the body


def teach_boxes(
    data: PoseData, teacher: Detector, progress: Callable[[int], None] = lambda count: None
) -> BoxData:
    """The people of pictures in which one is annotated by joints.

    The annotated person's box is the teacher's that overlaps the joints' extent most, or, where
    none does so by half, that extent with a margin. Whom else the teacher is sure of is a target
    too; what it doubts is ignored, being neither a target nor a fault.

    Args:
        data: the pictures.
        teacher: opened with a least score of `DOUBTFUL` or lower.
        progress: called with the number of pictures done since the last call.
    """
    samples = []
    for sample in data.samples:
        image = read_image(sample.image)
        extent = points_to_boxes(sample.joints[None], sample.labelled[None])
        boxes, ignored = combine(extent, teacher([image])[0], (image.shape[0], image.shape[1]))
        kinds = np.zeros(len(boxes), np.int64)
        size = (image.shape[0], image.shape[1])
        samples.append(BoxSample(sample.image, size, boxes, kinds, ignored))
        progress(1)
    return BoxData(data.name, CLASSES, tuple(samples), data.split)


def combine(extent: Floats, taught: Boxes, size: tuple[int, int]) -> tuple[Floats, np.ndarray]:
    """One picture's boxes [M, 4], and [M] which of them are ignored.

    Args:
        extent: [1, 4] of the annotated joints, pixel centres at whole numbers; NaN where none is.
        taught: what the teacher sees.
        size: (h, w) of the picture.
    """
    boxes = clip(taught.boxes, size)
    doubted = taught.scores < SURE
    kept = (taught.scores >= DOUBTFUL) & (boxes[:, 2:] - boxes[:, :2] > 1).all(axis=1)
    boxes, doubted = boxes[kept], doubted[kept]
    if not np.isfinite(extent).all():
        return boxes, doubted
    margin = MARGIN * (extent[:, 2:] - extent[:, :2]) + 1
    around = np.concatenate((extent[:, :2] - margin, extent[:, 2:] + margin), axis=1)
    own = clip((around + 0.5).astype(np.float32), size)
    overlap = overlaps(own, boxes)[0][0]
    if len(boxes) and overlap.max() >= SAME:
        doubted[overlap.argmax()] = False
        return boxes, doubted
    doubted |= overlap >= PERHAPS
    return np.concatenate((boxes, own)).astype(np.float32), np.append(doubted, False)
