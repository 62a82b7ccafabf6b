"""How PBN and the stacked hourglass are trained, against figures and sums written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seeded import uniform
from torch import Tensor

from fastpose.crop import Augmentation, augment_boxes
from fastpose.geometry import apply, boxes_to_affines
from fastpose.models import model_spec
from fastpose.models.pbn import PBN
from fastpose.models.spec import ModelSpec
from fastpose.ops import render
from fastpose.train.objective import objective
from fastpose.train.pbn import (
    augmentation,
    stacked_loss,
    stacked_targets,
)
from fastpose.train.recipes import published


@pytest.fixture(params=["pbn-mpii", "hourglass2"])
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return model_spec(request.param)


# Targets


def at_cells(*cells: tuple[float, float]) -> Tensor:
    """[1, K, 2] window pixels of the centres of cells: input pixel = 4 cell + 2."""
    return 4 * torch.tensor([cells], dtype=torch.float32) + 2


def test_target_is_a_gaussian_of_one_cell(spec: ModelSpec) -> None:
    maps, weights = stacked_targets(at_cells((20.0, 31.0)), torch.ones(1, 1), spec, spec.size)
    assert maps.shape == (1, 1, 64, 64)
    assert weights.tolist() == [[1]]
    near = np.exp(-0.5 * np.array([[2, 1, 2], [1, 0, 1], [2, 1, 2]]))
    np.testing.assert_allclose(maps[0, 0, 30:33, 19:22].numpy(), near, atol=1e-6)


def test_pbn_draws_round_the_joint_and_the_hourglass_round_its_cell() -> None:
    joints, labelled = at_cells((20.4, 31.0)), torch.ones(1, 1)
    for name, offset in (("pbn-mpii", 0.4), ("hourglass2", 0.0)):
        maps, _ = stacked_targets(joints, labelled, model_spec(name), (256, 256))
        expected = np.exp(-0.5 * (np.arange(-2, 3) - offset) ** 2)
        np.testing.assert_allclose(maps[0, 0, 31, 18:23].numpy(), expected, atol=1e-6)


def test_what_is_not_known_or_not_in_the_window_has_no_weight(spec: ModelSpec) -> None:
    joints = at_cells((5, 5), (6, 6), (-3, 5), (5, 64))
    maps, weights = stacked_targets(joints, torch.tensor([[1.0, 0, 1, 1]]), spec, spec.size)
    assert weights.tolist() == [[1, 0, 0, 0]]
    assert maps[0, 1:].max() == 0


# Loss


def test_loss_is_the_sum_over_stacks() -> None:
    maps = [uniform(f"stack {i}", (2, 3, 4, 4)) for i in range(3)]
    target, weights = uniform("target", (2, 3, 4, 4)), torch.ones(2, 3)
    expected = sum(((m - target) ** 2).mean() for m in maps)
    torch.testing.assert_close(stacked_loss(maps, target, weights), expected)
    torch.testing.assert_close(
        stacked_loss(maps[:1] * 2, target, weights), 2 * (maps[0] - target).square().mean()
    )


def test_every_stack_is_taught_and_missing_joints_teach_nothing(spec: ModelSpec) -> None:
    maps = [uniform(f"stack {i}", (1, 2, 64, 64)).requires_grad_() for i in range(2)]
    joints = at_cells((20, 31), (40, 9))
    objective(spec, hard=8)(maps, joints, torch.tensor([[1.0, 0.0]]), spec.size).backward()
    for stack in maps:
        assert (stack.grad[0, 0] != 0).any()
        assert (stack.grad[0, 1] == 0).all()


def test_stacks_have_the_same_target(spec: ModelSpec) -> None:
    loss = objective(spec, hard=8)
    joints, visibility = at_cells((20, 31), (40, 9)), torch.tensor([[1.0, 2.0]])
    target, _ = stacked_targets(joints, torch.ones(1, 2), spec, spec.size)
    assert loss([target, target], joints, visibility, spec.size) == 0
    assert loss([target, 0 * target], joints, visibility, spec.size) > 0


def test_optimiser_is_torchs_rmsprop() -> None:
    weight = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        weight.weight.fill_(1.0)
    optimizer = published(model_spec("pbn-mpii")).recipe.optimizer(weight)
    expected, mean = 1.0, 0.0
    for gradient in (3.0, -2.0):
        weight.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        mean = 0.99 * mean + 0.01 * gradient**2
        expected -= 2.5e-4 * gradient / (mean**0.5 + 1e-8)
    assert weight.weight.item() == pytest.approx(expected, rel=1e-6)


# Views


def views(options: Augmentation, size: tuple[int, int], count: int = 200) -> np.ndarray:
    boxes = np.tile(np.array([[10.0, 20, 110, 220]]), (count, 1))
    rng = np.random.default_rng(0)
    return augment_boxes(boxes, size, options, rng, padding=1.25, convention="hourglass")[0]


def test_published_views() -> None:
    linear = views(augmentation(), (256, 256), 2000)[:, :, :2]
    scale = np.sqrt(np.abs(np.linalg.det(linear))) * 256 / 250  # box of 200, a quarter larger
    assert 0.74 < scale.min() < 0.76
    assert 1.24 < scale.max() < 1.26
    flips = np.linalg.det(linear) < 0
    assert 0.45 < flips.mean() < 0.55
    angles = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0] * np.where(flips, -1, 1)))
    angles = np.where(flips, -angles, angles)
    assert 29.9 < np.abs(angles).max() < 30.1


@pytest.mark.parametrize(("shear", "most"), [("off", 0), ("factor", 0.5), ("degrees", 0.008727)])
def test_shear_by_what_it_is_taken_for(shear: str, most: float) -> None:
    still = replace(augmentation(shear), turn=0.0, widen=(1.0, 1.0), flip=0.0)
    affines = views(still, (64, 32))
    plain = boxes_to_affines(
        np.array([[10.0, 20, 110, 220]]), (64, 32), padding=1.25, convention="hourglass"
    )
    # the middle row stays; the row above it goes one way as the row below goes the other
    middle = np.array([[0.0, 31.5], [31.0, 31.5]])
    np.testing.assert_allclose(apply(affines, middle), apply(plain, middle).repeat(200, 0))
    per_pixel = affines[:, 0, 1] / affines[:, 0, 0]
    assert np.abs(per_pixel).max() == pytest.approx(most, rel=0.05)
    if most:
        assert abs(per_pixel.mean()) < 0.2 * most
        assert np.abs(affines[:, 1] - plain[:, 1]).max() < 1e-9


def test_shear_is_off_unless_asked() -> None:
    assert augmentation().shear == Augmentation().shear == 0
    with pytest.raises(ValueError, match="shear must be one of off, factor, degrees, got 'turn'"):
        augmentation("turn")


# All together


def dots(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """[8, 3, 64, 64] pictures, in which each of 14 joints is a dot of its own colour, and where."""
    cells = torch.from_numpy(rng.integers(1, 15, (8, 14, 2)).astype(np.float32))
    spots = render(cells, torch.ones(8, 14), (16, 16), sigma=1.0)
    colours = torch.linspace(0, 2, 3 * 14).sin().reshape(3, 14)
    images = torch.einsum("ck,nkhw->nchw", colours, F.interpolate(spots, scale_factor=4.0))
    return images, 4 * cells + 2, spots


@pytest.mark.parametrize(("stacks", "options"), [(2, {}), (8, {"norm_branches": True})])
def test_learns_where_dots_are(stacks: int, options: dict) -> None:
    """In all stacks, by the published optimiser: better than empty maps within 15 batches."""
    torch.manual_seed(0)
    spec = replace(model_spec("pbn-lsp"), size=(64, 64))
    network = PBN(14, "lsp14-data5", stacks, width=8, channels=16, **options).train()
    optimizer = published(spec).recipe.optimizer(network)
    loss = objective(spec, hard=8)
    rng = np.random.default_rng(0)
    for _ in range(15):
        images, joints, _ = dots(rng)
        optimizer.zero_grad()
        loss(network(images), joints, torch.full((8, 14), 2.0), spec.size).backward()
        optimizer.step()
    images, _, spots = dots(rng)
    with torch.no_grad():
        maps = network(images)
    empty = spots.square().mean()
    errors = [((stack - spots).square().mean() / empty).item() for stack in maps]
    assert max(errors) < 0.98
