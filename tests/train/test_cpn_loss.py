"""Targets and loss of the published CPN, against OpenCV and against sums written out."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from seeded import uniform
from torch import Tensor

from fastpose.errors import ModelError
from fastpose.models import model_spec
from fastpose.models.spec import ModelSpec
from fastpose.ops.render import render
from fastpose.train.losses import (
    cpn_loss,
    global_loss,
    hard_keypoint_loss,
    joint_errors,
    mean_loss,
)
from fastpose.train.objective import objective
from fastpose.train.targets import megvii_targets

KERNELS = {"cpn50": (15, 11, 9, 7), "cpn50-384": (23, 17, 13, 9)}


def blurred(x: float, y: float, size: tuple[int, int], kernel: int) -> np.ndarray:
    """The target as the releases make it: one cell, OpenCV's blur, the peak set to 255."""
    cells = np.zeros(size, np.float32)
    cells[int(y / 4), int(x / 4)] = 1
    cells = cv2.GaussianBlur(cells, (kernel, kernel), 0)
    return cells / (cells.max() / 255)


@pytest.mark.parametrize("kernel", [7, 9, 11, 13, 15, 17, 23])
@pytest.mark.parametrize("cell", [(20, 31), (0, 0), (47, 63), (2, 60)])
def test_rendered_target_is_opencvs_blur(kernel: int, cell: tuple[int, int]) -> None:
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    maps = render(
        torch.tensor([[cell]], dtype=torch.float32),
        torch.ones(1, 1),
        (64, 48),
        sigma=sigma,
        style="megvii",
        peak_value=255.0,
    )
    expected = blurred(4 * cell[0], 4 * cell[1], (64, 48), kernel)
    assert maps.max() == 255
    np.testing.assert_allclose(maps[0, 0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("style", ["torch", "tf"])
def test_each_level_has_its_published_kernel(name: str, style: str) -> None:
    spec = model_spec(name)
    spec = replace(spec, kwargs={**spec.kwargs, "style": style})
    x, y = 83.2, 119.9
    joints = torch.tensor([[[x, y]]])
    coarse, refined, weights = megvii_targets(joints, torch.tensor([[2]]), spec)
    kernels = KERNELS[name] if style == "torch" else KERNELS[name][::-1]
    for maps, kernel in zip((*coarse, refined), (*kernels, KERNELS[name][-1]), strict=True):
        np.testing.assert_allclose(maps[0, 0].numpy(), blurred(x, y, spec.cells, kernel), atol=1e-3)
        assert maps.max() == 255
    assert weights.tolist() == [[1.0]]


def test_hidden_joints_are_taught_to_refine_net_alone() -> None:
    spec = model_spec("cpn50")
    joints = torch.tensor([[[50.0, 60.0], [90.0, 100.0], [120.0, 200.0], [500.0, 60.0]]])
    coarse, refined, weights = megvii_targets(joints, torch.tensor([[0, 1, 2, 2]]), spec)
    assert [level.amax(dim=(2, 3)).tolist() for level in coarse] == [[[0, 0, 255, 0]]] * 4
    assert refined.amax(dim=(2, 3)).tolist() == [[0, 255, 255, 0]]
    assert weights.tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("x", "inside"), [(-0.1, False), (0.0, True), (191.9, True), (192.0, False), (np.nan, False)]
)
def test_a_joint_outside_the_window_is_as_one_without_label(x: float, inside: bool) -> None:
    joints = torch.tensor([[[x, 60.0]]])
    coarse, refined, weights = megvii_targets(joints, torch.tensor([[2]]), model_spec("cpn50"))
    assert [m.amax().item() for m in (*coarse, refined)] == [255.0 * inside] * 5
    assert weights.item() == inside


def test_targets_of_sizes_without_published_kernels() -> None:
    with pytest.raises(ModelError, match="for maps of 64x48 and 96x72 cells, not of 32x24"):
        megvii_targets(
            torch.zeros(1, 17, 2), torch.ones(1, 17), replace(model_spec("cpn50"), size=(128, 96))
        )


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Maps, targets and weights of 3 samples with 17 joints, some without weight."""
    maps, targets = uniform("maps", (3, 17, 6, 5)) * 9, uniform("targets", (3, 17, 6, 5)) * 9
    return maps, targets, (uniform("weights", (3, 17)) > 0.2).float()


@pytest.mark.parametrize("top", [1, 8, 17])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_mining_equals_a_sum_written_out(top: int, reduce: str) -> None:
    maps, targets, weights = example()
    total = 0.0
    for sample in range(3):
        errors = []
        for joint in range(17):
            difference = maps[sample, joint].double() - targets[sample, joint].double()
            errors.append(float((difference**2).mean()) * float(weights[sample, joint]))
        worst = sorted(errors, reverse=True)[:top]
        total += sum(worst) / (top if reduce == "mean" else 1)
    loss = hard_keypoint_loss(maps, targets, weights, top, reduce)
    assert float(loss) == pytest.approx(total / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("top", "reduce", "words"),
    [
        (0, "mean", "top must be 1 to 17 joints, got 0"),
        (18, "mean", "top must be 1 to 17 joints, got 18"),
        (8, "max", "reduce must be mean or sum, got 'max'"),
    ],
)
def test_mining_names_what_it_cannot_do(top: int, reduce: str, words: str) -> None:
    maps, weights = torch.zeros(1, 17, 4, 4), torch.ones(1, 17)
    with pytest.raises(ValueError, match=words):
        hard_keypoint_loss(maps, maps, weights, top, reduce)


def test_mining_all_joints_is_the_mean_loss() -> None:
    maps, targets, weights = example()
    torch.testing.assert_close(
        hard_keypoint_loss(maps, targets, weights, 17), mean_loss(maps, targets, weights)
    )


def test_easy_channels_get_no_gradient() -> None:
    maps, targets, _ = example()
    maps.requires_grad_()
    weights = torch.ones(3, 17)
    hard_keypoint_loss(maps, targets, weights, 8).backward()
    assert maps.grad is not None
    learns = maps.grad.abs().amax(dim=(2, 3)) > 0
    order = joint_errors(maps, targets, weights).argsort(dim=1, descending=True)
    assert learns.gather(1, order).tolist() == [[True] * 8 + [False] * 9] * 3


def test_masked_joints_never_win() -> None:
    maps, targets = torch.zeros(1, 4, 3, 3), torch.zeros(1, 4, 3, 3)
    maps[0, 0], maps[0, 1] = 1000, 0.01  # far off but masked; nearly right
    weights = torch.tensor([[0.0, 1, 1, 1]])
    maps.requires_grad_()
    hard_keypoint_loss(maps, targets, weights, 1).backward()
    assert maps.grad is not None
    assert maps.grad.abs().amax(dim=(2, 3))[0].gt(0).tolist() == [False, True, False, False]


@pytest.mark.parametrize("style", ["torch", "tf"])
def test_whole_loss_is_global_plus_refine(style: str) -> None:
    levels = [uniform(f"level {i}", (3, 17, 6, 5)) for i in range(4)]
    goals = [uniform(f"goal {i}", (3, 17, 6, 5)) for i in range(4)]
    maps, target, weights = example()
    loss = cpn_loss((levels, maps), (goals, target, weights), style=style)
    squares = [float(((a - b).double() ** 2).mean()) for a, b in zip(levels, goals, strict=True)]
    plain = sum(squares) / 2 if style == "torch" else sum(squares) / 4 / 2
    expected = plain + float(hard_keypoint_loss(maps, target, weights, 8))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_a_style_that_is_neither_is_refused() -> None:
    maps, target, weights = example()
    with pytest.raises(ValueError, match="style must be torch or tf, got 'caffe'"):
        cpn_loss(([maps], maps), ([target], target, weights), style="caffe")


def test_an_unlabelled_joint_is_nothing_to_refine_net_but_empty_to_global_net() -> None:
    spec = model_spec("cpn50")
    joints = torch.full((1, 17, 2), 40.0)
    targets = megvii_targets(joints, torch.zeros(1, 17), spec)
    coarse = [torch.ones(1, 17, *spec.cells, requires_grad=True) for _ in range(4)]
    refined = torch.ones(1, 17, *spec.cells, requires_grad=True)
    loss = cpn_loss((coarse, refined), targets, style="torch")
    loss.backward()
    assert loss.item() == pytest.approx(2.0)  # four levels of 1 / 2, and no more
    assert refined.grad is not None
    assert not refined.grad.any()
    assert all(level.grad is not None and level.grad.all() for level in coarse)


def output_of(spec: ModelSpec) -> tuple[list[Tensor], Tensor]:
    maps = [uniform(f"output {i}", (2, 17, *spec.cells)) * 200 for i in range(5)]
    return maps[:4], maps[4]


@pytest.mark.parametrize("hard", [1, 8])
def test_cpn_star_mines_nothing_whatever_is_asked_for(hard: int) -> None:
    spec = model_spec("cpn50-star")
    joints = uniform("joints", (2, 17, 2)) * 180
    visibility = (uniform("seen", (2, 17)) * 3).floor()
    (coarse, refined) = output_of(spec)
    loss = objective(spec, hard)((coarse, refined), joints, visibility, spec.size)
    targets, target, weights = megvii_targets(joints, visibility, spec)
    squares = ((refined - target).square().mean(dim=(2, 3)) * weights).mean()
    plain = global_loss(coarse, targets, style="torch")
    torch.testing.assert_close(loss, plain + squares)
    mined = objective(model_spec("cpn50"), hard)((coarse, refined), joints, visibility, spec.size)
    assert mined > loss + 1


def test_global_net_alone_has_its_own_term_for_loss() -> None:
    spec = model_spec("cpn50-global")
    joints, visibility = uniform("joints", (2, 17, 2)) * 180, torch.full((2, 17), 2.0)
    coarse, _ = output_of(spec)
    loss = objective(spec, 8)((coarse, None), joints, visibility, spec.size)
    targets, _, _ = megvii_targets(joints, visibility, spec)
    halves = [(a - b).square().mean() / 2 for a, b in zip(coarse, targets, strict=True)]
    torch.testing.assert_close(loss, torch.stack(halves).sum())
