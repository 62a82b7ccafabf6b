"""The drawing: what is drawn where, in which hue, and what must not be."""

from __future__ import annotations

import numpy as np
import pytest

from fastpose.sinks.overlay import CENTRE, LEFT, OUTLINE, RIGHT, draw
from fastpose.skeleton import COCO17, LSP14, SKELETONS, Skeleton
from fastpose.types import People

GREY = 128


def picture(size: tuple[int, int] = (400, 400)) -> np.ndarray:
    return np.full((*size, 3), GREY, np.uint8)


def people_of(
    skeleton: Skeleton,
    joints: dict[str, tuple[float, float]],
    *,
    scores: dict[str, float] | None = None,
    ids: list[int] | None = None,
) -> People:
    """One person with the named joints; the others were not found."""
    keypoints = np.full((1, len(skeleton), 2), np.nan, np.float32)
    score = np.zeros((1, len(skeleton)), np.float32)
    for name, point in joints.items():
        k = skeleton.joints.index(name)
        keypoints[0, k], score[0, k] = point, (scores or {}).get(name, 1.0)
    boxes = np.array([[20, 30, 380, 370]], np.float32)
    numbers = None if ids is None else np.array(ids)
    return People(boxes, np.ones(1, np.float32), keypoints, score, skeleton, numbers)


STANDING = {
    "left_shoulder": (260.0, 80.0),
    "left_elbow": (300.0, 160.0),
    "left_wrist": (320.0, 240.0),
    "right_shoulder": (140.0, 80.0),
    "right_elbow": (100.0, 160.0),
    "right_wrist": (80.0, 240.0),
    "left_hip": (230.0, 230.0),
    "right_hip": (170.0, 230.0),
}


def middle(a: str, b: str) -> tuple[int, int]:
    x, y = np.mean((STANDING[a], STANDING[b]), axis=0).round().astype(int)
    return y, x


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_limbs_have_the_hue_of_their_side(skeleton):
    drawn = draw(picture(), people_of(skeleton, STANDING))
    for a, b in skeleton.limbs:
        names = skeleton.joints[a], skeleton.joints[b]
        if not set(names) <= set(STANDING):
            continue
        sides = {name.split("_")[0] for name in names}
        expected = {"left": LEFT, "right": RIGHT}[sides.pop()] if len(sides) == 1 else CENTRE
        assert tuple(drawn[middle(*names)].tolist()) == expected, names


def test_joints_are_where_they_are_and_limbs_are_outlined():
    drawn = draw(picture(), people_of(COCO17, STANDING))
    for name, (x, y) in STANDING.items():
        blue, _, red = drawn[int(y), int(x)].astype(int)
        assert (blue > red) == name.startswith("left")  # a light blue or a light orange
    row = drawn[155]  # across the upper arms and the trunk
    painted = np.flatnonzero((row != GREY).any(axis=1))
    edges = [painted[0] + 1, painted[-1] - 1]
    assert (row[edges].max(axis=1) < GREY).all()
    assert abs(np.array(OUTLINE)).max() < 64


def test_input_is_not_changed_and_nobody_changes_nothing():
    image = picture()
    drawn = draw(image, people_of(COCO17, STANDING))
    assert (image == GREY).all()
    assert (drawn != GREY).any()
    same = draw(image, People.empty(COCO17))
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)


def test_read_only_and_strided_pictures_are_taken():
    image = picture((400, 800))[:, ::2]
    image.flags.writeable = False
    people = people_of(COCO17, STANDING)
    np.testing.assert_array_equal(draw(image, people), draw(picture(), people))


def test_a_limb_needs_both_joints_and_a_joint_its_score():
    scores = {"left_wrist": 0.29, "right_wrist": 0.3}
    drawn = draw(picture(), people_of(COCO17, STANDING, scores=scores), min_score=0.3)
    assert (drawn[235:250, 310:330] == GREY).all()  # no left wrist
    assert (drawn[middle("left_elbow", "left_wrist")] == GREY).all()
    assert tuple(drawn[middle("left_shoulder", "left_elbow")].tolist()) == LEFT
    assert tuple(drawn[middle("right_elbow", "right_wrist")].tolist()) == RIGHT


def test_everything_below_the_score_draws_nothing():
    people = people_of(COCO17, STANDING, scores=dict.fromkeys(STANDING, 0.2), ids=[3])
    np.testing.assert_array_equal(draw(picture(), people), picture())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9, -1e9, 3e38, 2000.0])
@pytest.mark.parametrize("name", ["left_wrist", "left_shoulder"])
def test_points_that_are_none_or_far_outside_are_left_out(bad, name):
    without = {key: point for key, point in STANDING.items() if key != name}
    expected = draw(picture(), people_of(COCO17, without))
    for point in ((bad, 100.0), (100.0, bad), (bad, bad)):
        found = people_of(COCO17, {**STANDING, name: point}, ids=[1])
        np.testing.assert_array_equal(draw(picture(), found, ids=False), expected)
        draw(picture(), found, boxes=True)


