"""What a detector is taught, and that it learns it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_detector import TINY, build, make_tiny, register  # noqa: E402

from fastpose.datasets import BoxData, BoxSample  # noqa: E402
from fastpose.detect.fpn import TwoStageDetector  # noqa: E402
from fastpose.errors import ModelError, WeightsError  # noqa: E402
from fastpose.evaluate import FLOOR, evaluate_detector  # noqa: E402
from fastpose.models import create, create_detector  # noqa: E402
from fastpose.models.anchors import HEAD_WEIGHTS, anchors, decode, encode, overlaps  # noqa: E402
from fastpose.models.weights import save_weights, start_detector  # noqa: E402
from fastpose.train import detection  # noqa: E402
from fastpose.train.detection import (  # noqa: E402
    ANCHORS,
    assign_anchors,
    detection_loss,
    head_loss,
    proposal_loss,
    sample_regions,
)
from fastpose.train.loop import fit  # noqa: E402
from fastpose.train.scenes import SceneBatch, Scenery, SceneSet  # noqa: E402
from fastpose.train.tasks import DetectorRecipe, DetectorTask  # noqa: E402

F = np.float32
SIZE = TINY.size
PLAIN = Scenery(mosaic=0, zoom=(1, 1), empty=0, stretch=0, flip=0, gain=0, grey=0)


def scene(*rows, size=SIZE):
    """A batch of noise; each row is the boxes, classes and ignored flags of a picture."""
    images = np.random.default_rng(0).standard_normal((len(rows), 3, *size)).astype(F)
    return SceneBatch(
        images,
        [np.array(boxes, F).reshape(-1, 4) for boxes, _ in rows],
        [np.zeros(len(boxes), np.int64) for boxes, _ in rows],
        [np.array(ignored, bool) for _, ignored in rows],
    )


def rng():
    return np.random.default_rng(0)


# Which anchors are objects


def test_overlap_decides_what_an_anchor_is():
    target = np.array([[0, 0, 100, 100]], F)
    around = np.array([(0, 0, 100, width) for width in (100, 51, 49, 31, 29, 0)], F)
    labels, nearest = assign_anchors(around, target, np.array([False]), SIZE)
    np.testing.assert_array_equal(labels, [1, 1, -1, -1, 0, 0])
    assert (nearest[labels == 1] == 0).all()


def test_an_object_that_no_anchor_fits_has_the_best_there_is():
    around = np.array([(0, 0, 50, 50), (50, 0, 100, 50), (200, 200, 250, 250)], F)
    boxes = np.array([(60, 0, 70, 10), (500, 500, 510, 510)], F)
    labels, nearest = assign_anchors(around, boxes, np.array([False, False]), SIZE)
    np.testing.assert_array_equal(labels, [0, 1, 0])  # nothing touches the second
    assert nearest[1] == 0


def test_each_object_of_a_crowd_has_an_anchor_of_its_own_choice():
    around, _ = anchors(TINY, SIZE)
    boxes = np.array([(4, 4, 16, 20), (30, 10, 60, 60), (40, 12, 72, 60), (80, 2, 94, 62)], F)
    labels, nearest = assign_anchors(around, boxes, np.zeros(4, bool), SIZE)
    assert set(nearest[labels == 1]) == {0, 1, 2, 3}
    overlap, _ = overlaps(around, boxes)
    best = overlap.max(0)
    for place in np.flatnonzero(labels == 1):
        share = overlap[place, nearest[place]]
        assert share >= 0.5 or share == pytest.approx(best[nearest[place]])
    assert (overlap[labels == 0].max(1) < 0.3).all()


def test_anchors_in_ignored_regions_are_neither_unless_they_are_objects():
    around = np.array([(0, 0, 40, 40), (8, 0, 45, 40), (35, 0, 75, 40), (56, 0, 96, 40)], F)
    boxes = np.array([(0, 0, 45, 60), (2, 2, 42, 40)], F)
    labels, nearest = assign_anchors(around, boxes, np.array([True, False]), SIZE)
    np.testing.assert_array_equal(labels, [1, 1, 0, 0])
    assert nearest[:2].tolist() == [1, 1]  # not the ignored one, which overlaps too
    labels, _ = assign_anchors(around, boxes[:1], np.array([True]), SIZE)
    np.testing.assert_array_equal(labels, [-1, -1, 0, 0])


def test_an_anchor_that_may_be_an_ignored_person_is_not_background():
    """Somebody cut off at the edge: what is seen of the anchor counts, and overlap by 0.3."""
    around = np.array([(-20, 10, 12, 50), (-40, 10, 0, 50), (0, 4, 30, 54), (0, 0, 90, 60)], F)
    labels, _ = assign_anchors(around, np.array([(0, 10, 10, 50)], F), np.array([True]), SIZE)
    np.testing.assert_array_equal(labels, [-1, 0, 0, 0])
    labels, _ = assign_anchors(around, np.array([(0, 10, 14, 50)], F), np.array([True]), SIZE)
    np.testing.assert_array_equal(labels, [-1, 0, -1, 0])


def test_a_picture_of_nobody_is_all_background():
    around, _ = anchors(TINY, SIZE)
    labels, _ = assign_anchors(around, np.zeros((0, 4), F), np.zeros(0, bool), SIZE)
    assert (labels == 0).all()


# Which regions the head is taught


def quiet(value=-10.0):
    count = len(anchors(TINY, SIZE)[0])
    return np.full(count, value, F), np.zeros((count, 4), F)


def regions(logits, deltas, batch, count=16, spec=TINY):
    return sample_regions(logits, deltas, batch, 0, spec, regions=count, rng=rng())


def test_a_quarter_of_the_regions_are_objects_the_rest_background():
    target = np.array([30, 10, 60, 58], F)
    around, _ = anchors(TINY, SIZE)
    logits, deltas = quiet()
    deltas[:] = encode(np.broadcast_to(target, around.shape), around)  # every anchor finds it
    far = np.flatnonzero(np.abs(around[:, 0] - 30) > 40)
    deltas[far] = 0
    deltas[::3, 0] += 0.2  # so that they are no duplicates of each other
    deltas[1::3, 1] += 0.1
    boxes, kinds, matched = regions(logits, deltas, scene(([target], [False])), count=12)
    assert len(boxes) == len(kinds) == len(matched) == 12
    assert (kinds == 1).sum() == 3
    overlap, _ = overlaps(boxes, target[None])
    np.testing.assert_array_equal(kinds, (overlap[:, 0] >= 0.5).astype(int))
    np.testing.assert_array_equal(matched[kinds == 1], np.tile(target, ((kinds == 1).sum(), 1)))
    np.testing.assert_array_equal(matched[kinds == 0], boxes[kinds == 0])


def test_true_boxes_are_taught_even_if_nothing_proposes_them():
    targets = [(3, 3, 9, 12), (70, 30, 90, 62)]
    boxes, kinds, _ = regions(*quiet(), scene((targets, [False, False])))
    found = {tuple(box) for box in boxes[kinds == 1].tolist()}
    assert set(targets) <= found


def test_classes_are_counted_from_one():
    batch = scene(([(10, 10, 30, 50), (50, 10, 80, 60)], [False, False]))
    batch.classes[0][:] = (1, 0)
    _, kinds, matched = regions(*quiet(), batch, count=64)
    for kind, box in zip(kinds[kinds > 0], matched[kinds > 0], strict=True):
        assert kind == (2 if box[0] == 10 else 1)
    assert set(kinds) == {0, 1, 2}


def test_regions_in_ignored_ones_are_not_taught():
    whole = (0, 0, SIZE[1], SIZE[0])
    inner = (30, 10, 60, 58)
    boxes, kinds, _ = regions(*quiet(), scene(([whole, inner], [True, False])))
    assert (kinds == 1).all()  # everything but the target is in the ignored region
    assert (overlaps(boxes, np.array([inner], F))[0] >= 0.5).all()
    boxes, _, _ = regions(*quiet(), scene(([whole], [True])))
    assert len(boxes) == 0


# Losses


def bce(logit, truth):
    return math.log1p(math.exp(-logit if truth else logit))


def smooth(difference, beta):
    d = abs(difference)
    return d * d / 2 / beta if d < beta else d - beta / 2


def test_proposal_loss_by_hand():
    """One object that one anchor fits: the rest of the counted anchors are background."""
    around, levels = anchors(TINY, SIZE)
    count, place = len(around), int(np.flatnonzero(levels == 1)[9])  # of the taller shape
    x, y = (around[place, :2] + around[place, 2:]) / 2
    width, height = (around[place, 2:] - around[place, :2]) * (0.8, 1.25)
    target = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    batch = scene(([target], [False]))
    labels, _ = assign_anchors(around, batch.boxes[0], batch.ignored[0], SIZE)
    assert np.flatnonzero(labels == 1).tolist() == [place]
    used = (labels >= 0).sum()
    assert used <= ANCHORS, "then chance has no part in it"
    logits = torch.full((1, count), -2.0)
    logits[0, place] = 1.0
    deltas = torch.ones(1, count, 4)
    wrong = np.array([0.05, -0.5, 0.0, 2.0])
    deltas[0, place] = torch.from_numpy(wrong + np.log([1, 1, 0.8, 1.25]))
    expected = (bce(1.0, True) + (used - 1) * bce(-2.0, False)) / used
    expected += sum(smooth(d, 1 / 9) for d in wrong) / used
    assert proposal_loss(logits, deltas, batch, TINY, rng()).item() == pytest.approx(expected, 1e-4)


def test_at_most_half_of_the_counted_anchors_are_objects_and_each_picture_counts_as_many():
    around, _ = anchors(TINY, SIZE)
    everywhere = around[(around[:, :2] >= 0).all(1)]
    rows = [(everywhere, np.zeros(len(everywhere), bool)), ([], [])]
    batch = scene(*rows, size=(256, 256))
    logits = torch.zeros(2, len(anchors(TINY, (256, 256))[0]), requires_grad=True)
    deltas = torch.zeros(2, logits.shape[1], 4)
    proposal_loss(logits, deltas, batch, TINY, rng()).backward()
    pushed_up, pushed_down = (logits.grad < 0).sum(1), (logits.grad > 0).sum(1)
    assert pushed_up.tolist() == [ANCHORS // 2, 0]
    assert pushed_down.tolist() == [ANCHORS // 2, ANCHORS]


def test_head_loss_by_hand():
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, -1]])
    kinds = np.array([0, 1, 2])
    deltas = torch.zeros(3, 2, 4)
    deltas[0] = 7.0  # the background has no box
    deltas[1, 0] = torch.tensor([0.5, 0, 0, 0])
    deltas[1, 1] = 9.0  # nor has another class
    deltas[2, 1] = torch.tensor([0, 3.0, 0, 0])
    steps = np.array([[5] * 4, [0] * 4, [0, 1, 0, 0]], F)
    powers = np.exp(logits.numpy())
    right = [powers[i, k] / powers[i].sum() for i, k in enumerate(kinds)]
    expected = -np.log(right).mean() + (smooth(0.5, 1) + smooth(2.0, 1)) / 3
    assert head_loss(logits, deltas, kinds, steps).item() == pytest.approx(float(expected), 1e-5)


def test_of_the_regions_the_hardest_are_taught():
    logits = torch.tensor([[3.0, 0], [0, 3], [1, 0], [-1, 0]], requires_grad=True)
    deltas = torch.zeros(4, 1, 4, requires_grad=True)
    kinds, steps = np.array([0, 1, 0, 0]), np.zeros((4, 4), F)
    steps[1, 0] = 9.0  # sure of the class, far from the place
    loss = head_loss(logits, deltas, kinds, steps, count=2)
    loss.backward()
    taught = logits.grad.abs().sum(1) > 0
    assert taught.tolist() == [False, True, False, True]
    assert deltas.grad[1, 0, 0] != 0
    each = [math.log1p(math.exp(-3)) + 8.5, math.log1p(math.exp(1))]
    assert loss.item() == pytest.approx(sum(each) / 2, rel=1e-5)
    every = head_loss(logits, deltas, kinds, steps, count=None).item()
    assert head_loss(logits, deltas, kinds, steps, count=9).item() == every


def test_losses_of_nothing_are_zero():
    """A batch in which everything is ignored teaches nothing; it must not spoil the weights."""
    batch = scene(([(-400, -400, 600, 600)], [True]))
    network = make_tiny().train()
    output = network(torch.from_numpy(batch.images))
    loss = detection_loss(network, output, batch, TINY, regions=8, rng=rng())
    assert loss.item() == 0
    loss.backward()


def test_what_the_head_is_taught_is_what_its_answers_are_read_as(monkeypatch):
    """Decoded as the detector does, the steps that are right give the true boxes."""
    targets = [(30, 10, 60, 58), (5, 5, 25, 40)]
    batch = scene((targets, [False, False]))
    seen = []

    def note(real):
        def run(*args, **options):
            seen.append(args)
            return real(*args, **options)

        return run

    monkeypatch.setattr(detection, "pool_regions", note(detection.pool_regions))
    monkeypatch.setattr(detection, "head_loss", note(detection.head_loss))
    network = make_tiny().train()
    pyramid, logits, _ = network(torch.from_numpy(batch.images))
    around, _ = anchors(TINY, SIZE)
    near = np.add(targets[0], (3, -4, 5, 2), dtype=F)  # where every anchor sees the first of them
    deltas = torch.from_numpy(encode(np.broadcast_to(near, around.shape), around))[None]
    detection_loss(network, (pyramid, logits, deltas), batch, TINY, regions=16, rng=rng())
    (_, boxes, source, _), (_, _, kinds, steps) = seen
    assert (source == 0).all()
    hits = kinds > 0
    assert np.abs(steps[hits]).max() > 0.5
    found = decode(steps[hits], boxes[hits], HEAD_WEIGHTS)
    overlap, _ = overlaps(boxes[hits], np.array(targets, F))
    np.testing.assert_allclose(found, np.array(targets)[overlap.argmax(1)], atol=1e-3)


def test_every_part_is_taught():
    """Through the windows too: features get a gradient from the head alone."""
    batch = scene(([(30, 10, 60, 58), (5, 5, 25, 40)], [False, False]), ([], []))
    network = make_tiny().train()
    output = network(torch.from_numpy(batch.images))
    detection_loss(network, output, batch, TINY, regions=16, rng=rng()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_head_teaches_the_trunk_through_the_windows():
    batch = scene(([(30, 10, 60, 58)], [False]))
    network = make_tiny().train()
    pyramid, logits, deltas = network(torch.from_numpy(batch.images))
    output = pyramid, logits.detach(), deltas.detach()
    detection_loss(network, output, batch, TINY, regions=8, rng=rng()).backward()
    assert network.rpn[0].weight.grad is None
    assert network.trunk.stem[0][0].weight.grad.abs().max() > 0


# Training


def people(folder, count=6):
    """Pictures with one or two upright boxes of a colour of their own, and flat ones, no people."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(1)
    samples = []
    for i in range(count):
        image = np.full((128, 192, 3), (90, 110, 100), np.uint8)
        boxes = []
        for place in range(1 + i % 2):
            width, height = draw.integers(36, 50), draw.integers(56, 84)
            x = 8 + 92 * place + draw.integers(0, 90 - width)
            y = draw.integers(4, 124 - height)
            image[y : y + height, x : x + width] = (40, 60, 230)
            boxes.append((x, y, x + width, y + height))
        image[118:126, 4:90] = (230, 200, 40)
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), image)
        flags = np.zeros(len(boxes), bool)
        samples.append(
            BoxSample(path, (128, 192), np.array(boxes, F), flags.astype(np.int64), flags)
        )
    return BoxData("boxes", ("person",), tuple(samples))


