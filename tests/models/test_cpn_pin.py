"""The pin variant: two joints in one map, from random crops and mined cells to feet in order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from seeded import uniform
from torch import Tensor

from fastpose import Pose
from fastpose.crop import crop_affines
from fastpose.datasets import PoseData, Sample
from fastpose.geometry import apply, boxes_to_affines, cells_to_frame, invert
from fastpose.models import model_spec
from fastpose.models.joints import locate_joints
from fastpose.models.spec import ModelSpec
from fastpose.ops.render import render
from fastpose.skeleton import Skeleton
from fastpose.train.data import TrainingSet
from fastpose.train.losses import global_loss, hard_pixel_loss, mean_loss
from fastpose.train.objective import objective
from fastpose.train.pins import random_windows
from fastpose.train.targets import megvii_targets
from fastpose.train.tasks import pose_recipe, pose_task

SPEC = model_spec("cpn-pin")
WHOLE = np.array([[[1.0, 0, 0], [0, 1, 0]]])  # the window is the frame


def maps_of(*feet: tuple[float, float], heights: tuple[float, ...] = (1.0, 1.0)) -> np.ndarray:
    """[1, 1, 64, 48]: exact Gaussians as wide as those that RefineNet learns."""
    points = torch.tensor(feet, dtype=torch.float32).reshape(1, -1, 1, 2)
    shown = torch.tensor(heights[: len(feet)]).reshape(1, -1, 1)
    return render(points, shown, (64, 48), sigma=SPEC.sigma, peak_value=255.0).numpy()


def located(maps: np.ndarray, spec: ModelSpec = SPEC) -> tuple[np.ndarray, np.ndarray]:
    """Feet in cells, and their scores."""
    points, scores = locate_joints(maps, np.repeat(WHOLE, len(maps), 0), spec)
    return (points - 2) / 4, scores


# From a map to two feet.


def test_a_map_holds_both_feet() -> None:
    assert SPEC.joints.joints == ("left_foot", "right_foot")
    assert SPEC.results == ((1, 64, 48),)


def test_two_feet_are_found_within_a_tenth_of_a_cell_from_left_to_right() -> None:
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(200):
        left = rng.uniform((4, 4), (21, 59))
        right = rng.uniform((27, 4), (43, 59))  # out of each other's reach
        feet = [tuple(left), tuple(right)]
        order = rng.permutation(2)  # which one is drawn first, or higher, does not matter
        heights = tuple(rng.uniform(0.5, 1, 2))
        points, scores = located(maps_of(*(feet[i] for i in order), heights=heights))
        worst = max(worst, np.abs(points[0] - feet).max())
        assert (scores > 0.4).all()
    assert worst < 0.1


@pytest.mark.parametrize("turned", [0, 180])
def test_order_is_that_of_the_frame(turned: int) -> None:
    """A window that was turned is put back first."""
    box = np.array([[100.0, 50, 292, 306]])
    affine = boxes_to_affines(box, SPEC.size, convention="cpn", rotation=turned)
    points, _ = locate_joints(maps_of((10, 20), (30, 40)), affine, SPEC)
    assert points[0, 0, 0] < points[0, 1, 0]
    cells = cells_to_frame(affine, "cpn", SPEC.size, SPEC.cells)
    expected = apply(cells, np.array([[[10.0, 20], [30, 40]]]))[0]
    np.testing.assert_allclose(points[0], sorted(expected.tolist()), atol=0.2)


@pytest.mark.parametrize(
    "maps",
    [
        maps_of((20.0, 30.0)),
        maps_of((20.0, 30.0), (40.0, 10.0), heights=(1.0, 0.19)),  # under a fifth of the peak
        maps_of((20.0, 30.0), (22.0, 31.0), heights=(1.0, 0.9)),  # nearer than three cells
    ],
    ids=["alone", "faint", "near"],
)
def test_a_foot_alone_is_said_to_be_alone(maps: np.ndarray) -> None:
    points, scores = located(maps)
    np.testing.assert_allclose(points[0, 0], (20, 30), atol=0.5)
    assert scores[0, 0] == pytest.approx(1, abs=0.01)
    assert np.isnan(points[0, 1]).all()
    assert scores[0, 1] == 0


def test_a_foot_of_a_fifth_of_the_peak_is_one() -> None:
    _, scores = located(maps_of((20.0, 30.0), (40.0, 10.0), heights=(1.0, 0.21)))
    np.testing.assert_allclose(scores[0], (1, 0.21), atol=1e-3)


@pytest.mark.parametrize("level", [-1.0, 0.0, 40.0, np.nan])
def test_no_feet_are_no_feet(level: float) -> None:
    points, scores = located(np.full((1, 1, 64, 48), level, np.float32))
    assert np.isnan(points).all()
    assert scores.tolist() == [[0, 0]]


def test_a_mirrored_window_needs_no_exchange() -> None:
    """Left and right change places with their places."""
    maps = maps_of((10, 20), (33.5, 40))
    mirrored = np.ascontiguousarray(maps[..., ::-1])
    points, scores = locate_joints(maps, WHOLE, SPEC, flipped=mirrored)
    expected, sure = locate_joints(maps, WHOLE, SPEC)
    np.testing.assert_allclose(points, expected, atol=1e-4)
    np.testing.assert_allclose(scores, sure, atol=1e-6)


def test_several_maps_of_several_joints() -> None:
    """The joints of a map are neighbours; in a mirrored window, maps change places."""
    pins = Skeleton("pins", ("a0", "a1", "b0", "b1"), (), ((0, 2), (1, 3)), (0.079,) * 4)
    spec = replace(SPEC, skeleton="pins", custom=pins)
    first, second = maps_of((10, 20), (30, 40)), maps_of((15, 50), (41, 5))
    maps = np.concatenate((first, second), axis=1)
    points, _ = located(maps, spec)
    np.testing.assert_allclose(points[0], [(10, 20), (30, 40), (15, 50), (41, 5)], atol=1e-3)
    mirrored = np.ascontiguousarray(maps[:, ::-1, :, ::-1])
    again, scores = locate_joints(maps, WHOLE, spec, flipped=mirrored)
    np.testing.assert_allclose((again - 2) / 4, points, atol=1e-3)
    assert (scores > 0.9).all()


def test_pose_runs_it() -> None:
    frame = np.full((256, 192, 3), 90, np.uint8)
    with (
        pytest.warns(UserWarning, match="cpn-pin"),
        Pose("cpn-pin", detector="none", engine="torch", batch=(1,)) as pose,
    ):
        people = pose(frame)
    assert people.skeleton == SPEC.joints
    assert people.keypoints.shape == (1, 2, 2)
    assert ((people.scores == 0) == np.isnan(people.keypoints).any(axis=2)).all()


# What the map is taught.


def blurred(x: float, y: float, kernel: int) -> np.ndarray:
    """OpenCV's blur of one cell, its peak 255."""
    cells = np.zeros((64, 48), np.float32)
    cells[int(y / 4), int(x / 4)] = 1
    cells = cv2.GaussianBlur(cells, (kernel, kernel), 0)
    return cells * (255 / cells.max())


