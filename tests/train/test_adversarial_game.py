"""Adversarial PoseNet's training: targets, labels and losses by hand, and Algorithm 1."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import seed_weights, uniform
from stick_figures import DELTA, JOINTS, figures, game, judged, play, separation
from test_loop import STILL, drawn_people
from torch import Tensor, nn

from fastpose import ops
from fastpose.cli import main
from fastpose.errors import ModelError
from fastpose.models import MODELS, model_spec
from fastpose.models.adversarial import AdversarialPoseNet, StackMaps
from fastpose.train.adversarial import (
    AdversarialStep,
    Labels,
    Rules,
    Truth,
    adversarial_loss,
    confidence_labels,
    discriminator_loss,
    generator_loss,
    pose_labels,
    real_labels,
    true_maps,
    yardstick,
)
from fastpose.train.data import TrainingSet
from fastpose.train.loop import fit
from fastpose.train.tasks import (
    AdversarialRecipe,
    AdversarialTask,
    PoseRecipe,
    pose_recipe,
    pose_task,
)

CELLS = (24, 16)


# What the maps should be


def lsp_truth(visibility: list[int], **changes: object) -> Truth:
    """Joints on the grid's whole cells: joint k at cell (k + 1, 2 k % 12 + 2) of 16x24."""
    spec = replace(model_spec("adversarial-lsp"), **changes)
    cells = torch.tensor([[k + 1, 2 * k % 12 + 2] for k in range(14)], dtype=torch.float32)
    return true_maps(4 * cells[None] + 2, torch.tensor([visibility]), spec, (96, 64))


def test_a_visible_joint_has_a_pose_map_and_a_hidden_one_an_occlusion_map_too() -> None:
    truth = lsp_truth([0, 1, 2] + [2] * 11)
    assert truth.maps.occlusion is not None
    assert truth.maps.pose.shape == truth.maps.occlusion.shape == (1, 14, *CELLS)
    peaks = truth.maps.pose.amax(dim=(2, 3))[0]
    torch.testing.assert_close(peaks, torch.tensor([0.0] + [1.0] * 13))
    hidden = truth.maps.occlusion[0]
    torch.testing.assert_close(hidden[1], truth.maps.pose[0, 1])
    assert not hidden[[0, *range(2, 14)]].any()
    assert truth.labelled[0].tolist() == truth.inside[0].tolist() == [False] + [True] * 13


def test_a_gaussian_is_one_cell_wide_round_the_hourglass_grid() -> None:
    maps = lsp_truth([2] * 14).maps.pose[0, 3]
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(16.0), indexing="ij")
    expected = torch.exp(-((columns - 4) ** 2 + (rows - 8) ** 2) / 2)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)


def test_a_joint_outside_is_taught_as_empty_and_not_judged() -> None:
    spec = model_spec("adversarial-lsp")
    joints = torch.full((1, 14, 2), 30.0)
    joints[0, 5] = torch.tensor([300.0, 30.0])
    truth = true_maps(joints, torch.ones(1, 14), spec, (96, 64))
    assert not truth.maps.pose[0, 5].any()
    assert not truth.maps.occlusion[0, 5].any()
    assert truth.labelled[0, 5]
    assert [bool(v) for v in truth.inside[0]] == [k != 5 for k in range(14)]


def test_without_occlusion_maps_there_are_none_to_learn() -> None:
    truth = lsp_truth([1] * 14, kwargs={"occlusion": False})
    assert truth.maps.occlusion is None
    assert truth.maps.joined is truth.maps.pose


@pytest.mark.parametrize(
    ("name", "ends", "length", "delta"),
    [("lsp", (9, 2), 5.0, 0.2), ("mpii", (8, 9), 0.75 * 5.0, 0.5)],
)
def test_distances_are_measured_by_the_torso_or_the_head(
    name: str, ends: tuple[int, int], length: float, delta: float
) -> None:
    spec = model_spec(f"adversarial-{name}")
    joints = torch.full((3, len(spec.joints), 2), 10.0)
    joints[:, ends[0]] = torch.tensor([10.0 + 12, 10.0 + 16])  # 20 pixels, 5 cells
    visibility = torch.full((3, len(spec.joints)), 2.0)
    visibility[1, ends[0]] = 0
    visibility[2, ends[1]] = 1  # hidden, and still at a known place
    truth = true_maps(joints, visibility, spec, (64, 64))
    torch.testing.assert_close(
        truth.unit, torch.tensor([length, torch.nan, length]), equal_nan=True
    )
    assert yardstick(spec.joints).delta == delta


