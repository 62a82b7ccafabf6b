"""The project's own detector at work: two graphs, and what is chosen between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastpose import ops
from fastpose.crop import crop_people
from fastpose.detect.regions import pool_regions, select_proposals
from fastpose.engines import Graph
from fastpose.geometry import apply, frame_box
from fastpose.models.anchors import HEAD_WEIGHTS, clip, decode
from fastpose.models.spec import DetectorSpec
from fastpose.types import Boxes, Floats

PERSON = "person"
MOST = 100  # boxes of a frame, over all classes
CANDIDATES = 2000  # that Soft-NMS looks at: its time grows with their square
SOFTNESS = 0.5  # sigma of Soft-NMS


class TwoStageDetector:
    """Finds people by proposals and a head for each; see `models.fpn.FPNDetector`.

    A frame is fitted into the input and its features computed once; of the anchors, the promising
    ones go through the head in runs of a fixed number; overlapping results fade by Soft-NMS (Bodla
    et al., ICCV 2017). All classes compete for the 100 best places, then persons are picked (Chen
    et al., Cascaded Pyramid Network, CVPR 2018).

    Args:
        spec: the detector; one of its classes is person.
        proposer: image [1, 3, h, w] -> "p0", "p1", ... the pyramid's levels that are pooled,
            "objectness" [1, M], "deltas" [1, M, 4].
        head: "windows" [batch, C, pool, pool] -> "logits" [batch, classes + 1], "deltas"
            [batch, classes, 4].
        score: least score of a box that is kept, 0-1.
    """

    def __init__(self, spec: DetectorSpec, proposer: Graph, head: Graph, *, score: float) -> None:
        self._spec, self._proposer, self._head, self._floor = spec, proposer, head, score
        self._levels = [f"p{level}" for level in range(spec.pooled)]
        self._image = np.zeros((1, 3, *spec.size), np.float32)
        self._windows = np.zeros((spec.batch, spec.width, spec.pool, spec.pool), np.float32)

    def __call__(self, frames: Sequence[npt.NDArray[np.uint8]]) -> list[Boxes]:
        return [self._detect(frame) for frame in frames]

    def close(self) -> None:
        """Free both graphs."""
        self._proposer.close()
        self._head.close()

    @property
    def kind(self) -> str:
        """The runtime."""
        return self._proposer.kind

    @property
    def precision(self) -> str:
        """In which it computes; that of both halves where they differ, "/" between."""
        return "/".join(dict.fromkeys((self._proposer.precision, self._head.precision)))

    def _detect(self, frame: npt.NDArray[np.uint8]) -> Boxes:
        spec = self._spec
        box = frame_box(frame.shape[0], frame.shape[1])
        _, affine = crop_people(frame, box, spec.window, out=self._image)
        found = self._proposer({"image": self._image})
        proposals, promise = select_proposals(
            found["objectness"][0], found["deltas"][0], spec, spec.size, spec.proposals
        )
        proposals = proposals[promise >= spec.promising]
        if len(proposals) == 0:
            return Boxes.empty()
        boxes, scores = self._classify([found[name] for name in self._levels], proposals)
        boxes, scores = _persons(boxes, scores, spec.classes.index(PERSON), self._floor)
        # the input's edge is half a pixel before the centre of its first pixel, the frame's too
        corners = apply(affine, boxes.reshape(1, -1, 2).astype(np.float64) - 0.5) + 0.5
        height, width = frame.shape[:2]
        inside = clip(corners.reshape(-1, 4).astype(np.float32), (height, width))
        there = (inside[:, 2:] > inside[:, :2]).all(axis=1)
        return Boxes(inside[there], scores[there])

    def _classify(self, pyramid: Sequence[Floats], proposals: Floats) -> tuple[Floats, Floats]:
        """Boxes [P, classes, 4] in the input and scores [P, classes] of P proposals."""
        count, batch = len(proposals), self._spec.batch
        source = np.zeros(count, np.int64)
        windows = pool_regions(pyramid, proposals, source, self._spec)
        logits, deltas = [], []
        for start in range(0, count, batch):
            part = windows[start : start + batch]
            self._windows[: len(part)] = part  # what lies behind belongs to nobody
            given = self._head({"windows": self._windows})
            logits.append(given["logits"][: len(part)])
            deltas.append(given["deltas"][: len(part)])
        with np.errstate(over="ignore", invalid="ignore"):  # suppression drops such boxes
            boxes = decode(np.concatenate(deltas), proposals[:, None], HEAD_WEIGHTS)
            scores = _softmax(np.concatenate(logits))[:, 1:]
        return clip(boxes, self._spec.size), scores


def _persons(boxes: Floats, scores: Floats, person: int, floor: float) -> tuple[Floats, Floats]:
    """The persons [M, 4] among the best boxes [P, classes, 4] of all classes, surest first."""
    count, classes = scores.shape
    best = np.argsort(-scores.reshape(-1), kind="stable")[:CANDIDATES]
    kinds = np.tile(np.arange(classes), count)[best]
    boxes = boxes.reshape(-1, 4)[best]
    kept, faded = ops.suppress_boxes(
        boxes,
        scores.reshape(-1)[best],
        method="soft-gaussian",
        sigma=SOFTNESS,
        floor=floor,
        classes=kinds,
    )
    kept, faded = kept[:MOST], faded[:MOST]
    chosen = kinds[kept] == person
    return boxes[kept[chosen]], faded[chosen]


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
