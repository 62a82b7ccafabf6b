"""People found by their centres: network C of the convolutional pose machines' release."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from fastpose.crop import crop_people
from fastpose.engines import Engine
from fastpose.geometry import apply, frame_box
from fastpose.models.registry import CPM_PADDING
from fastpose.types import Boxes, Floats

CENTRES = "cpm-person"
SCORE = 0.5  # least height of a centre, as in the released demonstration
POSE_WINDOW = 368  # input pixels of a pose network round a centre


class CentreDetector:
    """Finds people by peaks in a map of their centres; see `models.cpm.CPMPerson`.

    The demonstration for several people in the release of Wei et al., Convolutional Pose Machines,
    CVPR 2016: the frame is scaled once, as high as a pose network's window, and everybody in it is
    taken to be of the size that this network wants. Its map, enlarged by 8 with OpenCV's bicubic
    kernel, has a person wherever a pixel above 0.5 is not below one of its 8 neighbours.

    A box is square, and so large that a CPM's window round it is the released one: 368 pixels of
    the network's input. That makes it about as high as the person who was meant.

    Args:
        engine: of "cpm-person"; one map [1, h / 8, w / 8].
        score: least height of a peak, 0-1.
    """

    def __init__(self, engine: Engine, *, score: float = SCORE) -> None:
        self._engine, self._floor = engine, score

    def __call__(self, frames: Sequence[npt.NDArray[np.uint8]]) -> list[Boxes]:
        return [self._detect(frame) for frame in frames]

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    @property
    def kind(self) -> str:
        """The runtime."""
        return self._engine.manifest.kind

    @property
    def precision(self) -> str:
        """In which it computes."""
        return self._engine.manifest.precision

    def _detect(self, frame: npt.NDArray[np.uint8]) -> Boxes:
        spec = self._engine.manifest.spec
        whole = frame_box(*frame.shape[:2])
        _, affines = crop_people(frame, whole, spec.window, out=self._engine.buffer(1))
        places, scores = find_centres(self._engine.run(1)[0, 0], spec.stride, self._floor)
        centres = apply(affines[0], places)
        half = POSE_WINDOW / CPM_PADDING * affines[0, 0, 0] / 2
        boxes = np.concatenate((centres - half, centres + half), axis=1).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        return Boxes(boxes[order], scores[order].clip(max=1.0))


def find_centres(
    heights: Floats, enlarge: int, floor: float
) -> tuple[npt.NDArray[np.float64], Floats]:
    """Peaks of a map, enlarged by cubic convolution (OpenCV's, a = -0.75).

    Args:
        heights: [h, w].
        enlarge: pixels per cell.
        floor: a peak is higher than this.

    Returns:
        [N, 2] (x, y) in pixels, in row order, and [N] heights. Neighbours that are equally high are
        one peak, in their middle.
    """
    h, w = heights.shape
    enlarged = cv2.resize(heights, (w * enlarge, h * enlarge), interpolation=cv2.INTER_CUBIC)
    around = cv2.dilate(enlarged, np.ones((3, 3), np.uint8))
    peaks = ((enlarged == around) & (enlarged > floor)).astype(np.uint8)
    count, labels, _, middles = cv2.connectedComponentsWithStats(peaks, connectivity=8)
    rows, columns = np.nonzero(peaks)
    scores = np.empty(count, np.float32)
    scores[labels[rows, columns]] = enlarged[rows, columns]
    return middles[1:], scores[1:]
