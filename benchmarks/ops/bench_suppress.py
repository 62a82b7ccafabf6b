"""`ops.suppress_boxes` and `ops.suppress_poses`, beside their references and other greedy NMS.

Candidates are what detectors leave of a frame: 20 boxes, or 5 poses, around each person.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
from beside import obstacle, within
from suite import Beside

from fastpose.ops import suppress_boxes, suppress_poses

BOXES, POSES, JOINTS = 20, 5, 17
IOU, OKS = 0.5, 0.9
# What takes twice its time does not pass: measured are 3.4 to 4.2 and, of that, half.
LEAST_OPENCV = {8: 2.2}

Indices = npt.NDArray[np.int64]


def candidates(people: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [people * BOXES, 4] (x0, y0, x1, y1) in whole pixels, and scores without equal ones."""
    random = np.random.default_rng(people)
    corner = np.repeat(random.integers(0, 1800, (people, 2)), BOXES, axis=0)
    sides = np.repeat(random.integers(40, 300, (people, 2)), BOXES, axis=0)
    shaken = random.integers(-12, 13, (2, people * BOXES, 2))
    boxes = np.concatenate((corner + shaken[0], corner + sides + shaken[1]), axis=1)
    scores = random.permutation(people * BOXES) + 1
    return boxes.astype(np.float32), (scores / (people * BOXES)).astype(np.float32)


def poses(people: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints [people * POSES, JOINTS, 2], scores, areas, and the sigmas of the joints."""
    random = np.random.default_rng(people)
    found = np.repeat(random.uniform(0, 1800, (people, 1, 2)), POSES, axis=0)
    found = found + np.repeat(random.uniform(0, 300, (people, JOINTS, 2)), POSES, axis=0)
    found += random.normal(0, 4, found.shape)
    scores, areas = random.random(len(found)), random.uniform(2e4, 6e4, len(found))
    sigmas = random.uniform(0.026, 0.107, JOINTS)
    keypoints, scores, areas, sigmas = (
        array.astype(np.float32) for array in (found, scores, areas, sigmas)
    )
    return keypoints, scores, areas, sigmas


def same(ours: Indices, others: npt.ArrayLike) -> str:
    """What is kept must be the same, in the same order; raises `WrongAnswerError`."""
    others = np.asarray(others)
    if len(ours) == len(others):
        return within(float((ours != others).sum()), 0.0, "of what is kept")
    return within(abs(len(ours) - len(others)), 0.0, "more or less kept")


def in_numpy(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """The usual loop: the best is kept, and what overlaps it is left out from then on."""
    x0, y0, x1, y1 = boxes.T
    areas = (x1 - x0) * (y1 - y0)
    order, kept = scores.argsort()[::-1], []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(best)
        width = np.minimum(x1[best], x1[rest]) - np.maximum(x0[best], x0[rest])
        height = np.minimum(y1[best], y1[rest]) - np.maximum(y0[best], y0[rest])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        order = rest[shared <= IOU * (areas[best] + areas[rest] - shared)]
    return kept


def with_opencv(boxes: np.ndarray, scores: np.ndarray) -> Callable[[], npt.ArrayLike]:
    """Its `NMSBoxes`, which takes corner and sides."""
    rectangles = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    return functools.partial(cv2.dnn.NMSBoxes, rectangles.astype(np.float64), scores, 0.0, IOU)


def with_torchvision(boxes: np.ndarray, scores: np.ndarray, kept: Indices) -> Beside:
    if why := obstacle("torchvision"):
        return Beside(absent=why)
    import torch
    import torchvision

    tensors = torch.from_numpy(boxes), torch.from_numpy(scores)
    call = functools.partial(torchvision.ops.nms, *tensors, IOU)
    return Beside(call, lambda: same(kept, call()), version=torchvision.__version__)


def bench_suppress_boxes(timed, people):
    boxes, scores = candidates(people)
    ours = functools.partial(suppress_boxes, boxes, scores, iou=IOU)
    slow = functools.partial(ours, backend="reference")
    plain, theirs = functools.partial(in_numpy, boxes, scores), with_opencv(boxes, scores)
    kept = ours()[0]
    timed(
        "ops",
        "suppress_boxes",
        {"people": people, "method": "hard", "backend": "cpp"},
        ours,
        check=lambda: f"reference: {same(kept, slow()[0])}",
        beside={
            "reference": Beside(slow),
            "numpy": Beside(plain, lambda: same(kept, plain()), version=np.__version__),
            "opencv": Beside(
                theirs,
                lambda: same(kept, theirs()),
                at_least=LEAST_OPENCV.get(people),
                version=cv2.__version__,
            ),
            "torchvision": with_torchvision(boxes, scores, kept),
        },
    )


def bench_suppress_poses(timed, people):
    keypoints, scores, areas, sigmas = poses(people)
    ours = functools.partial(suppress_poses, keypoints, scores, areas, sigmas=sigmas, oks=OKS)
    slow = functools.partial(ours, backend="reference")
    timed(
        "ops",
        "suppress_poses",
        {"people": people, "method": "hard", "backend": "cpp"},
        ours,
        check=lambda: f"reference: {same(ours()[0], slow()[0])}",
        beside={"reference": Beside(slow)},
    )
