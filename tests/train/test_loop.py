"""Training: what a batch holds, what it is taught, and that a run can be cut off anywhere."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastpose.crop import Augmentation  # noqa: E402
from fastpose.datasets import PoseData, Sample  # noqa: E402
from fastpose.errors import DataError, ModelError, WeightsError  # noqa: E402
from fastpose.models import create, model_spec  # noqa: E402
from fastpose.models.cpn import BLOCKS  # noqa: E402
from fastpose.skeleton import COCO17, LSP14, MPII16  # noqa: E402
from fastpose.train.data import TrainingSet, batches  # noqa: E402
from fastpose.train.loop import fit  # noqa: E402
from fastpose.train.losses import cpn_loss  # noqa: E402
from fastpose.train.targets import cascade_targets, megvii_targets  # noqa: E402
from fastpose.train.tasks import PoseRecipe, PoseTask  # noqa: E402

SPEC = model_spec("cpn-light")
SMALL = replace(SPEC.window, size=(64, 64))
STILL = Augmentation(rotated=0, scale=0, shift=0, flip=0, half_body=0, gain=0, grey=0)


def drawn_people(folder, count=8, labelled=14):
    """Pictures in which each joint is a dot of its own colour."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        image = np.full((90, 70, 3), 60, np.uint8)
        joints = rng.uniform((10, 10), (60, 80), (14, 2)).astype(np.float32)
        for k, (x, y) in enumerate(joints):
            colour = (18 * k, 255 - 18 * k, (40 * k) % 255)
            cv2.circle(image, (round(float(x)), round(float(y))), 2, colour, -1)
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), image)
        seen = np.arange(14) < labelled
        samples.append(Sample(path, (90, 70), joints, seen, seen))
    return PoseData("drawn", LSP14, tuple(samples))


def recipe(**changes):
    return replace(
        PoseRecipe(schedule=(((64, 64), 2),), batch=4, bf16=False, augmentation=STILL), **changes
    )


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_joints_and_picture_are_moved_alike(tmp_path, flip):
    """Under each joint lies its own colour; in a mirrored window, that of its mirror twin."""
    data = TrainingSet([drawn_people(tmp_path)])
    views = replace(STILL, rotated=1.0, flip=flip)
    batch = data.batch(np.arange(8), SMALL, views, np.random.default_rng(0))
    assert batch.images.shape == (8, 3, 64, 64)
    still = data.batch(np.arange(8), SMALL, STILL, np.random.default_rng(0))
    twins = LSP14.flip_order() if flip else np.arange(14)
    seen, expected = colours(batch), colours(still)[:, twins]
    wrong = colours(still)[:, np.roll(twins, 6)]
    assert np.nanmedian(np.abs(seen - expected)) < 12
    assert np.nanmedian(np.abs(seen - wrong)) > 24


def colours(batch):
    """[N, K, 3] what lies under each joint, 0 to 255; NaN where that is outside the window."""
    n, k = batch.visibility.shape
    out = np.full((n, k, 3), np.nan)
    for i, j in np.ndindex(n, k):
        x, y = np.rint(batch.joints[i, j]).astype(int)
        if 1 <= x < 63 and 1 <= y < 63:
            patch = batch.images[i, :, y - 1 : y + 2, x - 1 : x + 2].mean((1, 2))
            out[i, j] = patch * SMALL.std + SMALL.mean
    return out


def test_samples_with_few_labels_are_left_out(tmp_path):
    with pytest.raises(DataError, match="no sample has 6 labelled joints"):
        TrainingSet([drawn_people(tmp_path, labelled=5)])


def test_no_set_is_no_training_set():
    with pytest.raises(DataError, match="at least one set"):
        TrainingSet([])


def test_sets_of_other_joints_do_not_mix(tmp_path):
    one = drawn_people(tmp_path)
    with pytest.raises(DataError, match="same joints"):
        TrainingSet([one, PoseData("other", MPII16, one.samples)])


def test_a_picture_is_kept_once(tmp_path):
    people = drawn_people(tmp_path)
    data = TrainingSet([people, people])
    assert data.images[0] is data.images[len(people)]
    assert data.images[0] is not data.images[1]


