"""Tracking: synthetic people whose identity is known."""

import time
from dataclasses import replace

import numpy as np
import pytest

from fastpose.skeleton import COCO17, LSP14
from fastpose.track import MAX_LOST, Tracker, predict_boxes
from fastpose.types import People

FPS = 25.0
# a standing person 60 wide and 180 high, joints relative to the box's centre, in LSP's order
STANDING = np.array(
    [
        (-15, 85), (-14, 45), (-12, 5), (12, 5), (14, 45), (15, 85), (-28, 5), (-27, -25),
        (-20, -55), (20, -55), (27, -25), (28, 5), (0, -62), (0, -88),
    ],
    np.float32,
)  # fmt: skip


def people_at(*centres, scores=0.9, noise=0.0, rng=None):
    """Standing people round the given centres (x, y)."""
    n = len(centres)
    centres = np.array(centres, np.float32).reshape(n, 2)
    points = centres[:, None] + STANDING
    if rng is not None:
        points = points + rng.normal(0, noise, points.shape)
    half = np.array([30, 90], np.float32)
    return People(
        np.concatenate((centres - half, centres + half), 1).astype(np.float32),
        np.full(n, 0.9, np.float32),
        points.astype(np.float32),
        np.full((n, 14), scores, np.float32),
        LSP14,
    )


def ids_over_time(tracker, frames, fps=FPS):
    return [tracker.update(people, i / fps).ids.tolist() for i, people in enumerate(frames)]


def test_ids_stay_while_the_order_of_the_people_changes():
    rng = np.random.default_rng(0)
    start = np.array([(100, 200), (260, 210), (420, 190)])
    pace = np.array([(40, 0), (-30, 10), (0, 5)])
    tracker = Tracker(LSP14)
    for i in range(30):
        order = rng.permutation(3) if i else np.arange(3)
        centres = (start + pace * i / FPS)[order]
        tracked = tracker.update(people_at(*centres, noise=2, rng=rng), i / FPS)
        assert tracked.ids.tolist() == (order + 1).tolist()


@pytest.mark.parametrize("fps", [50.0, 25.0, 10.0])
def test_people_who_cross_keep_their_ids(fps):
    rng = np.random.default_rng(1)
    tracker = Tracker(LSP14)
    for i in range(int(4 * fps)):
        t = i / fps
        walkers = [(100 + 100 * t, 200), (490 - 100 * t, 200)]  # they pass between two frames
        tracked = tracker.update(people_at(*walkers, noise=1.5, rng=rng), t)
        assert tracked.ids.tolist() == [1, 2], t


def test_a_person_hidden_behind_another_comes_back_with_the_same_id():
    tracker = Tracker(LSP14)
    for i in range(100):
        t = i / FPS
        left, right = (100 + 100 * t, 200), (500 - 100 * t, 203)
        hidden = abs(left[0] - right[0]) < 50
        people = people_at(left) if hidden else people_at(left, right)
        assert tracker.update(people, t).ids.tolist() == ([1] if hidden else [1, 2]), t


def test_a_person_away_for_less_than_the_gap_is_known_again_and_not_after_it():
    for away, expected in ((0.6, [1]), (1.4, [2])):
        tracker = Tracker(LSP14, max_gap=1.0)
        tracker.update(people_at((200, 200)), 0.0)
        tracker.update(people_at((204, 200)), 0.04)
        assert tracker.update(people_at((210, 200)), 0.04 + away).ids.tolist() == expected


def test_frames_with_nobody():
    tracker = Tracker(LSP14)
    empty = tracker.update(People.empty(LSP14), 0.0)
    assert len(empty) == 0
    assert empty.ids.shape == (0,)
    assert empty.ids.dtype == np.int64
    assert tracker.update(people_at((100, 100)), 0.1).ids.tolist() == [1]
    tracker.update(People.empty(LSP14), 0.2)
    assert tracker.update(people_at((100, 100)), 0.3).ids.tolist() == [1]


def test_ids_are_never_used_again():
    tracker = Tracker(LSP14, max_gap=0.1)
    frames = [people_at((100 + 400 * (i % 2), 100)) for i in range(10)]
    ids = [tracker.update(people, float(i)).ids[0] for i, people in enumerate(frames)]
    assert ids == list(range(1, 11))


def test_the_frame_before_has_the_first_choice():
    # 1 was lost at the very place where 2 now stands; 2 was seen a frame ago, a little beside it
    tracker = Tracker(LSP14)
    tracker.update(people_at((200, 200), (260, 200)), 0.0)
    tracker.update(people_at((240, 200)), 0.1)
    for t in (0.2, 0.3, 0.4):
        tracked = tracker.update(people_at((240, 200)), t)
    assert tracked.ids.tolist() == [2]
    assert tracker.update(people_at((205, 200)), 0.5).ids.tolist() == [2]