def test_joints_without_a_yardstick_are_refused() -> None:
    with pytest.raises(ModelError, match="measured on mpii16 and lsp14, not on coco17"):
        yardstick(model_spec("cpn50").joints)


# L_G


def test_the_maps_loss_equals_a_sum_written_out() -> None:
    truth = lsp_truth([0, 1, 2] + [2] * 11)
    output = [
        StackMaps(uniform(f"pose {n}", (1, 14, *CELLS)), uniform(f"hidden {n}", (1, 14, *CELLS)))
        for n in range(3)
    ]
    total = 0.0
    for stack in output:
        for maps, true in zip(stack, truth.maps, strict=True):
            for joint in range(1, 14):  # the first has no label
                total += float((maps[0, joint].double() - true[0, joint].double()).square().sum())
    assert generator_loss(output, truth).item() == pytest.approx(total / (2 * 1 * 3), rel=1e-6)


def test_the_maps_loss_counts_a_joint_outside_the_window() -> None:
    """Its true maps are empty, and drawing there costs; a joint without a label costs nothing."""
    joints, visibility = torch.full((1, 14, 2), 30.0), torch.ones(1, 14)
    joints[0, 5], visibility[0, 6] = 300.0, 0
    truth = true_maps(joints, visibility, model_spec("adversarial-lsp"), (96, 64))
    drawn = StackMaps(*(maps.clone() for maps in truth.maps))
    assert generator_loss([drawn], truth) == 0
    drawn.pose[0, 6] = 1
    assert generator_loss([drawn], truth) == 0
    drawn.pose[0, 5] = 1
    assert generator_loss([drawn], truth).item() == pytest.approx(CELLS[0] * CELLS[1] / 2)


def test_the_maps_loss_is_a_mean_of_samples() -> None:
    _, truth = figures(1, np.random.default_rng(0))
    output = [StackMaps(torch.zeros_like(truth.maps.pose), torch.zeros_like(truth.maps.pose))]
    twice = Truth(
        StackMaps(*(maps.repeat(2, 1, 1, 1) for maps in truth.maps)),
        truth.points.repeat(2, 1, 1),
        truth.labelled.repeat(2, 1),
        truth.inside.repeat(2, 1),
        truth.unit.repeat(2),
    )
    doubled = [StackMaps(*(maps.repeat(2, 1, 1, 1) for maps in output[0]))]
    torch.testing.assert_close(generator_loss(doubled, twice), generator_loss(output, truth))


def test_the_maps_loss_of_a_single_task_is_of_pose_maps_alone() -> None:
    truth = lsp_truth([2] * 14, kwargs={"occlusion": False})
    output = [StackMaps(torch.zeros_like(truth.maps.pose), None)]
    assert generator_loss(output, truth).item() == pytest.approx(
        float(truth.maps.pose.square().sum()) / 2
    )


# p_fake and c_fake


def one_joint(x: float, *, unit: float = 4.0, inside: bool = True) -> tuple[Tensor, Truth]:
    """A generated map whose peak lies at cell (8, 8), and a truth that lies x cells to the left."""
    drawn = torch.tensor([[[8.0, 8.0]]])
    known = torch.tensor([[inside]])
    pose = ops.render(drawn, torch.ones(1, 1), CELLS, sigma=1.0)
    points = drawn - torch.tensor([x, 0.0])
    maps = StackMaps(ops.render(points, known, CELLS, sigma=1.0), torch.zeros(1, 1, *CELLS))
    return pose, Truth(maps, points, known, known, torch.tensor([unit]))


@pytest.mark.parametrize(("x", "target"), [(0.0, 1), (1.99, 1), (2.0, 0), (2.01, 0), (7.0, 0)])
def test_a_joint_is_right_below_delta(x: float, target: int) -> None:
    labels = pose_labels(*one_joint(x, unit=4.0), delta=0.5)
    assert labels.target.tolist() == [[target]]
    assert labels.known.tolist() == [[True]]


def test_the_place_of_a_joint_is_read_to_a_quarter_of_a_cell() -> None:
    _, truth = one_joint(-2.2)  # at 10.2
    pose = ops.render(torch.tensor([[[8.3, 8.0]]]), torch.ones(1, 1), CELLS, sigma=1.0)
    assert pose_labels(pose, truth, delta=0.5).target.item() == 1  # at 8.25; its cell is 8