def test_a_set_given_twice_counts_twice(tmp_path):
    one = drawn_people(tmp_path)
    assert len(TrainingSet([one, one])) == 2 * len(one)


def test_half_bodies_leave_joints_outside_that_still_count(tmp_path):
    data = TrainingSet([drawn_people(tmp_path, count=30)])
    # standing people: the drawn joints are put in the order of their heights
    for sample in data.samples:
        order = np.argsort(sample.joints[:, 1])[::-1]
        sample.joints[:] = sample.joints[order]
    views = replace(STILL, half_body=1.0)
    batch = data.batch(np.arange(30), SMALL, views, np.random.default_rng(0))
    outside = ((batch.joints < -0.5) | (batch.joints > 63.5)).any(axis=2)
    assert outside.any(axis=1).mean() > 0.5
    labelled = torch.from_numpy(batch.visibility > 0).float()
    targets, weights = cascade_targets(torch.from_numpy(batch.joints), labelled, SPEC, (64, 64))
    hidden = torch.from_numpy(outside)
    assert (targets[-1].amax((2, 3))[hidden] == 0).all()
    assert (weights[hidden] == 1).all()
    assert (targets[-1].amax((2, 3))[~hidden] > 0.5).all()


def test_unlabelled_joints_have_no_weight():
    joints = torch.full((1, 14, 2), 30.0)
    labelled = torch.ones(1, 14)
    labelled[0, 3] = 0
    targets, weights = cascade_targets(joints, labelled, SPEC, (64, 64))
    assert weights[0, 3] == 0
    assert targets[-1][0, 3].max() == 0
    widths = [t[0, 0].sum().item() for t in targets]
    assert widths == sorted(widths, reverse=True)  # coarse levels have the wider Gaussians


def test_batches_are_the_same_for_the_same_seed_and_errors_arrive(tmp_path):
    data = TrainingSet([drawn_people(tmp_path, count=9)])
    first = list(batches(data, SMALL, 4, Augmentation(), np.random.default_rng(5)))
    again = list(batches(data, SMALL, 4, Augmentation(), np.random.default_rng(5)))
    assert len(first) == 2  # the ninth sample is left for another epoch
    np.testing.assert_array_equal(first[1].images, again[1].images)
    data.images[:] = [None] * 9
    with pytest.raises(ValueError, match="frames must be"):
        list(batches(data, SMALL, 4, STILL, np.random.default_rng(0)))


def test_leaving_batches_early_ends_the_thread(tmp_path):
    import threading

    data = TrainingSet([drawn_people(tmp_path, count=40)])
    before = threading.active_count()
    for _ in batches(data, SMALL, 4, STILL, np.random.default_rng(0)):
        break
    assert threading.active_count() == before


def test_schedule_and_rate():
    plan = recipe(schedule=(((64, 64), 2), ((96, 64), 3)), rate=1.0)
    assert [plan.size_at(e) for e in (0, 1, 2, 4)] == [(64, 64), (64, 64), (96, 64), (96, 64)]
    assert plan.epochs == 5
    assert plan.rate_at(0) < 0.01 < plan.rate_at(0.03) < plan.rate_at(0.05) == pytest.approx(1)
    assert plan.rate_at(1.0) == pytest.approx(0.01)


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path):
    data = TrainingSet([drawn_people(tmp_path)])
    torch.set_num_threads(1)
    whole = fit(PoseTask(SPEC, data, recipe()), tmp_path / "whole")

    class CutError(Exception):
        pass

    def cut(row):
        raise CutError

    with pytest.raises(CutError):
        fit(PoseTask(SPEC, data, recipe()), tmp_path / "cut", report=cut)
    resumed = fit(PoseTask(SPEC, data, recipe()), tmp_path / "cut")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    lines = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_loss_falls_and_validation_is_logged(tmp_path):
    data = TrainingSet([drawn_people(tmp_path)])
    rows = []
    fit(
        PoseTask(SPEC, data, recipe(schedule=(((64, 64), 5),))),
        tmp_path / "run",
        report=rows.append,
        validate=lambda network: {"mode": float(network.training)},
    )
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["mode"] == 0.0
    assert "mode" not in rows[0]