def test_overlap_stands_in_where_joints_are_few():
    tracker = Tracker(LSP14)
    faint = people_at((100, 100), (300, 100), scores=0.05)
    assert tracker.update(faint, 0.0).ids.tolist() == [1, 2]
    assert tracker.update(faint[[1, 0]], 0.04).ids.tolist() == [2, 1]


def test_joints_tell_apart_people_with_one_box():
    # detector "none": everybody's box is the frame
    frame = np.array([[-0.5, -0.5, 639.5, 479.5]] * 2, np.float32)
    tracker = Tracker(LSP14)
    both = replace(people_at((200, 200), (400, 200)), boxes=frame)
    tracker.update(both, 0.0)
    assert tracker.update(both[[1, 0]], 0.04).ids.tolist() == [2, 1]


def test_joints_that_are_nan_do_no_harm():
    tracker = Tracker(LSP14)
    people = people_at((100, 100), (300, 100))
    tracker.update(people, 0.0)
    points, scores = people.keypoints.copy(), people.scores.copy()
    points[:, :3], scores[:, :3] = np.nan, 0
    broken = replace(people, keypoints=points, scores=scores)
    assert tracker.update(broken, 0.04).ids.tolist() == [1, 2]
    assert tracker.update(people, 0.08).ids.tolist() == [1, 2]


def test_equal_input_gives_equal_ids():
    rng = np.random.default_rng(2)
    frames = [people_at(*rng.uniform(0, 400, (6, 2))) for _ in range(20)]
    assert ids_over_time(Tracker(LSP14), frames) == ids_over_time(Tracker(LSP14), frames)


def test_memory_is_bounded():
    rng = np.random.default_rng(3)
    tracker = Tracker(LSP14, max_gap=1e6)
    for i in range(60):
        tracker.update(people_at(*rng.uniform(0, 1e5, (20, 2))), i / FPS)
    assert len(tracker._tracks) <= MAX_LOST + 20


def test_input_is_left_alone_and_bad_input_is_refused():
    tracker = Tracker(LSP14)
    people = people_at((100, 100))
    tracker.update(people, 1.0)
    assert people.ids is None
    with pytest.raises(ValueError, match=r"time must not go backwards, got 0.5 after 1.0"):
        tracker.update(people, 0.5)
    with pytest.raises(ValueError, match="time"):
        tracker.update(people, float("nan"))
    with pytest.raises(ValueError, match="lsp14, got coco17"):
        tracker.update(People.empty(COCO17), 2.0)
    with pytest.raises(ValueError, match="max_gap"):
        Tracker(LSP14, max_gap=0)


def test_time_may_stand_still():
    tracker = Tracker(LSP14)
    for _ in range(3):
        assert tracker.update(people_at((100, 100), (300, 100)), 0.0).ids.tolist() == [1, 2]


def test_fifty_people_take_about_a_millisecond():
    rng = np.random.default_rng(4)
    centres = rng.uniform(0, 2000, (50, 2))
    tracker, took = Tracker(LSP14), []
    for i in range(30):
        people = people_at(*(centres + i), noise=1, rng=rng)
        start = time.thread_time()
        tracker.update(people, i / FPS)
        took.append(time.thread_time() - start)
    assert np.median(took) < 0.02  # a bound that a slow machine keeps; a loop over pairs does not


def test_predicted_boxes_hold_the_confident_joints():
    people = people_at((100, 200), (300, 200))
    scores = people.scores.copy()
    scores[0, 13] = 0.05  # the head
    boxes = predict_boxes(replace(people, scores=scores), enlarge=1.2)
    # joints from (-28, -62) to (28, 85): 56 wide, since a third of 147 is less
    np.testing.assert_allclose(boxes.boxes[0], [66.4, 123.3, 133.6, 299.7], rtol=1e-5)
    # joints from (-28, -88) to (28, 85): a third of 173 is more than 56
    np.testing.assert_allclose(boxes.boxes[1], [265.4, 94.7, 334.6, 302.3], rtol=1e-5)
    np.testing.assert_array_equal(boxes.scores, people.box_scores)
    assert boxes.boxes.dtype == np.float32


def test_people_without_sure_joints_are_looked_for_where_they_were():
    people = people_at((100, 200), (300, 200), (500, 200))
    scores, points = people.scores.copy(), people.keypoints.copy()
    scores[0] = 0.05
    points[2], scores[2] = np.nan, 0
    boxes = predict_boxes(replace(people, scores=scores, keypoints=points))
    np.testing.assert_array_equal(boxes.boxes[[0, 2]], people.boxes[[0, 2]])
    assert not np.array_equal(boxes.boxes[1], people.boxes[1])  # this one follows the joints
    assert len(predict_boxes(People.empty(LSP14))) == 0


def test_joints_on_a_line_still_make_a_box():
    people = people_at((100, 200))
    points = people.keypoints.copy()
    points[..., 0] = 100
    box = predict_boxes(replace(people, keypoints=points), enlarge=1.0).boxes[0]
    assert box[2] - box[0] == pytest.approx((box[3] - box[1]) / 3)
