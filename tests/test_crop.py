"""The crop module: what a window holds, how it is sampled, and training's random views."""

import numpy as np
import pytest

from fastpose.crop import (
    MAX_AREA,
    Augmentation,
    Window,
    augment_boxes,
    crop_affines,
    crop_people,
    sample_counts,
    view_boxes,
)
from fastpose.geometry import apply, boxes_to_affines, frame_box, invert

MEAN, STD = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)


def window(size=(32, 24), **changes):
    return Window(
        **{
            "size": size,
            "mean": MEAN,
            "std": STD,
            "rgb": True,
            "convention": "symmetric",
            "padding": 1.0,
            **changes,
        }
    )


def test_the_whole_frame_at_its_own_size_is_the_frame_normalised():
    frame = np.random.default_rng(0).integers(0, 256, (32, 24, 3), np.uint8)
    batch, affines = crop_people(frame, frame_box(32, 24), window())
    expected = (frame[..., ::-1].astype(np.float32) - MEAN) / STD
    np.testing.assert_allclose(batch[0], expected.transpose(2, 0, 1), atol=1e-4)
    assert affines.shape == (1, 2, 3)


def test_outside_the_frame_is_the_mean_grey():
    frame = np.zeros((8, 8, 3), np.uint8)
    batch, _ = crop_people(frame, np.array([[100.0, 100.0, 110.0, 110.0]]), window())
    # 20, the mean of MEAN, normalised
    np.testing.assert_allclose(batch[0, :, 5, 5], [10 / 1, 0 / 2, -10 / 4], atol=1e-5)


def test_windows_land_in_the_buffer_that_was_given():
    frame = np.full((50, 40, 3), 7, np.uint8)
    buffer = np.full((4, 3, 32, 24), np.nan, np.float32)
    batch, _ = crop_people(frame, np.tile(frame_box(50, 40), (2, 1)), window(), out=buffer[1:3])
    assert np.shares_memory(batch, buffer)
    assert np.isfinite(buffer[1:3]).all()
    assert np.isnan(buffer[[0, 3]]).all()


def test_a_window_does_not_depend_on_its_batch():
    """Windows of different zoom are sampled differently, each as if it were alone."""
    frame = np.random.default_rng(1).integers(0, 256, (400, 300, 3), np.uint8)
    boxes = np.array([[0, 0, 300, 400], [10, 10, 34, 42], [5, 5, 280, 390], [0, 0, 50, 60]], float)
    together, affines = crop_people(frame, boxes, window())
    assert len(set(sample_counts(affines))) > 1
    for i in range(4):
        alone, _ = crop_people(frame, boxes[i : i + 1], window())
        np.testing.assert_array_equal(together[i], alone[0])


def test_strong_shrinking_averages():
    frame = np.zeros((320, 240, 3), np.uint8)
    frame[::2] = 200  # stripes of one pixel: the mean is 100 everywhere
    plain = window(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=(80, 60))
    batch, _ = crop_people(frame, frame_box(320, 240), plain)
    assert np.abs(batch[0, :, 2:-2, 2:-2] - 100).max() < 1


@pytest.mark.parametrize(("shrink", "count"), [(0.2, 1), (1.4, 1), (1.6, 2), (3.2, 3), (50, 4)])
def test_sample_counts(shrink, count):
    affines = boxes_to_affines(
        np.array([[0, 0, 100 * shrink, 100 * shrink]]), (100, 100), rotation=33
    )
    assert sample_counts(affines).tolist() == [count]
    assert count <= MAX_AREA


def test_no_box_and_a_bad_box():
    frame = np.full((20, 20, 3), 90, np.uint8)
    assert crop_people(frame, np.zeros((0, 4)), window())[0].shape == (0, 3, 32, 24)
    batch, _ = crop_people(frame, np.array([[np.nan, 0, 1, 1]]), window())
    assert np.isfinite(batch).all()  # border, everywhere


def test_frames_of_a_stack_are_told_apart():
    frames = np.stack([np.full((9, 9, 3), v, np.uint8) for v in (10, 60)])
    plain = window(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=(8, 8))
    batch, _ = crop_people(
        frames, np.tile(frame_box(9, 9), (3, 1)), plain, source=np.array([1, 0, 1], np.int32)
    )
    assert batch[:, 0, 4, 4].tolist() == [60, 10, 60]


def test_frames_of_different_sizes_are_cut_in_one_call():
    random = np.random.default_rng(4)
    frames = [random.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((90, 70), (300, 200))]
    boxes = np.array([[0, 0, 70, 90], [20, 30, 180, 290], [5, 5, 30, 40]], float)
    source = np.array([0, 1, 1], np.int32)
    together, affines = crop_people(frames, boxes, window(), source=source)
    assert len(set(sample_counts(affines))) > 1
    for i, index in enumerate(source):
        alone, _ = crop_people(frames[index], boxes[i : i + 1], window())
        np.testing.assert_array_equal(together[i], alone[0])


def test_augmented_views_follow_their_joints():
    """A bright dot stays under its joint, whatever turn, zoom, shift or mirror the view has."""
    frame = np.zeros((120, 90, 3), np.uint8)
    x, y = 37, 71
    frame[y - 1 : y + 2, x - 1 : x + 2] = 255
    boxes = np.tile([[15.0, 50.0, 62.0, 95.0]], (40, 1))
    plain = window(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=(64, 48), padding=1.25)
    views = Augmentation(rotated=1.0)
    affines, flips = augment_boxes(
        boxes, plain.size, views, np.random.default_rng(3), padding=1.25, convention="symmetric"
    )
    batch = crop_affines(frame, affines, plain)
    expected = apply(invert(affines), np.tile([[[x, y]]], (40, 1, 1)))[:, 0]
    ys, xs = np.mgrid[:64, :48]
    weight = batch[:, 0]
    found = np.stack(
        [(weight * grid).sum((1, 2)) / weight.sum((1, 2)) for grid in (xs, ys)], axis=1
    )
    assert np.abs(found - expected).max() < 0.1
    assert 5 < flips.sum() < 35
    mirrored = np.linalg.det(affines[:, :, :2]) < 0
    np.testing.assert_array_equal(mirrored, flips)


def test_views_without_augmentation_are_the_plain_crop():
    boxes = np.array([[10.0, 20.0, 50.0, 90.0]])
    still = Augmentation(rotated=0, scale=0, shift=0, flip=0)
    affines, flips = augment_boxes(
        boxes, (64, 48), still, np.random.default_rng(0), padding=1.25, convention="symmetric"
    )
    np.testing.assert_allclose(affines, boxes_to_affines(boxes, (64, 48), padding=1.25))
    assert not flips.any()


def test_views_of_a_box_lie_side_by_side_round_its_centre():
    boxes = np.array([[10, 20, 30, 60], [0, 0, 4, 8]], np.float32)
    seen = view_boxes(boxes, (0.5, 1.0, 2.0))
    expected = [
        [15, 30, 25, 50], [10, 20, 30, 60], [0, 0, 40, 80],
        [1, 2, 3, 6], [0, 0, 4, 8], [-2, -4, 6, 12],
    ]  # fmt: skip
    np.testing.assert_array_equal(seen, expected)
    assert view_boxes(boxes[:0], (0.5, 2.0)).shape == (0, 4)
    assert view_boxes(boxes, (1.0,)) is boxes
