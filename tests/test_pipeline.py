"""The whole path with a network whose answer is known: it finds coloured dots."""

import json
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from fastpose.engines import Options
from fastpose.errors import DetectorError, FrameError, ModelError
from fastpose.models import model_spec
from fastpose.models.joints import locate_joints
from fastpose.people import drop_duplicates
from fastpose.pipeline import estimate
from fastpose.pose import Follower, Pose
from fastpose.skeleton import LSP14
from fastpose.types import Boxes, Frame, People

SPEC = replace(
    model_spec("cpn-light"), size=(96, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), rgb=False
)


class DotEngine:
    """Heat maps of a window: how near to full its cells' red is; only map 0 sees anything."""

    shareable = False

    def __init__(self, buckets=(1, 2, 4), options=None):
        self.manifest = SimpleNamespace(
            spec=SPEC,
            buckets=buckets,
            kind="dots",
            precision="f32",
            versions={},
            options=options or Options(),
        )
        self.images = np.zeros((buckets[-1], 3, *SPEC.size), np.float32)
        self.maps = np.zeros((buckets[-1], 14, *SPEC.cells), np.float32)  # written anew by each run
        self.runs = []

    def buffer(self, count):
        assert 1 <= count <= self.manifest.buckets[-1]
        return self.images[:count]

    def run(self, count):
        self.runs.append(count)
        red = self.images[:count, 2].reshape(count, *SPEC.cells[:1], 4, SPEC.cells[1], 4)
        self.maps[:count, 0] = red.mean(axis=(2, 4)) / 255
        return self.maps[:count]

    def close(self):
        pass


class Everywhere:
    """A detector that finds the same people in every frame."""

    def __init__(self, *boxes):
        self.boxes, self.calls = np.array(boxes, np.float32).reshape(-1, 4), 0

    def __call__(self, frames):
        self.calls += len(frames)
        return [Boxes(self.boxes, np.ones(len(self.boxes), np.float32)) for _ in frames]

    def close(self):
        pass


def dotted(*dots, size=(240, 320)):
    """A dark frame with a soft red dot at each (x, y)."""
    y, x = np.mgrid[: size[0], : size[1]]
    red = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 50.0) for a, b in dots)
    frame = np.zeros((*size, 3), np.uint8)
    frame[..., 2] = np.clip(255 * red, 0, 255)
    return frame


def pose_with(detector, engine=None):
    pose = object.__new__(Pose)
    pose._detector, pose._engine = detector, engine or DotEngine()
    return pose


def box_round(x, y, half=40):
    return [x - half + 7, y - half - 4, x + half + 7, y + half - 4]


def test_joints_come_back_in_frame_pixels():
    dots = [(60.3, 80.7), (200.1, 120.4), (260.9, 60.2)]
    pose = pose_with(Everywhere(*(box_round(*dot) for dot in dots)))
    people = pose(dotted(*dots))
    assert len(people) == 3
    np.testing.assert_allclose(people.keypoints[:, 0], dots, atol=0.5)
    assert (people.scores[:, 0] > 0.5).all()
    assert np.isnan(people.keypoints[:, 1]).all()  # empty maps
    assert (people.scores[:, 1] == 0).all()


@pytest.mark.parametrize("largest", [2, 4, 8, 32])
def test_views_of_a_person_reach_the_decoder_together(monkeypatch, largest):
    """Batches of whole people where the engine holds one, else parts of a person in turn."""
    engine = DotEngine(buckets=(1, largest))
    engine.manifest.spec = replace(SPEC, views=(0.8, 1.0, 1.25))
    dots = [(60.3, 80.7), (200.1, 120.4), (290.9, 60.2)]
    given = []

    def locate(results, affines, spec):
        given.append((results.copy(), affines))
        middle = results[1::3], affines[1::3]
        return locate_joints(*middle, SPEC)

    monkeypatch.setattr("fastpose.pipeline.locate_joints", locate)
    pose = pose_with(Everywhere(*(box_round(*dot) for dot in dots)), engine)
    people = pose(dotted(*dots))
    np.testing.assert_allclose(people.keypoints[:, 0], dots, atol=0.5)
    assert sum(engine.runs) == 9
    assert max(engine.runs) <= largest
    assert [len(r) for r, _ in given] == (
        [9] if largest == 32 else [6, 3] if largest == 8 else [3] * 3
    )
    results, affines = (np.concatenate(rows) for rows in zip(*given, strict=True))
    seen, _ = locate_joints(results, affines, SPEC)  # in each view
    np.testing.assert_allclose(seen[:, 0], np.repeat(dots, 3, axis=0), atol=0.5)
    width = affines[:, 0, 0].reshape(3, 3)
    np.testing.assert_allclose(width / width[:, 1:2], [[0.8, 1.0, 1.25]] * 3, rtol=1e-6)


