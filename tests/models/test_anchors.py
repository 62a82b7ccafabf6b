"""Anchors and deltas against their definitions, worked out one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fastpose.models import DETECTORS
from fastpose.models.anchors import (
    HEAD_WEIGHTS,
    LARGEST_STEP,
    RPN_WEIGHTS,
    anchors,
    clip,
    decode,
    encode,
    overlaps,
    pooled_level,
)

LIGHT, PUBLISHED = DETECTORS["fpn-light"], DETECTORS["fpn50"]


def random_boxes(count, seed=0, largest=200.0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-50, 300, (count, 2))
    return np.concatenate((low, low + rng.uniform(1, largest, (count, 2))), 1).astype(np.float32)


@pytest.mark.parametrize("name", ["fpn-light", "fpn50"])
@pytest.mark.parametrize("size", [(64, 64), (64, 160), (96, 32)])
def test_anchors_are_centred_on_their_cells_in_the_stated_order(name, size):
    spec = DETECTORS[name]
    boxes, levels = anchors(spec, size)
    expected, places = [], []
    for level, stride in enumerate(spec.strides):
        for row in range(math.ceil(size[0] / stride)):
            for column in range(math.ceil(size[1] / stride)):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for side in spec.anchors[level]:
                    for ratio in spec.ratios:
                        width = side / math.sqrt(ratio)
                        height = width * ratio
                        expected.append(
                            (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                        )
                        places.append(level)
    np.testing.assert_allclose(boxes, expected, atol=1e-3)
    np.testing.assert_array_equal(levels, places)
    assert boxes.dtype == np.float32


def test_an_anchor_has_the_area_and_the_ratio_of_its_spec():
    boxes, levels = anchors(LIGHT, (96, 64))
    sides = boxes[:, 2:] - boxes[:, :2]
    shapes = [(s, r) for level in LIGHT.anchors for s in level for r in LIGHT.ratios]
    each = len(LIGHT.anchors[0]) * len(LIGHT.ratios)
    for level in range(3):
        here = sides[levels == level]
        for place, (side, ratio) in enumerate(shapes[level * each : (level + 1) * each]):
            np.testing.assert_allclose(np.sqrt(here[place::each].prod(1)), side, rtol=1e-4)
            np.testing.assert_allclose(here[place::each, 1] / here[place::each, 0], ratio, 1e-4)


def test_a_size_that_is_no_multiple_has_the_cells_of_a_rounded_up_map():
    _, levels = anchors(PUBLISHED, (96, 32))  # P6 of 3 x 1 cells of P5 is 2 x 1
    assert (levels == 4).sum() == 2 * 1 * 3
    assert (levels == 3).sum() == 3 * 1 * 3


@pytest.mark.parametrize("weights", [RPN_WEIGHTS, HEAD_WEIGHTS])
def test_decode_undoes_encode(weights):
    boxes, references = random_boxes(500, 1), random_boxes(500, 2)
    deltas = encode(boxes, references, weights)
    near = (deltas[:, 2:] / weights[2:] < LARGEST_STEP).all(1)
    assert near.mean() > 0.9
    np.testing.assert_allclose(decode(deltas, references, weights)[near], boxes[near], atol=2e-3)


def test_deltas_are_shifts_in_sizes_and_logarithms():
    reference = np.array([[10, 20, 30, 60]], np.float32)  # 20 x 40 round (20, 40)
    box = np.array([[20, 40, 60, 60]], np.float32)  # 40 x 20 round (40, 50)
    expected = [1.0, 0.25, math.log(2), -math.log(2)]
    np.testing.assert_allclose(encode(box, reference), [expected], rtol=1e-6)
    scaled = np.array(expected) * (10, 10, 5, 5)
    np.testing.assert_allclose(encode(box, reference, HEAD_WEIGHTS), [scaled], rtol=1e-6)


def test_encode_takes_leading_axes():
    boxes, references = random_boxes(12, 1).reshape(3, 4, 4), random_boxes(3, 2)[:, None]
    deltas = encode(boxes, references)
    assert deltas.shape == (3, 4, 4)
    np.testing.assert_allclose(decode(deltas, references), boxes, atol=2e-3)


def test_no_side_grows_beyond_the_largest_step():
    reference = np.array([[0, 0, 16, 16]], np.float32)
    wild = decode(np.array([[0, 0, 50, 1000]], np.float32), reference)
    np.testing.assert_allclose(wild[:, 2:] - wild[:, :2], [[1000, 1000]], rtol=1e-4)


def test_clip_keeps_what_is_inside():
    boxes = np.array([[-5, -6, 50, 40], [10, 10, 20, 20], [70, 5, 90, 200]], np.float32)
    expected = [[0, 0, 50, 40], [10, 10, 20, 20], [60, 5, 60, 100]]
    np.testing.assert_array_equal(clip(boxes, (100, 60)), expected)


def test_overlaps_equal_those_counted_in_pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 12, (20, 2))
    boxes = np.concatenate((low, low + rng.integers(0, 9, (20, 2))), 1)  # some without area
    masks = np.zeros((20, 24, 24), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    iou, inside = overlaps(boxes[:8].astype(np.float32), boxes[8:].astype(np.float32))
    for i, j in np.ndindex(8, 12):
        a, b = masks[i], masks[8 + j]
        shared, union = (a & b).sum(), (a | b).sum()
        assert iou[i, j] == pytest.approx(shared / union if union else 0)
        assert inside[i, j] == pytest.approx(shared / a.sum() if a.any() else 0)


def test_overlaps_of_no_boxes_are_empty():
    none, some = np.zeros((0, 4), np.float32), random_boxes(3)
    assert [a.shape for a in overlaps(none, some)] == [(0, 3)] * 2
    assert [a.shape for a in overlaps(some, none)] == [(3, 0)] * 2


@pytest.mark.parametrize(
    ("side", "level"),
    [(1, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (1300, 3)],
)
def test_a_box_of_the_published_detector_is_read_where_its_paper_says(side, level):
    """k = floor(4 + log2(side / 224)), P2 to P5, equation 1 of Lin et al., CVPR 2017."""
    box = np.array([[5, 7, 5 + side, 7 + side]], np.float32)
    assert pooled_level(PUBLISHED, box) == [level]
    tall = np.array([[5, 7, 5 + side / 2, 7 + side * 2]], np.float32)
    assert pooled_level(PUBLISHED, tall) == [level]


def test_the_level_follows_stride_and_canonical_size_of_the_spec():
    sides = np.array([20, 55, 56, 111, 112, 223, 224, 416], np.float32)
    boxes = np.stack((0 * sides, 0 * sides, sides, sides), 1)
    np.testing.assert_array_equal(pooled_level(LIGHT, boxes), [0, 0, 0, 0, 1, 1, 2, 2])
    finer = replace(LIGHT, canonical=56.0)
    np.testing.assert_array_equal(pooled_level(finer, boxes), [0, 0, 1, 1, 2, 2, 2, 2])
    assert pooled_level(LIGHT, np.zeros((0, 4), np.float32)).shape == (0,)