def test_target_is_the_larger_of_the_two_gaussians() -> None:
    feet = [(60.5, 100.0), (80.0, 110.0)]
    visibility = torch.full((1, 2), 2)
    coarse, refined, weights = megvii_targets(torch.tensor([feet]), visibility, SPEC)
    for maps, kernel in zip((*coarse, refined), (15, 11, 9, 7, 7), strict=True):
        expected = np.maximum(*(blurred(x, y, kernel) for x, y in feet))
        np.testing.assert_allclose(maps[0, 0].numpy(), expected, atol=1e-3)
        assert maps.max() == 255
    assert weights.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("second", "seen", "weight", "peaks"),
    [
        ((120.0, 60.0), 2, 1, 2),
        ((120.0, 60.0), 1, 1, 2),  # hidden, but known
        ((300.0, 60.0), 2, 1, 1),  # cut off: known not to be in the window
        ((120.0, 60.0), 0, 0, 1),  # nobody knows: the map cannot be taught
    ],
)
def test_a_map_counts_if_all_of_its_feet_are_known(
    second: tuple[float, float], seen: int, weight: int, peaks: int
) -> None:
    feet = torch.tensor([[(40.0, 100.0), second]])
    _, refined, weights = megvii_targets(feet, torch.tensor([[2, seen]]), SPEC)
    assert weights.tolist() == [[weight]]
    assert int((refined == 255).sum()) == peaks


