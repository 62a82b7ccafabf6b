"""A detector's random views: the boxes go where the picture goes."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from fastpose.crop import Window
from fastpose.datasets import BoxData, BoxSample
from fastpose.errors import DataError
from fastpose.train.scenes import LEAST_SEEN, LEAST_SIDE, Scenery, SceneSet, _View

WINDOW = Window((96, 128), (120.0,) * 3, (50.0,) * 3, True, "symmetric", 1.0)
PLAIN = Scenery(mosaic=0, zoom=(1, 1), empty=0, stretch=0, flip=0, gain=0, grey=0)
F = np.float32


def drawn(folder, count=4, size=(150, 200), name="boxes", ignored=(), empty=0):
    """Grey pictures in which every box is filled with a colour of its own; the last are empty."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(folder)) + count)
    samples = []
    for i in range(count + empty):
        image = np.full((*size, 3), 128, np.uint8)
        x, y = rng.integers(5, size[1] // 2 - 45), rng.integers(5, size[0] - 85)
        boxes = np.array(
            [(x, y, x + 36, y + 80), (x + size[1] // 2, y, x + size[1] // 2 + 40, y + 60)]
        )
        boxes = boxes[: 2 if i < count else 0]
        for colour, (x0, y0, x1, y1) in zip(((0, 0, 255), (255, 0, 0)), boxes, strict=False):
            image[y0:y1, x0:x1] = colour
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), image)
        flags = np.array([place in ignored for place in range(len(boxes))], bool)
        kinds = np.zeros(len(boxes), np.int64)
        samples.append(BoxSample(path, None, boxes.reshape(-1, 4).astype(F), kinds, flags))
    return BoxData(name, ("person",), tuple(samples))


def colours(image):
    """[3, h, w] as bytes, red first."""
    return image * 50 + 120


def painted(image, channel):
    """Where the image has the box's colour: red boxes are high in red, low in blue."""
    pixels = colours(image)
    return (pixels[channel] > 190) & (pixels[2 - channel] < 65)


def check_edges(image, box, channel):
    """The box's edges are the edges of its colour, to the pixel."""
    inside = painted(image, channel)
    x0, y0, x1, y1 = box
    ys, xs = np.nonzero(
        inside[max(int(y0) - 3, 0) : int(y1) + 4, max(int(x0) - 3, 0) : int(x1) + 4]
    )
    seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    seen = seen + np.tile([max(int(x0) - 3, 0), max(int(y0) - 3, 0)], 2)
    np.testing.assert_allclose(seen, box, atol=1.01)  # a pixel is painted by more than half


def channel_of(image, box):
    """0 for a box painted red, 2 for blue, by what lies at its middle."""
    x, y = ((box[:2] + box[2:]) / 2).astype(int)
    red, _, blue = colours(image)[:, y, x]
    assert abs(red - blue) > 150, "nothing is painted there"
    return 0 if red > blue else 2


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("zoom", [(0.5, 0.5), (1, 1), (1.8, 1.8)])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_lie_where_their_colours_lie(tmp_path, flip, zoom, mosaic):
    data = SceneSet([drawn(tmp_path)])
    scenery = replace(PLAIN, flip=flip, zoom=zoom, mosaic=mosaic, stretch=0.15, largest_gain=9)
    scenery = replace(scenery, mosaic_zoom=(zoom[0] / 2, zoom[1] / 2))
    batch = data.batch(12, WINDOW, scenery, np.random.default_rng(0))
    assert batch.images.shape == (12, 3, 96, 128)
    assert batch.images.dtype == F
    checked = 0
    for image, boxes, kinds, ignored in zip(
        batch.images, batch.boxes, batch.classes, batch.ignored, strict=True
    ):
        assert len(boxes) == len(kinds) == len(ignored)
        assert boxes.dtype == F
        assert kinds.dtype == np.int64
        assert ignored.dtype == bool
        for box in boxes[~ignored]:
            if mosaic == 0:
                check_edges(image, box, channel_of(image, box))
            x0, y0, x1, y1 = np.rint(box).astype(int)
            inside = painted(image, channel_of(image, box))[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
            assert inside.all()
            checked += 1
    assert checked >= 10


def test_a_mirrored_view_swaps_the_sides(tmp_path):
    data = SceneSet([drawn(tmp_path, count=1)])
    rng = np.random.default_rng
    straight = data.batch(1, WINDOW, PLAIN, rng(0))
    mirrored = data.batch(1, WINDOW, replace(PLAIN, flip=1.0), rng(0))
    # the picture fills the input, so that its place leaves no room for chance
    np.testing.assert_allclose(mirrored.images, straight.images[..., ::-1], atol=1e-4)
    left = mirrored.boxes[0] * (-1, 1, -1, 1) + (128, 0, 128, 0)
    np.testing.assert_allclose(left[:, [2, 1, 0, 3]], straight.boxes[0], atol=1e-3)


def test_nothing_painted_is_without_a_box(tmp_path):
    """What can be seen of a box too well to be ignored is in the list."""
    data = SceneSet([drawn(tmp_path)])
    scenery = replace(PLAIN, mosaic=0.5, zoom=(0.4, 2), mosaic_zoom=(0.4, 1), flip=0.5)
    batch = data.batch(20, WINDOW, scenery, np.random.default_rng(3))
    for image, boxes in zip(batch.images, batch.boxes, strict=True):
        left = painted(image, 0) | painted(image, 2)
        for x0, y0, x1, y1 in boxes:
            left[
                max(int(np.floor(y0)) - 1, 0) : int(np.ceil(y1)) + 1,
                max(int(np.floor(x0)) - 1, 0) : int(np.ceil(x1)) + 1,
            ] = False
        assert left.sum() == 0


def test_a_mosaic_is_made_of_four_pictures(tmp_path):
    sets = []
    for i, grey in enumerate((20, 80, 160, 240)):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.full((100, 100, 3), grey, np.uint8))
        none = np.zeros((0, 4), F), np.zeros(0, np.int64), np.zeros(0, bool)
        sets.append(BoxData("boxes", ("person",), (BoxSample(path, None, *none),)))
    scenery = replace(PLAIN, mosaic=1.0, mosaic_zoom=(1, 1))
    batch = SceneSet(sets).batch(20, WINDOW, scenery, np.random.default_rng(0))
    several = 0
    for image in batch.images:
        corners = colours(image)[0][[0, 0, 95, 95], [0, 127, 0, 127]]
        for corner in corners:  # a picture, or the grey round it
            assert np.abs(np.array([20, 80, 160, 240, 120]) - corner).min() < 1
        several += len(set(np.unique(colours(image)[0].round())) & {20, 80, 160, 240}) > 1
    assert several > 15


# What is left of a box that is cut off.


def marks(boxes, ignored=None, tile=(0, 0, 100, 100), zoom=(1.0, 1.0), offset=(0.0, 0.0)):
    boxes = np.array(boxes, F).reshape(-1, 4)
    flags = np.zeros(len(boxes), bool) if ignored is None else np.array(ignored)
    sample = BoxSample(None, (500, 500), boxes, np.arange(len(boxes)), flags)
    return _View(tile, zoom, offset).marks(sample)


def test_boxes_are_cut_off_at_the_tile():
    boxes, kinds, unsure = marks([(-20, 10, 60, 50), (70, 70, 120, 120), (130, 10, 180, 50)])
    np.testing.assert_array_equal(boxes, [[0, 10, 60, 50], [70, 70, 100, 100]])
    np.testing.assert_array_equal(kinds, [0, 1])
    np.testing.assert_array_equal(unsure, [False, False])


def test_a_rest_of_a_box_is_ignored():
    seen = np.array([LEAST_SEEN - 0.02, LEAST_SEEN + 0.02])
    left = 100 - 40 * seen
    boxes, _, unsure = marks([(x, 10, x + 40, 50) for x in left])
    assert len(boxes) == 2
    np.testing.assert_array_equal(unsure, [True, False])


def test_a_small_box_is_ignored_and_a_trace_is_nothing():
    sides = (LEAST_SIDE - 0.1, LEAST_SIDE + 0.1, 0.4)
    boxes, _, unsure = marks([(10, 10, 10 + side, 40) for side in sides])
    assert len(boxes) == 2
    np.testing.assert_array_equal(unsure, [True, False])
    halved, _, unsure = marks([(10, 10, 20, 40)], zoom=(0.5, 0.5))
    np.testing.assert_array_equal(unsure, [True])
    np.testing.assert_array_equal(halved, [[5, 5, 10, 20]])


def test_ignored_boxes_stay_ignored_and_no_boxes_are_none():
    _, _, unsure = marks([(10, 10, 50, 50), (20, 20, 60, 60)], ignored=[True, False])
    np.testing.assert_array_equal(unsure, [True, False])
    boxes, kinds, unsure = marks([])
    assert (boxes.shape, kinds.shape, unsure.shape) == ((0, 4), (0,), (0,))


def test_view_and_affine_are_one_map():
    view = _View((20, 30, 90, 80), (-1.5, 0.7), (100.0, 12.0))
    affine = view.affine()[0]
    for u, v in ((0, 0), (10, 5), (69, 49)):
        source = affine @ (u, v, 1)
        there = (source + 0.5) * view.zoom + view.offset  # from the outer edges, both
        np.testing.assert_allclose(there, (20 + u + 0.5, 30 + v + 0.5))


# What is drawn.


def kinds_of(batch):
    """0 for views without a target."""
    return np.array([(~flags).any() for flags in batch.ignored])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_pictures_without_a_target(tmp_path, share):
    data = SceneSet([drawn(tmp_path, count=2, empty=5)])
    batch = data.batch(200, WINDOW, replace(PLAIN, empty=share), np.random.default_rng(0))
    assert (~kinds_of(batch)).mean() == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize(("count", "empty"), [(3, 0), (0, 3)])
def test_a_set_of_one_sort_is_drawn_from_whatever_the_share(tmp_path, count, empty):
    data = SceneSet([drawn(tmp_path, count=count, empty=empty)])
    batch = data.batch(20, WINDOW, replace(PLAIN, empty=0.5), np.random.default_rng(0))
    assert (kinds_of(batch) == bool(count)).all()


def test_a_picture_of_ignored_boxes_alone_has_no_target(tmp_path):
    data = SceneSet(
        [drawn(tmp_path / "a", count=3), drawn(tmp_path / "b", count=1, ignored=(0, 1))]
    )
    ((_, first), (second, without)) = data._sets
    assert (len(first), len(second), len(without)) == (0, 0, 1)


def test_each_set_is_seen_equally_often(tmp_path):
    large, small = drawn(tmp_path / "a", count=30), drawn(tmp_path / "b", count=1, size=(100, 300))
    data = SceneSet([large, small])
    assert len(data) == 31
    drawn_from = [
        data._draw(0.0, rng).size for rng in [np.random.default_rng(0)] for _ in range(300)
    ]
    assert np.mean([size == (100, 300) for size in drawn_from]) == pytest.approx(0.5, abs=0.08)
    twice = SceneSet([large, small, small])
    assert len(twice) == 31
    rng = np.random.default_rng(0)
    drawn_from = [twice._draw(0.0, rng).size for _ in range(300)]
    assert np.mean([size == (100, 300) for size in drawn_from]) == pytest.approx(2 / 3, abs=0.08)


def test_views_are_the_same_for_the_same_seed(tmp_path):
    data = SceneSet([drawn(tmp_path, empty=2)])
    first, again, other = (
        data.batch(6, WINDOW, Scenery(), np.random.default_rng(seed)) for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(first.images, again.images)
    for a, b in zip(first.boxes, again.boxes, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first.images - other.images).max() > 0.5


def test_no_picture_is_enlarged_by_more_than_it_may_be(tmp_path):
    data = SceneSet([drawn(tmp_path, size=(150, 200))])
    scenery = replace(PLAIN, zoom=(5, 5), largest_gain=1.5)
    batch = data.batch(10, replace(WINDOW, size=(320, 320)), scenery, np.random.default_rng(0))
    found = [boxes[~flags] for boxes, flags in zip(batch.boxes, batch.ignored, strict=True)]
    sides = np.concatenate([boxes[:, 2:] - boxes[:, :2] for boxes in found])
    np.testing.assert_allclose(np.unique(sides.round(2), axis=0), [(54, 120), (60, 90)], atol=0.05)


def test_colours_change_and_boxes_do_not(tmp_path):
    data = SceneSet([drawn(tmp_path)])
    plain = data.batch(8, WINDOW, PLAIN, np.random.default_rng(0))
    changed = data.batch(8, WINDOW, replace(PLAIN, grey=1.0), np.random.default_rng(0))
    for image in changed.images:
        assert np.ptp(image, axis=0).max() < 1e-5
    for a, b in zip(plain.boxes, changed.boxes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sets_that_cannot_be_trained_on(tmp_path):
    data = drawn(tmp_path)
    with pytest.raises(DataError, match="at least one set"):
        SceneSet([])
    with pytest.raises(DataError, match="none that is empty"):
        SceneSet([data, replace(data, samples=())])
    with pytest.raises(DataError, match="same classes"):
        SceneSet([data, replace(data, classes=("dog",))])
    data.samples[0].image.unlink()
    with pytest.raises(DataError, match=r"0\.png"):
        SceneSet([data])
