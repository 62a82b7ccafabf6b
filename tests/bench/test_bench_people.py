"""A video by the number of people: a network whose answer is known, no time asserted."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from fastpose import measure
from fastpose.bench import people as module
from fastpose.bench.people import (
    AnswerError,
    Loop,
    Run,
    measure_people,
    place_boxes,
    read_clip,
)
from fastpose.engines import Options
from fastpose.measure import Times
from fastpose.models import model_spec
from fastpose.pose import Pose
from fastpose.types import Boxes

SPEC = replace(model_spec("cpn-light"), size=(32, 24), mean=(0.0,) * 3, std=(1.0,) * 3)
FRAMES = 5


class Bright:
    """An engine whose maps are how bright a window is, cell by cell."""

    shareable = False

    def __init__(self, options=None):
        self.manifest = SimpleNamespace(
            spec=SPEC,
            buckets=(1, 4),
            kind="bright",
            precision="f32",
            device="CPU",
            versions={},
            options=options or Options(),
        )
        self.images = np.zeros((4, 3, *SPEC.size), np.float32)

    def buffer(self, count):
        return self.images[:count]

    def run(self, count):
        cells = self.images[:count, 0].reshape(count, SPEC.cells[0], 4, SPEC.cells[1], 4)
        maps = cells.mean(axis=(2, 4)) / 255
        return np.repeat(maps[:, None], len(SPEC.joints), axis=1)

    def close(self):
        pass


class Two:
    """A detector that finds two people in each frame."""

    def __init__(self):
        self.calls = 0

    def __call__(self, frames):
        self.calls += len(frames)
        boxes = np.array([[4, 4, 24, 44], [40, 4, 60, 44]], np.float32)
        return [Boxes(boxes, np.ones(2, np.float32)) for _ in frames]

    def close(self):
        pass


def make_pose(options=None):
    pose = object.__new__(Pose)
    pose._detector, pose._engine = Two(), Bright(options)
    return pose


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "spots.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    y, x = np.mgrid[:48, :64]
    for i in range(FRAMES):
        spots = sum(np.exp(-((x - a - i) ** 2 + (y - 20) ** 2) / 60) for a in (10, 45))
        writer.write(np.repeat((250 * np.clip(spots, 0, 1)).astype(np.uint8)[..., None], 3, 2))
    writer.release()
    return path


@pytest.mark.parametrize("size", [(1280, 720), (720, 1280), (64, 48), (5, 3)])
@pytest.mark.parametrize("people", [0, 1, 2, 8, 32])
def test_boxes_lie_inside_in_several_sizes(size, people):
    boxes = place_boxes(*size, people)
    assert boxes.shape == (people, 4)
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= np.float32(size)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(np.unique(boxes[:, 3] - boxes[:, 1])) == people
    np.testing.assert_array_equal(boxes, place_boxes(*size, people))


def test_a_row_for_each_number_of_people(clip):
    told = []
    rows = measure_people(
        make_pose(), clip, people=(0, 2, 8), frames=4, rounds=1, threads=3, tell=told.append
    )
    assert told == ["check", "time", "stages"]
    assert [row.case["people"] for row in rows] == [0, 2, 8]
    assert len({row.key for row in rows}) == 3
    for row in rows:
        n = row.case["people"]
        assert (row.group, row.clock, row.device, row.threads) == ("pipeline", "wall", "cpu", 3)
        assert row.check.startswith(f"4 frames, {4 * n} people; joints of the first 3 at most 0 px")
        assert row.case["video"] == "spots.mp4"
        assert row.case["frame"] == "64x48"
        assert row.time["turns"] == 4  # frames
        assert row.figures["fps"] > 0
        stages = {name for name in row.figures if name.endswith("_ms")}
        network = {"crop_ms", "network_ms", "decode_ms"} if n else set()
        assert stages == {"read_ms", "follow_ms", *network}


def test_the_detector_is_asked_where_there_are_no_boxes(clip):
    pose = make_pose()
    (row,) = measure_people(
        pose, clip, people=None, frames=4, rounds=1, detect_every=2, smooth="one-euro", draw=True
    )
    assert row.case["every"] == 2
    assert row.case["detector"] == "default"
    assert "people" not in row.case
    assert row.check.startswith("4 frames, 8 people; joints of the first 1 at most 0 px")
    assert {"detect_ms", "draw_ms"} <= set(row.figures)
    assert row.figures["people_found"] == 2
    assert "write_ms" not in row.figures
    passes = 1 + 2 + 1 + module.WATCHED  # checked, warmed up, counted, watched
    assert pose._detector.calls == 2 * passes + 1  # the last is by Pose.batch


@pytest.mark.parametrize("draw", [False, True])
def test_what_is_written_is_written_whole(clip, tmp_path, draw):
    run = Run(make_pose(), read_clip(clip, 4), 2, Loop(draw=draw, write=True), tmp_path)
    for do in (run, run.split):
        do()
        (jsonl,) = tmp_path.glob("*.jsonl")
        assert len(jsonl.read_text().splitlines()) == 1 + 4
        videos = list(tmp_path.glob("*.mp4"))
        assert [read_clip(video, 9).frames for video in videos] == [4] * draw
        for file in (jsonl, *videos):
            file.unlink()
    assert len(run.seconds) == 1
    assert len(run.seconds[0]) == 4
    assert ("draw_ms" in run.split()) is draw


def test_stages_are_milliseconds_of_a_frame(clip, tmp_path, monkeypatch):
    now = [0.0]

    class Slow(Bright):
        def run(self, count):
            now[0] += 3.0
            return super().run(count)

    pose = make_pose()
    pose._engine = Slow()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    split = Run(pose, read_clip(clip, 4), 2, Loop(), tmp_path).split()
    assert split["network_ms"] == 3000.0
    assert sum(split.values()) == 3000.0


@pytest.mark.parametrize(
    ("requests", "seconds"), [(None, (3.0,) * 5), (2, (1.5, 1.5, 1.5, 1.5, 3.0))]
)
def test_frames_that_go_together_share_their_time(clip, tmp_path, monkeypatch, requests, seconds):
    now = [0.0]

    class Slow(Bright):
        def run(self, count):
            now[0] += 3.0
            return super().run(count)

    pose = make_pose()
    pose._engine = Slow(Options(mode="throughput", requests=requests) if requests else None)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    run = Run(pose, read_clip(clip, FRAMES), 1, Loop(), tmp_path)
    run()
    assert run.seconds == [seconds]


def test_a_shorter_video_is_taken_whole(clip):
    read = read_clip(clip, 100)
    assert (read.frames, read.width, read.height, len(read.first)) == (FRAMES, 64, 48, 3)


@pytest.mark.parametrize("requests", [2, 3])
def test_frames_that_go_together_are_checked_together(clip, tmp_path, requests):
    pose = make_pose(Options(mode="throughput", requests=requests))
    run = Run(pose, read_clip(clip, FRAMES), 2, Loop(), tmp_path)
    assert "5 frames" in run.check()
    assert run.case["mode"] == "throughput"


def wrong_joint(stream):
    for frame, people in stream:
        people.keypoints[0, 0, 0] += 0.1
        yield frame, people


def lost_joint(stream):
    for frame, people in stream:
        people.keypoints[0, 0] = np.nan
        yield frame, people


def lost_person(stream):
    for frame, people in stream:
        yield frame, people[:1]


def lost_frame(stream):
    yield from list(stream)[1:]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (wrong_joint, "joints are 0.1 px from those of Pose.batch"),
        (lost_joint, "joints are inf px from"),
        (lost_person, r"expected 2 people a frame, got \[1\]"),
        (lost_frame, "expected 4 frames, got 3"),
    ],
)
def test_a_wrong_answer_is_not_timed(clip, monkeypatch, fault, text):
    stream = Pose.stream
    monkeypatch.setattr(Pose, "stream", lambda *a, **k: fault(stream(*a, **k)))
    monkeypatch.setattr(module, "_take_turns", lambda *a: pytest.fail("was timed"))
    with pytest.raises(AnswerError, match=text):
        measure_people(make_pose(), clip, people=(2,), frames=4, rounds=1)


def test_unsteady_passes_are_refused(clip):
    def unsteady(calls, *, rounds, repeats):
        for run in calls.values():
            for _ in range(rounds):
                run()
        return dict.fromkeys(calls, Times((1.0, 1.0, 2.0, 3.0)))

    (row,) = measure_people(make_pose(), clip, people=(2,), frames=2, rounds=4, take=unsteady)
    assert row.refused
    assert row.time is None
    assert "fps" not in row.figures
    assert "network_ms" in row.figures


def test_only_the_unsteady_take_turns_again(clip):
    asked = []

    def take(calls, *, rounds, repeats):
        asked.append(list(calls))
        found = {"1": (1.0,) * 4, "2": (1.0, 1.0, 2.0, 3.0) if len(asked) < 2 else (2.0,) * 4}
        for name, run in calls.items():
            run.seconds += [(seconds,) for seconds in found[name]]
        return {name: Times(found[name]) for name in calls}

    rows = measure_people(make_pose(), clip, people=(1, 2), frames=1, rounds=4, take=take)
    assert asked == [["1", "2"], ["2"]]
    assert [row.time["median_ms"] for row in rows] == [1000.0, 2000.0]


def test_frames_of_the_steadiest_try_are_kept(clip):
    tries = iter([(1.0, 1.0, 2.0, 3.0), (4.0, 4.0, 4.0, 4.0)])

    def take(calls, *, rounds, repeats):
        (run,) = calls.values()
        found = next(tries)
        run.seconds += [(seconds / 2,) * 2 for seconds in found]
        return dict.fromkeys(calls, Times(found))

    (row,) = measure_people(make_pose(), clip, people=(2,), frames=2, rounds=4, take=take)
    assert row.time["median_ms"] == 2000.0
    assert row.time["turns"] == 8
    assert row.figures["fps"] == 0.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"people": ()}, r"people must be numbers from 0, got \[\]"),
        ({"people": (1, -1)}, r"got \[1, -1\]"),
        ({"detect_every": 0}, "detect_every must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(clip, options, text):
    with pytest.raises(ValueError, match=text):
        measure_people(make_pose(), clip, **options)
