"""What stands beside the times of one person: how both are scored, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fastpose.datasets import PoseData
from fastpose.datasets.samples import Sample
from fastpose.skeleton import LSP14
from fastpose.types import People

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "pipeline")]
import one_person as bench  # noqa: E402
from suite import WrongAnswerError  # noqa: E402

LIMBS = [LSP14.joints.index(name) for name in bench.MARKS]


def sample(size: tuple[int, int], seed: int) -> Sample:
    joints = np.random.default_rng(seed).uniform(0, 1, (14, 2)) * size[::-1]
    known = np.ones(14, bool)
    return Sample(Path("a.jpg"), size, joints.astype(np.float32), known, known)


def marks_of(joints: np.ndarray) -> np.ndarray:
    """MediaPipe's landmarks [33, 2] of LSP's joints [14, 2]."""
    marks = np.zeros((33, 2), np.float32)
    marks[list(bench.MARKS.values())] = joints[LIMBS]
    return marks


@pytest.fixture
def pictures() -> bench.Pictures:
    samples = (sample((90, 60), 0), sample((50, 150), 1), sample((64, 64), 2))
    placed = [bench.pad(np.zeros((*s.size, 3), np.uint8)) for s in samples]
    zooms = np.array([[zoom] for _, zoom, _ in placed])
    return bench.Pictures(
        PoseData("lsp", LSP14, samples, "test"), (), zooms, np.array([p[2] for p in placed])
    )


def test_a_padded_picture_is_in_the_middle_of_grey():
    picture = np.full((50, 100, 3), 255, np.uint8)
    padded, zoom, shift = bench.pad(picture)
    assert padded.shape == (512, 512, 3)
    assert (zoom, shift) == (200 / 512, (50, 75))
    white = np.argwhere((padded == 255).all(axis=2))
    np.testing.assert_allclose(white.min(axis=0) * zoom, (75, 50), atol=1)
    np.testing.assert_allclose(white.max(axis=0) * zoom, (125, 150), atol=1)
    assert (padded[0] == bench.GREY).all()


def test_joints_of_padded_pictures_are_scored_in_their_own(pictures):
    truth = np.stack([s.joints for s in pictures.data.samples])
    points = (truth + 0.5 + pictures.shifts[:, None]) / pictures.zooms[:, None] - 0.5
    whole = {"pck": 100.0, "pck_found": 100.0, "found_percent": 100.0, "pictures": 3}
    assert pictures.pck(points) == whole
    points[1] = np.nan
    assert pictures.pck(points) == {**whole, "pck": 66.67, "found_percent": 66.67}
    points[:, LIMBS] += 500
    assert pictures.pck(points)["pck"] == 0
    nobody = {"pck": 0.0, "found_percent": 0.0, "pictures": 3}
    assert pictures.pck(np.full_like(points, np.nan)) == nobody


def people(*joints: np.ndarray) -> People:
    count = len(joints)
    return People(
        np.tile(np.float32((0, 0, 9, 9)), (count, 1)),
        np.ones(count, np.float32),
        np.array(joints, np.float32).reshape(count, 14, 2),
        np.ones((count, 14), np.float32),
        LSP14,
    )


def test_as_many_people_must_be_found_as_can_be_seen():
    one = people(sample((90, 60), 0).joints)
    answers = [[one] * bench.FRAMES] * 2
    assert bench.check_people(answers, 1) == "1 people found in 100 % of 40 frames, by looking"
    assert bench.seen(answers) == 100
    with pytest.raises(WrongAnswerError, match="0 people found in 0 % of the frames"):
        bench.check_people(answers, 0)
    with pytest.raises(WrongAnswerError, match="1 people found in 98 % of the frames"):
        bench.check_people([answers[0], [*answers[0][1:], people()]], 1)
    with pytest.raises(WrongAnswerError, match="39 frames instead of 40"):
        bench.check_people([answers[0], answers[0][1:]], 1)


def test_the_peer_must_have_found_the_same_person():
    joints = sample((90, 60), 0).joints
    answers = [[people(joints), people()]]
    marks = np.stack([marks_of(joints)] * 2)[None]
    same = "0.00 torsos, the median joint in 1 frames with both"
    assert bench.check_marks(marks, answers) == same
    with pytest.raises(WrongAnswerError, match="torsos apart from ours"):
        bench.check_marks(marks + 40, answers)
    assert bench.check_marks(np.full_like(marks, np.nan), answers) == "nobody whom both find"