@pytest.fixture
def tiny(monkeypatch):
    register(monkeypatch)
    torch.set_num_threads(1)


def recipe(**changes):
    plan = DetectorRecipe(
        schedule=((SIZE, 2),), batch=2, samples=4, regions=8, bf16=False, scenery=PLAIN
    )
    return replace(plan, **changes)


class ModuleGraph:
    """A half of the network as a graph."""

    def __init__(self, function, names):
        self.function, self.names = function, names

    def __call__(self, feeds):
        (given,) = feeds.values()
        with torch.inference_mode():
            answer = self.function(torch.from_numpy(given))
        return {name: value.numpy() for name, value in zip(self.names, answer, strict=True)}

    def close(self):
        pass


def detector_of(network, spec=TINY):
    def propose(image):
        pyramid, logits, deltas = network.propose(image)
        return *pyramid, logits, deltas

    names = ["p0", "p1", "p2", "objectness", "deltas"]
    head = ModuleGraph(network.classify, ["logits", "deltas"])
    return TwoStageDetector(spec, ModuleGraph(propose, names), head, score=FLOOR)


def test_people_of_a_few_pictures_are_learnt(tiny, tmp_path, monkeypatch):
    spec = replace(TINY, anchors=((26.0,), (40.0,), (60.0,), (80.0,)))  # as large as the people
    register(monkeypatch, spec)
    data = people(tmp_path / "data")
    plan = recipe(
        schedule=((SIZE, 6),), batch=6, samples=180, regions=16, rate=4e-3, ema=0.95,
        spread=(1.0, 1.0), scenery=replace(PLAIN, flip=0.5),
    )  # fmt: skip
    rows = []
    network = fit(DetectorTask(spec, SceneSet([data]), plan), tmp_path / "run", report=rows.append)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    figures = evaluate_detector(detector_of(network, spec), data).metrics
    assert figures["det_ap50"] > 0.9
    untrained = evaluate_detector(detector_of(create_detector("fpn-tiny"), spec), data).metrics
    assert untrained["det_ap50"] < 0.3


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(tiny, tmp_path):
    data = SceneSet([people(tmp_path / "data", count=3)])
    plan = recipe(scenery=Scenery())
    whole = fit(DetectorTask(TINY, data, plan), tmp_path / "whole")

    class CutError(Exception):
        pass

    def cut(row):
        raise CutError

    with pytest.raises(CutError):
        fit(DetectorTask(TINY, data, plan), tmp_path / "cut", report=cut)
    resumed = fit(DetectorTask(TINY, data, plan), tmp_path / "cut")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    lines = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    with pytest.raises(ModelError, match="another model or recipe"):
        fit(DetectorTask(TINY, data, replace(plan, regions=9)), tmp_path / "cut")