def test_delta_and_the_unit_scale_the_distance() -> None:
    pose, truth = one_joint(1.99, unit=4.0)
    assert pose_labels(pose, truth, delta=0.49).target.item() == 0
    assert pose_labels(pose, replace(truth, unit=torch.tensor([3.9])), delta=0.5).target.item() == 0


@pytest.mark.parametrize(
    ("inside", "unit"), [(False, 4.0), (True, math.nan), (True, 0.0), (False, math.nan)]
)
def test_a_joint_that_cannot_be_measured_is_skipped(inside: bool, unit: float) -> None:
    pose, truth = one_joint(7.0, unit=unit, inside=inside)
    labels = pose_labels(pose, truth, delta=0.5)
    assert not labels.known.any()
    assert not labels.imperfect.any()
    assert confidence_labels(pose, truth, epsilon=0.25).known.item() == inside


def test_a_map_without_a_peak_found_nothing() -> None:
    pose, truth = one_joint(0.0)
    labels = pose_labels(-pose, truth, delta=0.5)
    assert (labels.target.item(), labels.known.item()) == (0, True)


@pytest.mark.parametrize(("share", "target"), [(0.0, 1), (0.249, 1), (0.251, 0), (1.0, 0)])
def test_a_map_is_sure_below_epsilon_of_the_true_maps_norm(share: float, target: int) -> None:
    _, truth = one_joint(0.0)
    true = truth.maps.pose
    direction = uniform("direction", (1, 1, *CELLS)) - 0.5
    maps = true + direction * (share * true.norm() / direction.norm())
    labels = confidence_labels(maps, truth, epsilon=0.25)
    assert labels.target.tolist() == [[target]]
    assert labels.known.tolist() == [[True]]


def test_a_fuzzy_map_at_the_right_place_is_right_and_not_sure() -> None:
    pose, truth = one_joint(0.0)
    assert pose_labels(pose / 2, truth, delta=0.5).target.item() == 1
    assert confidence_labels(pose / 2, truth, epsilon=0.25).target.item() == 0


def test_real_samples_are_ones_where_there_is_a_joint() -> None:
    truth = lsp_truth([0, 1, 2] + [2] * 11)
    labels = real_labels(truth)
    assert labels.target.tolist() == [[1.0] * 14]
    assert labels.known.tolist() == [[False] + [True] * 13]


# The discriminators' loss and G's


def labels(target: list[list[int]], known: list[list[int]] | None = None) -> Labels:
    values = torch.tensor(target, dtype=torch.float32)
    return Labels(values, torch.tensor(known or [[1] * values.shape[1]] * len(values)).bool())


def test_a_discriminators_loss_equals_a_mean_written_out() -> None:
    verdict = torch.tensor([[0.9, 0.2, 0.6, 0.7], [0.5, 0.4, 0.3, 0.1]])
    wanted = labels([[1, 0, 0, 1], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 0, 1, 1]])
    # -log(1 - |D - target|): of 0.9, 0.8, 0.4; of 0.5, 0.7, 0.9; two of eight are skipped
    expected = -sum(map(math.log, (0.9, 0.8, 0.4, 0.5, 0.7, 0.9))) / 8
    assert discriminator_loss(verdict, wanted).item() == pytest.approx(expected, rel=1e-5)


def test_a_discriminator_is_drawn_to_its_targets() -> None:
    score = torch.zeros(1, 3, requires_grad=True)
    discriminator_loss(torch.sigmoid(score), labels([[1, 0, 1]], [[1, 1, 0]])).backward()
    assert score.grad is not None
    assert torch.sign(-score.grad).tolist() == [[1, -1, 0]]


def test_the_weights_of_the_terms_are_the_papers() -> None:
    assert (Rules(delta=0.5).alpha, Rules(delta=0.5).beta) == (1 / 220, 1 / 180)
    assert (Rules(delta=0.5).epsilon, Rules(delta=0.5).gen_adv) == (0.25, "bad_joints")