def coco_people(folder, count=2):
    """Pictures of nothing with joints; every third is hidden, every fifth not labelled."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (90, 70, 3), np.uint8))
        joints = rng.uniform((10, 10), (60, 80), (17, 2)).astype(np.float32)
        labelled = np.arange(17) % 5 > 0
        visible = labelled & (np.arange(17) % 3 > 0)
        samples.append(Sample(folder / f"{i}.png", (90, 70), joints, labelled, visible))
    return PoseData("coco", COCO17, tuple(samples))


def test_visibility_follows_joints_into_mirrored_windows(tmp_path):
    data = TrainingSet([coco_people(tmp_path)])
    sample = data.samples[0]
    v = sample.labelled.astype(int) + sample.visible
    for flip in (0.0, 1.0):
        views = replace(STILL, flip=flip)
        batch = data.batch(np.arange(1), SMALL, views, np.random.default_rng(0))
        expected = v[COCO17.flip_order()] if flip else v
        np.testing.assert_array_equal(batch.visibility[0], expected)


@pytest.mark.parametrize("name", ["cpn50", "cpn50-tf"])
def test_a_published_network_is_trained_for_its_published_loss(tmp_path, monkeypatch, name):
    monkeypatch.setitem(BLOCKS, 50, (1, 1, 1, 1))  # losses look at its maps alone
    spec = model_spec(name)
    data = TrainingSet([coco_people(tmp_path)])
    rows = []
    once = recipe(schedule=((spec.size, 1),), batch=2)
    fit(PoseTask(spec, data, once), tmp_path / "run", report=rows.append)
    torch.manual_seed(once.seed)
    network = create(name).to(memory_format=torch.channels_last).train()
    window = replace(spec.window, padding=once.padding)
    batch = next(batches(data, window, 2, STILL, np.random.default_rng((once.seed, 0))))
    targets = megvii_targets(
        torch.from_numpy(batch.joints), torch.from_numpy(batch.visibility), spec
    )
    output = network(torch.from_numpy(batch.images))
    expected = cpn_loss(output, targets, style=spec.kwargs["style"], top=8).item()
    assert rows[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_published_network_keeps_its_size(tmp_path):
    data = TrainingSet([coco_people(tmp_path)])
    small = recipe(schedule=(((64, 64), 1),), batch=2)
    with pytest.raises(ModelError, match="cpn50 is trained at 256x192, got 64x64"):
        fit(PoseTask(model_spec("cpn50"), data, small), tmp_path / "run")


def test_a_model_of_other_joints_is_refused(tmp_path):
    data = TrainingSet([drawn_people(tmp_path)])
    with pytest.raises(ModelError, match="cpn50 has the joints coco17, the data has lsp14"):
        fit(PoseTask(model_spec("cpn50"), data, recipe()), tmp_path / "run")


def test_data_that_do_not_fill_a_batch_are_refused(tmp_path):
    data = TrainingSet([drawn_people(tmp_path)])
    with pytest.raises(DataError, match=f"{len(data)} samples do not fill one batch of 100"):
        fit(PoseTask(SPEC, data, recipe(batch=100)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_recipe_and_a_damaged_checkpoint_are_refused(tmp_path):
    data = TrainingSet([drawn_people(tmp_path)])
    once = recipe(schedule=(((64, 64), 1),))
    fit(PoseTask(SPEC, data, once), tmp_path / "run")
    with pytest.raises(ModelError, match="another model or recipe"):
        fit(PoseTask(SPEC, data, replace(once, seed=4)), tmp_path / "run")
    checkpoint = tmp_path / "run" / "last.pt"
    whole = checkpoint.read_bytes()
    torch.save({"state_dict": {}}, checkpoint)
    with pytest.raises(WeightsError, match="not a checkpoint of a training run"):
        fit(PoseTask(SPEC, data, once), tmp_path / "run")
    checkpoint.write_bytes(whole[:1000])
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        fit(PoseTask(SPEC, data, once), tmp_path / "run")