def test_bfloat16_teaches_about_the_same(tiny, tmp_path):
    data = SceneSet([people(tmp_path / "data", count=3)])
    network, losses = create_detector("fpn-tiny").train(), []
    for low in (False, True):
        task = DetectorTask(TINY, data, recipe(bf16=low))
        batch = next(iter(task.batches(SIZE, 0)))
        losses.append(task.loss(network, batch, "cpu").item())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_inputs_vary_in_size_and_the_last_epochs_see_whole_pictures(tiny, tmp_path, monkeypatch):
    data = SceneSet([people(tmp_path / "data", count=2)])
    plan = recipe(schedule=((SIZE, 10),), samples=40, spread=(0.5, 2.0), whole=0.2)
    plan = replace(plan, scenery=replace(PLAIN, mosaic=1.0))
    task = DetectorTask(TINY, data, plan)
    assert task.steps == 20
    seen = []
    real = data.batch

    def note(count, window, scenery, generator):
        seen.append((window.size, scenery.mosaic))
        return real(count, window, scenery, generator)

    monkeypatch.setattr(data, "batch", note)
    for epoch, mosaic in ((0, 1.0), (7, 1.0), (8, 0.0), (9, 0.0)):
        seen.clear()
        shapes = [batch.images.shape for batch in task.batches(SIZE, epoch)]
        assert len(shapes) == 20
        assert {share for _, share in seen} == {mosaic}
        assert len({size for size, _ in seen}) > 2
        for height, width in (size for size, _ in seen):
            assert height % 32 == width % 32 == 0
            assert 32 <= height <= 128
    first, again = (list(task.batches(SIZE, 3)) for _ in range(2))
    np.testing.assert_array_equal(first[-1].images, again[-1].images)


