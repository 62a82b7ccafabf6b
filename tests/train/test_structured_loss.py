"""Labels, selected cells and loss of structured feature learning, cell by cell."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import seed_weights, uniform
from torch import Tensor, nn

from fastpose.datasets import read_lsp
from fastpose.errors import ModelError
from fastpose.geometry import apply, grid
from fastpose.models import model_spec
from fastpose.models.parts import PART_TREES
from fastpose.models.structured import Structured
from fastpose.train.objective import objective
from fastpose.train.structured import (
    LIMB_RATIOS,
    PartLabels,
    divergence,
    label_cells,
    label_maps,
    limb_lengths,
    part_labels,
    pose_scales,
    ring_cells,
    structured_loss,
    structured_parameter_groups,
    uniform_cells,
)

LSP, FLIC = PART_TREES["lsp26"], PART_TREES["flic18"]
CELLS = (20, 24)


def person(count: int = 1, joints: int = 14, reach: tuple[int, int] = (160, 192)) -> Tensor:
    """[N, K, 2] joints anywhere in a window of (h, w)."""
    return uniform("person", (count, joints, 2)) * torch.tensor(reach[::-1]).float()


def everything(joints: Tensor) -> Tensor:
    return torch.ones(joints.shape[:2], dtype=torch.bool)


def labels_at(*cells: tuple[float, float], types: tuple[int, ...] = (), count: int = 1):
    """Of one person whose parts lie in these cells."""
    types = types or (0,) * len(cells)
    return PartLabels(
        torch.tensor([cells], dtype=torch.float32),
        torch.ones(1, len(cells), dtype=torch.bool),
        torch.tensor([types]),
        count,
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Labels


def test_cells_are_those_of_the_released_formula() -> None:
    for x in np.arange(0, 336, 0.25):
        from_one = (x + 1 + 4) / 8  # pixels and cells counted from 1
        expected = math.floor(from_one + 0.5) - 1  # MATLAB rounds halves up
        assert label_cells(torch.tensor(x)) == expected


def test_what_is_taught_is_read_back_within_half_a_cell_and_half_a_pixel() -> None:
    spec = model_spec("structured-lsp")
    x = np.arange(0, 8 * 40, 0.125) + 3
    cells = label_cells(torch.from_numpy(x)).numpy()
    read = apply(grid(spec.convention, spec.size, spec.cells), np.stack((cells, cells), -1))[:, 0]
    assert np.array_equal(read, 8 * cells + 3.5)  # the middle of the 8 pixels under a cell
    assert np.abs(read - x).max() <= 4.5
    assert abs((read - x).mean() - 0.5) < 0.1
    # as the release reads its cells, (cell - 1) * 8 + 0.5 from 1, poses are 3.5 pixels off
    released = cells * 8 + 0.5 - 1
    assert abs((released - x).mean() + 3.5) < 0.1


@pytest.mark.parametrize("tree", [LSP, FLIC], ids=["lsp26", "flic18"])
def test_a_part_is_one_cell_of_its_type_and_the_rest_is_background(tree) -> None:
    joints = person(3, len(tree.joints))
    labels = part_labels(joints, everything(joints), tree)
    maps = label_maps(labels, CELLS)
    assert maps.shape == (3, len(tree.parts) * tree.types + 1, *CELLS)
    torch.testing.assert_close(maps.sum(1), torch.ones(3, *CELLS))
    parts, _ = tree.joints_to_parts(joints.numpy())
    types = tree.nearest_types(parts / 8)
    for n in range(3):
        cells = [tuple(int(v) for v in (p - 3) // 8 + ((p - 3) % 8 >= 4)) for p in parts[n]]
        expected = torch.zeros_like(maps[n])
        expected[-1] = 1
        for k, (x, y) in enumerate(cells):
            if x < CELLS[1] and y < CELLS[0]:
                expected[-1, y, x] = 0
                expected[k * tree.types + types[n, k], y, x] = 1 / cells.count((x, y))
        torch.testing.assert_close(maps[n], expected)


def test_parts_in_one_cell_share_it() -> None:
    labels = labels_at((4, 2), (4, 2), (1, 3), (4, 2), types=(1, 0, 1, 1), count=2)
    maps = label_maps(labels, (5, 6))[0]
    assert maps[:, 2, 4].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0, 0, 0, 0, 1 / 3, 0])
    assert maps[:, 3, 1].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert maps[-1].sum() == 5 * 6 - 2


def test_parts_outside_the_map_or_not_known_are_nowhere() -> None:
    labels = labels_at((-1, 2), (6, 2), (1, -1), (1, 5), (0, 0))
    labels.known[0, 4] = False
    assert (label_maps(labels, (5, 6))[0, -1] == 1).all()


def test_a_part_whose_type_cannot_be_told_is_not_known() -> None:
    joints = person()
    labelled = everything(joints)
    elbow, wrist = (LSP.joints[i] for i in (10, 11))  # left, in the order of LSP
    labelled[0, 10] = False
    known = part_labels(joints, labelled, LSP).known[0]
    upper_arm, forearm = LSP.parents[elbow], LSP.parents[wrist]
    lost = {elbow, upper_arm, forearm, wrist}  # the wrist's type is told from the forearm
    assert {k for k in range(26) if not known[k]} == lost


# Selected cells


def test_uniform_selection_takes_all_parts_and_one_in_two_thousand() -> None:
    background = torch.ones(1, 1, 2000, 2000)
    background[0, 0, 7, :100] = 0
    weights = uniform_cells(background, generator=generator(0))
    assert (weights[0, 7, :100] == 1).all()
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    expected = 5e-4 * (2000 * 2000 - 100)
    assert abs(weights.sum().item() - 100 - expected) < 4 * expected**0.5
    assert not torch.equal(weights, uniform_cells(background, generator=generator(1)))


def by_masks(cells: list[tuple[int, int]], size: tuple[int, int], inner: int, outer: int) -> Tensor:
    """The release's ring: each part marks its disc and its ring; discs win over rings."""
    h, w = size
    disc = torch.zeros(h, w, dtype=torch.bool)
    ring = torch.zeros(h, w, dtype=torch.bool)
    for x, y in cells:
        for i in range(h):
            for j in range(w):
                away = math.hypot(j - x, i - y)
                disc[i, j] |= away <= inner
                ring[i, j] |= inner < away <= outer
    return ring & ~disc