@pytest.mark.parametrize(
    ("mode", "costs"),
    [
        # verdicts 0.9, 0.2, 0.6, 0.7 with targets 1, 0, 0, 1, the last one skipped
        ("bad_joints", (math.log(0.8), math.log(0.4))),
        ("literal", (math.log(0.9), math.log(0.8), math.log(0.4))),
        ("non_saturating", (-math.log(0.2), -math.log(0.6))),
    ],
)
def test_the_adversarial_term_equals_a_mean_written_out(
    mode: str, costs: tuple[float, ...]
) -> None:
    verdict = torch.tensor([[0.9, 0.2, 0.6, 0.7]])
    term = adversarial_loss(verdict, labels([[1, 0, 0, 1]], [[1, 1, 1, 0]]), mode)
    assert term.item() == pytest.approx(sum(costs) / 4, rel=1e-5)


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gen_adv must be one of bad_joints, .* got 'wgan'"):
        adversarial_loss(torch.zeros(1, 1), labels([[0]]), "wgan")


@pytest.mark.parametrize("mode", ["bad_joints", "literal", "non_saturating"])
def test_a_sample_that_is_all_right_has_no_adversarial_term(mode: str) -> None:
    """Also where the joints that are not right are those that nobody can tell."""
    score = torch.zeros(3, 4, requires_grad=True)
    wanted = labels(
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1]], [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]
    )
    assert wanted.imperfect.tolist() == [False, False, True]
    adversarial_loss(torch.sigmoid(score), wanted, mode).backward()
    assert score.grad is not None
    assert score.grad.any(dim=1).tolist() == [False, False, True]


