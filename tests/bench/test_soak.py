"""The run that shows that memory is flat can also show that it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "memory"))

import soak
from clips import noise, write_video
from soak import everybody, growth_percent, write_network

from fastpose import Pose

FRAMES, SIZE = 300, (240, 320)  # of 230 kB


@pytest.mark.parametrize(
    ("last", "expected"), [(1000, 0.0), (1020, 2.0), (990, -1.0)], ids=["flat", "more", "less"]
)
def test_growth_is_that_of_the_windows_medians(last, expected):
    samples = [1] * 25 + [1000] * 50 + [5000] * 100 + [last] * 50
    samples[30] = samples[-1] = 10**9  # for a moment
    assert growth_percent(samples) == pytest.approx(expected)


def test_what_comes_before_memory_has_settled_does_not_count():
    assert growth_percent([10, 10, 20, 20, 20, 20], step=5, settled=10, window=10) == 0


def test_windows_that_overlap_are_refused():
    with pytest.raises(ValueError, match="6 samples are too few for two windows of 3"):
        growth_percent([1] * 6, step=1, settled=1, window=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak")
    video = folder / "noise.mp4"
    write_video(video, FRAMES, noise(SIZE), SIZE)
    boxes = everybody(video, FRAMES, SIZE)
    network = write_network(folder)

    def once(keep=None):
        with Pose(network, detector="none", threads=1) as pose:
            samples, frames, people = soak.soak(pose, video, folder, boxes, keep)
        assert (frames, people) == (FRAMES, FRAMES * soak.PEOPLE)
        return growth_percent(samples, settled=100, window=60)

    return once


def test_a_planted_leak_is_seen(run):
    kept = []
    leaking = run(lambda frame, people: kept.append(frame.image))
    assert len(kept) == FRAMES
    kept.clear()
    assert leaking > 2.0  # percent; kept are 25 MB between the windows
    assert run() < leaking / 2