def test_ring_selection_takes_half_of_the_cells_around_parts() -> None:
    places = [(5, 6), (8, 8), (20, 15), (25, 3)]  # the last one lies outside, its ring does not
    labels = labels_at(*places)
    targets = label_maps(labels, CELLS)
    scale = 7.4  # floor(2.96) = 2, ceil(3.7) = 4
    draws = torch.cat(
        [ring_cells(targets, labels, torch.tensor([scale]), generator(i)) for i in range(200)]
    )
    ring = by_masks(places, CELLS, 2, 4)
    positive = targets[0, -1] == 0
    assert (draws[:, positive] == 1).all()
    assert (draws[:, ~(ring | positive)] == 0).all()
    around = draws[:, ring & ~positive]
    assert set(around.unique().tolist()) == {0.0, 0.5}
    assert (around.amax(0) == 0.5).all()
    assert 0.48 < (around > 0).float().mean() < 0.52


def test_ring_follows_each_person_s_size() -> None:
    one = labels_at((10, 10))
    labels = PartLabels(
        one.cells.repeat(2, 1, 1), one.known.repeat(2, 1), one.types.repeat(2, 1), 1
    )
    targets = label_maps(labels, CELLS)
    draws = [
        ring_cells(targets, labels, torch.tensor([5.0, 10.0]), generator(i)) for i in range(60)
    ]
    taken = torch.stack(draws).amax(0) > 0
    for n, (inner, outer) in enumerate([(2, 3), (4, 5)]):
        assert torch.equal(
            taken[n], by_masks([(10, 10)], CELLS, inner, outer) | (targets[n, -1] == 0)
        )


