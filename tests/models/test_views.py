"""Several views of a person joined: against loops that do it point by point."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastpose import ops
from fastpose.crop import view_boxes
from fastpose.errors import ModelError
from fastpose.geometry import apply, boxes_to_affines, cells_to_frame, compose, invert
from fastpose.models import model_spec
from fastpose.models.joints import locate_joints
from fastpose.models.registry import CPM_VIEWS
from fastpose.models.spec import ModelSpec
from fastpose.models.views import merge_views

VIEWS = (1 / 0.7, 1.0, 1 / 1.3)


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(7).random(shape, np.float32)


def cubic(distance: float) -> float:
    """Keys' kernel, a = -0.5."""
    d = abs(distance)
    if d <= 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def reflected(index: int, count: int) -> int:
    while not 0 <= index < count:
        index = -1 - index if index < 0 else 2 * count - 1 - index
    return index


def sample(maps: np.ndarray, x: float, y: float) -> np.ndarray:
    """[C] bicubic values of [C, h, w] at one place, 0 outside."""
    h, w = maps.shape[1:]
    total = np.zeros(len(maps))
    if not (-0.5 <= x <= w - 0.5 and -0.5 <= y <= h - 0.5):
        return total
    for j, i in itertools.product(range(-1, 3), repeat=2):
        column, row = math.floor(x) + i, math.floor(y) + j
        weight = cubic(x - column) * cubic(y - row)
        total += weight * maps[:, reflected(row, h), reflected(column, w)]
    return total


@pytest.mark.parametrize("convention", ["caffe", "msra", "udp", "hourglass"])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_merging_equals_a_loop_over_pixels_and_views(convention: str, reduce: str) -> None:
    size, cells = (32, 24), (4, 3)
    maps = numbers((3, 2, *cells))
    merged, affine = merge_views(maps, VIEWS, convention, size, enlarge=4, reduce=reduce)
    boxes = view_boxes(np.array([[10.0, 20.0, 34.0, 52.0]]), VIEWS)
    windows = boxes_to_affines(boxes, size, convention=convention)
    to_cells = invert(cells_to_frame(windows, convention, size, cells))
    rows, columns = np.indices(merged.shape[1:]).reshape(2, -1)
    frame = apply(windows[0], apply(affine, np.stack((columns, rows), axis=1).astype(float)))
    expected = np.empty((2, len(frame)))
    for index, point in enumerate(frame):
        values = [sample(maps[view], *apply(to_cells[view], point[None])[0]) for view in range(3)]
        expected[:, index] = {"mean": np.mean, "sum": np.sum, "max": np.max}[reduce](values, axis=0)
    np.testing.assert_allclose(merged.reshape(2, -1), expected, atol=2e-6)


def test_the_grid_covers_the_widest_view_with_pixels() -> None:
    maps = numbers((7, 1, 46, 46))
    merged, affine = merge_views(maps, CPM_VIEWS, "caffe", (368, 368), enlarge=8)
    assert merged.shape == (1, 526, 526)  # 368 / 0.7, and no pixel more
    # the first view's window has 0.7 of its pixels in a pixel of the one of factor 1
    np.testing.assert_allclose(affine[:, :2], 0.7 * np.eye(2), atol=1e-12)
    corners = apply(affine, np.array([[0.0, 0.0], [525.0, 525.0]]))
    np.testing.assert_array_less(-0.5, corners)
    np.testing.assert_array_less(corners, 367.5)
    np.testing.assert_array_less(corners[0] - 0.7, -0.5)
    np.testing.assert_array_less(367.5, corners[1] + 0.7)