def test_people_of_all_frames_share_batches_and_go_back_to_their_own():
    engine = DotEngine(buckets=(1, 2, 4))
    frames = [
        dotted((60, 80)),
        dotted(size=(100, 90)),
        dotted((30, 40), (150, 90), size=(200, 200)),
    ]
    found = [
        [box_round(60, 80)] * 2,
        [],
        [box_round(30, 40), box_round(150, 90), box_round(30, 40)],
    ]
    boxes = [
        Boxes(np.array(f, np.float32).reshape(-1, 4), np.ones(len(f), np.float32)) for f in found
    ]
    people = estimate(frames, boxes, engine)
    assert [len(p) for p in people] == [2, 0, 3]
    assert engine.runs == [4, 1]
    np.testing.assert_allclose(people[0].keypoints[:, 0], [[60, 80]] * 2, atol=0.5)
    np.testing.assert_allclose(people[2].keypoints[:, 0], [[30, 40], [150, 90], [30, 40]], atol=0.5)


def test_nobody_is_found_and_the_network_is_not_run():
    engine = DotEngine()
    people = pose_with(Everywhere(), engine)(dotted())
    assert len(people) == 0
    assert people.skeleton is LSP14
    assert engine.runs == []
    assert pose_with(Everywhere(), engine).batch([]) == []


@pytest.mark.parametrize(
    "convert", [lambda f: f[..., 2], lambda f: cv2.cvtColor(f, cv2.COLOR_BGR2BGRA)]
)
def test_grey_and_bgra_frames(convert):
    people = pose_with(Everywhere(box_round(60, 80)))(convert(dotted((60, 80))))
    np.testing.assert_allclose(people.keypoints[0, 0], [60, 80], atol=0.5)


def test_one_pixel_and_boxes_outside_the_frame():
    pose = pose_with(Everywhere([0, 0, 1, 1], [5000, 5000, 5100, 5200]))
    people = pose(np.zeros((1, 1, 3), np.uint8))
    assert len(people) >= 1
    assert (people.scores == 0).all()


def test_callers_boxes_replace_the_detector_row_by_row():
    detector = Everywhere([0, 0, 10, 10])
    pose = pose_with(detector)
    same = np.array([box_round(60, 80)] * 2)  # not even duplicates are dropped
    people = pose(dotted((60, 80)), boxes=same)
    assert (len(people), detector.calls) == (2, 0)
    np.testing.assert_allclose(people.boxes, same)
    assert len(pose(dotted(), boxes=np.zeros((0, 4)))) == 0


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        (np.zeros((2, 5)), r"boxes must be \[N, 4\], got \[2, 5\]"),
        ([[0, 0, np.nan, 5]], "boxes must be finite"),
        ([[0, 0, -4, 5]], "x1 > x0"),
    ],
)
def test_bad_boxes_are_refused(boxes, text):
    with pytest.raises(ValueError, match=text):
        pose_with(Everywhere())(dotted(), boxes=boxes)


def test_one_frame_is_no_batch():
    with pytest.raises(ValueError, match=r"several frames, got one array \[240, 320, 3\]"):
        pose_with(Everywhere()).batch(dotted())


def test_frames_may_come_from_a_generator():
    pose = pose_with(Everywhere(box_round(60, 80)))
    people = pose.batch(dotted((60, 80)) for _ in range(3))
    assert [len(p) for p in people] == [1, 1, 1]


def test_frames_and_boxes_must_be_as_many():
    with pytest.raises(ValueError, match="boxes must have 2 entries, got 1"):
        pose_with(Everywhere()).batch([dotted(), dotted()], boxes=[np.zeros((0, 4))])


