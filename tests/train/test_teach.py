"""Boxes from joints and from a teacher."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fastpose.datasets import PoseData, Sample
from fastpose.skeleton import LSP14
from fastpose.train.teach import DOUBTFUL, SURE, combine, teach_boxes
from fastpose.types import Boxes

F = np.float32
SIZE = (200, 300)
EXTENT = np.array([[100, 40, 160, 180]], F)
OWN = (100 - 7 + 0.5, 40 - 15 + 0.5, 160 + 7 + 0.5, 180 + 15 + 0.5)  # with a margin, from the edge
NOBODY = np.full((1, 4), np.nan, F)


def taught(*rows):
    """Boxes with their scores last."""
    values = np.array(rows, F).reshape(-1, 5)
    return Boxes(values[:, :4], values[:, 4])


def test_without_a_teachers_box_the_joints_extent_counts_with_a_margin():
    boxes, ignored = combine(EXTENT, taught(), SIZE)
    np.testing.assert_allclose(boxes, [OWN], atol=1e-4)
    assert ignored.tolist() == [False]
    assert (boxes.dtype, ignored.dtype) == (F, bool)


@pytest.mark.parametrize("score", [0.9, SURE, 0.3, DOUBTFUL])
def test_the_teachers_box_of_the_annotated_person_is_a_target_however_sure_it_is(score):
    box = (90, 25, 175, 195)
    boxes, ignored = combine(EXTENT, taught((*box, score)), SIZE)
    np.testing.assert_allclose(boxes, [box])
    assert ignored.tolist() == [False]


def test_of_several_boxes_the_one_that_overlaps_most_is_the_person():
    near, nearer = (80, 25, 150, 195), (92, 28, 170, 192)
    boxes, ignored = combine(EXTENT, taught((*near, 0.4), (*nearer, 0.3)), SIZE)
    np.testing.assert_allclose(boxes, [near, nearer])
    assert ignored.tolist() == [True, False]


def test_a_box_that_may_be_the_person_is_no_second_one():
    half, away = (95, 30, 150, 110), (10, 30, 40, 110)
    boxes, ignored = combine(EXTENT, taught((*half, 0.9), (*away, 0.9)), SIZE)
    np.testing.assert_allclose(boxes, [half, away, OWN], atol=1e-4)
    assert ignored.tolist() == [True, False, False]


def test_others_are_targets_doubted_or_nobody_by_their_score():
    rows = [
        (5 + 20 * i, 5, 20 + 20 * i, 30, s) for i, s in enumerate((0.9, SURE, 0.49, 0.15, 0.14))
    ]
    boxes, ignored = combine(EXTENT, taught(*rows), SIZE)
    np.testing.assert_allclose(boxes[:4], [row[:4] for row in rows[:4]])
    np.testing.assert_allclose(boxes[4:], [OWN], atol=1e-4)
    assert ignored.tolist() == [False, False, True, True, False]


def test_boxes_are_cut_off_at_the_picture_and_what_is_left_of_nothing_is_dropped():
    rows = [(-20, -10, 40, 50, 0.9), (290, 190, 400, 400, 0.9), (300, 10, 340, 60, 0.9)]
    edge = np.array([[250, 150, 299, 199]], F)
    boxes, _ = combine(edge, taught(*rows), SIZE)
    assert boxes[0].tolist() == [0, 0, 40, 50]
    assert boxes[1].tolist() == [290, 190, 300, 200]
    assert len(boxes) == 3
    np.testing.assert_allclose(boxes[2], (250 - 5.9 + 0.5, 150 - 5.9 + 0.5, 300, 200), atol=1e-3)


def test_a_person_without_joints_is_left_to_the_teacher():
    boxes, ignored = combine(NOBODY, taught((10, 10, 50, 90, 0.8), (60, 10, 90, 90, 0.2)), SIZE)
    assert len(boxes) == 2
    assert ignored.tolist() == [False, True]
    boxes, ignored = combine(NOBODY, taught(), SIZE)
    assert (boxes.shape, ignored.shape) == ((0, 4), (0,))


def test_what_the_teacher_gave_is_left_as_it_was():
    given = taught((90, 25, 175, 195, 0.3), (-5, 5, 30, 60, 0.9))
    before = given.boxes.copy(), given.scores.copy()
    combine(EXTENT, given, SIZE)
    np.testing.assert_array_equal(given.boxes, before[0])
    np.testing.assert_array_equal(given.scores, before[1])


class Teacher:
    """Sees one person at the left of every picture, as wide as the picture's grey says."""

    def __init__(self):
        self.shapes = []

    def __call__(self, frames):
        (image,) = frames
        self.shapes.append(image.shape)
        return [taught((0, 0, int(image[0, 0, 0]), image.shape[0], 0.8))]


def test_every_picture_is_taught_in_its_order(tmp_path):
    samples = []
    for i, grey in enumerate((40, 60)):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.full((100 + 10 * i, 200, 3), grey, np.uint8))
        joints = np.full((14, 2), (150, 50), F)
        joints[0] = (130, 20)
        joints[13] = (0, 0)  # not labelled: nowhere
        labelled = np.arange(14) < 13
        samples.append(Sample(path, None, joints, labelled, labelled))
    teacher, steps = Teacher(), []
    data = PoseData("lsp", LSP14, tuple(samples), split="train")
    result = teach_boxes(data, teacher, steps.append)
    assert (result.name, result.classes, result.split) == ("lsp", ("person",), "train")
    assert steps == [1, 1]
    assert teacher.shapes == [(100, 200, 3), (110, 200, 3)]
    for i, (sample, grey) in enumerate(zip(result.samples, (40, 60), strict=True)):
        assert sample.image == samples[i].image
        assert sample.size == (100 + 10 * i, 200)
        np.testing.assert_allclose(sample.boxes[0], (0, 0, grey, 100 + 10 * i))
        np.testing.assert_allclose(sample.boxes[1], (127.5, 16.5, 153.5, 54.5), atol=1e-4)
        assert sample.classes.tolist() == [0, 0]
        assert sample.ignored.tolist() == [False, False]
