"""Average precision of boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastpose.datasets import BoxData, BoxSample, read_image
from fastpose.evaluate.report import Report
from fastpose.geometry import Doubles
from fastpose.types import Boxes

if TYPE_CHECKING:
    from fastpose.detect import Detector

OVERLAPS = np.arange(50, 100, 5) / 100  # those of COCO's mean
RECALLS = np.linspace(0, 1, 101)
FLOOR = 0.01  # least score of a box that a detector is asked for: the curve needs the unsure ones
RULE = (
    "101 recalls; each box, surest first, takes the free true box that it overlaps most; "
    "one that overlaps an ignored box by as much does not count; all boxes of a picture are taken"
)


def evaluate_detector(
    detector: Detector, data: BoxData, *, progress: Callable[[int], None] | None = None
) -> Report:
    """Run a detector over a data set and score it; see `evaluate_boxes`.

    Args:
        detector: opened with a low score floor, such as `FLOOR`.
        data: the pictures and their true boxes.
        progress: called after each picture with 1.

    Raises:
        DataError: a picture is missing or cannot be read.
    """
    found = []
    for sample in data.samples:
        found += detector([read_image(sample.image)])
        if progress:
            progress(1)
    return evaluate_boxes(data, found)


def evaluate_boxes(data: BoxData, found: Sequence[Boxes]) -> Report:
    """Average precision and recall of the boxes of one class.

    Precision is interpolated and averaged over 101 recalls (Lin et al., Microsoft COCO: Common
    Objects in Context, ECCV 2014). Each box, surest first, takes the free true box that it overlaps
    most, by intersection over union. A box that finds none and overlaps an ignored one by as much
    does not count, and an ignored box is no target (Everingham et al., The PASCAL Visual Object
    Classes Challenge, IJCV 2010). COCO's own tool differs twice: for an ignored box it divides by
    the found box alone, and it takes the 100 surest boxes of a picture where all count here.

    Args:
        data: the truth.
        found: the boxes of each of its pictures.

    Returns:
        Shares from 0 to 1: det_ap50 at an overlap of 0.5; det_ap, the mean over 0.50 to 0.95 in
        steps of 0.05; recall at 0.5. NaN where the set has no true box.

    Raises:
        ValueError: the pictures are not as many, or `data` has several classes.
    """
    if len(data.classes) != 1:
        raise ValueError(f"data must have one class, got {len(data.classes)}")
    if len(found) != len(data):
        raise ValueError(f"found must have {len(data)} entries, got {len(found)}")
    people = sum(int((~s.ignored).sum()) for s in data.samples)
    scores = np.concatenate([np.empty(0, np.float32), *(f.scores for f in found)])
    matches = [match(f, s) for f, s in zip(found, data.samples, strict=True)]
    hits, counts = (
        np.concatenate([np.empty((len(OVERLAPS), 0), bool), *(m[k] for m in matches)], axis=1)
        for k in (0, 1)
    )
    curves = [average_precision(scores[c], h[c], people) for h, c in zip(hits, counts, strict=True)]
    metrics = {
        "det_ap50": curves[0][0],
        "det_ap": float(np.mean([ap for ap, _ in curves])),
        "recall": curves[0][1],
    }
    return Report(metrics, images=len(data), people=people, rule=RULE, unit="share")


def match(
    found: Boxes, truth: BoxSample, overlaps: npt.NDArray[Any] = OVERLAPS
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """For T overlaps and N boxes: whether each is right [T, N], and whether it counts [T, N]."""
    hits = np.zeros((len(overlaps), len(found)), bool)
    counts = np.ones_like(hits)
    table = _overlap(found.boxes.astype(np.float64), truth.boxes.astype(np.float64))
    order = np.argsort(-found.scores, kind="stable")
    excused = table[:, truth.ignored].max(axis=1, initial=0)  # [N]
    for least, hit, count in zip(overlaps, hits, counts, strict=True):
        free = ~truth.ignored
        for i in order:
            best = np.where(free, table[i], 0)
            if best.max(initial=0) >= least:
                hit[i], free[best.argmax()] = True, False
            else:
                count[i] = excused[i] < least
    return hits, counts


def average_precision(
    scores: npt.NDArray[np.floating], hits: npt.NDArray[np.bool_], total: int
) -> tuple[float, float]:
    """Average precision and recall from 0 to 1; NaN where nothing was to be found.

    Args:
        scores: [N] of all boxes that count.
        hits: [N] whether each is right.
        total: how many there are to be found.
    """
    if not total:
        return float("nan"), float("nan")
    right = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    place = np.searchsorted(right / total, RECALLS)
    return float(np.append(best, 0)[place].mean()), float(hits.sum() / total)


def _overlap(a: Doubles, b: Doubles) -> Doubles:
    """[N, M] intersection over union of boxes [N, 4] and [M, 4]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
