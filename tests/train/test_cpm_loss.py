"""Targets, loss and rates of convolutional pose machines, and that they suffice to learn."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from seeded import uniform
from torch import Tensor, nn

from fastpose.errors import ModelError
from fastpose.evaluate.joints import pck
from fastpose.models import create, model_spec
from fastpose.models.cpm import CPM, CPMVGG, CPMBatchNorm
from fastpose.models.joints import locate_joints
from fastpose.models.spec import ModelSpec
from fastpose.skeleton import Skeleton
from fastpose.train.cpm import (
    cpm_loss,
    cpm_parameter_groups,
    cpm_targets,
    euclidean_loss,
)
from fastpose.train.loop import descend
from fastpose.train.objective import objective

FLIC = replace(model_spec("cpm-flic"), size=(96, 128))


def transcribed(people: np.ndarray, labelled: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[K + 1, h, w] as the released data layer writes it, cell by cell: people [P, K, 2]."""
    stride, sigma = 8, 7.0
    start = stride / 2.0 - 0.5
    maps = np.zeros((people.shape[1] + 1, size[0] // stride, size[1] // stride))
    for person, known in zip(people, labelled, strict=True):
        for joint, (px, py) in enumerate(person):
            if not known[joint]:
                continue
            for row, column in np.ndindex(maps.shape[1:]):
                x, y = start + column * stride, start + row * stride
                exponent = ((x - px) ** 2 + (y - py) ** 2) / 2.0 / sigma / sigma
                if exponent > 4.6052:
                    continue
                maps[joint, row, column] = min(1.0, maps[joint, row, column] + math.exp(-exponent))
    maps[-1] = np.maximum(0.0, 1.0 - maps[:-1].max(axis=0))
    return maps


def test_targets_are_the_released_data_layers() -> None:
    joints = 140 * uniform("people", (2, 3, 9, 2)) - 6  # some lie outside the window
    joints[:, 1, :4] = joints[:, 0, :4] + 3.0  # these add up to more than 1
    labelled = uniform("labelled", (2, 3, 9)) < 0.8
    first, later = cpm_targets(joints, labelled, FLIC, FLIC.size)
    assert first.shape == later.shape == (2, 10, 12, 16)
    for row in range(2):
        people, known = joints[row].numpy(), labelled[row].numpy()
        everybody, one = (transcribed(people[:n], known[:n], FLIC.size) for n in (3, 1))
        assert everybody[:-1].max() == 1
        np.testing.assert_allclose(first[row].numpy(), everybody, atol=1e-6)
        np.testing.assert_allclose(later[row].numpy(), one, atol=1e-6)


def test_of_one_person_all_stages_learn_the_same() -> None:
    joints, labelled = 90 * uniform("one", (2, 9, 2)), torch.ones(2, 9)
    first, later = cpm_targets(joints, labelled, FLIC, FLIC.size)
    assert torch.equal(first, later)
    assert torch.equal(cpm_targets(joints[:, None], labelled[:, None], FLIC, FLIC.size)[0], first)


def test_the_loss_is_caffes_summed_over_stages() -> None:
    stages = [uniform(f"maps {t}", (2, 3, 4, 5)) for t in range(3)]
    first, later = uniform("first", (2, 3, 4, 5)), uniform("later", (2, 3, 4, 5))
    targets = (first, later, later)
    by_hand = sum(
        float(((maps - target) ** 2).sum()) / (2 * 2)
        for maps, target in zip(stages, targets, strict=True)
    )
    assert cpm_loss(stages, first, later).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("name", ["cpm-flic", "cpm-lsp", "cpm-vgg", "cpm-bn"])
def test_every_stage_learns_from_the_registered_objective(name: str) -> None:
    spec = model_spec(name)
    count = len(spec.joints)
    maps = [torch.zeros(2, count + spec.background, 6, 4, requires_grad=True) for _ in range(6)]
    joints, visibility = 30 * uniform("joints", (2, count, 2)), torch.ones(2, count)
    loss = objective(spec, hard=8)(maps, joints, visibility, (48, 32))
    loss.backward()
    assert loss.item() > 0
    assert all(stage.grad is not None and stage.grad.abs().sum() > 0 for stage in maps)


def test_mmposes_variant_ignores_joints_without_a_label() -> None:
    maps = [torch.zeros(1, 16, 6, 6, requires_grad=True)]
    visibility = torch.ones(1, 16)
    visibility[0, 3] = 0
    joints = 40 * uniform("joints", (1, 16, 2))
    joints[0, 5] = 99.0  # outside the window
    objective(model_spec("cpm-bn"), hard=8)(maps, joints, visibility, (48, 48)).backward()
    learning = maps[0].grad.flatten(2).abs().sum(dim=2)[0] > 0
    assert [joint for joint in range(16) if not learning[joint]] == [3, 5]


def test_people_centres_have_no_objective() -> None:
    with pytest.raises(ModelError, match="cpm-person cannot be trained here"):
        objective(model_spec("cpm-person"), hard=8)


@pytest.mark.parametrize(
    ("build", "fast", "factor"),
    [
        (lambda: CPM(9, stages=4), "conv{}_stage1", 5),
        (CPMVGG, "Mconv{}_stage3", 4),
        (lambda: create("cpm-person"), "Mconv{}_stage3", 4),
    ],
)
def test_rates_by_layer_are_those_of_the_released_graphs(
    build: type, fast: str, factor: int
) -> None:
    with torch.device("meta"):
        network = build()
    groups = cpm_parameter_groups(network, decay=5e-4)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    told = {
        names[id(parameter)]: (group["factor"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for group in groups) == len(told) == len(names)
    layer = fast.format(5)
    assert told[f"{layer}.weight"] == pytest.approx((factor, 5e-4))
    assert told[f"{layer}.bias"] == pytest.approx((2 * factor, 0))
    slow = [name for name in told if name.startswith(("conv1_stage2.", "conv3_1."))]
    assert [told[name] for name in slow] == [pytest.approx((1, 5e-4)), pytest.approx((2, 0))]


def test_rates_of_another_network_are_not_known() -> None:
    with pytest.raises(ModelError, match="not known of CPMBatchNorm"):
        cpm_parameter_groups(CPMBatchNorm(3, stages=1), decay=0.0)


# Eight drawn people, learnt by heart.

STICK = Skeleton("stick", ("head", "hip", "hand", "other_hand", "foot"), (), (), (0.1,) * 5)
COLOURS = ((230, 230, 230), (240, 60, 60), (60, 60, 240), (60, 220, 240))
SIDE = 56
SMALL = replace(
    model_spec("cpm-flic"), size=(SIDE, SIDE), views=(1.0,), skeleton="stick", custom=STICK
)


def stick_people(count: int) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, 56, 56] as the network takes them, and joints [N, 5, 2].

    Joints keep a cell's distance from the border: enlarged, a peak there moves to the border.
    """
    rng = np.random.default_rng(0)
    images = np.full((count, SIDE, SIDE, 3), 90, np.uint8)
    joints = np.empty((count, 5, 2), np.float32)
    for image, places in zip(images, joints, strict=True):
        head = rng.uniform((24, 10), (32, 18))
        hip = head + rng.uniform((-5, 20), (5, 20))
        chest = 0.7 * head + 0.3 * hip
        angles = rng.uniform((0.5, 0.5, 0), (2.4, 2.4, 1.2)) * (-1, 1, rng.choice((-1, 1)))
        starts = np.stack((chest, chest, hip))
        ends = starts + 13.5 * np.stack((np.sin(angles), np.cos(angles)), axis=1)
        places[:] = np.clip(np.vstack((head, hip, ends)), 9, SIDE - 10)
        lines = zip((head, *starts), places[1:], COLOURS, strict=True)
        for start, end, colour in lines:
            cv2.line(image, *(tuple(map(int, point)) for point in (start, end)), colour, 3)
    pictures = (images.transpose(0, 3, 1, 2).astype(np.float32) - 128) / 256
    return torch.from_numpy(pictures), torch.from_numpy(joints)


def found(maps: Tensor, spec: ModelSpec) -> np.ndarray:
    upright = np.tile(np.eye(2, 3), (len(maps), 1, 1))
    return locate_joints(maps.numpy(), upright, spec)[0]


def test_eight_people_are_learnt_by_heart() -> None:
    torch.manual_seed(0)
    images, joints = stick_people(8)
    network = CPM(5, stages=2, width=12)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # N(0, 0.01) would leave so narrow a network silent
            nn.init.normal_(layer.weight, std=1.2 / layer.weight[0].numel() ** 0.5)
    first, later = cpm_targets(joints, torch.ones(8, 5), SMALL, SMALL.size)
    groups = cpm_parameter_groups(network, decay=5e-4)
    optimizer = torch.optim.SGD(groups, lr=3e-3, momentum=0.9)
    for _ in range(160):
        descend(optimizer, cpm_loss(network(images), first, later), 3e-3, limit=10.0)
    network.eval()
    with torch.inference_mode():
        stages = network(images)
        right = pck(
            found(network.predict(images), SMALL),
            joints.numpy(),
            reference=np.linalg.norm(joints[:, 0] - joints[:, 1], axis=1),
            threshold=0.2,
        )
    assert right.mean() > 0.95
    stage_1, stage_2 = (euclidean_loss(maps, later).item() for maps in stages)
    assert stage_2 < stage_1 / 2
