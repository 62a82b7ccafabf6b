"""What the Tompson cascade is taught, phase by phase, and that it then halves the error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from seeded import seed_weights, uniform
from torch import Tensor

from fastpose.datasets import PoseData, Sample
from fastpose.errors import ModelError
from fastpose.models import model_spec
from fastpose.models.cascade import FINE
from fastpose.models.joints import locate_joints
from fastpose.models.spec import ModelSpec
from fastpose.models.tompson import Cascade, CascadeMaps, Widths, peak_pixels
from fastpose.skeleton import CPM14, Skeleton
from fastpose.train.data import TrainingSet
from fastpose.train.tasks import PoseRecipe, pose_task
from fastpose.train.tompson import (
    LAMBDA,
    cascade_loss,
    coarse_error,
    fine_error,
    phase_at,
    set_phase,
)

NARROW = Widths(6, 10, 8, 4)
SPEC = model_spec("tompson-mpii-8x")
SIZE = (64, 96)


def narrow(**options) -> Cascade:
    network = Cascade(2, "flic", 3, widths=NARROW, **options).train()
    seed_weights(network)
    return network


def picture(count: int = 2) -> Tensor:
    return 2 * uniform("picture", (count, 3, *SIZE)) - 1


JOINTS = torch.tensor([[[20.3, 40.1], [70.0, 9.6]], [[50.0, 50.0], [3.2, 60.9]]])
LABELLED = torch.tensor([[1.0, 1.0], [0.0, 1.0]])


def bell(x: float, y: float, height: int, width: int) -> np.ndarray:
    v, u = np.mgrid[:height, :width]
    return np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * 1.5**2))


def test_errors_are_sums_over_cells_and_means_over_joints() -> None:
    coarse = uniform("coarse", (2, 2, 8, 12))
    fine = uniform("fine", (2, 2, FINE, FINE))
    corners = torch.tensor([[[-2, 1], [5, -4]], [[0, 0], [-4, 3]]])
    output = CascadeMaps(coarse, fine, corners)
    first = second = 0.0
    for n, j in ((0, 0), (0, 1), (1, 1)):  # the fourth has no label
        x, y = JOINTS[n, j].tolist()
        target = bell((x + 0.5) / 8 - 0.5, (y + 0.5) / 8 - 0.5, 8, 12)
        first += ((coarse[n, j].numpy() - target) ** 2).sum() / 4
        left, top = (8 * corners[n, j]).tolist()
        target = bell((x + 0.5 - left) / 2 - 0.5, (y + 0.5 - top) / 2 - 0.5, FINE, FINE)
        second += ((fine[n, j].numpy() - target) ** 2).sum() / 4
    losses = [cascade_loss(output, JOINTS, LABELLED, SPEC, SIZE, phase=p) for p in (1, 2, 3)]
    assert LAMBDA == 0.1
    expected = [first, second, first + 0.1 * second]
    np.testing.assert_allclose([loss.item() for loss in losses], expected, rtol=1e-5)


def test_a_joint_outside_its_window_is_taught_an_empty_map() -> None:
    fine = uniform("fine", (1, 1, FINE, FINE))
    for x, left, inside in ((79.4, 1, True), (79.6, 1, False), (7.6, 1, True), (7.4, 1, False)):
        corners = torch.tensor([[[left, 0]]])
        joints = torch.tensor([[[x, 30.0]]])
        output = CascadeMaps(torch.zeros(1, 1, 8, 12), fine, corners)
        error = fine_error(output, joints, torch.ones(1, 1), SPEC)
        assert (error == fine.square().sum()) == (not inside)


def test_a_joint_outside_the_picture_is_taught_an_empty_coarse_map() -> None:
    output = CascadeMaps(uniform("coarse", (1, 1, 8, 12)), None, None)
    error = coarse_error(output, torch.tensor([[[-3.0, 9]]]), torch.ones(1, 1), SPEC, SIZE)
    torch.testing.assert_close(error, output.coarse.square().sum())


def gradients(network: Cascade, prefix: str) -> list[float]:
    found = [p.grad for name, p in network.named_parameters() if name.startswith(prefix)]
    assert found
    return [0.0 if grad is None else float(grad.abs().max()) for grad in found]


def test_fine_error_reaches_the_trunk_through_the_windows_alone() -> None:
    network = narrow()
    set_phase(network, 3)
    fine_error(network(picture()), JOINTS, LABELLED, SPEC).backward()
    for bank in (0, 1):
        for stage in (0, 1):
            assert min(gradients(network, f"coarse.banks.{bank}.stages.{stage}.")) > 0
        assert max(gradients(network, f"coarse.banks.{bank}.stages.2.")) == 0
        assert max(gradients(network, f"coarse.banks.{bank}.context.")) == 0
    assert max(gradients(network, "coarse.banks.2.")) == 0
    assert max(gradients(network, "coarse.head.")) == 0
    assert min(gradients(network, "fine.")) > 0


def train(network: Cascade, phase: int) -> set[str]:
    """Names of the parts that a few steps of an optimiser with weight decay change."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    set_phase(network, phase)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        cascade_loss(network(picture()), JOINTS, LABELLED, SPEC, SIZE, phase=phase).backward()
        optimizer.step()
    return changed(network, before)


def changed(network: Cascade, before: dict[str, Tensor]) -> set[str]:
    """Names of the parts that differ."""
    parameters = network.named_parameters()
    return {name.split(".")[0] for name, p in parameters if not p.equal(before[name])}


@pytest.mark.parametrize(
    ("phase", "learns"), [(1, {"coarse"}), (2, {"fine"}), (3, {"coarse", "fine"})]
)
def test_each_phase_trains_its_networks(phase: int, learns: set[str]) -> None:
    network = narrow()
    assert train(network, phase) == learns
    assert train(network, 3) == {"coarse", "fine"}, "no phase is for good"


