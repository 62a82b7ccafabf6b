"""Between the halves of a detector: RoIAlign by its definition, and the choice of proposals."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from fastpose import ops
from fastpose.detect.regions import OVERLAP, SMALLEST, pool_regions, select_proposals
from fastpose.models import DETECTORS
from fastpose.models.anchors import anchors, clip, encode, overlaps, pooled_level

SPEC = replace(DETECTORS["fpn-light"], size=(128, 192), canonical=40.0, width=3, pool=7)
SIZE = SPEC.size
F = np.float32


def random_pyramid(seed=0, pictures=2, channels=3):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((pictures, channels, SIZE[0] // s, SIZE[1] // s)).astype(F)
        for s in SPEC.strides
    ]


def random_boxes(count, seed=0, margin=0.0):
    """Boxes of all sizes within the input."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    sides = np.exp(rng.uniform(np.log(4), np.log(120), (count, 2)))
    sides = np.minimum(sides, np.array([width, height]) - 2 * margin)
    low = margin + rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - 2 * margin - sides)
    return np.concatenate((low, low + sides), 1).astype(F)


def roi_align(features, box, stride, pool, outside):
    """One box's window [C, pool, pool] in float64, as He et al. define it, aligned, 2 x 2 samples.

    `outside`: "zero", taps outside the map are 0; "nearest", as torchvision has it: a sample less
    than a cell outside is brought to the border.
    """
    channels, height, width = features.shape
    x0, y0, x1, y1 = np.asarray(box, np.float64) / stride - 0.5
    cell_x, cell_y = (x1 - x0) / pool, (y1 - y0) / pool
    out = np.zeros((channels, pool, pool))
    for row, column, sy, sx in np.ndindex(pool, pool, 2, 2):
        x = x0 + (column + (sx + 0.5) / 2) * cell_x
        y = y0 + (row + (sy + 0.5) / 2) * cell_y
        if outside == "nearest":
            x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
        left, top = int(np.floor(x)), int(np.floor(y))
        for i, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            for j, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
                if 0 <= i < height and 0 <= j < width:
                    out[:, row, column] += weight_y * weight_x / 4 * features[:, i, j]
    return out


def expected_windows(pyramid, boxes, source, outside):
    levels = pooled_level(SPEC, boxes)
    return np.stack(
        [
            roi_align(pyramid[level][picture], box, SPEC.strides[level], SPEC.pool, outside)
            for box, picture, level in zip(boxes, source, levels, strict=True)
        ]
    )


def test_windows_equal_the_definition():
    pyramid, boxes = random_pyramid(), random_boxes(40)
    assert len(set(pooled_level(SPEC, boxes))) == 3
    source = np.random.default_rng(1).integers(0, 2, 40)
    actual = pool_regions(pyramid, boxes, source, SPEC)
    assert actual.shape == (40, 3, 7, 7)
    assert actual.dtype == F
    np.testing.assert_allclose(actual, expected_windows(pyramid, boxes, source, "zero"), atol=1e-4)


