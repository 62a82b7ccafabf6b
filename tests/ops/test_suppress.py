"""Truth (worked by hand, OpenCV) -> reference -> kernel."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pytest

from fastpose.errors import BackendError
from fastpose.ops import suppress_boxes, suppress_poses

METHODS = ("hard", "soft-linear", "soft-gaussian")
NAN, INF = float("nan"), float("inf")

on_both = pytest.mark.parametrize("backend", ["reference", "cpp"])

BOXES = np.array([[0, 0, 10, 8], [0, 2, 10, 10], [4, 0, 14, 8]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)


def random_boxes(count, seed=0):
    """Whole numbers, so that OpenCV's rectangles hold them."""
    random = np.random.default_rng(seed)
    corner = random.integers(0, 100, (count, 2))
    boxes = np.concatenate((corner, corner + random.integers(5, 60, (count, 2))), axis=1)
    return boxes.astype(np.float32), random.random(count, np.float32)


def random_poses(count, joints=17, seed=0):
    random = np.random.default_rng(seed)
    people = random.uniform(0, 300, (1 + count // 3, joints, 2))
    poses = people[random.integers(0, len(people), count)]
    poses += random.normal(0, 6, poses.shape)
    scores, areas = random.random(count), random.uniform(2e3, 2e4, count)
    sigmas = random.uniform(0.025, 0.11, joints)
    return [array.astype(np.float32) for array in (poses, scores, areas, sigmas)]


# Boxes: truth -> reference -> kernel


@on_both
def test_boxes_worked_by_hand(backend):
    run = functools.partial(suppress_boxes, BOXES, SCORES, backend=backend)
    first, second = 60 / 100, 48 / 112  # overlaps of box 0 with 1 and 2
    between = 36 / 124  # of 1 with 2

    kept, scores = run(iou=0.5)
    assert kept.tolist() == [0, 2]
    assert kept.dtype == np.int64
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, SCORES[[0, 2]])

    kept, scores = run(iou=0.5, method="soft-linear")
    assert kept.tolist() == [0, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.7, 0.8 * (1 - first)], rtol=1e-6)

    kept, scores = run(method="soft-gaussian", sigma=0.5)
    assert kept.tolist() == [0, 2, 1]
    last = 0.8 * np.exp(-(first**2) / 0.5) * np.exp(-(between**2) / 0.5)
    np.testing.assert_allclose(scores, [0.9, 0.7 * np.exp(-(second**2) / 0.5), last], rtol=1e-6)


@on_both
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_hard_as_opencv(backend, threshold):
    boxes, scores = random_boxes(150)
    rectangles = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    expected = cv2.dnn.NMSBoxes(rectangles.tolist(), scores.tolist(), 0.1, threshold)
    kept, left = suppress_boxes(boxes, scores, iou=threshold, floor=0.1, backend=backend)
    assert kept.tolist() == list(expected)
    np.testing.assert_array_equal(left, scores[kept])


@on_both
def test_soft_gaussian_as_opencv(backend):
    boxes, scores = random_boxes(60, seed=1)
    rectangles = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).astype(int)
    expected, indices = cv2.dnn.softNMSBoxes(
        rectangles.tolist(), scores.tolist(), 0.05, 0.3, 0, 0.5
    )
    kept, left = suppress_boxes(boxes, scores, method="soft-gaussian", floor=0.05, backend=backend)
    assert kept.tolist() == np.ravel(indices).tolist()
    np.testing.assert_allclose(left, np.ravel(expected), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1, 200])
@pytest.mark.parametrize("classed", [False, True])
def test_boxes_kernel_equals_reference(method, count, classed):
    boxes, scores = random_boxes(count, seed=2)
    scores[::7] = scores[::7].round(1)  # ties
    arguments = {"method": method, "iou": 0.4, "floor": 0.05}
    if classed:
        arguments["classes"] = np.arange(count, dtype=np.int32) % 3
    expected = suppress_boxes(boxes, scores, **arguments, backend="reference")
    actual = suppress_boxes(boxes, scores, **arguments, backend="cpp")
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6)
    assert (np.diff(actual[1]) <= 0).all()


@on_both
@pytest.mark.parametrize("method", METHODS)
def test_other_classes_are_left_alone(backend, method):
    boxes = np.repeat(BOXES[:1], 4, axis=0)
    kept, scores = suppress_boxes(
        boxes,
        np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        classes=np.array([0, 1, 0, 2]),
        method=method,
        floor=0.3,
        backend=backend,
    )
    assert kept.tolist() == [0, 1, 3]
    assert scores.tolist() == pytest.approx([0.9, 0.8, 0.6])


@on_both
@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_box(backend, method):
    boxes = np.array(
        [[0, 0, 9, 9], [NAN, 0, 9, 9], [0, 0, INF, 9], [0, 0, 9, 9], [0, 0, 9, 9]], np.float32
    )
    scores = np.array([0.5, 0.9, 0.9, NAN, INF], np.float32)
    kept, _ = suppress_boxes(boxes, scores, method=method, backend=backend)
    assert kept.tolist() == [0]


@on_both
@pytest.mark.parametrize("method", METHODS)
def test_boxes_without_area_overlap_nothing(backend, method):
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9], [9, 9, 0, 0]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    kept, left = suppress_boxes(boxes, scores, method=method, backend=backend)
    assert kept.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(left, scores)