def maps_for(step: AdversarialStep) -> tuple[Tensor, Tensor, Labels]:
    """Pictures, free maps to be changed, and labels that call every other joint wrong."""
    images, _ = figures(4, np.random.default_rng(3))
    maps = uniform("maps", (4, 2 * JOINTS, 16, 16)).requires_grad_()
    return images, maps, labels([[0, 1] * (JOINTS // 2)] * 4)


@pytest.mark.parametrize(
    ("mode", "right"), [("bad_joints", 0), ("non_saturating", 0), ("literal", -1)]
)
def test_one_step_on_the_term_raises_the_verdict_on_wrong_joints(mode: str, right: int) -> None:
    """And has no part in right ones, but for the literal form, which pushes them down."""
    step = game(Rules(delta=DELTA))
    images, maps, wanted = maps_for(step)
    step.pose.eval()
    verdict = step.pose(images, maps)
    adversarial_loss(verdict, wanted, mode).backward()
    assert maps.grad is not None
    with torch.no_grad():
        after = step.pose(images, maps - 20 * maps.grad)
    wrong = wanted.target == 0
    assert (after[wrong] > verdict[wrong]).float().mean() > 0.9
    score = verdict.detach().requires_grad_()
    adversarial_loss(score, wanted, mode).backward()
    assert (-score.grad[wrong] > 0).all()
    assert torch.sign(-score.grad[~wrong]).unique().tolist() == [right]


def test_one_step_of_the_generator_raises_the_verdict_on_wrong_joints() -> None:
    """G alone is moved, by the adversarial term alone, and P likes its maps better."""
    step = game(Rules(delta=DELTA))
    images, truth = figures(8, np.random.default_rng(3))
    for network in (step.generator, step.pose):
        network.eval()  # one function before and after
    maps = step.generator(images)[-1]
    wanted = pose_labels(maps.pose, truth, DELTA)
    verdict = step.pose(images, maps.joined)
    loss = adversarial_loss(verdict, wanted)
    parameters = list(step.generator.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    size = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= 1e-2 * gradient / size
        after = step.pose(images, step.generator(images)[-1].joined)
    wrong = wanted.known & (wanted.target == 0)
    assert wrong.any()
    assert after[wrong].mean() > verdict[wrong].mean()


# Algorithm 1


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network: nn.Module, before: dict[str, Tensor]) -> tuple[bool, bool]:
    """Whether its parameters changed, and whether its running statistics did."""
    names = {name for name, _ in network.named_parameters()}
    differ = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    return bool(differ & names), bool(differ - names)


def networks(step: AdversarialStep) -> dict[str, nn.Module]:
    return {"generator": step.generator, "pose": step.pose, "confidence": step.confidence}


UPDATES = ["generator", "pose", "pose", "confidence", "confidence", "generator"]


def test_each_update_changes_its_own_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Algorithm 1's order; running statistics too move in their own network's steps alone."""
    step = game(Rules(delta=DELTA))
    order: list[str] = []
    before = {name: snapshot(network) for name, network in networks(step).items()}
    update = AdversarialStep._update

    def watched(self: AdversarialStep, name: str, loss: Tensor, rate: float) -> None:
        update(self, name, loss, rate)
        order.append(name)
        for other, network in networks(self).items():
            assert changed(network, before[other]) == (other == name, other == name), order
            before[other] = snapshot(network)

    monkeypatch.setattr(AdversarialStep, "_update", watched)
    losses = step.step(*figures(4, np.random.default_rng(0)), 1e-3)
    assert order == UPDATES
    assert list(losses) == [
        "generator", "pose fake", "pose real", "confidence fake", "confidence real", "objective",
    ]  # fmt: skip
    assert all(math.isfinite(value) for value in losses.values())


def test_running_statistics_count_a_networks_own_passes() -> None:
    """G's twice a batch; P's and C's by generated and by true maps, and not for judging."""
    step = game(Rules(delta=DELTA))
    step.step(*figures(4, np.random.default_rng(0)), 1e-3)
    for network in networks(step).values():
        counts = {int(v) for n, v in network.named_buffers() if n.endswith("num_batches_tracked")}
        assert counts == {2}


def test_the_objective_is_the_weighted_sum_and_reaches_the_generator_alone() -> None:
    step = game(Rules(delta=DELTA, alpha=0.3, beta=0.7), stacks=2)
    seed_weights(step.generator)  # else the maps of both stacks are empty
    images, truth = figures(4, np.random.default_rng(0))
    objective = step.objective(images, truth)
    objective.backward()
    assert all(p.grad is None for n in (step.pose, step.confidence) for p in n.parameters())
    assert all(p.grad is not None for p in step.generator.parameters())
    output = step.generator(images)
    maps = output[-1]
    expected = (
        generator_loss(output, truth)
        + 0.3
        * adversarial_loss(step.confidence(maps.joined), confidence_labels(maps.pose, truth, 0.25))
        + 0.7
        * adversarial_loss(step.pose(images, maps.joined), pose_labels(maps.pose, truth, DELTA))
    )
    torch.testing.assert_close(objective, expected)


def test_the_discriminators_see_the_last_stack_and_its_first_maps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The maps that P and C learn from are those of the first forward pass, cut off from G.

    So are those by which their targets are made.
    """
    step = game(Rules(delta=DELTA), stacks=2)
    seed_weights(step.generator)  # an untrained one's maps are empty, and alike in all stacks
    images, truth = figures(4, np.random.default_rng(0))
    with torch.no_grad():
        last = step.generator(images)[-1]
    first, seen = last.joined, []
    for labels_of in (pose_labels, confidence_labels):

        def watched(pose: Tensor, truth: Truth, limit: float, labels_of=labels_of) -> Labels:
            if not pose.requires_grad:
                assert torch.equal(pose, last.pose)
                asked.append(labels_of)
            return labels_of(pose, truth, limit)

        monkeypatch.setattr(f"fastpose.train.adversarial.{labels_of.__name__}", watched)
    asked: list[Callable[..., Labels]] = []
    step.confidence.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    step.step(images, truth, 1e-3)
    assert asked == [pose_labels, confidence_labels]
    fake, real, judged_maps = seen
    assert torch.equal(fake, first)
    assert not fake.requires_grad
    assert torch.equal(real, truth.maps.joined)
    assert judged_maps.requires_grad
    assert not torch.equal(judged_maps, first)


def test_a_single_task_plays_too() -> None:
    step = game(Rules(delta=DELTA), occlusion=False)
    images, truth = figures(4, np.random.default_rng(0))
    truth = replace(truth, maps=StackMaps(truth.maps.pose, None))
    assert all(math.isfinite(v) for v in step.step(images, truth, 1e-3).values())


def test_optimisers_are_the_papers() -> None:
    kinds = {type(one) for one in game(Rules(delta=DELTA))._optimizers.values()}
    assert kinds == {torch.optim.RMSprop}
    recipe = AdversarialRecipe(schedule=(((256, 256), 250),))
    assert [recipe.rate_at(share) for share in (0.0, 0.5, 1.0)] == [2.5e-4] * 3


# The whole game


def test_a_short_game_is_lost_by_nobody() -> None:
    """G learns, no loss diverges, and P comes to tell G's wrong joints from true ones."""
    step = game(Rules(delta=DELTA))
    losses = play(step, 75)
    assert all(math.isfinite(value) for row in losses for value in row.values())
    assert losses[-1]["generator"] < 0.6 * losses[0]["generator"]
    verdicts = judged(step, 100)
    assert verdicts["found"] > 0.7
    assert verdicts["generated"] > 0.85


def test_separation_is_the_share_of_pairs_in_order() -> None:
    right, wrong = torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5, 0.7])
    assert separation(right, wrong) == pytest.approx((3 + 1 + 0.5) / 6)


# Training by the loop


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AdversarialTask]:
    """A task on a network small enough for a test."""
    options = {"stacks": 1, "channels": 8, "stem": (4, 8), "depth": 2}
    spec = replace(model_spec("adversarial-lsp"), name="tiny", kwargs=options)
    monkeypatch.setitem(MODELS, "tiny", spec)

    def make(folder: Path, **changes: object) -> AdversarialTask:
        folder.mkdir(exist_ok=True)
        fields = {"schedule": (((32, 32), 2),), "batch": 4, "bf16": False, "augmentation": STILL}
        data = TrainingSet([drawn_people(folder)])
        task = pose_task(spec, data, pose_recipe(spec, **fields | changes))
        assert isinstance(task, AdversarialTask)
        return task

    return make


