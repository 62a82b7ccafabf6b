"""Average precision of boxes, for tests that compare a detector with its published figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastpose.types import Boxes


def det_ap50(annotations: Path, detect: Callable[[Path], Boxes]) -> tuple[float, float]:
    """Average precision over 101 recalls and the recall itself, at an overlap of 0.5, from 0 to 1.

    Each box, surest first, takes the free true box that it overlaps most. A box that finds none and
    overlaps a crowd, or an object marked as difficult, does not count (Everingham et al., The
    PASCAL Visual Object Classes Challenge, IJCV 2010).

    Args:
        annotations: a COCO JSON file of people; pictures lie in `images` beside it.
        detect: gives the boxes of a picture's file.
    """
    data = json.loads(annotations.read_text())
    by_image: dict[int, list] = {image["id"]: [] for image in data["images"]}
    for a in data["annotations"]:
        by_image[a["image_id"]].append(a)
    scores, hits, total = [], [], 0
    for image in data["images"]:
        found = detect(annotations.parent / "images" / image["file_name"])
        truth = by_image[image["id"]]
        ignored = np.array([bool(a["iscrowd"] or a.get("difficult")) for a in truth], bool)
        hit, counts = match(found, np.array([a["bbox"] for a in truth]).reshape(-1, 4), ignored)
        scores.append(found.scores[counts])
        hits.append(hit[counts])
        total += int((~ignored).sum())
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right = np.cumsum(np.concatenate(hits)[order])
    recall = right / total
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    place = np.searchsorted(recall, np.linspace(0, 1, 101))
    return float(np.append(precision, 0)[place].mean()), float(recall[-1])


def match(found: Boxes, truth: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each box: whether it is right, and whether it counts; truth [M, 4] is x, y, w, h."""
    hit, counts = np.zeros(len(found), bool), np.ones(len(found), bool)
    free = ~ignored
    low, high = truth[:, :2], truth[:, :2] + truth[:, 2:]
    for i in np.argsort(-found.scores, kind="stable"):
        box = found.boxes[i].astype(np.float64)
        sides = np.minimum(high, box[2:]) - np.maximum(low, box[:2])
        shared = np.maximum(sides, 0).prod(axis=1)
        own = (box[2:] - box[:2]).prod()
        union = own + truth[:, 2:].prod(axis=1) - shared
        overlap = shared / np.maximum(union, 1e-9)
        best = np.where(free, overlap, 0)
        if len(truth) and best.max() >= 0.5:
            hit[i], free[best.argmax()] = True, False
        elif (overlap[ignored] >= 0.5).any():
            counts[i] = False
    return hit, counts