def example() -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.from_numpy(
        np.concatenate((maps_of((10, 20), (30, 40)), maps_of((5, 5), (40, 60)), maps_of((9, 9))))
    )
    return uniform("maps", (3, 1, 64, 48)) * 120, targets, torch.ones(3, 1)


def test_all_cells_are_the_plain_square() -> None:
    maps, targets, weights = example()
    plain = (maps - targets).square().mean()
    torch.testing.assert_close(hard_pixel_loss(maps, targets, weights, share=1.0), plain)
    torch.testing.assert_close(mean_loss(maps, targets, weights), plain)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
def test_mining_cells_equals_a_sum_written_out(share: float) -> None:
    maps, targets, weights = example()
    total = 0.0
    for row in range(3):
        squares = ((maps[row] - targets[row]).double() ** 2).flatten().tolist()
        order = sorted(range(len(squares)), key=lambda i: -squares[i])
        near = [i for i, t in enumerate(targets[row].flatten().tolist()) if t > 2.55]
        kept = {*order[: round(share * len(squares) + 0.49)], *near}
        total += sum(squares[i] for i in kept) / len(kept)
    loss = hard_pixel_loss(maps, targets, weights, share)
    assert float(loss) == pytest.approx(total / 3, rel=1e-5)


def test_easy_cells_get_no_gradient_unless_a_foot_is_near() -> None:
    targets = torch.from_numpy(maps_of((10, 20), (30, 40)))
    maps = (targets + 0.1 + uniform("noise", (1, 1, 64, 48)) * 50 * (targets < 2.55)).detach()
    maps.requires_grad_()
    hard_pixel_loss(maps, targets, torch.ones(1, 1), 0.25).backward()
    assert maps.grad is not None
    learns, near = maps.grad != 0, targets > 2.55
    assert learns[near].all()  # though all of them are nearly right
    assert int((learns & ~near).sum()) == 64 * 48 // 4
    easiest = (maps - targets).abs()[~near & ~learns].max()
    assert easiest <= (maps - targets).abs()[~near & learns].min()


def test_a_map_without_weight_teaches_nothing() -> None:
    maps, targets, weights = example()
    weights[1] = 0
    maps.requires_grad_()
    hard_pixel_loss(maps, targets, weights).backward()
    assert maps.grad is not None
    assert maps.grad.abs().amax(dim=(1, 2, 3)).gt(0).tolist() == [True, False, True]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"share must be above 0 and at most 1, got {share}"):
        hard_pixel_loss(*example(), share)


@pytest.mark.parametrize("size", [(256, 192), (160, 224)])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_loss_of_the_variant_in_any_window(size: tuple[int, int], share: float) -> None:
    joints = torch.tensor([[[50.0, 60.0], [100.0, 90.0]]])
    cells = size[0] // 4, size[1] // 4
    levels = [uniform(f"level {i}", (1, 1, *cells)) * 99 for i in range(5)]
    loss = objective(SPEC, 8, share)((levels[:4], levels[4]), joints, torch.full((1, 2), 2), size)
    sigmas = (2.6, 2.0, 1.7, 1.4)
    sized = replace(SPEC, size=size)
    coarse, refined, weights = megvii_targets(joints, torch.full((1, 2), 2), sized, sigmas)
    expected = global_loss(levels[:4], coarse, style="torch") + hard_pixel_loss(
        levels[4], refined, weights, share
    )
    torch.testing.assert_close(loss, expected)


# Where the windows are cut.

PICTURES = np.array([[600, 800]] * 300)


def pins(count: int = 300) -> np.ndarray:
    rng = np.random.default_rng(1)
    middle = rng.uniform((60, 60), (740, 540), (count, 1, 2))
    return middle + rng.uniform(-50, 50, (count, 2, 2))