def test_pictures_without_people_give_few_cells_of_half_weight() -> None:
    labels = labels_at((0, 0))
    labels.known[:] = False
    targets = torch.ones(1, 1, 600, 600)
    weights = ring_cells(targets, labels, torch.tensor([9.0]), generator(0))
    assert set(weights.unique().tolist()) == {0.0, 0.5}
    expected = 0.01 * 600 * 600
    assert abs((weights > 0).sum().item() - expected) < 4 * expected**0.5


def test_scale_is_the_upper_quartile_of_what_limbs_say() -> None:
    chain = np.array(LIMB_RATIOS["lsp26"])
    joints = person()
    parts, _ = LSP.joints_to_parts(joints.double().numpy())
    lengths = [math.dist(parts[0, k], parts[0, LSP.parents[k]]) for k in range(1, 26)]
    said = sorted(np.array(lengths) / chain)
    # the quantile of 25 values at 0.75: value number 25 * 0.75 + 0.5 of a list counted from 1
    rank = 25 * 0.75 + 0.5 - 1
    low = math.floor(rank)
    expected = said[low] + (rank - low) * (said[low + 1] - said[low])
    scale = pose_scales(joints, everything(joints), LSP)
    assert scale.item() == pytest.approx(expected / 8, rel=1e-5)
    assert pose_scales(joints / 2, everything(joints), LSP).item() == pytest.approx(
        expected / 16, rel=1e-5
    )
    assert pose_scales(joints / 50, everything(joints), LSP).item() == 18 / 8


def test_scale_without_some_limbs_or_all() -> None:
    joints = person()
    labelled = everything(joints)
    labelled[0, 0] = False
    assert torch.isfinite(pose_scales(joints, labelled, LSP)).all()
    assert pose_scales(joints, ~everything(joints), LSP).item() == 18 / 8
    assert pose_scales(joints[:0], labelled[:0], LSP).shape == (0,)


def test_ratios_are_those_of_lsp(data_dir: Path) -> None:
    samples = read_lsp(data_dir / "lsp", "train").samples
    joints = np.stack([sample.joints for sample in samples])
    labelled = np.stack([sample.labelled for sample in samples])
    lengths = np.log(limb_lengths(LSP.joints_to_parts(joints, labelled)[0], LSP))
    ratios = np.exp(np.nanmedian(lengths - lengths[:, :1], axis=0))
    np.testing.assert_allclose(ratios, LIMB_RATIOS["lsp26"], atol=6e-4)


# Loss


@pytest.mark.parametrize("sampling", ["uniform", "ring"])
def test_selected_cells_and_no_others_get_a_gradient(sampling: str) -> None:
    joints = person(2)
    labels = part_labels(joints, everything(joints), LSP)
    targets = label_maps(labels, CELLS)
    if sampling == "uniform":
        weights = uniform_cells(targets, 0.05, generator(3))
    else:
        scales = pose_scales(joints, everything(joints), LSP)
        weights = ring_cells(targets, labels, scales, generator(3))
    logits = (4 * uniform("logits", tuple(targets.shape)) - 2).requires_grad_()
    loss = divergence(logits, targets, weights)
    (gradient,) = torch.autograd.grad(loss, logits)
    touched = gradient.abs().sum(1) > 0
    assert torch.equal(touched, weights > 0)
    assert touched.sum() > 2 * 26 * 0.5  # the parts, and more
    # and the gradient is what the release sends back: weight * (softmax - target) / cells
    by_hand = (logits.softmax(1) - targets) * weights[:, None] / touched.sum()
    torch.testing.assert_close(gradient, by_hand, atol=1e-7, rtol=1e-4)


