"""The project's own detector at work: two graphs, and what is chosen between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fastpose import ops
from fastpose.crop import crop_affines, person_affines
from fastpose.detect.fpn_graphs import GraphHalves
from fastpose.detect.regions import pool_regions, select_proposals
from fastpose.engines import Graph
from fastpose.geometry import Doubles, apply, frame_box
from fastpose.graph import goes_in_graphs
from fastpose.models.anchors import HEAD_WEIGHTS, clip, decode
from fastpose.models.spec import DetectorSpec
from fastpose.ops.choose import Array
from fastpose.types import Boxes, Floats

PERSON = "person"
MOST = 100  # boxes of a frame, over all classes
CANDIDATES = 2000  # that Soft-NMS looks at: its time grows with their square
SOFTNESS = 0.5  # sigma of Soft-NMS


class Halves(Protocol):
    """The two networks of a detector, wherever they compute.

    Attributes:
        reads_device: frames may be tensors on CUDA.
    """

    reads_device: bool

    def propose(self, frame: Array, affine: Doubles) -> Floats:
        """The promising boxes of a frame.

        Args:
            frame: [H, W, 3] uint8 BGR.
            affine: [1, 2, 3] input -> frame pixel.

        Returns:
            [P, 4] in input pixels from its outer edge, at most `spec.proposals`.

        Raises:
            EngineError: this is closed, or the runtime failed.
        """

    def classify(self, boxes: Floats) -> tuple[Floats, Floats]:
        """What is in boxes [P, 4] of the frame before, P > 0, in input pixels.

        Returns:
            logits [P, classes + 1] and deltas [P, classes, 4].

        Raises:
            EngineError: as `propose`.
        """

    def close(self) -> None:
        """Free both."""


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

    Raises:
        EngineError: the graphs are on CUDA, and cannot be captured there.
    """

    def __init__(self, spec: DetectorSpec, proposer: Graph, head: Graph, *, score: float) -> None:
        self._spec, self._graphs, self._floor = spec, (proposer, head), score
        self._halves = _halves(spec, proposer, head)

    def __call__(self, frames: Sequence[Array]) -> list[Boxes]:
        return [self._detect(frame) for frame in frames]

    def close(self) -> None:
        """Free both graphs."""
        self._halves.close()

    @property
    def kind(self) -> str:
        """The runtime."""
        return self._graphs[0].kind

    @property
    def precision(self) -> str:
        """In which it computes; that of both halves where they differ, "/" between."""
        return "/".join(dict.fromkeys(graph.precision for graph in self._graphs))

    @property
    def reads_device(self) -> bool:
        """Whether frames may be tensors on CUDA, which are read in place."""
        return self._halves.reads_device

    def _detect(self, frame: Array) -> Boxes:
        spec = self._spec
        height, width = frame.shape[:2]
        affine = person_affines(frame_box(height, width), spec.window)
        proposals = self._halves.propose(frame, affine)
        if len(proposals) == 0:
            return Boxes.empty()
        boxes, scores = self._classify(proposals)
        boxes, scores = _persons(boxes, scores, spec.classes.index(PERSON), self._floor)
        # the input's edge is half a pixel before the centre of its first pixel, the frame's too
        corners = apply(affine, boxes.reshape(1, -1, 2).astype(np.float64) - 0.5) + 0.5
        inside = clip(corners.reshape(-1, 4).astype(np.float32), (height, width))
        there = (inside[:, 2:] > inside[:, :2]).all(axis=1)
        return Boxes(inside[there], scores[there])

    def _classify(self, proposals: Floats) -> tuple[Floats, Floats]:
        """Boxes [P, classes, 4] in the input and scores [P, classes] of P proposals."""
        logits, deltas = self._halves.classify(proposals)
        with np.errstate(over="ignore", invalid="ignore"):  # suppression drops such boxes
            boxes = decode(deltas, proposals[:, None], HEAD_WEIGHTS)
            scores = _softmax(logits)[:, 1:]
        return clip(boxes, self._spec.size), scores


def _halves(spec: DetectorSpec, proposer: Any, head: Any) -> Halves:
    """The halves in CUDA graphs where they compute on CUDA, else as they are."""
    return (GraphHalves if goes_in_graphs(proposer) else HostHalves)(spec, proposer, head)


class HostHalves:
    """`Halves` whose arrays are the host's; arguments as in `TwoStageDetector`."""

    reads_device = False

    def __init__(self, spec: DetectorSpec, proposer: Graph, head: Graph) -> None:
        self._spec, self._proposer, self._head = spec, proposer, head
        self._image = np.zeros((1, 3, *spec.size), np.float32)
        self._windows = np.zeros((spec.batch, spec.width, spec.pool, spec.pool), np.float32)
        self._pyramid: list[Floats] = []

    def propose(self, frame: Array, affine: Doubles) -> Floats:
        """See `Halves`."""
        spec = self._spec
        crop_affines(frame, affine, spec.window, out=self._image)
        found = self._proposer({"image": self._image})
        self._pyramid = [found[f"p{level}"] for level in range(spec.pooled)]
        boxes, _ = select_proposals(
            found["objectness"][0],
            found["deltas"][0],
            spec,
            spec.size,
            spec.proposals,
            floor=spec.promising,
        )
        return boxes

    def classify(self, boxes: Floats) -> tuple[Floats, Floats]:
        """See `Halves`."""
        count, batch = len(boxes), self._spec.batch
        windows = pool_regions(self._pyramid, boxes, np.zeros(count, np.int64), self._spec)
        logits, deltas = [], []
        for start in range(0, count, batch):
            part = windows[start : start + batch]
            self._windows[: len(part)] = part  # what lies behind belongs to nobody
            given = self._head({"windows": self._windows})
            logits.append(given["logits"][: len(part)])
            deltas.append(given["deltas"][: len(part)])
        return np.concatenate(logits), np.concatenate(deltas)

    def close(self) -> None:
        """Free both graphs."""
        self._proposer.close()
        self._head.close()


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
