"""The published recipes: rates, lengths, groups of parameters, views, and that they train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from fastpose.crop import Augmentation, augment_boxes
from fastpose.datasets import PoseData, Sample
from fastpose.errors import ModelError
from fastpose.models import MODELS, cpn, create, model_spec, structured
from fastpose.models.spec import ModelSpec
from fastpose.models.tompson import Widths
from fastpose.train import targets
from fastpose.train.data import TrainingSet
from fastpose.train.loop import Recipe, descend, fit
from fastpose.train.recipes import PublishedRecipe, published
from fastpose.train.tasks import AdversarialRecipe, PoseRecipe, pose_recipe, pose_task

UNPUBLISHED = {"cpn-light", "cpn-pin", "cpm-person", "structured-flic"}
PUBLISHED = [name for name in MODELS if name not in UNPUBLISHED]


@pytest.mark.parametrize("name", sorted(UNPUBLISHED))
def test_what_was_not_published_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"no published recipe of {name} is known"):
        published(model_spec(name))


# Rates


@pytest.mark.parametrize(
    ("name", "unit", "length", "rates"),
    [
        ("cpm-flic", "iteration", 40_000, {0: 8e-5, 39_999: 8e-5}),
        (
            "cpm-lsp",
            "iteration",
            395_000,
            {0: 8e-5, 136_105: 8e-5, 136_106: 8e-5 * 0.333, 272_212: 8e-5 * 0.333**2},
        ),
        ("cpm-vgg", "iteration", 320_000, {136_105: 8e-5, 319_999: 8e-5 * 0.333**2}),
        (
            "cpm-bn",
            "iteration of 44 an epoch",
            44 * 210,
            {
                0: 5e-7,
                250: 5e-4 * (0.001 + 0.999 / 2),
                500: 5e-4,
                44 * 170 - 1: 5e-4,
                44 * 170: 5e-5,
                44 * 200: 5e-6,
            },
        ),
        ("structured-lsp", "iteration", 10_000, {0: 0.002, 4999: 0.002, 5000: 2e-4, 9999: 2e-4}),
        ("adversarial-mpii", "epoch", 230, {0: 2.5e-4, 229: 2.5e-4}),
        (
            "pbn-mpii",
            "epoch",
            250,
            {0: 2.5e-4, 169: 2.5e-4, 170: 2.5e-5, 219: 2.5e-5, 220: 2.5e-6, 249: 2.5e-6},
        ),
        ("hourglass8", "epoch", 100, {0: 2.5e-4, 99: 2.5e-4}),
        ("tompson-flic", "epoch", 60, {0: 1e-4, 59: 1e-4}),
        (
            "cpn50",
            "epoch of 60,000 views",
            400,
            {0: 5e-4, 59: 5e-4, 60: 2.5e-4, 120: 1.25e-4, 399: 5e-4 / 64},
        ),
    ],
)
def test_rates(name: str, unit: str, length: int, rates: dict[int, float]) -> None:
    recipe = published(model_spec(name)).recipe
    for done, rate in rates.items():
        assert recipe.rate_at(done / length) == pytest.approx(rate), (unit, done)


def test_a_shorter_run_changes_its_rate_at_the_same_shares() -> None:
    recipe = published(model_spec("pbn-lsp")).recipe
    steps = 4 * 25  # of an epoch, in a tenth of the epochs
    rates = [round(recipe.rate_at(step / steps) * 1e7) for step in range(0, steps, 4)]
    assert rates == [2500] * 17 + [250] * 5 + [25] * 3


# Length and batch


@pytest.mark.parametrize(
    ("name", "people", "epochs", "batch"),
    [
        ("cpm-flic", 3987, 161, 16),  # 40,000 iterations
        ("cpm-lsp", 11_000, 575, 16),
        ("cpm-bn", 22_246, 210, 512),
        ("structured-lsp", 1000, 160, 16),  # two of its 80,000 views
        ("adversarial-mpii", 22_246, 230, 8),
        ("adversarial-lsp", 11_000, 250, 8),
        ("pbn-mpii", 22_246, 250, 16),
        ("hourglass2", 24_000, 100, 6),
        ("tompson-mpii", 22_246, 60, 16),
        ("cpn50", 150_000, 160, 32),
        ("cpn101-384", 150_000, 160, 24),
        ("cpn50", 30_000_000, 1, 32),
    ],
)
def test_length_and_batch(name: str, people: int, epochs: int, batch: int) -> None:
    publication = published(model_spec(name))
    assert publication.epochs_of(people) == epochs
    assert publication.recipe.batch == batch


# Optimisers


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_parameter_is_in_one_group(name: str) -> None:
    recipe = published(model_spec(name)).recipe
    with torch.device("meta"):
        network = create(name)
    optimizer = recipe.optimizer(network)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in network.parameters()}
    for group in optimizer.param_groups:
        if any(p.ndim == 1 for p in group["params"]):
            assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("cpm-lsp", torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ("cpm-bn", torch.optim.Adam, {"betas": (0.9, 0.999), "weight_decay": 0.0}),
        ("structured-lsp", torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ("pbn-mpii", torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8, "momentum": 0}),
        ("hourglass8", torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0}),
        ("cpn50-tf", torch.optim.Adam, {"weight_decay": 1e-5}),
    ],
)
def test_optimisers(name: str, kind: type, options: dict[str, object]) -> None:
    recipe = published(model_spec(name)).recipe
    with torch.device("meta"):
        optimizer = recipe.optimizer(create(name))
    assert type(optimizer) is kind
    assert {option: optimizer.param_groups[0][option] for option in options} == options
    assert (recipe.clip, recipe.ema) == (None, 0.0)


def test_a_group_learns_by_its_factor() -> None:
    slow, fast = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [slow]}, {"params": [fast], "factor": 5.0}]
    descend(torch.optim.SGD(groups, lr=1.0), slow.sum() + fast.sum(), 0.1)
    assert (slow.item(), fast.item()) == pytest.approx((-0.1, -0.5))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method must be sgd, adam or rmsprop, got 'adagrad'"):
        PublishedRecipe((), method="adagrad").optimizer(nn.Linear(1, 1))


# Views


def drawn(options: Augmentation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of 4000 views of a box: degrees, sizes of the window in boxes, and which are mirrored."""
    boxes = np.tile(np.array([[10.0, 20, 110, 120]]), (4000, 1))
    rng = np.random.default_rng(0)
    affines, flips = augment_boxes(
        boxes, (64, 64), options, rng, padding=1.0, convention="hourglass"
    )
    linear = affines[:, :, :2] * np.where(flips, -1, 1)[:, None, None] ** np.array([[1, 0]])
    angles = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    sizes = np.sqrt(np.abs(np.linalg.det(linear))) * 64 / 100
    assert np.allclose(affines @ [31.5, 31.5, 1], affines[0] @ [31.5, 31.5, 1], atol=1)  # no shift
    return angles, sizes, flips