def test_a_limb_that_leaves_the_picture_keeps_its_direction():
    joints = {"left_hip": (200.0, 200.0), "left_knee": (600.0, 600.0)}
    drawn = draw(picture(), people_of(COCO17, joints))
    assert tuple(drawn[300, 300].tolist()) == LEFT
    assert (drawn[300, 200] == GREY).all()


def test_a_skeleton_without_limbs_has_its_joints_drawn():
    lone = Skeleton("lone", ("left_foot",), (), (), (0.1,))
    drawn = draw(picture(), people_of(lone, {"left_foot": (100.0, 200.0)}))
    changed = np.argwhere((drawn != GREY).any(axis=2))
    assert len(changed)
    np.testing.assert_allclose(changed.mean(axis=0), (200, 100), atol=0.5)


def test_not_finite_boxes_are_left_out():
    people = people_of(COCO17, STANDING)
    expected = draw(picture(), people)
    people.boxes[0, 2] = np.nan
    np.testing.assert_array_equal(draw(picture(), people, boxes=True), expected)


def test_boxes_are_drawn_on_request():
    people = people_of(COCO17, STANDING)
    assert (draw(picture(), people)[30] == GREY).all()
    assert (draw(picture(), people, boxes=True)[30, 20:381] != GREY).any(axis=1).all()


def test_track_numbers_are_written_on_request_and_stay_inside():
    tracked = people_of(COCO17, STANDING, ids=[12])
    plain = draw(picture(), tracked, ids=False)
    np.testing.assert_array_equal(plain, draw(picture(), people_of(COCO17, STANDING)))
    assert (draw(picture(), tracked)[:75] != GREY).any()
    top = people_of(COCO17, {"nose": (0.0, 0.0), "left_eye": (3.0, 0.0)}, ids=[123456789])
    for size in ((400, 400), (8, 8), (1, 1)):
        assert draw(picture(size), top).shape == (*size, 3)


def limb_width(length: float, size: tuple[int, int] = (1000, 1000)) -> int:
    """Of an upright limb, outline included, in pixels."""
    joints = {"right_hip": (100.0, 50.0), "right_knee": (100.0, 50.0 + length)}
    drawn = draw(picture(size), people_of(LSP14, joints))
    return int((drawn[round(50 + length / 2)] != GREY).any(axis=1).sum())


def test_width_follows_the_person_within_limits():
    widths = [limb_width(length) for length in (40, 200, 380, 900)]
    assert widths[0] < widths[1] < widths[2]
    assert widths[3] <= widths[2] * 1.3  # limited by the picture
    assert 3 <= widths[0] <= 7
    assert limb_width(900, (4000, 4000)) > widths[3]


def test_larger_people_lie_over_smaller_ones():
    small, large = (people_of(COCO17, STANDING) for _ in range(2))
    small.keypoints[0] = small.keypoints[0] * 0.5 + (60, 40)
    both = [
        People(
            *(np.concatenate((getattr(a, n), getattr(b, n))) for n in
              ("boxes", "box_scores", "keypoints", "scores")),
            COCO17,
        )
        for a, b in ((small, large), (large, small))
    ]  # fmt: skip
    np.testing.assert_array_equal(draw(picture(), both[0]), draw(picture(), both[1]))
    alone, drawn = draw(picture(), large), draw(picture(), both[0])
    covered = (alone == np.array(RIGHT)).all(axis=2)
    assert covered.any()
    np.testing.assert_array_equal(drawn[covered], alone[covered])


def test_edges_are_anti_aliased_and_points_sub_pixel():
    first = draw(picture(), people_of(COCO17, STANDING))
    levels = np.unique(first[(first != GREY).any(axis=2)].reshape(-1, 3), axis=0)
    assert len(levels) > 50
    moved = {name: (x + 0.4, y) for name, (x, y) in STANDING.items()}
    assert (draw(picture(), people_of(COCO17, moved)) != first).any()


def test_one_pixel_picture():
    people = people_of(COCO17, {"nose": (0.0, 0.0)}, ids=[1])
    assert draw(picture((1, 1)), people, boxes=True).shape == (1, 1, 3)


@pytest.mark.parametrize("kind", ["deuteranopia", "protanopia"])
def test_sides_differ_for_colour_blind_eyes(kind):
    # Viénot, Brettel and Mollon, Digital video colourmaps for checking the legibility of displays
    # by dichromats, Color Research and Application, 1999: linear RGB -> LMS, one cone replaced.
    to_lms = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
    )
    lose = {
        "protanopia": [[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]],
        "deuteranopia": [[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]],
    }[kind]

    def seen(colour: tuple[int, int, int]) -> np.ndarray:
        linear = (np.array(colour[::-1]) / 255) ** 2.2
        rgb = np.linalg.solve(to_lms, np.array(lose) @ to_lms @ linear)
        return np.clip(rgb, 0, 1) ** (1 / 2.2) * 255

    pairs = ((LEFT, RIGHT), (LEFT, CENTRE), (RIGHT, CENTRE))
    for a, b in pairs:
        assert np.linalg.norm(seen(a) - seen(b)) > 100
