"""One box, one pose for each person: greedy suppression of duplicates, hard or soft."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpose.ops.choose import choose

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

METHODS = ("hard", "soft-linear", "soft-gaussian")
TYPES = frozenset((np.dtype(np.float32), np.dtype(np.float64)))

# Added to the area of a person, so that equal poses without area count as equal.
AREA_EPSILON = float(np.spacing(1.0))

Overlaps = Callable[[int], Doubles]


def suppress_boxes(
    boxes: npt.NDArray,
    scores: npt.NDArray,
    *,
    iou: float = 0.5,
    method: str = "hard",
    sigma: float = 0.5,
    floor: float = 1e-3,
    classes: npt.NDArray | None = None,
    backend: str | None = None,
) -> tuple[Indices, Floats]:
    """Keep one box for each object.

    The box of the highest score is kept, and with o its intersection over union with each box that
    is left, the score of that box becomes, by `method`,

    - "hard": 0 where o > `iou`;
    - "soft-linear": times 1 - o where o > `iou`;
    - "soft-gaussian": times exp(-o^2 / `sigma`)

    (Bodla et al., Soft-NMS, ICCV 2017), until no score is left that reaches `floor`. Of equal
    scores the first box wins.

    A box with x1 <= x0 or y1 <= y0 has no area: its overlap is 0 with everything, so it neither
    suppresses nor is suppressed. A box or score that is not finite is never kept.

    Args:
        boxes: [N, 4] float32 or float64 (x0, y0, x1, y1).
        scores: [N], the same types.
        iou: overlap from which on two boxes are one object, 0..1.
        method: as above.
        sigma: width of "soft-gaussian".
        floor: lowest score that is kept, by every method.
        classes: [N] integers; boxes of different classes leave each other alone.
        backend: "cpp" or "reference"; None means the fastest there is.

    Returns:
        kept: [M] int64 indices into `boxes`, by falling score.
        scores: [M] float32, as the soft methods left them.

    Raises:
        ValueError: an argument is not as above.
        BackendError: `backend` was named and cannot run here.
    """
    _check_array("boxes", boxes, (None, 4))
    _check_array("scores", scores, (len(boxes),))
    if classes is None:
        classes = np.zeros(len(boxes), np.int64)
    elif not isinstance(classes, np.ndarray):
        raise ValueError(f"classes must be a numpy array, got {type(classes).__name__}")
    elif classes.shape != scores.shape or classes.dtype.kind not in "iu":
        raise ValueError(
            f"classes must be [{len(boxes)}] integers, got {list(classes.shape)} {classes.dtype}"
        )
    _check_method(method)
    _check_range("iou", iou, 0.0, 1.0)
    _check_positive("sigma", sigma)
    _check_range("floor", floor, -math.inf, math.inf)
    run = _kernels().suppress_boxes if _use_cpp(backend, scores) else suppress_boxes_reference
    return run(
        np.ascontiguousarray(boxes, np.float64),
        np.ascontiguousarray(scores, np.float64),
        np.ascontiguousarray(classes, np.int64),
        method,
        iou,
        sigma,
        floor,
    )


def suppress_boxes_reference(
    boxes: Doubles,
    scores: Doubles,
    classes: Indices,
    method: str,
    iou: float,
    sigma: float,
    floor: float,
) -> tuple[Indices, Floats]:
    """`suppress_boxes` in plain numpy: the definition the kernel is tested against."""
    scores = np.where(np.isfinite(boxes).all(axis=1), scores, np.nan)
    boxes = np.where(np.isfinite(boxes), boxes, 0.0)
    areas = np.prod((boxes[:, 2:] - boxes[:, :2]).clip(min=0), axis=1)

    def overlaps(i: int) -> Doubles:
        low, high = np.maximum(boxes[:, :2], boxes[i, :2]), np.minimum(boxes[:, 2:], boxes[i, 2:])
        shared = np.prod((high - low).clip(min=0), axis=1) * (classes == classes[i])
        union = areas + areas[i] - shared
        return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)

    return _suppress(scores, overlaps, method, iou, sigma, floor)


def suppress_poses(
    keypoints: npt.NDArray,
    scores: npt.NDArray,
    areas: npt.NDArray,
    *,
    sigmas: npt.NDArray,
    oks: float = 0.9,
    method: str = "hard",
    backend: str | None = None,
) -> tuple[Indices, Floats]:
    """Keep one pose for each person.

    As `suppress_boxes`, with object key-point similarity for overlap: with d the distance between
    joint k of two poses and a the mean of their areas, o is the mean over the joints of
    exp(-d^2 / (2 a (2 sigmas[k])^2)) (Lin et al., Microsoft COCO, ECCV 2014; Papandreou et al.,
    Towards Accurate Multi-person Pose Estimation in the Wild, CVPR 2017).

    The soft methods only lower scores, "soft-gaussian" by exp(-o^2 / `oks`), and keep every pose;
    COCO counts the first 20.

    Joints that are not finite in one of the two poses are left out, and poses without a joint in
    common do not overlap. An area below 0 counts as 0. A pose whose score or area is not finite is
    never kept.

    Args:
        keypoints: [N, K, 2] float32 or float64, (x, y) in pixels.
        scores: [N], the same types: one score for a pose.
        areas: [N], the same types: area of the person in square pixels.
        sigmas: [K], the same types: COCO's constant of each joint (0.026 for the nose).
        oks: similarity from which on two poses are one person, above 0, at most 1.
        method: "hard", "soft-linear" or "soft-gaussian".
        backend: "cpp" or "reference"; None means the fastest there is.

    Returns:
        kept: [M] int64 indices into `keypoints`, by falling score.
        scores: [M] float32, as the soft methods left them.

    Raises:
        ValueError: an argument is not as above.
        BackendError: `backend` was named and cannot run here.
    """
    _check_array("keypoints", keypoints, (None, None, 2))
    n, k = keypoints.shape[:2]
    _check_array("scores", scores, (n,))
    _check_array("areas", areas, (n,))
    _check_array("sigmas", sigmas, (k,))
    for sigma in sigmas:
        _check_positive("sigmas", float(sigma))
    _check_method(method)
    _check_positive("oks", oks)
    _check_range("oks", oks, 0.0, 1.0)
    run = _kernels().suppress_poses if _use_cpp(backend, scores) else suppress_poses_reference
    return run(
        np.ascontiguousarray(keypoints, np.float64),
        np.ascontiguousarray(scores, np.float64),
        np.ascontiguousarray(areas, np.float64),
        np.ascontiguousarray(sigmas, np.float64),
        method,
        oks,
    )


def suppress_poses_reference(
    keypoints: Doubles, scores: Doubles, areas: Doubles, sigmas: Doubles, method: str, oks: float
) -> tuple[Indices, Floats]:
    """`suppress_poses` in plain numpy: the definition the kernel is tested against."""
    scores = np.where(np.isfinite(areas), scores, np.nan)
    areas = np.where(np.isfinite(areas), areas, 0.0).clip(min=0)
    seen = np.logical_and.reduce(np.isfinite(keypoints), axis=2)
    points = np.where(seen[..., None], keypoints, 0.0)

    def overlaps(i: int) -> Doubles:
        square = ((points - points[i]) ** 2).sum(axis=2)
        area = (areas + areas[i]) / 2 + AREA_EPSILON
        alike = np.exp(-square / (2 * area[:, None] * (2 * sigmas) ** 2))
        both = seen & seen[i]
        return (alike * both).sum(axis=1) / both.sum(axis=1).clip(min=1)

    return _suppress(scores, overlaps, method, oks, oks, -math.inf)


def _suppress(
    scores: Doubles,
    overlaps: Overlaps,
    method: str,
    threshold: float,
    sigma: float,
    floor: float,
) -> tuple[Indices, Floats]:
    """The greedy loop; overlaps(i) are those of candidate i with all, [N]."""
    kept: list[int] = []
    final: list[float] = []
    left = np.isfinite(scores)
    scores = np.where(left, scores, 0.0)
    while True:
        left &= scores >= floor
        if not left.any():
            return np.array(kept, np.int64), np.array(final, np.float32)
        best = int(np.where(left, scores, -np.inf).argmax())
        kept.append(best)
        final.append(float(scores[best]))
        left[best] = False
        overlap = overlaps(best)
        match method:
            case "hard":
                left &= overlap <= threshold
            case "soft-linear":
                scores = np.where(overlap > threshold, scores * (1 - overlap), scores)
            case _:
                scores = scores * np.exp(-(overlap**2) / sigma)


@functools.cache  # an import statement takes as long as the kernel on the boxes of a person
def _kernels() -> Any:
    from fastpose import _C

    return _C


def _use_cpp(backend: str | None, array: npt.NDArray) -> bool:
    return choose(backend, array, kernels=("cpp",), reference="numpy") == "cpp"


def _check_array(name: str, array: npt.NDArray, shape: tuple[int | None, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype not in TYPES:
        came = getattr(array, "dtype", type(array).__name__)
        raise ValueError(
            f"{name} must be a float32 or float64 numpy array {_in_words(shape)}, got {came}"
        )
    came = array.shape
    if came != shape and (len(came) != len(shape) or not all(map(_fits, came, shape))):
        raise ValueError(f"{name} must be {_in_words(shape)}, got {list(came)}")


def _fits(came: int, expected: int | None) -> bool:
    return expected is None or came == expected


def _in_words(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value!r}")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