@pytest.mark.parametrize(("phase", "learns"), [(1, {"coarse"}), (2, {"fine", "picture"})])
def test_the_standard_cascade_is_trained_apart(phase: int, learns: set[str]) -> None:
    network = narrow(fine="crops")
    assert train(network, phase) == learns
    set_phase(network, 3)
    network.zero_grad()
    fine_error(network(picture()), JOINTS, LABELLED, SPEC).backward()
    assert max(gradients(network, "coarse.")) == 0


def test_phase_one_makes_no_fine_maps() -> None:
    network = narrow()
    set_phase(network, 1)
    assert network(picture())[1:] == (None, None)
    set_phase(network, 3)
    assert None not in network(picture())[1:]


def test_phase_two_sees_the_coarse_maps_of_prediction() -> None:
    network = narrow()
    set_phase(network, 2)
    with torch.no_grad():
        maps = network(picture()).coarse
        assert not torch.equal(narrow()(picture()).coarse, maps), "there is dropout in training"
        torch.testing.assert_close(maps, narrow().eval()(picture()).coarse)


def test_jitter_moves_windows_in_training_alone() -> None:
    network = narrow(jitter=20.0, dropout=0.0)
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(network(picture()).corners, network(picture()).corners)
        network.eval()
        assert torch.equal(network(picture()).corners, network(picture()).corners)


def test_the_phases_share_the_epochs() -> None:
    assert [phase_at(epoch, 9) for epoch in range(9)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [phase_at(epoch, 4) for epoch in range(4)] == [1, 1, 2, 3]


def test_wrong_phases() -> None:
    with pytest.raises(ValueError, match="phase must be 1, 2 or 3, got 4"):
        set_phase(narrow(), 4)
    with pytest.raises(ModelError, match="phase 2 needs a fine network"):
        set_phase(narrow(fine=None), 2)
    set_phase(narrow(fine=None), 1)


def test_fastpose_train_goes_through_the_phases(tmp_path: Path) -> None:
    image = tmp_path / "1.png"
    cv2.imwrite(str(image), (255 * uniform("photo", (80, 60, 3))).numpy().astype(np.uint8))
    joints = uniform("joints", (14, 2)).numpy() * (40, 60) + 10
    seen = np.ones(14, bool)
    samples = 2 * (Sample(image, (80, 60), joints.astype(np.float32), seen, seen),)
    data = TrainingSet([PoseData("noise", CPM14, samples)])
    spec = replace(SPEC, kwargs={**SPEC.kwargs, "layout": "flic", "widths": NARROW})
    recipe = PoseRecipe(schedule=(((64, 64), 3),), batch=2, bf16=True)
    task = pose_task(spec, data, recipe)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Cascade(14, **spec.kwargs).train()
        update, learnt = task.update(network, "cpu"), []
        for epoch in range(3):
            before = {name: p.detach().clone() for name, p in network.named_parameters()}
            (batch,) = task.batches((64, 64), epoch)
            update.step(batch, 1e-3)
            learnt.append(changed(network, before))
    assert learnt == [{"coarse"}, {"fine"}, {"coarse", "fine"}]


# End to end: a bright and a dark disc on noise, at places between the cells.

DISCS = (64, 64)


def discs(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """[N, 3, 64, 64] pictures and the discs' centres [N, 2, 2]."""
    images = rng.normal(0, 0.1, (count, 3, *DISCS))
    centres = rng.uniform(8, 55, (count, 2, 2))
    v, u = np.mgrid[: DISCS[0], : DISCS[1]]
    for image, pair in zip(images, centres, strict=True):
        for (x, y), colour in zip(pair, (1.0, -1.0), strict=True):
            image += colour / (1 + np.exp(2 * (np.hypot(u - x, v - y) - 4)))
    return torch.from_numpy(images).float(), torch.from_numpy(centres).float()


def disc_spec(pools: int) -> ModelSpec:
    pair = Skeleton("discs", ("bright", "dark"), (), (), (0.1, 0.1))
    return replace(SPEC, size=DISCS, stride=2**pools, skeleton="discs", custom=pair)


@pytest.mark.parametrize(("pools", "steps"), [(3, 200), (4, 300)])
def test_the_cascade_halves_the_error_of_the_coarse_map(
    pools: int, steps: int, request: pytest.FixtureRequest
) -> None:
    if pools == 4 and not request.config.getoption("--full-size"):
        pytest.skip("the same training on coarser maps: give --full-size")
    rng, spec = np.random.default_rng(0), disc_spec(pools)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Cascade(2, "flic", pools, dropout=0.0, widths=Widths(8, 16, 16, 8)).train()
    for phase, count, rate in ((1, steps, 5e-3), (2, 80, 5e-3), (3, 20, 1e-3)):
        set_phase(network, phase)
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
        for _ in range(count):
            images, joints = discs(8, rng)
            output = network(images)
            loss = cascade_loss(output, joints, torch.ones(8, 2), spec, DISCS, phase=phase)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
    images, joints = discs(64, rng)
    with torch.inference_mode():
        results = network.eval().predict(images).numpy()
        coarse = peak_pixels(network(images).coarse, spec.stride).numpy()
    points, _ = locate_joints(results, np.tile(np.eye(2, 3), (64, 1, 1)), spec)
    before, after = (
        np.median(np.linalg.norm(found - joints.numpy(), axis=2)) for found in (coarse, points)
    )
    assert before < spec.stride / 2, "the coarse network has not learnt"
    assert after <= before / 2