def test_loss_is_the_divergence_written_out() -> None:
    labels = labels_at((1, 1), (1, 1), (3, 0))
    targets = label_maps(labels, (2, 4))
    logits = 4 * uniform("small", (1, 4, 2, 4)) - 2
    weights = torch.zeros(1, 2, 4)
    weights[0, 1, 1], weights[0, 0, 3], weights[0, 0, 0] = 1.0, 1.0, 0.5
    p = logits[0].double().softmax(0)
    shared = sum(0.5 * math.log(0.5 / p[k, 1, 1]) for k in (0, 1))
    alone, nothing = -math.log(p[2, 0, 3]), -math.log(p[3, 0, 0])
    expected = (shared + alone + 0.5 * nothing) / 3
    assert divergence(logits, targets, weights).item() == pytest.approx(expected, rel=1e-5)


def test_right_and_sure_is_no_loss_and_nothing_selected_neither() -> None:
    targets = label_maps(labels_at((1, 1), (3, 0)), (2, 4))
    assert divergence(targets * 200, targets, torch.ones(1, 2, 4)) < 1e-6
    logits = (targets * 200).requires_grad_()
    loss = divergence(logits, targets, torch.zeros(1, 2, 4))
    assert loss == 0
    loss.backward()
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("name", "sampling"), [("structured-lsp", "ring"), ("structured-flic", "uniform")]
)
def test_models_are_trained_as_released_or_else_as_published(name: str, sampling: str) -> None:
    spec = model_spec(name)
    tree = PART_TREES[spec.tree]
    joints = person(2, len(tree.joints))
    visibility = 2 * everything(joints).int()
    logits = uniform("logits", (2, len(tree.parts) * tree.types + 1, *CELLS))
    torch.manual_seed(5)
    loss = objective(spec, 8)(logits, joints, visibility, (160, 192))
    torch.manual_seed(5)
    expected = structured_loss(logits, joints, everything(joints), tree, neg_sampling=sampling)
    assert loss == expected > 0


def test_a_network_learns_a_pose() -> None:
    torch.manual_seed(0)
    network = Structured(14, fcn6_channels=32, part_channels=8, transform_mid_channels=4).train()
    seed_weights(network.trunk)
    network.trunk.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Dropout2d):
            module.eval()  # so few maps learn slower without half of them
    image, joints = 2 * uniform("image", (1, 3, 64, 64)) - 1, person(reach=(64, 64))
    learnt = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learnt, lr=0.003)
    losses = []
    for _ in range(25):
        loss = structured_loss(network(image), joints, everything(joints), LSP)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in learnt)
    assert losses[-1] < 0.7 * losses[0]


def test_other_samplings_and_trees_are_refused() -> None:
    joints = person(1, 10)
    logits = torch.zeros(1, 19, *CELLS)
    with pytest.raises(ValueError, match="neg_sampling must be uniform or ring, got 'all'"):
        structured_loss(logits, joints, everything(joints), FLIC, neg_sampling="all")
    with pytest.raises(ModelError, match="known for lsp26, not for flic18"):
        structured_loss(logits, joints, everything(joints), FLIC, neg_sampling="ring")


# The released rates


def test_rates_and_decays_are_the_released_multiples() -> None:
    with torch.device("meta"):
        network = Structured(14)
    groups = structured_parameter_groups(network, decay=5e-4)
    of = {id(p): (0.002 * g["factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    names = dict(network.named_parameters())
    assert len(of) == len(names) == sum(len(g["params"]) for g in groups)
    expected = {
        "trunk.28.weight": (0.002, 5e-4),
        "trunk.28.bias": (0.004, 0.0),
        "fcn6.0.weight": (0.02, 5e-4),
        "fcn6.0.bias": (0.04, 0.0),
        "fcn6.1.weight": (0.002, 0.0),
        "fcn6.1.bias": (0.002, 0.0),
        "fcn7.weight": (0.02, 5e-4),
        "transforms.1.weight": (0.02, 1e-3),
        "transforms.1.bias": (0.04, 0.0),
        "classify.weight": (0.02, 5e-4),
        "background.3.bias": (0.04, 0.0),
    }
    for name, values in expected.items():
        assert of[id(names[name])] == pytest.approx(values), name