@on_both
def test_threshold_and_floor_are_kept_themselves(backend):
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [50, 50, 60, 60]], np.float32)  # overlap 0.5
    scores = np.array([0.5, 0.25, 0.125], np.float32)
    kept, _ = suppress_boxes(boxes, scores, iou=0.5, floor=0.125, backend=backend)
    assert kept.tolist() == [0, 1, 2]
    kept, _ = suppress_boxes(boxes, scores, iou=0.49, floor=0.126, backend=backend)
    assert kept.tolist() == [0]


@on_both
def test_first_of_equal_scores_wins(backend):
    scores = np.full(3, 0.5, np.float64)
    kept, _ = suppress_boxes(BOXES[[1, 1, 0]], scores, iou=0.9, backend=backend)
    assert kept.tolist() == [0, 2]


# Poses: truth -> reference -> kernel


@on_both
def test_poses_worked_by_hand(backend):
    # Distances 0 and 6 with area 100 and sigmas 0.3: the mean of 1 and exp(-36 / 72).
    poses = np.array([[[0, 0], [50, 0]], [[0, 0], [56, 0]]], np.float32)
    scores, areas = np.array([0.6, 0.9], np.float32), np.array([150, 50], np.float32)
    sigmas = np.array([0.3, 0.3], np.float32)
    oks = (1 + np.exp(-0.5)) / 2  # 0.80
    run = functools.partial(suppress_poses, poses, scores, areas, sigmas=sigmas, backend=backend)

    assert run(oks=0.81)[0].tolist() == [1, 0]
    assert run(oks=0.80)[0].tolist() == [1]
    kept, left = run(oks=0.5, method="soft-linear")
    assert kept.tolist() == [1, 0]
    np.testing.assert_allclose(left, [0.9, 0.6 * (1 - oks)], rtol=1e-5)
    kept, left = run(oks=0.9, method="soft-gaussian")
    np.testing.assert_allclose(left, [0.9, 0.6 * np.exp(-(oks**2) / 0.9)], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1, 40])
def test_poses_kernel_equals_reference(method, count):
    poses, scores, areas, sigmas = random_poses(count)
    poses[::3, 4] = NAN
    results = [
        suppress_poses(poses, scores, areas, sigmas=sigmas, oks=0.6, method=method, backend=backend)
        for backend in ("reference", "cpp")
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-6)
    if count == 40 and method == "hard":
        assert 5 < len(results[0][0]) < 40


@on_both
def test_missing_joints_are_left_out(backend):
    poses, _, areas, sigmas = random_poses(1, joints=3)
    poses = np.repeat(poses, 3, axis=0)
    poses[1, 0] = NAN  # still the same in its other joints
    poses[2] = NAN  # nothing in common
    scores, areas = np.array([0.9, 0.8, 0.7], np.float32), np.repeat(areas, 3)
    kept, _ = suppress_poses(poses, scores, areas, sigmas=sigmas, backend=backend)
    assert kept.tolist() == [0, 2]


@on_both
def test_what_is_no_pose(backend):
    poses, _, _, sigmas = random_poses(1)
    poses = np.repeat(poses, 4, axis=0)
    scores, areas = np.array([0.5, NAN, 0.9, 0.4]), np.array([0.0, 10, INF, -3])
    kept, _ = suppress_poses(poses, scores, areas, sigmas=sigmas, backend=backend)
    assert kept.tolist() == [0]  # without area, but equal to the last


# The border


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("boxes must be .any, 4.", {"boxes": BOXES[:, :3]}),
        ("boxes must be a float32", {"boxes": BOXES.tolist()}),
        ("boxes must be a float32", {"boxes": BOXES.astype(int)}),
        ("scores must be .3.", {"scores": SCORES[:2]}),
        ("classes must be .3. integers", {"classes": np.zeros(3, np.float32)}),
        ("classes must be a numpy array, got list", {"classes": [0, 0, 1]}),
        ("method must be one of", {"method": "soft"}),
        ("iou must be from 0", {"iou": NAN}),
        ("sigma must be positive", {"sigma": 0}),
        ("floor must be", {"floor": NAN}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_boxes(words, arguments):
    with pytest.raises(ValueError, match=words):
        suppress_boxes(**{"boxes": BOXES, "scores": SCORES, **arguments})


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("keypoints must be .any, any, 2.", {"keypoints": np.zeros((2, 3), np.float32)}),
        ("areas must be .2.", {"areas": np.zeros(3, np.float32)}),
        ("sigmas must be .5.", {"sigmas": np.ones(4, np.float32)}),
        ("sigmas must be positive", {"sigmas": np.zeros(5, np.float32)}),
        ("oks must be positive", {"oks": 0.0}),
        ("oks must be from 0.0 to 1", {"oks": 1.5}),
        ("method must be one of", {"method": "nms"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_poses(words, arguments):
    good = {
        "keypoints": np.zeros((2, 5, 2), np.float32),
        "scores": np.zeros(2, np.float32),
        "areas": np.ones(2, np.float32),
        "sigmas": np.ones(5, np.float32),
    }
    with pytest.raises(ValueError, match=words):
        suppress_poses(**{**good, **arguments})


def test_a_named_backend_never_falls_back():
    with pytest.raises(BackendError, match="triton"):
        suppress_boxes(BOXES, SCORES, backend="triton")