def test_duplicates_are_dropped_and_order_is_kept():
    rng = np.random.default_rng(0)
    one, two = rng.uniform(0, 100, (2, 14, 2)).astype(np.float32)
    keypoints = np.stack((one, two + 300, one + 0.5))
    boxes = np.array([[0, 0, 100, 100], [300, 300, 400, 400], [0, 0, 100, 100]], np.float32)
    people = People(
        boxes,
        np.array([0.5, 0.6, 0.9], np.float32),
        keypoints,
        np.full((3, 14), 0.8, np.float32),
        LSP14,
    )
    kept = drop_duplicates(people)
    np.testing.assert_allclose(kept.box_scores, [0.6, 0.9])


def test_detect_every_follows_joints_in_between():
    """Between searches nobody is lost, not even who has too few sure joints to be followed."""
    detector = Everywhere(box_round(60, 80))
    pose = pose_with(detector)
    follower = Follower(pose, detect_every=3)
    for i in range(7):
        people = follower(Frame(dotted((60 + i, 80)), i, i / 10))
        np.testing.assert_allclose(people.keypoints[:, 0], [[60 + i, 80]], atol=0.5)
    assert detector.calls == 3  # frames 0, 3 and 6


@pytest.mark.parametrize(("every", "runs"), [(1, [3, 3, 1]), (2, [1] * 7)])
def test_parallel_requests_share_frames_unless_they_follow_each_other(tmp_path, every, runs):
    for i in range(7):
        cv2.imwrite(str(tmp_path / f"{i}.png"), dotted((60 + i, 80)))
    pose = pose_with(Everywhere(box_round(60, 80)))
    pose._engine = DotEngine(options=Options(mode="throughput", requests=3))
    for i, (frame, people) in enumerate(pose.stream(tmp_path, detect_every=every)):
        assert frame.index == i
        np.testing.assert_allclose(people.keypoints[:, 0], [[60 + i, 80]], atol=0.5)
    assert i == 6
    assert pose._engine.runs == runs


def test_tracks_keep_their_numbers_and_smoothing_needs_them():
    pose = pose_with(Everywhere(box_round(60, 80), box_round(200, 120)))
    follower = Follower(pose, smooth="one-euro")
    ids = [
        follower(Frame(dotted((60 + i, 80), (200 - i, 120)), i, i / 10)).ids.tolist()
        for i in range(4)
    ]
    assert all(i == ids[0] for i in ids)
    with pytest.raises(ValueError, match="smooth must be one-euro or None"):
        Follower(pose, smooth="median")
    with pytest.raises(ValueError, match="detect_every must be at least 1"):
        Follower(pose, detect_every=0)


def test_pictures_of_a_folder_are_smoothed_as_time_goes_on(tmp_path):
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), dotted((60 + 3 * i, 80)))
    pose = pose_with(Everywhere(box_round(70, 80)))
    seen = [p.keypoints[0, 0, 0] for _, p in pose.stream(tmp_path, smooth="one-euro")]
    assert (np.diff(seen) > 0.5).all()  # the time of every picture is 0, yet nothing stands still


def test_stream_yields_every_frame_of_a_folder_in_order(tmp_path):
    for i in range(12):
        cv2.imwrite(str(tmp_path / f"{i}.png"), dotted((40 + 10 * i, 80)))
    pose = pose_with(Everywhere([0, 0, 320, 240]))
    seen = [(f.index, p.keypoints[0, 0, 0]) for f, p in pose.stream(tmp_path)]
    assert [i for i, _ in seen] == list(range(12))
    np.testing.assert_allclose([x for _, x in seen], 40 + 10 * np.arange(12), atol=8)
    assert len(list(pose.stream(tmp_path, max_frames=5))) == 5


def test_stream_errors_arrive_in_the_caller(tmp_path):
    pose = pose_with(Everywhere())
    with pytest.raises(FrameError, match=r"none\.mp4"):
        list(pose.stream(tmp_path / "none.mp4"))


def test_names_that_are_wrong_list_those_that_are_right():
    with pytest.raises(ModelError, match="unknown model 'openpose'; known: default, cpn-light"):
        Pose("openpose", detector="none")
    with pytest.raises(DetectorError, match="detector"):
        Pose(detector="nobody.onnx")


def test_json_of_a_person_without_joints():
    people = pose_with(Everywhere([0, 0, 50, 50]))(dotted())
    text = json.dumps(people.to_dict(), allow_nan=False)
    assert json.loads(text)["people"][0]["keypoints"][0] == [None, None]
