"""Conventions: what they say, that they invert, and that a point survives the whole trip."""

import numpy as np
import pytest

from fastpose.errors import ModelError
from fastpose.geometry import (
    CONVENTIONS,
    apply,
    boxes_to_affines,
    cells_to_frame,
    compose,
    frame_box,
    grid,
    invert,
    points_to_boxes,
)

SIZE = (256, 192)


def corners(affines, u, v):
    return apply(affines, np.array([[[u, v]]], float))[0, 0]


def test_symmetric_frame_box_at_its_own_size_is_the_identity():
    affines = boxes_to_affines(frame_box(48, 64), (48, 64))
    np.testing.assert_allclose(affines[0], [[1, 0, 0], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("convention", "u", "source"),
    [
        # a box 192 wide round x = 100, hence as wide as the window: c + u - (s - pivot) / 2
        ("symmetric", 0, 100 - 95.5),
        ("msra", 0, 100 - 96),
        ("udp", 0, 100 - 96),  # first pixel centre on the box's edge
        ("udp", 191, 100 + 96),  # and the last on the other
        ("cpn", 0, 100 - 95.5),
        ("caffe", 0, 100 - 95.5),
    ],
)
def test_crop_rule_of_each_convention(convention, u, source):
    box = np.array([[100 - 96, 50 - 128, 100 + 96, 50 + 128]])
    affines = boxes_to_affines(box, SIZE, convention=convention)
    assert corners(affines, u, 0)[0] == pytest.approx(source, abs=1e-9)


@pytest.mark.parametrize(
    ("convention", "cell", "pixel"),
    [
        ("symmetric", 0, 1.5),
        ("symmetric", 47, 190 - 0.5),
        ("msra", 10, 40),
        ("udp", 47, 191),
        ("cpn", 10, 42),
        ("hourglass", 10, 42),
    ],
)
def test_grid_of_each_convention(convention, cell, pixel):
    affine = grid(convention, SIZE, (64, 48))
    assert affine[0, 0] * cell + affine[0, 2] == pytest.approx(pixel)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_flip_shift_brings_mirrored_maps_within_half_a_cell(convention):
    """A joint in cell p, found in the mirrored window, is mirrored back and shifted."""
    scale, offset = grid(convention, (256, 192), (64, 48))[0, [0, 2]]
    p = 10.0
    mirrored = (191 - (scale * p + offset) - offset) / scale
    back = 47 - mirrored + CONVENTIONS[convention].flip_shift
    assert abs(back - p) < 0.5


def test_caffe_grid_is_eight_cells_plus_three_and_a_half():
    affine = grid("caffe", (368, 368), (46, 46))
    np.testing.assert_allclose(affine, [[8, 0, 3.5], [0, 8, 3.5]])


def test_msra_equals_the_published_forward_map():
    # u = (x - cx) * W / w + W / 2 with w = the padded, aspect-fitted width
    box = np.array([[20.0, 30.0, 120.0, 330.0]])
    forward = invert(boxes_to_affines(box, SIZE, padding=1.25, convention="msra"))
    width = 300 * 192 / 256 * 1.25
    x, y = 55.0, 77.0
    expected = ((x - 70) * 192 / width + 96, (y - 180) * 192 / width + 128)
    np.testing.assert_allclose(corners(forward, x, y), expected)


def test_udp_equals_the_published_forward_map():
    box, turn = np.array([[20.0, 30.0, 170.0, 230.0]]), 30.0
    forward = invert(boxes_to_affines(box, SIZE, convention="udp", rotation=-turn))[0]
    cx, cy, w, h = 95.0, 130.0, 150.0, 200.0
    sx, sy = 191 / w, 255 / h
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    expected = [
        [cos * sx, -sin * sx, sx * (-cx * cos + cy * sin + w / 2)],
        [sin * sy, cos * sy, sy * (-cx * sin - cy * cos + h / 2)],
    ]
    np.testing.assert_allclose(forward, expected, atol=1e-9)


def test_fit_keeps_the_aspect_and_the_centre_and_holds_the_box():
    boxes = np.random.default_rng(0).uniform(0, 500, (50, 4))
    boxes[:, 2:] += boxes[:, :2] + 1
    affines = boxes_to_affines(boxes, SIZE)
    scale = np.stack((affines[:, 0, 0], affines[:, 1, 1]), 1)
    np.testing.assert_allclose(scale[:, 0], scale[:, 1])  # nothing is distorted
    middle = apply(affines, np.full((50, 1, 2), [(192 - 1) / 2, (256 - 1) / 2]))[:, 0]
    np.testing.assert_allclose(middle, (boxes[:, :2] + boxes[:, 2:]) / 2)
    window = scale * [192, 256]
    assert (window >= boxes[:, 2:] - boxes[:, :2] - 1e-9).all()
    assert np.isclose(window, boxes[:, 2:] - boxes[:, :2]).any(axis=1).all()


def test_stretch_takes_the_box_as_it_is():
    affines = boxes_to_affines(np.array([[0.0, 0.0, 100.0, 10.0]]), (32, 32), aspect="stretch")
    assert (affines[0, 0, 0], affines[0, 1, 1]) == (100 / 32, 10 / 32)


def test_rotation_turns_the_window_clockwise():
    affines = boxes_to_affines(np.array([[-10.0, -10.0, 10.0, 10.0]]), (21, 21), rotation=90)
    # the window's right edge looks down the picture
    x, y = corners(affines, 20, 10)
    assert abs(x) < 1e-9
    assert y > 9


def test_flip_mirrors_columns():
    box = np.array([[3.0, 5.0, 40.0, 90.0]])
    plain = boxes_to_affines(box, SIZE, rotation=20)
    mirrored = boxes_to_affines(box, SIZE, rotation=20, flip=True)
    np.testing.assert_allclose(corners(plain, 7, 9), corners(mirrored, 191 - 7, 9))


def test_rotation_and_flip_go_by_window():
    boxes = np.tile([[0.0, 0.0, 10.0, 20.0]], (3, 1))
    together = boxes_to_affines(
        boxes, SIZE, rotation=np.array([0, 30, 60]), flip=np.array([False, True, False])
    )
    for i, (turn, flip) in enumerate(((0, False), (30, True), (60, False))):
        alone = boxes_to_affines(boxes[:1], SIZE, rotation=turn, flip=flip)
        np.testing.assert_array_equal(together[i], alone[0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "box",
    [[0, 0, 0, 10], [5, 5, 4, 9], [np.nan, 0, 1, 1], [0, 0, np.inf, 1], [-np.inf, 0, np.inf, 1]],
)
def test_a_box_without_area_gives_nan(box):
    affines = boxes_to_affines(np.array([[0, 0, 4, 4], box], float), SIZE)
    assert np.isfinite(affines[0]).all()
    assert not np.isfinite(affines[1]).all()


def test_no_boxes_give_no_affines():
    assert boxes_to_affines(np.zeros((0, 4)), SIZE).shape == (0, 2, 3)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"boxes must be \[N, 4\], got \[4\]"):
        boxes_to_affines(np.zeros(4), SIZE)
    with pytest.raises(ValueError, match="aspect must be fit or stretch, got 'crop'"):
        boxes_to_affines(np.zeros((1, 4)), SIZE, aspect="crop")
    for padding in (0, -1.0, np.nan, (1.2, np.inf)):
        with pytest.raises(ValueError, match="padding must be positive and finite, got"):
            boxes_to_affines(np.zeros((1, 4)), SIZE, padding=padding)
    for name in ("rotation", "flip"):
        with pytest.raises(ValueError, match=rf"{name} must be one value or \[1\], got \[2\]"):
            boxes_to_affines(np.zeros((1, 4)), SIZE, **{name: np.zeros(2)})
    with pytest.raises(ModelError, match="unknown convention 'coco'; known: symmetric, msra"):
        grid("coco", SIZE, (64, 48))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_crop_and_its_inverse_undo_each_other(convention):
    rng = np.random.default_rng(1)
    boxes = rng.uniform(-50, 2000, (40, 4))
    boxes[:, 2:] = boxes[:, :2] + rng.uniform(2, 1500, (40, 2))
    affines = boxes_to_affines(
        boxes, SIZE, padding=1.25, convention=convention, rotation=rng.uniform(-180, 180, 40)
    )
    both = compose(affines, invert(affines))
    points = rng.uniform(0, 2000, (40, 7, 2))
    np.testing.assert_allclose(apply(both, points), points, atol=1e-6)


def test_an_affine_without_inverse_gives_nan():
    assert np.isnan(invert(np.zeros((1, 2, 3)))).all()


def test_points_to_boxes():
    points = np.array([[[1, 5], [3, 2], [99, 99]], [[0, 0], [0, 0], [0, 0]]], float)
    valid = np.array([[True, True, False], [False] * 3])
    boxes = points_to_boxes(points, valid)
    np.testing.assert_array_equal(boxes[0], [1, 2, 3, 5])
    assert np.isnan(boxes[1]).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("size", "stride"), [((256, 192), 4), ((75, 111), 3), ((368, 368), 8)])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_point_survives_box_affine_render_decode_frame(convention, size, stride, flip):
    """Random boxes and rotations; peaks at least 3 cells inside come back within 0.01 cell."""
    torch = pytest.importorskip("torch")
    from fastpose import ops

    rng = np.random.default_rng(7)
    n, k = 4, 3
    cells = size[0] // stride, size[1] // stride
    boxes = rng.uniform(0, 600, (n, 4))
    boxes[:, 2:] = boxes[:, :2] + rng.uniform(20, 700, (n, 2))
    affines = boxes_to_affines(
        boxes,
        size,
        padding=1.25,
        convention=convention,
        rotation=rng.uniform(-60, 60, n),
        flip=flip,
    )
    to_frame = cells_to_frame(affines, convention, size, cells)
    inside = rng.uniform(3, np.array([cells[1], cells[0]]) - 4, (n, k, 2))
    truth = apply(to_frame, inside)
    drawn = apply(invert(to_frame), truth)
    maps = ops.render(
        torch.from_numpy(drawn).float(), torch.ones(n, k), cells, sigma=2.0, style="exact"
    )
    points, scores = ops.decode(
        # exact on a clean Gaussian; DARK's blur takes zeros from beyond the border 5 cells away
        maps.numpy(),
        method="taylor",
        affines=to_frame.astype(np.float32),
    )
    cell = np.linalg.norm(to_frame[:, :, 0], axis=1)[:, None]
    assert (np.linalg.norm(points - truth, axis=2) / cell).max() < 0.01
    assert (scores > 0.8).all()