class BrokenOffError(Exception):
    pass


def test_a_run_that_was_broken_off_ends_as_one_that_was_not(
    tiny: Callable[..., AdversarialTask], tmp_path: Path
) -> None:
    """With the discriminators and all three optimisers as they were."""
    whole = fit(tiny(tmp_path / "data"), tmp_path / "whole")

    def cut(row: dict[str, object]) -> None:
        raise BrokenOffError

    with pytest.raises(BrokenOffError):
        fit(tiny(tmp_path / "data"), tmp_path / "cut", report=cut)
    resumed = fit(tiny(tmp_path / "data"), tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    states = [
        torch.load(tmp_path / run / "last.pt", weights_only=True)["optimizer"]
        for run in ("whole", "cut")
    ]
    assert set(states[0]) == {"pose", "confidence", "optimizers"}
    for kind in ("pose", "confidence"):
        for name, value in states[0][kind].items():
            assert torch.equal(value, states[1][kind][name]), (kind, name)


def test_what_is_trained_is_the_generator_as_it_is_after_the_last_step(
    tiny: Callable[..., AdversarialTask], tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = []
    network = fit(tiny(tmp_path / "data", bf16=True), tmp_path / "run", report=rows.append)
    assert isinstance(network, AdversarialPoseNet)
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["network"]
    for name, value in network.named_parameters():  # no average of weights
        torch.testing.assert_close(value, last[name])
    assert rows[1]["loss"] < rows[0]["loss"]


def test_the_task_is_chosen_by_the_network() -> None:
    schedule = (((64, 64), 1),)
    spec = model_spec("adversarial-mpii")
    assert type(pose_recipe(spec, schedule=schedule)) is AdversarialRecipe
    assert type(pose_recipe(model_spec("cpn-light"), schedule=schedule)) is PoseRecipe


def test_rules_are_those_of_the_joints_or_the_recipes(
    tiny: Callable[..., AdversarialTask], tmp_path: Path
) -> None:
    assert tiny(tmp_path)._rules == Rules(delta=0.2)
    given = Rules(delta=0.4, gen_adv="literal")
    assert tiny(tmp_path, rules=given)._rules == given


def test_the_command_line_trains_it(
    tiny: Callable[..., AdversarialTask],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxscript")
    shallow = MODELS["tiny"].kwargs | {"depth": 1}  # a graph of few operators to trace
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["tiny"], size=(32, 32), kwargs=shallow))
    people = replace(drawn_people(tmp_path), name="lsp")
    monkeypatch.setattr("fastpose.datasets.open_poses", lambda *_, **__: people)
    words = ["train", "tiny", "--data", "lsp:drawn", "--out", str(tmp_path / "run"), "--json"]
    words += ["--schedule", "32x32:1", "--batch", "4", "--precision", "f32", "--device", "cpu"]
    assert main(words) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["recipe"]["rate"], card["recipe"]["batch"]) == (2.5e-4, 4)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert "confidence" in state["optimizer"]
    assert (tmp_path / "run" / "tiny.onnx").is_file()
    assert main(words) == 0  # nothing is left to do
    assert "tiny: 1/1 epochs" in capsys.readouterr().err