def test_away_from_the_border_windows_equal_torchvisions():
    """There, samples outside the map take its border; inside the two definitions are one."""
    margin = max(SPEC.strides) / 2  # half a cell of the coarsest level
    pyramid, boxes = random_pyramid(), random_boxes(30, margin=margin)
    source = np.zeros(30, np.int64)
    actual = pool_regions(pyramid, boxes, source, SPEC)
    expected = expected_windows(pyramid, boxes, source, "nearest")
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_a_ramp_is_read_at_the_centres_of_the_cells():
    """A linear function keeps its value under any mean of points round a centre."""
    pyramid = []
    for stride in SPEC.strides:
        y, x = np.indices((SIZE[0] // stride, SIZE[1] // stride)).astype(F)
        pyramid.append(np.stack(((x + 0.5) * stride, (y + 0.5) * stride))[None])
    boxes = random_boxes(60, margin=16)
    windows = pool_regions(pyramid, boxes, np.zeros(60, np.int64), SPEC)
    inner = (np.arange(7) + 0.5) / 7
    for box, window in zip(boxes, windows, strict=True):
        x = box[0] + inner * (box[2] - box[0])
        y = box[1] + inner * (box[3] - box[1])
        np.testing.assert_allclose(window[0], np.tile(x, (7, 1)), atol=2e-3)
        np.testing.assert_allclose(window[1], np.tile(y[:, None], (1, 7)), atol=2e-3)


def test_windows_come_in_the_order_of_the_boxes():
    pyramid = [np.full((1, 1, SIZE[0] // s, SIZE[1] // s), s, F) for s in SPEC.strides]
    boxes = random_boxes(30, margin=20)
    windows = pool_regions(pyramid, boxes, np.zeros(30, np.int64), SPEC)
    strides = np.array(SPEC.strides)[pooled_level(SPEC, boxes)]
    assert len(set(strides)) == 3
    expected = np.broadcast_to(strides.reshape(-1, 1, 1, 1), windows.shape)
    np.testing.assert_allclose(windows[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], rtol=1e-5)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_no_box_gives_no_window(kind):
    pyramid = random_pyramid()
    if kind == "torch":
        torch = pytest.importorskip("torch")
        pyramid = [torch.from_numpy(level) for level in pyramid]
    windows = pool_regions(pyramid, np.zeros((0, 4), F), np.zeros(0, np.int64), SPEC)
    assert tuple(windows.shape) == (0, 3, 7, 7)
    assert type(windows) is type(pyramid[0])


def test_torch_gives_what_numpy_gives():
    torch = pytest.importorskip("torch")
    pyramid, boxes = random_pyramid(), random_boxes(25, 3)
    source = np.random.default_rng(1).integers(0, 2, 25)
    expected = pool_regions(pyramid, boxes, source, SPEC)
    actual = pool_regions([torch.from_numpy(level) for level in pyramid], boxes, source, SPEC)
    np.testing.assert_array_equal(actual.numpy(), expected)


def test_gradients_reach_the_levels_that_were_read_and_no_others():
    torch = pytest.importorskip("torch")
    pyramid = [torch.from_numpy(level).requires_grad_() for level in random_pyramid()]
    boxes = random_boxes(40)
    boxes = boxes[pooled_level(SPEC, boxes) < 2]
    source = np.ones(len(boxes), np.int64)
    windows = pool_regions(pyramid, boxes, source, SPEC)
    upstream = torch.randn(windows.shape, generator=torch.Generator().manual_seed(0))
    (windows * upstream).sum().backward()
    # the windows are linear in the features: their product with the gradient is the sum itself
    total = sum(float((level.detach() * level.grad).sum()) for level in pyramid)
    assert total == pytest.approx(float((windows * upstream).sum().detach()), rel=1e-3)
    assert pyramid[0].grad[1].abs().max() > 0.01
    assert pyramid[0].grad[0].abs().max() == 0  # the other picture
    assert pyramid[2].grad.abs().max() == 0  # a level without a box


# Proposals


def quiet(value=-20.0):
    around, _ = anchors(SPEC, SIZE)
    return np.full(len(around), value, F), np.zeros((len(around), 4), F)


def select(logits, deltas, limit=50, spec=SPEC):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return select_proposals(logits, deltas, spec, SIZE, limit)


def test_the_surest_anchors_come_out_moved_by_their_deltas():
    around, levels = anchors(SPEC, SIZE)
    logits, deltas = quiet()
    wanted = np.array([[30, 40, 60, 110], [100, 20, 118, 44], [4, 4, 150, 120]], F)
    overlap, _ = overlaps(around, wanted)
    for place, (box, logit) in enumerate(zip(wanted, (2.0, 0.0, 1.0), strict=True)):
        best = overlap[:, place].argmax()
        logits[best], deltas[best] = logit, encode(box, around[best])
    assert len(set(levels[overlap.argmax(0)])) > 1
    boxes, scores = select(logits, deltas, limit=3)
    np.testing.assert_allclose(boxes, wanted[[0, 2, 1]], atol=1e-3)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([-2.0, -1.0, 0.0])), rtol=1e-5)
    assert boxes.dtype == scores.dtype == F


def test_proposals_are_cut_off_at_the_edges_of_the_input():
    around, _ = anchors(SPEC, SIZE)
    logits, deltas = quiet()
    wanted = np.array([-30, 50, 40, 170], F)
    logits[7], deltas[7] = 3, encode(wanted, around[7])
    outside = np.array([SIZE[1] + 5, 10, SIZE[1] + 60, 80], F)
    logits[90], deltas[90] = 4, encode(outside, around[90])
    thin = np.array([50, 10, 50 + SMALLEST - 0.1, 80], F)
    logits[91], deltas[91] = 5, encode(thin, around[91])
    boxes, scores = select(logits, deltas, limit=1)
    np.testing.assert_allclose(boxes, [[0, 50, 40, SIZE[0]]], atol=1e-3)
    assert scores == pytest.approx([1 / (1 + np.exp(-3))])


def test_duplicates_of_a_level_are_one_and_those_of_two_levels_are_two():
    around, levels = anchors(SPEC, SIZE)
    logits, deltas = quiet()
    box = np.array([60, 40, 100, 100], F)
    fine = np.flatnonzero(levels == 0)[100:104]
    coarse = np.flatnonzero(levels == 2)[20]
    for rank, place in enumerate([*fine, coarse]):
        shifted = box + np.array([rank, 0, rank, 0])  # overlaps of 0.86 at least
        logits[place], deltas[place] = 3 - rank, encode(shifted, around[place])
    boxes, scores = select(logits, deltas)
    sure = scores > 0.2
    np.testing.assert_allclose(boxes[sure], [box, box + np.array([4, 0, 4, 0])], atol=1e-3)
    table, _ = overlaps(boxes[:2], boxes[:2])
    assert table[0, 1] > OVERLAP


def test_only_the_highest_of_each_level_are_looked_at():
    spec = replace(SPEC, per_level=2)
    _, levels = anchors(spec, SIZE)
    logits, deltas = quiet()
    for level in range(3):
        places = np.flatnonzero(levels == level)[5::31][:5]
        logits[places] = 2 - level + 0.1 * np.arange(len(places))
    boxes, scores = select(logits, deltas, spec=spec)
    assert len(boxes) <= 3 * 2
    assert (scores > 0.4).all()
    assert scores.max() == pytest.approx(1 / (1 + np.exp(-2.4)))
    assert (np.diff(scores) <= 0).all()


def test_at_most_as_many_as_asked_the_surest():
    logits, deltas = quiet()
    logits[:] = np.random.default_rng(0).standard_normal(len(logits))
    many, sure = select(logits, deltas, limit=40)
    few, surest = select(logits, deltas, limit=7)
    assert len(many) == 40
    np.testing.assert_array_equal(few, many[:7])
    np.testing.assert_array_equal(surest, sure[:7])
    assert select(logits, deltas, limit=0)[0].shape == (0, 4)


@pytest.mark.parametrize("score", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_least_score_drops_what_is_below_and_changes_nothing_above(score):
    rng = np.random.default_rng(0)
    logits, deltas = quiet()
    logits[:] = 2 * rng.standard_normal(len(logits))
    deltas[:] = 0.3 * rng.standard_normal(deltas.shape)
    every, scores = select(logits, deltas, limit=5000)
    boxes, found = select_proposals(logits, deltas, SPEC, SIZE, 5000, floor=score)
    np.testing.assert_array_equal(boxes, every[scores >= score])
    np.testing.assert_array_equal(found, scores[scores >= score])


def test_of_equal_anchors_the_first_are_looked_at():
    spec = replace(SPEC, per_level=3)
    around, levels = anchors(spec, SIZE)
    logits, deltas = quiet()
    logits[np.flatnonzero(levels == 1)[[50, 90, 91, 150, 151, 152]]] = 0, 0, 2, 0, 0, -1
    boxes, _ = select(logits, deltas, spec=spec, limit=3)
    expected = np.flatnonzero(levels == 1)[[91, 50, 90]]
    np.testing.assert_allclose(boxes, clip(around[expected], SIZE), atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["logit", "shift", "size"])
def test_what_is_not_finite_never_comes_out(where, value):
    around, _ = anchors(SPEC, SIZE)
    logits, deltas = quiet()
    logits[60], deltas[60] = 1, encode(np.array([30, 40, 60, 110], F), around[60])
    bad = np.arange(100, 100 + 2 * SPEC.per_level)  # more than a level gives: none crowds out 60
    logits[bad] = 5
    if where == "logit":
        logits[bad] = value
    else:
        deltas[bad, 0 if where == "shift" else 2] = value
    boxes, scores = select(logits, deltas)
    assert np.isfinite(boxes).all()
    assert np.isfinite(scores).all()
    assert scores.max(initial=0) <= 1 / (1 + np.exp(-1)) + 1e-6
    np.testing.assert_allclose(boxes[0], [30, 40, 60, 110], atol=1e-3)


def test_nothing_finite_gives_no_proposal():
    logits, deltas = quiet()
    for bad in (np.nan, np.inf, -np.inf):
        boxes, scores = select(np.full_like(logits, bad), deltas)
        assert (boxes.shape, scores.shape) == ((0, 4), (0,))
        boxes, scores = select(logits, np.full_like(deltas, bad))
        assert (boxes.shape, scores.shape) == ((0, 4), (0,))


def test_wide_steps_stay_in_the_input():
    logits, deltas = quiet(0.0)
    deltas[:] = np.random.default_rng(0).standard_normal(deltas.shape) * 30
    boxes, _ = select(logits, deltas)
    assert len(boxes)
    assert boxes.min() >= 0
    assert (boxes.max(0) <= (SIZE[1], SIZE[0]) * 2).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= SMALLEST
    assert ops.suppress_boxes(boxes, np.ones(len(boxes), F), iou=1.0)[0].size == len(boxes)
