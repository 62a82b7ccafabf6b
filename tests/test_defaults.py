"""The two networks that every install carries, on a photograph.

It is "camera" of scikit-image, by Lav Varshney, under CC0.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import fastpose
from fastpose.models import DEFAULT_DETECTOR, DEFAULT_MODEL, trained

PHOTOGRAPHER = Path(__file__).with_name("photographer.jpg")


@pytest.fixture(scope="module")
def pose():
    with fastpose.Pose() as found:
        yield found


def test_the_photographer_is_the_only_person(pose):
    image = cv2.imread(str(PHOTOGRAPHER))
    people = pose(image)
    assert len(people) == 1
    assert people.box_scores[0] > 0.9
    height, width = image.shape[:2]
    x0, y0, x1, y1 = people.boxes[0]
    assert (x1 - x0) * (y1 - y0) > 0.3 * width * height
    joints = dict(zip(people.skeleton.joints, people.keypoints[0], strict=True))
    assert joints["head_top"][1] < joints["left_hip"][1] < joints["left_ankle"][1]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_nobody_in_an_empty_frame_is_a_result(pose, value):
    assert len(pose(np.full((360, 640, 3), value, np.uint8))) == 0
    noise = np.random.default_rng(value).integers(0, 256, (97, 31, 3), np.uint8)
    assert len(pose(noise)) == 0


def test_the_files_stay_within_their_limits():
    sizes = {path.name: path.stat().st_size for path in trained.folder().iterdir()}
    mib = 2**20
    assert sum(sizes.values()) < 36 * mib
    assert max(sizes.values()) < 15 * mib
    graphs = [n for n in sizes if n.startswith(DEFAULT_DETECTOR) and n.endswith(".onnx")]
    assert len(graphs) == 2
    assert sum(sizes[name] for name in graphs) < 8 * mib
    assert sizes[f"{DEFAULT_MODEL}.onnx"] < 12 * mib
