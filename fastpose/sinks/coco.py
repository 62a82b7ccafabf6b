"""COCO results: what evaluators of the COCO key-point format read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.sinks.files import RecordFile, Sink, rounded
from fastpose.types import Frame, People

PERSON_CATEGORY = 1


class CocoSink(Sink):
    """One JSON list of `{image_id, category_id, keypoints, score, bbox}` over all frames.

    `keypoints` is [x, y, score] for each joint, and 0, 0, 0 where it was not found, as in COCO's
    ground truth; `score` is the box score times the mean score of the joints found, the usual
    ranking of top-down systems; `bbox` is [x, y, width, height]. `image_id` is the picture's name
    where that is a number, as in COCO's own files, else the frame's index.

    Args:
        path: the file.
        pictures: the frames are pictures with names of their own.
    """

    def __init__(self, path: Path, *, pictures: bool) -> None:
        super().__init__()
        self._pictures = pictures
        self._file = RecordFile(path, tail=b"\n]\n")
        self._file.append(b"[")
        self._separator = b"\n"

    def _write(self, frame: Frame, people: People) -> None:
        if not len(people):
            return
        rows = [json.dumps(row, allow_nan=False) for row in coco_results(people, self._id(frame))]
        self._file.append(self._separator + ",\n".join(rows).encode())
        self._separator = b",\n"

    def _id(self, frame: Frame) -> int:
        named = self._pictures and frame.name.isdecimal()
        return int(frame.name) if named else frame.index

    def _finish(self) -> None:
        self.files.append(self._file.finish())

    def _discard(self) -> None:
        self._file.discard()


def coco_results(people: People, image_id: int) -> list[dict[str, Any]]:
    """The rows of one frame's people, as `CocoSink` writes them."""
    found = np.isfinite(people.keypoints).all(axis=2) & np.isfinite(people.scores)
    scores = np.where(found, people.scores, 0)
    points = np.where(found[..., None], people.keypoints, 0)
    triples = np.concatenate((points, scores[..., None]), axis=2)
    triples = triples.reshape(len(people), 3 * len(people.skeleton))
    mean = scores.sum(axis=1) / np.maximum(found.sum(axis=1), 1)
    boxes = np.concatenate((people.boxes[:, :2], people.boxes[:, 2:] - people.boxes[:, :2]), axis=1)
    columns = zip(
        rounded(triples, 4), rounded(people.box_scores * mean, 6), rounded(boxes), strict=True
    )
    return [
        {
            "image_id": image_id,
            "category_id": PERSON_CATEGORY,
            "keypoints": keypoints,
            "score": score,
            "bbox": bbox,
        }
        for keypoints, score, bbox in columns
    ]