@pytest.mark.parametrize(
    ("name", "turn", "turned", "widths", "enlarges", "flip"),
    [
        ("cpm-lsp", 40, 1, (0.7, 1.3), True, 0.5),
        ("cpm-bn", 60, 0.6, (0.75, 1.25), False, 0.5),
        ("adversarial-lsp", 30, 1, (0.75, 1.25), False, 0.5),
        ("pbn-mpii", 30, 1, (0.75, 1.25), False, 0.5),
        ("tompson-mpii", 20, 1, (0.5, 1.5), True, 0.5),
        ("cpn50", 45, 0.5, (0.7, 1.35), False, 0.25),
    ],
)
def test_views_are_uniform_over_the_published_ranges(
    name: str,
    turn: float,
    turned: float,
    widths: tuple[float, float],
    enlarges: bool,
    flip: float,
) -> None:
    views = published(model_spec(name)).recipe.augmentation
    angles, sizes, flips = drawn(views)
    quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
    expected = np.interp(quarters, (0, 1), widths)
    found = 1 / sizes if enlarges else sizes
    np.testing.assert_allclose(np.quantile(found, quarters), expected, atol=0.03)
    moved = np.abs(angles[np.abs(angles) > 1e-6])
    assert len(moved) / len(angles) == pytest.approx(turned, abs=0.03)
    np.testing.assert_allclose(np.quantile(moved, quarters) / turn, quarters, atol=0.04)
    assert flips.mean() == pytest.approx(flip, abs=0.03)
    assert (views.half_body, views.grey, views.shift) == (0, 0, 0)


def test_the_views_of_the_two_others() -> None:
    angles, sizes, _ = drawn(published(model_spec("structured-lsp")).recipe.augmentation)
    np.testing.assert_allclose(sizes, 1)
    np.testing.assert_allclose(np.quantile(angles, (0, 0.5, 1)), (-180, 0, 180), atol=8)
    angles, sizes, _ = drawn(published(model_spec("hourglass2")).recipe.augmentation)
    assert (angles != 0).mean() == pytest.approx(0.4, abs=0.03)
    assert np.abs(angles).max() == pytest.approx(60)
    np.testing.assert_allclose((sizes.min(), sizes.max()), (2**-0.5, 2**0.5))
    assert np.log2(sizes).std() == pytest.approx(0.25, rel=0.15)


def test_people_are_as_large_as_in_prediction() -> None:
    for name in ("cpm-lsp", "cpn50"):
        spec = model_spec(name)
        padding = published(spec).recipe.padding
        np.testing.assert_allclose(padding, 1.25 * np.broadcast_to(spec.padding, 2))