def test_a_single_view_is_enlarged_as_other_code_does_with_that_kernel() -> None:
    """PyTorch's resampling has Keys' kernel; its borders differ, three cells of them."""
    maps = numbers((1, 3, 12, 16))
    merged, affine = merge_views(maps, (1.0,), "caffe", (96, 128), enlarge=8)
    enlarged = F.interpolate(
        torch.from_numpy(maps), scale_factor=8, mode="bicubic", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(affine, [[1, 0, 0], [0, 1, 0]], atol=1e-12)
    inner = (slice(None), slice(24, -24), slice(24, -24))
    np.testing.assert_allclose(merged[inner], enlarged[0].numpy()[inner], atol=1e-5)


def test_one_view_without_enlargement_is_left_as_it_is() -> None:
    maps = numbers((1, 3, 5, 6))
    merged, affine = merge_views(maps, (1.0,), "msra", (40, 48))
    np.testing.assert_allclose(merged, maps[0], atol=1e-6)
    np.testing.assert_allclose(affine, [[8, 0, 0], [0, 8, 0]], atol=1e-12)


def test_what_is_not_finite_counts_as_nothing() -> None:
    maps = numbers((2, 1, 4, 4))
    holed = maps.copy()
    holed[0, 0, 1, 2], holed[1, 0, 0, 0], holed[1, 0, 3, 3] = np.nan, np.inf, -np.inf
    merged, _ = merge_views(holed, (1.0, 1.2), "caffe", (32, 32), enlarge=2)
    maps[0, 0, 1, 2] = maps[1, 0, 0, 0] = maps[1, 0, 3, 3] = 0
    expected, _ = merge_views(maps, (1.0, 1.2), "caffe", (32, 32), enlarge=2)
    np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize(
    ("shape", "changes", "named"),
    [
        ((2, 1, 4, 4), {}, r"maps must be \[3, C, h, w\]"),
        ((3, 4, 4), {}, r"maps must be \[3, C, h, w\]"),
        ((3, 1, 4, 4), {"reduce": "median"}, "reduce one of mean, sum, max, got 1 and 'median'"),
        ((3, 1, 4, 4), {"enlarge": 0}, "enlarge must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(shape: tuple[int, ...], changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        merge_views(np.zeros(shape, np.float32), VIEWS, "caffe", (32, 32), **changes)


# A person whose joints are known, seen in seven views.

BOX = np.array([[60.0, 40.0, 160.0, 240.0]])
SMALL = replace(model_spec("cpm-lsp"), size=(184, 184))


def seen(
    joints: np.ndarray, spec: ModelSpec, background: float = 9.0, box: np.ndarray = BOX
) -> tuple:
    """Maps [S, K + 1, h, w] of joints [K, 2] in the frame, and the windows' affines."""
    affines = boxes_to_affines(
        view_boxes(box, spec.views), spec.size, padding=spec.padding, convention=spec.convention
    )
    cells = invert(cells_to_frame(affines, spec.convention, spec.size, spec.cells))
    rows, columns = np.indices(spec.cells)
    maps = np.full((len(spec.views), len(joints) + 1, *spec.cells), background, np.float32)
    for view, affine in enumerate(cells):
        for joint, (x, y) in enumerate(apply(affine, joints)):
            square = (columns - x) ** 2 + (rows - y) ** 2
            maps[view, joint] = np.exp(-square / 2 / spec.sigma**2)
    return maps, affines


def some_joints(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform((70, 60), (150, 220), (14, 2))


def test_joints_are_found_to_about_a_pixel_of_the_window() -> None:
    joints = some_joints()
    maps, affines = seen(joints, SMALL)
    points, scores = locate_joints(maps, affines, SMALL)
    assert points.shape == (1, 14, 2)
    assert scores.shape == (1, 14)
    pixel = 200 * SMALL.padding / 184  # of the window of factor 1, in frame pixels
    error = np.abs(points[0] - joints) / pixel
    assert error.max() <= 1.5  # Gaussians of 0.875 cell are too narrow for an exact enlargement
    assert error.mean() <= 0.5
    assert (scores > 0.6).all()
    assert (scores <= 1).all()


def test_one_view_is_read_at_the_same_resolution() -> None:
    spec, joints = replace(SMALL, views=(1.0,)), some_joints()
    points, _ = locate_joints(*seen(joints, spec), spec)
    assert np.abs(points[0] - joints).max() <= 1.5 * 200 * SMALL.padding / 184


def test_people_follow_each_other_view_by_view() -> None:
    away = np.array([300.0, -90.0])  # where the second one stands, twice as large
    first, second = some_joints(1), 2 * some_joints(2) + away
    box = 2 * BOX + np.tile(away, 2)
    maps, affines = zip(seen(first, SMALL), seen(second, SMALL, box=box), strict=True)
    points, _ = locate_joints(np.concatenate(maps), np.concatenate(affines), SMALL)
    pixel = 200 * SMALL.padding / 184
    assert np.abs(points[0] - first).max() <= 1.5 * pixel
    assert np.abs(points[1] - second).max() <= 1.5 * 2 * pixel
    for row in range(2):
        alone, _ = locate_joints(maps[row], affines[row], SMALL)
        np.testing.assert_array_equal(points[row], alone[0])
    nobody = locate_joints(maps[0][:0], affines[0][:0], SMALL)
    assert [part.shape for part in nobody] == [(0, 14, 2), (0, 14)]


def test_the_sum_has_the_peaks_of_the_mean_and_seven_times_its_score() -> None:
    maps, affines = seen(some_joints(), SMALL)
    mean, summed, highest = (
        locate_joints(maps, affines, replace(SMALL, scale_reduce=rule))
        for rule in ("mean", "sum", "max")
    )
    np.testing.assert_array_equal(mean[0], summed[0])
    np.testing.assert_allclose(summed[1], 7 * mean[1], rtol=1e-5)
    assert (highest[1] >= mean[1]).all()


def test_mirrored_views_are_averaged_in() -> None:
    maps, affines = seen(some_joints(), SMALL)
    order = [*SMALL.joints.flip_order(), 14]
    expected = locate_joints(maps, affines, SMALL)
    both = locate_joints(maps, affines, SMALL, flipped=maps[:, order, :, ::-1])
    np.testing.assert_array_equal(both[0], expected[0])
    half = locate_joints(maps, affines, SMALL, flipped=np.zeros_like(maps))
    np.testing.assert_allclose(half[1], expected[1] / 2, rtol=1e-5)


def test_mirrored_views_are_shifted_where_the_convention_says_so() -> None:
    """Of "msra" a mirrored-back map lies one cell to the left."""
    spec = replace(SMALL, convention="msra")
    maps, affines = seen(some_joints(), spec)
    order = [*spec.joints.flip_order(), 14]
    mirrored = np.roll(maps, -1, axis=3)[:, order, :, ::-1]
    expected = locate_joints(maps, affines, spec)
    both = locate_joints(maps, affines, spec, flipped=mirrored)
    np.testing.assert_array_equal(both[0], expected[0])
    np.testing.assert_allclose(both[1], expected[1], rtol=1e-5)


def test_a_peak_of_joined_views_is_as_wide_as_they_are_enlarged() -> None:
    """DARK blurs by the width that it is told, here in cells of the fine grid."""
    spec = replace(SMALL, views=(1.0,), method="dark")
    maps, affines = seen(some_joints(), spec)
    points, _ = locate_joints(maps, affines, spec)
    merged, window = merge_views(maps[:, :-1], spec.views, spec.convention, spec.size, enlarge=8)
    expected, _ = ops.decode(
        merged[None], method="dark", sigma=8 * spec.sigma, affines=compose(affines, window)
    )
    np.testing.assert_allclose(points, expected, atol=1e-4)
    narrow, _ = ops.decode(
        merged[None], method="dark", sigma=spec.sigma, affines=compose(affines, window)
    )
    assert np.abs(narrow - points).max() > 0.01


def test_the_published_loop_over_scales_finds_the_same_pixels() -> None:
    """Enlarge by 8, cut off the padding, resize to the picture, add up, take the highest pixel.

    The picture is as large as the view of factor 1 shows it, so its second resampling leaves the
    scale alone there; two bicubic resamplings in place of one move a peak by a pixel at most.
    """
    spec = replace(SMALL, views=(1 / 0.8, 1.0, 1 / 1.2), size=(64, 64))
    joints = some_joints()[:3]
    maps, affines = seen(joints, spec)
    points, _ = locate_joints(maps, affines, replace(spec, custom=THREE, skeleton="three"))
    to_frame = affines[1]
    scale = to_frame[0, 0]
    height, width = math.ceil(280 / scale), math.ceil(220 / scale)
    total = np.zeros((3, height, width))
    for view, affine in enumerate(affines):
        enlarged = np.stack(
            [
                [sample(maps[view, :3], (u - 3.5) / 8, (v - 3.5) / 8) for u in range(64)]
                for v in range(64)
            ]
        ).transpose(2, 0, 1)
        to_window = invert(affine)
        for y, x in itertools.product(range(height), range(width)):
            place = np.array([[(x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5]])
            total[:, y, x] += sample(enlarged, *apply(to_window, place)[0])
    best = np.stack(np.unravel_index(total.reshape(3, -1).argmax(axis=1), (height, width)), -1)
    found = (best[:, ::-1] + 0.5) * scale - 0.5
    assert np.abs(points[0] - found).max() <= 1.01 * scale


THREE = type(SMALL.joints)("three", ("a", "b", "c"), (), (), (0.1, 0.1, 0.1))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scale_reduce": "median"}, "scale_reduce must be one of mean, sum, max, got 'median'"),
        ({"enlarge": 0}, "enlarge must be a positive whole number, got 0"),
        ({"peaks": 2}, "a map of several joints is neither enlarged nor joined"),
    ],
)
def test_specs_that_cannot_be_joined_are_refused(changes: dict, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        replace(SMALL, **changes)