def test_data_of_other_classes_is_refused(tiny, tmp_path):
    data = replace(people(tmp_path, count=1), classes=("cat", "dog"))
    with pytest.raises(ModelError, match=r"fpn-tiny finds 1 classes \(person\), the data has 2"):
        DetectorTask(TINY, SceneSet([data]), recipe())


# Where training starts


def test_the_trunk_starts_from_the_pose_network(tmp_path):
    pose, detector = create("cpn-light"), create_detector("fpn-light")
    path = tmp_path / "pose.safetensors"
    save_weights(pose.state_dict(), path, half=False)
    before = {name: t.clone() for name, t in detector.state_dict().items()}
    count = start_detector(detector, path)
    state, source = detector.state_dict(), pose.state_dict()
    filled = [n for n, t in state.items() if not torch.equal(t, before[n])]
    assert all(name.startswith("trunk.") for name in filled)
    for name in state:
        short = name.removeprefix("trunk.")
        if short != name and short in source and source[short].shape == state[name].shape:
            assert torch.equal(state[name], source[short]), name
    assert 0 < len(filled) <= count
    # all of the trunk but C5, which is narrower
    rest = {n.removeprefix("trunk.") for n in state if n.startswith("trunk.")}
    kept = {n for n in rest if not n.endswith("num_batches_tracked") and not n.startswith("c5.")}
    assert kept <= {n for n in source if f"trunk.{n}" in state}
    assert count >= len(kept)


def test_a_detector_starts_from_the_whole_of_the_same(tmp_path):
    first, second = build(classes=1, anchors=2, levels=4), build(classes=1, anchors=2, levels=4)
    path = tmp_path / "detector.safetensors"
    save_weights(first.state_dict(), path, half=False)
    state = first.state_dict()
    assert start_detector(second, path) == sum(not n.endswith("tracked") for n in state)
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_published_detector_has_the_trunk_of_its_pose_network():
    with torch.device("meta"):  # names and shapes alone
        pose, published = create("cpn50"), create_detector("fpn50")
    shapes = [
        {n: t.shape for n, t in m.state_dict().items()} for m in (published.trunk, pose.resnet)
    ]
    assert shapes[0] == shapes[1]


def test_weights_without_a_trunk_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_weights({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match="nothing in it fits the trunk"):
        start_detector(build(classes=1, anchors=2, levels=4), path)
    with pytest.raises(WeightsError, match=r"gone\.safetensors"):
        start_detector(build(classes=1, anchors=2, levels=4), tmp_path / "gone.safetensors")