# Training, of networks small enough for a test

SMALL = {
    "cpm-lsp": {"stages": 2, "width": 8},
    "cpm-bn": {"stages": 1},
    "structured-lsp": {"fcn6_channels": 8, "part_channels": 4, "transform_mid_channels": 4},
    "adversarial-lsp": {"stacks": 1, "channels": 16, "stem": (8, 8), "depth": 2},
    "pbn-lsp": {"stacks": 1, "width": 8, "channels": 16},
    "hourglass2": {"stacks": 1, "channels": 16},
    "tompson-flic": {"widths": Widths(6, 10, 8, 4)},
    "cpn50": {},
}


@pytest.fixture(params=SMALL)
def spec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A registered model with few channels and an input of 64x64."""
    spec = model_spec(request.param)
    spec = replace(spec, size=(64, 64), kwargs=spec.kwargs | SMALL[spec.name])
    monkeypatch.setitem(MODELS, spec.name, spec)
    monkeypatch.setitem(cpn.BLOCKS, 50, (1, 1, 1, 1))
    monkeypatch.setitem(targets.MEGVII_SIGMAS, (16, 16), targets.MEGVII_SIGMAS[64, 48])
    narrow = [8 if type(item) is int else item for item in structured.VGG[:-1]]
    monkeypatch.setattr(structured, "VGG", (*narrow, 512))
    return spec


def people(folder: Path, spec: ModelSpec) -> TrainingSet:
    """Two pictures of noise with a person's joints; some are hidden."""
    rng = np.random.default_rng(0)
    count, samples = len(spec.joints), []
    for i in range(2):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (90, 70, 3), np.uint8))
        joints = rng.uniform((10, 10), (60, 80), (count, 2)).astype(np.float32)
        seen = np.ones(count, bool)
        visible = np.arange(count) % 3 > 0
        samples.append(Sample(folder / f"{i}.png", (90, 70), joints, seen, visible))
    return TrainingSet([PoseData("drawn", spec.joints, tuple(samples))])


def tried(spec: ModelSpec, steps: int = 2) -> PoseRecipe | AdversarialRecipe:
    schedule = ((spec.size, steps),)
    return replace(published(spec).recipe, schedule=schedule, batch=2, bf16=False)


class CutError(Exception):
    pass


def cut(row: dict) -> None:
    raise CutError


def test_a_run_goes_on_to_the_last_bit(spec: ModelSpec, tmp_path: Path) -> None:
    data = people(tmp_path, spec)

    def run(name: str, **options) -> nn.Module:
        return fit(pose_task(spec, data, tried(spec)), tmp_path / name, **options)

    whole = run("whole")
    with pytest.raises(CutError):
        run("cut", report=cut)
    resumed = run("cut").state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert np.isfinite([row["loss"] for row in rows]).all()
    torch.manual_seed(0)
    first = create(spec.name).state_dict()
    moved = [name for name, value in whole.state_dict().items() if (value != first[name]).any()]
    assert len(moved) > len(first) / 2
    # the same network, data and length, but another recipe
    ours = replace(pose_recipe(spec, schedule=tried(spec).schedule), batch=2, bf16=False)
    with pytest.raises(ModelError, match="another model or recipe"):
        fit(pose_task(spec, data, ours), tmp_path / "cut")


@pytest.mark.parametrize("spec", ["pbn-lsp"], indirect=True)
def test_a_checkpoint_from_before_a_field_was_there_goes_on(
    spec: ModelSpec, tmp_path: Path
) -> None:
    """Fields that recipes got later had, so to speak, their defaults."""
    data = people(tmp_path, spec)
    recipe = PoseRecipe((((64, 64), 1),), batch=2, bf16=False)
    fit(pose_task(spec, data, recipe), tmp_path / "run")
    checkpoint = tmp_path / "run" / "last.pt"
    state = torch.load(checkpoint, weights_only=True)
    name, fields, steps = json.loads(state["identity"])
    for key in ("name", "clip", "hard_cells"):
        del fields[key]
    for key in ("turn", "widen", "enlarge", "shear"):
        del fields["augmentation"][key]
    torch.save(state | {"identity": json.dumps([name, fields, steps])}, checkpoint)
    fit(pose_task(spec, data, recipe), tmp_path / "run")
    for other in (replace(recipe, name="published"), replace(recipe, hard_cells=0.5)):
        with pytest.raises(ModelError, match="another model or recipe"):
            fit(pose_task(spec, data, other), tmp_path / "run")


def test_ours_is_what_it_was() -> None:
    assert (Recipe(()).clip, Recipe(()).name, PoseRecipe(()).padding) == (1.0, "ours", 1.25)