def in_window(affines: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[N] both feet have at least 8 pixels to the window's edge."""
    places = apply(invert(affines), points)
    low, high = 8 - 1e-3, np.array(SPEC.size[::-1]) - 9 + 1e-3
    return ((places >= low) & (places <= high)).all(axis=(1, 2))


def test_random_windows_hold_both_feet_and_lie_in_the_picture() -> None:
    points = pins()
    affines = random_windows(points, PICTURES, SPEC.window, np.random.default_rng(0))
    assert in_window(affines, points).all()
    h, w = SPEC.size
    corners = apply(affines, np.array([[-0.5, -0.5], [w - 0.5, h - 0.5]]))
    inside = (corners >= -0.5 - 1e-6) & (corners <= np.array([800, 600]) - 0.5 + 1e-6)
    assert inside.all()
    scale = affines[:, 0, 0]
    np.testing.assert_allclose(scale, affines[:, 1, 1])
    assert scale.min() > 0.8
    assert scale.max() < 1.25
    places = apply(invert(affines), points).mean(axis=1)  # all over the window
    assert (places.min(axis=0) < (60, 60)).all()
    assert (places.max(axis=0) > (132, 196)).all()


def test_windows_may_cut_feet_off_if_allowed() -> None:
    points = pins()
    affines = random_windows(
        points, PICTURES, SPEC.window, np.random.default_rng(0), allow_truncation=True
    )
    places = apply(invert(affines), points)
    h, w = SPEC.size
    held = ((places >= 0) & (places <= (w - 1, h - 1))).all(axis=2).sum(axis=1)
    assert {0, 1, 2} == set(held.tolist())


def test_a_long_pin_enlarges_its_window_and_a_small_picture_is_overstepped() -> None:
    points = np.array([[[10.0, 20.0], [590.0, 300.0]], [[20.0, 20.0], [80.0, 70.0]]])
    pictures = np.array([[320, 600], [90, 100]])
    affines = random_windows(points, pictures, SPEC.window, np.random.default_rng(0))
    assert in_window(affines, points).all()
    assert affines[0, 0, 0] == pytest.approx(580 / (192 - 17))
    assert 0.8 <= affines[1, 0, 0] <= 1.25
    centre = apply(affines[1], np.array([[95.5, 127.5]]))[0]
    np.testing.assert_allclose(centre, (49.5, 44.5), atol=1e-6)


def test_a_window_shows_the_feet_where_it_says() -> None:
    picture = np.zeros((600, 800, 3), np.uint8)
    points = np.round(pins(20))
    pictures = PICTURES[:20]
    affines = random_windows(points, pictures, SPEC.window, np.random.default_rng(3))
    for affine, feet in zip(affines, points, strict=True):
        picture[:] = 0
        for x, y in feet.astype(int):
            picture[y - 2 : y + 3, x - 2 : x + 3] = 255
        window = crop_affines(picture, affine[None], replace(SPEC.window, mean=(0.0,) * 3))
        places = np.rint(apply(invert(affine), feet)).astype(int)
        assert all(window[0, 0, y, x] > 0.9 for x, y in places)


def test_training_shows_pins_in_random_crops(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    samples = []
    for i, feet in enumerate(pins(6).astype(np.float32)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 255, (600, 800, 3), np.uint8))
        seen = np.array([True, i != 3])  # a pin of which one foot is not known is left out
        samples.append(Sample(tmp_path / f"{i}.png", (600, 800), feet, seen, seen))
    data = TrainingSet([PoseData("pins", SPEC.joints, tuple(samples))])
    task = pose_task(SPEC, data, pose_recipe(SPEC, schedule=((SPEC.size, 1),), batch=5))
    seen_places = []
    for epoch in (0, 1):
        (batch,) = task.batches(SPEC.size, epoch)
        low, high = 8 - 1e-3, np.array(SPEC.size[::-1]) - 9 + 1e-3
        assert ((batch.joints >= low) & (batch.joints <= high)).all()
        lengths = np.linalg.norm(batch.joints[:, 0] - batch.joints[:, 1], axis=1)
        pinned = sorted(np.linalg.norm(s.joints[0] - s.joints[1]) for s in data.samples)
        assert (np.array(sorted(lengths)) <= np.array(pinned) / 0.8 + 1e-3).all()
        seen_places.append(batch.joints.mean())
    assert seen_places[0] != seen_places[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"margin": 96}, "margin must be 0 to less than 96 pixels, got 96"),
        ({"margin": -1}, "margin must be 0 to less than 96 pixels, got -1"),
        ({"zoom": (0.0, 1.0)}, "zoom must be positive and ascending, got"),
        ({"zoom": (2.0, 1.0)}, "zoom must be positive and ascending, got"),
    ],
)
def test_windows_that_cannot_be_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        random_windows(pins(), PICTURES, SPEC.window, np.random.default_rng(0), **options)  # type: ignore[arg-type]
